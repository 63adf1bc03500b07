"""Freed memory: kept on a CPU, where that is possible and nobody set otherwise."""

import subprocess
import sys

import pytest
import torch

from siglip_flowers.runtime.memory import keep_freed_memory
from tests.conftest import REPOSITORY

FAULTS = """
import resource, sys, torch
from siglip_flowers.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(torch.device("cpu"))
def work():
    # Several large tensors at once, as a forward and backward pass holds them.
    kept = [torch.ones(4_000_000) for _ in range(12)]
    return sum(len(part) for part in kept)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(word: str) -> int:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_tensors_get_the_pages_of_freed_ones():
    # How many there are depends on which pages the system joins to huge ones.
    kept = min(count_page_faults("keep") for _ in range(2))
    left = max(count_page_faults("leave") for _ in range(2))
    assert kept < left / 2


def test_only_a_cpu_and_no_setting_of_the_user_is_touched(monkeypatch):
    assert not keep_freed_memory(torch.device("cuda"))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory(torch.device("cpu"))

"""What a command sets for its whole process, and what a host process keeps."""

import json
import os
import struct
import subprocess
import sys
import zlib

import pytest

from tests.conftest import REPOSITORY
from tests.small_runs import CLASSES, draw_image, run_python, save_classifier

# The libraries are imported first: only what this package changes counts.
HOST = """
import gc, json, logging, os, signal, sys, warnings
import datasets, torch._inductor.config, transformers.models.siglip.modeling_siglip
called = set()
sys.addaudithook(lambda name, values: called.add(values[1]) if name == "ctypes.dlsym" else None)

def look():
    return {
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "logging": (logging.root.level, str(logging.root.handlers), logging.root.manager.disable),
        "verbosity": (
            transformers.logging.get_verbosity(),
            transformers.logging.is_progress_bar_enabled(),
            datasets.logging.get_verbosity(),
        ),
        "hooks": (str(sys.excepthook), str(sys.unraisablehook)),
        "warnings": str(warnings.filters),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
    }

before = look()
from siglip_flowers import SiglipImageClassifier
SiglipImageClassifier.from_pretrained(sys.argv[1])([sys.argv[2]])
changed = {name for name, value in look().items() if value != before[name]}
print(json.dumps(sorted(changed | (called & {"mallopt"}))))
"""


@pytest.mark.slow
def test_a_host_process_keeps_its_settings(tmp_path):
    model = str(save_classifier(tmp_path, CLASSES))
    draw_image(tmp_path / "image.png", "aster", 0)
    # Variables of ours that are set already would hide that they are.
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HOST, model, str(tmp_path / "image.png")]
    printed = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout
    assert json.loads(printed) == []


PEAK = """
import re, sys
from siglip_flowers.commands.predict import main
code = main(sys.argv[1:])
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(code, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def write_large_png(path, side=13_300):
    """Write an RGB image of 177 megapixels in one color without holding its pixels."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    packer = zlib.compressobj(1)
    row = b"\0" + bytes((200, 40, 90)) * side
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_huge_images_are_predicted_in_bounded_memory(tmp_path):
    write_large_png(tmp_path / "0.png")
    for number in range(1, 10):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    model = REPOSITORY / "tests" / "saved_models" / "linear" / "model"
    printed = run_python("-c", PEAK, tmp_path, "--model", model, cwd=tmp_path)
    code, megabytes = map(int, printed.split()[-2:])
    assert code == 0
    assert megabytes < 1500

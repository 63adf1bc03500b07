"""The scaling model on paper against torch's counters and published sizes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_model import (
    SHAPES,
    build_on_meta,
    count,
    count_flops,
    describe_recipe,
    find_most_gpus,
    largest_batch,
    make_config,
    peak_bytes,
    predict_step,
)
from tests.conftest import REPOSITORY

# Millions of parameters of the vision towers, as the checkpoints on the Hub have them.
PUBLISHED_MILLIONS = {
    "B/16-224": 92.9,
    "L/16-256": 316.0,
    "so400m/14-384": 428.2,
    "g-opt/16-384": 1163.7,
}


def trace_step(batch: int, checkpointing: bool, attention: str) -> tuple[int, int, int]:
    """Return the bytes that autograd saves, and the products of forward pass and step.

    torch's counter of products knows no CPU kernel of sdpa: it counts eager attention.
    """
    config = make_config("B/16-224", layers=2)
    model = build_on_meta(config)
    model.set_attn_implementation(attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        kept: dict[int, Any] = {}
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        pixels = torch.empty(batch, 3, config.image_size, config.image_size)
        labels = torch.zeros(batch, dtype=torch.long)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, FlopCounterMode(display=False) as flops:
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
            forward = flops.get_total_flops()
            saved = sum(storage.nbytes() for storage in kept.values())
            loss.backward()
        return saved, forward, flops.get_total_flops()


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameters_are_those_of_the_published_towers(name):
    tower = count(make_config(name)).total - 102 * (SHAPES[name][0] + 1)
    assert tower / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=2e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_and_saved_bytes_are_those_that_torch_counts(checkpointing):
    config = make_config("B/16-224", layers=2)
    forward, step = count_flops(config, checkpointing)
    assert trace_step(2, checkpointing, "eager")[1:] == (2 * forward, 2 * step)
    saved = [trace_step(batch, checkpointing, "sdpa")[0] for batch in (1, 3)]
    assert (saved[1] - saved[0]) / 2 == count(config).saved(checkpointing)


def test_memory_and_time_obey_their_limits():
    config = make_config("so400m/14-384")
    counts = count(config)
    assert peak_bytes(counts, 8, checkpointing=True) < peak_bytes(counts, 8)
    assert peak_bytes(counts, 0) == 16 * counts.total
    assert peak_bytes(counts, 0, ranks=8) == 20 * counts.total
    shards = [peak_bytes(counts, 0, ranks=ranks, fsdp=True) for ranks in (2, 8, 64)]
    assert shards == sorted(shards, reverse=True)
    assert 0 < largest_batch(counts, 40e9) < largest_batch(counts, 80e9)
    assert largest_batch(counts, 3e9) == 0
    seconds = [predict_step(config, counts, ranks, 64) for ranks in (1, 2, 16, 1024)]
    assert seconds[0][1] == 0
    assert [exposed for _, exposed in seconds] == sorted(exposed for _, exposed in seconds)


@pytest.mark.slow
def test_the_figures_of_the_page_are_those_of_the_script():
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    for title, images, update in (
        ("Flowers102, 64 images per update", 6149, 64),
        ("1 M images, 1024 per update", 10**6, 1024),
    ):
        names = ("B/16-224", "L/16-256", "so400m/14-384", "g-opt/16-256")
        most = [str(find_most_gpus(name, images, update)) for name in names]
        assert f"| {title} | {' | '.join(most)} |" in page
    recipe = describe_recipe(REPOSITORY / "configs" / "so400m.yaml")
    gigabytes = recipe.split(": ")[1].split(" GB")[0]
    for text in (page, (REPOSITORY / "configs" / "so400m.yaml").read_text(encoding="utf-8")):
        assert f"{gigabytes} GB" in text

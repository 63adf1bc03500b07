"""The cost model on paper against torch's counters, published sizes and torch's sharding."""

import subprocess
import sys

import pytest
import torch

from benchmarks.cost_formulas import (
    SHAPES,
    build_on_meta,
    count_parameters,
    count_saved_bytes,
    count_shard_elements,
    count_step_flops,
    largest_batch,
    make_config,
    peak_bytes,
    static_bytes,
)
from benchmarks.cost_model_cells import fit_line, trace_step
from benchmarks.cost_times import (
    GPUS,
    Assumptions,
    Job,
    all_reduce_bytes,
    predict_epoch,
    predict_step,
)
from siglip_flowers.config import ModelArguments
from siglip_flowers.model.adapters import add_adapters
from siglip_flowers.model.towers import freeze
from tests.conftest import REPOSITORY

# Millions of parameters of the vision towers, as the checkpoints on the Hub have them.
PUBLISHED_MILLIONS = {
    "B/16-224": 92.9,
    "L/16-256": 316.0,
    "so400m/14-384": 428.2,
    "g-opt/16-384": 1163.7,
}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameters_are_those_of_the_published_towers(name):
    tower = count_parameters(make_config(name)).total - 102 * (SHAPES[name][0] + 1)
    assert tower / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=2e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["B/16-224", "so400m/14-224"])
def test_flops_of_a_step_agree_with_torchs_counter(name, checkpointing):
    config = make_config(name, layers=2)
    ours = count_step_flops(config, checkpointing=checkpointing)
    trace = trace_step(build_on_meta(config), 2, checkpointing=checkpointing)
    assert 2 * ours.forward == trace.forward_flops
    assert 2 * ours.step == trace.step_flops


def test_flops_with_a_frozen_encoder_agree_with_torchs_counter():
    config = make_config("B/16-224", layers=2)
    model = build_on_meta(config)
    freeze(model.vision_model, "head")
    assert trace_step(model, 2).step_flops == 2 * count_step_flops(config, trained="head").step


def test_flops_with_adapters_agree_with_torchs_counter():
    pytest.importorskip("peft")
    config = make_config("B/16-224", layers=3)
    model = build_on_meta(config)
    with torch.device("meta"):
        add_adapters(model, ModelArguments(lora_r=16))
    ours = count_step_flops(config, trained="lora").step
    # The pooling head's adapter is multiplied out once a batch, which the model leaves out.
    assert trace_step(model, 16).step_flops == pytest.approx(16 * ours, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bf16", [False, True])
def test_saved_activations_are_those_that_autograd_keeps(bf16, attention, checkpointing):
    config = make_config("B/16-224", layers=2)
    traces = [
        trace_step(
            build_on_meta(config),
            batch,
            bf16=bf16,
            attention=attention,
            checkpointing=checkpointing,
        )
        for batch in (1, 3)
    ]
    saved = count_saved_bytes(config, bf16=bf16, attention=attention).total(2, checkpointing)
    assert (traces[1].saved_bytes - traces[0].saved_bytes) / 2 == saved


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 128])
def test_shards_are_cut_as_torch_chunks(ranks):
    shapes = [(1, 1, 768), (102, 768), (102,), (768, 3, 16, 16), (5, 2)]
    for rank in range(ranks):
        held = 0
        for shape in shapes:
            pieces = torch.empty(shape, device="meta").chunk(ranks)
            held += pieces[rank].numel() if rank < len(pieces) else 0
        assert count_shard_elements(shapes, ranks, rank) == held


def test_memory_falls_with_sharding_and_checkpointing():
    config = make_config("so400m/14-384")
    parameters = count_parameters(config)
    plain = peak_bytes(config, parameters, 8)
    assert peak_bytes(config, parameters, 8, checkpointing=True) < plain
    assert sum(static_bytes(parameters, "ddp", 1)) == 16 * parameters.total
    assert sum(static_bytes(parameters, "ddp", 8)) == 20 * parameters.total
    shards = [sum(static_bytes(parameters, "fsdp2", ranks)) for ranks in (2, 8, 64)]
    assert shards == sorted(shards, reverse=True)
    batch = largest_batch(40e9, config, parameters)
    assert peak_bytes(config, parameters, batch) <= 40e9
    assert peak_bytes(config, parameters, batch + 1) > 40e9
    assert largest_batch(1e9, config, parameters) == 0


def test_predicted_times_obey_their_limits():
    config = make_config("B/16-224")
    job = Job(config, count_parameters(config), GPUS[1], Assumptions())
    assert all_reduce_bytes(100.0, 2) == 100.0
    assert predict_step(job, 1, 64).exposed == 0
    steps = [predict_step(job, ranks, 64) for ranks in (2, 8, 16, 1024)]
    assert all(0 < step.exposed <= step.communication for step in steps)
    # One epoch is the same work however many share it: GPU hours only rise.
    hours = [predict_epoch(job, ranks, 64, 10**6).gpu_hours for ranks in (1, 8, 64, 1024)]
    assert hours == sorted(hours)
    starved = Job(config, job.parameters, job.gpu, job.assumptions, read_rate=1e6)
    step = predict_step(starved, 1, 64)
    assert step.total == step.input == pytest.approx(64 * 3 * 258**2 / 1e6)


def test_a_line_is_fitted_to_start_and_rate():
    sizes = [2**18, 2**22, 2**26]
    start, rate = fit_line(sizes, [1e-3 + size / 2e9 for size in sizes])
    assert start == pytest.approx(1e-3)
    assert rate == pytest.approx(2e9)


def test_the_command_writes_its_tables(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost_model", "--output_dir", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "cost_model.json",
        "cost_model.md",
        "cost_model.png",
    }
    text = (tmp_path / "cost_model.md").read_text(encoding="utf-8")
    assert "on paper" in text
    assert "1024" in text

"""``accelerate launch`` with the shipped configurations: one run, whatever starts it."""

import csv
import functools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from siglip_flowers.commands.eval import main as evaluate
from siglip_flowers.commands.train import main as train
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.training.sharding import shard_encoder_layers
from tests.conftest import REPOSITORY
from tests.launched import CONFIGS, find_port, launch
from tests.small_runs import TINY, make_folder, small_options

SHIPPED = sorted([*CONFIGS.glob("*.yaml"), REPOSITORY / "accelerate_config.yaml"])
# 48 images in batches of 8 make 6 full steps per epoch, the same images in each however many
# processes share them.
GLOBAL_BATCH, STEPS, TEST = 8, 12, 15


SLOWLY = ("--learning_rate", "1e-4")
# Each with a run of one process that it is compared to.
VARIANTS = {
    "plain": [],
    "mean": [*SLOWLY, "--pooling", "mean", "--ema", "0.5", "--label_smoothing_factor", "0.1"],
    "contrastive": [*SLOWLY, "--objective", "contrastive", "--gradient_checkpointing", "true"],
    # Of the last 6 images, the second process has 2, and 2 that are repeated to fill its batch.
    "filled": [*SLOWLY, "--max_train_samples", "46", "--class_balance", "weights"],
    "muon": [*SLOWLY, "--optim", "muon", "--optim_args", "lr=0.002,adjust_lr_fn=original"],
}


@pytest.fixture(scope="module")
def small(tiny_dir, tmp_path_factory):
    return tiny_dir, make_folder(tmp_path_factory.mktemp("launch") / "flowers", 16, 5)


def write_options(small, processes, *more):
    return [
        *small_options(*small, Path("unused"), "--logging_steps", "1", "--use_cpu", "true"),
        *("--per_device_train_batch_size", str(GLOBAL_BATCH // processes)),
        *("--per_device_eval_batch_size", "4", "--cpu_threads", "1", *more),
    ]


@pytest.fixture(scope="module")
def ones(small, tmp_path_factory):
    """Return how to get the output directory of a variant in this process alone, run once."""

    @functools.cache
    def run(variant):
        threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp(variant)
        directories = ["--output_dir", str(folder / "run"), "--cache_dir", str(folder / "cache")]
        assert train([*write_options(small, 1, *VARIANTS[variant]), *directories]) == 0
        torch.set_num_threads(threads)
        return folder / "run"

    return run


@pytest.fixture(scope="module")
def launched(small, tmp_path_factory):
    """Return how to launch, once: two processes, two machines of two, or sharded on two of one."""

    def name_machines(processes):
        address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(find_port())]
        size = ["--num_machines", "2", "--num_processes", str(processes), *address]
        return [[*size, "--machine_rank", str(rank)] for rank in range(2)]

    configs = {"machines": "multi_machine.yaml", "sharded": "fsdp2.yaml"}

    @functools.cache
    def start(kind):
        processes = PROCESSES[kind]
        machines = name_machines(processes) if kind in configs else [["--num_processes", "2"]]
        options = write_options(small, processes, *VARIANTS[name_variant(kind)])
        folder = tmp_path_factory.mktemp(kind)
        return launch(folder, configs.get(kind, "cpu.yaml"), options, *machines)

    return start


def name_variant(kind):
    return kind if kind in VARIANTS else "plain"


def choose_tolerance(kind):
    """Sums in another order differ by rounding, which some optimizers and losses enlarge."""
    return 1e-3 if kind in VARIANTS else 1e-5


PROCESSES = {"two": 2, "machines": 4, "sharded": 2}
PROCESSES |= dict.fromkeys((name for name in VARIANTS if name != "plain"), 2)
KINDS = tuple(PROCESSES)


def read_curve(directory, column):
    with (directory / "history.csv").open() as file:
        return np.array([float(row[column]) for row in csv.DictReader(file) if row[column]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_launch_trains_along_the_curve_of_one_process(ones, launched, tiny_dir, kind):
    one, directory = ones(name_variant(kind)), launched(kind).output_dir
    training = json.loads((directory / "metrics.json").read_text())["training"]
    assert training["processes"] == PROCESSES[kind]
    losses = read_curve(one, "loss")
    assert len(losses) == STEPS
    assert np.ptp(losses) > 0.01
    columns = ["loss", "train_loss", "validation_loss"]
    # A batch of the contrastive loss has no classes to be accurate in.
    columns += [] if kind == "contrastive" else ["accuracy"]
    for column in columns:
        expected = read_curve(one, column)
        np.testing.assert_allclose(
            read_curve(directory, column), expected, rtol=choose_tolerance(kind), err_msg=column
        )
    found, expected = (load_file(path / "model" / "model.safetensors") for path in (directory, one))
    assert found.keys() == expected.keys()
    start = load_file(tiny_dir / "model.safetensors")
    for name, weight in expected.items():
        if kind == "muon" and "encoder.layers" in name and weight.ndim == 2:
            # These updates may be computed in bfloat16: they agree within 2% in norm.
            assert (found[name] - weight).norm() < 0.02 * (weight - start[name]).norm(), name
        # AdamW makes whole steps out of the rounding that key biases have for a gradient.
        elif not name.endswith(("k_proj.bias", "in_proj_bias")):
            torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_evaluation_gives_the_figures_and_predictions_of_one_process(ones, launched, kind):
    """15 images on 2 or 4 processes in batches of 4: shares of different sizes."""
    one, directory = ones(name_variant(kind)), launched(kind).output_dir
    found, expected = (
        json.loads((path / "metrics.json").read_text())["splits"] for path in (directory, one)
    )
    for split, figures in expected.items():
        assert found[split].keys() == figures.keys()
        for name, value in figures.items():
            if name in ("loss", "nll"):
                value = pytest.approx(value, abs=choose_tolerance(kind))
            assert found[split][name] == value, (split, name)
    tables = [pd.read_parquet(path / "predictions_test.parquet") for path in (directory, one)]
    assert len(tables[0]) == TEST
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=choose_tolerance(kind))


@pytest.mark.slow
def test_of_two_processes_one_has_no_image_to_evaluate(small, ones, tmp_path):
    options = ["--model", str(ones("plain")), "--max_eval_samples", "1"]
    assert evaluate([*options, "--output_dir", str(tmp_path / "alone")]) == 0
    run = launch(tmp_path, "cpu.yaml", options, ["--num_processes", "2"], script="eval.py")
    found, expected = (
        json.loads((path / "metrics_test.json").read_text())
        for path in (run.output_dir, tmp_path / "alone")
    )
    assert found["n"] == expected["n"] == 1
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert not run.said[1].strip()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_process_alone_writes_each_file_once_and_speaks(launched, kind):
    run = launched(kind)
    assert sorted(run.said) == list(range(PROCESSES[kind]))
    assert run.said[0].count("Everything is in") == 1
    assert {rank: text for rank, text in run.said.items() if rank and text.strip()} == {}
    own = {f"rng_state_{rank}.pth" for rank in range(PROCESSES[kind])}
    for change in run.changes:
        if change.rank and run.output_dir in change.path.parents:
            # Of a checkpoint in the making each process writes its random state and its shards.
            assert change.path.name in own or change.path.suffix == ".distcp", change
    renamed = Counter(
        change.path
        for change in run.changes
        if change.event == "os.rename" and run.output_dir in change.path.parents
    )
    files = [path for path in run.output_dir.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        # Given its name alone, or with the directory that it was written in.
        times = renamed[path] or sum(renamed[place] for place in path.parents)
        assert times == 1, path
    assert not [path for path in files if path.name.startswith(".") and path.name != ".metadata"]
    built = Counter(
        change.path
        for change in run.changes
        if change.event == "os.rename" and change.path.parent == run.cache_dir
    )
    assert built == dict.fromkeys((path for path in run.cache_dir.iterdir() if path.is_dir()), 1)
    # Two splits and the sample of the training images.
    assert sum(path.name.startswith("pixels-") for path in built) == 3


@pytest.mark.slow
def test_checkpoints_of_a_sharded_run_are_two_halves(launched):
    directory = launched("sharded").output_dir
    expected = load_file(directory / "model" / "model.safetensors")
    load_saved_classifier(str(directory / "model"))
    for checkpoint in directory.glob("checkpoints/*/pytorch_model_fsdp_0"):
        stored = FileSystemReader(checkpoint).read_metadata()
        halves = {entry.relative_path for entry in stored.storage_data.values()}
        assert halves == {"__0_0.distcp", "__1_0.distcp"}
        for name, weight in expected.items():
            tensor = stored.state_dict_metadata[f"model.{name}"]
            chunks = [math.prod(chunk.sizes) for chunk in tensor.chunks]
            assert sum(chunks) == weight.numel()
            assert max(chunks) <= math.ceil(weight.shape[0] / 2) * weight[0].numel()


def parse_launch(*arguments):
    """Return the launcher's arguments as ``accelerate launch`` resolves them."""
    from accelerate.commands.launch import _validate_launch_command

    return _validate_launch_command(launch_command_parser().parse_args([*arguments, "train.py"]))[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_read_by_accelerate(path):
    assert load_config_from_file(str(path)).num_processes >= 1
    arguments = parse_launch("--config_file", str(path))
    several = arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed
    assert several is (path.stem != "single")


@pytest.mark.parametrize(
    ("vision_class", "config"),
    [
        (SiglipVisionModel, SiglipVisionConfig(image_size=16, patch_size=8, **TINY)),
        (Siglip2VisionModel, Siglip2VisionConfig(num_patches=16, patch_size=8, **TINY)),
    ],
)
def test_layers_to_shard_are_those_of_either_family(vision_class, config):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    model = vision_class(config)
    shard_encoder_layers(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == [type(model.encoder.layers[0]).__name__]


def test_a_launch_that_would_start_unrelated_processes_is_refused(
    small, tmp_path, monkeypatch, capsys
):
    """The environment is the one that accelerate itself makes of a plain CPU configuration."""
    plain = tmp_path / "plain.yaml"
    plain.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    arguments = parse_launch("--config_file", str(plain), "--mixed_precision", "no")
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    for name in environment.keys() - {"OMP_NUM_THREADS"}:
        monkeypatch.setenv(name, environment[name])
    output_dir = tmp_path / "run"
    assert train([*write_options(small, 2), "--output_dir", str(output_dir)]) == 2
    message = capsys.readouterr().err
    assert "found no others" in message
    assert "configs/accelerate/cpu.yaml" in message
    assert not output_dir.exists()

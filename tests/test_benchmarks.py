"""The benchmarks: the harness's own logic against plain reference values, and tiny whole runs."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig

from benchmarks import gpu_check, train_throughput
from benchmarks.flops import count_forward_flops
from benchmarks.harness import Sample, alternate, compare
from benchmarks.report import format_table, write_report
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig
from tests.small_runs import make_checkpoint, make_folder


def test_arms_alternate_and_each_round_starts_with_another_one_without_the_warm_up():
    order = []

    def arm(name):
        return lambda: order.append(name) or Sample(len(order), 1.0)

    alternate({name: arm(name) for name in "abc"}, rounds=3, warmup_rounds=1)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"


def test_comparison_takes_ratios_within_rounds():
    # The machine slows down threefold over the rounds; the ratio stays.
    samples = {
        "ours": [Sample(2, 1.0), Sample(2, 2.0), Sample(2, 3.0)],
        "usual": [Sample(1, 1.0), Sample(1, 2.0), Sample(1, 3.0)],
    }
    assert compare(samples, "ours", "usual") == pytest.approx(2.0)


def test_a_report_is_json_and_a_table_without_nan(tmp_path):
    table = format_table(["arm", "images/s"], [["ours", 1234.5], ["none", None]])
    facts = ("speed", torch.device("cpu"), "python -m benchmarks.speed", {"steps": 2})
    with pytest.raises(ValueError, match="nan"):
        write_report(*facts, {"x": float("nan")}, table, tmp_path)
    assert not list(tmp_path.iterdir())
    path = write_report(*facts, {"images_per_second": 3.5}, table, tmp_path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["command"] == "python -m benchmarks.speed"
    assert (written["settings"], written["results"]) == ({"steps": 2}, {"images_per_second": 3.5})
    assert written["environment"]["packages"]["torch"] == torch.__version__
    text = (tmp_path / "speed_cpu.md").read_text(encoding="utf-8")
    assert "| ours | 1,234 |\n| none |  |" in text


@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_flops_agree_with_torchs_counter(pooling):
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=pooling == "map",
    )
    config = SiglipClassifierConfig(
        vision_config=vision, pooling=pooling, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    )
    config._attn_implementation = "eager"
    model = SiglipClassifier(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32))
    ours = count_forward_flops(vision, 2, map_head=pooling == "map")
    assert ours == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)


@pytest.mark.slow
def test_a_tiny_training_benchmark_has_three_arms_with_positive_speeds(tmp_path):
    argv = [
        *("--model_name_or_path", str(make_checkpoint(tmp_path / "model"))),
        *("--data_dir", str(make_folder(tmp_path / "data")), "--batch_size", "4"),
        *("--num_workers", "0", "--bf16", "false", "--output_dir", str(tmp_path / "out")),
        *("--cache_dir", str(tmp_path / "cache")),
        *("--steps", "2", "--rounds", "2", "--memory", "false"),
    ]
    assert train_throughput.main(argv) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert set(results["arms"]) == {"limit", "ours", "usual"}
    assert all(arm["images_per_second_min"] > 0 for arm in results["arms"].values())
    assert results["ours_over_limit"] > 0
    # Without --memory, whether its target is met is not known.
    assert results["memory_over_usual"] is None
    assert not results["targets"]["met"]


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_all_its_parts_on_a_cpu(tmp_path, capsys):
    assert gpu_check.main(["--cpu", "--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    ends = [line.split(",")[0] for line in printed if line.startswith("part ")]
    assert ends == [f"part {number}" for number in range(1, 6)]
    results = json.loads((tmp_path / "gpu_check_cpu.json").read_text("utf-8"))["results"]
    assert list(results["seconds"]) == [name for name, _ in gpu_check.PARTS.values()]
    rows = {row["name"]: row for row in results["rows"]}
    assert not [name for name, row in rows.items() if row["met"] is False]
    assert rows["weights that differ after a resume"]["value"] == "0"
    assert rows["a run in two processes"]["value"] == "trained"
    assert "| drawn flowers, test accuracy |" in (tmp_path / "gpu_check_cpu.md").read_text("utf-8")

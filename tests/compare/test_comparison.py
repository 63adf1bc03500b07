"""Runs compared with each other and ranked: by hand, and through the command."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.compare.comparison import compare_runs, read_runs
from siglip_flowers.compare.leaderboard import rank_runs
from siglip_flowers.metrics.bootstrap import accuracy_interval, bootstrap_headline
from tests.small_runs import CLASSES

pytestmark = pytest.mark.figures

IDS = [f"{name}/{number}" for name in CLASSES for number in range(4)]
TRUE = [name for name in CLASSES for _ in range(4)]


def write_run(directory: Path, predicted, ids=IDS, true=TRUE, split="test", **metrics) -> str:
    """Write the predictions of a run, and its metrics where any are given."""
    directory.mkdir(parents=True)
    table = pyarrow.table(
        {
            "image_id": list(ids),
            "label": [sorted(set(true)).index(name) for name in true],
            "label_name": list(true),
            "correct": [a == b for a, b in zip(true, predicted, strict=True)],
            "top_labels": [[0]] * len(ids),
            "top_names": [[name] for name in predicted],
            "top_probabilities": [[0.5 + 0.01 * number] for number in range(len(ids))],
        }
    ).replace_schema_metadata({"data": "made up", "split": split})
    pyarrow.parquet.write_table(table, directory / "predictions_test.parquet")
    if metrics:
        (directory / "metrics.json").write_text(json.dumps(metrics))
    return str(directory)


def change(wrong, right=TRUE) -> list[str]:
    """Return the true names, but another class at some places."""
    names = list(right)
    for place in wrong:
        names[place] = next(name for name in CLASSES if name != right[place])
    return names


def write_metrics(accuracy, n=12, protocol="given", seed=1, data="a") -> dict:
    return {
        "data": {
            "split_protocol": protocol,
            "description": f"data (image folder), splits {protocol}, 24/12/{n} images",
            "shots": None,
        },
        "model": {"model_id": "somewhere/small", "parameters": 2_000_000},
        "training": {"seed": seed},
        "finished": "2026-11-29T11:06:15+00:00",
        "splits": {
            "test": {
                "n": n,
                "accuracy": accuracy,
                "f1_macro": accuracy / 2,
                "per_class": [
                    {"name": data, "support": n // 2, "recall": min(1.0, 2 * accuracy)},
                    {"name": "b", "support": n // 2, "recall": max(0.0, 2 * accuracy - 1)},
                ],
            }
        },
    }


def test_each_run_is_compared_with_the_first_and_p_values_are_corrected(tmp_path):
    runs = [
        write_run(tmp_path / "a", change([0, 1, 2, 3, 4, 5])),
        write_run(tmp_path / "b", change([5])),
        write_run(tmp_path / "c", change([4, 5, 6, 7])),
    ]
    comparison = compare_runs(read_runs(runs, "test"))
    b, c = comparison["differences"]
    # b alone is right on 0 to 4; c on 0 to 3, and the first alone on 6 and 7.
    assert (b["mcnemar"]["b"], b["mcnemar"]["c"]) == (5, 0)
    assert (c["mcnemar"]["b"], c["mcnemar"]["c"]) == (4, 2)
    smaller, larger = b["mcnemar"]["p_value"], c["mcnemar"]["p_value"]
    assert b["corrected_p"] == pytest.approx(2 * smaller)
    assert c["corrected_p"] == pytest.approx(max(2 * smaller, larger))
    assert b["accuracy"]["difference"] == pytest.approx(5 / 12)
    assert [value for value, _, _ in comparison["accuracies"]] == [6 / 12, 11 / 12, 8 / 12]
    labels = np.repeat([0, 1, 2], 4)
    predicted = [CLASSES.index(name) for name in change([5])]
    low_high = bootstrap_headline(labels, predicted, 3)["accuracy"]
    assert comparison["accuracies"][1][1:] == pytest.approx(low_high)
    assert "b beats a: +41.67 points" in b["conclusion"] or "no difference shown" in b["conclusion"]


def test_classes_and_images_are_those_that_differ(tmp_path):
    first = write_run(tmp_path / "a", change([0, 1]))
    # Another order of the rows is the same run.
    order = np.random.default_rng(0).permutation(12)
    names = change([1, 8])
    other = write_run(
        tmp_path / "b", [names[i] for i in order], [IDS[i] for i in order], [TRUE[i] for i in order]
    )
    comparison = compare_runs(read_runs([first, other], "test"))
    aster, clover, borage = comparison["differences"][0]["per_class"]
    assert aster == {
        **{"name": "aster", "support": 4, "first_accuracy": 0.5, "accuracy": 0.75},
        **{"difference": 0.25, "only_first": 0, "only_other": 1, "corrected_p": 1.0},
    }
    assert (clover["difference"], clover["only_first"], clover["only_other"]) == (-0.25, 1, 0)
    assert (borage["name"], borage["difference"]) == ("borage", 0)
    images = {each["id"]: each for each in comparison["images"]}
    assert set(images) == {"aster/0", "clover/0"}
    assert images["aster/0"]["predicted"] == ["borage", "aster"]
    assert images["aster/0"]["correct"] == [False, True]


def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path):
    first = write_run(tmp_path / "first", TRUE, **write_metrics(1.0, protocol="swapped"))

    def refuse(name: str, *reasons: str, error: type = InputError, **changes) -> None:
        other = write_run(tmp_path / name, **{"predicted": TRUE, **changes})
        with pytest.raises(error) as caught:
            read_runs([first, other], "test")
        assert all(reason in str(caught.value) for reason in reasons), caught.value
        assert str(caught.value).count(". ") <= 1

    refuse("split", "split 'validation'", "'test'", split="validation")
    refuse("ids", "12 images", "11 of them the same", ids=[*IDS[:-1], "clover/9"])
    refuse("label", "labeled 'borage'", "'aster'", true=["borage", *TRUE[1:]])
    refuse("protocol", "protocol 'official'", **write_metrics(1.0, protocol="official"))
    refuse("twice", "several predictions of an image", error=RunError, ids=[*IDS[:-1], IDS[0]])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "predictions_test.parquet").write_bytes(b"no table")
    with pytest.raises(RunError, match="cannot be read .* Write it again"):
        read_runs([first, str(tmp_path / "broken")], "test")
    with pytest.raises(InputError, match="has no predictions_test.parquet"):
        read_runs([first, str(tmp_path)], "test")


def test_the_command_compares(tmp_path, capsys):
    a = write_run(tmp_path / "a", change([0, 1, 2, 3, 4]))
    b = write_run(tmp_path / "b", change([5]))
    out = tmp_path / "out"
    assert eval_command.main(["--compare", a, b, "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "58.33%" in shown
    assert "91.67%" in shown
    assert "+33.33" in shown
    values = json.loads((out / "comparison.json").read_text())
    assert values["runs"] == ["a", "b"]
    assert values["differences"][0]["mcnemar"]["b"] == 5
    assert len(values["images"]) == 6
    assert "\naster " in (out / "comparison.md").read_text()


def test_a_leaderboard_ranks_each_protocol_by_itself(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    for name, metrics in (
        ("good", write_metrics(9 / 12)),
        ("best", write_metrics(11 / 12, seed=2)),
        ("equal", write_metrics(9 / 12, seed=3)),
        ("deep/down/bad", write_metrics(1 / 12)),
        ("other", write_metrics(1.0, protocol="official")),
        ("fewer", write_metrics(1.0, n=6)),
        ("same name", write_metrics(1.0, data="c")),
    ):
        write_run(results / name, TRUE, **metrics)
    (results / "experiment").mkdir()
    (results / "experiment" / "metrics.json").write_text('{"splits": []}')
    # The report of a run is no run without test figures.
    (results / "good" / "report_test").mkdir()
    (results / "good" / "report_test" / "metrics.json").write_text('{"title": "good on flowers"}')
    rows = rank_runs(results)
    assert [(cells[0], group[0], group[2]) for group, _, cells in rows] == [
        ("fewer", "given", 6),
        ("best", "given", 12),
        ("equal", "given", 12),
        ("good", "given", 12),
        ("deep/down/bad", "given", 12),
        ("same name", "given", 12),
        ("other", "official", 12),
    ]
    low, high = accuracy_interval([6, 5], [6, 6])
    assert rows[1][2][2] == f"{100 * low:.1f} to {100 * high:.1f}"
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert eval_command.main(["--leaderboard", "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("test images") == 4
    assert re.findall(r"^(\d) +(\S+) ", shown, re.MULTILINE) == [
        *(("1", "fewer"), ("1", "best"), ("2", "equal"), ("2", "good"), ("4", "deep/down/bad")),
        *(("1", "same"), ("1", "other")),
    ]
    assert shown in (out / "leaderboard.md").read_text()
    shutil.rmtree(results)
    results.mkdir()
    assert eval_command.main(["--leaderboard", "results"]) == 2
    assert "no finished run with test figures" in capsys.readouterr().err

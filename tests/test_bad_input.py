"""Bad input: one sentence on stderr, the right exit code, and nothing half-written."""

import json
import re
import shutil
from collections import namedtuple

import pytest

from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.commands.main import main
from tests.small_runs import draw_image, list_files, make_folder, small_options


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A finished small run."""
    output_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train_command.main(small_options(*small, output_dir)) == 0
    return output_dir


@pytest.fixture
def refuse(capsys, tmp_path):
    """Run a command that must fail; return its sentence."""

    def run(main, argv, code, written=None):
        capsys.readouterr()
        assert main(argv) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert captured.err.count(": error: ") == 1, captured.err
        message = captured.err.splitlines()[-1].partition(": error: ")[2]
        assert message.endswith((".", "?"))
        if written is not None:
            assert not written.exists() or list_files(written) == []
        return message

    return run


@pytest.fixture
def refuse_train(refuse, small, tmp_path):
    def run(*more, code=2):
        output_dir = tmp_path / "out"
        argv = small_options(*small, output_dir, *more)
        return refuse(train_command.main, argv, code, written=output_dir)

    return run


# Others are in test_config.py, test_rules.py, test_paths.py and test_troubleshooting.py.
@pytest.mark.parametrize(
    "options, message",
    [
        (["--trainable", "last:99"], r"last:99.* has 2 layers; use last:2 or all"),
        (["--attn_implementation", "none"], r'none cannot be used .*"none"` is not supported\)'),
        # The Hub is not asked for the model before.
        (
            ["--data_dir", "/no/such/dir", "--model_name_or_path", "org/name"],
            r"--data_dir /no/such/dir does not exist",
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_impossible_options_are_refused_before_the_data_are_read(
    refuse_train, options, message, monkeypatch
):
    monkeypatch.delattr("siglip_flowers.training.run.open_data")
    answer = refuse_train(*options)
    assert re.search(message, answer), answer


@pytest.fixture
def damaged(tmp_path):
    """Good images with a zero-byte and a corrupt one among them."""
    folder = make_folder(tmp_path / "images")
    (folder / "train" / "aster" / "empty.png").touch()
    good = (folder / "test" / "clover" / "0.png").read_bytes()
    (folder / "test" / "clover" / "cut.png").write_bytes(good[: len(good) // 2])
    return folder


def test_unreadable_images_are_dropped_and_counted_when_asked(small, damaged, tmp_path):
    out = tmp_path / "out"
    argv = small_options(small[0], damaged, out, "--skip_corrupt_images", "--max_steps", "2")
    assert train_command.main(argv) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    skipped = metrics["data"]["skipped_images"]
    assert {name: count for name, count in skipped.items() if count} == {"train": 1, "test": 1}
    assert metrics["splits"]["test"]["n"] == 12
    assert not any("cut" in name for name in json.loads((out / "splits.json").read_text())["test"])


def test_a_failed_overwrite_leaves_the_old_results(refuse, small, damaged, trained):
    before = list_files(trained)
    argv = small_options(small[0], damaged, trained, "--overwrite_output_dir")
    refuse(train_command.main, argv, 1)
    assert list_files(trained) == before


@pytest.fixture
def full_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))


@pytest.mark.usefixtures("full_disk")
def test_too_little_free_disk_is_told_before_training(refuse_train):
    message = refuse_train(code=1)
    assert "0.0 GB free" in message
    assert "--save_total_limit" in message


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(("rate", "said"), [("1e-4", 1), ("3e-5", 0)])
def test_a_rate_that_spoils_released_weights_is_warned_about(
    refuse_train, monkeypatch, caplog, rate, said
):
    # The tiny tower counts as a released one, and the run ends before it trains.
    monkeypatch.setattr("siglip_flowers.training.build.BASE_HIDDEN_SIZE", 16)
    refuse_train("--learning_rate", rate, code=1)
    assert caplog.text.count("--learning_rate 0.0001 is high for a released SigLIP") == said


def test_eval_on_other_classes_is_refused(refuse, trained, tmp_path):
    other = tmp_path / "images"
    for name, color in (("aster", "aster"), ("dahlia", "clover")):
        (other / "train" / name).mkdir(parents=True)
        for index in range(8):
            draw_image(other / "train" / name / f"{index}.png", color, 77 * index + len(name))
    message = refuse(eval_command.main, ["--model", str(trained), "--data_dir", str(other)], 2)
    assert "does not know 1 of the data's 2 classes: dahlia" in message


def test_eval_can_be_pointed_at_another_source_than_the_models_own(refuse, trained):
    # The run's --data_dir must not contradict a source that is named on the command line.
    argv = ["--model", str(trained), "--data_source", "procedural"]
    argv += ["--procedural_images_per_class", "5", "--procedural_image_size", "16"]
    assert "102 of the data's 102 classes" in refuse(eval_command.main, argv, 2)


def test_a_cache_directory_that_cannot_be_made_stops_no_evaluation(
    tmp_path, trained, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIGLIP_FLOWERS_CACHE", str(tmp_path / "file" / "cache"))
    assert eval_command.main(["--model", str(trained)]) == 0
    assert f"The cache directory {tmp_path / 'file' / 'cache'} cannot be written" in caplog.text


def test_a_file_in_the_way_of_the_output_is_named_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words in (
        *("train --output_dir", "eval --output_dir", "predict x --output", "probe --output_dir"),
        *("export --format onnx --output", "publish x --output_dir"),
    ):
        assert main([*words.split(), str(tmp_path / "file" / "below")]) == 2
        assert f"since {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert main(["predict", "x", "--output", str(tmp_path)]) == 2

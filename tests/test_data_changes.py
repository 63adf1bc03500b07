"""Data that change between a run and its resumption, or before it is evaluated again."""

import pytest

from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.training.trainer import SiglipTrainer
from tests.small_runs import draw_image, make_checkpoint, make_folder, small_options


@pytest.fixture
def folder(tmp_path):
    """Class folders that are cut into splits."""
    return make_folder(tmp_path / "images") / "train"


@pytest.fixture
def options(folder, tmp_path):
    return small_options(make_checkpoint(tmp_path / "tiny"), folder, tmp_path / "run")


def test_images_that_a_run_was_trained_on_are_not_evaluated(folder, options, tmp_path, capsys):
    assert train_command.main(options) == 0
    argv = ["--model", str(tmp_path / "run"), "--split", "test"]
    assert eval_command.main(argv) == 0
    for seed in (1, 2, 3):
        assert eval_command.main([*argv, "--split_seed", str(seed)]) == 2
        assert "was trained on" in capsys.readouterr().err
    for number in range(9):
        draw_image(folder / "aster" / f"a{number}.png", "aster", number)
    for more in ([], ["--data_dir", str(folder)]):
        assert eval_command.main([*argv, *more]) == 2
        assert "was trained on" in capsys.readouterr().err
    assert eval_command.main([*argv, "--allow_duplicates"]) == 0


@pytest.mark.parametrize("change", ["images", "classes"])
def test_a_run_resumes_on_its_own_data_alone(
    folder, options, monkeypatch, tmp_path, capsys, change
):
    monkeypatch.setattr(SiglipTrainer, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_command.main(options)
    monkeypatch.undo()
    if change == "images":
        draw_image(folder / "aster" / "new.png", "aster", 7)
    else:
        (folder / "aster").rename(folder / "dahlia")
    kept = (tmp_path / "run" / "splits.json").read_bytes()
    assert train_command.main(options) == 2
    assert "The data have changed since the unfinished run" in capsys.readouterr().err
    assert (tmp_path / "run" / "splits.json").read_bytes() == kept
    if change == "images":
        (folder / "aster" / "new.png").unlink()
    else:
        (folder / "dahlia").rename(folder / "aster")
    assert train_command.main(options) == 0

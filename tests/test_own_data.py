"""The page about own images: its commands, typed as they stand, on photographs of full size."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from siglip_flowers.commands.main import main
from tests.conftest import REPOSITORY
from tests.publish.small_hub import open_garden
from tests.test_documented_commands import list_blocks

# The report has its figures in the page, as SVG.
pytestmark = pytest.mark.figures

CLASSES, PHOTOGRAPHS = ("anthurium", "artichoke", "azalea"), 6
# The page starts from a checkpoint of the Hub and trains for longer.
SMALL = "--num_train_epochs 1 --per_device_train_batch_size 4 --report_to none --bf16 false"


@pytest.fixture
def photographs(flowers_dir, tmp_path, monkeypatch) -> Path:
    """A working directory with a few photographs as ``images/``, classes in Russian among them."""
    source = flowers_dir.parent / "flowers102-full-size"
    if not source.is_dir():
        pytest.skip(f"the photographs of full size are not in {source}")
    for name in CLASSES:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for path in sorted((source / name).iterdir())[:PHOTOGRAPHS]:
            shutil.copy(path, folder)
    (tmp_path / "images" / "azalea").rename(tmp_path / "images" / "азалия")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_commands(block: int, nano_dir: Path, capsys) -> str:
    """Run the commands of a block of the page, and return what they print."""
    page = REPOSITORY / "docs" / "howto" / "own-data.md"
    for line in list_blocks(page, {"bash"})[block].splitlines():
        _, *words = shlex.split(line)
        if words[0] == "train":
            words += ["--model_name_or_path", str(nano_dir), *shlex.split(SMALL)]
        assert main(words) == 0, line
    return capsys.readouterr().out


@pytest.mark.slow
def test_three_commands_go_from_a_folder_to_a_published_model(photographs, nano_dir, capsys):
    with open_garden(photographs / "garden") as garden:
        printed = type_commands(0, nano_dir, capsys)
        published = garden.hub.repositories["my-team/my-classifier"].files
    start = printed.splitlines()[:5]
    assert [line.split(":")[0] for line in start] == ["data", "model", "device", "output", "disk"]
    assert "splits cut at random from one folder, seed 0, 12/3/3 images" in start[0]
    assert "3 classes, 4 training images each" in start[0]
    assert "results/my-run, from the start; trackers: none" in start[3]
    assert re.search(r"time: roughly \d+ minutes?; the log shows a better estimate", start[4])
    assert Path("results/my-run/report_test/report.html").is_file()
    assert {"model.safetensors", "README.md"} <= set(published)
    assert set(json.loads(published["config.json"])["label2id"]) == {*CLASSES[:2], "азалия"}


def test_one_command_trains_on_a_table(photographs, nano_dir, capsys):
    rows = [(path, path.parent.name) for path in sorted(Path("images").rglob("*.jpg"))]
    lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
    Path("photos.csv").write_text("\n".join(lines), encoding="utf-8")
    printed = type_commands(1, nano_dir, capsys)
    assert "data: photos.csv (table), splits cut at random from one table, seed 0" in printed
    metrics = json.loads(Path("results/my-run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"]["source"] == "table"
    assert sum(split["n"] for split in metrics["splits"].values()) == len(rows)

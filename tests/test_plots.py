"""Curves and example images: what is drawn, and how the files are written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from siglip_flowers.base.errors import RunError
from siglip_flowers.plots import curves as plots
from siglip_flowers.plots import examples
from siglip_flowers.plots.curves import find_best_row, plot_accuracy, plot_loss
from siglip_flowers.plots.examples import choose_examples, save_examples

REPOSITORY = Path(__file__).resolve().parents[1]

HISTORY = [
    {"step": 1, "epoch": 0.5, "learning_rate": 1e-4, "loss": 4.0, "accuracy": 0.1},
    {"step": 2, "epoch": 1.0, "loss": 3.0, "train_loss": 2.5, "train_accuracy": 0.5},
    {"step": 2, "epoch": 1.0, "validation_loss": 2.7, "validation_accuracy": 0.4},
    {"step": 3, "epoch": 1.5, "loss": float("nan"), "accuracy": None},
    {"step": 4, "epoch": 2.0, "train_loss": 1.5, "validation_loss": 2.2, "loss": 2.0}
    | {"train_accuracy": 0.9, "validation_accuracy": 0.7, "accuracy": 0.6},
    {"step": 6, "epoch": 3.0, "train_loss": 1.0, "validation_loss": 2.4, "loss": 1.2}
    | {"train_accuracy": 0.95, "validation_accuracy": 0.7},
    {"step": 6, "epoch": None, "train_loss": 9.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order; the files are written as usual."""
    figures: list[Figure] = []
    save = plots.save_figure

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(plots, "save_figure", keep)
    monkeypatch.setattr(examples, "save_figure", keep)
    return figures


def read_lines(figure):
    (axes,) = figure.axes
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def read_texts(figure):
    return [text.get_text() for text in figure.texts]


def test_loss_plot_shows_all_measured_points_and_the_best_epoch(tmp_path, drawn):
    plot_loss(HISTORY, tmp_path / "loss_plot.png", "procedural, demo")
    assert read_lines(drawn[0]) == {
        "train, augmented (running)": ([0.5, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.2]),
        "train": ([1.0, 2.0, 3.0], [2.5, 1.5, 1.0]),
        "validation": ([1.0, 2.0, 3.0], [2.7, 2.2, 2.4]),
        "best validation accuracy: 70.0 %, epoch 2": ([2.0], [2.2]),
    }
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "procedural, demo"
    assert axes.get_xlabel() == "epoch"


def test_accuracy_plot_is_in_percent(tmp_path, drawn):
    plot_accuracy(HISTORY, tmp_path / "accuracy_plot.png", "procedural, demo")
    lines = read_lines(drawn[0])
    assert lines["train, augmented (running)"] == ([0.5, 2.0], [10.0, 60.0])
    assert lines["train"] == ([1.0, 2.0, 3.0], [50.0, 90.0, 95.0])
    assert lines["validation"] == ([1.0, 2.0, 3.0], [40.0, 70.0, 70.0])
    assert "%" in drawn[0].axes[0].get_ylabel()


def test_best_row_is_the_first_of_equals():
    best = find_best_row(HISTORY)
    assert best is not None
    assert best["epoch"] == 2.0
    assert find_best_row([{"epoch": 1.0, "validation_accuracy": None}]) is None


@pytest.mark.parametrize("history", [[], [{"epoch": 1.0, "loss": None}], HISTORY[:1]])
def test_sparse_histories_still_give_a_image(tmp_path, history):
    for draw in (plot_loss, plot_accuracy):
        path = tmp_path / "new" / f"{draw.__name__}.png"
        draw(history, path, "nothing yet")
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 500


def test_markup_in_a_title_stays_literal(tmp_path, drawn):
    title = "price $\\frac{$ and a_b"  # as mathematics this is an error
    plot_loss(HISTORY, tmp_path / "loss.png", title)
    assert drawn[0].axes[0].get_title(loc="left") == title


def test_writing_leaves_one_readable_file_equal_on_repetition(tmp_path):
    path = tmp_path / "loss.png"
    path.write_text("an older file")
    plot_loss(HISTORY, path, "title")
    first = path.read_bytes()
    plot_loss(HISTORY, path, "title")
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_failed_write_keeps_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_text("an older file")

    def fill_disk(self, target, **kwargs):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_disk)
    with pytest.raises(RunError, match=r"loss\.png cannot be written \(No space left on device\)"):
        plot_loss(HISTORY, path, "title")
    assert path.read_text() == "an older file"
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_unusable_directory_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        plot_loss(HISTORY, tmp_path / "file" / "loss.png", "title")


def test_drawing_does_not_import_pyplot():
    code = "import sys, siglip_flowers.plots.examples\nsys.exit('matplotlib.pyplot' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def make_images(count):
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(count)
    ]


def test_examples_state_classes_confidence_and_verdict_in_words(tmp_path, drawn):
    paths = save_examples(
        make_images(2),
        ["passion flower", "rose"],
        ["passion flower", "lotus"],
        [0.875, 0.9999],
        tmp_path,
        "oxford, test",
    )
    assert [path.name for path in paths] == ["example1.png", "example2.png", "examples.png"]
    right, wrong, sheet = map(read_texts, drawn)
    assert right[:2] == ["oxford, test", "✓ right"]
    assert right[2:6] == ["true", "passion flower", "predicted", "passion flower"]
    assert right[6:] == ["confidence", "87.5 %"]
    assert wrong[1:] == ["✗ wrong", "true", "rose", "predicted", "lotus", "confidence", "> 99.9 %"]
    assert sheet == right + wrong[1:]


def test_single_files_stop_at_count_and_the_sheet_shows_all(tmp_path, drawn):
    names = [f"class {number}" for number in range(7)]
    save_examples(make_images(7), names, names, [0.5] * 7, tmp_path, "title", count=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "example1.png",
        "example2.png",
        "example3.png",
        "examples.png",
    ]
    assert len(drawn[-1].axes) == 7


def test_examples_of_a_longer_earlier_call_are_removed(tmp_path):
    names = ["rose"] * 3
    save_examples(make_images(3), names, names, [0.5] * 3, tmp_path, "title")
    save_examples(make_images(1), names[:1], names[:1], [0.5], tmp_path, "title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example1.png", "examples.png"]


def test_names_with_markup_are_drawn_literally_and_long_ones_wrapped(tmp_path, drawn):
    markup = "$x_1$ \\frac{a <b>rose</b> & $"
    endless = "never_ending_" * 30
    save_examples(make_images(1), [markup], [endless], [0.5], tmp_path, "t")
    for figure in drawn:
        renderer = figure.canvas.get_renderer()
        texts = read_texts(figure)
        start, end = texts.index("true"), texts.index("predicted")
        assert " ".join(text for text in texts[start + 1 : end] if text) == markup
        assert texts[-3].endswith("…")
        assert all(not text.get_parse_math() for text in figure.texts)
        for text in figure.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
            assert box.y0 >= 0


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (1, 1)), ("P", (300, 20)), ("CMYK", (30, 200)), ("I;16", (9, 9))]
)
def test_any_mode_and_shape_can_be_drawn(tmp_path, mode, size):
    paths = save_examples([Image.new(mode, size)], ["a"], ["b"], [0.1], tmp_path, "t")
    with Image.open(paths[0]) as image:
        assert image.size[0] == 440


def test_image_is_drawn_upright_in_its_colors(tmp_path):
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (0, 32, 64, 64))
    (path, _) = save_examples([image], ["a"], ["a"], [0.1], tmp_path, "t")
    with Image.open(path) as drawn:
        column = np.asarray(drawn.convert("RGB"))[:, 220].tolist()
    assert column.index([255, 0, 0]) < column.index([0, 0, 255])


def test_transparent_parts_are_drawn_white(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    (path, _) = save_examples([image], ["a"], ["a"], [0.1], tmp_path, "t")
    with Image.open(path) as drawn:
        assert drawn.convert("RGB").getpixel((220, 220)) == (255, 255, 255)


def test_unequal_or_empty_example_lists_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not 1, 2, 1 and 1 of them"):
        save_examples(make_images(1), ["a", "b"], ["a"], [0.1], tmp_path, "t")
    with pytest.raises(ValueError, match="one or more images"):
        save_examples([], [], [], [], tmp_path, "t")
    assert list(tmp_path.iterdir()) == []


def make_predictions(right, wrong, classes=4):
    labels = np.arange(right + wrong) % classes
    predictions = np.where(np.arange(right + wrong) < right, labels, (labels + 1) % classes)
    return labels, np.eye(classes)[predictions]


def test_choice_mixes_right_and_wrong_rows():
    labels, probabilities = make_predictions(40, 20)
    chosen = choose_examples(labels, probabilities, 3, 2, seed=0)
    assert [row < 40 for row in chosen] == [True, False, True, False, True]
    assert len({int(labels[row]) for row in chosen if row < 40}) == 3


def test_choice_depends_on_the_seed_only():
    labels, probabilities = make_predictions(40, 20)
    first = choose_examples(labels, probabilities, 3, 2, seed=0)
    np.random.seed(9)
    assert choose_examples(labels, probabilities, 3, 2, seed=0) == first
    others = [choose_examples(labels, probabilities, 3, 2, seed=seed) for seed in range(1, 6)]
    assert any(other != first for other in others)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [(10, 0, (5, 0)), (0, 10, (0, 5)), (1, 10, (1, 4)), (10, 1, (4, 1)), (2, 1, (2, 1))],
)
def test_choice_fills_up_with_the_other_kind(right, wrong, expected):
    chosen = choose_examples(*make_predictions(right, wrong), 3, 2, seed=1)
    assert (sum(row < right for row in chosen), sum(row >= right for row in chosen)) == expected
    assert len(set(chosen)) == len(chosen)


def test_choice_of_nothing_is_empty():
    assert choose_examples([], np.zeros((0, 3)), 3, 2, seed=0) == []


def test_choice_refuses_wrong_shapes_and_negative_counts():
    with pytest.raises(ValueError, match=r"not \(2,\) and \(3, 2\)"):
        choose_examples([0, 1], np.zeros((3, 2)), 1, 1, seed=0)
    with pytest.raises(ValueError, match="-1 right"):
        choose_examples([0], np.ones((1, 2)), -1, 1, seed=0)

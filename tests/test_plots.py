"""Curves, confusion matrices and example sheets: what is drawn, and how the files are written."""

import logging
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from siglip_flowers.plots import figures, theme
from siglip_flowers.plots.examples import save_examples
from siglip_flowers.plots.figures import draw_confusion, plot_curves

pytestmark = pytest.mark.figures

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
NAMES = ("ромашка", "bellis $x_1$", "a name without any end " * 9, "\x1b[31mred\u202e", "ok")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order; the files are written as usual."""
    found: list[Figure] = []
    save_figure = theme.save_figure

    def keep(figure, *args, **kwargs):
        found.append(figure)
        save_figure(figure, *args, **kwargs)

    for module in (figures, theme):
        monkeypatch.setattr(module, "save_figure", keep)
    return found


def read_lines(figure):
    (axes,) = figure.axes
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def find_texts(figure):
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
    return [text for text in texts if text.get_text()]


def check_inside(figure):
    """Assert that no text is cut off at the edge of the figure."""
    figure.canvas.draw()
    for text in find_texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1, text.get_text()
        assert box.x1 <= figure.bbox.width + 1, text.get_text()
        assert box.y0 >= -1, text.get_text()
        assert box.y1 <= figure.bbox.height + 1, text.get_text()


def test_curves_show_all_measured_points_and_the_first_best_epoch(tmp_path, drawn):
    for name in ("loss", "accuracy"):
        plot_curves(HISTORY, tmp_path / f"{name}_plot.png", "procedural, demo", name)
    best = "best validation accuracy: 70.00%, epoch 2"
    assert read_lines(drawn[0]) == {
        "train, augmented (running)": ([0.5, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.2]),
        "train": ([1.0, 2.0, 3.0], [2.5, 1.5, 1.0]),
        "validation": ([1.0, 2.0, 3.0], [2.7, 2.2, 2.4]),
        best: ([2.0], [2.2]),
    }
    assert drawn[0].get_suptitle() == "procedural, demo"
    assert read_lines(drawn[1]) == {
        "train, augmented (running)": ([0.5, 2.0], [10.0, 60.0]),
        "train": ([1.0, 2.0, 3.0], [50.0, 90.0, 95.0]),
        "validation": ([1.0, 2.0, 3.0], [40.0, 70.0, 70.0]),
        best: ([2.0], [70.0]),
    }
    assert "%" in drawn[1].axes[0].get_ylabel()


def test_a_file_is_replaced_whole_and_equal_on_repetition(tmp_path, drawn, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_text("an older file")
    title = "price $\\frac{$ and a_b " * 20  # as mathematics this is an error
    plot_curves(HISTORY, path, title, "loss")
    assert " ".join(drawn[0].get_suptitle().split())[:22] == title[:22]
    check_inside(drawn[0])
    first = path.read_bytes()
    plot_curves(HISTORY, path, title, "loss")
    assert path.read_bytes() == first

    def fill_disk(self, target, **kwargs):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*loss\.png'"):
        plot_curves(HISTORY, path, title, "loss")
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize("classes", [2, 5, 102, 1000])
def test_a_confusion_matrix_has_every_count_and_name(classes):
    counts = np.diag([7] * classes)
    counts[1, 0] = 3
    names = [f"class {number}" for number in range(classes)]
    figure = draw_confusion(counts, names, "Confusion on the test split")
    check_inside(figure)
    (axes,) = figure.axes
    cells = axes.collections[0]
    assert len(cells.get_paths()) == classes + 1
    colors = {tuple(color[:3]) for color in cells.get_facecolor()}
    assert len(colors) == 2
    # Of more classes the report tells the names of a cell.
    assert [label.get_text() for label in axes.get_yticklabels()] == names * (classes <= 102)
    shown = [text.get_text() for text in axes.texts]
    assert shown == ([] if classes >= 102 else [str(count) for count in counts.ravel()])
    heights = [label.get_fontsize() for label in axes.get_yticklabels()]
    assert all(6 <= height <= 9 for height in heights)


@pytest.mark.filterwarnings("error")
def test_names_of_any_script_are_drawn_or_escaped_with_one_note(caplog):
    theme._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        figure = draw_confusion(np.eye(7, dtype=int), [*NAMES, "\u4e2d\u6587", "\U00013000"])
        theme.to_image(figure)
        check_inside(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["ромашка", "bellis $x_1$"]
    assert names[2].endswith("…")
    assert "\x1b" not in names[3]
    assert "\u202e" not in names[3]
    # Depends on the fonts of the machine; hieroglyphs are rare.
    assert names[5] in ("\u4e2d\u6587", "\\u4e2d\\u6587")
    escaped = [name for name in names if name.startswith("\\u4") or name.startswith("\\U")]
    assert len(caplog.records) == bool(escaped)


def make_examples(count, true="rose", predicted="rose", confidence=0.5):
    random, rest = np.random.default_rng(0), (true, predicted, confidence)
    return [
        (Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)), *rest)
        for _ in range(count)
    ]


def test_examples_state_classes_confidence_and_verdict_in_words(tmp_path, drawn):
    wrong = make_examples(1, "rose", "lotus", 0.9999)
    save_examples([*make_examples(1, confidence=0.875), *wrong], tmp_path, "oxford, test")
    right, wrong, sheet = ([text.get_text() for text in find_texts(figure)] for figure in drawn)
    shown = "oxford, test|✓ right|true|rose|predicted|rose|confidence|87.5%"
    assert right == shown.split("|")
    assert wrong[1:] == ["✗ wrong", "true", "rose", "predicted", "lotus", "confidence", "> 99.9%"]
    assert sheet == right + wrong[1:]

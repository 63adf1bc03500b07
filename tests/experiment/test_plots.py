"""What the plots of an experiment draw, read back from the figure, and the files they write."""

import numpy as np
import pytest
from PIL import Image

from siglip_flowers.experiment import plots
from siglip_flowers.experiment.plots import (
    Curve,
    plot_accuracy_curves,
    plot_loss_band,
    plot_shots,
    share_y_limits,
)
from siglip_flowers.metrics.statistics import mean_interval

EPOCHS = np.arange(5.0)
SHOTS = {
    "baseline": {"16": [0.8, 0.82, 0.81], "1": [0.3, 0.4, 0.35]},
    "sigmoid": {"16": [0.9], "full": [0.97, 1.0]},
}


def make_curves(*levels):
    return [Curve(EPOCHS, level - EPOCHS / 10, level + EPOCHS / 10) for level in levels]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is written."""
    figures = []
    write = plots._write

    def keep(figure, path):
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "_write", keep)
    return figures


def find_line(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line


def read_legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_loss_line_is_the_mean_and_its_band_the_extremes_of_the_seeds(tmp_path, drawn):
    plot_loss_band(make_curves(1.0, 2.0, 6.0), tmp_path / "loss.png", "Loss")
    axes = drawn[0].axes[0]
    assert find_line(axes, "validation").get_ydata() == pytest.approx(3 + EPOCHS / 10)
    assert find_line(axes, "train").get_ydata() == pytest.approx(3 - EPOCHS / 10)
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    assert len(bands) == 2
    start = bands[1][bands[1][:, 0] == 0, 1]
    assert (start.min(), start.max()) == (1.0, 6.0)
    note = drawn[0].legends[0].get_title().get_text()
    assert note == "line: mean of 3 seeds; band: lowest to highest seed"


def test_two_arms_share_their_axis_and_gaps_are_left_out(tmp_path, drawn):
    first, second = make_curves(1.0, 2.0), make_curves(4.0)
    limits = share_y_limits(first, second)
    for name, curves in (("a", first), ("b", second)):
        plot_loss_band(curves, tmp_path / f"{name}.png", name, limits)
    assert [figure.axes[0].get_ylim() for figure in drawn] == [limits, limits]
    assert limits[0] < 0.6
    assert limits[1] > 4.4
    assert share_y_limits([Curve([0, 1], [np.nan, 0.0], [2.0, 1.0])]) == pytest.approx((0.0, 2.1))


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_missing_before_the_first_step_is_a_gap(tmp_path, drawn):
    train = np.array([np.nan, 3, 2, 1, 1])
    plot_loss_band([Curve(EPOCHS, train, train + 1)] * 2, tmp_path / "l.png", "Loss")
    line = find_line(drawn[0].axes[0], "train").get_ydata()
    assert np.isnan(line[0])
    assert line[1:].tolist() == [3, 2, 1, 1]


def test_seeds_of_different_epochs_are_refused(tmp_path):
    shifted = Curve(EPOCHS + 1, np.ones(5), np.ones(5))
    with pytest.raises(ValueError, match="different epochs"):
        plot_loss_band([*make_curves(1.0), shifted], tmp_path / "loss.png", "Loss")


def test_accuracies_are_percent_with_a_color_and_marker_for_each_arm(tmp_path, drawn):
    arms = {f"arm {i}": [(EPOCHS, np.full(5, 0.1 * i))] * i for i in range(1, 6)}
    plot_accuracy_curves(arms, tmp_path / "accuracy.png", "Accuracy")
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([10, 20, 30, 40, 50])
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 5
    assert read_legend(drawn[0]) == list(arms)
    assert "mean of 1 to 5 seeds" in drawn[0].legends[0].get_title().get_text()


def test_shots_have_the_t_interval_cut_at_a_hundred_and_every_seed(tmp_path, drawn):
    plot_shots(SHOTS, tmp_path / "shots.png", "Shots")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "1", "full"]
    first, second = axes.containers
    interval = mean_interval([0.8, 0.82, 0.81])
    assert first.lines[0].get_ydata()[0] == pytest.approx(81)
    segment = first.lines[2][0].get_segments()[0]
    assert segment[:, 1] == pytest.approx([100 * interval.low, 100 * interval.high])
    one_seed, full = second.lines[2][0].get_segments()
    assert one_seed[0, 1] == one_seed[1, 1] == pytest.approx(90)
    assert full[1, 1] == pytest.approx(100)
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    points = sorted(value for line in hollow for value in line.get_ydata())
    assert points == pytest.approx(sorted([80, 82, 81, 30, 40, 35, 90, 97, 100]))


@pytest.mark.parametrize("arms", [1, 9])
def test_arms_stay_within_their_regime(tmp_path, drawn, arms):
    table = {f"arm {i}": {"1": [0.5, 0.6], "4": [0.6, 0.7]} for i in range(arms)}
    plot_shots(table, tmp_path / "shots.png", "Shots")
    for container in drawn[0].axes[0].containers:
        assert np.abs(container.lines[0].get_xdata() - [0, 1]).max() < 0.45


def test_equal_data_give_equal_bytes_of_a_png_wide_enough_for_a_readme(tmp_path):
    for name in ("a", "b"):
        plot_loss_band(make_curves(1.0, 2.0), tmp_path / "new" / f"{name}.png", "Loss")
    first, second = (tmp_path / "new" / f"{name}.png" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert (image.format, image.width) == ("PNG", 1200)


def test_long_names_and_signs_of_formulas_stay_on_the_image(tmp_path, drawn):
    name = r"an arm with $5 and $\broken words in its name " * 4
    arms = {f"{i} {name}": [(EPOCHS, EPOCHS / 10)] for i in range(2)}
    plot_accuracy_curves(arms, tmp_path / "accuracy.png", name)
    assert r"$5 and $\broken" in read_legend(drawn[0])[0].replace("\n", " ")
    width = drawn[0].bbox.width
    for artist in (drawn[0].legends[0], drawn[0].axes[0].title):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width

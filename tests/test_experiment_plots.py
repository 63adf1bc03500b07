"""What the plots draw, read back from the figure, and how they reach the disk."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from siglip_flowers.base.errors import RunError
from siglip_flowers.experiment import plots as experiment_plots
from siglip_flowers.experiment.plots import (
    COLORS,
    MARKERS,
    Curve,
    plot_accuracy_curves,
    plot_loss_band,
    plot_shots,
    share_y_limits,
)
from siglip_flowers.metrics.statistics import mean_interval

EPOCHS = np.arange(5.0)


def _make_curves(*levels):
    return [Curve(EPOCHS, level - EPOCHS / 10, level + EPOCHS / 10) for level in levels]


@pytest.fixture
def drawn(monkeypatch):
    """Axes of every figure on its way to the disk."""
    figures = []
    write = experiment_plots._write

    def keep(figure, path):
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(experiment_plots, "_write", keep)
    return figures


def _find_line(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line


def _legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestLossBand:
    def test_line_is_the_mean_and_band_the_extremes_of_the_seeds(self, tmp_path, drawn):
        plot_loss_band(_make_curves(1.0, 2.0, 6.0), tmp_path / "loss.png", "Loss")
        axes = drawn[0].axes[0]
        assert _find_line(axes, "validation").get_ydata() == pytest.approx(3 + EPOCHS / 10)
        assert _find_line(axes, "train").get_ydata() == pytest.approx(3 - EPOCHS / 10)
        bands = [band.get_paths()[0].vertices for band in axes.collections]
        assert len(bands) == 2
        start = bands[1][bands[1][:, 0] == 0, 1]
        assert (start.min(), start.max()) == (1.0, 6.0)
        note = drawn[0].legends[0].get_title().get_text()
        assert note == "line: mean of 3 seeds; band: lowest to highest seed"

    def test_two_arms_share_their_axis(self, tmp_path, drawn):
        first, second = _make_curves(1.0, 2.0), _make_curves(4.0)
        limits = share_y_limits(first, second)
        for name, curves in (("a", first), ("b", second)):
            plot_loss_band(curves, tmp_path / f"{name}.png", name, limits)
        assert [figure.axes[0].get_ylim() for figure in drawn] == [limits, limits]
        assert limits[0] < 0.6
        assert limits[1] > 4.4

    def test_shared_limits_skip_gaps_and_stay_at_or_above_zero(self):
        curve = Curve([0, 1], [np.nan, 0.0], [2.0, 1.0])
        assert share_y_limits([curve]) == pytest.approx((0.0, 2.1))
        low, high = share_y_limits([Curve([0], [1.0], [1.0])])
        assert low < 1 < high

    def test_no_finite_loss_has_no_limits(self):
        with pytest.raises(ValueError, match="no finite loss"):
            share_y_limits([Curve([0], [np.nan], [np.inf])])
        with pytest.raises(ValueError, match="no finite loss"):
            share_y_limits()

    def test_one_seed_has_no_band(self, tmp_path, drawn):
        plot_loss_band(_make_curves(1.0), tmp_path / "loss.png", "Loss")
        assert len(drawn[0].axes[0].collections) == 0
        assert drawn[0].legends[0].get_title().get_text() == "one seed"

    @pytest.mark.filterwarnings("error")
    def test_missing_train_loss_before_the_first_step_is_a_gap(self, tmp_path, drawn):
        train = np.array([np.nan, 3, 2, 1, 1])
        plot_loss_band([Curve(EPOCHS, train, train + 1)] * 2, tmp_path / "l.png", "Loss")
        drawn_train = _find_line(drawn[0].axes[0], "train").get_ydata()
        assert np.isnan(drawn_train[0])
        assert drawn_train[1:].tolist() == [3, 2, 1, 1]

    def test_bad_curves_are_refused(self, tmp_path):
        path = tmp_path / "loss.png"
        with pytest.raises(ValueError, match="no run to draw for the train loss"):
            plot_loss_band([], path, "Loss")
        with pytest.raises(ValueError, match=r"one length, got shapes \(5,\) and \(4,\)"):
            plot_loss_band([Curve(EPOCHS, np.ones(4), np.ones(5))], path, "Loss")
        shifted = Curve(EPOCHS + 1, np.ones(5), np.ones(5))
        with pytest.raises(ValueError, match="share their epochs"):
            plot_loss_band([*_make_curves(1.0), shifted], path, "Loss")
        assert not path.exists()


class TestAccuracyCurves:
    def test_arms_in_per_cent_with_own_colors_and_markers(self, tmp_path, drawn):
        arms = {f"arm {i}": [(EPOCHS, np.full(5, 0.1 * i))] * 2 for i in range(1, 6)}
        plot_accuracy_curves(arms, tmp_path / "accuracy.png", "Accuracy")
        lines = drawn[0].axes[0].get_lines()
        assert [line.get_ydata()[0] for line in lines] == pytest.approx([10, 20, 30, 40, 50])
        assert len({line.get_color() for line in lines}) == 5
        assert len({line.get_marker() for line in lines}) == 5
        assert _legend_labels(drawn[0]) == list(arms)

    def test_arms_may_differ_in_seeds_and_epochs(self, tmp_path, drawn):
        arms = {"a": [(EPOCHS, EPOCHS / 10)] * 3, "b": [([0, 1], [0.1, 0.2])]}
        plot_accuracy_curves(arms, tmp_path / "accuracy.png", "Accuracy")
        assert "mean of 1 to 3 seeds" in drawn[0].legends[0].get_title().get_text()

    def test_bad_arms_are_refused(self, tmp_path):
        path = tmp_path / "accuracy.png"
        with pytest.raises(ValueError, match="no arm to draw"):
            plot_accuracy_curves({}, path, "Accuracy")
        with pytest.raises(ValueError, match="no run to draw for the accuracy of probe"):
            plot_accuracy_curves({"probe": []}, path, "Accuracy")
        with pytest.raises(ValueError, match=r"fractions in 0\.\.1, .* for probe"):
            plot_accuracy_curves({"probe": [([0], [81.0])]}, path, "Accuracy")


SHOTS = {
    "baseline": {"16": [0.8, 0.82, 0.81], "1": [0.3, 0.4, 0.35]},
    "sigmoid": {"16": [0.9], "full": [0.97, 1.0]},
}


class TestShots:
    def test_regimes_keep_the_given_order(self, tmp_path, drawn):
        plot_shots(SHOTS, tmp_path / "shots.png", "Shots")
        labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
        assert labels == ["16", "1", "full"]

    def test_bars_are_the_t_interval_cut_at_a_hundred(self, tmp_path, drawn):
        plot_shots(SHOTS, tmp_path / "shots.png", "Shots")
        first, second = drawn[0].axes[0].containers
        mean, interval = first.lines[0].get_ydata()[0], mean_interval([0.8, 0.82, 0.81])
        assert mean == pytest.approx(81)
        segment = first.lines[2][0].get_segments()[0]
        assert segment[:, 1] == pytest.approx([100 * interval.low, 100 * interval.high])
        one_seed, full = second.lines[2][0].get_segments()
        assert one_seed[0, 1] == one_seed[1, 1] == pytest.approx(90)
        assert full[1, 1] == pytest.approx(100)

    def test_every_seed_is_a_point(self, tmp_path, drawn):
        plot_shots(SHOTS, tmp_path / "shots.png", "Shots")
        points = [
            offset[1]
            for collection in drawn[0].axes[0].collections
            for offset in np.asarray(collection.get_offsets())
            if len(collection.get_paths())
            and hasattr(collection, "get_sizes")
            and len(collection.get_sizes())
        ]
        expected = [80, 82, 81, 30, 40, 35, 90, 97, 100]
        assert sorted(points) == pytest.approx(sorted(expected))

    @pytest.mark.parametrize("arms", [1, 2, 5, 9])
    def test_arms_do_not_leave_their_regime(self, tmp_path, drawn, arms):
        table = {f"arm {i}": {"1": [0.5, 0.6], "4": [0.6, 0.7]} for i in range(arms)}
        plot_shots(table, tmp_path / "shots.png", "Shots")
        for container in drawn[0].axes[0].containers:
            assert np.abs(container.lines[0].get_xdata() - [0, 1]).max() < 0.45

    def test_bad_tables_are_refused(self, tmp_path):
        path = tmp_path / "shots.png"
        for empty in ({}, {"baseline": {}}):
            with pytest.raises(ValueError, match="no arm to draw"):
                plot_shots(empty, path, "Shots")
        with pytest.raises(ValueError, match="for baseline at 4"):
            plot_shots({"baseline": {"4": [1.5]}}, path, "Shots")
        with pytest.raises(ValueError, match="non-empty"):
            plot_shots({"baseline": {"4": []}}, path, "Shots")


class TestFile:
    def test_is_a_png_wide_enough_for_a_readme_and_nothing_else_is_left(self, tmp_path):
        path = tmp_path / "new" / "folder" / "loss.png"
        plot_loss_band(_make_curves(1.0, 2.0), path, "Loss")
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == 1200
        assert [p.name for p in path.parent.iterdir()] == ["loss.png"]

    def test_equal_data_give_equal_bytes(self, tmp_path):
        for name in ("a", "b"):
            plot_loss_band(_make_curves(1.0, 2.0), tmp_path / f"{name}.png", "Loss")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_failure_keeps_the_old_file_and_leaves_no_rest(self, tmp_path, monkeypatch):
        path = tmp_path / "loss.png"
        path.write_bytes(b"old")

        def fail(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(experiment_plots.os, "replace", fail)
        with pytest.raises(RunError, match=r"loss\.png \(No space left on device\)"):
            plot_loss_band(_make_curves(1.0), path, "Loss")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]

    def test_a_file_in_place_of_the_folder_is_one_clear_error(self, tmp_path):
        (tmp_path / "results").write_text("")
        with pytest.raises(RunError, match=r"Cannot write the plot .*shots\.png"):
            plot_shots({"a": {"1": [0.5]}}, tmp_path / "results" / "shots.png", "Shots")

    def test_signs_of_formulas_in_names_are_drawn_as_they_are(self, tmp_path, drawn):
        name = r"cost $5 and $\broken"
        plot_shots({name: {"1": [0.5]}}, tmp_path / "shots.png", name)
        assert _legend_labels(drawn[0]) == [name]

    def test_long_names_stay_on_the_image(self, tmp_path, drawn):
        name = "an arm with a name of many words " * 4
        arms = {f"{i} {name}": [(EPOCHS, EPOCHS / 10)] for i in range(2)}
        plot_accuracy_curves(arms, tmp_path / "accuracy.png", name)
        width = drawn[0].bbox.width
        for artist in (drawn[0].legends[0], drawn[0].axes[0].title):
            box = artist.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= width

    def test_pyplot_is_never_imported(self):
        code = (
            "import sys, siglip_flowers.experiment.plots;"
            "sys.exit('matplotlib.pyplot' in sys.modules)"
        )
        root = str(experiment_plots.Path(__file__).resolve().parents[1])
        assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_palette_pairs_repeat_only_after_all_combinations():
    pairs = {(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i in range(56)}
    assert len(pairs) == 56

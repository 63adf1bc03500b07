"""Write what a benchmark found: JSON, a Markdown table and a plot beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import REPOSITORY, describe_machine, slug_device
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.plots.theme import save_figure

RESULTS = REPOSITORY / "benchmarks" / "results"
# Told apart in gray and with any color vision (Okabe and Ito, 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TEXT_COLOR = "#222222"


def write_report(
    name: str,
    device: torch.device,
    command: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    table: str,
    figure: Figure | None,
    directory: Path = RESULTS,
) -> Path:
    """Write ``<name>_<device>.json``, ``.md`` and ``.png``, each whole or not at all.

    Args:
        name: The benchmark.
        device: Where it ran.
        command: What a user types to run it again.
        settings: The options it ran with.
        results: The figures; no NaN.
        table: Markdown.
        figure: The plot; None writes no ``.png``.
        directory: Where the files go.

    Returns:
        The path of the JSON file.
    """
    machine = describe_machine(device)
    base = f"{name}_{slug_device(device)}"
    path = directory / f"{base}.json"
    write_json(
        path,
        {
            "benchmark": name,
            "command": command,
            "settings": dict(settings),
            "environment": machine,
            "results": dict(results),
        },
    )
    packages = machine["packages"]
    versions = ", ".join(f"{key} {packages[key]}" for key in ("torch", "transformers"))
    heading = f"`{command}` on {machine['device']} ({machine['cores']} cores; {versions})"
    image = "" if figure is None else f"\n![{name}]({base}.png)\n"
    write_text(directory / f"{base}.md", f"{heading}\n\n{table}\n{image}")
    if figure is not None:
        save_figure(figure, directory / f"{base}.png")
    return path


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table: the first column to the left, figures to the right."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(format_cell(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def format_cell(value: Any) -> str:
    """Format a figure with three or four digits; None is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def format_bytes(count: int | None) -> str | None:
    """Format a number of bytes in MB or GB."""
    if count is None:
        return None
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def draw_bars(
    title: str, x_label: str, arms: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str]
) -> Figure:
    """Draw a bar an arm: its median rate, whiskers from the lowest to the highest round.

    Args:
        title: What was measured, where.
        x_label: The unit.
        arms: By label, a dictionary as ``summarize`` returns it.
        notes: By label, what is written beside the bar.
    """
    figure, axes = make_axes(title, 1.3 + 0.65 * len(arms))
    for number, (label, result) in enumerate(arms.items()):
        rate = result["images_per_second"]
        low, high = result["images_per_second_min"], result["images_per_second_max"]
        axes.barh(
            label,
            rate,
            height=0.62,
            color=COLORS[number % len(COLORS)],
            xerr=[[rate - low], [high - rate]],
            error_kw={"ecolor": TEXT_COLOR, "capsize": 3, "elinewidth": 1},
        )
        axes.annotate(
            f"{format_cell(float(rate))}  {notes.get(label, '')}".strip(),
            (max(high, rate), number),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=TEXT_COLOR,
        )
    axes.invert_yaxis()
    highest = max(result["images_per_second_max"] for result in arms.values())
    axes.set_xlim(0, 1.45 * highest)
    axes.set_xlabel(x_label, color=TEXT_COLOR)
    axes.grid(True, axis="x", color="#E3E3E3", linewidth=0.8)
    return figure


def make_axes(title: str, height: float = 4.6, width: float = 8.0) -> tuple[Figure, Axes]:
    """Return an empty figure in the house style, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=TEXT_COLOR, parse_math=False)
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Leave two thin spines and quiet ticks."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")

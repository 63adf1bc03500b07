"""Write what a benchmark found: JSON and a Markdown table beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import REPOSITORY, describe_machine, slug_device
from siglip_flowers.base.files import write_json, write_text

RESULTS = REPOSITORY / "benchmarks" / "results"


def write_report(
    name: str,
    device: torch.device,
    command: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    table: str,
    directory: Path = RESULTS,
) -> Path:
    """Write ``<name>_<device>.json`` and ``.md``, each whole or not at all.

    Args:
        name: The benchmark.
        device: Where it ran.
        command: What a user types to run it again.
        settings: The options it ran with.
        results: The figures; no NaN.
        table: Markdown.
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
    write_text(directory / f"{base}.md", f"{heading}\n\n{table}\n")
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


def format_difference(paired: Mapping[str, Any]) -> str:
    """Format a paired difference between shares, and its interval, in points."""
    points = [100 * paired[key] for key in ("difference", "low", "high")]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)


def format_bytes(count: int | None) -> str | None:
    """Format a number of bytes in MB or GB."""
    if count is None:
        return None
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

"""Figures of an evaluation as text."""

from collections.abc import Mapping, Sequence

# Macro averages over classes are the headline; accuracy and recall differ where classes do.
HEADLINE = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "precision_macro": "precision (macro)",
    "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
    "f1_weighted": "F1 (weighted)",
}


def format_metrics(splits: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with a column a split: n, shares in percent, then the losses."""
    lines = [["", *splits], ["n", *(str(int(values["n"])) for values in splits.values())]]
    for key, name in HEADLINE.items():
        lines.append([name, *(f"{100 * values[key]:.2f} %" for values in splits.values())])
    lines.append(["loss", *(f"{values['loss']:.4f}" for values in splits.values())])
    return align_columns(lines)


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text, the first column to the left and others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, the first row its heading."""
    # A bar in a name would end its cell.
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]]

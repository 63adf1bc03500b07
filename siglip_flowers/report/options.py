"""The option of ``eval.py`` that asks for a report."""

from dataclasses import dataclass

from siglip_flowers.config.fields import option
from siglip_flowers.config.rules import Rule


@dataclass
class ReportArguments:
    """Whether to write a report."""

    report: bool = option(
        False,
        "Write a report (report.html, metrics.json, PNG) to report_SPLIT in --output_dir, or else "
        "in the run's directory, and print a summary.",
    )


EXTENDS = {"eval": ReportArguments}
RULES = (
    Rule(
        lambda options: options.report and options.zero_shot and options.output_dir is None,
        "--report with --zero_shot requires --output_dir. Name a directory.",
        "--report --zero_shot --model_name_or_path checkpoint",
    ),
)

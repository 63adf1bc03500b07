"""The options of ``eval.py`` that ask for a report."""

from dataclasses import dataclass, field

from siglip_flowers.config.rules import Rule


@dataclass
class ReportArguments:
    """Whether to write a report, and with which images of unknown classes."""

    report: bool = field(
        default=False,
        metadata={
            "help": "Write a report (report.html, metrics.json, PNG) to report_SPLIT in "
            "--output_dir, or else in the run's directory, and print a summary."
        },
    )
    unknown_dir: str | None = field(
        default=None,
        metadata={
            "help": "--report: a folder of images that show none of the classes; the report says "
            "how well scores separate them from the split's images."
        },
    )

    @property
    def is_asked(self) -> bool:
        """Whether an option of the feature is set."""
        return self.report


EXTENDS = {"eval": ReportArguments}
RULES = (
    Rule(
        "a report of a zero-shot classifier has no run's directory",
        lambda options: options.report and options.zero_shot and options.output_dir is None,
        "--report with --zero_shot requires --output_dir. Name a directory.",
        ("--report", "--zero_shot", "--model_name_or_path", "checkpoint"),
    ),
    Rule(
        "unknown images are for the report",
        lambda options: options.unknown_dir is not None and not options.report,
        "--unknown_dir {unknown_dir} requires --report. Add --report.",
        ("--unknown_dir", "images"),
    ),
)

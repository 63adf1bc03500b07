"""The report as part of an evaluation."""

from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.run_dir import CONFIG_FILE, REPORT_DIRS
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config import EvaluationArguments
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.data.pixels.decoding import list_image_extensions
from siglip_flowers.evaluation.extension import Evaluation, EvaluationExtension
from siglip_flowers.inference.finding import check_paths, find_images
from siglip_flowers.report.contents import ReportContents
from siglip_flowers.report.files import check_report_dir, write_report
from siglip_flowers.report.options import ReportArguments
from siglip_flowers.report.run import Subject, build_report
from siglip_flowers.report.terminal import print_report


class ReportExtension(EvaluationExtension):
    """Analyzes the predictions and writes the report.

    Raises:
        InputError: --unknown_dir does not exist or has no images.
    """

    def __init__(self, options: ReportArguments) -> None:
        self.options = options
        self.contents: ReportContents | None = None
        if options.unknown_dir is not None:
            check_paths([options.unknown_dir], allow_urls=False)
            find_images([options.unknown_dir], list_image_extensions())

    def check(self, evaluation: Evaluation) -> None:
        """Refuse to replace anything but an earlier report of this model and split."""
        check_report_dir(choose_report_dir(evaluation.options), evaluation.title)

    def measure(self, evaluation: Evaluation) -> None:
        """Analyze the predictions."""
        result, options = evaluation.result, evaluation.options
        assert result is not None
        names, model = evaluation.model.class_names, evaluation.name
        subject = Subject(
            model=evaluation.model,
            processor=evaluation.processor,
            name=model,
            fitted=not options.zero_shot,
            splits={
                split: follow_model_classes(rows, names, model)
                for split, rows in evaluation.data.splits.items()
            },
            data_arguments=evaluation.data_arguments,
            batch_size=options.per_device_eval_batch_size,
            unknown_dir=self.options.unknown_dir,
            dtype=options.dtype,
        )
        self.contents = build_report(
            subject,
            result,
            title=evaluation.title,
            description=evaluation.data.description,
            command=evaluation.command,
            environment=evaluation.environment,
        )

    def write(self, evaluation: Evaluation) -> None:
        """Print the summary and write the files."""
        assert self.contents is not None
        self.contents.robustness.extend(evaluation.figures.get("robustness", {}).get("rows", []))
        self.contents.augmented.extend(evaluation.figures.get("augmented", []))
        print_report(self.contents)
        path = write_report(self.contents, choose_report_dir(evaluation.options))
        print(escape_unprintable(f"Report: {path}"))


def choose_report_dir(options: EvaluationArguments) -> Path:
    """Return the directory of the report, which holds nothing else.

    Raises:
        InputError: The model is in no run's directory, and --output_dir is not set.
    """
    parent = Path(options.output_dir or Path(str(options.model)).parent)
    if options.output_dir is None and not (parent / CONFIG_FILE).is_file():
        raise InputError(
            f"The model {options.model} is not in the directory of a run, where its report would "
            "be written. Name a directory with --output_dir."
        )
    return parent / REPORT_DIRS[options.split]


def make_evaluation_extension(options: ReportArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return ReportExtension(options)

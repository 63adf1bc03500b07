"""The report as part of an evaluation."""

import dataclasses
import importlib.util
import logging
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.run_dir import CONFIG_FILE, REPORT_DIRS
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config import EvaluationArguments
from siglip_flowers.data import image_ids
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.data.pixels.decoding import list_image_extensions
from siglip_flowers.data.splits import get_labels
from siglip_flowers.evaluation.extension import Evaluation, EvaluationExtension
from siglip_flowers.evaluation.fitting import classify_images
from siglip_flowers.evaluation.predict import extract_features
from siglip_flowers.inference.finding import check_paths, find_images
from siglip_flowers.inference.sidecars import load_ood_detector, load_temperature
from siglip_flowers.report.analysis import analyze
from siglip_flowers.report.contents import Report
from siglip_flowers.report.duplicates import SplitRows
from siglip_flowers.report.features import measure_unknowns
from siglip_flowers.report.files import check_report_dir, write_report
from siglip_flowers.report.images import SplitImages, draw_attention
from siglip_flowers.report.options import ReportArguments
from siglip_flowers.report.summary import summarize_report

# Neighbors are looked for among these; more would cost another pass over the training split.
TRAIN_IMAGES = 510
# Without them the report has no suspected label errors and no near-duplicates.
PACKAGES = ("cleanlab", "imagehash")

logger = logging.getLogger(__name__)


class ReportExtension(EvaluationExtension):
    """Analyzes the predictions and writes the report.

    Raises:
        InputError: --unknown_dir does not exist or has no images.
    """

    def __init__(self, options: ReportArguments) -> None:
        self.options = options
        self.report: Report | None = None
        if options.unknown_dir is not None:
            check_paths([options.unknown_dir], allow_urls=False)
            find_images([options.unknown_dir], list_image_extensions())

    def check(self, evaluation: Evaluation) -> None:
        """Refuse to replace anything but an earlier report of this model and split."""
        check_report_dir(choose_report_dir(evaluation.options), evaluation.title)
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            logger.warning(
                "The report will be incomplete without %s. Install them with "
                "pip install 'siglip_flowers[report]'.",
                " and ".join(missing),
            )

    def measure(self, evaluation: Evaluation) -> None:
        """Analyze the predictions."""
        self.report = build_report(evaluation, self.options.unknown_dir)

    def write(self, evaluation: Evaluation) -> None:
        """Print the summary and write the files."""
        assert self.report is not None
        print(f"\n{summarize_report(self.report)}")
        path = write_report(self.report, choose_report_dir(evaluation.options))
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


def build_report(evaluation: Evaluation, unknown_dir: str | None = None) -> Report | None:
    """Analyze the result of an evaluation; every process calls it, the first gets the report.

    Args:
        evaluation: With the result of the pass.
        unknown_dir: A folder of images that show none of the classes.

    Raises:
        InputError: A damaged file beside the model.
        RunError: Logits that are not finite.
    """
    splits = {
        name: follow_model_classes(rows, evaluation.model.class_names, evaluation.name)
        for name, rows in evaluation.data.splits.items()
    }
    result = evaluation.result
    assert result is not None
    own = result.split
    model, processor, dtype = evaluation.model, evaluation.processor, evaluation.options.dtype
    # A sample of the training split, of which each process encodes its share.
    sample = np.sort(np.random.default_rng(0).permutation(len(splits["train"]))[:TRAIN_IMAGES])
    train_features = None
    if own != "train":
        rows = splits["train"].select(sample)
        train_features = extract_features(model, processor, rows, evaluation.pass_options)
    if not PartialState().is_main_process:
        return None
    none = np.zeros(0, dtype=np.int64)
    known = dict.fromkeys(splits, (none, result.features[:0]))
    if train_features is not None:
        known["train"] = (sample, train_features)
    known[own] = (np.arange(len(result.labels)), result.features)

    def encode(images: SplitImages, rows: list[int]) -> np.ndarray:
        return classify_images(model, processor, images.read(rows), dtype)[0]

    compared = {}
    for name, rows in splits.items():
        images = SplitImages(rows, processor, evaluation.data_arguments)
        features = result.features.__getitem__ if name == own else partial(encode, images)
        labels, ids = get_labels(rows), image_ids(rows)
        compared[name] = SplitRows(images, ids, labels, features, *known[name])
    fitted = not evaluation.options.zero_shot
    temperature = load_temperature(evaluation.name) if fitted else None
    report = analyze(evaluation, compared, temperature)
    detector = load_ood_detector(evaluation.name) if fitted else None
    return dataclasses.replace(
        report,
        unknowns=measure_unknowns(evaluation, train_features, detector, unknown_dir),
        attention=draw_attention(evaluation, compared[own].images, report),
        trained_on=fitted and own == "train",
    )


def make_evaluation_extension(options: ReportArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return ReportExtension(options)

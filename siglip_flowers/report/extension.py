"""The report as part of an evaluation."""

import dataclasses
import importlib.util
import logging
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import CONFIG_FILE, REPORT_DIRS
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config import EvaluationArguments
from siglip_flowers.data import image_ids
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.data.pixels.decoding import list_image_extensions
from siglip_flowers.data.sources.ood_images import draw_ood_images
from siglip_flowers.data.splits import get_labels
from siglip_flowers.evaluation.fitting import (
    IMAGES_PER_KIND,
    REPORT_SEED,
    classify_folder,
    classify_images,
)
from siglip_flowers.evaluation.predict import evaluate_split
from siglip_flowers.evaluation.run import Evaluation, EvaluationExtension
from siglip_flowers.inference.finding import check_paths, find_images
from siglip_flowers.inference.sidecars import (
    CLASS_MEAN,
    OodDetector,
    load_ood_detector,
    load_temperature,
)
from siglip_flowers.metrics.ood import LOGIT_SCORES, measure_separation, score_neighbors
from siglip_flowers.report.analysis import analyze
from siglip_flowers.report.contents import Report, UnknownRow
from siglip_flowers.report.images import SplitImages, SplitRows
from siglip_flowers.report.options import ReportArguments
from siglip_flowers.report.output import check_report_dir, summarize_report, write_report

# The sources of unknown images.
DRAWN, GIVEN = "drawings", "images in --unknown_dir"
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
        passed = evaluate_split(model, processor, rows, "train", evaluation.pass_options)
        train_features = passed.features
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
    return dataclasses.replace(
        report,
        unknowns=measure_unknowns(evaluation, train_features, unknown_dir),
        trained_on=fitted and own == "train",
    )


def measure_unknowns(
    evaluation: Evaluation, train_features: np.ndarray | None, folder: str | None
) -> list[UnknownRow]:
    """Return AUROC and FPR95 of every score against drawn images, and against those of a folder.

    Args:
        evaluation: With the result of the pass.
        train_features: Of training images (M, D), for the score by neighbors; None without it.
        folder: Images that show none of the classes; None without it.
    """
    model, processor, result = evaluation.model, evaluation.processor, evaluation.result
    assert result is not None
    dtype, activation = evaluation.options.dtype, model.config.activation
    drawn = draw_ood_images(IMAGES_PER_KIND, REPORT_SEED).values()
    images = [image for kind in drawn for image in kind]
    sources = {DRAWN: classify_images(model, processor, images, dtype)}
    if folder is not None:
        sources[GIVEN] = classify_folder(model, processor, folder, dtype)
    detectors = [OodDetector(score, 0.0) for score in LOGIT_SCORES]
    fitted = None if evaluation.options.zero_shot else load_ood_detector(evaluation.name)
    if fitted is not None and fitted.class_means is not None:
        detectors.append(OodDetector(CLASS_MEAN, 0.0, class_means=fitted.class_means))

    def score(features: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
        scores = {each.score: each.score_images(features, logits, activation) for each in detectors}
        if train_features is not None:
            scores["neighbors"] = score_neighbors(train_features, features)
        return scores

    known = score(result.features, result.logits)
    rows = []
    for source, outputs in sources.items():
        for name, unknown in score(*outputs).items():
            found = measure_separation(known[name], unknown)
            values = {"auroc": found["auroc"], "fpr95": found["false_positive_rate"]}
            rows.append({"source": source, "score": name, "n": len(unknown), **values})
    return rows


def make_evaluation_extension(options: ReportArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return ReportExtension(options)

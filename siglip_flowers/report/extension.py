"""The report as part of an evaluation."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import REPORT_DIRS
from siglip_flowers.base.paths import find_run
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config import EvaluationArguments
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.data.sources.ood_images import draw_ood_images
from siglip_flowers.evaluation.fitting import IMAGES_PER_KIND, REPORT_SEED, classify_images
from siglip_flowers.evaluation.run import Evaluation, EvaluationExtension
from siglip_flowers.inference.sidecars import (
    CLASS_MEAN,
    OodDetector,
    load_ood_detector,
    load_temperature,
)
from siglip_flowers.metrics.ood import LOGIT_SCORES, measure_separation
from siglip_flowers.report.analysis import Report, analyze
from siglip_flowers.report.images import SplitImages
from siglip_flowers.report.output import check_report_dir, summarize_report, write_report

# Without them the report has no suspected label errors and no near-duplicates.
PACKAGES = ("cleanlab", "imagehash")

logger = logging.getLogger(__name__)


class Extension(EvaluationExtension):
    """Analyzes the predictions and writes the report."""

    report: Report

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
        """Analyze the predictions, in the first process.

        Raises:
            RunError: A damaged file beside the model, or logits that are not finite.
        """
        if not PartialState().is_main_process:
            return
        splits = {}
        for name, every in evaluation.data.splits.items():
            rows = follow_model_classes(every, evaluation.model.class_names, evaluation.name)
            splits[name] = SplitImages(rows, evaluation.processor, evaluation.data_arguments)
        fitted = not evaluation.options.zero_shot
        temperature = load_temperature(evaluation.name) if fitted else None
        self.report = analyze(evaluation, splits, temperature, measure_unknowns(evaluation))

    def write(self, evaluation: Evaluation) -> None:
        """Print the summary and write the files."""
        print(f"\n{summarize_report(self.report)}")
        path = write_report(self.report, choose_report_dir(evaluation.options))
        print(escape_unprintable(f"Report: {path}"))


def choose_report_dir(options: EvaluationArguments) -> Path:
    """Return the directory of the report, which holds nothing else.

    Raises:
        InputError: The model is in no run's directory, and --output_dir is not set.
    """
    parent = Path(options.output_dir) if options.output_dir else find_run(str(options.model))
    if parent is None:
        raise InputError(
            f"The model {options.model} is not in the directory of a run, where its report would "
            "be written. Name a directory with --output_dir."
        )
    return parent / REPORT_DIRS[options.split]


def measure_unknowns(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return AUROC and FPR95 of every score of the split's images against drawn ones."""
    model, result = evaluation.model, evaluation.result
    assert result is not None
    images = sum(draw_ood_images(IMAGES_PER_KIND, REPORT_SEED).values(), [])
    outputs = classify_images(model, evaluation.processor, images, evaluation.options.dtype)
    detectors = [OodDetector(score, 0.0) for score in LOGIT_SCORES]
    width, own = result.features.shape[1], not evaluation.options.zero_shot
    fitted = load_ood_detector(evaluation.name, width) if own else None
    if fitted is not None and fitted.class_means is not None:
        detectors.append(OodDetector(CLASS_MEAN, 0.0, class_means=fitted.class_means))
    rows = []
    for detector in detectors:
        known = detector.score_images(result.features, result.logits, model.config.activation)
        unknown = detector.score_images(*outputs, model.config.activation)
        found = measure_separation(known, unknown)
        values = {"auroc": found["auroc"], "fpr95": found["false_positive_rate"]}
        rows.append({"source": "drawings", "score": detector.score, "n": len(unknown), **values})
    return rows

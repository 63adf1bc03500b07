"""How well scores tell a split's images from images that are no flowers."""

import numpy as np

from siglip_flowers.data.sources.ood_images import draw_ood_images
from siglip_flowers.evaluation.fitting import (
    IMAGES_PER_KIND,
    REPORT_SEED,
    classify_folder,
    classify_images,
)
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.inference.sidecars import CLASS_MEAN, OodDetector
from siglip_flowers.metrics.ood import LOGIT_SCORES, measure_separation, score_neighbors
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.report.contents import GIVEN, UnknownRow

ALL = "all drawings"
NEIGHBORS = "neighbors"


def measure_unknowns(
    model: SiglipClassifier,
    processor: object,
    result: SplitResult,
    train_features: np.ndarray | None,
    fitted: OodDetector | None,
    folder: str | None = None,
    dtype: str = "float32",
) -> list[UnknownRow]:
    """Return AUROC and FPR95 of every score against all drawings, a folder and kinds of drawings.

    Args:
        model: The classifier.
        processor: Its image processor.
        result: What it made of the split.
        train_features: Of training images (M, D), for the score by neighbors; None without it.
        fitted: What lies beside the model, for the score by class means; None without it.
        folder: With images that show none of the classes; None without it.
        dtype: What ``result`` and ``train_features`` were computed in.
    """
    drawn = draw_ood_images(IMAGES_PER_KIND, REPORT_SEED)
    features, logits = classify_images(
        model, processor, [image for kind in drawn.values() for image in kind], dtype
    )
    kinds = np.repeat(list(drawn), IMAGES_PER_KIND)
    sources = (ALL, *drawn)
    if folder is not None:
        given = classify_folder(model, processor, folder, dtype)
        features, logits = np.concatenate([features, given[0]]), np.concatenate([logits, given[1]])
        kinds = np.concatenate([kinds, np.repeat(GIVEN, len(given[0]))])
        sources = (ALL, GIVEN, *drawn)
    activation = model.config.activation
    known, unknown = {}, {}
    for score in LOGIT_SCORES:
        measure = OodDetector(score, 0.0).score_images
        known[score] = measure(result.features, result.logits, activation)
        unknown[score] = measure(features, logits, activation)
    if fitted is not None and fitted.class_means is not None:
        measure = OodDetector(CLASS_MEAN, 0.0, class_means=fitted.class_means).score_images
        known[CLASS_MEAN] = measure(result.features, result.logits, activation)
        unknown[CLASS_MEAN] = measure(features, logits, activation)
    if train_features is not None:
        known[NEIGHBORS] = score_neighbors(train_features, result.features)
        unknown[NEIGHBORS] = score_neighbors(train_features, features)
    rows = []
    for source in sources:
        chosen = kinds != GIVEN if source == ALL else kinds == source
        for score, values in known.items():
            figures = measure_separation(values, unknown[score][chosen])
            rows.append(
                UnknownRow(
                    source=source,
                    score=score,
                    n=int(chosen.sum()),
                    auroc=figures["auroc"],
                    fpr95=figures["false_positive_rate"],
                )
            )
    return rows

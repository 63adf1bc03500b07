"""How well scores tell a split's pictures from drawn pictures that are no flowers."""

import numpy as np

from siglip_flowers.data.not_flowers import draw_not_flowers
from siglip_flowers.evaluation.open_set import PICTURES_PER_KIND, REPORT_SEED, classify_pictures
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.inference.open_set import CLASS_MEAN, OpenSet
from siglip_flowers.metrics.open_set import LOGIT_SCORES, measure_separation, score_neighbours
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.reporting.contents import UnknownRow

ALL = "all drawings"
NEIGHBOURS = "neighbours"


def measure_unknowns(
    model: SiglipClassifier,
    processor: object,
    result: SplitResult,
    train_features: np.ndarray | None,
    fitted: OpenSet | None,
) -> list[UnknownRow]:
    """Return AUROC and FPR95 of every score against every kind of drawing, all together first.

    Args:
        model: The classifier.
        processor: Its image processor.
        result: What it made of the split.
        train_features: Of training pictures (M, D), for the score by neighbours; None without it.
        fitted: What lies beside the model, for the score by class means; None without it.
    """
    drawn = draw_not_flowers(PICTURES_PER_KIND, REPORT_SEED)
    features, logits = classify_pictures(
        model, processor, [picture for kind in drawn.values() for picture in kind]
    )
    activation = model.config.activation
    known, unknown = {}, {}
    for score in LOGIT_SCORES:
        measure = OpenSet(score, 0.0).score_pictures
        known[score] = measure(result.features, result.logits, activation)
        unknown[score] = measure(features, logits, activation)
    if fitted is not None and fitted.class_means is not None:
        measure = OpenSet(CLASS_MEAN, 0.0, class_means=fitted.class_means).score_pictures
        known[CLASS_MEAN] = measure(result.features, result.logits, activation)
        unknown[CLASS_MEAN] = measure(features, logits, activation)
    if train_features is not None:
        known[NEIGHBOURS] = score_neighbours(train_features, result.features)
        unknown[NEIGHBOURS] = score_neighbours(train_features, features)
    kinds = np.repeat(list(drawn), PICTURES_PER_KIND)
    rows = []
    for source in (ALL, *drawn):
        chosen = np.ones(len(kinds), dtype=bool) if source == ALL else kinds == source
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

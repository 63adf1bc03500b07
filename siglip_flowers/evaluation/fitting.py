"""Fit the files beside the weights: the OOD threshold and the temperature.

The OOD score is the one that best separates validation images from drawings of no known class; 95%
of the validation images reach the threshold. Test images are not used.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json
from siglip_flowers.data.pixels.decoding import list_image_extensions
from siglip_flowers.data.pixels.tensors import read_form
from siglip_flowers.data.sources.ood_images import draw_ood_images
from siglip_flowers.evaluation.predict import SplitResult, prepare_engine
from siglip_flowers.inference.finding import find_images
from siglip_flowers.inference.reading import ImageReader
from siglip_flowers.inference.sidecars import CALIBRATION_FILE, SCORES, OodDetector
from siglip_flowers.metrics.calibration import fit_temperature
from siglip_flowers.metrics.ood import ACCEPTED, average_classes, fit_threshold, measure_separation
from siglip_flowers.model.classifier import SiglipClassifier

IMAGES_PER_KIND = 16
# The reported metrics come from other drawings than those that chose the score.
CHOICE_SEED, REPORT_SEED = 0, 1
ROUNDING = 1e-5
_BATCH_SIZE = 32

logger = logging.getLogger(__name__)


def fit_ood_detector(
    model: SiglipClassifier,
    processor: Any,
    train: SplitResult,
    validation: SplitResult,
    accepted: float = ACCEPTED,
) -> tuple[OodDetector, dict[str, Any]]:
    """Choose score and threshold; return the detector and the metrics of the choice.

    Args:
        model: The classifier.
        processor: Its image processor.
        train: Training images, or a sample of them, for the class means.
        validation: Images of known classes.
        accepted: The share of them that reaches the threshold.
    """
    means, activation = average_classes(train.features, train.labels), model.config.activation
    drawn = draw_ood_images(IMAGES_PER_KIND, CHOICE_SEED)
    outputs = classify_images(model, processor, sum(drawn.values(), []))
    candidates, figures = {}, {}
    for score in SCORES:
        candidate = OodDetector(score, 0.0, class_means=means)
        known = candidate.score_images(validation.features, validation.logits, activation)
        unknown = candidate.score_images(*outputs, activation)
        threshold = fit_threshold(known, accepted)
        # Another batch size rounds differently, which must not reject the image at the threshold.
        threshold -= ROUNDING * max(1.0, abs(threshold))
        candidates[score] = OodDetector(score, threshold, accepted, means)
        figures[score] = measure_separation(known, unknown, accepted)
    chosen = max(SCORES, key=lambda score: figures[score]["auroc"])
    return candidates[chosen], {
        "score": chosen,
        "threshold": candidates[chosen].threshold,
        "accepted": accepted,
        "validation": figures[chosen],
        "auroc_by_score": {score: figures[score]["auroc"] for score in SCORES},
    }


def measure_ood_detector(
    detector: OodDetector, model: SiglipClassifier, processor: Any, result: SplitResult
) -> dict[str, Any]:
    """Evaluate a fitted detector on another split and on new drawings.

    Returns:
        The AUROC and, at the threshold as it is, the shares of accepted images: of known classes,
        of drawings, and of drawings by kind.
    """
    activation = model.config.activation
    known = detector.score_images(result.features, result.logits, activation)
    drawn = draw_ood_images(IMAGES_PER_KIND, REPORT_SEED)
    outputs = classify_images(model, processor, sum(drawn.values(), []))
    unknown = detector.score_images(*outputs, activation)
    passed = unknown >= detector.threshold
    return {
        "auroc": measure_separation(known, unknown)["auroc"],
        "known_accepted": float(np.mean(known >= detector.threshold)),
        "unknown_accepted": float(np.mean(passed)),
        "unknown_accepted_by_kind": {
            kind: float(np.mean(share))
            for kind, share in zip(drawn, np.split(passed, len(drawn)), strict=True)
        },
        "n_known": len(known),
        "n_unknown": len(unknown),
    }


def fit_and_save_temperature(model_dir: Path, validation: SplitResult, activation: str) -> None:
    """Fit the temperature and write ``calibration.json`` into the model's directory.

    Raises:
        RunError: Logits that are not finite.
    """
    temperature = fit_temperature(validation.logits, validation.labels, activation)
    facts = {"temperature": temperature, "split": validation.split, "n": len(validation.labels)}
    write_json(model_dir / CALIBRATION_FILE, facts)


def classify_images(
    model: SiglipClassifier, processor: Any, images: list[Image.Image], dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and logits (N, C) float32; every process classifies all images.

    dtype: That of the encoder; results that are compared need the same one.
    """
    pixels = torch.stack(list(map(read_form(processor).resize, images)))
    return _classify_pixels(model, processor, pixels.split(_BATCH_SIZE), dtype)


def classify_folder(
    model: SiglipClassifier, processor: Any, folder: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and logits (N, C) float32 of the images below a folder.

    Images that cannot be read are skipped with a warning.

    Raises:
        InputError: The folder does not exist, or none of its files is an image.
    """
    paths = find_images([folder], list_image_extensions())
    reader = ImageReader(read_form(processor), num_workers=2)
    batches = list(reader.read_batches(paths, _BATCH_SIZE))
    for batch in batches:
        for path, problem in zip(batch.sources, batch.problems, strict=True):
            if problem:
                logger.warning("Skipping %s: %s.", path, problem)
    pixels = [batch.pixels for batch in batches if len(batch.pixels)]
    if not pixels:
        raise InputError(f"No image in {folder} can be read; name a folder of images.")
    return _classify_pixels(model, processor, pixels)


def _classify_pixels(
    model: SiglipClassifier, processor: Any, batches: Iterable[torch.Tensor], dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    engine = prepare_engine(model, processor, dtype)
    outputs = torch.cat([engine.classify_with_features(part).cpu() for part in batches]).numpy()
    width = outputs.shape[1] - len(model.class_names)
    return outputs[:, :width], outputs[:, width:]


def format_ood_choice(figures: dict[str, Any]) -> str:
    """Return the metrics of :func:`fit_ood_detector` as lines to print."""
    areas = ", ".join(f"{name} {area:.3f}" for name, area in figures["auroc_by_score"].items())
    return (
        f"AUROC, validation images against drawings of no known class: {areas}\n"
        f"chosen: {figures['score']}, threshold {figures['threshold']:.6g}\n"
        f"{format_separation(figures['validation'])}"
    )


def format_separation(figures: dict[str, float]) -> str:
    """Return the metrics of ``measure_separation`` as a line to print."""
    return (
        f"AUROC {figures['auroc']:.3f}; {figures['false_positive_rate']:.1%} of "
        f"{figures['n_unknown']} images of no known class are accepted when "
        f"{figures['accepted']:.0%} of {figures['n_known']} known ones are"
    )

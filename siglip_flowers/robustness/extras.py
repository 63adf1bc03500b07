"""What an evaluation measures beyond its plain pass, when asked: robustness and augmentation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.evaluation.predict import PassOptions
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.robustness.robustness import (
    RobustnessRow,
    check_square_images,
    format_robustness,
    measure_robustness,
    summarize_robustness,
    write_robustness,
)
from siglip_flowers.robustness.tta import AugmentedRow, format_augmented, measure_augmented


@dataclass(frozen=True)
class Extras:
    """Rows of both, empty where not asked for."""

    robustness: list[RobustnessRow] = field(default_factory=list)
    augmented: list[AugmentedRow] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what stands in the metrics file."""
        values: dict[str, Any] = {}
        if self.robustness:
            summary = summarize_robustness(self.robustness)
            values["robustness"] = {**summary, "rows": self.robustness}
        if self.augmented:
            values["augmented"] = self.augmented
        return values

    def format(self) -> str:
        """Return what is printed, each table after an empty line; "" where nothing was asked."""
        tables = []
        if self.robustness:
            tables.append(format_robustness(self.robustness))
        if self.augmented:
            tables.append(format_augmented(self.augmented))
        return "".join(f"\n{table}\n" for table in tables)

    def write(self, directory: Path, title: str) -> None:
        """Write the table and image of robustness, if it was measured."""
        if self.robustness:
            write_robustness(self.robustness, directory, title)


def check_extras(options: EvaluationArguments, processor: Any) -> None:
    """Raise InputError for a model that cannot be measured as asked."""
    if options.robustness:
        check_square_images(processor, "--robustness")
    if options.tta != "none":
        check_square_images(processor, "--tta")


def measure_extras(
    options: EvaluationArguments,
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    data_arguments: DataArguments,
) -> Extras:
    """Measure what the options ask for; every process of a launch calls it."""
    how = PassOptions(
        options.per_device_eval_batch_size,
        options.dataloader_num_workers,
        options.dtype,
        options.compile,
        data_arguments,
    )
    robustness: list[RobustnessRow] = []
    augmented: list[AugmentedRow] = []
    if options.robustness:
        robustness = measure_robustness(model, processor, rows, how)
    if options.tta != "none":
        augmented = measure_augmented(model, processor, rows, options.tta, how)
    return Extras(robustness, augmented)

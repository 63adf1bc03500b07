"""What a feature can add to an evaluation: the interface that ``eval.py`` calls it by."""

from dataclasses import dataclass, field
from typing import Any

import datasets

from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.data import ClassificationData
from siglip_flowers.evaluation.predict import PassOptions, SplitResult
from siglip_flowers.model.classifier import SiglipClassifier


@dataclass
class Evaluation:
    """One evaluation: what is evaluated, and after the pass over the split its result.

    Attributes:
        options: What was asked for.
        data_arguments: Where the images come from.
        command: The command line, for reports.
        name: The model's directory or Hub id.
        title: One line that names model and data.
        model: The classifier.
        processor: Its image processor.
        data: All splits.
        rows: The split that is evaluated, with the model's class numbers.
        environment: Versions and hardware.
        result: Predictions and metrics; None before the pass.
        figures: What extensions measured, by the key of the metrics file that it is written to.
    """

    options: EvaluationArguments
    data_arguments: DataArguments
    command: str
    name: str
    title: str
    model: SiglipClassifier
    processor: Any
    data: ClassificationData
    rows: datasets.Dataset
    environment: dict[str, Any] = field(default_factory=dict)
    result: SplitResult | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def pass_options(self) -> PassOptions:
        """How a pass over the split runs."""
        options = self.options
        return PassOptions(
            options.per_device_eval_batch_size,
            options.dataloader_num_workers,
            options.dtype,
            options.compile,
            self.data_arguments,
        )


class EvaluationExtension:
    """What a feature does in an evaluation; each step does nothing unless it is overridden.

    A feature's ``extension.py`` has ``make_evaluation_extension(options)``, where ``options`` is an
    instance of its ``EXTENDS["eval"]``. It is imported only if ``options.is_asked``.
    """

    def run_instead(self, options: EvaluationArguments, data_arguments: DataArguments) -> bool:
        """Do something else than evaluate and return True."""
        return False

    def check(self, evaluation: Evaluation) -> None:
        """Raise InputError for what cannot work, before the pass over the split."""

    def measure(self, evaluation: Evaluation) -> None:
        """Measure more after the pass; called by every process of a launch."""

    def write(self, evaluation: Evaluation) -> None:
        """Print and write what was measured; called by the main process."""

"""Robustness and test-time augmentation as part of an evaluation."""

from pathlib import Path

from siglip_flowers.evaluation.extension import Evaluation, EvaluationExtension
from siglip_flowers.robustness.measure import (
    check_square_images,
    format_augmented,
    format_robustness,
    measure_augmented,
    measure_robustness,
    summarize_robustness,
    write_robustness,
)
from siglip_flowers.robustness.options import RobustnessArguments


class RobustnessExtension(EvaluationExtension):
    """Fills ``figures["robustness"]`` and ``figures["augmented"]`` as asked."""

    def __init__(self, options: RobustnessArguments) -> None:
        self.options = options

    def check(self, evaluation: Evaluation) -> None:
        """Refuse a model that takes no square images."""
        option = "--robustness" if self.options.robustness else "--tta"
        check_square_images(evaluation.processor, option)

    def measure(self, evaluation: Evaluation) -> None:
        """Run the passes over changed images."""
        model, processor, rows = evaluation.model, evaluation.processor, evaluation.rows
        if self.options.robustness:
            found = measure_robustness(model, processor, rows, evaluation.pass_options)
            evaluation.figures["robustness"] = {**summarize_robustness(found), "rows": found}
        if self.options.tta != "none":
            evaluation.figures["augmented"] = measure_augmented(
                model, processor, rows, self.options.tta, evaluation.pass_options
            )

    def write(self, evaluation: Evaluation) -> None:
        """Print the tables, and write the table and plot of robustness to --output_dir."""
        figures, output_dir = evaluation.figures, evaluation.options.output_dir
        if "robustness" in figures:
            rows = figures["robustness"]["rows"]
            print(f"\n{format_robustness(rows)}")
            if output_dir is not None:
                write_robustness(rows, Path(output_dir), evaluation.title)
        if "augmented" in figures:
            print(f"\n{format_augmented(figures['augmented'])}")


def make_evaluation_extension(options: RobustnessArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return RobustnessExtension(options)

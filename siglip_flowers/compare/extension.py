"""Comparing and ranking finished runs, which ``eval.py`` does instead of an evaluation."""

from siglip_flowers.compare.command import show_runs
from siglip_flowers.compare.options import CompareArguments
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.evaluation.extension import EvaluationExtension


class CompareExtension(EvaluationExtension):
    """Reads finished runs and evaluates nothing."""

    def __init__(self, options: CompareArguments) -> None:
        self.options = options

    def run_instead(self, options: EvaluationArguments, data_arguments: DataArguments) -> bool:
        """Print the comparison or the leaderboard."""
        show_runs(self.options, options, data_arguments)
        return True


def make_evaluation_extension(options: CompareArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return CompareExtension(options)

"""The figures of a model card: the test metrics for the Hub's index, and their table."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

from siglip_flowers.evaluation.tables import HEADLINE
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.publish.finished import FinishedRun, Predictions

TASK = "image-classification"
# Metric ids of the Hub, and what sets one of ours apart from others of that id.
METRIC_TYPES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "accuracy": ("accuracy", None),
    "top5_accuracy": ("accuracy", {"top_k": 5}),
    **{
        f"{name}_{average}": (name, {"average": average})
        for name in ("precision", "recall", "f1")
        for average in ("macro", "weighted")
    },
}
OTHER_NAMES = {"loss": "loss", "nll": "negative log likelihood"}


def list_test_metrics(run: FinishedRun) -> dict[str, float]:
    """Return every figure of the test split: the headline's first, in its order."""
    test = run.metrics["splits"]["test"]
    known = [*HEADLINE, *OTHER_NAMES]
    others = [
        name
        for name, value in test.items()
        if name not in (*known, "n") and isinstance(value, (int, float))
    ]
    return {name: test[name] for name in (*known, *others) if name in test}


def name_metric(key: str) -> str:
    """Return a metric's name for readers."""
    return {**HEADLINE, **OTHER_NAMES}.get(key, key.replace("_", " "))


def build_eval_results(run: FinishedRun, dataset_type: str, dataset_name: str) -> list[EvalResult]:
    """Return one entry of the Hub's index for each metric of the test split."""
    results = []
    for key, value in list_test_metrics(run).items():
        kind, arguments = METRIC_TYPES.get(key, (key, None))
        results.append(
            EvalResult(
                task_type=TASK,
                task_name="Image Classification",
                dataset_type=dataset_type,
                dataset_name=dataset_name,
                dataset_split="test",
                dataset_args={"split_protocol": run.metrics["data"]["split_protocol"]},
                metric_type=kind,
                metric_name=f"test {name_metric(key)}",
                metric_value=value,
                metric_args=arguments,
            )
        )
    return results


def compute_intervals(predictions: Predictions, num_classes: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each share: Wilson's of accuracies, else of a bootstrap."""
    labels, predicted = predictions.labels, predictions.predicted
    intervals = bootstrap_headline(labels, predicted, num_classes)
    for name, right in (("accuracy", labels == predicted), ("top5_accuracy", predictions.hits)):
        intervals[name] = wilson_interval(int(right.sum()), len(right))
    return intervals


def format_results(run: FinishedRun) -> str:
    """Return the table of results in Markdown: test with intervals, and validation."""
    splits = run.metrics["splits"]
    test, validation = splits["test"], splits["validation"]
    intervals = compute_intervals(run.predictions, len(test["per_class"]))
    lines = [
        f"| | test ({test['n']} images) | 95 % interval | validation ({validation['n']}) |",
        "|---|---:|---:|---:|",
    ]
    for key, name in HEADLINE.items():
        low, high = intervals[key]
        lines.append(
            f"| {name} | {test[key]:.2%} | {low:.2%} to {high:.2%} | {validation[key]:.2%} |"
        )
    return "\n".join(lines)


def format_losses(splits: Mapping[str, Any]) -> str:
    """Return a sentence with the losses of the test split, which have no interval."""
    test = splits["test"]
    return (
        f"The loss on the test split is {test['loss']:.4f}, the negative log likelihood under the "
        f"softmax {test['nll']:.4f}, both means over images."
    )

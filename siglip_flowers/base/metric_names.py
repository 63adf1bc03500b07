"""The metrics of an evaluation by name, and whether higher is better."""

# Metrics that compute_metrics of siglip_flowers.metrics returns.
LOWER_IS_BETTER = ("loss", "nll")
HIGHER_IS_BETTER = (
    "accuracy",
    "top5_accuracy",
    *(
        f"{name}_{average}"
        for name in ("precision", "recall", "f1")
        for average in ("macro", "weighted")
    ),
)
# The Trainer evaluates both splits, and prefixes their names to those of the metrics.
TRAINING_METRICS = tuple(
    f"{split}_{name}"
    for split in ("validation", "train")
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
)


def is_higher_better(metric: str) -> bool:
    """Return whether a higher value of a metric is better.

    Args:
        metric: Its name, with or without prefixes such as ``eval_`` and ``validation_``.

    Raises:
        ValueError: There is no such metric.
    """
    if metric.endswith(HIGHER_IS_BETTER):
        return True
    if metric.endswith(LOWER_IS_BETTER):
        return False
    raise ValueError(f"There is no metric {metric!r}.")

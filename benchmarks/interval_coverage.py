"""How often the intervals of accuracy and macro figures contain the truth, by simulation.

    python -m benchmarks.interval_coverage --test_sets 2000 --resamples 2000

Test sets are drawn from known confusion probabilities of 102 classes, whose errors go to a few
similar classes; the true figure of a setting is that of the expected confusion matrix. Prints the
coverage of nominal 95% intervals, in percent, and writes interval_coverage.json.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from benchmarks.report import RESULTS
from siglip_flowers.base.files import write_json
from siglip_flowers.metrics.bootstrap import bootstrap_headline

CLASSES, SIMILAR = 102, 3
NAMES = ("accuracy", "precision_macro", "recall_macro", "f1_macro")
SIZES, ACCURACIES = (1020, 6149), (0.6, 0.9, 0.99)


def draw_truth(accuracy: float, generator: np.random.Generator) -> np.ndarray:
    """Return confusion probabilities (C, C): rows sum to 1, the diagonal to about C * accuracy."""
    # Classes differ: some have hardly an error, some many.
    wrong = generator.beta(0.7, 0.7 * accuracy / (1 - accuracy), CLASSES)
    wrong = np.minimum(wrong * (1 - accuracy) / wrong.mean(), 0.95)
    truth = np.diag(1 - wrong)
    for label in range(CLASSES):
        others = (label + 1 + generator.choice(8, SIMILAR, replace=False)) % CLASSES
        truth[label, others] = wrong[label] * generator.dirichlet(np.ones(SIMILAR))
    return truth


def score_expected(truth: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Return the figures of the expected confusion matrix."""
    counts = truth * sizes[:, None]
    hits, named = np.diag(counts), counts.sum(axis=0)
    return {
        "accuracy": float(hits.sum() / sizes.sum()),
        "precision_macro": float(np.mean(hits / named)),
        "recall_macro": float(np.mean(hits / sizes)),
        "f1_macro": float(np.mean(2 * hits / (sizes + named))),
    }


def measure_coverage(
    size: int, accuracy: float, test_sets: int, resamples: int, truths: int
) -> dict[str, float]:
    """Return the share of simulated test sets whose interval contains the truth, by figure."""
    generator = np.random.default_rng([size, round(1000 * accuracy)])
    weights = np.ones(CLASSES) if size == 1020 else generator.dirichlet(np.full(CLASSES, 6.0))
    sizes = np.maximum(np.round(size * weights / weights.sum()).astype(int), 2)
    labels = np.repeat(np.arange(CLASSES), sizes)
    covered = dict.fromkeys(NAMES, 0)
    for truth in (draw_truth(accuracy, generator) for _ in range(truths)):
        expected = score_expected(truth, sizes)
        for predicted in _draw_predictions(truth, sizes, test_sets // truths, generator):
            found = bootstrap_headline(labels, predicted, CLASSES, resamples=resamples)
            for name in NAMES:
                low, high = found.get(name, (0.0, 1.0))
                covered[name] += low <= expected[name] <= high
    return {name: count / (test_sets // truths * truths) for name, count in covered.items()}


def _draw_predictions(
    truth: np.ndarray, sizes: np.ndarray, count: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield np.concatenate(
            [generator.choice(CLASSES, size, p=row) for row, size in zip(truth, sizes, strict=True)]
        )


def main(argv: list[str] | None = None) -> None:
    """Simulate every setting and print the table."""
    parser = argparse.ArgumentParser(description="Coverage of the bootstrap-t intervals.")
    parser.add_argument("--test_sets", type=int, default=2000, help="simulated per setting")
    parser.add_argument("--resamples", type=int, default=2000, help="of each interval")
    parser.add_argument("--truths", type=int, default=4, help="confusion probabilities per setting")
    options = parser.parse_args(argv)
    print(f"| images, accuracy | {' | '.join(NAMES)} |\n|---|{'---:|' * len(NAMES)}")
    settings, table = vars(options), {}
    for size in SIZES:
        for accuracy in ACCURACIES:
            found = measure_coverage(
                size, accuracy, options.test_sets, options.resamples, options.truths
            )
            row = table[f"{size}/{accuracy}"] = {n: round(100 * found[n], 1) for n in NAMES}
            print(f"| {size}, {accuracy:.0%} | {' | '.join(map(str, row.values()))} |", flush=True)
    write_json(RESULTS / "interval_coverage.json", {"settings": settings, "coverage": table})


if __name__ == "__main__":
    main()

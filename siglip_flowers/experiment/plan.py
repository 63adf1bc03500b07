"""Which runs an experiment consists of: more follow from what finished ones decide.

Rates, heads and length are chosen by runs with the tuning seeds, which never see the test split.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from siglip_flowers.experiment.options import TUNED, ExperimentArguments, to_folder
from siglip_flowers.experiment.records import Record, read_record

# Accuracy on unaugmented training images.
OVER_FITTED = 0.95


class PendingError(Exception):
    """A choice waits for runs."""


@dataclass(frozen=True)
class Rates:
    """Learning rate of the encoder, and that of the head as a multiple of it."""

    encoder: float
    factor: float

    def __str__(self) -> str:
        return f"{self.encoder:g} x {self.factor:g}"


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    rates: Rates
    epochs: int
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} | rates {self.rates} | {self.epochs} epochs | seed {self.seed}"

    @property
    def name(self) -> str:
        """The name of its files."""
        rates = f"lr{self.rates.encoder:g}_x{self.rates.factor:g}"
        return f"{to_folder(self.arm)}_{rates}_{self.epochs}epochs_seed{self.seed}"


class Plan:
    """Knows the runs that an experiment needs, as far as finished ones decide, and their records.

    Methods that choose something raise :class:`PendingError` while a run that decides is missing.
    """

    def __init__(self, options: ExperimentArguments) -> None:
        self.options = options
        self._records: dict[Run, Record] = {}
        self._asked: list[Run] = []

    # ---- Records

    def locate(self, run: Run) -> Path:
        """Return where the record of a run is kept."""
        return self.options.directory / "records" / f"{run.name}.json"

    def find(self, run: Run) -> Record | None:
        """Return the record of a run, or None if it is not finished."""
        if run not in self._records and self.locate(run).is_file():
            self._records[run] = read_record(self.locate(run))
        return self._records.get(run)

    def get(self, runs: Iterable[Run]) -> list[Record]:
        """Return the records of runs; they are needed if one of them is missing."""
        runs = list(runs)
        self._asked += runs
        found = [record for record in map(self.find, runs) if record is not None]
        if len(found) < len(runs):
            raise PendingError
        return found

    def is_tuning(self, run: Run) -> bool:
        """Return whether the run decides something, and so does not see the test split."""
        return run.seed in self.options.tuning_seeds

    # ---- Choices

    def tune(self, arm: str) -> Rates:
        """Choose the rates of an arm: the highest mean score over the tuning seeds.

        The whole grid runs with the first seed, the best two of it with the others. If the better
        of the two is at an edge of the grid, its best neighbor one step inward gets all seeds as
        well; if the edge beats it with every seed, the rates one step outward are tried, once.
        """
        options, seeds = self.options, self.options.tuning_seeds
        grid = [
            Rates(rate, factor) for rate in options.learning_rates for factor in options.factors
        ]
        first = self._score(arm, grid, seeds[:1])
        tried = self._score(arm, sorted(grid, key=lambda each: first[each])[-2:], seeds)
        best = choose_best(tried)
        inner, outer = list_neighbors(options, best)
        if inner:
            neighbor = max(inner, key=lambda each: first[each])
            tried |= self._score(arm, [neighbor], seeds)
            if np.all(np.greater(tried[best], tried[neighbor])):
                tried |= self._score(arm, outer, seeds)
        return choose_best(tried)

    def _score(
        self, arm: str, rates: Sequence[Rates], seeds: Sequence[int]
    ) -> dict[Rates, list[float]]:
        """Return the score of each run of an arm at some rates with some seeds."""
        runs = {
            each: [Run(arm, each, self.options.epochs[0], seed) for seed in seeds] for each in rates
        }
        # All together, so that they can run in parallel.
        self.get(run for group in runs.values() for run in group)
        return {each: [record.score for record in self.get(runs[each])] for each in rates}

    def list_tuned(self, arm: str, epochs: int) -> list[Run]:
        """Return the runs of an arm at its rates with the tuning seeds."""
        rates = self.tune(arm)
        return [Run(arm, rates, epochs, seed) for seed in self.options.tuning_seeds]

    def choose_claim(self) -> dict[str, str]:
        """Return the arm of each loss with its better head."""
        arms, shortest = self.options.factorial, self.options.epochs[0]
        scores = {
            arm: [record.score for record in self.get(self.list_tuned(arm, shortest))]
            for arm in arms
        }
        return {
            loss: choose_best({arm: scores[arm] for arm in arms if arms[arm][0] == loss})
            for loss in self.options.losses
        }

    def choose_length(self) -> tuple[int, bool]:
        """Return the epochs at which both arms of the claim fit the training images, or the last.

        The second value is whether they do, by the mean accuracy over the tuning seeds.
        """
        claim = list(self.choose_claim().values())
        for epochs in self.options.epochs:
            runs = [run for arm in claim for run in self.list_tuned(arm, epochs)]
            fitted = [record.last["train_accuracy"] for record in self.get(runs)]
            if np.mean(np.split(np.array(fitted), len(claim)), axis=1).min() >= OVER_FITTED:
                return epochs, True
        return epochs, False

    # ---- Parts

    def list_part(self, part: str) -> list[Run]:
        """Return the runs of a part that are certain to be needed."""
        if part == "tuning":
            chosen = [self._collect(partial(self.tune, arm)) for arm in self.options.factorial]
            chosen.append(self._collect(self._tune_further))
            # The arms in turn, so that all of them reach their next stage.
            return unique(run for turn in zip_longest(*chosen) for run in turn if run is not None)
        if part == "length":
            return self._collect(self.choose_length)
        claim = list(self.choose_claim().values())
        if part == "claim":
            both = [self._list_arm(arm, self.options.claim_seeds) for arm in claim]
            return [run for pair in zip(*both, strict=True) for run in pair]
        cells = [arm for arm in self.options.factorial if arm not in claim]
        others = dict.fromkeys(cells, self.options.factorial_seeds)
        others |= {name: arm.seeds for name, arm in self.options.further_arms.items()}
        return [run for arm, seeds in others.items() for run in self._list_arm(arm, seeds)]

    def _collect(self, choose: Callable[[], Any]) -> list[Run]:
        """Return the runs that a choice asks for."""
        self._asked = []
        with contextlib.suppress(PendingError):
            choose()
        return unique(self._asked)

    def _tune_further(self) -> None:
        # Their options follow from those of the claim's arms.
        self.choose_claim()
        for name, arm in self.options.further_arms.items():
            if arm.rates == TUNED:
                self.tune(name)

    def list_missing(self, part: str) -> list[Run]:
        """Return the runs of a part that are not finished."""
        return [run for run in self.list_part(part) if self.find(run) is None]

    def is_finished(self, part: str) -> bool:
        """Return whether all runs of a part are finished."""
        return not self.list_missing(part)

    def list_runs(self, arm: str) -> list[Run]:
        """Return the runs by which an arm is compared, in the order of their seeds."""
        return [
            run for part in ("claim", "others") for run in self.list_part(part) if run.arm == arm
        ]

    def _list_arm(self, arm: str, seeds: int) -> list[Run]:
        """Return the runs of an arm with the seeds 0, 1, ..."""
        source, epochs = arm, self.choose_length()[0]
        further = self.options.further_arms.get(arm)
        if further is not None:
            epochs = further.epochs or epochs
            if further.rates != TUNED:
                source = self.choose_claim()[further.rates]
        rates = self.tune(source)
        return [Run(arm, rates, epochs, seed) for seed in range(seeds)]

    def get_options(self, arm: str) -> dict[str, Any]:
        """Return the options of train.py for an arm, without rates, length and seed."""
        options = self.options
        if arm in options.factorial:
            return options.combine(*options.factorial[arm])
        further = options.further_arms[arm]
        like = self.choose_claim()[further.like]
        return options.combine(*options.factorial[like], further.options)


def choose_best(scores: dict[Any, list[float]]) -> Any:
    """Return the key with the highest mean, of equals the first."""
    return max(scores, key=lambda each: np.mean(scores[each]))


def list_neighbors(options: ExperimentArguments, rates: Rates) -> tuple[list[Rates], list[Rates]]:
    """Return, for rates at an edge of the grid, those one step inward and one step outward.

    Two of each at a corner; none for rates within the grid, and none along a side of fewer than
    three values.
    """
    inner: list[Rates] = []
    outer: list[Rates] = []
    for axis, values in (("encoder", options.learning_rates), ("factor", options.factors)):
        ordered, value = sorted(values), getattr(rates, axis)
        if len(ordered) < 3 or value not in (ordered[0], ordered[-1]):
            continue
        inside = ordered[1] if value == ordered[0] else ordered[-2]
        inner.append(dataclasses.replace(rates, **{axis: inside}))
        outer.append(dataclasses.replace(rates, **{axis: float(f"{value * value / inside:.3g}")}))
    return inner, outer


def unique(runs: Iterable[Run]) -> list[Run]:
    """Return the runs without repetitions, in their order."""
    return list(dict.fromkeys(runs))

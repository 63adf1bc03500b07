"""Options of ``siglip-flowers experiment``: the design of a comparison of two losses."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import (
    Options,
    between,
    check_choice,
    check_fields,
    directory,
    option,
    positive,
)
from siglip_flowers.config.parsing import Command

# Every run has these: its last weights count, and its rate is constant between warm-up and decay.
FIXED: dict[str, Any] = {
    "disable_tqdm": True, "report_to": ["none"], "overwrite_output_dir": True,
    "lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1},
    "eval_strategy": "steps", "save_strategy": "no", "load_best_model_at_end": False,
}  # fmt: skip
RESERVED = {
    *FIXED,
    *("output_dir", "seed", "shots_seed", "data_seed", "learning_rate", "head_learning_rate"),
    *("num_train_epochs", "max_steps", "warmup_steps", "eval_steps", "eval_delay"),
    *("ema", "early_stopping_patience", "wise_ft", "save_dtype", "cpu_threads"),
}
PARTS = ("tuning", "length", "claim", "others")
TUNED = "tuned"


@dataclass(frozen=True)
class FurtherArm(Options):
    """An exploratory arm: the better arm of a loss with some options changed.

    Attributes:
        like: The loss.
        options: The options of ``train.py`` in which it differs.
        rates: The loss whose better arm has the same rates, or ``tuned``; default: ``like``.
        seeds: Number of its runs.
        epochs: Their length; None: that of all others.
        minus: The further arm that it is compared to; default: the better arm of the first loss.
    """

    like: str
    options: dict[str, Any] = field(default_factory=dict)
    rates: str = ""
    seeds: int = option(3, "", positive)
    epochs: int | None = option(None, "", positive)
    minus: str = ""


@dataclass
class ExperimentArguments:
    """What is compared, and how often."""

    name: str = option("", "Names the default output directory and the titles.")
    base: dict[str, Any] = option({}, "Options of train.py that all runs share.")
    losses: dict[str, Any] = option(
        {},
        "Names of two losses, each with its options of train.py: first the baseline, then the one "
        "that the claim is about.",
    )
    heads: dict[str, Any] = option(
        {}, "Names of heads, each with its options of train.py; every loss is tried with each."
    )
    further: dict[str, Any] = option(
        {},
        "Names of exploratory arms, each with like (a loss: the arm is its better arm with other "
        "options), options, rates (a loss, or tuned), seeds, epochs and minus (another such arm).",
    )
    learning_rates: list[float] = option([], "Rates of the encoder to try.", positive)
    factors: list[float] = option(
        [1.0], "Rates of the head to try, as multiples of the encoder's.", positive
    )
    tuning_seeds: list[int] = option(
        [],
        "Seeds of the runs that choose rates, heads and length: the first runs the whole grid, the "
        "others its best two.",
        between(0, 2**32 - 1),
    )
    claim_seeds: int = option(
        20, "Runs of both arms of the claim, with seeds from 0 up.", between(1, 24)
    )
    factorial_seeds: int = option(5, "Runs of the other pairs of loss and head.", positive)
    epochs: list[int] = option(
        [],
        "Lengths of training: the first counts at which both arms of the claim have 95% accuracy "
        "on unaugmented training images, else the last.",
        positive,
    )
    parts: list[str] = option(
        list(PARTS), f"Parts to do now: {', '.join(PARTS)}; each needs those before it.", PARTS
    )
    output_dir: str | None = option(
        None,
        "Where everything is written; default: results/experiments/NAME.",
        directory,
        path="output",
    )
    workers: int | None = option(
        None, "Parallel runs, each in its own process; default: one per GPU, else 1.", positive
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise InputError(f"--name is {self.name!r}; use letters, digits, '-', '_' and '.'.")
        check_fields(self)
        if len(self.losses) != 2 or not self.heads:
            raise InputError("--losses must name two losses, and --heads at least one head.")
        further = self.further_arms
        for name, arm in further.items():
            check_choice(f"further {name}: like", arm.like, tuple(self.losses))
            check_choice(f"further {name}: rates", arm.rates, (*self.losses, TUNED))
            check_choice(f"further {name}: minus", arm.minus or None, tuple(further))
        own = ((name, arm.options) for name, arm in further.items())
        for part, values in (("base", self.base), *self.losses.items(), *self.heads.items(), *own):
            if not isinstance(values, dict):
                raise InputError(f"The options of {part!r} are {values!r}; write {{}} for none.")
            for name in RESERVED & set(values):
                raise InputError(f"The experiment decides {name!r} of every run; remove it.")
        arms = [*self.factorial, *self.further]
        if len({to_folder(name) for name in arms}) < len(arms):
            raise InputError(f"The arms {', '.join(arms)} must differ in letters and digits.")
        for name in ("learning_rates", "factors", "tuning_seeds", "epochs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} is {values}; give at least one value, each once.")
        count = max(self.claim_seeds, self.factorial_seeds, *(a.seeds for a in further.values()))
        if count > min(self.tuning_seeds):
            raise InputError(
                f"--tuning_seeds are {self.tuning_seeds}; other runs have the seeds below {count}, "
                "so name higher ones."
            )

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(self.output_dir or f"results/experiments/{self.name}")

    @property
    def factorial(self) -> dict[str, tuple[str, str]]:
        """Loss and head of each arm that pairs them, by its name."""
        return {f"{loss}, {head}": (loss, head) for loss in self.losses for head in self.heads}

    @property
    def further_arms(self) -> dict[str, FurtherArm]:
        """The exploratory arms by name."""
        try:
            return {
                name: Command("", "", (FurtherArm,)).build({"rates": entry["like"], **entry})[0]
                for name, entry in self.further.items()
            }
        except (TypeError, KeyError, InputError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise InputError(
                f"An arm of --further is not understood ({reason}); write {{like: a loss, ...}}."
            ) from error

    def combine(self, loss: str, head: str, own: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the options of train.py for a loss with a head, and what an arm has of its own."""
        return {**self.base, **FIXED, **self.losses[loss], **self.heads[head], **(own or {})}

    def list_combinations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each arm's name and its options of train.py, further arms with every head."""
        for name, (loss, head) in self.factorial.items():
            yield name, self.combine(loss, head)
        for name, arm in self.further_arms.items():
            for head in self.heads:
                yield name, self.combine(arm.like, head, arm.options)


def to_folder(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "-"

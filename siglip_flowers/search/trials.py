"""The search space, and one trial: a training run that does not look at the test split."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_type_hints

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import CHECKPOINT_DIR
from siglip_flowers.base.text import count
from siglip_flowers.config import DataArguments
from siglip_flowers.config.fields import suggest_nearest
from siglip_flowers.config.parsing import convert
from siglip_flowers.config.rules import merge_options
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.training.anomalies import BadStepError
from siglip_flowers.training.attempts import TooLittleMemoryError, train_to_the_end
from siglip_flowers.training.build import (
    RunArguments,
    build_model,
    check_arguments,
    fits_on_features,
)
from siglip_flowers.training.checkpoints import clear_leftovers
from siglip_flowers.training.output import find_checkpoint
from siglip_flowers.training.trainer import SiglipTrainer

Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution
SearchSpace: TypeAlias = dict[str, Distribution]
RANGE_KEYS = {"low", "high", "log", "step"}
# Trials with other values of these, or with other data, could not be compared.
FIXED = {
    *DataArguments.__dataclass_fields__,
    *("output_dir", "overwrite_output_dir", "resume", "seed", "data_seed", "wise_ft"),
    *("metric_for_best_model", "load_best_model_at_end", "eval_strategy"),
}
# User attribute of a trial: why it has no value.
REASON = "reason"


def read_space(text: str, run: RunArguments) -> SearchSpace:
    """Read a search space, a mapping in YAML or JSON.

    Raises:
        InputError: Unknown options, options that cannot be searched, bad ranges or values.
    """
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--search_space is not valid YAML: {error}.") from error
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"--search_space is {text!r}; use a mapping of options to values.")
    hints = {
        name: hint
        for part in dataclasses.fields(run)
        for name, hint in get_type_hints(type(getattr(run, part.name))).items()
    }
    space: SearchSpace = {}
    for name, entry in entries.items():
        if name not in hints:
            nearest = suggest_nearest(str(name), set(hints))
            raise InputError(f"The search space has the unknown option {name!r}{nearest}")
        if name in FIXED:
            raise InputError(
                f"The option {name} cannot be searched, since trials with other values of it "
                "cannot be compared; drop it from the search space."
            )
        space[name] = found = _read_entry(name, entry, hints[name])
        if isinstance(found, CategoricalDistribution):
            ends = found.choices
        else:
            ends = (found.low, found.high)
        for value in ends:
            try:
                change_options(run, {name: value})
            except InputError as error:
                raise InputError(f"The search space of {name} has {value!r}: {error}") from error
    return space


def _read_entry(name: str, entry: Any, hint: Any) -> Distribution:
    types = get_args(hint) or (hint,)
    number: Any = None
    if float in types:
        number = FloatDistribution
    elif int in types and str not in types:
        number = IntDistribution
    origin = "the search space"
    if isinstance(entry, list) and len(entry) > 1:
        return CategoricalDistribution([convert(name, hint, value, origin) for value in entry])
    if isinstance(entry, dict) and number and {"low", "high"} <= entry.keys() <= RANGE_KEYS:
        log = bool(entry.get("log", False))
        values = {k: convert(name, hint, v, origin) for k, v in entry.items() if k != "log"}
        try:
            return number(**values, log=log)  # type: ignore[no-any-return]
        except (TypeError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise InputError(f"The search space of {name} is {entry!r}: {reason}.") from error
    ranges = "{low: ..., high: ...} with log: true or step" if number else "no range"
    raise InputError(
        f"The search space of {name} is {entry!r}; use a list of two values or more, or {ranges}."
    )


def find_start(space: SearchSpace, run: RunArguments) -> dict[str, Any]:
    """Return those of the configuration's own values that the space contains."""
    values = vars(merge_options(*vars(run).values()))
    start = {}
    for name, distribution in space.items():
        value = values[name]
        if isinstance(distribution, CategoricalDistribution):
            contained = value in distribution.choices
        else:
            contained = value is not None and distribution.low <= value <= distribution.high
        if contained:
            start[name] = value
    return start


def change_options(run: RunArguments, changes: Mapping[str, Any]) -> RunArguments:
    """Return a run with some options changed.

    Raises:
        InputError: An option has a value that it cannot have.
    """
    parts = {}
    for field in dataclasses.fields(run):
        part = getattr(run, field.name)
        own = {name: changes[name] for name in changes.keys() & part.__dataclass_fields__.keys()}
        try:
            parts[field.name] = dataclasses.replace(part, **own) if own else part
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from error
    return RunArguments(**parts)


def check_trial(run: RunArguments) -> None:
    """Raise InputError if ``train.py`` could not carry out the run as a trial."""
    check_arguments(run)
    if fits_on_features(run):
        raise InputError(
            "--trainable head --augment false fits the head in one go, so there is nothing to "
            "search for; use siglip-flowers probe, or drop --augment false."
        )


def run_trial(
    base: RunArguments, trial: optuna.Trial, data: ClassificationData, directory: Path
) -> dict[str, float] | None:
    """Train, from the newest checkpoint if there is one, and return the best evaluation.

    Args:
        base: The configuration that the trial's options change.
        trial: The trial.
        data: The images.
        directory: Where the trial keeps its checkpoints.

    Returns:
        A row of the Trainer's log; None if the trial was pruned or cannot be carried out, with the
        reason as an attribute of the trial.
    """
    report = _Report(trial, base)
    own = {"output_dir": str(directory), "disable_tqdm": True}
    try:
        run = change_options(base, {**trial.params, **own})
        check_trial(run)
        training, options = run.training, run.model
        clear_leftovers(directory / CHECKPOINT_DIR)
        checkpoint = find_checkpoint(directory)
        set_seed(training.seed)
        processor = load_image_processor(
            options.model_name_or_path, options.image_size, options.max_num_patches
        )
        model = build_model(run, data, processor)
        train_to_the_end(run, data, model, processor, checkpoint, prepare=report.attach)
        return report.find_best()
    except (InputError, BadStepError, TooLittleMemoryError) as error:
        # Other options may do better.
        trial.set_user_attr(REASON, str(error))
    except optuna.TrialPruned:
        trial.set_user_attr(REASON, f"pruned after {count(len(report.rows), 'evaluation')}")
    return None


class _Report(TrainerCallback):
    """Reports each evaluation to Optuna, and stops a trial that Optuna prunes.

    Optuna's steps are evaluations, counted from 1: steps of the optimizer cannot be compared
    between trials with other batch sizes.
    """

    def __init__(self, trial: optuna.Trial, run: RunArguments) -> None:
        self.trial = trial
        self.training = run.training
        self.key = name_metric(run)
        self.rows: list[dict[str, float]] = []

    def attach(self, trainer: SiglipTrainer) -> None:
        """Watch a Trainer, and keep the rows of its log off the terminal."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Report the evaluations from before an interruption."""
        self._report(state)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Report an evaluation of the validation split."""
        if metrics is not None and self.key in metrics:
            self._report(state)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def _report(self, state: TrainerState) -> None:
        reported = len(self.rows)
        self.rows = [row for row in state.log_history if self.key in row]
        for number, row in enumerate(self.rows[reported:], start=reported + 1):
            if not math.isfinite(row[self.key]):
                raise BadStepError(f"{self.key} is {row[self.key]} at epoch {row['epoch']}")
            self.trial.report(row[self.key], number)

    def find_best(self) -> dict[str, float]:
        """Return the evaluation of the weights that the run would keep."""
        if not self.rows:
            raise InputError("The training ended before its first evaluation; train longer.")
        if not self.training.load_best_model_at_end:
            return self.rows[-1]
        choose = max if self.training.greater_is_better else min
        return choose(self.rows, key=lambda row: row[self.key])


def name_metric(run: RunArguments) -> str:
    """Return the metric that trials are compared by, as the Trainer's log names it."""
    return f"eval_{run.training.metric_for_best_model}"

"""A search as it was asked for, and the run that each of its trials is."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.probe.fit import fits_on_features
from siglip_flowers.search.line import (
    DEFAULTS,
    dump_values,
    find_space,
    list_kinds,
    parse_changed,
)
from siglip_flowers.search.options import SearchArguments
from siglip_flowers.search.space import SearchSpace, Value, find_start
from siglip_flowers.training.build import RunArguments, check_arguments

KINDS = list_kinds(SiglipTrainingArguments)
TRIALS_DIR, BEST_DIR = "trials", "best"


@dataclass(frozen=True)
class Search:
    """What a search tries, and the configuration around it.

    Attributes:
        run: The configuration that trials vary.
        options: Of the search itself.
        space: What is varied.
    """

    run: RunArguments
    options: SearchArguments
    space: SearchSpace

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration's options."""
        run = self.run
        return dump_values(run.data, run.augmentation, run.model, run.training, run.probe)

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(str(self.run.training.output_dir))

    @property
    def metric(self) -> str:
        """What trials are judged by, such as ``validation_accuracy``."""
        return str(self.run.training.metric_for_best_model).removeprefix("eval_")

    @property
    def metric_key(self) -> str:
        """The same, as the Trainer calls it."""
        return f"eval_{self.metric}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Optuna's word for whether a larger value is better."""
        return "maximize" if self.run.training.greater_is_better else "minimize"

    @property
    def start(self) -> dict[str, Value] | None:
        """The configuration's own values as a trial, where the space holds them."""
        return find_start(self.space, self.values)

    def name_directory(self, number: int) -> Path:
        """Return where a trial keeps its checkpoints while it goes on."""
        return self.directory / TRIALS_DIR / f"trial-{number}"

    def build_trial(self, changes: dict[str, Value], directory: Path) -> RunArguments:
        """Return the run of a trial.

        Raises:
            InputError: The options do not go together.
        """
        quiet = {"output_dir": str(directory), "disable_tqdm": True}
        run = RunArguments(*parse_changed(KINDS, self.values, {**changes, **quiet}))
        check_arguments(run)
        if run.training.wise_ft is not None:
            raise InputError(
                f"--wise_ft {run.training.wise_ft} acts after the training that trials are judged "
                "by; leave it out of the search, and add it when train.py trains the best trial."
            )
        if fits_on_features(run):
            raise InputError(
                "--trainable head fits all of --probe_learning_rates, --probe_weight_decays and "
                "--probe_poolings in one run of train.py; use that, or add --feature_cache false."
            )
        return run

    def build_best(self, changes: dict[str, Value]) -> RunArguments:
        """Return the configuration of the best trial, for ``train.py``."""
        output_dir = str(self.directory / BEST_DIR)
        return RunArguments(
            *parse_changed(KINDS, self.values, {**changes, "output_dir": output_dir})
        )


def read_search(argv: list[str], *, prog: str, description: str) -> Search:
    """Read a search from a command line.

    Raises:
        InputError: As ``parse_arguments``; a search space that cannot be.
    """
    parsed = parse_arguments(
        (*KINDS, SearchArguments), argv, prog=prog, description=description, defaults=DEFAULTS
    )
    *run, options = parsed
    if not run[3].metric_for_best_model or run[3].eval_strategy == "no":
        raise InputError(
            "A search judges its trials by --metric_for_best_model at every evaluation; set both "
            "that and --eval_strategy."
        )
    return Search(RunArguments(*run), options, find_space(options, dump_values(*run), KINDS))

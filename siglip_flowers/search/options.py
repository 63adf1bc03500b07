"""How options of train.py are searched."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive, check_range

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")


@dataclass
class SearchArguments:
    """What is tried, how often, and where the trials are kept."""

    search_space: str | None = field(
        default=None,
        metadata={
            "help": "Option to values, as a mapping in the YAML file: {low: 1e-5, high: 1e-3, "
            "log: true}, {low: 0, high: 8, step: 2}, or a list of values. Any option of model, "
            "augmentation and training; default: the rates, decays, warm-up and smoothing."
        },
    )
    n_trials: int = field(
        default=20, metadata={"help": "Trials in all, those of earlier calls and pruned ones too."}
    )
    sampler: str = field(
        default="tpe",
        metadata={"help": "tpe: model which values do well (Optuna's default); random."},
    )
    startup_trials: int = field(
        default=10, metadata={"help": "tpe: random trials before values are modelled."}
    )
    pruner: str = field(
        default="median",
        metadata={
            "help": "median: end a trial that is worse than the median of the others at the same "
            "evaluation; hyperband: share the epochs out over brackets; none."
        },
    )
    pruning_startup_trials: int = field(
        default=5, metadata={"help": "median: finished trials before any is ended early."}
    )
    pruning_warmup: int = field(
        default=1, metadata={"help": "Evaluations of a trial before it may be ended early."}
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Trials at a time, each in its own process with one of the visible GPUs (or a "
            "share of the cores); default: one a GPU, else 1."
        },
    )
    storage: str | None = field(
        default=None,
        metadata={
            "help": "Where Optuna keeps the trials, as a URL of SQLAlchemy; default: study.db in "
            "--output_dir. A password in it is never printed or saved."
        },
    )
    study_name: str = field(
        default="search", metadata={"help": "The study's name, where a --storage has several."}
    )

    def __post_init__(self) -> None:
        for name in ("n_trials", "workers", "startup_trials"):
            check_positive(name, getattr(self, name))
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("pruner", self.pruner, PRUNERS)
        for name in ("pruning_startup_trials", "pruning_warmup"):
            check_range(name, getattr(self, name), 0, 1_000_000)
        if not self.study_name:
            raise InputError("--study_name is empty; give the study a name.")
        if self.storage is not None and "://" not in self.storage:
            # Not shown: who mistypes a URL may have typed a password.
            raise InputError("--storage is no URL; write e.g. sqlite:///study.db.")

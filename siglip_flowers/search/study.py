"""The study in which Optuna keeps the trials: opened, gone on with, and sampled repeatably."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.search.options import SearchArguments
from siglip_flowers.search.setup import Search

STUDY_FILE = "study.db"
# Held while a process begins or ends a trial.
TAKING_FILE = ".trial.lock"
# Seconds that a process waits for another that writes to the file.
LOCK_SECONDS = 120
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Attributes of a trial: which killed trial it repeats, and where that one began.
RETRY_OF, ORIGIN = "retry_of", "origin"
# Attributes of a study and of a trial.
OWNER, REASON = "output_dir", "reason"


class FileStorage(RDBStorage):
    """Trials in an SQLite file, each of which only one process takes.

    SQLite has no locks of rows, which Optuna relies on: of two processes that look at the same
    waiting trial, both would begin it.
    """

    def __init__(self, url: str, lock: FileLock, **options: Any) -> None:
        self._taking = lock
        super().__init__(url, **options)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state of a trial; False where another process has begun it."""
        with self._taking:
            return super().set_trial_state_values(trial_id, state, values)


def open_storage(search: Search) -> RDBStorage:
    """Open the storage of the trials, and make its tables where there are none.

    Raises:
        InputError: No such kind of storage, or its driver is missing.
        RunError: The storage cannot be reached.
    """
    # Its lines say again what those of the trials say.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = search.options.storage
    local = url is None or url.startswith("sqlite")
    try:
        if url is not None and not local:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        return FileStorage(
            url or f"sqlite:///{search.directory / STUDY_FILE}",
            FileLock(search.directory / TAKING_FILE, timeout=LOCK_SECONDS),
            engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
        )
    # Their messages may repeat the URL, and the cause would be printed with it.
    except ImportError as error:
        module = error.name or getattr(error.__cause__, "name", None)
        raise InputError(
            f"The driver of --storage {hide_password(url)} is not installed"
            f"{f': pip install {module}' if module else ''}."
        ) from None
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The storage {hide_password(url) or search.directory / STUDY_FILE} cannot be opened "
            f"({type(error).__name__}); check its address, and that its server runs."
        ) from None


def hide_password(url: str | None) -> str | None:
    """Return a storage's URL without its password, and without options, which may hold one."""
    if url is None:
        return None
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{parts.scheme}://{name}{colon and ':***'}{at}{host}{parts.path}"


def open_study(search: Search, storage: RDBStorage) -> optuna.Study:
    """Make the study, or open it where it exists already.

    Raises:
        InputError: The storage's study of this name belongs to another directory.
    """
    options = search.options
    study = optuna.create_study(
        study_name=options.study_name,
        storage=storage,
        direction=search.direction,
        load_if_exists=True,
    )
    here = str(search.directory.absolute())
    owner = study.user_attrs.get(OWNER)
    if owner is None:
        study.set_user_attr(OWNER, here)
    elif owner != here and options.storage is not None:
        raise InputError(
            f"The storage has a study {options.study_name!r} already, which belongs to {owner}; "
            "choose another --study_name."
        )
    return study


def delete_study(search: Search) -> None:
    """Delete the search's study from a storage that outlives the directory, where it is there."""
    storage = open_storage(search)
    if search.options.study_name in optuna.get_all_study_names(storage):
        open_study(search, storage)
        optuna.delete_study(study_name=search.options.study_name, storage=storage)


def requeue_killed(study: optuna.Study) -> None:
    """Have the trials repeated that were killed or failed; nobody else may be at work."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials()
    repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state is TrialState.FAIL and trial.number not in repeated:
            attributes = {RETRY_OF: trial.number, ORIGIN: find_origin(trial)}
            study.enqueue_trial(trial.params, user_attrs=attributes)


def find_origin(trial: Any) -> int:
    """Return the number of the trial that this one goes on with, or its own."""
    origin: int = trial.user_attrs.get(ORIGIN, trial.number)
    return origin


def count_finished(study: optuna.Study) -> int:
    """Count the trials that came to an end, early or not."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


class RepeatableSampler(BaseSampler):
    """A sampler whose draws follow from the seed and the trials before, not from a process's life.

    Optuna's samplers start their random numbers anew in every process: a search that was stopped
    would draw the values of its first trials again. Here each trial has a sampler of its own,
    seeded by how many trials came before it without failing.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._current = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the trial's own sampler."""
        before = sum(
            other.number < trial.number and other.state is not TrialState.FAIL
            for other in study.get_trials(deepcopy=False)
        )
        seed = np.random.SeedSequence([self._seed, before]).generate_state(1)[0]
        self._current = self._make(int(seed))
        self._current.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Ask the trial's own sampler."""
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the trial's own sampler."""
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Ask the trial's own sampler."""
        return self._current.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the trial's own sampler."""
        self._current.after_trial(study, trial, state, values)


def build_sampler(options: SearchArguments, seed: int, *, parallel: bool) -> RepeatableSampler:
    """Return the sampler that the options name.

    parallel: Other trials are on the way, whose surroundings are better left to them.
    """

    def make(trial_seed: int) -> BaseSampler:
        if options.sampler == "random":
            return RandomSampler(seed=trial_seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                seed=trial_seed, n_startup_trials=options.startup_trials, constant_liar=parallel
            )

    return RepeatableSampler(make, seed)


def build_pruner(options: SearchArguments) -> BasePruner:
    """Return the pruner that the options name; its steps are evaluations, counted from 1."""
    first = options.pruning_warmup + 1
    if options.pruner == "median":
        return MedianPruner(n_startup_trials=options.pruning_startup_trials, n_warmup_steps=first)
    if options.pruner == "hyperband":
        return HyperbandPruner(min_resource=first)
    return NopPruner()

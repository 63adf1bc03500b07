"""A search from start to end: Optuna's study, its trials in one process or several, the report."""

import shutil
import sqlite3
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import atomic_path, reading, write_text
from siglip_flowers.config.parsing import Command
from siglip_flowers.config.saved import dump_configuration
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.runtime.devices import count_workers, set_cpu_threads
from siglip_flowers.runtime.preemption import stop_on_signals
from siglip_flowers.runtime.processes import run_workers
from siglip_flowers.search.options import DEFAULTS, SearchArguments
from siglip_flowers.search.trials import (
    REASON,
    SearchSpace,
    change_options,
    check_trial,
    find_start,
    name_metric,
    read_space,
    run_trial,
)
from siglip_flowers.training.build import RunArguments
from siglip_flowers.training.output import UNCOMPARED, check_same_settings

STUDY_NAME, STUDY_FILE = "search", "study.db"
SEARCH_FILE, TRIALS_DIR = "search.yaml", "trials"
BEST_FILE, TABLE_FILE = "best.yaml", "trials.csv"
# The first is held by the command, the second while a process takes or ends a trial.
LOCK_FILE, TRIAL_LOCK_FILE = ".search.lock", ".trial.lock"
LOCK_SECONDS = 120
REMEDY = "Check the free space, or add --overwrite_output_dir to start anew if it is damaged"
# Settings that may differ between a search and its continuation.
FREE = (*UNCOMPARED, "n_trials", "workers")
# User attribute of a trial: the interrupted trial that it repeats.
REPEATS = "repeats"


@dataclass(frozen=True)
class Search:
    """What a search tries.

    Attributes:
        run: The configuration that trials change.
        options: Those of the search itself.
        space: What is tried, by option.
    """

    run: RunArguments
    options: SearchArguments
    space: SearchSpace

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(str(self.run.training.output_dir))

    def dump(self) -> str:
        """Return everything that decides the search, as ``--config`` reads it."""
        return dump_configuration(self.options, *vars(self.run).values())


def read_search(argv: list[str]) -> Search:
    """Read a search from a command line.

    Raises:
        InputError: As :meth:`Command.parse`; a bad search space.
    """
    kinds = (*get_type_hints(RunArguments).values(), SearchArguments)
    *parts, options = Command("", "", kinds, defaults=DEFAULTS).parse(argv)
    run = RunArguments(*parts)
    return Search(run, options, read_space(options.search_space, run))


def run_search(argv: list[str]) -> Path:
    """Run the missing trials, write the report and return the path of the best configuration.

    Raises:
        InputError: The search cannot be carried out, or a command is running it.
        RunError: Trials are missing, or none has a value.
    """
    search = read_search(argv)
    total, directory = search.options.n_trials, search.directory
    check_trial(change_options(search.run, {"output_dir": str(directory / TRIALS_DIR)}))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / LOCK_FILE, timeout=0):
            _claim_directory(search)
            with reading(directory / STUDY_FILE, REMEDY):
                study = open_study(search)
                _enqueue(search, study)
                finished = _count_finished(study)
            if finished:
                print(f"{finished} of {total} trials are already finished", flush=True)
            try:
                _run_missing(search, total - finished, argv)
            finally:
                best = write_report(search, study)
    except Timeout as error:
        raise InputError(f"Another command is running the search in {directory}.") from error
    missing = total - _count_finished(study)
    if missing > 0:
        raise RunError(
            f"{missing} of {total} trials are missing. Fix what the messages above name and repeat "
            "the command, which runs only the missing trials."
        )
    if best is None:
        # A trial that was interrupted has none.
        notes = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
        reason = next(each[REASON] for each in notes if REASON in each).rstrip(".")
        raise RunError(
            f"None of {total} trials could be finished, the first because: {reason}. Change "
            "the search space and add --overwrite_output_dir."
        )
    shutil.rmtree(directory / TRIALS_DIR, ignore_errors=True)
    return best


def _claim_directory(search: Search) -> None:
    """Check that the search may start or resume in its directory, and write its settings there."""
    directory, settings = search.directory, search.dump()
    path = directory / SEARCH_FILE
    if search.run.training.overwrite_output_dir:
        shutil.rmtree(directory / TRIALS_DIR, ignore_errors=True)
        for name in (STUDY_FILE, SEARCH_FILE, BEST_FILE, TABLE_FILE):
            (directory / name).unlink(missing_ok=True)
    check_same_settings(path, settings, kind="earlier search", free=FREE)
    write_text(path, settings)


class FileStorage(RDBStorage):
    """Trials in an SQLite file, each of which only one process takes.

    Optuna relies on row locks, which SQLite does not have: two processes that see the same waiting
    trial would both start it.
    """

    def __init__(self, url: str, lock: FileLock, **options: Any) -> None:
        self._lock = lock
        super().__init__(url, **options)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state of a trial; False if another process has started it."""
        with self._lock:
            return super().set_trial_state_values(trial_id, state, values)


def open_study(search: Search) -> optuna.Study:
    """Create the study, or open it if it exists."""
    # Its messages repeat what the lines of the trials say.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options, file = search.options, search.directory / STUDY_FILE
    # Not an address with the path, of which ?, % and braces would not be part.
    storage = FileStorage(
        f"sqlite:///{STUDY_FILE}",
        FileLock(search.directory / TRIAL_LOCK_FILE, timeout=LOCK_SECONDS),
        engine_kwargs={
            "creator": lambda: sqlite3.connect(file, LOCK_SECONDS, check_same_thread=False)
        },
    )
    pruner = MedianPruner(options.pruning_startup_trials, n_warmup_steps=options.pruning_warmup + 1)
    return optuna.create_study(
        study_name=STUDY_NAME,
        storage=storage,
        direction="maximize" if search.run.training.greater_is_better else "minimize",
        pruner=pruner if options.pruner == "median" else NopPruner(),
        load_if_exists=True,
    )


def _enqueue(search: Search, study: optuna.Study) -> None:
    """Repeat interrupted trials; a new study begins with the configuration itself."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        repeats = trial.user_attrs.get(REPEATS, trial.number)
        study.enqueue_trial(trial.params, user_attrs={REPEATS: repeats})
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(find_start(search.space, search.run))


def _count_finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _run_missing(search: Search, missing: int, argv: list[str]) -> None:
    workers = min(count_workers(search.options.workers), missing)
    if workers <= 1 and count_workers(None) == 1:
        run_trials(search, missing)
        return
    # Also for one worker if several devices are visible: the Trainer would use all of them.
    shares = [missing // workers + (worker < missing % workers) for worker in range(workers)]
    run_workers(_work, [(argv, share, worker) for worker, share in enumerate(shares)])


def _work(argv: list[str], trials: int, worker: int) -> None:
    with stop_on_signals():
        try:
            run_trials(read_search(argv), trials, worker)
        except (InputError, RunError, OSError) as error:
            sys.exit(f"search: error: {error}")


def run_trials(search: Search, trials: int, worker: int = 0) -> None:
    """Run a number of trials one after another.

    Raises:
        RunError: Something failed that would fail in every trial.
    """
    if trials <= 0:
        return
    study, metric = open_study(search), name_metric(search.run)
    # A process that resumes must not draw the same random numbers again.
    seed = search.run.training.seed + len(study.get_trials(deepcopy=False)) + 10_000 * worker
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The liar keeps parallel trials from trying the same values.
        study.sampler = TPESampler(seed=seed, constant_liar=search.options.workers != 1)
    set_cpu_threads(search.run.training.cpu_threads)
    data = load_data(search.run.data)
    for _ in range(trials):
        trial = study.ask(dict(search.space))
        number = trial.user_attrs.get(REPEATS, trial.number)
        directory = search.directory / TRIALS_DIR / f"trial-{number}"
        row = run_trial(search.run, trial, data, directory)
        if row is None:
            study.tell(trial, state=TrialState.PRUNED)
            outcome = str(trial.user_attrs[REASON])
        else:
            for name, value in row.items():
                if name == "epoch" or name.startswith("eval_validation_"):
                    trial.set_user_attr(name.removeprefix("eval_"), value)
            study.tell(trial, row[metric])
            outcome = f"{metric.removeprefix('eval_')} {row[metric]:.4f} at epoch {row['epoch']:g}"
        shutil.rmtree(directory, ignore_errors=True)
        options = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        finished = f"[{_count_finished(study)}/{search.options.n_trials}]"
        print(f"{finished} trial {trial.number}: {outcome}; {options}", flush=True)


def write_report(search: Search, study: optuna.Study) -> Path | None:
    """Write the table and, if any trial has a value, the best configuration; return its path."""
    table = study.trials_dataframe(
        attrs=("number", "state", "value", "params", "user_attrs", "duration")
    )
    with atomic_path(search.directory / TABLE_FILE) as path:
        table.to_csv(path, index=False)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    best, path = study.best_trial, search.directory / BEST_FILE
    run = change_options(search.run, {**best.params, "output_dir": str(search.directory / "best")})
    header = (
        f"# Trial {best.number} of the search in {search.directory}: "
        f"{run.training.metric_for_best_model} {best.value}.\n"
        f"# Train it with: siglip-flowers train --config {path}\n"
    )
    write_text(path, header + run.dump())
    return path

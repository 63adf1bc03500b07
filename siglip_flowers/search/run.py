"""A search from start to finish: checks, the study, the trials, the report."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.runtime.devices import count_workers
from siglip_flowers.search.output import (
    LOCK_FILE,
    check_directory,
    clear_trials,
    write_settings,
)
from siglip_flowers.search.report import format_trials, write_report
from siglip_flowers.search.setup import Search, read_search
from siglip_flowers.search.space import Value, refuse_impossible
from siglip_flowers.search.study import (
    REASON,
    count_finished,
    find_origin,
    open_storage,
    open_study,
    requeue_killed,
)
from siglip_flowers.search.trials import run_trials
from siglip_flowers.search.workers import run_in_workers


@dataclass(frozen=True)
class SearchOutcome:
    """What a search leaves: the table of its best trials, and the best one's configuration."""

    table: str
    best: Path


def run_search(argv: list[str], *, prog: str, description: str) -> SearchOutcome:
    """Do the trials that are missing and write the report of all.

    Raises:
        InputError: The search cannot be carried out as asked, or another command is at it.
        RunError: Trials are missing, or none could be finished.
    """
    search = read_search(argv, prog=prog, description=description)
    refuse_impossible(search.space, lambda values: _check_trial(search, values))
    search.directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(search.directory / LOCK_FILE, timeout=0):
            check_directory(search)
            study = open_study(search, open_storage(search))
            # Not before: a mistyped storage is no setting to keep to.
            write_settings(search)
            _prepare(search, study)
            try:
                reasons = _do_trials(search, study, argv)
            finally:
                best = write_report(search, study.get_trials())
    except Timeout as error:
        raise InputError(
            f"Another command is at work on the search in {search.directory}; wait for it."
        ) from error
    _check_complete(search, study, reasons)
    if best is None:
        reason = next(
            (
                str(trial.user_attrs[REASON])
                for trial in study.get_trials()
                if REASON in trial.user_attrs
            ),
            "all were ended early",
        )
        raise RunError(
            f"None of the {search.options.n_trials} trials could be finished, first: "
            f"{reason.rstrip('.')}; change the search space and add --overwrite_output_dir."
        )
    return SearchOutcome(format_trials(search, study.get_trials()), best)


def _check_trial(search: Search, values: dict[str, Value]) -> None:
    """Raise InputError for options of a trial that cannot be carried out."""
    search.build_trial(values, search.name_directory(0) / "check")


def _prepare(search: Search, study: optuna.Study) -> None:
    """Line up the trials that were killed, or, in a new study, the configuration itself."""
    requeue_killed(study)
    if not study.get_trials(deepcopy=False) and search.start is not None:
        study.enqueue_trial(search.start)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    clear_trials(search, {find_origin(trial) for trial in waiting})


def _do_trials(search: Search, study: optuna.Study, argv: list[str]) -> list[str]:
    """Do what is missing; return why some of the processes gave up."""
    finished = count_finished(study)
    missing = search.options.n_trials - finished
    if finished:
        print(f"{finished} of {search.options.n_trials} trials were finished before", flush=True)
    if missing <= 0:
        return []
    workers = min(count_workers(search.options.workers), missing)
    # Alone among several devices, the Trainer would split every batch over them.
    if workers > 1 or count_workers(None) > 1:
        return run_in_workers(argv, workers, missing)
    tickets = iter(range(missing))
    run_trials(search, lambda: next(tickets, None) is not None, parallel=False)
    return []


def _check_complete(search: Search, study: optuna.Study, reasons: list[str]) -> None:
    missing = search.options.n_trials - count_finished(study)
    if missing > 0:
        reason = reasons[0].rstrip(".") if reasons else "a process ended"
        raise RunError(
            f"{missing} of {search.options.n_trials} trials are missing: {reason}; remove the "
            "cause and repeat the command, which does only what is missing."
        )

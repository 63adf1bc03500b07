"""Aim: a repository on this machine, which ``aim up`` shows."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_flowers.tracking.tracker import (
    FinalResults,
    RunFacts,
    Tracker,
    TrainerView,
    name_values,
)

logger = logging.getLogger(__name__)

EXPERIMENT = "siglip_flowers"
SYSTEM_INTERVAL_SECONDS = 10


class AimTracker(Tracker):
    """A run in an Aim repository.

    Args:
        repository: Directory that holds ``.aim``, or ``aim://host:port``; None: the nearest above
            the working directory, else that itself, which is where ``aim up`` looks too.
    """

    def __init__(self, repository: str | None) -> None:
        self._repository = repository
        self._run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or go on with the one of this id where the repository still has it."""
        from aim import Run
        from aim.sdk.errors import MissingRunError

        if self._repository is not None and "://" not in self._repository:
            Path(self._repository).mkdir(parents=True, exist_ok=True)
        options = {
            "repo": self._repository,
            "system_tracking_interval": SYSTEM_INTERVAL_SECONDS,
            # The environment, which is among them, may hold secrets.
            "log_system_params": False,
            "capture_terminal_logs": False,
        }
        if run_id is not None:
            try:
                # The lock of a process that was killed may still be there.
                self._run = Run(run_id, force_resume=True, **options)
            except MissingRunError:
                logger.info("The Aim repository has no run %s any more; a new one starts.", run_id)
        if self._run is None:
            self._run = Run(experiment=EXPERIMENT, **options)
        self._run.name = run.name
        self._run.set("hparams", dict(run.config), strict=False)
        return self._run.hash

    def log(self, logs: Mapping[str, float], view: TrainerView) -> None:
        """Track figures by step and epoch, in the context of their split."""
        for name, split, value in name_values(logs):
            self._track(value, name, split, view)

    def finish(self, results: FinalResults, view: TrainerView) -> None:
        """Track the test figures and images; keep all splits' figures of the kept weights."""
        from aim import Image

        for name, value in results.metrics["test"].items():
            self._track(value, name, "test", view)
        kept = {split: dict(metrics) for split, metrics in results.metrics.items()}
        self._run.set("results", kept, strict=False)
        images = [
            Image(image.convert("RGB"), caption=f"{true}: {predicted} ({confidence:.0%})")
            for image, true, predicted, confidence in results.examples
        ]
        if images:
            self._track(images, "examples", "test", view)
        self._track(Image(results.confusion), "confusion_matrix", "test", view)

    def close(self, *, failed: bool) -> None:
        """End the run, and make it known to those who query the repository."""
        run, self._run = self._run, None
        if run is None:
            return
        repository, run_hash = run.repo, run.hash
        run.close()
        # Queries read an index that only "aim up" fills by itself. A repository without one is
        # read run by run, and would seem to hold nothing else once it had one.
        if not repository.is_remote_repo and (Path(repository.path) / "meta" / "index").is_dir():
            from aim.sdk.index_manager import RepoIndexManager

            try:
                RepoIndexManager.get_index_manager(repository).index(run_hash)
            except Exception as error:
                # Most likely "aim up" is at work on it.
                logger.info("Aim's index was not brought up to date: %s", error)

    def _track(self, value: Any, name: str, split: str | None, view: TrainerView) -> None:
        state = view.state
        context = {} if split is None else {"subset": split}
        # Aim takes whole epochs; a row within an epoch belongs to the one it completes.
        self._run.track(
            value, name=name, step=state.global_step, epoch=_ceil(state.epoch), context=context
        )


def _ceil(epoch: float | None) -> int:
    return -int(-(epoch or 0.0) // 1)

"""Aim: a repository on this machine, which ``aim up`` shows."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_flowers.tracking.trackers import FinalResults, Moment, RunFacts, Tracker, Value

logger = logging.getLogger(__name__)

EXPERIMENT = "siglip_flowers"
SYSTEM_INTERVAL_SECONDS = 10


class AimTracker(Tracker):
    """A run in an Aim repository.

    Args:
        repository: Directory that contains ``.aim``, or ``aim://host:port``. By default, like ``aim
            up``, the nearest above the working directory, or else the working directory itself.
    """

    def __init__(self, repository: str | None) -> None:
        self._repository = repository
        self._run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id if the repository still has it."""
        from aim import Run
        from aim.sdk.errors import MissingRunError, RunLockingError
        from filelock import Timeout

        if self._repository is not None and "://" not in self._repository:
            Path(self._repository).mkdir(parents=True, exist_ok=True)
        options = {
            "repo": self._repository,
            "system_tracking_interval": SYSTEM_INTERVAL_SECONDS,
            # These include the environment, which may contain secrets.
            "log_system_params": False,
            "capture_terminal_logs": False,
        }
        if run_id is not None:
            try:
                # Aim removes the lock of a process that was killed on this machine.
                self._run = Run(run_id, **options)
            except (RunLockingError, Timeout):
                # Killed on another machine.
                self._run = Run(run_id, force_resume=True, **options)
            except MissingRunError:
                logger.warning("The Aim repository has no run %s; a new one starts.", run_id)
        if self._run is None:
            self._run = Run(experiment=EXPERIMENT, **options)
        self._run.name = run.name
        self._run.set("hparams", dict(run.config), strict=False)
        return self._run.hash

    def log(self, values: Sequence[Value], moment: Moment) -> None:
        """Track figures by step and epoch, in the context of their split."""
        for name, split, value in values:
            self._track(value, name, split, moment)

    def log_results(self, results: FinalResults, moment: Moment) -> None:
        """Track test images, and keep the metrics of all splits as an attribute of the run."""
        from aim import Image

        metrics = {split: dict(values) for split, values in results.metrics.items()}
        self._run.set("results", metrics, strict=False)
        images = [
            Image(image.convert("RGB"), caption=f"{true}: {predicted} ({confidence:.0%})")
            for image, true, predicted, confidence in results.examples
        ]
        if images:
            self._track(images, "examples", "test", moment)
        self._track(Image(results.confusion), "confusion_matrix", "test", moment)

    def close(self, *, failed: bool) -> None:
        """End the run, and add it to the index, which queries read and only "aim up" fills."""
        run, self._run = self._run, None
        if run is None:
            return
        repository, run_hash = run.repo, run.hash
        run.close()
        # Without an index a repository is read run by run; with one it must contain every run.
        if not repository.is_remote_repo and Path(repository.path, "meta", "index").is_dir():
            from aim.sdk.index_manager import RepoIndexManager

            try:
                RepoIndexManager.get_index_manager(repository).index(run_hash)
            except Exception as error:
                # Most likely "aim up" is updating it.
                logger.info("Aim's index was not updated: %s", error)

    def _track(self, value: Any, name: str, split: str | None, moment: Moment) -> None:
        context = {} if split is None else {"subset": split}
        # Aim takes whole epochs; a row within an epoch belongs to the epoch it is part of.
        epoch = math.ceil(moment.epoch)
        self._run.track(value, name=name, step=moment.step, epoch=epoch, context=context)

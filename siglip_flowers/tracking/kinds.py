"""Aim, W&B, TensorBoard and Trackio, on the main process alone.

Each is imported only when its run is opened.
"""

import contextlib
import importlib.util
import logging
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import TENSORBOARD_DIR
from siglip_flowers.tracking.trackers import FinalResults, RunFacts, Tracker, Trackers

logger = logging.getLogger(__name__)

AIM_SYSTEM_SECONDS = 10
WANDB_STEP = "global_step"
# How long the end of a run waits for its upload; W&B itself waits forever, and keeps the rest.
WANDB_FINISH_SECONDS = 600.0


class AimTracker(Tracker):
    """A run in an Aim repository, which ``aim up`` shows.

    The option ``aim_repo`` or ``AIM_REPO`` names the directory that contains ``.aim``, or
    ``aim://host:port``. By default, like ``aim up``, it is the nearest above the working directory,
    or else the working directory itself.
    """

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id if the repository still has it."""
        from aim import Run
        from aim.sdk.errors import MissingRunError, RunLockingError
        from filelock import Timeout

        repository = run.config.get("aim_repo") or os.environ.get("AIM_REPO")
        if repository is not None and "://" not in repository:
            repository = os.path.expanduser(repository)
            Path(repository).mkdir(parents=True, exist_ok=True)
        options = {
            "repo": repository,
            "system_tracking_interval": AIM_SYSTEM_SECONDS,
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
            self._run = Run(experiment=run.project, **options)
        self._run.name = run.name
        self._run.set("hparams", run.config, strict=False)
        return self._run.hash

    def log(self, figures: Mapping[str, Any], step: int, epoch: float) -> None:
        """Track figures by step and epoch, in the context of their split."""
        for key, value in figures.items():
            split, _, name = key.rpartition("/")
            context = {"subset": split} if split else {}
            # Aim takes whole epochs; a row within an epoch belongs to the epoch it is part of.
            self._run.track(value, name=name, step=step, epoch=math.ceil(epoch), context=context)

    def log_results(self, results: FinalResults, step: int, epoch: float) -> None:
        """Track test images, and keep the metrics of all splits as an attribute of the run."""
        from aim import Image

        self._run.set("results", results.metrics, strict=False)
        examples = [
            Image(image.convert("RGB"), caption=f"{true}: {predicted} ({confidence:.0%})")
            for image, true, predicted, confidence in results.examples
        ]
        images = {"test/examples": examples, "test/confusion_matrix": Image(results.confusion)}
        self.log(images, step, epoch)

    def close(self, *, failed: bool) -> None:
        """End the run, and add it to the index, which queries read and only "aim up" fills."""
        if self._run is None:
            return
        repository, run_hash = self._run.repo, self._run.hash
        self._run.close()
        # Without an index a repository is read run by run; with one it must contain every run.
        if not repository.is_remote_repo and Path(repository.path, "meta", "index").is_dir():
            from aim.sdk.index_manager import RepoIndexManager

            # An error most likely means that "aim up" is updating it.
            with contextlib.suppress(Exception):
                RepoIndexManager.get_index_manager(repository).index(run_hash)


class WandbTracker(Tracker):
    """A run of W&B: online if somebody is logged in, else offline, and never with a prompt.

    Its files are in ``wandb/`` of the working directory, or ``WANDB_DIR``.
    """

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id."""
        import wandb

        mode = choose_wandb_mode()
        settings, offline = wandb.setup().settings, mode != "online"
        self._run = wandb.init(
            project=settings.project or run.project,
            name=run.config.get("run_name") or settings.run_name or run.name,
            # None: WANDB_RUN_ID, as "wandb agent" sets it, or a new one.
            id=run_id,
            config=run.config,
            mode=mode,
            # Offline, W&B ignores it with a warning, and the id alone joins the parts of a run.
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=offline or settings.silent,
                finish_timeout=settings.finish_timeout or WANDB_FINISH_SECONDS,
            ),
        )
        if mode == "offline":
            directory = Path(self._run.dir).parent
            print(f"W&B is offline; upload the run with: wandb sync {directory}", flush=True)
        self._run.define_metric(WANDB_STEP, hidden=True)
        # W&B's own step cannot decrease, as that of a resumed run does.
        self._run.define_metric("*", step_metric=WANDB_STEP)
        return self._run.id

    def log(self, figures: Mapping[str, Any], step: int, epoch: float) -> None:
        """Log a row of figures."""
        self._run.log({**figures, "epoch": epoch, WANDB_STEP: step})

    def log_results(self, results: FinalResults, step: int, epoch: float) -> None:
        """Log test images and all metrics."""
        import wandb

        self._run.summary["results"] = results.metrics
        table = wandb.Table(columns=["image", "true", "predicted", "confidence", "right"])
        for image, true, predicted, confidence in results.examples:
            logged = wandb.Image(image.convert("RGB"))
            table.add_data(logged, true, predicted, confidence, true == predicted)
        images = {"examples": table, "confusion_matrix": wandb.Image(results.confusion)}
        self.log(images, step, epoch)

    def close(self, *, failed: bool) -> None:
        """End the run and wait for its files: ``finish`` alone returns before they are written."""
        import wandb

        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            wandb.teardown()


def choose_wandb_mode() -> Any:
    """Return the mode of W&B's own settings, or offline if W&B would ask for a login."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    if mode == "disabled":
        return mode
    # An error means that the key is not valid.
    with contextlib.suppress(wandb.Error):
        if mode == "online" and wandb.login(prompt=False, verify=False):
            return mode
    return "offline"


class TensorBoardTracker(Tracker):
    """Event files in ``tensorboard/`` of the output directory, or ``TENSORBOARD_LOGGING_DIR``."""

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Open another file in the directory, which TensorBoard shows as one run."""
        from torch.utils.tensorboard import SummaryWriter

        given = os.environ.get("TENSORBOARD_LOGGING_DIR")
        directory = os.path.expanduser(given) if given else str(run.output_dir / TENSORBOARD_DIR)
        # Hides what a killed run logged after its last checkpoint, which is logged again; but not
        # what other runs logged to a directory that they share.
        purged = None if given and run_id is None else run.step + 1
        self._run = SummaryWriter(log_dir=directory, purge_step=purged)
        if run_id is None:
            self._run.add_text("config", f"```\n{yaml.safe_dump(run.config)}```")
        return directory

    def log(self, figures: Mapping[str, Any], step: int, epoch: float) -> None:
        """Write a row of figures."""
        for tag, value in figures.items():
            self._run.add_scalar(tag, value, step)
        self._run.flush()


class TrackioTracker(Tracker):
    """A run of Trackio, which identifies it by its name."""

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this name."""
        import trackio

        name = run_id or f"{run.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            run.project, name=name, config=run.config, resume="allow", embed=False
        )
        return name

    def log(self, figures: Mapping[str, Any], step: int, epoch: float) -> None:
        """Log a row of figures."""
        self._run.log({**figures, "epoch": epoch}, step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()


# By name, which is that of the package too.
KINDS = {
    "aim": AimTracker,
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
}
# The default of --report_to: names separated by commas, or none.
DEFAULT_VARIABLE = "SIGLIP_FLOWERS_REPORT_TO"
INSTALL = "install a tracker with pip (aim has no wheels for Windows or Python 3.13 and later)"


def choose_trackers(report_to: list[str] | None) -> list[str]:
    """Return the trackers to use: those requested, else Aim if it is installed."""
    if report_to is not None:
        return [name for name in report_to if name != "none"]
    if text := os.environ.get(DEFAULT_VARIABLE):
        return [name.strip() for name in text.split(",") if name.strip() != "none"]
    if importlib.util.find_spec("aim") is not None:
        return ["aim"]
    if PartialState().is_main_process:
        logger.warning("Aim is not installed, so nothing is tracked; %s.", INSTALL)
    return []


def check_trackers(report_to: list[str] | None) -> None:
    """Raise InputError if a requested tracker is unknown or its package is missing."""
    if report_to is None and not os.environ.get(DEFAULT_VARIABLE):
        return
    for name in choose_trackers(report_to):
        if name not in KINDS or importlib.util.find_spec(name) is None:
            raise InputError(
                f"The tracker {name} is unknown or not installed; --report_to and "
                f"{DEFAULT_VARIABLE} take names of {', '.join(KINDS)}, or none: {INSTALL}."
            )


def build_trackers(report_to: list[str] | None) -> Trackers:
    """Return the run's trackers, not yet opened; none on other processes than the main one.

    Two processes would compete for Aim's lock, and log everything twice elsewhere.
    """
    names = choose_trackers(report_to) if PartialState().is_main_process else []
    return Trackers({name: KINDS[name]() for name in names})

"""Aim, W&B, TensorBoard and Trackio; each is imported only when its run is opened."""

import contextlib
import logging
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.files import TENSORBOARD_DIR
from siglip_flowers.tracking.trackers import FinalResults, Moment, RunFacts, Tracker, Value

logger = logging.getLogger(__name__)

AIM_SYSTEM_SECONDS = 10
WANDB_STEP = "global_step"
# Modes of W&B that need no login.
WANDB_LOCAL_MODES = ("offline", "dryrun", "disabled")
# How long the end of a run waits for its upload; W&B itself waits forever, and keeps the rest.
WANDB_FINISH_SECONDS = 600.0


class AimTracker(Tracker):
    """A run in an Aim repository on this machine, which ``aim up`` shows.

    Args:
        repository: Directory that contains ``.aim``, or ``aim://host:port``. By default, like ``aim
            up``, the nearest above the working directory, or else the working directory itself.
    """

    def __init__(self, repository: str | None) -> None:
        self._repository = repository

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id if the repository still has it."""
        from aim import Run
        from aim.sdk.errors import MissingRunError, RunLockingError
        from filelock import Timeout

        if self._repository is not None and "://" not in self._repository:
            Path(self._repository).mkdir(parents=True, exist_ok=True)
        options = {
            "repo": self._repository,
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

    def log(self, values: Sequence[Value], moment: Moment) -> None:
        """Track figures by step and epoch, in the context of their split."""
        for name, split, value in values:
            self._track(value, name, split, moment)

    def log_results(self, results: FinalResults, moment: Moment) -> None:
        """Track test images, and keep the metrics of all splits as an attribute of the run."""
        from aim import Image

        self._run.set("results", results.metrics, strict=False)
        images = [
            Image(image.convert("RGB"), caption=f"{true}: {predicted} ({confidence:.0%})")
            for image, true, predicted, confidence in results.examples
        ]
        if images:
            self._track(images, "examples", "test", moment)
        self._track(Image(results.confusion), "confusion_matrix", "test", moment)

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

    def _track(self, value: Any, name: str, split: str | None, moment: Moment) -> None:
        context = {} if split is None else {"subset": split}
        # Aim takes whole epochs; a row within an epoch belongs to the epoch it is part of.
        epoch = math.ceil(moment.epoch)
        self._run.track(value, name=name, step=moment.step, epoch=epoch, context=context)


class WandbTracker(Tracker):
    """A run of W&B: online if somebody is logged in, else offline, and never with a prompt.

    Its files are in ``wandb/`` of the working directory, or ``WANDB_DIR``.

    Args:
        log_model: Upload the saved model as an artifact.
    """

    def __init__(self, *, log_model: bool) -> None:
        self._log_model = log_model

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id."""
        import wandb

        run_id, mode = run_id or uuid.uuid4().hex[:8], choose_wandb_mode()
        settings, offline = wandb.setup().settings, mode in WANDB_LOCAL_MODES
        self._run = wandb.init(
            project=settings.project or run.project,
            name=run.name,
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
        if mode in ("offline", "dryrun"):
            directory = Path(self._run.dir).parent
            print(f"W&B is offline; upload the run with: wandb sync {directory}", flush=True)
        self._run.define_metric(WANDB_STEP, hidden=True)
        # W&B's own step cannot decrease, as that of a resumed run does.
        self._run.define_metric("*", step_metric=WANDB_STEP)
        return run_id

    def log_results(self, results: FinalResults, moment: Moment) -> None:
        """Log test images, all metrics and, if requested, the model."""
        import wandb

        self._run.summary["results"] = results.metrics
        table = wandb.Table(columns=["image", "true", "predicted", "confidence", "right"])
        for image, true, predicted, confidence in results.examples:
            logged = wandb.Image(image.convert("RGB"))
            table.add_data(logged, true, predicted, confidence, true == predicted)
        self._log({"examples": table, "confusion_matrix": wandb.Image(results.confusion)}, moment)
        if self._log_model:
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            artifact.add_dir(str(results.model_dir))
            self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """End the run and wait for its files: ``finish`` alone returns before they are written."""
        import wandb

        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            wandb.teardown()

    def _log(self, figures: dict[str, Any], moment: Moment) -> None:
        self._run.log({**figures, "epoch": moment.epoch, WANDB_STEP: moment.step})


def choose_wandb_mode() -> Any:
    """Return the mode of W&B's own settings, or offline if W&B would ask for a login."""
    import wandb

    settings, asked = wandb.setup().settings, os.environ.get("WANDB_MODE")
    mode = asked or settings.mode
    if mode in WANDB_LOCAL_MODES:
        return mode
    # An error means that the key is not valid.
    with contextlib.suppress(wandb.Error):
        if wandb.login(prompt=False, verify=False):
            return mode
    if asked:
        logger.warning(
            "WANDB_MODE is %s, but nobody is logged in to W&B at %s; run 'wandb login' or set "
            "WANDB_API_KEY.",
            asked,
            settings.base_url,
        )
    return "offline"


class TensorBoardTracker(Tracker):
    """Event files in ``tensorboard/`` of the output directory, or ``TENSORBOARD_LOGGING_DIR``."""

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Open another file in the directory, which TensorBoard shows as one run."""
        from torch.utils.tensorboard import SummaryWriter

        directory = os.environ.get("TENSORBOARD_LOGGING_DIR") or run.output_dir / TENSORBOARD_DIR
        self._run = SummaryWriter(log_dir=str(directory))
        if run_id is None:
            self._run.add_text("config", f"```\n{yaml.safe_dump(run.config)}```")
        return str(directory)

    def _log(self, figures: dict[str, Any], moment: Moment) -> None:
        for tag, value in figures.items():
            self._run.add_scalar(tag, value, moment.step)
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

    def _log(self, figures: dict[str, Any], moment: Moment) -> None:
        self._run.log({**figures, "epoch": moment.epoch}, step=moment.step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()

"""W&B: online if somebody is logged in, else offline, and never with a prompt."""

import contextlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siglip_flowers.tracking.trackers import FinalResults, Moment, RunFacts, Tracker, Value

logger = logging.getLogger(__name__)

PROJECT = "siglip_flowers"
STEP = "global_step"
# Modes that need no login.
LOCAL_MODES = ("offline", "dryrun", "disabled")
# How long the end of a run waits for its upload; W&B itself waits forever, and keeps the rest.
FINISH_SECONDS = 600.0


class WandbTracker(Tracker):
    """A run of W&B; its files are in ``wandb/`` of the working directory, or ``WANDB_DIR``.

    Args:
        log_model: Upload the saved model as an artifact.
    """

    def __init__(self, *, log_model: bool) -> None:
        self._log_model = log_model
        self._run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id; offline if online fails."""
        run_id = run_id or uuid.uuid4().hex[:8]
        mode = choose_mode()
        try:
            self._run = _start(run, run_id, mode)
        except Exception as error:
            if mode in LOCAL_MODES:
                raise
            logger.warning("W&B cannot be reached (%s).", error)
            mode = "offline"
            self._run = _start(run, run_id, mode)
        if mode in ("offline", "dryrun"):
            directory = Path(self._run.dir).parent
            print(f"W&B is offline; upload the run with: wandb sync {directory}", flush=True)
        self._run.define_metric(STEP, hidden=True)
        # W&B's own step cannot decrease, as that of a resumed run does.
        self._run.define_metric("*", step_metric=STEP)
        return run_id

    def log(self, values: Sequence[Value], moment: Moment) -> None:
        """Log figures as ``SPLIT/NAME``."""
        self._log({value.tag: value.value for value in values}, moment)

    def log_results(self, results: FinalResults, moment: Moment) -> None:
        """Log test images, all metrics and, if requested, the model."""
        import wandb

        self._run.summary["results"] = {
            split: dict(metrics) for split, metrics in results.metrics.items()
        }
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

        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=int(failed))
            wandb.teardown()

    def _log(self, values: Mapping[str, Any], moment: Moment) -> None:
        self._run.log({**values, "epoch": moment.epoch, STEP: moment.step})


def _start(run: RunFacts, run_id: str, mode: Any) -> Any:
    import wandb

    settings, offline = wandb.setup().settings, mode in LOCAL_MODES
    return wandb.init(
        project=settings.project or PROJECT,
        name=run.name,
        id=run_id,
        config=dict(run.config),
        mode=mode,
        # Offline, W&B ignores it with a warning, and the id alone joins the parts of a run.
        resume=None if offline else "allow",
        settings=wandb.Settings(
            silent=offline or settings.silent,
            finish_timeout=settings.finish_timeout or FINISH_SECONDS,
        ),
    )


def choose_mode() -> str:
    """Return the mode of W&B's own settings, or offline if W&B would ask for a login."""
    import wandb

    settings = wandb.setup().settings
    asked = os.environ.get("WANDB_MODE")
    mode = str(asked or settings.mode)
    if mode in LOCAL_MODES:
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

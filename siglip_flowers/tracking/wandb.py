"""W&B: online where somebody is logged in, else offline, and never with a prompt."""

import inspect
import logging
import netrc
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from siglip_flowers.tracking.tracker import (
    FinalResults,
    RunFacts,
    Tracker,
    TrainerView,
    name_values,
)

logger = logging.getLogger(__name__)

PROJECT = "siglip_flowers"
STEP = "global_step"
# Modes that need nobody to be logged in.
LOCAL_MODES = ("offline", "dryrun", "disabled")
# How long the end of a run waits for its upload; W&B itself would wait for ever.
FINISH_SECONDS = 600.0


class WandbTracker(Tracker):
    """A run of W&B; its files are below ``wandb/`` of the working directory, or ``WANDB_DIR``.

    Args:
        log_model: Upload the kept model as an artifact.
    """

    def __init__(self, *, log_model: bool) -> None:
        self._log_model = log_model
        self._run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or go on with the one of this id; offline where online fails."""
        import wandb

        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": run.name,
            "id": run_id or uuid.uuid4().hex[:8],
            "config": dict(run.config),
            "settings": _limit_finish(),
        }
        mode: Any = choose_mode()
        if mode not in LOCAL_MODES:
            # Offline it is ignored, with a warning; the id alone joins the parts there.
            options["resume"] = "allow"
        try:
            self._run = wandb.init(mode=mode, **options)
        except Exception as error:
            if mode in LOCAL_MODES:
                raise
            logger.warning("W&B is not to be reached (%s); the run is kept offline.", error)
            options.pop("resume")
            self._run = wandb.init(mode="offline", **options)
        self._run.define_metric(STEP, hidden=True)
        # W&B's own step may not go back, as a resumed run does.
        self._run.define_metric("*", step_metric=STEP)
        return self._run.id

    def log(self, logs: Mapping[str, float], view: TrainerView) -> None:
        """Log figures as ``SPLIT/NAME``."""
        values = {
            name if split is None else f"{split}/{name}": value
            for name, split, value in name_values(logs)
        }
        if values:
            self._log(values, view)

    def finish(self, results: FinalResults, view: TrainerView) -> None:
        """Log the test figures and images, and the model where asked for."""
        import wandb

        self._log({f"test/{name}": value for name, value in results.metrics["test"].items()}, view)
        self._run.summary["kept"] = {
            split: dict(metrics) for split, metrics in results.metrics.items()
        }
        table = wandb.Table(columns=["image", "true", "predicted", "confidence", "right"])
        for image, true, predicted, confidence in results.examples:
            logged = wandb.Image(image.convert("RGB"))
            table.add_data(logged, true, predicted, confidence, true == predicted)
        images = {"examples": table, "confusion_matrix": wandb.Image(results.confusion)}
        self._log(images, view)
        if self._log_model:
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            artifact.add_dir(str(results.model_dir))
            self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """End the run.

        Raises:
            TimeoutError: What is left was not uploaded in time; it stays on the disk.
        """
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError as error:
            raise TimeoutError(
                f"the upload did not end in time; 'wandb sync {Path(run.dir).parent}' uploads the "
                "rest later"
            ) from error

    def _log(self, values: Mapping[str, Any], view: TrainerView) -> None:
        state = view.state
        self._run.log({**values, "epoch": state.epoch or 0.0, STEP: state.global_step})


def choose_mode() -> str:
    """Return the mode of W&B's own settings, or offline where it would ask for a login."""
    import wandb

    settings = wandb.setup().settings
    asked = os.environ.get("WANDB_MODE")
    mode = str(asked or settings.mode)
    if mode in LOCAL_MODES or _is_logged_in(settings):
        return mode
    if asked:
        logger.warning(
            "WANDB_MODE is %s, but nobody is logged in to W&B at %s; the run is kept offline. Run "
            "'wandb login' or set WANDB_API_KEY.",
            asked,
            settings.base_url,
        )
    return "offline"


def _is_logged_in(settings: Any) -> bool:
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        try:
            return bool(wandb.login(prompt=False, verify=False))
        except wandb.Error:
            # A key that is none.
            return False
    # Versions that cannot say it without asking keep the key by the server's host and port.
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _limit_finish() -> Any:
    """Return settings that end the wait for an upload, unless the user's have a time."""
    import wandb

    if not {"finish_timeout", "finish_timeout_raises"} <= wandb.Settings.model_fields.keys():
        # A version that cannot.
        return None
    seconds = wandb.setup().settings.finish_timeout or FINISH_SECONDS
    return wandb.Settings(finish_timeout=seconds, finish_timeout_raises=True)

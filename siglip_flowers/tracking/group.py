"""All trackers of a run: one fails, the others and the training go on."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from siglip_flowers.base.files import write_json
from siglip_flowers.tracking.tracker import (
    FinalResults,
    RunFacts,
    Tracker,
    TrainerView,
)

logger = logging.getLogger(__name__)

IDS_FILE = "trackers.json"


class Trackers(TrainerCallback):
    """Tells every tracker what the Trainer logs.

    A tracker that raises is named in one warning and left out from then on.

    Args:
        trackers: By name; none on any process but the main one.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._active = dict(trackers)
        self._ids: dict[str, str] = {}
        self._view: TrainerView | None = None

    def open(self, run: RunFacts) -> None:
        """Start the trackers' runs, or resume those whose ids :meth:`load` found."""
        # Also of those that fail today: the next checkpoint must not forget them.
        known = dict(self._ids)

        def start(name: str, tracker: Tracker) -> None:
            self._ids[name] = tracker.open(run, known.get(name))

        self._tell_each(start)

    def save(self, checkpoint: Path) -> None:
        """Write the ids of the runs into a checkpoint."""
        if self._ids:
            write_json(checkpoint / IDS_FILE, self._ids)

    def load(self, checkpoint: Path) -> None:
        """Read the ids of the runs; those of open runs stay."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            # A run without trackers has none.
            path = checkpoint / IDS_FILE
            self._ids = dict(json.loads(path.read_text(encoding="utf-8"))) | self._ids

    def finish(self, results: Callable[[], FinalResults]) -> None:
        """Hand over what the kept weights achieve; it is put together only where it is wanted."""
        if self._active and self._view is not None:
            view, found = self._view, results()
            self._tell_each(lambda _, tracker: tracker.finish(found, view))

    def close(self, *, failed: bool) -> None:
        """End the runs."""
        self._tell_each(lambda _, tracker: tracker.close(failed=failed))
        self._active = {}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the Trainer's state: heads that are solved for take no step."""
        self._view = TrainerView(args, state, control)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Tell every tracker that training begins."""
        view = self._view = TrainerView(args, state, control)
        self._tell_each(lambda _, tracker: tracker.begin(view, model))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell every tracker what was logged."""
        view = self._view = TrainerView(args, state, control)
        row = dict(logs or {})
        self._tell_each(lambda _, tracker: tracker.log(row, view))

    def _tell_each(self, act: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                act(name, tracker)
            except Exception as error:
                # Whatever it is, it is not worth the training.
                kind = type(error).__name__
                logger.warning("%s failed (%s: %s); the run goes on without it.", name, kind, error)
                del self._active[name]
                with contextlib.suppress(Exception):
                    tracker.close(failed=True)

"""Find the model that a command is to use."""

import logging
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.run_dir import MODEL_DIR

logger = logging.getLogger(__name__)


def find_model(model: str | None, results: Path = Path("results")) -> str:
    """Return the model directory or Hub id to use.

    Raises:
        InputError: No model was named and none lies under ``results``.
    """
    if model is not None:
        inner = Path(model) / MODEL_DIR
        return str(inner) if (inner / "config.json").is_file() else model
    found = [
        path.parent
        for path in (
            results / MODEL_DIR / "config.json",
            *results.glob(f"*/{MODEL_DIR}/config.json"),
        )
        if path.is_file()
    ]
    if not found:
        raise InputError(
            f"There is no model under {results}/; train one with 'accelerate launch train.py', or "
            "name one with --model."
        )
    newest = max(found, key=lambda path: (path / "config.json").stat().st_mtime)
    if len(found) > 1:
        logger.warning("%d models under %s/; taking the newest, %s.", len(found), results, newest)
    return str(newest)

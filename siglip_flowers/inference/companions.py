"""Files that lie beside a model's weights, in its directory or on the Hub."""

import os
from pathlib import Path

from transformers.utils import cached_file


def find_sidecar_file(model: str | os.PathLike[str], name: str) -> Path | None:
    """Return the path of a model's file of this name, or None where it has none."""
    path = cached_file(
        os.fspath(model),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)

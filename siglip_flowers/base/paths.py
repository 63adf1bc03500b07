"""Names of models and data: whether one is a path or a Hub id, and what lies there."""

import contextlib
import math
import os
import re
import threading
import time
from pathlib import Path
from typing import NoReturn

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import CONFIG_FILE, METRICS_FILE, MODEL_DIR
from siglip_flowers.base.text import is_hub_id

# How long the Hub may take to answer before its cache alone is used, and how long that counts.
HUB_SECONDS, ANSWER_SECONDS = 3.0, 60.0
OFFLINE_WAYS = (
    "Check the name; offline, pass --data_dir with local images, or use --data_source procedural."
)
# As the client reads its variables.
TRUE_WORDS = ("1", "ON", "YES", "TRUE")

# When the Hub was asked last, and why it did not answer, by its address.
_asked: dict[str, tuple[float, str]] = {}


def is_path(name: str) -> bool:
    """Return whether a name is a path, which is never looked up on the Hub.

    It is one if it starts as a path does, has a backslash or several slashes, or starts with an
    existing directory.
    """
    return (
        re.match(r"\.{0,2}/|\.{1,2}$|~|[A-Za-z]:", name) is not None
        or "\\" in name
        or name.count("/") > 1
        or os.path.isdir(name.split("/")[0])
    )


def is_url(source: object) -> bool:
    """Return whether this is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def find_nearest(path: Path) -> Path:
    """Return the path itself if it is a directory, or the nearest directory above it."""
    absolute, here = Path(os.path.abspath(path.expanduser())), Path.cwd()
    nearest = next(each for each in (absolute, *absolute.parents) if each.is_dir())
    if nearest == absolute:
        return path
    return nearest.relative_to(here) if here in nearest.parents else nearest


def describe_missing(what: str, name: str | Path) -> str:
    """Return a sentence about a path that does not exist, with the nearest directory that does."""
    nearest = find_nearest(Path(name))
    return f"{what} {name} does not exist; the nearest existing directory is {nearest}."


def enter_run(name: str) -> str:
    """Return the model of a run if the name is that of a run's directory, else the name itself.

    "." and ".." become absolute: data of a run are found beside its model, by the parent's name.
    """
    if name and not name.strip("./"):
        name = os.path.abspath(name)
    inner = Path(name) / MODEL_DIR
    return str(inner) if (inner / "config.json").is_file() else name


def find_run(model: str) -> Path | None:
    """Return the directory of the run that a model is of, None if it is in none."""
    directory = Path(model)
    is_inside = directory.name == MODEL_DIR and (directory.parent / CONFIG_FILE).is_file()
    return directory.parent if is_inside else None


def is_local_model(name: str) -> bool:
    """Return whether a name is that of a local model; else it is a Hub id.

    Raises:
        InputError: It is neither: a file, a directory without a model, or a path to nothing.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return True
    if path.is_file():
        raise InputError(f"The model {name} is a file; name the directory that contains it.")
    if path.is_dir() or is_path(name):
        _refuse_path(name)
    if not is_hub_id(name):
        raise InputError(
            f"The model {name!r} is neither a directory nor a Hub id. Check the name; a Hub id has "
            "the form ORG/NAME."
        )
    return False


def check_model(name: str) -> None:
    """Check that a model is there, before anything is loaded.

    Raises:
        InputError: See :func:`is_local_model`.
        RunError: It is a Hub id, the Hub cannot be reached, and the model is not in the cache.
    """
    if is_local_model(name):
        return
    # Half a second of imports, which local models do not need.
    from huggingface_hub import try_to_load_from_cache

    reason = prepare_hub()
    if reason and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise RunError(
            f"The model {name!r} could not be read from the Hugging Face Hub: {reason}, and the "
            "model is not in the cache. Check the network, or name a local directory."
        )


def check_dataset(name: str) -> None:
    """Check that a data set can be read, before ``datasets`` is imported.

    Raises:
        RunError: It is on the Hub, which cannot be reached, and not in a cache.
    """
    if Path(name).exists() or is_path(name):
        return
    # As in check_model.
    from huggingface_hub import constants

    reason = prepare_hub()
    kept = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    folders = [*kept.glob("*"), *Path(constants.HF_HUB_CACHE).glob("datasets--*")]
    # Both write slashes, capitals and hyphens in ways of their own.
    spelled = [re.sub(r"^datasets--|\W|_", "", folder.name).lower() for folder in folders]
    if reason and re.sub(r"\W|_", "", name).lower() not in spelled:
        raise RunError(
            f"The dataset {name!r} cannot be loaded ({reason}, and it is not in the cache). "
            f"{OFFLINE_WAYS}"
        )


def _refuse_path(name: str) -> NoReturn:
    path = Path(name)
    nearest = find_nearest(path)
    if any((nearest / file).is_file() for file in (CONFIG_FILE, METRICS_FILE)):
        raise InputError(
            f"The run in {nearest} has no weights: {nearest / MODEL_DIR} does not exist. Copy it "
            "there, or train the run again."
        )
    if nearest == path:
        raise InputError(
            f"The model directory {name} contains no config.json. Name a directory written by "
            "save_pretrained, or a model on the Hub."
        )
    raise InputError(describe_missing("The model directory", name))


def prepare_hub() -> str:
    """Return "" if the Hub answers, or why it does not; its client then uses the cache alone.

    The client would repeat each request for half a minute. A later call tries again, unless the
    Hub answered just before, or was waited for in vain a moment ago.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in TRUE_WORDS:
            return f"{variable} is set"
    when, reason = _asked.get(constants.ENDPOINT, (-math.inf, ""))
    if time.monotonic() - when < (HUB_SECONDS if reason else ANSWER_SECONDS):
        constants.HF_HUB_OFFLINE = bool(reason)
        return reason
    constants.HF_HUB_OFFLINE = False
    answers = []

    def ask() -> None:
        # Whatever the reason is, the client would fail for it too.
        with contextlib.suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS))

    # Looking up a name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    constants.HF_HUB_OFFLINE = not answers
    reason = "" if answers else f"{constants.ENDPOINT} cannot be reached"
    _asked[constants.ENDPOINT] = (time.monotonic(), reason)
    return reason

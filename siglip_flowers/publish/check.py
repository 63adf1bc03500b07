"""See that files to be published classify as the run recorded, before anyone else does."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data import image_ids, load_data
from siglip_flowers.data.pixels.decoding import decode_rgb
from siglip_flowers.publish.finished import FinishedRun, Predictions

REPLAY = Path(__file__).with_name("replay.py")
# Another device, number format or version of torch moves a probability by less than this.
TOLERANCE = 0.005


def load_test_split(data_arguments: DataArguments) -> datasets.Dataset:
    """Load the test split that a run was measured on.

    Raises:
        InputError, RunError: The data cannot be had; says how to name where they lie.
    """
    try:
        return load_data(data_arguments).splits["test"]
    except (InputError, RunError) as error:
        raise type(error)(
            f"The test images, which the published files are to be tried on, cannot be loaded: "
            f"{str(error).rstrip('.')}; --data_dir says where the run's data lie on this machine."
        ) from error


def check_predictions(
    directory: Path, run: FinishedRun, rows: datasets.Dataset, *, native: bool, samples: int
) -> int:
    """Classify test images with the files of a directory and compare with the record.

    The directory is loaded by the pipeline of transformers, in a process that does not know this
    package.

    Args:
        directory: What is to be published.
        run: The run that it was made of.
        rows: The test split.
        native: Whether the directory needs no code of its own.
        samples: Number of images, spread over the split.

    Returns:
        The number of images that were compared.

    Raises:
        RunError: The data are others, the directory cannot be loaded, or it classifies otherwise.
    """
    recorded = run.predictions
    _check_same_images(rows, recorded)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(samples, len(rows))).astype(int)).tolist()
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_") as place:
        paths = []
        for row in chosen:
            paths.append(Path(place) / f"{row}.png")
            decode_rgb(rows[row]["image"]).save(paths[-1])
        answers = _replay(directory, paths, native=native, place=Path(place))
    for row, answer in zip(chosen, answers, strict=True):
        _compare(recorded.ids[row], recorded.top[row], answer)
    return len(chosen)


def _check_same_images(rows: datasets.Dataset, recorded: Predictions) -> None:
    names = rows.features["label"].names
    labels = [names[label] for label in rows["label"]]
    if image_ids(rows) != recorded.ids or labels != recorded.label_names:
        raise RunError(
            f"The {len(rows)} test images found are not the {len(recorded.ids)} that the run was "
            "measured on; give the data options that the run was trained with."
        )


def _replay(
    directory: Path, paths: Sequence[Path], *, native: bool, place: Path
) -> list[dict[str, float]]:
    request = {
        "model": str(directory.resolve()),
        "images": [str(path) for path in paths],
        "top_k": 5,
        "trust_remote_code": not native,
    }
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "RANK")
    }
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
    done = subprocess.run(
        # Without the script's own folder, whose modules have names of their own.
        [sys.executable, "-P", str(REPLAY)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1].rstrip(".")
        raise RunError(
            f"The files that would be published cannot be used by transformers alone ({reason}); "
            "nothing was pushed."
        )
    answers: list[dict[str, float]] = json.loads(done.stdout)
    return answers


def _compare(image_id: str, expected: dict[str, float], found: dict[str, float]) -> None:
    """Raise RunError unless the same class comes first and the probabilities agree."""
    first, answered = max(expected, key=expected.__getitem__), max(found, key=found.__getitem__)
    gaps: dict[str, Any] = {
        name: abs(share - found[name]) for name, share in expected.items() if name in found
    }
    tied = answered in expected and expected[first] - expected[answered] <= TOLERANCE
    if (first != answered and not tied) or max(gaps.values(), default=1.0) > TOLERANCE:
        raise RunError(
            f"The files that would be published do not classify as the run recorded: image "
            f"{image_id} was {first!r} ({expected[first]:.3f}) and is now {answered!r} "
            f"({found[answered]:.3f}); nothing was pushed."
        )

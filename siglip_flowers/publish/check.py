"""Try files that are to be published: they must classify as the run recorded."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from siglip_flowers.base.errors import RunError
from siglip_flowers.data.rows import image_ids, read_images, select_undecoded
from siglip_flowers.evaluation.run import TOP_K
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.publish.finished import FinishedRun

# Another device, dtype or version of torch changes a probability by less than this.
TOLERANCE = 0.005
# For the card, and run by the check: loads a file as this package does.
LOAD_IMAGE = """\
import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.jpg"))
if image.mode.startswith("I"):  # 16 bits per pixel
    image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
image = image.convert("RGB")
"""
# Files that these lines open with other pixels, for the card.
NOT_LOADED = (
    "They differ from the training on gray images of more than 8 bits, except those of 16 bits "
    "with a sample of at least 4096 and without a transparent value."
)


# Classifies files as a machine without this package would, loaded by the card's lines and by the
# pipeline itself; reads and writes JSON.
REPLAY = """\
import json, sys
from transformers import pipeline

request = json.load(sys.stdin)
classifier = pipeline(
    "image-classification",
    model=request["model"],
    dtype="float32",
    trust_remote_code=request["trust_remote_code"],
)

def load(path):
    names = {}
    exec(request["load_image"].replace('"image.jpg"', repr(path)), names)
    return names["image"]

def classify(image):
    return {row["label"]: row["score"] for row in classifier(image, top_k=request["top_k"])}

def classify_file(path):
    try:
        return classify(path)
    except OSError:  # a format that the pipeline does not know, such as HEIC
        return {}

answers = {
    "loaded": [classify(load(path)) for path in request["loaded"]],
    "pipeline": [classify_file(path) for path in request["files"]],
}
json.dump(answers, sys.stdout)
"""


def check_published(
    directory: Path, run: FinishedRun, rows: datasets.Dataset, *, native: bool, samples: int
) -> dict[str, float]:
    """Classify files of test images with a published directory and compare with the record.

    The directory is loaded by the pipeline of transformers in a process without this package. Files
    of unusual kinds, made from a test image, are compared with this package.

    Args:
        directory: The files to be published.
        run: The run that they were made from.
        rows: The test split.
        native: Whether the directory has no code of its own.
        samples: Number of images, spread over the split and at most all.

    Returns:
        The largest difference of a score by kind of file if the pipeline opens the file itself, for
        kinds where it is more than ``TOLERANCE``.

    Raises:
        RunError: The data are others, the directory cannot be loaded, or it classifies otherwise.
    """
    recorded = run.predictions
    names = rows.features["label"].names
    found = {"image_id": image_ids(rows), "label_name": [names[label] for label in rows["label"]]}
    if any(recorded[name].tolist() != values for name, values in found.items()):
        raise RunError(
            f"The {len(rows)} test images found are not the {len(recorded)} that the run was "
            "measured on; use the data options of the training."
        )
    chosen = np.linspace(0, len(rows) - 1, samples).astype(int).tolist()
    undecoded = select_undecoded(rows)
    ours = SiglipImageClassifier.from_pretrained(directory, dtype="float32", threshold=None)
    # Kind of file, path, path of what the card's lines open, and what the answer must be.
    cases: list[tuple[str, Path, Path, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_") as name:
        place = Path(name)
        for row in chosen:
            value = undecoded[row]["image"]
            path = place / f"{row}{Path(value['path'] or '').suffix}"
            content = value["bytes"]
            path.write_bytes(Path(value["path"]).read_bytes() if content is None else content)
            # The lines open gray images of some depths otherwise: see NOT_LOADED.
            decoded = place / f"{row}_decoded.png"
            read_images(rows, [row])[0].save(decoded, compress_level=1)
            top = recorded.loc[row, ["top_names", "top_probabilities"]]
            cases.append(("test images", path, decoded, dict(zip(*top, strict=True))))
        for kind, path in write_odd_files(read_images(rows, chosen[:1])[0], place).items():
            (answer,) = ours.stream([path], TOP_K)
            expected = {each["label"]: each["score"] for each in answer.results}
            cases.append((kind, path, path, expected))
        files, loaded = ([str(case[at]) for case in cases] for at in (1, 2))
        answers = _replay(directory, {"files": files, "loaded": loaded}, native, place)
    differences: dict[str, float] = {}
    for number, (kind, path, _, expected) in enumerate(cases):
        title = f"image {recorded['image_id'][int(path.stem)]}" if number < len(chosen) else kind
        compare_answers(title, expected, answers["loaded"][number])
        difference = measure_difference(expected, answers["pipeline"][number])
        if difference > TOLERANCE:
            differences[kind] = max(difference, differences.get(kind, 0.0))
    return differences


def write_odd_files(image: Image.Image, directory: Path) -> dict[str, Path]:
    """Write an image as files of unusual kinds; return their paths by kind."""
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "an EXIF orientation": (image, "turned.png", {"exif": turned}),
        "transparency": (transparent, "transparent.png", {}),
        "a palette": (image.quantize(16), "palette.png", {}),
        "16-bit gray": (deep, "deep.png", {}),
        "an extreme aspect": (image.resize((2000, 20)), "wide.png", {}),
        "CMYK": (image.convert("CMYK"), "cmyk.tif", {}),
        "animation": (image, "animated.gif", {"save_all": True, "append_images": [transparent]}),
    }
    for changed, name, options in files.values():
        changed.save(directory / name, **options)
    return {kind: directory / name for kind, (_, name, _) in files.items()}


def _replay(
    directory: Path, paths: Mapping[str, list[str]], native: bool, place: Path
) -> dict[str, list[dict[str, float]]]:
    """Classify files in another process; return the answers of ``REPLAY``."""
    request = {
        **paths,
        "model": str(directory.resolve()),
        "top_k": TOP_K,
        "trust_remote_code": not native,
        "load_image": LOAD_IMAGE,
    }
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "RANK")
    }
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", REPLAY],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1].rstrip(".")
        raise RunError(
            f"transformers cannot use the files without this package ({reason}); nothing was "
            "pushed."
        )
    answers: dict[str, list[dict[str, float]]] = json.loads(done.stdout)
    return answers


def measure_difference(expected: Mapping[str, float], found: Mapping[str, float]) -> float:
    """Return the largest difference of a score among the classes of both answers."""
    gaps = [abs(share - found[name]) for name, share in expected.items() if name in found]
    return max(gaps, default=1.0)


def compare_answers(title: str, expected: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Raise RunError unless the same class comes first and the scores agree."""
    first, answered = max(expected, key=expected.__getitem__), max(found, key=found.__getitem__)
    tied = answered in expected and expected[first] - expected[answered] <= TOLERANCE
    if (first != answered and not tied) or measure_difference(expected, found) > TOLERANCE:
        raise RunError(
            f"The files do not classify as the run recorded: {title} was {first!r} "
            f"({expected[first]:.3f}) and is now {answered!r} ({found[answered]:.3f}); nothing was "
            "pushed."
        )

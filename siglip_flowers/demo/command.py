"""Try a classifier in the browser: ``siglip-flowers demo``."""

import contextlib
import importlib.util
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import METRICS_FILE, read_json
from siglip_flowers.base.paths import find_run
from siglip_flowers.base.text import shorten_description
from siglip_flowers.commands.entry import Command, run_command
from siglip_flowers.commands.models import follow_run, names_source
from siglip_flowers.config import DataArguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from PIL import Image

    from siglip_flowers.data.splits import ClassificationData
    from siglip_flowers.inference.classifier import SiglipImageClassifier

COMMAND = Command(
    "siglip-flowers demo",
    "Open a page in the browser to try a classifier on images.",
    (DemoArguments, DataArguments),
    DATA_RULES,
    ("siglip-flowers demo --model results/my-run", "siglip-flowers demo --neighbors 0 --port 8080"),
)

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and serve the page until Ctrl-C."""
    return run_command(COMMAND, _serve, argv, parse=_parse)


def _parse(argv: list[str]) -> tuple[DemoArguments, DataArguments, bool]:
    """Return the options, and whether the command line names data."""
    options, given = COMMAND.parse(argv)
    data_arguments = follow_run(options, given, partial(COMMAND.parse, argv))
    options.check_address()
    if importlib.util.find_spec("gradio") is None:
        raise InputError("The page requires gradio; run pip install 'siglip_flowers[demo]'.")
    return options, data_arguments, names_source(given)


def _serve(parsed: tuple[DemoArguments, DataArguments, bool]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data.sources.load import load_data
        from siglip_flowers.demo.answer import Explainer, TrainingImages
        from siglip_flowers.demo.page import serve_page
        from siglip_flowers.evaluation.features import load_features
        from siglip_flowers.evaluation.predict import PassOptions
        from siglip_flowers.inference.classifier import SiglipImageClassifier
        from siglip_flowers.model.loading import load_image_processor

    options, data_arguments, named = parsed
    model_dir = str(options.model)
    classifier = SiglipImageClassifier.from_pretrained(model_dir, dtype=options.dtype)
    processor = load_image_processor(model_dir)
    data, images = None, None
    # Without data of its run, the default would be to download Flowers102.
    if options.neighbors and (named or find_run(model_dir)):
        print("Loading the training images (--neighbors 0 starts without them).", flush=True)
        try:
            data = load_data(data_arguments)
        except (InputError, RunError) as error:
            if named:
                raise
            logger.warning("The page has no training images to show: %s", error)
    if data is not None:
        model, train = classifier.engine.model, data.splits["train"]
        dtype = str(classifier.engine.dtype).removeprefix("torch.")
        pass_options = PassOptions(64, data_arguments, dtype)
        features = load_features(model, processor, train, pass_options)[model.config.pooling]
        images = TrainingImages(train, features)
        dataset: str | None = shorten_description(data.description)
        examples = _choose_examples(data)
    else:
        dataset, examples = read_dataset(model_dir), read_examples(model_dir, classifier)
    serve_page(Explainer(classifier, processor, options, images), options, dataset, examples)


def _choose_examples(data: "ClassificationData") -> list[tuple[str, "Image.Image"]]:
    """Return a test image of each of the first classes, with the name of the class."""
    # See _serve.
    from siglip_flowers.data.rows import get_labels, read_images
    from siglip_flowers.inference.sidecars import EXAMPLE_FILES

    labels = get_labels(data.splits["test"]).tolist()
    rows = [labels.index(label) for label in sorted(set(labels))[: len(EXAMPLE_FILES)]]
    names = [data.class_names[labels[row]] for row in rows]
    return list(zip(names, read_images(data.splits["test"], rows), strict=True))


def read_examples(
    model: str, classifier: "SiglipImageClassifier"
) -> list[tuple[str, "Image.Image"]]:
    """Return the images that were published with a model, with the names of their classes."""
    # See _serve.
    from siglip_flowers.data.pixels.decoding import ImageError, decode_rgb
    from siglip_flowers.inference.sidecars import EXAMPLE_FILES, find_sidecar_file

    paths = [find_sidecar_file(model, name) for name in EXAMPLE_FILES]
    # There may be fewer classes than files.
    found = zip(classifier.class_names, paths, strict=False)
    # The page works without them.
    with contextlib.suppress(ImageError):
        return [(name, decode_rgb(path)) for name, path in found if path is not None]
    return []


def read_dataset(model: str) -> str | None:
    """Return the name of the data set in the metrics of a model's run, if they are there."""
    # See _serve.
    from siglip_flowers.inference.sidecars import find_sidecar_file

    inside = Path(model).parent / METRICS_FILE
    path = inside if inside.is_file() else find_sidecar_file(model, METRICS_FILE)
    try:
        metrics = {} if path is None else read_json(path)
        return shorten_description(metrics["data"]["description"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Another program may have written a file of that name.
        return None

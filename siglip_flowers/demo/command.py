"""Try a classifier in the browser: ``siglip-flowers demo``."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import CONFIG_FILE
from siglip_flowers.base.text import shorten_description
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import SOURCE_OPTIONS, find_model, parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.data import ClassificationData

PROG = "siglip-flowers demo"
DESCRIPTION = "Open a page in the browser to try a classifier on images."
KINDS = (DemoArguments, DataArguments)
EXAMPLES = 4

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and serve the page until Ctrl-C."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _serve(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    options, _ = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    find_model(options.model)
    options.check_address()
    if importlib.util.find_spec("gradio") is None:
        raise InputError("The page requires gradio; run pip install 'siglip_flowers[demo]'.")


def _serve(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data.rows import get_labels, read_images
        from siglip_flowers.demo.answer import Explainer, TrainingImages
        from siglip_flowers.demo.page import serve_page
        from siglip_flowers.evaluation.features import load_features
        from siglip_flowers.evaluation.predict import PassOptions
        from siglip_flowers.inference.classifier import SiglipImageClassifier
        from siglip_flowers.model.loading import load_image_processor

    options, data_arguments = parse_with_run_data(KINDS, argv, prog=PROG, description=DESCRIPTION)
    classifier = SiglipImageClassifier.from_pretrained(options.model, dtype=options.dtype)
    processor = load_image_processor(options.model)
    _, given = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    data = _load_data(options, data_arguments, given) if options.neighbors else None
    images, dataset, examples = None, None, []
    if data is not None:
        model, train, test = classifier.engine.model, data.splits["train"], data.splits["test"]
        dtype = str(classifier.dtype).removeprefix("torch.")
        passing = PassOptions(batch_size=64, dtype=dtype, data_arguments=data_arguments)
        features = load_features(model, processor, train, passing)[model.config.pooling]
        images = TrainingImages(train, features)
        dataset = shorten_description(data.description)
        # One image of each of the first classes.
        labels = get_labels(test).tolist()
        rows = [labels.index(label) for label in sorted(set(labels))[:EXAMPLES]]
        names = [data.class_names[labels[row]] for row in rows]
        examples = list(zip(names, read_images(test, rows), strict=True))
    explainer = Explainer(classifier, processor, options, images)
    serve_page(explainer, options, dataset, examples)


def _load_data(
    options: DemoArguments, data_arguments: DataArguments, given: DataArguments
) -> "ClassificationData | None":
    """Return the data of the model, or None if they are not available.

    Args:
        options: Has the model.
        data_arguments: The data options, by default those of the model's run.
        given: What the command line alone says: data that it names must be there.
    """
    # See _serve.
    from siglip_flowers.data import load_data

    named = any(getattr(given, name) is not None for name in SOURCE_OPTIONS[:3])
    # Without either, the default would be to download Flowers102.
    if not named and not (Path(str(options.model)).parent / CONFIG_FILE).is_file():
        return None
    try:
        return load_data(data_arguments)
    except (InputError, RunError) as error:
        if named:
            raise
        logger.warning("The page has no training images to show: %s", error)
        return None

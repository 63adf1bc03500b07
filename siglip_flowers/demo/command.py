"""Try a classifier in the browser: ``siglip-flowers demo``."""

import importlib.util
import logging
from pathlib import Path

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import CONFIG_FILE
from siglip_flowers.base.text import shorten_description
from siglip_flowers.commands.entry import Command, run_command
from siglip_flowers.commands.models import SOURCE_OPTIONS, parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    "siglip-flowers demo",
    "Open a page in the browser to try a classifier on images.",
    (DemoArguments, DataArguments),
    DATA_RULES,
    (
        "siglip-flowers demo --model results/my-run",
        "siglip-flowers demo --neighbors 0 --port 8080",
    ),
)
SHOWN_EXAMPLES = 4

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and serve the page until Ctrl-C."""
    return run_command(COMMAND, _serve, argv, parse=_parse)


def _parse(argv: list[str]) -> tuple[DemoArguments, DataArguments, bool]:
    """Return the options, and whether the command line names data."""
    options, data_arguments = parse_with_run_data(COMMAND, argv)
    options.check_address()
    if importlib.util.find_spec("gradio") is None:
        raise InputError("The page requires gradio; run pip install 'siglip_flowers[demo]'.")
    given = COMMAND.parse(argv)[1]
    named = any(getattr(given, name) is not None for name in SOURCE_OPTIONS[:3])
    return options, data_arguments, named


def _serve(parsed: tuple[DemoArguments, DataArguments, bool]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data import load_data
        from siglip_flowers.data.rows import get_labels, read_images
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
    data, images, dataset, examples = None, None, None, []
    # Without data of its run, the default would be to download Flowers102.
    if options.neighbors and (named or (Path(model_dir).parent / CONFIG_FILE).is_file()):
        try:
            data = load_data(data_arguments)
        except (InputError, RunError) as error:
            if named:
                raise
            logger.warning("The page has no training images to show: %s", error)
    if data is not None:
        model, train, test = classifier.engine.model, data.splits["train"], data.splits["test"]
        dtype = str(classifier.dtype).removeprefix("torch.")
        passing = PassOptions(batch_size=64, dtype=dtype, data_arguments=data_arguments)
        features = load_features(model, processor, train, passing)[model.config.pooling]
        images = TrainingImages(train, features)
        dataset = shorten_description(data.description)
        # One image of each of the first classes.
        labels = get_labels(test).tolist()
        rows = [labels.index(label) for label in sorted(set(labels))[:SHOWN_EXAMPLES]]
        names = [data.class_names[labels[row]] for row in rows]
        examples = list(zip(names, read_images(test, rows), strict=True))
    serve_page(Explainer(classifier, processor, options, images), options, dataset, examples)

"""Try a classifier in the browser: ``siglip-flowers demo``."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.run_dir import CONFIG_FILE
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import SOURCE_OPTIONS, find_model, parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.demo.address import check_port
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.demo.neighbors import TrainingImages
    from siglip_flowers.inference.classifier import SiglipImageClassifier

PROG = "siglip-flowers demo"
DESCRIPTION = "Open a page in the browser to try a classifier on images."
KINDS = (DemoArguments, DataArguments)

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and serve the page until Ctrl-C."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _serve(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    options, _ = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    find_model(options.model)
    check_port(options.host, options.port)
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "The page needs gradio, which is not installed; run pip install 'siglip_flowers[demo]'."
        )


def _serve(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.demo.answer import Explainer
        from siglip_flowers.demo.app import serve_page
        from siglip_flowers.inference.classifier import SiglipImageClassifier
        from siglip_flowers.model.loading import load_image_processor

    options, data = parse_with_run_data(KINDS, argv, prog=PROG, description=DESCRIPTION)
    classifier = SiglipImageClassifier.from_pretrained(options.model, dtype=options.dtype)
    processor = load_image_processor(options.model)
    images = None
    if options.neighbors:
        _, given = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
        named = any(getattr(given, name) is not None for name in SOURCE_OPTIONS[:3])
        # Without either, the default would be to download Flowers102.
        if named or (Path(options.model).parent / CONFIG_FILE).is_file():
            images = _find_images(classifier, processor, data, named)
    explainer = Explainer(
        classifier,
        processor,
        images=images,
        top_k=options.top_k,
        neighbors=options.neighbors,
        max_pixels=round(options.max_megapixels * 1e6),
    )
    serve_page(
        explainer,
        host=options.host,
        port=options.port,
        max_megabytes=options.max_megabytes,
        when_ready=lambda url: print(f"The page is at {url} (Ctrl-C ends it).", flush=True),
    )


def _find_images(
    classifier: "SiglipImageClassifier", processor: Any, data: DataArguments, named: bool
) -> "TrainingImages | None":
    """Return the training images, or None where the model's own data are not there.

    Args:
        classifier: The classifier, by which they are compared.
        processor: Its image processor.
        data: Where they come from.
        named: Whether the command line names the source, which must be there then.
    """
    # See _serve.
    from siglip_flowers.data import load_data
    from siglip_flowers.demo.neighbors import encode_training_images

    try:
        rows = load_data(data).splits["train"]
    except (InputError, RunError) as error:
        if named:
            raise
        logger.warning("The page has no training images to show: %s", error)
        return None
    return encode_training_images(classifier, processor, rows, data)

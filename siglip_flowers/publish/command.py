"""Publish a finished run to the Hub: ``siglip-flowers publish results/my-run``."""

import sys
from pathlib import Path
from typing import Any

from siglip_flowers.base.files import CONFIG_FILE
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import read_data_defaults
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.publish.options import PublishArguments
from siglip_flowers.runtime.preemption import defer_signals

PROG = "siglip-flowers publish"
DESCRIPTION = "Publish a finished run to the Hugging Face Hub: model, card, metrics and plots."
EXAMPLES = (
    f"{PROG} results/my-run --hub_model_id my-team/siglip-flowers",
    f"{PROG} results/my-run --output_dir to-be-published",
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, check the files, and push them."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, _publish, parse=lambda: _parse(given), resumes=True)


def _parse(argv: list[str]) -> tuple[PublishArguments, DataArguments]:
    kinds = (PublishArguments, DataArguments)
    about: dict[str, Any] = {"prog": PROG, "description": DESCRIPTION, "examples": EXAMPLES}
    options, given = parse_arguments(kinds, argv, **about)
    # The data are those of the run unless the command line names others.
    defaults = read_data_defaults(Path(options.run) / CONFIG_FILE, given)
    return parse_arguments(kinds, argv, defaults=defaults, rules=DATA_RULES, **about)


def _publish(parsed: tuple[PublishArguments, DataArguments]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.publish.publish import check_hub_access, publish_run

    options, data_arguments = parsed
    if options.hub_model_id is not None:
        check_hub_access(options.hub_model_id)
    publish_run(options, data_arguments, print)

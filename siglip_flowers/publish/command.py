"""Publish a finished run to the Hub: ``siglip-flowers publish results/my-run``."""

from pathlib import Path

from siglip_flowers.base.files import CONFIG_FILE
from siglip_flowers.commands.entry import Command, run_command
from siglip_flowers.commands.models import read_data_defaults
from siglip_flowers.config import DataArguments
from siglip_flowers.config.rules import DATA_RULES, requires
from siglip_flowers.publish.options import HubArguments, PublishArguments
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    "siglip-flowers publish",
    "Publish a finished run to the Hugging Face Hub: model, card, metrics and plots.",
    (PublishArguments, DataArguments),
    (*DATA_RULES, requires("hub_model_id", "--hub_private_repo", HubArguments)),
    (
        "siglip-flowers publish results/my-run --hub_model_id my-team/siglip-flowers",
        "siglip-flowers publish results/my-run --output_dir to-be-published",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, check the files, and push them."""
    return run_command(COMMAND, _publish, argv, parse=_parse, resumes=True)


def _parse(argv: list[str]) -> tuple[PublishArguments, DataArguments]:
    options, given = COMMAND.parse(argv)
    # The data are those of the run unless the command line names others.
    defaults = read_data_defaults(Path(options.run) / CONFIG_FILE, given)
    return options, COMMAND.parse(argv, defaults)[1]


def _publish(parsed: tuple[PublishArguments, DataArguments]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.publish.publish import check_hub_access, publish_run

    options, data_arguments = parsed
    if options.hub_model_id is not None:
        check_hub_access(options.hub_model_id)
    publish_run(options, data_arguments)

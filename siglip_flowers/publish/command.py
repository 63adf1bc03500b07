"""Publish a finished run to the Hub: ``python -m siglip_flowers.publish results/my-run``."""

import dataclasses
import sys
from pathlib import Path

from siglip_flowers.base.run_dir import CONFIG_FILE
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import read_data_defaults
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import check_command_line, parse_arguments
from siglip_flowers.publish.options import PublishArguments
from siglip_flowers.runtime.preemption import defer_signals

PROG = "siglip-flowers publish"
DESCRIPTION = "Publish a finished run to the Hugging Face Hub: model, card, metrics and plots."
KINDS = (PublishArguments, DataArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, check the files, and push them."""
    given = name_run(sys.argv[1:] if argv is None else argv)
    return run_command(PROG, lambda: _publish(given), check=lambda: _check(given), goes_on=True)


def name_run(argv: list[str]) -> list[str]:
    """Put ``--run`` before the one word that belongs to no option."""
    flags = {
        f"--{item.name}"
        for kind in KINDS
        for item in dataclasses.fields(kind)
        if item.type in (bool, bool | None)
    }
    for index, word in enumerate(argv):
        before = argv[index - 1] if index else ""
        takes_word = before.startswith("--") and "=" not in before
        flag = before.replace("-", "_").replace("__", "--", 1) in flags
        if not word.startswith("-") and (not takes_word or (flag and "/" in word)):
            return [*argv[:index], "--run", *argv[index:]]
    return argv


def _check(argv: list[str]) -> None:
    check_command_line(KINDS, argv, prog=PROG, description=DESCRIPTION)


def _publish(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.publish.finished import check_finished
        from siglip_flowers.publish.hub import check_hub_access
        from siglip_flowers.publish.publish import publish_run

    options, given = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    check_finished(Path(options.run))
    if options.hub_model_id is not None:
        check_hub_access(options.hub_model_id)
    defaults = read_data_defaults(Path(options.run) / CONFIG_FILE, given)
    _, data_arguments = parse_arguments(
        KINDS, argv, prog=PROG, description=DESCRIPTION, defaults=defaults
    )
    publish_run(options, data_arguments, print)

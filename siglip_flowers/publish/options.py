"""Options of ``siglip-flowers publish``, and of ``train.py`` for pushing the finished run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import is_hub_id
from siglip_flowers.config.fields import Options, common, directory, option, positive
from siglip_flowers.config.rules import Rule, requires


def check_hub_model_id(name: str, value: str | None) -> None:
    """Raise InputError unless the value can be the name of a model on the Hub, or is None."""
    if value is not None and not is_hub_id(value):
        raise InputError(f"--{name} is {value!r}; use ORG/NAME, such as my-team/my-model.")


@dataclass
class HubArguments(Options):
    """The model on the Hub, and what is published with it."""

    hub_model_id: str | None = option(
        None, "The model on the Hub, ORG/NAME; created if missing.", check_hub_model_id
    )
    hub_private_repo: bool | None = option(
        None, "Make a new model private; default: the organization's setting."
    )
    license: str | None = option(
        None, "License of the published model, as the Hub names it; default: not stated."
    )
    language: str | None = option(
        None, "Language of the class names, as an ISO 639 code; default: not stated."
    )
    example_images: bool = option(
        False, "Publish thumbnails of a few test images, which the model's page shows as examples."
    )


@dataclass
class PushArguments(HubArguments):
    """Publish the run to the Hugging Face Hub when the training is finished."""

    push_to_hub: bool = common(False, "Publish the finished run to the Hugging Face Hub.")


EXTENDS = {"train": PushArguments}
# Their defaults by name.
HUB_OPTIONS = {field.name: field.default for field in dataclasses.fields(HubArguments)}
RULES = (
    Rule(
        lambda options: options.push_to_hub and options.hub_model_id is None,
        "--push_to_hub requires the name of the model on the Hub; add --hub_model_id ORG/NAME.",
        "--push_to_hub true",
    ),
    requires(
        "push_to_hub",
        "--hub_model_id a/b --hub_private_repo --license mit --language en --example_images",
        PushArguments,
    ),
)


@dataclass
class PublishArguments(HubArguments):
    """Which run is published, where, and how it is checked before."""

    run: str | None = option(None, "The directory of a finished run.", positional=True, path=True)
    output_dir: str | None = option(
        None,
        "Write the files here; they are pushed only with --hub_model_id.",
        directory,
        path="output",
    )
    check_samples: int = option(
        32, "Test images that the published files must classify as recorded.", positive
    )

    @property
    def model_name(self) -> str:
        """The last part of the model's name."""
        return Path(self.hub_model_id or str(self.output_dir)).name

    def __post_init__(self) -> None:
        if self.run is None:
            raise InputError("No run is given; name its directory, such as results/my-run.")
        if self.hub_model_id is None and self.output_dir is None:
            raise InputError(
                "Give --hub_model_id ORG/NAME to push, or --output_dir DIR to write the files only."
            )
        if self.output_dir is not None and Path(self.output_dir).exists():
            raise InputError(f"--output_dir {self.output_dir} exists; name a new directory.")
        super().__post_init__()

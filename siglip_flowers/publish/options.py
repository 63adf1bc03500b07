"""What is published to the Hugging Face Hub, and under which name."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_positive

# Of an organization or user, and of a model: the Hub's own rules.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_MODEL_ID = re.compile(f"{_NAME}/{_NAME}")
TOKEN_PLACES = "log in with 'hf auth login', or set HF_TOKEN"
# What the Trainer would do with its own pushes, which are not made here: name, its default.
_TRAINER_PUSHES = (
    ("hub_strategy", "every_save"),
    ("hub_always_push", False),
    ("hub_revision", None),
)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``ORG/NAME`` of a model or data set on the Hub."""
    return (
        _MODEL_ID.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def check_hub_model_id(name: str) -> None:
    """Raise InputError unless the name can be that of a model on the Hub."""
    if not is_hub_id(name):
        raise InputError(
            f"--hub_model_id is {name!r}; give ORG/NAME, of letters, digits, dots, dashes and "
            "underscores, such as my-team/siglip-flowers."
        )


def check_hub_options(options: Any) -> None:
    """Raise InputError unless the training options about the Hub can be followed.

    Args:
        options: Has the fields of ``transformers.TrainingArguments``, or none of those.
    """
    if getattr(options, "hub_token", None) is not None:
        raise InputError(
            "--hub_token is not taken, since a token has no place in a command line or a file; "
            f"{TOKEN_PLACES}."
        )
    for name, default in _TRAINER_PUSHES:
        value = getattr(options, name, default)
        # An enumeration of the library, by its value.
        value = getattr(value, "value", value)
        if value != default:
            raise InputError(
                f"--{name} {value} is not followed: what is pushed is the finished run, once; "
                "leave it out."
            )
    hub_model_id = getattr(options, "hub_model_id", None)
    if hub_model_id is not None:
        check_hub_model_id(hub_model_id)
    elif getattr(options, "push_to_hub", False):
        raise InputError("--push_to_hub needs the name to push to: --hub_model_id ORG/NAME.")


@dataclass
class PublishArguments:
    """Which run is published, where, and how it is checked before."""

    run: str | None = field(
        default=None,
        metadata={
            "help": "The directory of a finished run, such as results/my-run; may stand without "
            "the option's name."
        },
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "The model on the Hub: ORG/NAME; created if need be."}
    )
    hub_private_repo: bool | None = field(
        default=None,
        metadata={"help": "Whether a new model is private; left out, as the Hub does by itself."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Write what would be pushed to this new directory, and push only with "
            "--hub_model_id; nothing else is needed of the Hub."
        },
    )
    commit_message: str = field(
        default="Publish the classifier", metadata={"help": "Title of the commit on the Hub."}
    )
    check_samples: int = field(
        default=32,
        metadata={
            "help": "Images of the test split that the published files must classify as the run "
            "recorded."
        },
    )
    license: str = field(
        default="apache-2.0",
        metadata={
            "help": "The Hub's name of the license; the default is that of the released SigLIP "
            "checkpoints and of this package."
        },
    )
    language: str = field(
        default="en", metadata={"help": "Language of the class names: an ISO 639 code."}
    )

    def __post_init__(self) -> None:
        if self.run is None:
            raise InputError("There is no run to publish; name its directory: results/my-run.")
        if self.hub_model_id is None and self.output_dir is None:
            raise InputError(
                "Where to publish is missing; give --hub_model_id ORG/NAME, or --output_dir DIR to "
                "write the files without pushing them."
            )
        if self.hub_model_id is not None:
            check_hub_model_id(self.hub_model_id)
        if self.output_dir is not None and Path(self.output_dir).exists():
            raise InputError(
                f"--output_dir {self.output_dir} exists already; choose another or remove it."
            )
        check_positive("check_samples", self.check_samples)
        if not re.fullmatch(r"[a-z]{2,3}", self.language):
            raise InputError(f"--language is {self.language!r}; give an ISO 639 code, such as en.")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise InputError(
                f"--license is {self.license!r}; give the Hub's name of it, such as apache-2.0."
            )
        if not self.commit_message.strip():
            raise InputError("--commit_message is empty; leave it out or give a title.")

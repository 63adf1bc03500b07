"""The class names of Oxford Flowers102, and the texts that a SigLIP text tower reads."""

import re
import string
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import compose

SLOT = "{}"
# For data that are not flowers, whatever their classes are.
NEUTRAL_TEMPLATES = (
    *("a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.", "a photo of one {}."),
    *("a good photo of a {}.", "an image of a {}.", "a photo of my {}.", "{}."),
)
TEMPLATES_FILE = "prompt_templates.txt"
# Class n of ``imagelabels.mat`` (1-based) is FLOWER_NAMES[n - 1].
# Source: Nilsback and Zisserman, "Automated flower classification over a large number of classes",
# ICVGIP 2008, category page of the dataset.
FLOWER_NAMES = tuple(
    files("siglip_flowers").joinpath("flower_names.txt").read_text(encoding="utf-8").splitlines()
)

_REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Underscore, ASCII hyphen and the Unicode hyphens and dashes.
_JOINERS = re.compile("[_\\-\u2010-\u2015]+")


def load_templates(
    path: str | Path | None = None, class_names: Sequence[str] = FLOWER_NAMES
) -> list[str]:
    """Read prompt templates, one a line; blank lines and lines that start with # are left out.

    Without ``path``, the packaged ones for flowers if all classes are of Flowers102, else
    ``NEUTRAL_TEMPLATES``.

    Raises:
        InputError: The file cannot be read, or a line has no slot for the name.
    """
    if path is None and not set(class_names) <= set(FLOWER_NAMES):
        return list(NEUTRAL_TEMPLATES)
    source = files("siglip_flowers") / TEMPLATES_FILE if path is None else Path(path)
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The prompt templates {source} cannot be read ({error}). Give a UTF-8 text file with "
            "one template per line."
        ) from error
    templates = [line for line in lines if line and not line.startswith("#")]
    # A file of comments alone has no template either.
    for template in templates or [""]:
        if SLOT not in template:
            raise InputError(
                f"The prompt template {template!r} in {source} has no slot; put {{}} where the "
                "class name belongs."
            )
    return templates


def clean_class_name(name: str) -> str:
    """Turn a folder name or label into words: joiners become spaces, stray marks at the ends go.

    ``sword_lily`` -> ``sword lily``, ``hard-leaved pocket orchid`` -> ``hard leaved pocket
    orchid`` (without this, canonical text would read ``hardleaved``), ``colt's foot`` unchanged.
    """
    words = " ".join(_JOINERS.sub(" ", name).split())
    return words.strip(string.punctuation + " ")


def canonicalize(text: str) -> str:
    """Lower-case ``text``, drop ASCII punctuation, compose accents, and collapse white space.

    Source: big_vision, evaluators/proj/image_text/prompt_engineering.py; as there, an underscore
    counts as a space.
    """
    text = compose(text).replace("_", " ").translate(_REMOVE_PUNCTUATION).lower()
    return " ".join(text.split())


def build_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Put every class name into every template: one list of ``len(templates)`` prompts a class.

    Raises:
        InputError: A class has a name without a letter or digit.
    """
    prompts = []
    for index, name in enumerate(class_names):
        words = clean_class_name(name)
        if not canonicalize(words):
            raise InputError(
                f"Class {index} has the name {name!r}, which leaves no words for a prompt; give it "
                "a name."
            )
        prompts.append([template.replace(SLOT, words) for template in templates])
    return prompts

"""Names of models and data sets on the Hugging Face Hub."""

import re

# Of an organization or user, and of a model: the Hub's own rules.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_NAME}/{_NAME}")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``ORG/NAME`` of a model or data set on the Hub."""
    return (
        _HUB_ID.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )

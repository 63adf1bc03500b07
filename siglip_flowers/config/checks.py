"""The checks that options of every kind share."""

from siglip_flowers.base.errors import InputError


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InputError unless the option has one of the values, or none."""
    if value is not None and value not in choices:
        raise InputError(f"--{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless low <= value <= high."""
    if not low <= value <= high:
        raise InputError(f"--{name} is {value}; it must lie between {low:g} and {high:g}.")


def check_positive(name: str, value: float | None) -> None:
    """Raise InputError unless the option is greater than 0, or none."""
    if value is not None and value <= 0:
        raise InputError(f"--{name} is {value}; it must be greater than 0.")

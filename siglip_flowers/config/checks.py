"""The checks that options of every kind share."""

from siglip_flowers.base.errors import InputError


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InputError unless the option has one of the values, or none."""
    if value is not None and value not in choices:
        raise InputError(f"--{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise InputError unless low <= value <= high, or the option has no value."""
    if value is not None and not low <= value <= high:
        raise InputError(f"--{name} is {value}; it must be between {low:g} and {high:g}.")


def check_positive(name: str, value: float | None) -> None:
    """Raise InputError unless the option is greater than 0, or has no value."""
    if value is not None and not value > 0:
        raise InputError(f"--{name} is {value}; it must be greater than 0.")


def check_not_negative(name: str, value: float | None) -> None:
    """Raise InputError if the option is less than 0."""
    if value is not None and not value >= 0:
        raise InputError(f"--{name} is {value}; it must be at least 0.")


def check_interval(name: str, value: float | None) -> None:
    """Raise InputError unless the option is a number of steps, or a share of them below 1."""
    check_positive(name, value)
    if value is not None and value > 1 and value != int(value):
        raise InputError(f"--{name} is {value}; use a whole number of steps, or a share below 1.")

"""Elements of SVG as text, with every attribute and every text escaped."""

from collections.abc import Iterable

from markupsafe import Markup, escape


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element; ``_`` in attribute names stands for ``-``, and a last one is dropped."""
    # A page has thousands of these: format strings of Markup would take a second of it.
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{parts}>{''.join(map(escape, children))}</{name}>")


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    """Return a text at a place."""
    return element("text", escape(content), x=x, y=y, **attributes)


def mark(name: str, label: str, *children: str, **attributes: object) -> Markup:
    """Return an element that has something to tell: by pointer, by keyboard and read aloud."""
    return element(name, *children, class_="mark", role="img", aria_label=label, **attributes)


def drawing(width: float, height: float, label: str, children: Iterable[str]) -> Markup:
    """Return a whole drawing. Its marks are walked through by the arrow keys."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        role="group",
        aria_label=label,
        class_="plot",
        style=f"--width:{_plain(width)}px",
    )


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value

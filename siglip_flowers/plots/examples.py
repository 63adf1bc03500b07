"""Images of single predictions: image, true and predicted class, confidence, verdict."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from siglip_flowers.plots.curves import MUTED_COLOR, TEXT_COLOR, save_figure

RIGHT_COLOR = "#1B7837"
WRONG_COLOR = "#B2182B"

# One panel in pixels at _DPI; a point of text is _DPI / 72 pixels.
_DPI = 100
# The sheet is looked at as a whole, and photographs make large PNG files.
_SHEET_DPI = 64
_IMAGE = 384
_MARGIN = 28
_PANEL_WIDTH = _IMAGE + 2 * _MARGIN
_LINE_HEIGHT = 28
_NAME_LINES = 2
_LABEL_WIDTH = 106
_TITLE_LINE_HEIGHT = 24
_SHEET_COLUMNS = 5

Example = tuple[Image.Image, str, str, float]


def choose_examples(
    labels: ArrayLike, probabilities: ArrayLike, count_right: int, count_wrong: int, seed: int
) -> list[int]:
    """Choose rows that were predicted rightly and wrongly, in turn and starting with a right one.

    Where one kind runs short, the other fills its places. Classes not shown yet go before a
    second image of the same class. Equal arguments give equal rows.

    labels: integers in [0, classes), shape (n,). probabilities: shape (n, classes). Returns at
    most count_right + count_wrong different row numbers.

    Raises ValueError for other shapes and for negative counts.
    """
    true, scores = np.asarray(labels), np.asarray(probabilities)
    if scores.ndim != 2 or true.shape != scores.shape[:1]:
        raise ValueError(
            f"labels and probabilities must have the shapes (n,) and (n, classes), "
            f"not {true.shape} and {scores.shape}."
        )
    if min(count_right, count_wrong) < 0:
        raise ValueError(f"Counts must not be negative: {count_right} right, {count_wrong} wrong.")
    if len(true) == 0:
        return []
    is_right = scores.argmax(axis=1) == true
    order = np.random.default_rng(seed).permutation(len(true))
    right = _put_new_classes_first([int(row) for row in order if is_right[row]], true)
    wrong = _put_new_classes_first([int(row) for row in order if not is_right[row]], true)
    spare_right = max(0, count_right - len(right))
    spare_wrong = max(0, count_wrong - len(wrong))
    return list(_mix(right[: count_right + spare_wrong], wrong[: count_wrong + spare_right]))


def save_examples(
    images: Sequence[Image.Image],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    confidences: Sequence[float],
    output_dir: Path,
    title: str,
    count: int = 5,
) -> list[Path]:
    """Draw predictions into ``example1.png`` … ``example<count>.png`` and one ``examples.png``.

    The first ``count`` images get a file each, the sheet shows all of them. Examples of an
    earlier call with more images are removed, so that the files always belong together.

    images: any size and mode. confidences: probability of the predicted class, in [0, 1].
    Returns the paths written, the sheet last.

    Raises ValueError for lists of unequal length or no image; RunError where a file cannot be
    written.
    """
    lengths = {len(images), len(true_names), len(predicted_names), len(confidences)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"Examples need one or more images with a true name, a predicted name and a "
            f"confidence each, not {len(images)}, {len(true_names)}, {len(predicted_names)} and "
            f"{len(confidences)} of them."
        )
    examples = list(zip(images, true_names, predicted_names, confidences, strict=True))
    paths = []
    for number, example in enumerate(examples[:count], start=1):
        paths.append(output_dir / f"example{number}.png")
        save_figure(_draw_panels([example], title), paths[-1], _DPI)
    for number in range(len(paths) + 1, count + 1):
        (output_dir / f"example{number}.png").unlink(missing_ok=True)
    paths.append(output_dir / "examples.png")
    save_figure(_draw_panels(examples, title), paths[-1], _SHEET_DPI)
    return paths


def _put_new_classes_first(rows: list[int], labels: np.ndarray) -> list[int]:
    times_seen: dict[int, int] = {}
    repeats = []
    for row in rows:
        label = int(labels[row])
        repeats.append(times_seen.get(label, 0))
        times_seen[label] = repeats[-1] + 1
    # A stable sort: the random order stands within each round through the classes.
    return [row for _, row in sorted(zip(repeats, rows, strict=True), key=lambda pair: pair[0])]


def _mix(right: list[int], wrong: list[int]) -> Iterator[int]:
    for pair in zip_longest(right, wrong):
        yield from (row for row in pair if row is not None)


def _draw_panels(examples: Sequence[Example], title: str) -> Figure:
    columns = min(len(examples), _SHEET_COLUMNS)
    rows = -(-len(examples) // columns)
    width = columns * _PANEL_WIDTH
    title_lines = _wrap(title, _title_font(), width - 2 * _MARGIN, max_lines=4)
    title_height = 20 + _TITLE_LINE_HEIGHT * len(title_lines)
    captions = [_write_caption(example) for example in examples]
    # One line more than the longest caption, for the verdict, and room below.
    caption_height = 26 + (1 + max(map(len, captions))) * _LINE_HEIGHT
    panel_height = _IMAGE + caption_height
    height = title_height + rows * panel_height

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for line_number, line in enumerate(title_lines):
        y = 26 + _TITLE_LINE_HEIGHT * line_number
        _write(figure, _MARGIN, y, line, _title_font(), MUTED_COLOR)
    for index, (example, caption) in enumerate(zip(examples, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * _PANEL_WIDTH + _MARGIN, title_height + row * panel_height
        _draw_panel(figure, example, caption, left, top)
    return figure


def _write_caption(example: Example) -> list[tuple[str, str]]:
    """The lines under an image as (label, text), the label empty on continued lines."""
    _, true_name, predicted_name, confidence = example
    caption = []
    for label, name in (("true", true_name), ("predicted", predicted_name)):
        lines = _wrap(name, _name_font(), _IMAGE - _LABEL_WIDTH, _NAME_LINES)
        caption += [(label if number == 0 else "", line) for number, line in enumerate(lines)]
    return [*caption, ("confidence", _format_percent(confidence))]


def _draw_panel(
    figure: Figure, example: Example, caption: Sequence[tuple[str, str]], left: int, top: int
) -> None:
    image, true_name, predicted_name, _ = example
    is_right = true_name == predicted_name
    color = RIGHT_COLOR if is_right else WRONG_COLOR
    _show_image(figure, image, left, top, color, is_right)
    y = top + _IMAGE + 30
    verdict = "\N{CHECK MARK} right" if is_right else "\N{BALLOT X} wrong"
    _write(figure, left, y, verdict, FontProperties(size=15, weight="bold"), color)
    for label, text in caption:
        y += _LINE_HEIGHT
        _write(figure, left, y, label, _label_font(), MUTED_COLOR)
        _write(figure, left + _LABEL_WIDTH, y, text, _name_font(), TEXT_COLOR)


def _show_image(
    figure: Figure, image: Image.Image, left: int, top: int, color: str, is_right: bool
) -> None:
    """Place an image, scaled by whole pixels and centered, in its square with a frame."""
    shown = _resize(image)
    width, height = figure.bbox.width, figure.bbox.height
    axes = figure.add_axes(
        (
            (left + (_IMAGE - shown.width) // 2) / width,
            1 - (top + (_IMAGE + shown.height) // 2) / height,
            shown.width / width,
            shown.height / height,
        )
    )
    axes.imshow(np.asarray(shown), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.add_artist(
        Rectangle(
            (left / width, 1 - (top + _IMAGE) / height),
            _IMAGE / width,
            _IMAGE / height,
            fill=False,
            edgecolor=color,
            linewidth=3,
            # Right and wrong also differ without color.
            linestyle="solid" if is_right else (0, (4, 2)),
        )
    )


def _resize(image: Image.Image) -> Image.Image:
    """Scale to the panel, its longer side _IMAGE pixels; transparent parts turn white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    image = image.convert("RGB")
    scale = _IMAGE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _write(figure: Figure, x: float, y: float, text: str, font: FontProperties, color: str) -> None:
    """Write one line, x and baseline y in pixels from the top left; markup stays as it is."""
    figure.text(
        x / figure.bbox.width,
        1 - y / figure.bbox.height,
        text,
        fontproperties=font,
        color=color,
        va="baseline",
        parse_math=False,
    )


def _wrap(text: str, font: FontProperties, width: float, max_lines: int) -> list[str]:
    """Break a text into lines that fit a width in pixels, the last one cut by an ellipsis."""
    measure = _make_measure(font)
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < max_lines:
        line = words.pop(0)
        while words and measure(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        kept = _count_fitting(line, measure, width)
        if kept < len(line):
            words.insert(0, line[kept:])
        lines.append(line[:kept])
    if words:
        kept = _count_fitting(lines[-1], measure, width - measure("…"))
        lines[-1] = f"{lines[-1][:kept]}…"
    return lines


def _count_fitting(text: str, measure: Callable[[str], float], width: float) -> int:
    """How many of the first characters fit a width in pixels; at least one."""
    count = 1
    while count < len(text) and measure(text[: count + 1]) <= width:
        count += 1
    return count


def _make_measure(font: FontProperties) -> Callable[[str], float]:
    renderer = FigureCanvasAgg(Figure(dpi=_DPI)).get_renderer()
    return lambda text: renderer.get_text_width_height_descent(text, font, ismath=False)[0]


def _format_percent(confidence: float) -> str:
    # Rounding would claim a certainty that no softmax reaches.
    if 0.9995 <= confidence < 1.0:
        return "> 99.9 %"
    return f"{100 * confidence:.1f} %"


def _title_font() -> FontProperties:
    return FontProperties(size=11)


def _label_font() -> FontProperties:
    return FontProperties(size=12)


def _name_font() -> FontProperties:
    return FontProperties(size=13)

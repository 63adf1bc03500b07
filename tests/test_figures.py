"""Figures of README and the documentation are those of the committed result files."""

import re

import pytest

from docs.figures import BLOCK, FIELD, SETTINGS, fill_page, get_language, list_pages
from tests.conftest import REPOSITORY

PAGES = list_pages()
# A number with a unit, in either language.
MEASURED = re.compile(
    r"(?<![\w.,-])[+-]?\d[\d.,]*\s?(?:%|percent|points?\b|images/s|[GMk]B\b|times\b|TFLOP|"
    r"(?:core-)?(?:minutes?|hours?|seconds?)\b|days?\b|ms\b|s\b|пункт|п\. п\.|процент|"
    r"изображени\w+/с|[ГМК]Б\b|раза?\b|мин\b|час|секунд|дн|с\b|мс\b)"
)
VERSIONED = (
    r"(?:Python|torch|transformers|siglip_flowers|timm|lightly-train|Ultralytics|верси\w+|от|до|"
    r"Apache-)"
)
PAIRS = [
    ("README.md", "README.ru.md"),
    ("docs/howto/own-data.md", "docs/ru/own-data.md"),
    *((f"docs/{name}.md", f"docs/ru/{name}.md") for name in ("tutorial", "method")),
]


def strip_code(text: str) -> str:
    """Return a page without its blocks of figures, commands, code, and addresses.

    What a command prints (``text``) stays.
    """
    text = re.sub(r"<!-- figures.*?<!-- end -->", "", text, flags=re.DOTALL)
    blocks = r"^```(\w*)\n(.*?)^```"
    text = re.sub(blocks, lambda m: m[2] if m[1] == "text" else "", text, flags=re.S | re.M)
    return re.sub(r"`[^`]+`|https?://\S+", "", text)


def find_figures(text: str) -> list[str]:
    return [" ".join(match[0].split()) for match in MEASURED.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_figures_are_those_of_the_result_files(page):
    text, _ = fill_page(page)
    assert page.read_text(encoding="utf-8") == text, "run: python -m docs.figures"


def test_a_number_with_a_unit_is_from_a_file_or_stated():
    pages = [*PAGES, REPOSITORY / "docs" / "quickstart.ipynb"]
    written = {
        str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in pages
    }
    texts = [text for block in SETTINGS["blocks"].values() for text in block.values()]
    written["docs/figures.yaml"] = "\n".join(text for text in texts if isinstance(text, str))
    found = {
        page: {*find_figures(FIELD.sub("", strip_code(text)))} for page, text in written.items()
    }
    stated = {
        page: {str(word) for words in reasons.values() for word in words}
        for page, reasons in SETTINGS["stated"].items()
    }
    assert {page: words for page, words in found.items() if words} == stated


def test_a_value_of_a_result_file_stands_in_one_place():
    for language in ("en", "ru"):
        texts = [str(block.get(language, "")) for block in SETTINGS["blocks"].values()]
        fields = [match[0] for text in texts for match in FIELD.finditer(text)]
        assert len(fields) == len(set(fields))


def test_every_block_stands_on_a_page_once_per_language():
    places = [
        (match[2], get_language(page))
        for page in PAGES
        for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]
    assert len(places) == len(set(places))
    wanted = {
        (name, language)
        for name, block in SETTINGS["blocks"].items()
        for language in block
        if language != "absent"
    }
    assert set(places) == wanted


def test_the_first_screen_of_readme():
    for name in ("README.md", "README.ru.md"):
        lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
        assert sum(len(line) + 1 for line in lines) <= 12_000
        image = next(n for n, line in enumerate(lines, 1) if re.match(r"!\[[^]]+\]\(\S+\)$", line))
        assert image <= 30
        snippet = lines.index("```python") + 1
        assert lines.index("```text", snippet) + 1 <= 80


@pytest.mark.parametrize(("english", "russian"), PAIRS)
def test_the_russian_page_has_the_commands_and_figures_of_the_english_one(english, russian):
    first, second = ((REPOSITORY / name).read_text(encoding="utf-8") for name in (english, russian))

    def list_code(text: str) -> list[str]:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return [re.sub(r"(?m)(^|\s+)#.*$", "", block) for block in blocks]

    assert list_code(second) == list_code(first)

    def list_numbers(text: str) -> list[str]:
        blocks = re.findall(r"<!-- figures: .*?<!-- end -->", text, re.DOTALL)
        return re.findall(r"\d+\.\d+|\d+", "\n".join(blocks).replace(",", "."))

    assert sorted(list_numbers(second)) == sorted(list_numbers(first))


@pytest.mark.parametrize("page", [p for p in PAGES if get_language(p) == "ru"], ids=str)
def test_russian_pages_have_decimal_commas(page):
    text = page.read_text(encoding="utf-8")
    plain = re.sub(r"^```.*?^```|`[^`]+`|\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
    # Versions keep their points.
    plain = re.sub(rf"{VERSIONED} ?\d[\d.]*(?:, [\d.]+)*", "", plain)
    assert not re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", plain)

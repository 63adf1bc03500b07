"""Figures of README and the documentation are those of the committed result files."""

import re
from pathlib import Path

import pytest

from docs.figures import BLOCK, FIELD, SETTINGS, fill_page, get_language, list_pages
from tests.conftest import REPOSITORY

PAGES = list_pages()
# A number with a unit, in either language.
MEASURED = re.compile(
    r"(?<![\w.,-])[+-]?\d[\d.,]*\s?(?:%|points?\b|images/s|[GM]B\b|times\b|minutes?\b|hours?\b|"
    r"seconds?\b|ms\b|s\b|TFLOP|пункт|изображени\w+/с|[ГМ]Б\b|раза?\b|мин\b|час|с\b|мс\b|млн\b)"
)
VERSIONED = (
    r"(?:Python|torch|transformers|siglip_flowers|timm|lightly-train|верси\w+|от|до|Apache-)"
)
PAIRS = [
    ("README.md", "README.ru.md"),
    ("docs/howto/own-data.md", "docs/ru/own-data.md"),
    *((f"docs/{name}.md", f"docs/ru/{name}.md") for name in ("tutorial", "method")),
]


def strip_code(text: str) -> str:
    """Return a page without its blocks of figures, fenced code, code in the text, and addresses."""
    text = re.sub(r"<!-- figures.*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]+`|https?://\S+", "", text)


def find_figures(text: str) -> list[str]:
    return [" ".join(match[0].split()) for match in MEASURED.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_figures_are_those_of_the_result_files(page):
    text, _ = fill_page(page)
    assert page.read_text(encoding="utf-8") == text, "run: python -m docs.figures"


def test_a_number_with_a_unit_is_from_a_file_or_stated():
    stated = {str(word) for words in SETTINGS["stated"].values() for word in words}
    found = {page: find_figures(strip_code(page.read_text(encoding="utf-8"))) for page in PAGES}
    texts = [text for block in SETTINGS["blocks"].values() for text in block.values()]
    written = [text for text in texts if isinstance(text, str)]
    found[Path("docs/figures.yaml")] = find_figures(FIELD.sub("", strip_code("\n".join(written))))
    unknown = {str(page): sorted({*words} - stated) for page, words in found.items()}
    assert not {page: words for page, words in unknown.items() if words}
    assert not stated - {word for words in found.values() for word in words}


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

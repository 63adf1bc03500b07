"""Fill README and the documentation with figures from committed result files.

    python -m docs.figures    # or: make figures

A page has blocks between ``<!-- figures: NAME -->`` and ``<!-- end -->``. ``docs/figures.yaml`` has
the text of each block, by language, with fields such as ``{run/splits/test/accuracy|.1f|*100}``: an
alias of a file and the keys that lead to the value (``~`` is a slash in a key, ``[name=value]``
finds an entry of a list), and if needed a format and a factor. While a file or value is not there,
the block has its text ``absent``, or nothing. Russian text gets decimal commas.
``tests/test_figures.py`` compares pages and files.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = yaml.safe_load((REPOSITORY / "docs" / "figures.yaml").read_text(encoding="utf-8"))
FIELD = re.compile(r"\{(\w+)/([^{}|]+)(?:\|([^{}|]+))?(?:\|([*/])([\d.e]+))?\}")
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class MissingError(Exception):
    """A file or a value in it is not there."""


def list_pages() -> list[Path]:
    """Return README in both languages, and every page of the documentation."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "README.ru.md"]
    return [*pages, *sorted((REPOSITORY / "docs").rglob("*.md"))]


def get_language(page: Path) -> str:
    """Return the language of a page: ``ru`` for README.ru.md and docs/ru/, else ``en``."""
    return "ru" if page.name.endswith(".ru.md") or page.parent.name == "ru" else "en"


@cache
def read_results(name: str) -> Any:
    """Return a result file: JSON, the paragraphs of a Markdown file, a Parquet's rows by image."""
    path = REPOSITORY / SETTINGS["files"][name]
    if not path.is_file():
        raise MissingError(f"{path.relative_to(REPOSITORY)} does not exist")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return {row["image_id"]: row for row in pyarrow.parquet.read_table(path).to_pylist()}
    text = path.read_text(encoding="utf-8")
    return text.strip().split("\n\n") if path.suffix == ".md" else json.loads(text)


def find_value(name: str, keys: str) -> Any:
    """Return the value of a result file that keys lead to, joined by slashes."""
    value = read_results(name)
    for key in (part.replace("~", "/") for part in keys.split("/")):
        try:
            if key.startswith("["):
                wanted = dict(pair.split("=") for pair in key[1:-1].split(","))
                value = next(
                    row for row in value if all(str(row[k]) == v for k, v in wanted.items())
                )
            else:
                value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, StopIteration):
            raise MissingError(f"{SETTINGS['files'][name]} has no {keys}") from None
    return value


def fill_fields(text: str, language: str) -> str:
    """Replace the fields of a block's text by their values."""

    commas = language == "ru" and not text.startswith("```")

    def replace(match: re.Match[str]) -> str:
        name, keys, form, sign, factor = match.groups()
        value = find_value(name, keys)
        if sign:
            value = value * float(factor) if sign == "*" else value / float(factor)
        written = format(value, form or "")
        return written.replace(".", ",") if commas and form else written

    return FIELD.sub(replace, text)


def fill_page(page: Path) -> tuple[str, list[str]]:
    """Return the text of a page with its blocks filled, and what is missing for them."""
    language, missing = get_language(page), []

    def fill(match: re.Match[str]) -> str:
        block = SETTINGS["blocks"][match[2]]
        try:
            body = fill_fields(block[language], language)
        except MissingError as error:
            missing.append(f"{page.relative_to(REPOSITORY)}, {match[2]}: {error}")
            body = block.get("absent", {}).get(language, "")
        return f"{match[1]}{body}{match[3]}"

    return BLOCK.sub(fill, page.read_text(encoding="utf-8")), missing


def main() -> None:
    """Fill all pages, and name the blocks whose figures are missing."""
    for page in list_pages():
        text, missing = fill_page(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"filled {page.relative_to(REPOSITORY)}")
        for reason in missing:
            print(f"missing: {reason}")


if __name__ == "__main__":
    main()

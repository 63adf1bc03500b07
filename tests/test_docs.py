"""The documentation site is built without a warning, whole, and from this machine alone."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from siglip_flowers import __version__
from siglip_flowers.config import DataArguments, EvaluationArguments, ModelArguments
from tests.conftest import REPOSITORY

if importlib.util.find_spec("mkdocs") is None:
    pytest.skip("mkdocs is not installed; pip install '.[docs]'", allow_module_level=True)

# Connecting to anything ends the build; what it needs is installed.
NO_NETWORK = """
import socket, sys
def refuse(*arguments, **keywords):
    raise SystemExit("the build asked for the network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""
# What a browser fetches by itself.
FETCHED = {(tag, "src") for tag in ("img", "script", "source", "iframe", "video")}


class _Page(HTMLParser):
    """Collects what a page fetches, where it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.anchors.add(str(values["id"]))
        for name, value in attrs:
            if value and (tag, name) in FETCHED:
                self.fetched.append(value)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(str(values.get("href")))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: a dead link, or any other warning of MkDocs, is an error."""
    directory = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, "build", "--strict", "--site-dir", str(directory)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, _Page]:
    return {path: _Page(path) for path in site.rglob("*.html")}


def test_every_page_is_reached_from_the_first_one(site, pages):
    for source in (REPOSITORY / "docs").glob("*.md"):
        assert f"{source.stem}.html" in pages[site / "index.html"].links, source


def test_pages_and_styles_fetch_nothing_from_other_hosts(site, pages):
    for path, page in pages.items():
        foreign = [url for url in page.fetched if urlsplit(url).netloc]
        assert not foreign, f"{path} fetches {foreign}"
    for path in site.rglob("*.css"):
        fetched = re.findall(r"(?:url\(|@import\s)[\"']?(https?:|//)", path.read_text("utf-8"))
        assert not fetched, path


@pytest.mark.parametrize("kind", [DataArguments, EvaluationArguments, ModelArguments])
def test_the_reference_has_every_option_with_its_help(site, kind):
    html = (site / "reference" / "options.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", html)
    for name, field in kind.__dataclass_fields__.items():
        assert f"--{name}" in text
        # The first words, up to what HTML writes otherwise.
        start = re.split(r"[<>&\"'{]", field.metadata["help"])[0].strip()
        assert start in text, name


def test_the_reference_has_every_public_class_and_function(site):
    from docs.hooks import list_modules

    folder = site / "reference"
    anchors = set().union(*(_Page(path).anchors for path in folder.glob("*.html")))
    for package in ("data", "model", "training", "evaluation", "inference", "metrics"):
        for module in re.findall(r"^::: (\S+)", list_modules(f"siglip_flowers.{package}"), re.M):
            path = REPOSITORY.joinpath(*module.split(".")).with_suffix(".py")
            for name in re.findall(
                r"^(?:def|class) ([A-Za-z]\w*)", path.read_text("utf-8"), re.MULTILINE
            ):
                assert f"{module}.{name}" in anchors
    assert "siglip_flowers.inference.classifier.SiglipImageClassifier" in anchors


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"[{__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")

"""What the documentation site adds to its pages: options, modules, files of the repository.

- ``<!-- options: MODULE.DATACLASS -->`` becomes a table of the dataclass's fields with their help.
- ``<!-- modules: PACKAGE -->`` becomes one entry a module, which mkdocstrings fills.
- A link that leaves docs/ leads to a copy of the file under repository/ of the site. Where there is
  no such file the link is left alone, and MkDocs warns of it.
- Pages that the navigation does not name are added to the section Guides.
"""

import ast
import dataclasses
import importlib
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
COPIES = "repository"
OWN_SECTION = "Guides"
# Documented on a page of their own; a name has one place.
APART = ("inference.classifier", "model.classifier", "model.configuration")
# The package is read where it lies, installed or not.
sys.path.insert(0, str(REPOSITORY))

_MARKER = re.compile(r"^<!-- (options|modules): ([\w.]+) -->$", re.MULTILINE)
# [text](target), ![text](target), with a title or not; and src="target" of images.
_LINK = re.compile(r'(\]\()([^)\s]+)((?:\s+"[^"]*")?\))|(\bsrc=")([^"]+)(")')
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# Roles that the docstrings write for other tools.
_ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):(?=<code|<span|<a)")
# Browsers break lines after the dashes of an option, and narrow columns within its name.
_INLINE = re.compile(r"<(?:code|td)>[^<]+")
_OPTION = re.compile(r"(?<![\w-])--\w+")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that the navigation does not name to the section of guides."""
    named = set(_list_names(config.nav))
    pages = sorted(path.name for path in Path(config.docs_dir).glob("*.md"))
    for section in config.nav or []:
        if OWN_SECTION in section:
            section[OWN_SECTION] = [name for name in pages if name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/, and what those files link to in turn."""
    waiting = [Path(config.docs_dir, file.src_uri) for file in files.documentation_pages()]
    known: set[Path] = set()
    while waiting:
        page = waiting.pop()
        for target in _list_targets(page.read_text(encoding="utf-8")):
            path = _resolve(page, target)
            if path is None or _is_below(path, Path(config.docs_dir)) or path in known:
                continue
            known.add(path)
            files.append(
                File.generated(config, _name_in_site(path, config), abs_src_path=str(path))
            )
            if path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill markers in, and lead links to where their files are in the site."""
    source = Path(str(page.file.abs_src_path)).resolve()
    here = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        before, target, after = match.groups()[:3] if match[1] else match.groups()[3:]
        path = _resolve(source, target)
        if path is None or (_is_below(path, Path(config.docs_dir)) and _is_in_docs(page)):
            return match[0]
        parts = urlsplit(target)
        uri = posixpath.relpath(_name_in_site(path, config), here or ".")
        file = files.get_file_from_path(_name_in_site(path, config))
        if match[4] and file is not None:
            # MkDocs leads links of Markdown itself, but leaves HTML alone.
            uri = file.url_relative_to(page.file)
        return f"{before}{uri}{'#' + parts.fragment if parts.fragment else ''}{after}"

    markdown = _outside_code(markdown, lambda text: _LINK.sub(lead, text))
    return _MARKER.sub(lambda match: _FILLERS[match[1]](match[2]), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drop the roles before names in docstrings, and keep each option on one line."""
    html = _ROLE.sub("", html)
    return _INLINE.sub(lambda match: _OPTION.sub(r"<nobr>\g<0></nobr>", match[0]), html)


def describe_options(name: str) -> str:
    """Return a Markdown table of a dataclass's fields: option, type, default, help."""
    module, _, kind_name = name.rpartition(".")
    kind = getattr(importlib.import_module(module), kind_name)
    hints = get_type_hints(kind)
    rows = [
        f"| `--{field.name}` | {_cell(_describe_type(hints[field.name]))} "
        f"| {_describe_default(field)} | {_cell(str(field.metadata['help']))} |"
        for field in dataclasses.fields(kind)
        if field.init and "help" in field.metadata
    ]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows])


def list_modules(package: str) -> str:
    """Return an entry for mkdocstrings for each module of a package that has public names."""
    folder = REPOSITORY.joinpath(*package.split("."))
    modules = sorted(
        path
        for path in folder.glob("*.py")
        if _has_public_names(path) and f"{folder.name}.{path.stem}" not in APART
    )
    return "\n\n".join(
        f"## {path.stem}\n\n::: {package}.{path.stem}\n    options:\n"
        "      show_root_heading: false\n      show_root_toc_entry: false"
        for path in modules
    )


_FILLERS = {"options": describe_options, "modules": list_modules}


def _has_public_names(path: Path) -> bool:
    named = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return path.stem != "__init__" and any(
        isinstance(node, named) and not node.name.startswith("_") for node in body
    )


def _describe_type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return text.replace(" | None", "").replace("typing.", "")


def _describe_default(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is None or default is dataclasses.MISSING or default in ([], {}, ""):
        return ""
    if isinstance(default, list):
        return f"`{' '.join(map(str, default))}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _cell(text: str) -> str:
    """Escape what Markdown would read as the end of a cell, a tag or an emphasis."""
    for sign in ("\\", "|", "<", "*", "_", "[", "{"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _list_names(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav or []
    return [name for item in items for name in _list_names(item)]


def _outside_code(markdown: str, change: Any) -> str:
    """Change the text between pieces of code, which stay as they are."""
    parts, end = [], 0
    for match in _CODE.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])


def _list_targets(markdown: str) -> list[str]:
    found: list[str] = []

    def keep(text: str) -> str:
        found.extend(match[2] or match[5] for match in _LINK.finditer(text))
        return text

    _outside_code(markdown, keep)
    return found


def _resolve(page: Path, target: str) -> Path | None:
    """Return the file of the repository that a relative link leads to, or None."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    path = Path(os.path.normpath(page.parent / parts.path))
    return path if _is_below(path, REPOSITORY) and path.is_file() else None


def _is_below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)


def _is_in_docs(page: Page) -> bool:
    return not page.file.src_uri.startswith(f"{COPIES}/")


def _name_in_site(path: Path, config: MkDocsConfig) -> str:
    if _is_below(path, Path(config.docs_dir)):
        return path.relative_to(config.docs_dir).as_posix()
    return f"{COPIES}/{path.relative_to(REPOSITORY).as_posix()}"

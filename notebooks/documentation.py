"""The documentation site: README, guides, notebooks, and reference pages generated from declarations and docstrings.

    python -m notebooks.documentation build/site

Needs `pip install 'kdkit[docs]'` (mkdocs-material, mkdocstrings, mkdocs-jupyter). Notebooks are shown as they were executed.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import pydoc
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import griffe
import yaml

import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
from kdkit.display.page import Page, Source
from kdkit.display.table import Table
from kdkit.display.table_text import write_markdown
from kdkit.notebook.help_pages import families, of_stage, of_verb, overview, techniques
from kdkit.notebook.verb import verbs
from kdkit.plugins.manager import manager

ROOT = Path(__file__).parent.parent
REPOSITORY_PAGES = {"README.md": "index.md", "plugins/README.md": "plugins.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository, and the pages that they become."""
FACES = (
    "kdkit",
    "kdkit.data",
    "kdkit.models",
    "kdkit.tasks",
    "kdkit.backends",
    "kdkit.measurement",
    "kdkit.storage",
    "kdkit.stages",
    "kdkit.plugins",
    "kdkit.training",
    "kdkit.session",
    "kdkit.testing",
)
"""The packages whose exported names have a reference page."""


def write_site(folder: Path) -> None:
    """Write the pages below `folder` and `mkdocs.yml` beside them; what was there is replaced.

    Args:
        folder: gets `pages/` and `mkdocs.yml`.
    """
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    navigation = [
        {"Start": "index.md"},
        {"Notebooks": _copy_notebooks(pages)},
        {
            "Techniques": [
                *_write_all(pages / "techniques", [("all", write_page(Page("Techniques", techniques())))]),
                *({family: _write_all(pages / "techniques", _technique_pages(family))} for family in families()),
            ]
        },
        {"Lines": _write_all(pages / "lines", _verb_pages())},
        {"Reference": _write_all(pages / "reference", _reference_pages())},
        {"Plugins": "plugins.md"},
        {"Contributing": "contributing.md"},
        {"Changes": "changelog.md"},
    ]
    for source, page in REPOSITORY_PAGES.items():
        (pages / page).write_text(with_site_links((ROOT / source).read_text(), Path(source).parent))
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(_configuration(navigation), sort_keys=False))


def _write_all(folder: Path, written: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Write (title, text) pairs as pages of one folder, and list them for the navigation."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for title, text in written:
        name = f"{title.replace(' ', '-').lower()}.md"
        (folder / name).write_text(text)
        listed.append({title: f"{folder.name}/{name}"})
    return listed


def _technique_pages(family: str) -> Iterable[tuple[str, str]]:
    for id, stage in manager().stages().items():
        if id.startswith(f"{family}.") and stage.__module__.startswith("kdkit_"):
            yield id.replace(".", " ", 1), write_page(of_stage(stage))


def _verb_pages() -> Iterable[tuple[str, str]]:
    yield "all", write_page(Page("Lines", *overview().parts))
    for word, verb in verbs().items():
        yield word, write_page(of_verb(verb))


def _reference_pages() -> Iterable[tuple[str, str]]:
    """One page a public face. A name is documented once, in the most special face that exports it, where its module defines it."""
    packages = {face: importlib.import_module(face) for face in FACES}
    owners = {_home(package, name): face for face, package in packages.items() for name in package.__all__}
    for face, package in packages.items():
        places = [place for name in sorted(package.__all__) if (place := _home(package, name))]
        own = "\n\n".join(f"::: {place}" for place in places if owners[place] == face)
        others = "".join(f"- [`{place.rpartition('.')[2]}`][{place}]\n" for place in places if owners[place] != face)
        yield face, f"# {face}\n\n{(package.__doc__ or '').strip()}\n\n{others}\n{own}\n"


def _home(package: Any, name: str) -> str:
    """Where an exported class or function is defined, "module.name"; empty for constants, whose module isn't known."""
    value = getattr(package, name)
    home = getattr(value, "__module__", None) or ""
    return f"{home}.{value.__qualname__}" if home.partition(".")[0] == "kdkit" and hasattr(value, "__qualname__") else ""


def write_page(page: Page) -> str:
    """A help page as Markdown; its first line is the heading.

    >>> print(write_page(Page("%kd undo", "Undo a step.", Source("%kd undo"))))
    # %kd undo
    <BLANKLINE>
    Undo a step.
    <BLANKLINE>
    ```
    %kd undo
    ```
    """
    heading, *parts = page.parts
    return "\n\n".join([f"# {_plain(heading)}", *map(_markdown, parts)])


def _markdown(part: Any) -> str:
    if isinstance(part, Source):
        return f"```\n{part}\n```"
    if isinstance(part, Table):
        return write_markdown(part).replace("\\<", "&lt;")  # Python-Markdown knows no backslash before <
    if isinstance(part, Page):
        return "\n\n".join(map(_markdown, part.parts))
    return "\n\n".join(block if block.startswith("```") else _paragraph(block) for block in fence_examples(str(part)).split("\n\n"))


def _paragraph(text: str) -> str:
    """Text without markup, in which a line that ends with a sentence stays a line."""
    return re.sub(r"(?<=[.:])\n", "  \n", _plain(text))


def _plain(text: str) -> str:
    """Text in which nothing is taken for HTML or a link."""
    return escape(text, quote=False).replace("[", "&#91;")


def fence_examples(text: str) -> str:
    """A docstring with its examples as blocks of code, since Markdown takes `>>>` for a quotation.

    >>> fence_examples("Add.\\n\\n>>> 1 + 1\\n2").splitlines()
    ['Add.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    blocks = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{block.strip(chr(10))}\n```" if block.lstrip().startswith(">>>") else block for block in blocks)


class FencedExamples(griffe.Extension):
    """Gives the reference pages docstrings as they are at run time, with their examples as code."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        if obj.docstring is not None:
            if obj.is_class:  # decorators complete the docstrings of some
                obj.docstring.value = inspect.getdoc(pydoc.locate(obj.path)) or obj.docstring.value
            obj.docstring.value = fence_examples(obj.docstring.value)


def with_site_links(text: str, folder: Path) -> str:
    """Markdown of the repository with its relative links changed to the pages of the site.

    Args:
        folder: of the file, relative to the repository.

    >>> with_site_links("[guide](plugins/README.md), [first](notebooks/quickstart.ipynb)", Path("."))
    '[guide](plugins.md), [first](notebooks/quickstart.ipynb)'
    """

    def target(link: str) -> str:
        path = os.path.normpath(folder / link) if not re.match(r"\w+:|#|/", link) else link
        return REPOSITORY_PAGES.get(path, path)

    text = re.sub(r"(\]\()([^)#\s]+)", lambda found: found[1] + target(found[2]), text)
    return re.sub(r'((?:src|srcset)=")([^"]+)', lambda found: found[1] + target(found[2]), text)


def _copy_notebooks(pages: Path) -> list[str]:
    folder = pages / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=lambda _, names: {name for name in names if not (name.endswith((".ipynb", ".png")) or name == "pictures")})
    return [f"notebooks/{path.name}" for path in sorted(folder.glob("*.ipynb"))]


def _configuration(navigation: list) -> dict[str, Any]:
    schemes = [("default", "light", "weather-night"), ("slate", "dark", "weather-sunny")]
    palette = [
        {"media": f"(prefers-color-scheme: {media})", "scheme": scheme, "toggle": {"icon": f"material/{icon}", "name": "Change between light and dark"}}
        for scheme, media, icon in schemes
    ]
    python = {
        "docstring_style": "google",
        "show_source": False,
        "show_root_heading": True,
        "show_root_full_path": False,
        "heading_level": 2,
        "separate_signature": True,
        "show_signature_annotations": True,
        "filters": ["!^_"],
        "docstring_options": {"warnings": False},
        "extensions": [f"{__file__}:FencedExamples"],
    }
    return {
        "site_name": "kdkit",
        "site_description": "Make a trained model in a notebook smaller and faster without losing what it knows",
        "docs_dir": "pages",
        "site_dir": "html",
        "use_directory_urls": False,
        "theme": {"name": "material", "palette": palette, "features": ["navigation.indexes", "content.code.copy", "search.suggest"], "font": False},
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)], "options": python}}}},
            {"mkdocs-jupyter": {"execute": False, "include_source": True}},
        ],
        "markdown_extensions": ["tables", "attr_list", "md_in_html", "admonition", "pymdownx.highlight", "pymdownx.superfences", {"toc": {"permalink": True}}],
        "nav": navigation,
    }


def build_site(folder: Path) -> int:
    """Write the pages and build them to `folder/html`; returns the exit status of mkdocs."""
    write_site(folder)
    build: Callable = importlib.import_module("mkdocs.commands.build").build
    load: Callable = importlib.import_module("mkdocs.config").load_config
    logging.basicConfig(level="WARNING")
    with contextlib.chdir(folder):  # mkdocs-jupyter keeps a cache in the working directory
        build(load("mkdocs.yml", strict=True))
    print(f"{folder / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(build_site(Path(sys.argv[1]).absolute()))

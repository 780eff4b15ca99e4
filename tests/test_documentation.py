"""The documentation site: every technique, verb and public name has a page, and the site builds without a warning."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import pytest

from kdkit.notebook.verb import verbs
from kdkit.plugins.manager import manager
from notebooks.documentation import FACES, build_site, with_site_links, write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_site(folder)
    return folder


def test_every_technique_has_a_page_with_its_options(site: Path) -> None:
    for id, stage in manager().stages().items():
        if stage.__module__.startswith("kdkit_"):
            page = (site / "pages" / "techniques" / f"{id.replace('.', '-')}.md").read_text()
            assert page.startswith(f"# %kd {id.replace('.', ' ', 1)}\n")
            for name in stage.model_fields:
                assert f"--{name.replace('_', '-')}" in page, (id, name)


def test_every_verb_and_every_public_name_has_a_page(site: Path) -> None:
    assert {path.stem for path in (site / "pages" / "lines").glob("*.md")} == {*verbs(), "all"}
    text = "\n".join(path.read_text() for path in (site / "pages" / "reference").glob("*.md"))
    for face in FACES:
        package = importlib.import_module(face)
        missing = [name for name in package.__all__ if isinstance(getattr(package, name), type) and f".{name}" not in text]
        assert not missing


@pytest.mark.parametrize(
    ("written", "on_the_site"),
    [
        ("[guide](plugins/README.md#hooks)", "[guide](plugins.md#hooks)"),
        ("[web](https://example.org/README.md), [here](#names)", "[web](https://example.org/README.md), [here](#names)"),
        ('<img src="notebooks/pictures/a.png">', '<img src="notebooks/pictures/a.png">'),
    ],
)
def test_links_of_the_repository_lead_to_pages(written: str, on_the_site: str) -> None:
    assert with_site_links(written, Path()) == on_the_site
    assert with_site_links("[rules](../CONTRIBUTING.md)", Path("plugins")) == "[rules](contributing.md)"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert build_site(tmp_path) == 0
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("mkdocs")]
    assert "prune channels" in (tmp_path / "html" / "techniques" / "prune-channels.html").read_text()

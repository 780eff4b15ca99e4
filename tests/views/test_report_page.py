"""Summaries: all that is to be kept of a session, whole and on its own."""

from __future__ import annotations

import gc
import weakref
from html.parser import HTMLParser
from typing import ClassVar

import pytest
import torch
from torch import nn

import kdkit
from kdkit.display.table import Table
from kdkit.errors import KdError
from kdkit.views import Report


class Noted(kdkit.Stage):
    """Halve a weight and say so."""

    id: ClassVar = "prune.test-noted"

    def apply(self, model, context):
        model[0].weight.data.mul_(0.5)
        context.note("halved <all>")
        context.exhibit(Table(["what"], [["an exhibit"]]))
        return model


def session(**given: object) -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    return kdkit.Session(nn.Sequential(nn.Linear(4, 4)), **{"eval": (x, x.argmax(1)), "measures": ("quality", "size")} | given)  # type: ignore[arg-type]


@pytest.fixture
def held() -> kdkit.Session:
    made = session()
    made.run(Noted(), label="half")
    return made


def test_it_tells_state_lines_figures_frontier_notes_and_exhibits(held: kdkit.Session) -> None:
    text = repr(held.show(Report()))
    wanted = ["kdkit: @half", "task classification; data: eval", "%kd prune test-noted", "against @base", "accuracy against size", "halved <all>", "an exhibit"]
    places = [text.find(part) for part in wanted]
    assert -1 not in places, dict(zip(wanted, places, strict=True))
    assert places == sorted(places)
    html = held.show(Report())._repr_html_()
    assert all(part in html for part in ("%kd prune test-noted", "an exhibit", "halved &lt;all&gt;", "<svg"))


def test_the_line_of_a_version_is_shown_and_no_other(held: kdkit.Session) -> None:
    text = repr(held.show(Report(version="@base")))
    assert "halved" not in text
    assert text.startswith("kdkit: @base")


class Outline(HTMLParser):
    """Headings in order, whatever would be loaded, and that tags close."""

    def __init__(self, html: str):
        super().__init__()
        self.stack: list[str] = []
        self.headings: list[int] = []
        self.loaded: list[str] = []
        self.lang = ""
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.stack.append(tag)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        self.lang = self.lang or (dict(attrs).get("lang") or "")
        self.loaded += [tag for name, _ in attrs if name in ("src", "href", "srcset")] + ([tag] if tag in ("script", "link", "iframe") else [])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_self_contained_with_a_title_a_language_and_headings_in_order(held: kdkit.Session, tmp_path) -> None:
    path = held.show(Report()).save(tmp_path / "half.html")
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.headings[0] == 1
    assert set(outline.headings[1:]) == {2}
    assert outline.loaded == []
    assert outline.lang == "en"
    assert "<title>kdkit: @half</title>" in page
    assert "color-scheme:light dark" in page
    assert Outline(held.show(Report())._repr_html_()).headings[0] == 3


@pytest.mark.slow
def test_it_holds_on_to_no_model_and_no_data() -> None:
    made = session()
    made.run(Noted(), label="half")
    kept, models = made.show(Report()), [weakref.ref(version.model) for version in made.versions]  # type: ignore[type-var]
    data = weakref.ref(made.objects["eval"])
    del made
    gc.collect()
    assert [each() for each in (*models, data)] == [None] * 3
    assert "halved" in repr(kept)


def test_without_quality_the_frontier_is_reported_as_missing_and_the_rest_is_shown() -> None:
    bare = kdkit.Session(nn.Linear(2, 2))
    text = repr(bare.show(Report()))
    assert "no picture: pareto needs a quality figure" in text
    assert "# @base: use Linear" in text
    with pytest.raises(KdError, match="no version has a figure 'speed'"):
        session().show(Report(cost="speed"))


def test_an_exhibit_that_fails_says_so_and_hides_nothing_else(held: kdkit.Session) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError("no")

    version = held.head
    object.__setattr__(version, "attachments", (Broken(), *version.attachments))
    assert "could not be shown: ValueError: no" in repr(held.show(Report()))
    assert "an exhibit" in held.show(Report())._repr_html_()


def test_a_file_of_another_kind_or_in_no_folder_is_refused(held: kdkit.Session, tmp_path) -> None:
    with pytest.raises(KdError, match="no name of an HTML file"):
        held.show(Report()).save(tmp_path / "half.pdf")
    with pytest.raises(KdError, match="can't be written: No such file or directory"):
        held.show(Report()).save(tmp_path / "none" / "half.html")

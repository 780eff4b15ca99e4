"""Whatever a name, a label, a path or a message holds: as HTML it is text, and as text it moves no cursor."""

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from kdkit import Session, Stage, Trait, param
from kdkit.display.attachments import as_html, as_text
from kdkit.display.charts import Mark, bar_chart, heat_map, histogram, line_chart, row_chart, scatter_chart
from kdkit.display.error import problem
from kdkit.display.page import Page, Source, Written
from kdkit.display.table import Cell, Table
from kdkit.errors import KdError
from kdkit.measurement.report import Figure, Report
from kdkit.notebook.wizard.html import SCRIPT, code, heading, status
from kdkit.session.history import Version
from kdkit.training.curve import Curve
from kdkit.views.agreement import AgreementMatrix
from kdkit.views.confusion import ConfusionMatrix
from kdkit.views.report_page import Section, Summary

PAYLOADS = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><img src=x onerror=alert(1)>", "</title></pre></svg><script>alert(1)</script>"]
CURSOR = "a\x1b[2Jb\x9bc\u202ed"


class Elements(HTMLParser):
    """The elements of a piece of HTML, and the attributes that would run code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag} & {"script", "img", "iframe", "object"} | {name for name, _ in attrs if name.startswith("on")}


class Broken:
    """An attachment whose HTML fails."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        raise ValueError(self.text)


class Renames(Stage):
    """Change every weight."""

    id: ClassVar = "tune.test-escaping"
    word: str = param("", "any text")

    def apply(self, model: nn.Module, context: Any) -> None:
        context.note(self.word)
        context.attach(Broken(self.word))
        for weight in model.parameters():
            weight.data.mul_(0.9)


def version(text: str) -> Version:
    report = Report((Figure(text, 0.5, text, ratio=0.5, n=3),), (text,), text)
    return Version(0, nn.Linear(2, 2), report, frozenset({Trait.TRAINABLE}), label=text, origin=f"load {text}", notes=(text,), attachments=(Broken(text),))


def parts(text: str) -> Iterator[tuple[str, Any]]:
    """What shows one text, by name: the HTML itself, or an object that has both forms."""
    yield "table", Table([text, "figure"], [[text, 1.0], [Cell(text, text), text * 3]], text)
    yield "page", Page(text, Source(text), Table([text], [[text]]))
    yield "written", Written(Path(text.replace("/", "")), text)
    yield "written elsewhere", Written(Path("/") / text, text)
    yield "error", problem(KdError(text, text), "Error")
    yield "attachment", as_html(Broken(text))
    yield "attachment without HTML", as_html(text)
    yield "bar chart", bar_chart({text: 1.0, text + "2": 2.0}, text, text)
    yield "row chart", row_chart({text: [1.0, -2.0]}, text, (text, text + "2"), text)
    yield "heat map", heat_map([[1.0]], [text], [text], text, text, text)
    yield "histogram", histogram([0, 1, 2], {text: [0.5, 0.5]}, text, text)
    yield "line chart", line_chart({text: [(1, 2.0), (2, 1.0)]}, text, text)
    yield "scatter chart", scatter_chart([Mark(text, 1.0, 1.0, text), Mark(text, 2.0, None, text)], text, text, text, (text,), [(1.0, 1.0)], (text, text))
    yield "curve", Curve.of([(1, {text: 1.0}), (2, {text: 2.0})])
    yield "version", version(text)
    yield "report", version(text).report
    yield "confusion", ConfusionMatrix(text, text, Counter({(0, 1): 3, (1, 1): 2}), lambda number: f"{text}{number}")
    yield "agreement", AgreementMatrix(text, text, text, Counter({(0, 1): 3, (1, 1): 2}), names=lambda number: f"{text}{number}")
    yield "report page", Summary(text, (Section(text, (text, Broken(text), version(text)), code=False), Section(text, (text,), code=True)))
    yield "page of a file", Summary(text, (Section(text, (text,)),)).page
    yield "lines of a cell", code(text)
    yield "status", status(text)
    yield "heading", heading(text)


NAMES = [name for name, _ in parts("x")]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("name", NAMES)
def test_a_text_stays_a_text_in_html(name: str, payload: str) -> None:
    shown = dict(parts(payload))[name]
    html = shown if isinstance(shown, str) and not isinstance(shown, Source) else shown._repr_html_()
    assert Elements(html).found == set()


@pytest.mark.parametrize("name", [name for name, shown in parts("x") if not isinstance(shown, str)])
def test_a_text_moves_no_cursor(name: str) -> None:
    shown = as_text(dict(parts(CURSOR))[name]) if name in ("confusion", "agreement", "curve") else repr(dict(parts(CURSOR))[name])
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


def net(name: str) -> nn.Module:
    """A net whose class, layer and buffer have a name."""
    kind = type(name, (nn.Sequential,), {})
    made = kind()
    made.add_module(name.replace(".", ""), nn.Linear(4, 3))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_of_a_users_net_and_objects_stay_texts_in_every_view(offered: Any, payload: str, tmp_path: Path) -> None:
    offered(Renames)
    data = (torch.randn(6, 4), torch.arange(6) % 3)
    session = Session(net(payload), train=data, eval=data, measures=("quality", "parameters", "size", "agreement"), **{payload: 1})
    session.run(Renames(word=payload), label="slim")
    shown = [session, session.head, session.plan(Renames(word=payload)), session.compare(), session.status().listing]
    shown += [session.show(view) for view in ("layers", "weights", "confusion", "agreement", "pareto --cost size", "sensitivity", "report")]
    for each in shown:
        assert Elements(each._repr_html_()).found == set(), type(each)
    page = tmp_path / "page.html"
    session.show("report").save(page)
    assert Elements(page.read_text(encoding="utf-8")).found == set()


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_texts_of_the_wizard_stay_texts(cells: Any, wizard: Any, payload: str) -> None:
    from kdkit.notebook.wizard.draft import Draft

    cells.shell.user_ns[payload] = cells.shell.user_ns["net"]
    cells.session.set(**{payload: 1})
    wizard.controller.redraft(Draft((f"tune finetune --data '{payload.replace(chr(39), '')}'", f"nothing {payload}")))
    wizard.show_message(payload, KdError(payload, payload))
    for number in range(len(wizard.tabs)):
        wizard.tab_bar.selected_index = number
        wizard.refresh()
    found: list[str] = []

    def walk(widget: Any) -> None:
        if type(widget).__name__ == "HTML":
            found.append(widget.value)
        for child in getattr(widget, "children", ()):
            walk(child)

    walk(wizard.box)
    assert any("alert(1)" in html for html in found)
    assert found.count(SCRIPT) == 1, "the only script is a constant"
    assert set().union(*(Elements(html).found for html in found if html != SCRIPT)) == set()


def test_a_line_of_a_file_is_no_line_of_generated_code(offered: Any) -> None:
    offered(Renames)
    session = Session(net("Net"), example=torch.zeros(1, 4), measures=())
    for hostile in ("a\n!touch PWNED", "a\r!touch PWNED", "a\u2028!touch PWNED", "a\x0c!touch PWNED\n%%bash"):
        session.run(Renames(word=hostile))
        lines = session.code().splitlines()
        assert not any(line.lstrip().startswith(("!", "%%bash")) for line in lines), lines
        assert lines[-1].startswith(f"%kd tune test-escaping --word {{{hostile!r}}} --on @")

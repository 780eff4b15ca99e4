"""A view is declared once: it is a verb, a form, a line for `session.show`, and help; a plugin or a cell can bring one."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdError, View, param
from kdkit.display import Table
from kdkit.notebook.verb import verbs
from kdkit.plugins.manager import manager
from kdkit.views import Confusion, Layers, Pareto, Sensitivity, Weights, offered_views


@pytest.fixture(scope="module")
def session() -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    made = kdkit.Session(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), eval=(x, x.argmax(1)), measures=("quality", "size"))
    made.run("decompose svd --ratio 0.5", label="thin")
    return made


@pytest.fixture
def answering(offered):
    """`kdkit.offer`, taken back after the test."""
    yield kdkit.offer
    manager().unregister_hook("kdkit_views")


class Waterfall(View):
    """How a figure changes from version to version."""

    positional = ("versions",)
    versions: tuple[str, ...] = param((), "the versions", names="version")
    figure: str = param("size", "a figure", names="figure")
    how: str = param("right", "right, or how it fails")

    def of(self, session):
        if self.how == "raises":
            raise ZeroDivisionError("of the view")
        chosen = [session.version(name) for name in self.versions] or session.versions
        return 3 if self.how == "number" else Table(["version", self.figure], [[version.name, version[self.figure]] for version in chosen])


def test_a_line_and_an_instance_show_the_same(session):
    assert repr(session.show("pareto @base --cost size")) == repr(session.show("%kd pareto @base")) == repr(session.show(Pareto(versions=("@base",))))


def test_versions_can_be_given_by_name_number_or_themselves(session):
    base = session.versions[0]
    assert Weights(before="@0") == Weights(before=0) == Weights(before=base)
    assert Pareto(versions=[base, 1]) == Pareto(versions=("@0", "@1"))
    assert Pareto(versions=base) == Pareto(versions=("@0",))
    assert Layers(layers="2") == Layers(layers=("2",))


def test_a_view_changes_neither_the_session_nor_what_the_next_one_finds(session):
    history, objects = session.history, session.objects
    assert session.show(Confusion(data="four"), four=(torch.eye(4), torch.arange(4))).count == 4
    assert (session.history, session.objects) == (history, objects)
    with pytest.raises(KdError, match="has no 'four'"):
        session.show("confusion --data four")


def test_what_names_no_view_or_no_option_is_reported_with_those_there_are(session):
    with pytest.raises(KdError, match="no view 'parreto'") as caught:
        session.show("parreto")
    assert "did you mean pareto?" in caught.value.hints
    with pytest.raises(KdError, match="pareto has no option --prize"):
        session.show("pareto --prize size")
    with pytest.raises(KdError, match="which view"):
        session.show("")


def test_a_view_of_a_cell_has_verb_help_completion_and_line_and_goes_with_its_hook(answering, cells, session):
    @answering
    def kdkit_views():
        return [Waterfall]

    assert session.show("waterfall @thin").rows[0][0] == "@thin"
    assert cells.give("%kd waterfall @base --figure parameters").head == ["version", "parameters"]
    assert "How a figure changes from version to version." in repr(cells.give("%kd help waterfall"))
    assert cells.complete("%kd waterf") == ["waterfall"]
    assert "--figure" in cells.complete("%kd waterfall --fi")
    assert verbs()["waterfall"].tab == "Compare"
    manager().unregister_hook("kdkit_views")
    assert "waterfall" not in verbs()
    with pytest.raises(KdError, match="no view 'waterfall'"):
        session.show("waterfall")


def test_a_view_that_fails_or_shows_nothing_is_one_message_and_the_session_is_as_it_was(session):
    history = session.history
    with pytest.raises(KdError, match="waterfall failed: ZeroDivisionError: of the view") as caught:
        session.show(Waterfall(how="raises"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(KdError, match="waterfall returned a int, which has no _repr_html_"):
        session.show(Waterfall(how="number"))
    assert session.history is history


class Odd(View):
    """An option that no line can carry."""

    layers: dict = param({}, "layers")


class Undo(View):
    """A name that kdkit uses."""


class Nameless(View):
    """A name that no line could begin with."""

    name = "a b"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([3], "returned a list with 3; it must return a list of classes derived from kdkit.View"),
        ([Table], "returned a list with the class Table; it must return a list of classes derived from kdkit.View"),
        ([Odd], "no option can carry"),
        ([Nameless], "its view Nameless has the name 'a b'"),
        ([Undo], "its view Undo has the name 'undo', which is a verb of %kd"),
        (None, "returned nothing; it must return a list"),
    ],
)
def test_what_is_no_view_is_refused_and_harms_no_other(answering, session, wrong, reason):
    @answering
    def kdkit_views():
        return wrong

    assert "pareto" in offered_views()
    (problem,) = [plugin for plugin in manager().problems if plugin.name == "notebook:kdkit_views"]
    assert reason in problem.reason
    assert session.show("pareto").frontier


def test_long_work_of_a_view_is_observed_and_keeps_stages_out(session):
    seen = []

    def observe(progress):
        seen.append(progress.stage)
        with pytest.raises(KdError, match="a stage is running"):
            session.run("decompose svd")

    session.show(Sensitivity(layers="0"), observe=observe)
    assert seen[0] == "sensitivity"


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda session: session.pareto("@base", session.head, cost="size"), Pareto(versions=("@base", "@thin"))),
        (lambda session: session.layers("@base", "2"), Layers(version="@base", layers="2")),
        (lambda session: session.layers(patterns=["2"]), Layers(layers="2")),
        (lambda session: session.sensitivity(bits=2, items=8), Sensitivity(bits=2, items=8)),
        (lambda session: session.weights(0, layer="2"), Weights(before="@base", layer="2")),
        (lambda session: session.confusion("@base"), Confusion(version="@base")),
    ],
)
def test_a_method_that_a_view_replaced_works_and_warns(session, call, instead):
    with pytest.warns(DeprecationWarning, match=rf"session.show\('{instead.name}'\)") as caught:
        shown = call(session)
    assert caught[0].filename == __file__
    assert repr(shown) == repr(session.show(instead))


def test_replaced_methods_take_models_and_data_themselves(session):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert session.agreement(teacher=session.pop("@base"), data=(torch.eye(4), torch.arange(4))).summary.startswith("@thin agrees with the teacher on ")
        assert repr(session.summary("@base")) == repr(session.show("report --version @base"))
        with pytest.raises(KdError, match="pareto has no option --prize"):
            session.pareto(prize="size")


def test_a_session_has_no_other_attributes_than_its_own_and_those(session):
    with pytest.raises(AttributeError, match="'Session' object has no attribute 'paretto'"):
        session.paretto()
    assert not hasattr(session, "report")


@pytest.mark.slow
def test_declarations_are_listed_without_torch():
    code = "import sys\nfrom kdkit.views import offered_views\nassert len(offered_views()) == 8\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Forms: every field of every stage as a control, and the same stage back from the line that the form shows."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

import ipywidgets as widgets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
from kdkit.forms.controls import NOTHING, OTHER, Named, read_word, write_word
from kdkit.forms.form import Form
from kdkit.notebook.parser import parse_stage
from kdkit.notebook.verb import Verb, line_of, verbs
from kdkit.parameters.command_line import read_options
from kdkit.parameters.description import is_main
from kdkit.parameters.search import Search
from kdkit.parameters.settings import Settings, option, param
from kdkit.parameters.tokenizer import Reference, read_literal, split
from kdkit.parameters.value_types import kind, object_kind
from kdkit.plugins.hookspecs import hookimpl
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage

TEXT = some.text(alphabet=some.one_of(some.sampled_from("'\"{}#$@;=- ,*"), some.characters(codec="utf-8", exclude_characters="\n\r\t")), max_size=10)
NAME = some.one_of(TEXT.filter(bool), some.sampled_from(["teacher", "@base", "net"]), some.sampled_from(["big", "nets['a b']", "x + 1"]).map(Reference))


class Sample(Stage):
    """A field of every kind."""

    id: ClassVar = "tune.sample"
    rate: float = param(0.5, "a number", ge=0, lt=1, unit="%")
    steps: int | None = param(None, "a whole number, perhaps", ge=1)
    weight: float | Literal["auto", "paper"] = param("auto", "a number or a word", gt=0)
    share: int | Literal["all"] | None = param(None, "a number, a word, or neither", ge=1)
    names: tuple[str, ...] = param((), "texts")
    numbers: tuple[int, ...] = param((1, 2), "whole numbers")
    mode: Literal["fast", "slow"] = param("fast", "a choice")
    bits: Literal[4, 8] | None = param(None, "a choice, perhaps")
    exact: bool = param(True, "a flag")
    maybe: bool | None = param(None, "a flag with a third answer")
    folder: str | None = param(None, "a text, perhaps", advanced=True)
    layers: tuple[str, ...] = param((), "patterns", names="layers")
    widths: dict[str, int] = param({}, "whole numbers, by layer", ge=2, le=8, names="layers")
    notes: dict[str, str] = param({}, "texts, by name")
    choices: dict[str, Literal["fast", "slow"]] = param({}, "choices, by name")
    teacher: str = param("teacher", "a model", names="model")
    held: str | None = param(None, "data, perhaps", names="data")

    def apply(self, model: Any, context: Any) -> None: ...


STAGES = {**manager().stages(), "tune.sample": Sample}


def values(made: type[Settings], name: str) -> some.SearchStrategy:
    """What a field may hold; a name that is empty is none."""
    this = kind(made, name)
    if this.choices:
        one: Any = some.sampled_from(this.choices)
    elif object_kind(made, name) and this.base is str and not this.many and object_kind(made, name) != "path":
        one = NAME
    else:
        one = {bool: some.booleans(), int: some.integers(), float: some.floats(allow_nan=False, allow_infinity=False), str: TEXT, object: NAME}[this.base]
    if this.words:
        one |= some.sampled_from(this.words)
    if this.mapping:
        one = some.integers(2, 8) if this.base is int else one
        return some.dictionaries(TEXT.filter(bool), one, max_size=3)
    many = some.lists(one, min_size=made.model_fields[name].is_required(), max_size=3).map(tuple) if this.many else one
    return some.none() | many if this.optional else many


# there and back


@functools.cache
def form_of(made: type[Settings]) -> Form:
    """One form for all examples, as a form is filled again and again."""
    return Form(made)


def as_written(name: str, word: Any) -> Any:
    """A text of a literal, and any other expression as the reference that it is."""
    text = read_literal(word) if isinstance(word, Reference) else None
    return word if text is None else text


@pytest.mark.slow
@pytest.mark.parametrize("id", sorted(STAGES))
@given(data=some.data())
@settings(max_examples=8, deadline=None)
def test_a_form_shows_any_values_of_any_stage_and_its_line_is_read_back_as_the_same(id, data):
    made = STAGES[id]
    stated = {name: value for name in made.model_fields if (value := data.draw(values(made, name), label=name)) != made.model_fields[name].default}
    form = form_of(made)
    form.fill(stated)
    assert form.values() == stated
    assert read_options(made, split(" ".join(form.options())), id, as_written) == stated


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(verbs()))
def test_every_verb_has_a_form_and_its_sample_is_read_back(word, cells):
    verb: type[Verb] = verbs()[word]
    words = split(verb.example_line)[1:] if "%kd" in verb.example_line.split()[0] else split(verb.example_line.partition("%kd")[2])
    stated = read_options(verb, words[1:], word, lambda name, word: word, (), verb.positional)
    stated = {name: value for name, value in stated.items() if value != verb.model_fields[name].default}
    form = Form(verb, fields=[name for name in verb.model_fields if object_kind(verb, name) != "others"], values=stated)
    assert form.values() == stated
    assert read_options(verb, split(line_of(verb, form.values()))[2:], word, lambda name, word: word, (), verb.positional) == stated


@given(some.one_of(TEXT, NAME))
def test_a_word_that_is_written_is_read_as_what_it_was(value):
    assert read_word(write_word(value)) == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("head", "--widths head has no value; write head=VALUE"),
        ("head=many", "--widths head='many': input should be a valid integer"),
        ("head=9", "--widths head=9: input should be less than or equal to 8"),
        ("'head=4", "has no value"),
        ("'a layer=4' it\\=s=8", None),
        ("", None),
    ],
)
def test_a_list_of_names_with_values_is_validated_as_it_is_written(written, problem):
    form = Form(Sample)
    form.control("widths").first.value = written
    assert (problem in str(form.problem)) if problem else form.problem is None


def test_an_expression_stands_for_a_whole_mapping():
    form = Form(Sample)
    form.control("widths").first.value = "{plan}"
    assert form.options() == ["--widths", "{plan}"]


def test_layers_that_a_mapping_names_are_previewed():
    form = Form(Sample, model=lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    form.control("widths").first.value = "0=4"
    assert "1 modules: 0" in form._previews["widths"].value


# what it shows


def controls(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from controls(child)


@pytest.mark.slow
@pytest.mark.parametrize("id", sorted(STAGES))
def test_every_control_of_every_stage_has_a_name_and_is_of_a_kind_that_keyboard_and_screen_reader_reach(id):
    form = Form(STAGES[id])
    form.more.value = True
    reached = (widgets.Text, widgets.Combobox, widgets.Checkbox, widgets.Dropdown, widgets.ToggleButton, widgets.Button)
    # the field beside a slider does the same
    plain = (widgets.Box, widgets.HTML, widgets.FloatSlider, widgets.IntSlider, widgets.FloatLogSlider)
    named = [each for each in controls(form.box) if isinstance(each, reached)]
    assert all(isinstance(each, reached + plain) for each in controls(form.box))
    assert all(each.description for each in named)
    assert len({each.description for each in named}) == len(named)
    assert form.problem is None or any(STAGES[id].model_fields[name].is_required() for name in STAGES[id].model_fields)


def text_of(form):
    return " ".join(each.value for each in controls(form.box) if isinstance(each, widgets.HTML))


def test_help_bounds_and_units_are_beside_the_controls():
    form = Form(Sample)
    assert "a number (≥ 0, &lt; 1)" in text_of(form)
    assert form.control("rate").first.description == "rate (%)"
    assert form.control("rate").first.tooltip == "a number (≥ 0, < 1)"


def test_options_that_are_seldom_needed_are_made_when_they_are_asked_for():
    form = Form(Sample)
    assert not form._rest.children
    form.more.value = True
    assert form._rest.children
    assert form.control("folder").value is None
    assert Form(Sample, values={"folder": "here"}).more.value


def test_a_value_out_of_bounds_stays_and_is_reported_with_its_bound():
    form, received = Form(Sample), []
    form.on_change(lambda: received.append(form.problem))
    form.control("rate").first.value = "7"
    assert form.values() == {"rate": 7}
    assert "less than 1" in form.problem.message
    assert "less than 1" in text_of(form)
    form.control("rate").first.value = "0.25"
    assert form.problem is None
    assert "less than 1" not in text_of(form)
    assert [bool(each) for each in received] == [True, False]


@pytest.mark.parametrize(
    ("name", "shown", "written", "value"),
    [
        ("rate", "0.5", "0.25", 0.25),
        ("steps", "not set", "2k", 2000),
        ("weight", "auto", "paper", "paper"),
        ("share", "not set", "all", "all"),
        ("share", "not set", "50", 50),
        ("numbers", "1 2", "3", (3,)),
        ("numbers", "1 2", "()", ()),
        ("names", "several: a b c", "a 'b c'", ("a", "b c")),
        ("folder", "not set", "'none'", "none"),
        ("folder", "not set", "none", None),
        ("folder", "not set", "''", ""),
    ],
)
def test_an_empty_field_has_the_default_which_it_shows_as_placeholder(name, shown, written, value):
    form = Form(Sample)
    field = form.control(name).first
    assert (field.value, field.placeholder) == ("", shown)
    assert form.values() == {}
    field.value = written
    assert form.values() == ({} if value is None else {name: value})
    field.value = "  "
    assert form.values() == {}
    if value is not None:
        form.fill({name: value})
        assert form.values() == {name: value}


class Patient(Settings):
    """A field whose default is a number, and which may hold none."""

    patience: int | None = param(3, "how many", ge=1)


def test_a_field_that_may_be_empty_although_its_default_is_a_number_says_none():
    form = Form(Patient)
    form.fill({"patience": None})
    assert form.control("patience").first.value == "none"
    assert form.values() == {"patience": None}


class Front(Settings):
    """A class that says which of its fields matter."""

    ratio: float = param(0.5, "a share", gt=0, lt=1, search=(0.1, 0.8), main=True)
    rank: int = param(8, "a whole number", ge=1, search=(2, 64), main=True)
    rate: float = param(1e-3, "a number over orders of magnitude", gt=0, search=Search(1e-5, 1e-1, log=True), main=True)
    share: float | None = param(None, "a number with two bounds", ge=0, le=1, main=True)
    steps: int = param(10, "a number without a range", ge=1, main=True)
    name: str = param(..., "a text that is required")
    mode: Literal["fast", "slow"] = param("fast", "a choice")


def slider(form, name):
    found = [each for each in controls(form.control(name).widget) if isinstance(each, widgets.FloatSlider | widgets.IntSlider | widgets.FloatLogSlider)]
    return found[0] if found else None


def test_the_main_and_the_required_options_are_at_the_front_and_the_others_are_folded():
    form = Form(Front)
    assert list(form._editors) == ["ratio", "rank", "rate", "share", "steps", "name"]
    assert form.more.description == "All options"
    assert form.more.layout.display is None
    form.more.value = True
    assert list(form._editors) == list(Front.model_fields)


def test_a_main_number_with_a_range_has_a_slider_on_the_scale_that_it_declares():
    form = Form(Front)
    assert {name: type(slider(form, name)) for name in ("ratio", "rank", "rate", "share", "steps")} == {
        "ratio": widgets.FloatSlider,
        "rank": widgets.IntSlider,
        "rate": widgets.FloatLogSlider,
        "share": widgets.FloatSlider,
        "steps": type(None),
    }
    assert (slider(form, "ratio").min, slider(form, "ratio").max) == (0.1, 0.8)
    assert (slider(form, "rate").min, slider(form, "rate").max) == (-5, -1)
    assert [slider(form, name).value for name in ("ratio", "rank", "rate")] == [0.5, 8, 1e-3]


@pytest.mark.parametrize(
    ("name", "position", "written", "typed", "follows"),
    [("ratio", 0.30000000000000004, "0.3", "25%", 0.25), ("rank", 16, "16", "200", 64), ("rate", 0.0123456, "0.012", "1e-9", 1e-5)],
)
def test_a_slider_writes_a_short_number_and_follows_what_is_typed(name, position, written, typed, follows):
    form, received = Form(Front, values={"name": "a"}), []
    form.on_change(lambda: received.append(form.values().get(name)))
    slider(form, name).value = position
    assert form.control(name).first.value == written
    form.control(name).first.value = typed
    assert slider(form, name).value == pytest.approx(follows)
    assert len(received) == 2, "a move is one change"
    form.fill({})
    assert form.control(name).first.value == ""
    assert slider(form, name).value == Front.model_fields[name].default


FIRST_PARTY = [id for id, made in manager().stages().items() if made.__module__.startswith("kdkit_") and made.model_fields]


@pytest.mark.parametrize("id", FIRST_PARTY)
def test_a_form_shows_few_options_at_the_front(id):
    made = manager().stages()[id]
    assert sum(is_main(made, name) for name in made.model_fields) <= 5


def test_patterns_are_tried_on_the_model_as_they_are_written():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    form = Form(Sample, model=lambda: net)
    form.control("layers").first.value = "0 2"
    assert "2 modules: 0, 2" in text_of(form)
    form.control("layers").first.value = "encoder"
    assert "fits no module" in text_of(form)


def test_names_are_offered_and_the_chosen_ones_stay_when_other_names_are():
    names = ["teacher", Reference("big")]
    form = Form(Sample, suggestions=lambda made, name: names if name == "teacher" else ())
    form.control("teacher").first.value = Reference("big")
    assert form.options() == ["--teacher", "{big}"]
    names[:] = ["teacher"]
    form.refresh()
    assert form.options() == ["--teacher", "{big}"]
    assert form.control("teacher").first.value == OTHER


def test_a_list_that_goes_back_to_nothing_shows_that_entry():
    form = Form(Sample, suggestions=lambda made, name: ["big"] if name == "held" else ())
    for name, value in (("held", "big"), ("bits", 4), ("maybe", False)):
        form.fill({name: value})
        assert form.values() == {name: value}
        form.fill({})
        assert form.control(name).first.label == "(not set)"


def test_the_default_is_always_among_what_is_offered():
    form = Form(Sample)
    assert form.control("teacher").first.label == "teacher"
    form.refresh()
    assert form.control("teacher").first.label == "teacher"


def test_what_must_be_named_is_empty_where_nothing_is_offered():
    form = Form(verbs()["use"], fields=["model"])
    assert form.values() == {}
    assert "model" in form.problem.message


def test_something_else_shows_a_field_for_it():
    named = Named("teacher", ["a"], "a model", optional=False)
    assert named.text.layout.display == "none"
    named.first.value = OTHER
    assert named.text.layout.display is None
    named.text.value = "{nets['a']}"
    assert named.value == Reference("nets['a']")


def test_a_plugin_brings_a_control_of_its_own_and_one_that_fails_is_reported_and_replaced():
    class Own:
        @hookimpl
        def kdkit_widget(self, stage, name, value):
            if name == "mode":
                return widgets.ToggleButtons(options=["fast", "slow"], value=value)
            if name == "exact":
                raise ValueError("no such control")

    manager().add(Own(), "test-own-control")
    try:
        with pytest.warns(UserWarning, match="kdkit_widget failed for tune sample --exact: plugin test-own-control: kdkit_widget raised ValueError: no such control"):
            form = Form(Sample)
    finally:
        manager().unregister(name="test-own-control")
    assert isinstance(form.control("mode").first, widgets.ToggleButtons)
    form.control("mode").first.value = "slow"
    assert form.options() == ["--mode", "slow"]
    assert isinstance(form.control("exact").first, widgets.Checkbox)


@pytest.mark.parametrize(
    ("given", "stated"),
    [
        ("a text", "plugin test-own-control: its kdkit_widget returned the text 'a text'; it must return a widget with a value"),
        (widgets.Dropdown(options=["slow"]), "TraitError: Invalid selection"),
    ],
)
def test_a_plugins_control_that_is_none_or_cannot_show_the_default_is_reported_and_replaced(given, stated):
    class Own:
        @hookimpl
        def kdkit_widget(self, stage, name, value):
            return given if name == "mode" else None

    manager().add(Own(), "test-own-control")
    try:
        with pytest.warns(UserWarning, match=f"kdkit_widget failed for tune sample --mode: {stated}"):
            form = Form(Sample)
    finally:
        manager().unregister(name="test-own-control")
    assert form.control("mode").value == "fast"


def test_a_line_of_the_form_is_a_stage():
    form = Form(Sample, values={"teacher": Reference("big"), "names": ("a b", "c")})
    line = " ".join(["tune", "finetune"])
    assert parse_stage(split(line)).target.id == "tune.finetune"
    assert option("names") in form.options()


def dropdowns(widget):
    found = [widget] if isinstance(widget, widgets.Dropdown) else []
    return found + [each for child in getattr(widget, "children", ()) for each in dropdowns(child)]


@pytest.mark.slow
@pytest.mark.parametrize("made", [Sample, *verbs().values()])
def test_no_list_is_blank_also_when_it_is_set_back_to_nothing(made):
    form = Form(made, suggestions=lambda made, name: ["one", Reference("other")])
    for each in dropdowns(form.box):
        for index in (len(each.options) - 1, 0):
            each.index = index
            assert each.index == index
    form.fill({})
    assert all(each.label == NOTHING for each in dropdowns(form.box) if NOTHING in dict(each.options))
    assert None not in [each.index for each in dropdowns(form.box)]

"""Lines: words out of text, values out of words, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit.parameters.command_line import read_options, write_options
from kdkit.parameters.description import bounds, holds
from kdkit.parameters.mapping import differ
from kdkit.parameters.settings import Settings, option, param
from kdkit.parameters.tokenizer import Reference, scan, split
from kdkit.parameters.value_types import Kind, field_faults, kind
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage

NASTY = some.text(alphabet=some.one_of(some.sampled_from("'\"{}#$@;=- \\\t\n%!`*~"), some.characters(codec="utf-8")), max_size=12)


class Sample(Settings):
    rate: float = param(0.5, "a number", ge=0)
    steps: int | None = param(None, "a whole number")
    names: tuple[str, ...] = param((), "texts")
    mode: Literal["fast", "slow"] = param("fast", "a choice")
    exact: bool = param(True, "a flag")
    maybe: bool | None = param(True, "a flag with a third answer")
    bits: dict[str, int] = param({}, "whole numbers by name")
    notes: dict[str, str] = param({}, "texts by name")
    shares: dict[str, float] = param({"a": 0.5}, "numbers by name")
    frozen: dict[str, bool] = param({}, "flags by name")
    modes: dict[str, Literal["fast", "slow"]] = param({}, "choices by name")
    as_: str = param("x", "a text")
    o: str | None = param(None, "a short option")


def read(line: str, owner: type[Settings] = Sample, **more: Any) -> dict[str, Any]:
    return read_options(owner, split(line), "sample", **more)


# words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("   # only a comment", []),
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("it''s 'it'\"'\"'s'", ["its", "it's"]),
        ("--x='a b' ''", ["--x=a b", ""]),
        (r"C:\new\table \n", [r"C:\new\table", r"\n"]),
        ("a#b c #d", ["a#b", "c"]),
        ("'#a' a'#b'", ["#a", "a#b"]),
        ("undo;", ["undo"]),
        ("undo ;  # back", ["undo"]),
        ("a;b 'c;'", ["a;b", "c;"]),
        ("{{x}} '{x}' x{{y}}", ["{x}", "{x}", "x{y}"]),
        ("$5 '$x' ^x$ a'$b'", ["$5", "$x", "^x$", "a$b"]),
        ("out_{i} a$b page_$i.html", [Reference("f'out_{i}'"), Reference("f'a{b}'"), Reference("f'page_{i}.html'")]),
        ("{a}{b} 'a b/'{n + 1:02}", [Reference("f'{a}{b}'"), Reference("f'a b/{n + 1:02}'")]),
        ("--path=out/{d['x']}", [Reference("f\"out/{d['x']}\"", "--path")]),
        ("{{{i}}}.{{b}}", [Reference("f'{{{i}}}.{{b}}'")]),
        ("{i:02} {d['a']!r:>4}", [Reference("f'{i:02}'"), Reference("f\"{d['a']!r:>4}\"")]),
        ('--x={"a": {"b": 1}}', None),
        ('{"a":1}', None),
        ("{x}", [Reference("x")]),
        ("$x", [Reference("x")]),
        ("$größe;", [Reference("größe")]),
        ("{ loaders['train'] }", [Reference("loaders['train']")]),
        ("--train {d['a b']} --x", ["--train", Reference("d['a b']"), "--x"]),
        ('--train={d["}"]};', [Reference('d["}"]', "--train")]),
        ("{{'a': 1}", ["{a:", "1}"]),
        ("{ {'a': 1}['a'] }", [Reference("{'a': 1}['a']")]),
        ("{f'{a}'} {[i for i in b]}", [Reference("f'{a}'"), Reference("[i for i in b]")]),
        ("{lambda p, l: 0.5}", [Reference("lambda p, l: 0.5")]),
        ("{x # y}", [Reference("x # y")]),
        ("'open", None),
        ('"open', None),
        ("{open", None),
        ("{}", None),
        ("{1 +}", None),
        ("{x}y", [Reference("f'{x}y'")]),
        ("$x.y", [Reference("f'{x}.y'")]),
        ("x{", None),
        ("--x={", None),
    ],
)
def test_a_line_is_cut_into_words_and_references(line, words):
    if words is None:
        with pytest.raises(KdError):
            split(line)
    else:
        assert split(line) == words


@pytest.mark.slow
@given(some.lists(NASTY, max_size=5))
def test_quoted_words_come_back_whatever_they_hold(words):
    import shlex

    assert split(" ".join(map(shlex.quote, words))) == words


@pytest.mark.slow
@given(some.text(max_size=40))
@settings(max_examples=300)
def test_any_text_is_cut_or_refused_with_a_message(text):
    with contextlib.suppress(KdError):
        scan(text)


@pytest.mark.slow
@given(some.lists(NASTY, max_size=4))
def test_a_line_without_its_own_semicolon_is_not_silenced(words):
    import shlex

    line = " ".join(map(shlex.quote, words))
    assert not scan(line)[1]
    assert scan(line + " ;")[1]
    assert split(line + " ;") == words


# values


def test_values_are_read_by_the_types_of_the_fields():
    assert read("--rate 1e-3 --steps 7 --names a 'b c' --mode slow --no-exact --as y -o r") == {
        "rate": 0.001,
        "steps": 7,
        "names": ("a", "b c"),
        "mode": "slow",
        "exact": False,
        "as_": "y",
        "o": "r",
    }


def test_an_equals_sign_gives_a_value_that_looks_like_an_option():
    assert read("--as=--weird --rate=-1 -o=-o --names=-a --names=''") == {"as_": "--weird", "rate": -1.0, "o": "-o", "names": ("-a", "")}


def test_underscores_are_taken_for_dashes_and_the_last_word_counts():
    class Long(Settings):
        learning_rate: float = param(0.1, "of the optimizer")

    assert read("--learning_rate 1 --learning-rate 2", Long) == {"learning_rate": 2.0}


@pytest.mark.parametrize(
    ("line", "value"),
    [("--no-steps", {"steps": None}), ("--no-names", {"names": ()}), ("--maybe=none", {"maybe": None}), ("--exact=no", {"exact": False}), ("--exact", {"exact": True})],
)
def test_options_can_be_turned_off(line, value):
    assert read(line) == value


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("--stepz 1", "sample has no option --stepz", "did you mean --steps"),
        ("--rate", "sample: --rate needs a value", "--rate: a number"),
        ("--rate --exact", "sample: --rate needs a value", "--rate: a number"),
        ("--rate x", "sample: --rate 'x' is not a number", ""),
        ("--steps 1.5", "sample: --steps '1.5' is not a whole number", ""),
        ("--exact=perhaps", "sample: --exact 'perhaps' is neither true nor false", ""),
        ("--no-rate", "sample: --rate can't be turned off", "--rate: a number"),
        ("--no-exact=1", "sample: --no-exact takes no value", ""),
        ("stray", "sample: 'stray' is not an option", "options look like --name value"),
        ("-x 1", "sample: '-x' is not an option", "options look like --name value"),
        ("--rate {x}", "sample: --rate {x}: objects can be named like this on a notebook's %kd line only", ""),
        ("--rate={x}", "sample: --rate {x}: objects can be named like this on a notebook's %kd line only", ""),
    ],
)
def test_a_wrong_option_is_one_message_that_says_what_to_do(line, message, hint):
    with pytest.raises(KdError) as caught:
        read(line)
    assert caught.value.message == message
    assert any(reported.startswith(hint) for reported in (*caught.value.hints, ""))


def test_references_are_passed_to_the_resolver_with_their_field():
    seen = []
    read("--rate {a} --names $b {c}", resolve=lambda name, word: seen.append((name, word)) or 1)
    assert seen == [("rate", Reference("a")), ("names", Reference("b")), ("names", Reference("c"))]


def test_numbers_of_numpy_and_lists_are_values_too():
    objects = {"a": numpy.float32(0.25), "b": ["x", "y"], "c": numpy.int64(3)}
    values = read("--rate {a} --names z {b} --steps {c}", resolve=lambda name, word: objects[word.source] if isinstance(word, Reference) else word)
    assert Sample.build("sample", values) == Sample(rate=0.25, names=("z", "x", "y"), steps=3)


def test_words_by_position_fill_the_places_in_order_wherever_they_are():
    assert read("a --rate 1 b c", places=("as_", "names")) == {"as_": "a", "rate": 1.0, "names": ("b", "c")}


def test_classes_share_a_line_and_the_first_one_wins():
    class Other(Settings):
        rate: str = param("", "another rate")
        extra: int = param(0, "more")

    assert read("--rate 2 --extra 3", beside=(Other,)) == {"rate": 2.0, "extra": 3}


def test_unknown_options_go_to_the_others_unless_they_are_slips():
    class Open(Settings):
        train: Any = param(None, "data")
        others: Any = param(None, "any other object", names="others")

    assert read("--train a --held b --train2=c", Open) == {"train": "a", "others": {"held": "b", "train2": "c"}}
    with pytest.raises(KdError, match="no option --trian"):
        read("--trian a", Open)


def test_names_become_options_and_back():
    assert [option(name) for name in ("rate", "learning_rate", "as_", "o")] == ["--rate", "--learning-rate", "--as", "-o"]


# fields


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (bool, True, Kind(bool)),
        (int | None, None, Kind(int, (), True)),
        (tuple[float, ...], (), Kind(float, (), False, True)),
        (Literal[4, 8], 8, Kind(int, (4, 8))),
        (tuple[Literal["a", "b"], ...], (), Kind(str, ("a", "b"), False, True)),
        (dict[str, int], {}, Kind(int, mapping=True)),
        (Mapping[str, Literal[4, 8]], {}, Kind(int, (4, 8), mapping=True)),
    ],
)
def test_the_kind_of_a_field_is_read_from_its_type(annotation, default, expected):
    made = type(Settings)("Made", (Settings,), {"__module__": __name__, "__annotations__": {"x": annotation}, "x": param(default, "help")})
    assert kind(made, "x") == expected


@pytest.mark.parametrize(
    ("name", "annotation", "default", "fault"),
    [
        ("x_", str, "", "no _ at its end"),
        ("no_bias", bool, True, "name it for what it turns on"),
        ("field", dict, {}, "no option can carry"),
        ("field", int | str, 1, "no option can carry"),
        ("field", tuple[bool, ...], (), "no option can carry"),
        ("field", Any, None, "an object is named"),
        ("field", tuple[str, ...] | None, None, "drop the | None"),
        ("field", dict[str, int] | None, None, "an empty dict means that nothing is set; drop the | None"),
        ("field", dict[int, int], {}, "no option can carry"),
        ("field", dict[str, Any], {}, "no option can carry"),
        ("field", dict[str, tuple[int, ...]], {}, "no option can carry"),
        ("field", Literal["a", 1], "a", "no option can carry"),
        ("field", int, "many", "not one of its own values"),
    ],
)
def test_a_field_that_no_line_can_carry_is_named(name, annotation, default, fault):
    made = type(Settings)(
        "Made", (Settings,), {"__module__": __name__, "__annotations__": {name: annotation}, name: param(default, "help"), "model_config": {"validate_default": False}}
    )
    assert any(fault in reported for reported in field_faults(made))


def test_a_sound_class_has_no_faults():
    class Sound(Stage):
        id: ClassVar = "tune.sound"
        rate: float = param(0.5, "a number")
        names: tuple[str, ...] = param(("a",), "texts")

    assert list(field_faults(Sound)) == []


# there and back


def values(made: type[Settings], name: str) -> some.SearchStrategy:
    this = kind(made, name)
    base = {bool: some.booleans(), int: some.integers(), float: some.floats(allow_nan=False, allow_infinity=False), str: NASTY}[this.base]
    one = some.sampled_from(this.choices) if this.choices else base
    many = some.lists(one, max_size=3).map(tuple) if this.many else one
    if this.mapping:
        return some.dictionaries(NASTY.filter(bool), one, max_size=3)
    return some.none() | many if this.optional else many


@pytest.mark.slow
@pytest.mark.parametrize("id", [*sorted(manager().stages()), "sample"])
@given(data=some.data())
@settings(max_examples=40, deadline=None)
def test_every_stage_comes_back_from_its_own_line_whatever_its_options_hold(id, data):
    made = manager().stages().get(id, Sample)
    given = {name: data.draw(values(made, name), label=name) for name in made.model_fields}
    written = made.model_construct(**given)
    line = " ".join(write_options(written))
    again = read_options(made, split(line), id)
    assert again == written.changed()
    assert not any(differ(again[name], value) for name, value in written.changed().items())


# a number or a word


class Weighted(Settings):
    weight: float | Literal["auto", "paper"] = param("auto", "a number or a word", gt=0, search=(0.1, 10))
    count: int | Literal["all"] = param(3, "a whole number or a word", ge=1)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--weight auto", {"weight": "auto"}),
        ("--weight=paper --count all", {"weight": "paper", "count": "all"}),
        ("--weight 2.5 --count 4", {"weight": 2.5, "count": 4}),
    ],
)
def test_an_option_is_a_number_or_one_of_its_words(line: str, values: dict[str, Any]) -> None:
    made = Weighted.build("sample", read(line, Weighted))
    assert {name: getattr(made, name) for name in values} == values
    assert Weighted.build("sample", read_options(Weighted, write_options(made), "sample")) == made


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--weight aut", "sample: --weight 'aut' is neither a number nor auto or paper"),
        ("--count 1.5", "sample: --count '1.5' is neither a whole number nor all"),
    ],
)
def test_another_word_is_refused_with_the_words_that_are_allowed(line: str, message: str) -> None:
    with pytest.raises(KdError) as caught:
        read(line, Weighted)
    assert caught.value.message == message


@pytest.mark.parametrize("values", [{"weight": 0}, {"weight": -1.0}, {"weight": float("nan")}, {"weight": "sometimes"}, {"count": 0}])
def test_bounds_hold_for_the_number_and_the_message_names_the_option_alone(values: dict[str, Any]) -> None:
    with pytest.raises(KdError) as caught:
        Weighted.build("sample", values)
    assert caught.value.message.startswith(f"sample: {option(next(iter(values)))} ")
    assert "literal" not in str(caught.value)


def test_the_words_are_described() -> None:

    assert (holds(Weighted, "weight"), bounds(Weighted, "weight")) == ("number | auto | paper", "> 0")
    assert not list(field_faults(Weighted))

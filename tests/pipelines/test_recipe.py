"""Recipes: each field has a type, and whatever else a file holds is one message that names the field."""

import contextlib
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError, printable_lines
from kdkit.pipelines.pipeline import Pipeline
from kdkit.pipelines.recipe import read_header

LINES = "tune finetune --epochs 2 --layers a b\nquantize static --skip head"


def recipe(**fields: Any) -> dict[str, Any]:
    return {"kdkit": 1, "steps": []} | fields


def step(**fields: Any) -> dict[str, Any]:
    return recipe(steps=[{"stage": "tune.finetune"} | fields])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (recipe(kdkit=True), "format True"),
        (recipe(kdkit=[1]), r"format \[1\]"),
        (recipe(kdkit=1.0), "kdkit is 1.0"),
        (recipe(name=5), "name is 5"),
        (recipe(name="a\n!touch"), r"name is 'a\\n!touch': it holds a line break"),
        (recipe(seed="abc"), "seed is 'abc'"),
        (recipe(seed=-1), "seed is -1"),
        (recipe(seed=2**63), "seed is "),
        (recipe(seed=10**9999), "seed is a number of 33216 bits"),
        (recipe(seed=True), "seed is True"),
        (recipe(distributions=[1]), r"distributions is \[1\]"),
        (recipe(distributions={"kdkit": 1}), "distributions.kdkit is 1"),
        (recipe(distributions={"a\x1b[2J": "1"}), r"a\\x1b\[2J"),
        (recipe(extra=1), "extra is 1: extra"),
        (recipe(steps=5), "is not a kdkit recipe"),
        (recipe(steps=[{1: 2}]), "step 1 is not a stage"),
        (step(stage=5), "step 1: stage is 5"),
        (step(stage="x" * 300), "at most 200 characters"),
        (step(version="a"), "step 1: version is 'a'"),
        (step(version=None), "step 1: version is None"),
        (step(version=0), "step 1: version is 0"),
        (step(options=[1]), r"step 1: options is \[1\]"),
        (step(options=None), "step 1: options is None"),
        (step(options={1: 2}), "step 1: options.1"),
        (step(options={"a\nb": 2}), r"step 1: options.a\\nb"),
        (step(options={"epochs": [[1]]}), "step 1: options.epochs"),
        (step(options={"epochs": {1: 2}}), "step 1: options.epochs"),
        (step(options={"epochs": object()}), "step 1: options.epochs"),
        (step(options={"epochs": "9" * 9999}), "--epochs '9999"),
        (step(optoins={}), "optoins is {}: extra"),
        (recipe(steps=[{"together": 5}]), "step 1: together is 5"),
        (recipe(steps=[{"together": []}]), "step 1: together needs two stages"),
        (recipe(steps=[{"together": [{"together": []}]}]), "stage 1 of together is not a stage"),
    ],
)
def test_a_wrong_field_is_one_message_that_names_it(data, message):
    with pytest.raises(KdError, match=message) as caught:
        Pipeline.from_data(data, "small.yaml")
    assert caught.value.message.startswith("small.yaml")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def test_a_header_is_validated_without_the_plugins_of_its_stages():
    assert read_header(recipe(name="slim", steps=[{"stage": "prune.of-nobody"}]), "small.yaml").name == "slim"


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5) | some.integers(), inner, max_size=3),
    max_leaves=6,
)


@some.composite
def mutated(draw: Any) -> Any:
    """A recipe in which one value, at any depth, is another one, or is gone."""
    data = Pipeline.from_lines(LINES + "\ntogether:\n  tune finetune --epochs 2\n  tune finetune").data() | {"name": "small", "seed": 1}
    place: Any = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(some.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(some.integers(0, 3)) == 0:
            break
        place = place[key]
    if draw(some.integers(0, 5)) == 0:
        del place[key]
    else:
        place[key] = draw(PLAIN)
    return data


@pytest.mark.slow
@given(mutated())
@settings(max_examples=150, deadline=5000)
def test_a_changed_recipe_is_read_or_refused_in_one_error(data):
    with contextlib.suppress(KdError):
        Pipeline.from_data(data)


@pytest.mark.slow
@given(some.data())
@settings(max_examples=100, deadline=None)
def test_changed_bytes_of_a_recipe_are_read_or_refused_within_seconds(tmp_path_factory, data):
    text = bytearray(yaml.safe_dump(Pipeline.from_lines(LINES).data(), sort_keys=False).encode())
    for _ in range(data.draw(some.integers(1, 4))):
        at = data.draw(some.integers(0, len(text) - 1))
        text[at : at + data.draw(some.integers(0, 3))] = data.draw(some.binary(max_size=4) | some.sampled_from([b"[" * 99, b"&a ", b"*a", b"!!set ", b"\n- ", b": "]))
    path = tmp_path_factory.getbasetemp() / "changed.yaml"
    path.write_bytes(bytes(text))
    began = time.perf_counter()
    with contextlib.suppress(KdError):
        Pipeline.load(path)
    assert time.perf_counter() - began < 5


OUTSIDE = ["/etc/kept", "../kept", "a/../../kept", "~/kept", "~root/kept", "C:\\kept", "C:kept", "\\\\host\\kept", "..\\kept", "linked/kept", "a\0b", "/dev/shm/kept"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(("stage", "option"), [("tune.finetune", "checkpoint"), ("distill.soft", "cache"), ("distill.soft", "checkpoint")])
def test_a_recipe_names_no_place_outside_of_the_working_directory(path, stage, option, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    made = {"stage": stage, "options": {option: path}}
    for data in (recipe(steps=[made]), recipe(steps=[{"together": [made, {"stage": "tune.finetune"}]}])):
        with pytest.raises(KdError, match=f"small.yaml, step 1.*--{option} .* is outside of the working directory") as caught:
            Pipeline.from_data(data, "small.yaml")
        assert any("--anywhere" in hint for hint in caught.value.hints)
        assert Pipeline.from_data(data, "small.yaml", anywhere=True)


@pytest.mark.parametrize("path", ["kept", "./kept", "runs/a/kept", "a..b", "runs/~kept", "."])
def test_a_recipe_names_places_in_the_working_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Pipeline.from_data(step(options={"checkpoint": path})).stages[0].checkpoint == path
    assert Pipeline.from_data(step(options={"checkpoint": str(tmp_path / path)}), anywhere=True)


def test_a_place_on_a_line_that_a_person_writes_is_free(tmp_path):
    assert Pipeline.from_lines(f"tune finetune --checkpoint {tmp_path}").data()["steps"][0]["options"] == {"checkpoint": str(tmp_path)}


TEXTS = some.text(
    some.sampled_from("ab '\"{}$#=-\\%!") | some.sampled_from("\n\r\t\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u200e\x1b\0") | some.characters(codec="utf-8"),
    min_size=1,
    max_size=9,
)


@pytest.mark.slow
@given(some.lists(TEXTS, min_size=1, max_size=3), TEXTS)
@settings(max_examples=150, deadline=None)
def test_the_lines_of_a_pipeline_make_it_again_whatever_its_texts_hold(layers, text):
    stage = {"stage": "tune.finetune", "options": {"layers": layers, "checkpoint": text}}
    pipeline = Pipeline.from_data(recipe(steps=[stage, {"together": [stage, stage]}]), anywhere=True)
    lines = pipeline.lines()
    assert len(lines.splitlines()) == 4
    assert printable_lines(lines) == lines
    assert Pipeline.from_lines(lines) == pipeline


def test_a_line_break_in_a_value_is_no_line_of_its_own():
    pipeline = Pipeline.from_data(step(options={"layers": ["a\n!touch PWNED", "b"]}))
    assert pipeline.lines() == r"tune finetune --layers {'a\n!touch PWNED'} b"

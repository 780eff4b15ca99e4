"""Completion, as the kernel gives it for a cursor at the end of a text."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "offered", "withheld"),
    [
        ("%kd ", ["use", "compare", "prune", "quantize"], ["channels", "--ratio"]),
        ("%kd pr", ["prune"], ["use"]),
        ("r = %kd pr", ["prune"], []),
        ("a, b = %kd pr", ["prune"], []),
        ("x = 1\n%kd pr", ["prune"], []),
        ("    %kd pr", ["prune"], []),
        ("%kd prune ", ["channels"], ["--ratio", "finetune"]),
        ("%kd prune ch", ["channels"], []),
        ("%kd prune channels ", ["--ratio", "--on", "--dry-run", "--quiet"], ["channels"]),
        ("%kd prune channels --ra", ["--ratio"], ["--on"]),
        ("%kd prune channels --ratio ", ["0.5"], ["--on"]),
        ("%kd prune channels --ratio 0.5 --r", ["--round-to"], ["--ratio"]),
        ("%kd tune finetune --optimizer ", ["adamw", "adam", "sgd"], ["--epochs"]),
        ("%kd tune finetune --optimizer a", ["adamw", "adam"], ["sgd"]),
        ("%kd tune finetune --optimizer=s", ["sgd"], ["adam"]),
        ("%kd tune finetune --resume=", ["true", "false"], []),
        ("%kd prune channels --what channels h", ["heads", "hidden"], ["channels"]),
        ("%kd quantize dynamic --no-", ["--no-embeddings"], ["--no-layers"]),
        ("%kd tune finetune --on ", ["@base"], ["--epochs"]),
        ("%kd tune finetune --on=@b", ["@base"], []),
        ("%kd compare @base ", ["@base", "--by"], []),
        ("%kd save small @", ["@base"], []),
        ("%kd eval ", ["@base"], []),
        ("%kd tune finetune --data ", ["train", "{train}"], ["{nope}"]),
        ("%kd tune finetune --data {tr", ["train}"], []),
        ("%kd tune finetune --data={tr", ["train}"], []),
        ("%kd tune finetune --data $tr", ["train"], []),
        ("%kd distill soft --student ", ["mobilenet-v2", "layers=0,2", "@base"], ["soft"]),
        ("%kd distill soft --also ", ["hints", "similarity"], ["merge", "born-again"]),
        ("%kd use ", ["net", "big"], ["{net}"]),
        ("%kd use net --tr", ["--train"], []),
        ("%kd help ", ["use", "prune"], ["channels"]),
        ("%kd help prune ", ["channels"], []),
        ("%kd list ", ["prune"], ["use"]),
        ("%kd plugins ", ["block", "unblock"], []),
        ("%kd plugins block ", ["prune"], []),
        ("%kd --de", ["--debug"], []),
        ("%%kd ", ["--on", "--seed"], ["prune"]),
        ("%%kd small --se", ["--seed"], []),
        ("%%kd small\npr", ["prune"], ["use"]),
        ("%%kd small\n", ["prune", "together:"], ["use", "--on"]),
        ("%%kd small\nprune channels\ntune ", ["finetune"], []),
        ("%%kd small\ntogether:\n    distill soft --tem", ["--temperature"], []),
        ("%%kd small\nprune channels --", ["--ratio"], ["--on", "--dry-run"]),
        ("kd pr", [], ["prune"]),
        ("x = 'a %kd pr", [], ["prune"]),
        ("%kdx pr", [], ["prune"]),
        ("%%time\nx", [], ["prune"]),
    ],
)
def test_what_may_come_next_is_offered(cells, text, offered, withheld):
    found = cells.complete(text)
    assert set(offered) <= set(found)
    assert not set(withheld) & set(found)


def test_only_kdkit_answers_where_it_has_an_answer(cells):
    cells.shell.Completer.use_jedi = False
    found = cells.shell.Completer._complete(cursor_line=0, cursor_pos=11, full_text="%kd undo --")
    assert list(found) == ["kdkit"]
    assert [each.text for each in found["kdkit"]["completions"]] == ["--times", "--quiet", "--debug"]


def test_files_are_offered_where_a_path_is_wanted(cells, tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "r.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert cells.complete("%kd load ") == ["r.yaml", "small/", "--path", "--skeleton", "-o", "--quiet", "--debug"]


def test_a_technique_of_the_notebook_is_offered_at_once(cells, offered):
    import kdkit

    @kdkit.stage("prune.mine")
    def mine(model, context, *, share: float = 0.5):
        """Mine."""

    assert cells.complete("%kd prune m") == ["mine"]
    assert cells.complete("%kd prune mine --s") == ["--share", "--seed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%kd tune mixed --bits 0", ["0="]),
        ("%kd tune mixed --bits 0=8 2", ["2="]),
        ("%kd tune mixed --bits=2", ["2="]),
        ("%kd tune mixed --bits 0=", ["4", "8"]),
        ("%kd tune mixed --bits 0=4 2=8", ["8"]),
        ("%kd tune mixed --bits=0=", ["4", "8"]),
        ("%kd tune mixed --fixed 0=", ["true", "false"]),
        ("%kd tune mixed --fixed 0=true --bi", ["--bits"]),
    ],
)
def test_layers_are_offered_before_the_equals_sign_of_a_mapping_and_values_after_it(cells, offered, text, found):
    import kdkit

    class Mixed(kdkit.Stage):
        """Another number of bits for each layer."""

        id: ClassVar = "tune.mixed"
        bits: dict[str, Literal[4, 8]] = kdkit.param({}, "bits, by layer", names="layers")
        fixed: dict[str, bool] = kdkit.param({}, "layers that stay", names="layers")

        def apply(self, model, context):
            """Leave the model alone."""

    offered(Mixed)
    assert cells.complete(text) == found


PIECES = ["%kd ", "%%kd ", "prune ", "channels ", "--ratio", "=", " ", "{", "}", "'", "@", "\n", "help ", "$", "-o", "x = "]


@pytest.mark.slow
@given(some.one_of(some.text(max_size=25), some.lists(some.sampled_from(PIECES), max_size=8).map("".join)))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_completion_never_raises(cells, text):
    from kdkit.notebook.completion import complete

    complete(("%kd " + text).split("\n"), cells.shell)
    complete(("%%kd " + text).split("\n"), cells.shell)

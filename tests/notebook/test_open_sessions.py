"""Several models in one notebook: a session belongs to the variable that it was opened with."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from kdkit import Session, notebook
from kdkit.notebook.command import read
from kdkit.notebook.workspace import BackgroundWorkspace
from tests.fixtures.notebook import USE


@pytest.fixture
def two(cells):
    """A notebook with a session of `net`, in which a line ran, and one of `big`, which is the current one."""
    cells.give("%kd tune finetune --steps 1 --as tuned;")
    cells.give("%kd use big --train {train} --measures parameters;")
    return cells


@pytest.mark.slow
def test_switch_goes_back_to_the_session_as_it_was_left(two):
    assert two.session.head.name == "@base"
    assert two.give("%kd switch net").head.name == "@tuned"
    assert two.give("%kd tune finetune --steps 1").parent == 1
    assert len(two.give("%kd switch big").versions) == 1


@pytest.mark.slow
def test_use_of_the_same_object_continues_its_session_and_says_so(two, capsys):
    two.give("other = net")
    two.give("%kd use other;")
    assert capsys.readouterr().out == ""
    assert two.give("%kd use other --seed 7").head.name == "@tuned"
    assert two.session.settings["seed"] == 7
    assert "the session of net continues at @tuned; %kd use net --fresh starts a new one" in capsys.readouterr().out


@pytest.mark.slow
def test_use_says_when_the_weights_are_others_by_now(two, capsys):
    two.give("net[0].weight.data.add_(1);")
    two.give("%kd use net")
    assert "without the weights that net has by now" in capsys.readouterr().out


def test_use_with_a_label_gives_it_to_the_first_version(two):
    assert [version.name for version in two.give("%kd use net --as first").versions] == ["@first", "@tuned"]


@pytest.mark.slow
def test_a_use_that_fails_changes_nothing(two):
    before = two.session
    two.fails("%kd use net --backend nowhere")
    two.fails("%kd use {3}")
    assert two.session is before
    assert [row[0] for row in two.give("%kd sessions").rows] == ["net", "big *"]


def test_fresh_and_another_object_of_the_name_start_a_new_one_and_keep_the_former_session(two, capsys):
    assert len(two.give(USE + " --fresh").versions) == 1
    assert "the former session of net is kept as net~: %kd switch net~" in capsys.readouterr().out
    assert len(two.give("%kd switch net~").versions) == 2
    two.give("net = type(net)(*net)")
    assert len(two.give("%kd use net --measures parameters").versions) == 1
    assert [row[0] for row in two.give("%kd sessions").rows] == ["big", "net~", "net *"], "a session in which nothing ran is not kept"


@pytest.mark.slow
def test_a_session_that_python_made_and_one_of_the_magics_are_the_same_things(two):
    two.shell.push({"mine": Session(two.shell.user_ns["net"], measures=("parameters",), example=torch.zeros(1, 8))})
    assert [row[0] for row in two.give("%kd sessions").rows] == ["net", "big *", "mine"]
    assert two.give("%kd switch mine") is two.shell.user_ns["mine"]
    assert two.give("%kd decompose svd --ratio 50%") is two.shell.user_ns["mine"].head
    assert two.give("s = %kd switch net\ns") is notebook.session(two.shell)
    assert two.give("%kd use mine --seed 5") is two.shell.user_ns["mine"]
    assert two.give("%kd switch {mine}").settings["seed"] == 5
    assert two.give("%kd switch {net}") is two.shell.user_ns["s"]


def test_a_session_is_found_by_an_expression_or_by_the_object_that_it_was_opened_with(cells, capsys):
    cells.give("nets = {'a b': big}")
    cells.give("%kd use {nets['a b']} --measures parameters")
    cells.give("%kd switch net")
    assert cells.give("%kd switch {nets['a b']}").head["parameters"] == 420
    assert cells.give("%kd sessions").rows[1][0] == "nets['a b'] *"
    cells.give("%kd use {nets['a b']}")
    assert "%kd use {nets['a b']} --fresh starts a new one" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("%kd switch nett", "there is no session 'nett'", "did you mean net?"),
        ("%kd switch train", "there is no session of train", "%kd sessions lists them"),
        ("%kd sessions --close big", "big is the current session", "%kd switch net"),
        ("%kd switch", "switch: --session: field required", "for example: %kd switch net"),
    ],
)
def test_what_is_no_session_is_one_message(two, line, message, hint):
    error = two.fails(line)
    assert message in error.message
    assert hint in error.hints


def test_a_closed_session_is_gone(two):
    two.give("%kd sessions --close net;")
    assert [row[0] for row in two.give("%kd sessions").rows] == ["big *"]
    assert "there is no session 'net'" in two.fails("%kd sessions --close net").message


@pytest.mark.slow
def test_a_notebook_does_not_keep_a_model_alive_that_its_user_deleted(cells):
    model = weakref.ref(cells.shell.user_ns["net"])
    cells.give("del net")
    gc.collect()
    assert model() is None


@pytest.mark.slow
def test_a_run_in_the_background_keeps_its_session_when_the_notebook_switches(two):
    workspace = notebook.workspace_of(two.shell)
    background = BackgroundWorkspace(workspace)
    command = read("%kd distill soft --teacher {net} --steps 1", background)
    two.give("%kd switch net;")
    made = command.action.run(background)
    assert made is workspace.sessions.by_name["big"].session.head
    assert "net" in workspace.sessions.by_name["big"].session.objects
    assert "net" not in two.session.objects


@pytest.mark.slow
def test_completion_knows_sessions_and_removed_versions(two):
    assert two.complete("%kd switch ")[:2] == ["net", "big"]
    two.give("%kd switch net;")
    two.give("%kd drop @tuned;")
    assert two.complete("%kd restore ")[0] == "@tuned"
    assert "--fresh" in two.complete("%kd use net --")
    assert {"switch", "sessions"} <= set(two.complete("%kd s"))


@pytest.mark.slow
def test_restore_and_rerun_have_verbs(two, capsys):
    two.give("%kd switch net;")
    two.give("%kd drop @tuned")
    assert "%kd restore @tuned brings it back" in capsys.readouterr().out
    assert two.give("%kd undo").name == "@tuned"
    two.give("%kd drop @tuned;")
    assert two.give("%kd restore").name == "@tuned"
    assert two.give("%kd rerun --seed 4").seed == 4
    assert two.give("%kd rerun @tuned --seed 5").name == "@tuned"


@pytest.mark.slow
def test_save_asks_for_force(two, tmp_path):
    two.give("%kd switch net;")
    two.give(f"%kd save {tmp_path}/small @tuned")
    error = two.fails(f"%kd save {tmp_path}/small @base")
    assert "--force replaces it" in error.hints
    assert "saved @base" in repr(two.give(f"%kd save {tmp_path}/small @base --force"))

"""An author at work in a notebook: stages in cells, where their errors are, and care for plugins."""

from __future__ import annotations

import re

import pytest
import torch

import kdkit
from kdkit.errors import KdError
from kdkit.plugins.manager import manager
from kdkit.plugins.tracing import Trace, short

CLASS = '''import kdkit

@kdkit.stage("prune.mine", requires={kdkit.Trait.FLOAT_WEIGHTS})
class Mine(kdkit.Stage):
    """Zero a share of the weights."""

    share: float = kdkit.param(%s, "share of the weights to zero", ge=0, lt=1)

    def apply(self, model, context):
        for weight in model.parameters():
            weight.data[weight.abs() <= weight.abs().quantile(self.share)] = 0
'''

RAISES = '''import kdkit

def divided(model):
    return sum(1 for _ in model.modules()) / 0

@kdkit.stage("prune.mine")
def mine(model, context):
    """Divide."""
    model.eval()
    return divided(model)
'''


SLIP = '@kdkit.stage("prune.mine")\ndef mine(model, context, *'


@pytest.fixture
def author(cells, offered):
    return cells


def offers(name: str) -> tuple[str, ...]:
    return next((plugin.offers for plugin in manager().plugins() if plugin.name == name), ())


# stages in cells


@pytest.mark.slow
def test_a_class_in_a_cell_runs_and_has_help_bounds_and_completion_at_once(author):
    author.give(CLASS % 0.5)
    made = author.give("%kd prune mine --share 0.25")
    assert made.stage.line() == "prune mine --share 0.25"
    assert sum(int((weight == 0).sum()) for weight in made.model.parameters()) > 50
    assert re.search(r"--share +number +0\.5 +≥ 0, < 1 +share of the weights to zero", repr(author.give("%kd help prune mine")))
    assert author.complete("%kd prune mi") == ["mine"]
    assert author.complete("%kd prune mine --sh") == ["--share"]
    assert author.fails("%kd prune mine --share 1").message == "prune mine: --share 1: input should be less than 1"


@pytest.mark.slow
def test_running_the_cell_of_a_class_again_replaces_it(author):
    author.give(CLASS % 0.5)
    author.give(CLASS % 0.75)
    assert author.give("%kd prune mine").stage.share == 0.75
    assert offers("notebook").count("prune.mine") == 1


@pytest.mark.slow
def test_a_version_that_an_earlier_form_of_the_cell_made_stays_as_it_was(author):
    author.give(CLASS % 0.5)
    author.give("%kd prune mine --as early")
    author.give(CLASS.replace("share", "part") % 0.5)
    assert author.session.version("@early").stage.line() == "prune mine"
    author.give("%kd prune mine --part 0.125 --on @base")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decorator", "head", "message", "hint"),
    [
        ('"prune.mine"', "class Mine:", "Mine is a class, but not a kdkit.Stage", "write class Mine(kdkit.Stage)"),
        ('"prune.mine", require={"onnx"}', "class Mine(kdkit.Stage):", "a stage has no fact 'require'", "did you mean requires?"),
        ('"mine"', "class Mine(kdkit.Stage):", "Mine: id 'mine' is not \"family.technique\" in lower-case words", ""),
        ('"prune.mine", requires="onnx"', "class Mine(kdkit.Stage):", "Mine: requires is a string, not a set; write requires = {'onnx'}", ""),
        ('"prune.mine", needs={"train"}', "class Mine(kdkit.Stage):", "Mine: needs is a set; write needs = kdkit.Needs(train=True)", ""),
        ('"prune.mine", api=7', "class Mine(kdkit.Stage):", "Mine: written for contract 7, and this kdkit", ""),
        ('"prune.channels"', "class Mine(kdkit.Stage):", "prune.channels is offered by kdkit", "choose another id"),
    ],
)
def test_a_class_that_can_be_no_stage_is_refused_with_the_reason(author, decorator, head, message, hint):
    cell = (CLASS % 0.5).replace("class Mine(kdkit.Stage):", head).replace('"prune.mine", requires={kdkit.Trait.FLOAT_WEIGHTS}', decorator)
    error = author.fails(cell)
    assert message in error.message
    assert any(hint in each for each in error.hints or ("",))
    assert "prune.mine" not in offers("notebook")


def test_an_error_names_the_line_of_the_cell_that_raised_and_not_that_of_the_call(author):
    author.shell.run_cell(RAISES, store_history=True)
    number = author.shell.execution_count - 1
    message = author.fails("%kd prune mine").message
    assert message == f"prune mine failed: ZeroDivisionError: division by zero (Cell In[{number}], line 4: return sum(1 for _ in model.modules()) / 0)"
    assert author.session.head.name == "@base"


def test_an_error_of_a_check_names_its_line_too(author):
    author.give(CLASS % 0.5 + "\n    def check(self, model, context):\n        return model.nowhere\n")
    assert re.search(
        r"prune mine: its check failed: Sequential has no attribute nowhere \(Cell In\[\d+\], line 14: return model.nowhere\)", author.fails("%kd prune mine").message
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "message", "hint"),
    [
        ('@kdkit.stage\ndef mine(model, context):\n    "Mine."', "@kdkit.stage needs the id of the stage", 'write @kdkit.stage("prune.mine")'),
        ('@kdkit.stage("prune.mine")\ndef mine(model, ratio: float = 0.3):\n    "Mine."', "is not the form of a stage", "write def name(model, context"),
        ('class Mine(kdkit.Stage):\n    "Mine."\n    id = "prune.unoffered"\n%kd prune unoffered', "prune unoffered is defined but not offered", "above class Mine"),
        ('@kdkit.stage("prune.mine")\ndef mine(model, context):\n    "Mine."\n    model[0].weight *= 2\n%kd prune mine', "leaf Variable", "change weight.data"),
        (CLASS % 0.5 + "        self.share = 2\n%kd prune mine", "Instance is frozen", "local variables"),
        (f'{SLIP}, share: list[float] = [0.5]):\n    "Mine."', "mine: Mine.share has type list[float], which no option can carry; use bool, int,", ""),
        (f'{SLIP}, share: float = None):\n    "Mine."', "parameter share: its default None is not one of its own values; write share: float | None", ""),
        (f'{SLIP}, _share: float = 0.5):\n    "Mine."', "mine: a parameter can't be named _share", "call it share"),
        (f'{SLIP}, other: object = None):\n    "Mine."\n', "mine: Mine.other has type <class 'object'>, which no option can carry", ""),
        ('@kdkit.stage("prune.mine")\nclass Mine(kdkit.Stage):\n    "Mine."\n    def apply(self, model):\n        return', "write apply(self, model, context)", ""),
        (
            '@kdkit.stage("prune.mine")\ndef mine(model, context):\n    "Mine."\n    raise SystemExit(3)\n%kd prune mine',
            "prune mine failed: SystemExit: 3 (",
            "as it was",
        ),
    ],
)
def test_an_authors_first_slips_are_reported_with_what_to_do(author, cell, message, hint):
    author.give("import kdkit")
    error = author.fails(cell)
    assert message in error.message
    assert any(hint in each for each in error.hints or ("",))


def test_a_stage_that_was_refused_is_not_reported_as_lacking_a_decorator(author):
    author.give("import kdkit")
    author.fails('@kdkit.stage("prune.refused")\ndef refused(model, context, *, share: float = None):\n    "Refused."\n')
    error = author.fails("%kd prune refused")
    assert error.message == "prune refused is defined but not offered"
    assert error.hints == ("refused: parameter share: its default None is not one of its own values; write share: float | None",)


@pytest.mark.slow
def test_a_stage_that_is_renamed_in_its_cell_is_no_longer_offered_under_its_old_id(author):
    def run(cell: str, id: str) -> None:
        author.shell.run_cell(cell, cell_id=id).raise_error()

    run(CLASS % 0.5, "a")
    run((CLASS % 0.5).replace("prune.mine", "prune.other"), "b")
    assert offers("notebook") == ("prune.mine", "prune.other")
    run((CLASS % 0.5).replace("prune.mine", "prune.ours"), "a")
    assert offers("notebook") == ("prune.other", "prune.ours")
    error = author.fails("%kd prune mine")
    assert error.message == "prune mine is no longer offered: its cell ran again without it"
    assert error.hints == ("that cell now offers prune ours",)
    run(CLASS % 0.5 + (CLASS % 0.5).replace("prune.mine", "prune.ours"), "a")
    run(CLASS % 0.5 + (CLASS % 0.5).replace("prune.mine", "prune.ours"), "a")
    assert set(offers("notebook")) == {"prune.other", "prune.mine", "prune.ours"}


# care


@pytest.mark.slow
def test_plugins_are_listed_with_distribution_version_and_what_they_offer(author):
    author.give(CLASS % 0.5)
    rows = {row[0]: row[1:] for row in author.give("%kd plugins").rows}
    assert rows["prune"][:3] == ["kdkit", kdkit.__version__, "ok"]
    assert "prune.channels" in rows["prune"][3]
    assert rows["notebook"] == ["", "", "ok", "prune.mine"]


@pytest.mark.slow
def test_a_blocked_plugin_is_out_until_it_is_unblocked(author):
    try:
        rows = {row[0]: row for row in author.give("%kd plugins block tune").rows}
        assert rows["tune"][3] == "blocked: blocked in this session"
        assert any("(tune) may offer more, but is blocked" in hint for hint in author.fails("%kd tune finetune").hints)
    finally:
        author.give("%kd plugins unblock tune")
    assert "finetune" in author.complete("%kd tune f")


@pytest.mark.slow
def test_check_puts_the_stages_of_cells_through_the_conformance_suite(author):
    author.give((CLASS % 0.5).replace("context):", "context):\n        context.check_cancelled()"))
    whole = author.give("%kd plugins check notebook --models mlp")
    one = author.give("%kd plugins check prune mine --models mlp")
    assert repr(one) in repr(whole)
    assert "prune mine: " in repr(one)
    assert "prune mine" in one._repr_html_()
    assert "did you mean notebook?" in author.fails("%kd plugins check notebok").hints
    assert "did you mean mine?" in author.fails("%kd plugins check prune mien").hints


@pytest.mark.slow
@pytest.mark.parametrize("action", ["block", "unblock", "check", "trace"])
def test_an_action_without_a_name_says_what_is_missing(author, action):
    error = author.fails(f"%kd plugins {action}")
    assert error.message == f"plugins {action}: which one?"
    assert f"%kd plugins {action}" in error.hints[0]


# trace


@pytest.fixture
def untraced():
    before = manager()._inner_hookexec
    yield before
    if manager().tracing is not None:
        manager().tracing.end(manager())
        manager().tracing = None
    assert manager()._inner_hookexec is before


@pytest.mark.slow
def test_a_trace_tells_which_hook_which_plugin_what_and_how_long_and_leaves_nothing_behind(author, untraced):
    author.give(CLASS % 0.5)
    assert "trace off" in repr(author.give("%kd plugins trace on"))
    author.give("%kd prune mine")
    table = author.give("%kd plugins trace off")
    assert manager()._inner_hookexec is untraced
    assert manager().tracing is None
    rows = [[cell if isinstance(cell, str | int) else cell.text() for cell in row] for row in table.rows]
    run = next(row for row in rows if row[0] == "kdkit_run_stage")
    assert run[1:5] == ["kdkit.protocol", "Mine prune.mine, Sequential, Context", "returned Sequential", 1]
    assert re.fullmatch(r"[\d.]+ (s|ms|µs)", run[5])
    assert any(row[:2] == ["kdkit_measures", "measures"] for row in rows)
    author.give("%kd prune mine --on @base")
    assert len(table.rows) == len(rows)


@pytest.mark.slow
def test_a_trace_shows_what_raised_and_what_was_around_it(author, untraced, monkeypatch):
    author.give(RAISES)
    author.give("@kdkit.offer\n@kdkit.hookimpl(wrapper=True)\ndef kdkit_run_stage(stage):\n    return (yield)\n")
    author.give("@kdkit.offer\ndef kdkit_error_hints(error):\n    raise ValueError('no hints')\n")
    author.give("%kd plugins trace on")
    try:
        with pytest.warns(UserWarning, match="no hints"):
            author.fails("%kd prune mine")
    finally:
        for hook in ("kdkit_run_stage", "kdkit_error_hints"):
            manager().unregister_hook(hook)
    reported = [(row[1], row[3]) for row in author.give("%kd plugins trace off").rows if row[0] in ("kdkit_run_stage", "kdkit_error_hints")]
    assert reported == [
        ("kdkit.protocol", "raised ZeroDivisionError: 'division by zero'"),
        ("notebook:kdkit_run_stage", "passed on ZeroDivisionError: 'division by zero'"),
        ("kdkit.protocol", "returned []"),
        ("notebook:kdkit_error_hints", "raised ValueError: 'no hints'"),
    ]


def test_a_live_trace_prints_each_answer_as_it_is_given(author, untraced, capsys):
    author.give("%kd plugins trace on --live;")
    manager().hook.kdkit_adopt_model(obj="none")
    author.give("import kdkit\n@kdkit.offer\ndef kdkit_event(event):\n    return 3\n")
    manager().each("kdkit_event", print, event="finished")
    manager().unregister_hook("kdkit_event")
    author.give("%kd plugins trace off;")
    assert re.search(r"^notebook:kdkit_event: kdkit_event\('finished'\) returned 3, [\d.]+ (ms|µs)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_tracing_twice_begins_again_and_ends_once(author, untraced):
    author.give("%kd plugins trace on")
    author.give("%kd plugins trace on")
    author.give("%kd plugins trace off")
    assert manager()._inner_hookexec is untraced
    assert author.fails("%kd plugins trace off").message == "plugins trace off: nothing is being traced"
    assert author.fails("%kd plugins trace onn").hints[0] == "did you mean on?"


def test_answers_that_repeat_themselves_are_in_one_row():
    trace = Trace()
    trace.begin(manager())
    for _ in range(5):
        list(manager().contributions("kdkit_measures"))
        manager().named("kdkit_backends", "cpu", "backend")
    trace.end(manager())
    assert [(row[0], row[4]) for row in trace.table().rows] == [("kdkit_measures", 5), ("kdkit_backends", 5)]
    assert repr(trace.table()).startswith("10 calls")


def test_a_trace_asks_no_model_for_its_repr():
    class Loud(torch.nn.Module):
        def __repr__(self):
            raise AssertionError("it was asked")

    assert short([Loud(), "x" * 99, {"a": Loud()}, 1, 2]) == "[Loud, 'xxxxxxxxxxxx...xxxxxxxxxxxxx', dict, ...]"


# the environment


def test_a_name_in_the_environment_that_is_no_plugin_is_listed(monkeypatch):
    from kdkit.plugins.manager import Manager

    monkeypatch.setenv("KDKIT_PLUGINS", "prune,prnue")
    fresh = Manager()
    fresh.discover()
    assert [(each.name, each.reason) for each in fresh.problems] == [("prnue", "KDKIT_PLUGINS names it, and no such plugin is installed")]


def test_plugins_that_are_down_for_one_reason_are_named_in_one_hint(monkeypatch):
    from kdkit.plugins.manager import Manager

    monkeypatch.setenv("KDKIT_PLUGINS", "prune,prnue")
    fresh = Manager()
    fresh.discover()
    blocked, absent = fresh.unavailable_hints()
    assert "(distill), kdkit" in blocked
    assert blocked.startswith("plugins ")
    assert blocked.endswith("may offer more, but are blocked: not named in KDKIT_PLUGINS  (%kd plugins)")
    assert absent.startswith("plugin prnue may offer more, but is broken")


def test_strict_plugins_say_which_plugin_it_is(monkeypatch):
    from kdkit import hookimpl
    from kdkit.plugins.manager import Manager

    class Lacking:
        @hookimpl
        def kdkit_measures(self):
            return None

    fresh = Manager()
    fresh.add(Lacking(), "lacking")
    monkeypatch.setenv("KDKIT_STRICT_PLUGINS", "1")
    with pytest.raises(KdError, match="^plugin lacking: its kdkit_measures returned nothing"):
        list(fresh.contributions("kdkit_measures"))


def test_strict_plugins_let_out_the_error_of_a_contribution_too(monkeypatch):
    from kdkit import hookimpl
    from kdkit.plugins.manager import Manager

    class Raises:
        @hookimpl
        def kdkit_measures(self):
            raise ZeroDivisionError("measures")

    fresh = Manager()
    fresh.add(Raises(), "raises")
    assert list(fresh.contributions("kdkit_measures")) == []
    monkeypatch.setenv("KDKIT_STRICT_PLUGINS", "1")
    with pytest.raises(ZeroDivisionError):
        list(fresh.contributions("kdkit_measures"))


@pytest.mark.slow
def test_what_is_installed_while_the_kernel_runs_is_found_and_takes_over_from_the_cell(author, tmp_path, monkeypatch):
    author.give(CLASS % 0.5)
    info = tmp_path / "kdkit_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdkit-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdkit]\nmine = kdkit_mine\n")
    (tmp_path / "kdkit_mine.py").write_text((CLASS % 0.25) + "\n@kdkit.hookimpl\ndef kdkit_stages():\n    return [Mine]\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        rows = {row[0]: row[1:] for row in author.give("%kd plugins").rows}
        assert rows["mine"] == ["kdkit-mine", "1.0", "ok", "prune.mine"]
        assert "notebook" not in rows
        assert author.give("%kd prune mine").stage.share == 0.25
        assert "prune.mine is offered by kdkit-mine 1.0 (mine) already" in author.fails(CLASS % 0.5).message
    finally:
        manager().unregister(name="mine")
        manager()._plugins.pop("mine")
        manager()._entries.pop("mine")
        manager().forget()

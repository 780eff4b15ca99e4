"""The verbs, as a user writes them, on a real session."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit import notebook
from kdkit.notebook.command import read
from kdkit.notebook.help_pages import overview
from kdkit.notebook.verb import Verb, verbs
from kdkit.parameters.settings import describe
from kdkit.stages.line_options import RESERVED_WORDS, Line


def test_every_verb_is_documented_with_an_example():
    for word, verb in verbs().items():
        assert describe(verb), word
        assert f"%kd {word}" in verb.example_line or word == "status", word
        assert all(field.description for field in verb.model_fields.values()), word
        assert not set(verb.model_fields) & set(Line.model_fields), word
        assert set(verb.positional) <= set(verb.model_fields), word


@pytest.mark.slow
def test_a_new_subclass_is_a_new_verb_everywhere(bare, monkeypatch):
    monkeypatch.setattr("kdkit.notebook.verb.RESERVED_WORDS", RESERVED_WORDS | {"greet"})

    class Greet(Verb):
        """Say hello."""

        example_line = "%kd greet"

        def run(self, workspace):
            return "hello"

    try:
        assert bare.give("%kd greet") == "hello"
        assert "greet" in bare.complete("%kd gr")
        assert "Say hello." in repr(overview())
    finally:
        del Greet
        __import__("gc").collect()
    assert "greet" not in verbs()


@pytest.mark.slow
def test_a_verb_whose_word_is_not_reserved_is_refused_at_its_declaration():
    with pytest.raises(TypeError, match="verb 'wave-to' is not reserved"):
        type(Verb)("WaveTo", (Verb,), {"__doc__": "Wave.", "__module__": __name__})
    __import__("gc").collect()


def test_every_reserved_word_is_a_verb():
    assert {word for word, verb in verbs().items() if not verb.generated} <= RESERVED_WORDS <= set(verbs())


def test_a_source_adds_generated_verbs_whose_words_need_not_be_reserved(bare, monkeypatch):
    class Bow(Verb, generated=True):
        """Bow."""

        example_line = "%kd bow"

        def run(self, workspace):
            return "a bow"

    assert "bow" not in verbs()
    monkeypatch.setattr("kdkit.notebook.verb._sources", [lambda: [Bow]])
    assert bare.give("%kd bow") == "a bow"
    assert "bow" in bare.complete("%kd bo")


def test_status_without_a_model_says_how_to_begin(bare):
    assert "%kd use" in repr(bare.give("%kd"))
    assert "there is no model yet" in bare.fails("%kd undo").message


def test_use_adopts_the_model_and_leaves_the_variable_alone(cells):
    before = [weight.clone() for weight in cells.shell.user_ns["net"].parameters()]
    cells.give("%kd tune finetune --steps 2 --learning-rate 0.1")
    assert all(torch.equal(a, b) for a, b in zip(before, cells.shell.user_ns["net"].parameters(), strict=True))
    assert cells.session.objects["train"].items == 32


def test_use_takes_any_expression_and_any_other_object(cells):
    cells.give("%kd use {type(net)(*net, net[1])} --eval {loaders['a b']} --as first --held {train} --seed 7 --measures parameters")
    assert cells.session.head.name == "@first"
    assert "held" in cells.session.objects
    assert cells.session.settings["seed"] == 7


def test_set_adds_and_none_takes_away(cells):
    cells.give("%kd set --teacher big --calibration {train} --seed 3")
    assert "teacher" in cells.session.objects
    assert cells.session.settings["seed"] == 3
    cells.give("%kd set --teacher {None}")
    assert "teacher" not in cells.session.objects
    assert cells.give("%kd distill soft --teacher {big} --steps 1").stage.teacher == "big"


def test_a_wrong_set_changes_nothing(cells):
    before = cells.session.objects, cells.session.settings
    cells.fails("%kd set --seed 3 --backend nowhere")
    assert (cells.session.objects, cells.session.settings) == before


def test_a_stage_line_runs_one_stage(cells):
    version = cells.give("r = %kd tune finetune --steps 1 --as tuned --seed 5\nr")
    assert (version.name, version.seed, version.stage.steps) == ("@tuned", 5, 1)
    assert cells.session.head is version
    assert cells.give("%kd tune finetune --steps 1 --on @base").parent == 0


def test_a_dry_run_predicts_and_runs_nothing(cells):
    history = cells.session.history
    plan = cells.give("%kd prune channels --ratio 0.5 --dry-run")
    assert plan.steps[-1].parameters < plan.steps[0].parameters
    assert cells.session.history is history


def test_an_impossible_order_is_refused_before_anything_runs(cells):
    history = cells.session.history
    reported = cells.fails("%%kd wrong\nconvert onnx\ntune finetune\n")
    assert "step 2" in reported.message
    assert "convert onnx" in reported.message
    assert cells.session.history is history


@pytest.mark.slow
def test_a_cell_chains_stages_and_names_the_last_one(cells):
    version = cells.give(
        "%%kd small --seed 1\n# a comment\ntune finetune --steps 1   # another\n\ntogether:\n    distill soft --teacher {big} --steps 1\n    tune finetune\n"
    )
    assert version.name == "@small"
    assert [each.seed for each in cells.session.versions[1:]] == [1, 1]
    assert [each.id for each in version.stage.stages] == ["distill.soft", "tune.finetune"]
    assert version.stage.stages[0].teacher == "big"


def test_a_result_is_bound_by_o_in_lines_and_cells(cells):
    cells.give("%%kd -o made\ntune finetune --steps 1\n")
    assert cells.shell.user_ns["made"] is cells.session.head
    cells.give("%kd pop @base -o copy")
    assert isinstance(cells.shell.user_ns["copy"], nn.Module)
    assert "not the name of a variable" in cells.fails("%kd undo -o 1x").message


# objects by name


def test_an_object_is_given_to_the_session_under_its_own_name(cells):
    version = cells.give("%kd distill soft --teacher {big} --steps 1")
    assert version.stage.teacher == "big"
    assert cells.session.objects["big"] is cells.shell.user_ns["big"]


def test_a_bare_name_of_a_variable_is_as_good(cells):
    assert cells.give("%kd distill soft --teacher big --steps 1").stage.teacher == "big"


@pytest.mark.slow
def test_the_same_object_keeps_its_name_and_another_gets_a_new_one(cells):
    assert cells.give("%kd tune finetune --steps 1 --data {train}").stage.data == "train"
    assert cells.give("%kd tune finetune --steps 1 --data {loaders['a b']}").stage.data == "data_1"
    assert cells.give("%kd tune finetune --steps 1 --data {loaders['a b']}").stage.data == "data_1"
    cells.give("big2 = big; big = type(net)(*net)")
    cells.give("%kd distill soft --teacher {big2} --steps 1")
    cells.give("big2 = big")
    assert cells.give("%kd distill soft --teacher {big2} --steps 1").stage.teacher == "big2_2"


@pytest.mark.slow
def test_a_version_is_named_by_its_object_too(cells):
    cells.give("r = %kd tune finetune --steps 1 --as tuned")
    cells.give("%kd undo")
    assert cells.give("%kd tune finetune --steps 1 --on {r}").parent == cells.shell.user_ns["r"].number
    assert cells.give("%kd distill soft --teacher {r} --steps 1").stage.teacher == "@1"
    assert cells.give("%kd distill soft --teacher @tuned --steps 1").stage.teacher == "@tuned"


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["%kd distill soft --teacher {big} --dry-run", "%kd distill soft --teacher {big} --steps 1 --data nothing"])
def test_a_line_that_makes_nothing_leaves_no_object_behind(cells, cell):
    objects = dict(cells.session.objects)
    result = cells.shell.run_cell(cell)
    assert "--dry-run" in cell or result.error_in_exec is not None
    assert dict(cells.session.objects) == objects


def test_what_the_session_is_given_while_a_line_runs_stays_when_it_makes_nothing(cells):
    workspace = notebook.workspace_of(cells.shell)
    read("%kd distill soft --teacher {big}", workspace)
    with workspace.temporary_objects():
        assert "big" in cells.session.objects
        cells.session.set(other="kept")
    assert "big" not in cells.session.objects
    assert cells.session.objects["other"] == "kept"


# moving about


@pytest.mark.slow
def test_undo_redo_go_by_steps_and_all_or_nothing(cells):
    cells.give("%%kd\ntune finetune --steps 1\ntune finetune --steps 2\n")
    assert cells.give("%kd undo 2").name == "@base"
    assert cells.give("%kd redo").name == "@1"
    history = cells.session.history
    assert "nothing to undo" in cells.fails("%kd undo 5").message
    assert cells.session.history is history


@pytest.mark.slow
def test_keep_labels_and_drop_frees(cells):
    cells.give("%kd tune finetune --steps 1")
    assert cells.give("%kd keep @1 --as good").name == "@good"
    assert cells.give("%kd keep --as better").name == "@better"
    cells.give("%kd drop @better")
    assert cells.session.head.name == "@base"


@pytest.mark.slow
def test_compare_sorts_by_a_figure(cells):
    cells.give("%kd prune channels --ratio 0.5 --as slim")
    assert [version.name for version in cells.give("%kd compare").versions] == ["@base", "@slim"]
    assert [version.name for version in cells.give("%kd compare @base @slim --by parameters").versions] == ["@slim", "@base"]
    assert "no version has a figure 'speed'" in cells.fails("%kd compare --by speed").message


def test_compare_writes_a_table_to_copy(cells):
    assert cells.give("%kd compare --format markdown").startswith("| version | made by |")
    assert cells.give("%kd compare --format latex").startswith(r"\begin{tabular}{ll")
    assert cells.give("%kd compare --format csv").startswith("version,label,line,parent,status,")
    assert "markdown" in str(cells.fails("%kd compare --format html"))


@pytest.mark.slow
def test_code_is_put_into_the_next_cell_and_makes_the_version_again(cells):
    made = cells.give("%kd tune finetune --steps 1 --learning-rate 0.1 --as tuned")
    weights = made.model.state_dict()
    lines = cells.give("%kd code")
    assert "%kd tune finetune --steps 1 --learning-rate 0.1" in lines
    assert cells.shell.rl_next_input == lines
    again = cells.give(lines)
    assert again.number != made.number
    assert all(torch.equal(weights[name], value) for name, value in again.model.state_dict().items())


@pytest.mark.slow
def test_code_with_a_group_is_one_cell_that_runs(cells):
    cells.give("%kd tune finetune --steps 1 --seed 2")
    made = cells.give("%%kd small --seed 2\ntogether:\n    distill soft --steps 1\n    tune finetune\n")
    lines = cells.give("%kd code")
    assert lines.startswith("%%kd small --on @base --seed 2\ntune finetune --steps 1\ntogether:\n")
    again = cells.give(lines)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in made.model.state_dict().items())


@pytest.mark.slow
def test_save_load_and_a_new_notebook(cells, tmp_path):
    cells.shell.push({"folder": str(tmp_path / "small one")})
    cells.give("%kd tune finetune --steps 1 --as tuned")
    written = cells.give("%kd save {folder} @tuned")
    assert "saved @tuned to" in repr(written)
    assert (tmp_path / "small one").is_dir()
    assert cells.give(f"%kd load '{tmp_path / 'small one'}'").name == "@tuned"
    cells.shell.run_line_magic("unload_ext", "kdkit")
    from tests.fixtures.notebook import Notebook

    fresh = Notebook()
    assert fresh.give(f"%kd load '{tmp_path / 'small one'}'").name == "@tuned"
    assert fresh.session.head.label == "tuned"


@pytest.mark.slow
def test_a_recipe_runs(cells, tmp_path):
    cells.give("%kd tune finetune --steps 1 --as tuned")
    cells.session.recipe().save(tmp_path / "r.yaml")
    version = cells.give(f"%kd run {tmp_path}/r.yaml --on @base --as again --seed 2")
    assert (version.name, version.parent, version.seed) == ("@again", 0, 2)
    assert "can't read" in cells.fails(f"%kd run {tmp_path}/none.yaml").message


@pytest.mark.slow
def test_help_and_list_know_every_technique(bare):
    from kdkit.plugins.manager import manager

    listed = repr(bare.give("%kd list"))
    for id, stage in manager().stages().items():
        title = id.replace(".", " ", 1)
        page = bare.give(f"%kd help {title}")
        assert title in listed
        assert all(f"--{name.replace('_', '-')}" in repr(page) for name in stage.model_fields)
        assert describe(stage) in repr(page).replace("\n", " ")
        assert page._repr_html_()
    for word in verbs():
        assert word in repr(bare.give(f"%kd help {word}"))
    assert "prune channels" not in repr(bare.give("%kd list tune"))
    assert "prune channels" in repr(bare.give("%kd help prune"))


@pytest.mark.slow
def test_plugins_can_be_blocked_and_brought_back(bare):
    from kdkit.plugins.manager import manager

    try:
        assert "blocked" in repr(bare.give("%kd plugins block tune"))
        reported = bare.fails("%kd tune finetune")
        assert "no verb or family 'tune'" in reported.message
        assert any("tune" in hint and "blocked" in hint for hint in reported.hints)
        assert "blocked" not in repr(bare.give("%kd plugins unblock tune"))
        assert "tune.finetune" in manager().stages()
    finally:
        manager().unblock("tune")
    assert "which one?" in bare.fails("%kd plugins block").message
    assert "no plugin 'nope'" in bare.fails("%kd plugins block nope").message


def test_the_doctor_tells_versions_and_the_machine(bare, monkeypatch):
    reported = repr(bare.give("%kd doctor"))
    assert all(word in reported for word in ("torch", "onnxruntime", "CUDA", "int8", "stopping a stage", "plugins"))
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert torch.__version__ not in repr(bare.give("%kd doctor"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["", "help", "help use", "help tune finetune", "list", "plugins", "doctor", "compare", "eval", "code", "tune finetune --dry-run", "undo", "redo"]
)
def test_what_a_verb_gives_has_text_and_html(cells, line):
    cells.give("%kd tune finetune --steps 1")
    cells.give("%kd undo")
    if line == "undo":
        cells.give("%kd redo")
    result = cells.give(f"%kd {line}")
    assert repr(result)
    assert "0x" not in repr(result)
    assert "<" in result._repr_html_()


def test_compare_shows_every_figure_when_asked_and_the_one_it_sorts_by(cells):
    cells.give("%kd set --measures parameters --measures moved")
    cells.give("%kd eval")
    assert "moved" not in cells.give("%kd compare").table.head
    assert "moved" in cells.give("%kd compare --all").table.head
    assert "moved" in cells.give("%kd compare --by moved").table.head


def test_a_sample_on_a_page_is_shown_as_code(bare):
    assert "<code>%kd undo</code>" in bare.give("%kd help undo")._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("advice", ["", "buy another"])
def test_the_doctor_has_a_column_of_things_to_do_only_where_there_are_any(bare, monkeypatch, advice):
    monkeypatch.setattr("kdkit.notebook.doctor._widgets", lambda shell: ["widgets", "there", ""])
    monkeypatch.setattr("kdkit.notebook.doctor._int8", lambda: ["int8", "so so", advice])
    monkeypatch.setattr("kdkit.notebook.doctor._cuda", lambda: ["CUDA", "none", ""])
    assert ("what to do" in repr(bare.give("%kd doctor"))) == bool(advice)


@pytest.mark.slow
def test_agreement_shows_a_version_beside_its_teacher(cells):
    cells.give("%kd set --teacher big")
    reported = cells.give("%kd agreement")
    assert repr(reported).startswith("@base agrees with teacher on ")
    assert "<svg" in reported._repr_html_()
    assert cells.give("%kd agreement @base --teacher @base").value == 1
    assert cells.give("%kd agreement --teacher big --data {loaders['a b']}").count == 32
    assert "teacher_1" in cells.give("%kd agreement --teacher {type(net)(*net)}").summary
    assert "teacher_1" not in cells.session.objects
    assert "there is no model 'nobody'" in cells.fails("%kd agreement --teacher nobody").message
    assert "@base" in cells.complete("%kd agreement @")
    assert "--teacher" in cells.complete("%kd agreement --t")


def test_help_of_a_technique_tells_paper_and_pitfalls(bare):
    page = repr(bare.give("%kd help distill hints"))
    assert "FitNets: Hints for Thin Deep Nets" in page
    assert "Pitfalls:" in page
    assert page.count("Hints: the student's intermediate features") == 0


def test_the_example_line_of_every_technique_holds(bare):
    from kdkit.pipelines.pipeline import Pipeline
    from kdkit.plugins.manager import manager
    from kdkit.stages.example_line import sample

    for stage in manager().stages().values():
        line = sample(stage).removeprefix("%kd ").replace("{", "").replace("}", "")
        made = Pipeline.from_lines(line).stages[0]
        assert not list(getattr(made, "conflicts", list)()), line
        assert "1.0" not in line


def test_list_and_help_know_the_names_of_papers(bare):
    assert [row[0] for row in bare.give("%kd list ptq").rows] == ["quantize dynamic", "quantize static"]
    assert "also known as" in repr(bare.give("%kd list distill"))
    assert repr(bare.give("%kd help RKD")).startswith("RKD is distill relations.")
    assert repr(bare.give("%kd help distill rkd")).startswith("rkd is distill relations.")
    assert "wizard" not in bare.fails("%kd wizard rkd").message


def test_no_and_the_name_of_an_object_takes_it_away(cells):
    cells.give("%kd set --pool {train} --calibration {train}")
    cells.give("%kd set --no-pool --no-calibration --no-train")
    assert set(cells.session.objects) == {"eval"}
    assert "train" not in cells.give("%kd use {type(net)(*net)} --no-train --measures parameters").objects


def test_an_option_is_never_guessed_from_its_beginning(cells):
    error = cells.fails("%kd prune channels --rat 0.5")
    assert "did you mean --ratio?" in error.hints
    assert any(hint.startswith("options: --ratio") for hint in error.hints)
    assert "did you mean compare or compare-with?" in cells.fails("%kd comp").hints

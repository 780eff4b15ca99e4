"""The session: a tree of versions that only grows by what succeeded."""

import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from kdkit import KdError, Needs, Session, Stage, TrainStage, Trait, hookimpl, param
from kdkit.errors import Cancelled
from kdkit.measurement.report import Figure, Report
from kdkit.plugins.manager import manager
from kdkit.session.history import Version
from kdkit.session.listing import Listing
from kdkit.session.status import Status
from tests.fixtures import zoo

QUICK = ("quality", "agreement", "parameters", "size", "macs")


class Scale(Stage):
    """Multiply the last layer by a factor."""

    id: ClassVar = "tune.test-scale"
    factor: float = param(0.5, "factor", gt=0)

    def apply(self, model, context):
        model.head.weight.data.mul_(self.factor)
        context.note(f"scaled by {self.factor}")


class Noise(Stage):
    """Add noise to the last layer."""

    id: ClassVar = "tune.test-noise"

    def apply(self, model, context):
        model.head.weight.data.add_(torch.randn_like(model.head.weight))


class Fail(Stage):
    """Spoil the copy, then fail."""

    id: ClassVar = "tune.test-fail"
    how: str = param("error", "error, kd, interrupt, cancel, exit")

    def apply(self, model, context):
        model.head.weight.data.zero_()
        kinds = {"error": ValueError, "kd": KdError, "interrupt": KeyboardInterrupt, "cancel": Cancelled, "exit": SystemExit}
        raise kinds[self.how](self.how)


class Reads(Stage):
    """Needs what it is told to need."""

    id: ClassVar = "tune.test-reads"
    other: str | None = param(None, "a model", names="model")
    data: str | None = param(None, "data", names="data")

    def apply(self, model, context):
        if self.other:
            model.head.weight.data.copy_(context.objects[self.other].head.weight * 3)
        if self.data:
            model.head.weight.data.mul_(1 + context.data(self.data).example().size)


@pytest.fixture
def session(offered):
    offered(Scale, Noise, Fail, Reads)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=QUICK)


def state(session):
    """All that must be as it was: the tree, by identity, and every tensor's content."""
    return session.history, [{name: tensor.clone() for name, tensor in version.model.state_dict().items()} for version in session.versions if version.model]


def assert_same(session, before):
    assert session.history is before[0]
    for tensors, version in zip(before[1], session.versions, strict=True):
        for name, tensor in version.model.state_dict().items():
            assert torch.equal(tensor, tensors[name])


def test_the_users_model_is_copied_and_never_touched(offered):
    offered(Scale)
    net = zoo.mlp()
    before = net.head.weight.clone()
    session = Session(net, measures=("parameters",))
    session.run("tune test-scale")
    assert torch.equal(net.head.weight, before)
    assert session.head.model.head.weight is not net.head.weight


def test_a_stage_makes_a_version_with_its_stage_parent_report_and_notes(session):
    made = session.run("tune test-scale --factor 0.25", label="quarter")
    assert (made.name, made.number, made.parent, made.stage) == ("@quarter", 1, 0, Scale(factor=0.25))
    assert made.notes == ("scaled by 0.25",)
    assert torch.equal(made.model.head.weight, session["@base"].model.head.weight * 0.25)
    assert made["parameters"] == sum(weight.numel() for weight in zoo.mlp().parameters())
    assert session["@base"]["agreement"] == 1


def test_versions_share_every_tensor_that_did_not_change(session):
    made = session.run("tune test-scale")
    base = session["@base"]
    shared = [name for name, tensor in made.model.state_dict().items() if tensor.data_ptr() == base.model.state_dict()[name].data_ptr()]
    assert sorted(set(made.model.state_dict()) - set(shared)) == ["head.weight"]


def test_undo_and_redo_move_the_head_and_a_new_stage_forgets_what_was_undone(session):
    session.run("tune test-scale")
    session.run("tune test-noise")
    assert session.undo().number == 1
    assert session.undo().number == 0
    with pytest.raises(KdError, match="nothing to undo"):
        session.undo()
    assert session.redo().number == 1
    assert session.run("tune test-scale").number == 3
    assert session.head.parent == 1
    with pytest.raises(KdError, match="nothing to redo"):
        session.redo()


def test_a_branch_begins_at_the_stated_version(session):
    session.run("tune test-scale", label="one")
    made = session.run("tune test-noise", on="@base", label="two")
    assert made.parent == 0
    assert [version.name for version in session.versions] == ["@base", "@one", "@two"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "kd", "interrupt", "cancel", "exit"])
def test_a_stage_that_fails_leaves_the_session_as_it_was(session, how):
    session.run("tune test-scale")
    before = state(session)
    with pytest.raises((KdError, KeyboardInterrupt, SystemExit)):
        session.run(f"tune test-fail --how {how}")
    assert_same(session, before)
    session.run("tune test-scale")


def test_an_error_inside_a_stage_keeps_its_cause_and_names_who_offers_it(session):
    with pytest.raises(KdError, match="tune test-fail failed: ValueError: error") as caught:
        session.run("tune test-fail")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "offered by notebook; the session is as it was" in caught.value.hints


def test_steps_that_succeeded_before_a_failure_are_kept_and_named(session):
    with pytest.raises(KdError) as caught:
        session.run("tune test-scale\ntune test-fail", label="never")
    assert "the steps before it are kept: @1" in caught.value.hints
    assert session.head.number == 1
    with pytest.raises(KdError, match="no version @never"):
        session.version("@never")


def test_nothing_runs_when_a_later_step_can_not(session):
    before = state(session)
    with pytest.raises(KdError, match="tune test-reads --other nobody needs a model, and the session has none of that name"):
        session.run("tune test-scale\ntune test-reads --other nobody")
    assert_same(session, before)


def test_the_seed_decides_and_the_users_random_numbers_go_on_undisturbed(session):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = session.run("tune test-noise", on="@base", seed=1)
    assert torch.equal(torch.rand(3), expected)
    second = session.run("tune test-noise", on="@base", seed=1)
    third = session.run("tune test-noise", on="@base", seed=2)
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert not torch.equal(first.model.head.weight, third.model.head.weight)


def test_a_label_moves_to_a_version_that_is_built_on_the_one_that_had_it(session):
    session.run("tune test-scale", label="slim")
    session.run("tune test-noise", on="@slim", label="slim")
    assert session["@slim"].number == 2
    assert session["@1"].name == "@1"


@pytest.mark.slow
@pytest.mark.parametrize("label", ["head", "best", "3", "a b", "@x", "-1", ""])
def test_a_label_that_means_something_else_is_refused(session, label):
    with pytest.raises(KdError, match="can't be a label"):
        session.keep("@base", label)


def test_versions_are_found_by_label_number_and_from_the_head_backwards(session):
    session.run("tune test-scale", label="one")
    session.run("tune test-noise")
    assert [session[name].number for name in ("@base", "@one", "@2", "@-1", "@-2", "@head", 1, "one")] == [0, 1, 2, 1, 0, 2, 1, 1]
    assert session["@best"]["accuracy"] == max(version["accuracy"] for version in session.versions)
    with pytest.raises(KdError, match="no version @ome") as caught:
        session.version("@ome")
    assert "did you mean @one?" in caught.value.hints


def test_dropping_frees_the_model_and_keeps_the_line_of_what_was_made_of_it(session):
    session.run("tune test-scale", label="one")
    session.run("tune test-noise", label="two")
    session.drop("@one", forever=True)
    assert session["@one"].model is None
    assert "test-scale" in session.code("@two")
    with pytest.raises(KdError, match="@one was dropped"):
        session.run("tune test-scale", on="@one")
    with pytest.raises(KdError, match="was dropped"):
        session.undo()
    session.drop("@two")
    assert [version.name for version in session.versions] == ["@base"]
    assert session.head.name == "@base"
    with pytest.raises(KdError, match="can't be dropped"):
        session.drop("@base")


def test_pop_hands_out_a_copy_that_is_the_users_to_change(session):
    model = session.pop("@base")
    model.head.weight.data.zero_()
    assert session["@base"].model.head.weight.abs().sum() > 0


def test_a_stage_can_name_versions_and_data_of_the_session(session):
    session.run("tune test-scale", label="half")
    made = session.run("tune test-reads --other @half", on="@base")
    assert torch.equal(made.model.head.weight, session["@half"].model.head.weight * 3)
    session.set(pool=torch.randn(6, 16))
    made = session.run("tune test-reads --data pool", on="@base")
    torch.testing.assert_close(made.model.head.weight, session["@base"].model.head.weight * 7)


def test_a_stage_that_changes_nothing_is_an_error_unless_it_may(session, offered):
    class Idle(Stage):
        """Do nothing."""

        id: ClassVar = "tune.test-idle"

        def apply(self, model, context):
            return model

    class MayIdle(Idle):
        """Do nothing, and that is fine."""

        id: ClassVar = "tune.test-may-idle"
        may_change_nothing: ClassVar = True

    offered(Idle, MayIdle)
    with pytest.raises(KdError, match="tune test-idle .* changed nothing"):
        session.run("tune test-idle")
    assert session.run("tune test-may-idle").number == 1


def test_outputs_that_are_not_finite_any_more_are_refused(session, offered):
    class Burst(Stage):
        """Make outputs infinite."""

        id: ClassVar = "tune.test-burst"

        def apply(self, model, context):
            model.head.bias.data.fill_(float("nan"))

    offered(Burst)
    with pytest.raises(KdError, match="outputs are not finite"):
        session.run("tune test-burst")


def test_a_missing_package_is_reported_with_the_way_to_get_it(session, offered):
    class Packaged(Scale):
        """Needs a package."""

        id: ClassVar = "tune.test-packaged"
        needs: ClassVar = Needs(packages=("a_package_of_nowhere",))

    offered(Packaged)
    with pytest.raises(KdError, match="needs a_package_of_nowhere, which is not installed") as caught:
        session.run("tune test-packaged")
    assert "pip install a-package-of-nowhere" in caught.value.hints


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(calibration=True), "calibration data"),
        (Needs(example=True), "one batch of inputs"),
        (Needs(tokenizer=True), "needs a tokenizer"),
        (Needs(train=True, labels=True), "labelled data"),
    ],
)
def test_each_need_that_is_not_met_is_reported_before_anything_runs(offered, needs, message):
    class Needy(Scale):
        """Needs things."""

        id: ClassVar = "tune.test-needy"

    Needy.needs = needs
    offered(Needy)
    with pytest.raises(KdError, match=message):
        Session(zoo.mlp(), measures=("parameters",)).run("tune test-needy")


def test_labels_that_are_missing_are_reported(offered):
    class Labelled(TrainStage):
        """Needs labels."""

        id: ClassVar = "tune.test-labelled"
        needs: ClassVar = Needs(train=True, labels=True)

    offered(Labelled)
    session = Session(zoo.mlp(), train=torch.randn(8, 16), measures=("parameters",))
    with pytest.raises(KdError, match="needs labels, and train has none"):
        session.run("tune test-labelled")


def test_training_data_that_is_missing_is_reported(offered):
    class Training(TrainStage):
        """Trains."""

        id: ClassVar = "tune.test-training"

    offered(Training)
    with pytest.raises(KdError, match="--data train needs data") as caught:
        Session(zoo.mlp(), measures=("parameters",)).run("tune test-training")
    assert "%kd set --train {train}" in caught.value.hints


def test_a_second_run_while_one_is_running_is_refused_politely(session, offered):
    class Nested(Stage):
        """Run another stage from inside."""

        id: ClassVar = "tune.test-nested"

        def apply(self, model, context):
            session.run("tune test-scale")

    offered(Nested)
    with pytest.raises(KdError, match="a stage is running in this session"):
        session.run("tune test-nested")


def test_cancel_stops_a_stage_at_its_next_progress(session, offered):
    class Long(Stage):
        """Work for long."""

        id: ClassVar = "tune.test-long"

        def apply(self, model, context):
            for step in range(1000):
                context.progress(step, 1000)
            raise AssertionError("it was not stopped")

    offered(Long)
    before = state(session)
    with pytest.raises(Cancelled):
        session.run("tune test-long", observe=lambda progress: session.cancel() if progress.done == 3 else None)
    assert_same(session, before)
    assert session.run("tune test-scale").number == 1


def test_listeners_receive_events_and_one_that_raises_does_no_harm(session):
    received = []

    class Listener:
        @hookimpl
        def kdkit_event(self, event):
            received.append((event.kind, event.stage.id))
            raise ZeroDivisionError("listener")

    manager().register(Listener(), "test-listener")
    try:
        with pytest.warns(UserWarning, match="test-listener: kdkit_event raised ZeroDivisionError"):
            session.run("tune test-scale")
        with pytest.warns(UserWarning, match="test-listener"), pytest.raises(KdError):
            session.run("tune test-fail")
    finally:
        manager().unregister(name="test-listener")
    assert received == [("started", "tune.test-scale"), ("finished", "tune.test-scale"), ("started", "tune.test-fail"), ("failed", "tune.test-fail")]


def test_wrappers_surround_the_protocol(session):
    seen = []

    class Wrapper:
        @hookimpl(wrapper=True)
        def kdkit_run_stage(self, stage, context):
            seen.append(("before", stage.id, context.seed))
            made = yield
            seen.append(("after", type(made).__name__))
            return made

    manager().register(Wrapper(), "test-wrapper")
    try:
        session.run("tune test-scale", seed=7)
    finally:
        manager().unregister(name="test-wrapper")
    assert seen == [("before", "tune.test-scale", 7), ("after", "Mlp")]


def test_hints_of_plugins_are_in_the_error(session):
    class Hints:
        @hookimpl
        def kdkit_error_hints(self, error):
            return ["a hint of a plugin's"] if isinstance(error, ValueError) else []

    manager().register(Hints(), "test-hints")
    try:
        with pytest.raises(KdError) as caught:
            session.run("tune test-fail")
    finally:
        manager().unregister(name="test-hints")
    assert "a hint of a plugin's" in caught.value.hints


def test_a_dry_run_predicts_and_runs_nothing(session):
    before = state(session)
    plan = session.plan("decompose svd --ratio 0.4 --skip head\ntune test-scale")
    assert [step.line.split(" --")[0] for step in plan.steps] == ["@base", "decompose svd", "tune test-scale"]
    assert plan.steps[1].parameters < plan.steps[0].parameters
    assert plan.steps[1].macs < plan.steps[0].macs
    assert_same(session, before)
    made = session.run("decompose svd --ratio 0.4 --skip head")
    assert (plan.steps[1].parameters, plan.steps[1].macs, plan.steps[1].size_bytes) == (made["parameters"], made["macs"], made["size"])


def test_compare_puts_versions_side_by_side_with_ratios_to_the_first(session):
    session.run("decompose svd --ratio 0.4", label="thin")
    text = repr(session.compare("@base", "@thin"))
    assert "@base" in text
    assert f"x{session['@thin']['parameters'] / session['@base']['parameters']:.3g}" in text


def test_evaluating_on_new_data_gives_a_report_and_changes_no_version(session):
    before = session.history
    batch = zoo.batch("mlp")
    report = session.evaluate("@base", (batch.args[0][:4], batch.labels[:4]))
    assert report["accuracy"].n == 4
    assert session.history is before


def test_the_code_of_a_version_makes_it_again(session):
    session.run("tune test-scale --factor 0.25", label="one", seed=3)
    session.run("tune test-noise", label="two", seed=4)
    assert session.code("@two").splitlines()[1:] == [
        "%kd tune test-scale --factor 0.25 --on @base --seed 3 --as one",
        "%kd tune test-noise --on @one --seed 4 --as two",
    ]


def test_a_recipe_replayed_on_the_base_gives_the_same_model(session):
    made = session.run("tune test-scale --factor 0.25\ntune test-noise", seed=3)
    again = session.run(session.recipe(made), on="@base")
    assert torch.equal(made.model.head.weight, again.model.head.weight)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "gpu"}, "no backend 'gpu'"),
        ({"seed": -1}, "--seed -1"),
        ({"batch_size": "many"}, "--batch-size 'many'"),
        ({"measures": ("sise",)}, "no measure 'sise'"),
        ({"task": "clasification"}, "clasification"),
        ({"train": 3}, "--train"),
        ({"teacher": "big"}, "--teacher"),
        ({"eval": torch.randn(4, 7)}, "7"),
    ],
)
def test_a_wrong_setting_is_refused_and_nothing_of_it_is_kept(session, given, message):
    settings, objects = dict(session.settings), dict(session.objects)
    with pytest.raises(KdError, match=message):
        session.set(**given)
    assert session.settings == settings
    assert dict(session.objects) == objects


@pytest.mark.parametrize("model", [3, nn.Linear, "net", None])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(KdError, match="is not a model"):
        Session(model)


def test_a_model_that_can_not_be_copied_is_refused_with_the_reason():
    net = zoo.mlp()
    net.lock = threading.Lock()
    with pytest.raises(KdError, match="can't be copied"):
        Session(net)


def test_save_and_load_bring_back_the_version_bit_for_bit_with_its_history(session, tmp_path):
    made = session.run("decompose svd --ratio 0.4", label="thin")
    session.save(tmp_path / "thin", "@thin")
    again = Session.open(tmp_path / "thin", skeleton=zoo.mlp(), measures=QUICK)
    x = zoo.batch("mlp").args[0]
    assert torch.equal(again.head.model(x), made.model(x))
    assert again.head.name == "@thin"
    assert again.head.facts["recipe"]["steps"][0]["stage"] == "decompose.svd"
    loaded = session.load(tmp_path / "thin", skeleton=zoo.mlp())
    assert session.head is loaded
    assert loaded["parameters"] == made["parameters"]


def test_status_tells_what_fits_next_and_what_does_not(session):
    status = session.status()
    assert "decompose svd" in status.next
    assert "quantize static" in status.next
    assert "peft merge" not in status.next
    assert "@base *" in repr(status)
    assert "<table" in status._repr_html_()


def test_every_object_a_session_returns_has_a_short_text_and_html(session):
    made = session.run("tune test-scale")
    for shown in (made, session.status(), session.compare(), session.plan("tune test-scale"), session.evaluate(), session):
        assert 0 < len(repr(shown).splitlines()) < 30
        assert "<" in shown._repr_html_()


def test_traits_of_what_was_loaded_or_adopted_are_seen():
    session = Session(zoo.mlp(), measures=("parameters",))
    assert session.head.traits == {Trait.FLOAT_WEIGHTS, Trait.TRAINABLE, Trait.FREE_STRUCTURE}


def test_versions_are_shown_with_their_headline_figures_and_with_others_on_request():
    report = Report((Figure("accuracy", 0.9), Figure("loss", 0.3, "", "lower", headline=False)))
    listing = Listing((Version(0, None, report, frozenset(), "base"),))
    assert listing.table.head == ["version", "made by", "accuracy"]
    assert replace(listing, also=("loss",)).table.head == ["version", "made by", "accuracy", "loss"]
    assert "loss" in repr(listing.versions[0])


def test_figures_are_in_the_order_of_the_fullest_report_whichever_version_comes_first():
    size, memory, latency = Figure("size", 1, "B"), Figure("memory", 1, "B"), Figure("latency", 1, "ms")
    packed, base = (Version(number, None, Report(figures), frozenset()) for number, figures in enumerate([(size, latency), (size, memory, latency)]))
    assert Listing((packed, base)).figures == ["size", "memory", "latency"]


def test_where_nothing_fits_status_says_what_can_be_done(session, monkeypatch):
    monkeypatch.setattr(Status, "next", [])
    assert "nothing fits @base; save or export it, or branch" in repr(session.status())


def test_versions_are_neither_dropped_nor_loaded_while_a_stage_runs(session, tmp_path):
    session.set(train=zoo.batch("mlp"))
    folder = session.save(tmp_path / "saved")
    session.run(Scale(), label="parent")
    refused = []

    def meddle(progress):
        for work in (lambda: session.drop("@parent"), lambda: session.load(folder)):
            with pytest.raises(KdError, match="a stage is running") as caught:
                work()
            refused.append(caught.value)

    child = session.run("tune finetune --steps 2", observe=meddle)
    assert refused
    assert [version.name for version in session.versions] == ["@base", "@parent", child.name]
    assert session.undo().label == "parent"


def test_a_label_given_while_a_version_is_measured_stays(session, monkeypatch):
    measured = session._measured

    def slow(*args, **options):
        session.keep("@base", "renamed")
        return measured(*args, **options)

    monkeypatch.setattr(session, "_measured", slow)
    session.evaluate("@base")
    assert session.head.label == "renamed"


def test_a_version_of_another_session_is_refused(session):
    other = Session(zoo.mlp(), measures=("parameters",))
    with pytest.raises(KdError, match="a version of another session"):
        session.run(Scale(), on=other.head)
    kept = session.head
    session.keep(kept, "first")
    assert session.version(kept).label == "first"


def test_the_recipe_of_a_loaded_version_goes_back_to_before_it_was_saved(session, tmp_path):
    session.run([Scale(), Noise()])
    loaded = session.load(session.save(tmp_path / "first"))
    session.run(Scale(factor=0.25))
    assert [stage.id for stage in session.recipe(loaded).stages] == ["tune.test-scale", "tune.test-noise"]
    session.save(tmp_path / "second")
    opened = Session.open(tmp_path / "second", measures=("parameters",))
    assert opened.recipe().lines() == "tune test-scale\ntune test-noise\ntune test-scale --factor 0.25"


def test_a_loaded_version_is_saved_again_though_its_stages_are_not_installed(session, tmp_path, monkeypatch):
    session.run(Scale())
    loaded = session.load(session.save(tmp_path / "first"))
    recipe = loaded.facts["recipe"]
    recipe["steps"][0]["stage"] = "tune.gone"
    opened = session.load(session.save(tmp_path / "second", loaded))
    assert opened.facts["recipe"]["steps"] == recipe["steps"]
    with pytest.raises(KdError, match="gone"):
        session.recipe(opened)


@pytest.mark.slow
def test_a_dry_run_of_together_brings_what_its_stages_bring(session):
    session.set(train=zoo.batch("mlp"), small=zoo.Mlp(hidden=8))
    lines = "together:\n    peft lora --steps 1\n    distill soft\npeft merge\nprune channels"
    predicted = session.plan(lines).steps[-1]
    made = session.run(lines)
    assert (predicted.parameters, predicted.macs) == (made["parameters"], made["macs"])
    taught = session.plan("together:\n    tune finetune --steps 1\n    distill soft --student small", on="@base").steps[-1]
    assert taught.parameters == sum(weight.numel() for weight in zoo.Mlp(hidden=8).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("order", ["peft lora --steps 1\n    distill soft --student small", "distill soft --student small --steps 1\n    peft lora"])
def test_adapters_are_attached_to_the_student_of_the_loop(session, order):
    session.set(train=zoo.batch("mlp"), small=zoo.Mlp(hidden=8))
    head = session.run(f"together:\n    {order}")
    assert Trait.ADAPTERS_ATTACHED in head.traits
    assert session.run("peft merge").model.first.out_features == 8


@pytest.mark.slow
@pytest.mark.parametrize("lines", ["prune channels", "decompose svd --ratio 0.5", "peft lora --no-train"])
def test_a_transformer_that_no_config_states_is_not_exported_for_from_pretrained(lines, tmp_path):
    batch = zoo.batch("tiny_bert")
    session = Session(zoo.tiny_bert(), train=batch, eval=batch, measures=("parameters",))
    session.run(lines)
    with pytest.raises(KdError, match="from_pretrained could not read this version"):
        session.export(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_an_exported_transformer_is_read_by_from_pretrained(tmp_path):
    batch = zoo.batch("tiny_llama")
    session = Session(zoo.tiny_llama(), eval=batch, measures=("parameters",))
    session.run("prune channels --what groups ffn")
    again = type(session.original).from_pretrained(session.export(tmp_path / "model"))
    assert torch.equal(batch.call(again.eval()).logits, batch.call(session.pop()).logits)


def test_adapters_leave_the_weights_beside_them_in_one_place(session):
    adapted = session.run("peft lora --no-train")
    held = {weight.data_ptr() for weight in session["@base"].model.parameters()}
    apart = [name for name, weight in adapted.model.named_parameters() if weight.data_ptr() not in held]
    assert apart
    assert all("lora_" in name for name in apart)


def test_weights_that_are_equal_by_chance_are_not_tied_by_sharing():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in net:
        nn.init.zeros_(layer.bias)
    session = Session(net, eval=torch.randn(8, 4), task="regression", measures=("parameters",))
    model = session.run("peft lora --no-train --targets 0 1 2").model
    places = [weight.data_ptr() for weight in model.parameters()]
    assert len(set(places)) == len(places)


def test_a_name_nearly_that_of_data_is_reported_where_there_is_no_data():
    with pytest.raises(KdError, match="evaluate= is not one of the names") as caught:
        Session(zoo.mlp(), evaluate=zoo.batch("mlp").args[0])
    assert "did you mean eval?" in caught.value.hints


@pytest.mark.slow
def test_doing_the_same_twice_is_reported(session):
    session.run("quantize dynamic")
    with pytest.raises(KdError, match="quantize dynamic needs float weights") as caught:
        session.run("quantize dynamic")
    assert "it was done already" in caught.value.hints


def test_one_measure_may_be_given_by_its_bare_name():
    assert list(Session(zoo.mlp(), measures="parameters").head.report) == ["parameters"]


def test_who_comes_second_is_refused_and_does_not_wait_also_where_both_came_at_once(session):
    class Taken(dict):
        """Of another thread, that comes between a look at it and the grip."""

        def setdefault(self, key, default=None):
            return super().setdefault(key, "of another thread")

    session._running = Taken()
    with pytest.raises(KdError, match="a stage is running"):
        session.plan("tune finetune --steps 1")

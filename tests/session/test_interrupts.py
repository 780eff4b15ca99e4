"""Ctrl-C at a hundred random moments of run, save and load: session, files and torch's modes are whole every time."""

import contextlib
import threading
from typing import ClassVar

import pytest
import torch

from kdkit import Session, Stage, compare_with
from kdkit.errors import KdError
from tests.fixtures import zoo
from tests.fixtures.interruption import interrupted, interrupted_at_blocks, moments
from tests.fixtures.lessons import fingerprint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="interrupts reach the main thread alone"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # an interrupt inside a finalizer goes no further
]
QUICK = ("quality", "parameters", "size")


class Slice(Stage):
    """Take away hidden units, bit by bit."""

    id: ClassVar = "prune.test-slice"

    def apply(self, model, context):
        for step in range(4):
            context.progress(step, 4)
            keep = model.first.out_features - 1
            model.first.weight = torch.nn.Parameter(model.first.weight.detach()[:keep])
            model.first.bias = torch.nn.Parameter(model.first.bias.detach()[:keep])
            model.second.weight = torch.nn.Parameter(model.second.weight.detach()[:, :keep])
            model.first.out_features = model.second.in_features = keep


@pytest.fixture
def session(offered):
    offered(Slice)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=QUICK)


def output(version):
    return version.model(zoo.batch("mlp").args[0])


@pytest.mark.slow
def test_run(session):
    base, head = output(session["@base"]), session.run("prune test-slice", label="slim")
    expected, happened = output(head), set()
    for moment in moments(lambda: session.run("prune test-slice", on="@base")):
        before = session.history
        interrupted(lambda: session.run("prune test-slice", on="@base"), moment)
        grown = len(session.versions) - len(before.versions)
        happened.add(grown)
        assert (grown == 0 and session.history is before) or (grown == 1 and torch.equal(output(session.head), expected))
        assert torch.equal(output(session["@base"]), base)
        assert torch.equal(output(session["@slim"]), expected)
    assert happened == {0, 1}, "every interrupt, or none, came too late"
    assert torch.equal(output(session.run("prune test-slice", on="@base")), expected)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, None])
def test_modes_that_a_stage_left_on_are_put_back(offered, stop):
    class Careless(Stage):
        """Turn gradients off and autocast on, as an interrupt on the way out of their blocks does."""

        id: ClassVar = "prune.test-careless"

        def apply(self, model, context):
            torch.set_grad_enabled(False)
            torch.autocast_increment_nesting()
            torch.set_autocast_enabled("cpu", True)
            model.first.weight.data.zero_()
            if stop:
                raise stop

    offered(Careless)
    session = Session(zoo.mlp(), measures=())
    with contextlib.suppress(KeyboardInterrupt, KdError):
        session.run("prune test-careless")
    assert (len(session.versions) == 2) == (stop is None)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


CALLS = {
    "run": lambda session: session.run("tune finetune --steps 1 --precision bf16", on="@base"),
    "evaluate": lambda session: session.evaluate("@base"),
    "show": lambda session: session.show("confusion @base"),
    "sensitivity": lambda session: session.show("sensitivity @base --bits 4"),
    "compare-with": lambda session: compare_with(session, "tune finetune --steps 1", stages="tune finetune --steps 2", seeds=1),
}
"""Calls of a session that run its models."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_as_a_block_ends_leaves_torchs_modes_and_the_model_as_they_were(call):
    batch = zoo.batch("mlp")
    data = (batch.args[0], batch.labels)
    session = Session(zoo.mlp(), train=data, eval=data, measures=QUICK)
    before = fingerprint(session["@base"].model)
    assert interrupted_at_blocks(lambda: CALLS[call](session), at_most=60) == []
    assert fingerprint(session["@base"].model) == before


@pytest.mark.slow
def test_save(session, tmp_path):
    session.run("prune test-slice", label="slim")
    folder, labels = tmp_path / "saved", ("@base", "@slim")
    held = {name.removeprefix("@"): output(session[name]) for name in labels}
    session.save(folder, "@base")
    for index, moment in enumerate(moments(lambda: session.save(tmp_path / "other", "@slim"))):
        interrupted(lambda label=labels[index % 2]: session.save(folder, label, force=True), moment)
        again = Session.open(folder, skeleton=zoo.mlp(), measures=())
        assert torch.equal(output(again.head), held[again.head.label])


@pytest.mark.slow
def test_load(session, tmp_path):
    session.run("prune test-slice", label="slim")
    folder, expected = tmp_path / "saved", output(session.head)
    session.save(folder, "@slim")
    for moment in moments(lambda: session.load(folder, skeleton=zoo.mlp())):
        before = session.history
        interrupted(lambda: session.load(folder, skeleton=zoo.mlp()), moment)
        assert session.history is before or len(session.versions) == len(before.versions) + 1
        assert torch.equal(output(session.head), expected)
        assert torch.equal(output(Session.open(folder, skeleton=zoo.mlp(), measures=()).head), expected)

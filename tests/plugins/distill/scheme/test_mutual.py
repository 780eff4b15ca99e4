"""distill mutual: the peers' losses by hand, one forward pass each, what is kept and what is told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification, Regression, TokenClassification
from kdkit.training import fit
from kdkit_distill.scheme.mutual import Mutual, mutual
from tests.fixtures import zoo
from tests.fixtures.lessons import Tagger, net, points, weights


def context(data: Any = None, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(points() if data is None else data, 16), **objects})


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nets", [2, 3, 4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_formula_written_out(nets: int, temperature: float) -> None:
    stated = [logits(5, 4, seed=seed) for seed in range(nets)]
    shares = [(each / temperature).softmax(-1) for each in stated]
    for i, found in enumerate(mutual(stated, temperature)):
        others = [shares[j] for j in range(nets) if j != i]
        expected = sum(temperature**2 * (p * (p.log() - shares[i].log())).sum(-1) for p in others) / (nets - 1)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_no_gradient_reaches_the_other_net() -> None:
    one, two = logits(5, 4).requires_grad_(), logits(5, 4, seed=1).requires_grad_()
    mutual([one, two])[0].sum().backward()
    assert two.grad is None
    assert torch.allclose(one.grad, (one.softmax(-1) - two.softmax(-1)).detach(), atol=1e-12)


def test_nets_that_say_the_same_have_nothing_to_tell_each_other() -> None:
    one = logits(5, 4).requires_grad_()
    two = one.detach().clone().requires_grad_()
    loss = torch.stack(mutual([one, two]))
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert max(each.grad.abs().max() for each in (one, two)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    one = torch.tensor([[1e4, -1e4, 0.0]]).to(dtype).requires_grad_()
    loss = torch.stack(mutual([one, -one.detach()]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(one.grad).all()


# Against a loop written by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nets", "optimizer"), [(2, "sgd"), (3, "sgd"), (2, "adam")])
def test_three_steps_equal_a_loop_written_by_hand(nets: int, optimizer: str) -> None:
    x, y = points(16)
    data = Data(lambda: [Batch((x.double(),), labels=y)], "one batch", 16)
    student, partners = net(0).double(), {f"net{seed}": net(seed).double() for seed in range(1, nets)}
    mine = [copy.deepcopy(each).train() for each in (student, *partners.values())]
    taught, seen = [], []
    run = context(data, **partners)
    run.observe = seen.append

    class Watched(Mutual):
        """Remembers its part."""

        def part(self, model: nn.Module, context: Context) -> Any:
            taught.append(super().part(model, context))
            return taught[0]

    options: dict[str, Any] = {"steps": 3, "optimizer": optimizer, "learning_rate": 0.05, "schedule": "constant"}
    fit(student, [Watched(partners=tuple(partners), alpha=0.4, **options)], run)
    steppers = [torch.optim.SGD(each.parameters(), 0.05, momentum=0.9) if optimizer == "sgd" else torch.optim.Adam(each.parameters(), 0.05) for each in mine]
    for _ in range(3):
        stated = [each(x.double()) for each in mine]
        for i, stepper in enumerate(steppers):
            p = [stated[j].detach().softmax(-1) for j in range(nets) if j != i]
            apart = sum((each * (each.log() - stated[i].log_softmax(-1))).sum(-1).mean() for each in p) / (nets - 1)
            stepper.zero_grad()
            (0.6 * nn.functional.cross_entropy(stated[i], y) + 0.4 * apart).backward()
        for stepper in steppers:
            stepper.step()
    for found, expected in zip((student, *taught[0].nets), mine, strict=True):
        assert torch.allclose(weights(found), weights(expected), rtol=0, atol=1e-6)


def test_each_net_is_asked_once_a_step() -> None:
    calls: list[str] = []

    class Counted(nn.Module):
        """Counts the passes in train mode."""

        def __init__(self, seed: int, name: str):
            super().__init__()
            self.net, self.name = net(seed), name

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                calls.append(self.name)
            return self.net(x)

    fit(Counted(0, "student"), [Mutual(steps=3, partners=("one", "two"))], context(one=Counted(1, "one"), two=Counted(2, "two")))
    assert sorted(calls) == ["one"] * 3 + ["student"] * 3 + ["two"] * 3


# The stage -----------------------------------------------------------------------------------------------------------


def test_peers_made_here_begin_fresh_and_the_same_seed_gives_the_same() -> None:
    made = []
    for _ in range(2):
        part = Mutual(peers=3).part(net(0), context())
        student = net(0)
        part.open(student)
        made.append([weights(each) for each in (student, *part.nets)])  # type: ignore[attr-defined]
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
    assert not torch.equal(made[0][0], made[0][1])
    assert not torch.equal(made[0][1], made[0][2])


def test_partners_are_trained_as_copies() -> None:
    partner = net(1, width=8)
    before = weights(partner)
    made = fit(net(0), [Mutual(partners=("small",), epochs=2)], context(small=partner))
    assert torch.equal(weights(partner), before)
    assert made[0].out_features == 16
    assert made.state_dict().keys() == net(0).state_dict().keys()


def test_four_small_batches_make_the_step_of_a_large_one() -> None:
    x, y = points(16)
    found = []
    for cuts in (1, 4):
        student, partner = (nn.Sequential(nn.Linear(6, 3)).double() for _ in range(2))
        for seed, each in enumerate((student, partner)):
            nn.init.normal_(each[0].weight, generator=torch.Generator().manual_seed(seed))
            nn.init.zeros_(each[0].bias)
        batches = [Batch((rows.double(),), labels=labels) for rows, labels in zip(x.chunk(cuts), y.chunk(cuts), strict=True)]
        data = Data(lambda batches=batches: batches, "cut", 16)
        fit(student, [Mutual(partners=("other",), accumulate=4, steps=3, optimizer="sgd", learning_rate=0.3)], context(data, other=partner))
        found.append(weights(student))
    assert torch.allclose(*found, rtol=0, atol=1e-9)


def test_padding_changes_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, 20, (6, 5), generator=random), torch.randint(0, 4, (6, 5), generator=random)
    mask, found = torch.arange(5)[None] < torch.tensor([5, 2, 3, 4, 1, 5])[:, None], []
    for more in (0, 3):
        inputs = {"input_ids": nn.functional.pad(tokens, (0, more), value=7), "attention_mask": nn.functional.pad(mask.long(), (0, more))}
        batch = Batch(kwargs=inputs, labels=nn.functional.pad(labels, (0, more)))
        run = Context(TokenClassification(), objects={"train": Data(lambda batch=batch: [batch], "tokens", 6), "other": Tagger(1)})
        student = Tagger(0)
        fit(student, [Mutual(partners=("other",), steps=3)], run)
        found.append(weights(student))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "tiny_bert"])
def test_nets_of_the_zoo_learn_together(kind: str) -> None:
    if kind == "tiny_bert":
        pytest.importorskip("transformers")
    model, batch = zoo.MODELS[kind](), zoo.batch(kind, 16)
    before = weights(model)
    made = fit(model, [Mutual(epochs=2, batch_size=8)], context(Data(lambda: [batch], "zoo", 16)))
    assert not torch.equal(weights(made), before)
    assert made.state_dict().keys() == zoo.MODELS[kind]().state_dict().keys()


def test_the_notes_tell_how_each_net_does_on_eval() -> None:
    run = context(eval=adopt_data(points(32, 5), 16))
    made = fit(net(0), [Mutual(peers=3, epochs=2)], run)
    note = next(note for note in run.notes if note.startswith("accuracy on eval"))
    x, y = points(32, 5)
    assert f"student {(made(x).argmax(1) == y).float().mean().item():.4g}" in note
    assert "peer1" in note
    assert "peer2" in note


@pytest.mark.slow
def test_the_best_peer_on_validation_can_be_kept() -> None:
    class Late(Mutual):
        """Its student learns nothing: the last layer is put back after each step."""

        def part(self, model: nn.Module, context: Context) -> Any:
            part = super().part(model, context)

            def spoil(step: Any) -> None:
                part.trained = True
                with torch.no_grad():
                    step.model[4].weight.zero_()

            part.after_step = spoil  # type: ignore[method-assign]
            return part

    found = []
    for keep in ("student", "best"):
        run = context(points(128), held=adopt_data(points(64, 5), 16))
        made = fit(net(0), [Late(keep_peer=keep, validation="held", epochs=10, learning_rate=0.02)], run)
        found.append((made(points(64, 6)[0]).argmax(1) == points(64, 6)[1]).float().mean().item())
        assert (keep == "best") == any("kept peer1" in note for note in run.notes)
    assert found[1] > found[0] + 0.2


def test_a_resumed_training_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    whole = fit(net(0, dropout=0.2), [Mutual(epochs=3)], context())
    broken = context()

    def stop(progress: Any) -> None:
        if progress.done >= 6:
            broken.cancelled.set()

    broken.observe = stop
    with pytest.raises(Cancelled):
        fit(net(0, dropout=0.2), [Mutual(epochs=3, checkpoint=str(tmp_path))], broken)
    again = fit(net(0, dropout=0.2), [Mutual(epochs=3, checkpoint=str(tmp_path), resume=True)], context())
    assert torch.equal(weights(whole), weights(again))


def test_it_needs_labels_and_no_teacher() -> None:
    assert Mutual().required_inputs() == Needs(train=True, labels=True)
    assert {name for name, *_ in Mutual(partners=("a", "b")).named_objects()} == {"partners", "data"}
    with pytest.raises(KdError, match="needs labels"):
        fit(net(0), [Mutual()], context(points()[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": False}, "--no-labels"),
        ({"teacher": "big"}, "--teacher"),
        ({"also": ("soft",)}, "--also"),
        ({"peers": 3, "partners": ("one",)}, "--peers 3"),
        ({"keep_peer": "best"}, "--validation"),
        ({"keep_peer": "best", "partners": ("one",), "validation": "held"}, "--partners"),
        ({"cache": "file"}, "--cache"),
    ],
)
def test_options_that_do_not_go_together_are_named(options: dict[str, Any], message: str) -> None:
    assert any(message in line for line in Mutual(**options).conflicts())


def test_peers_that_know_other_classes_are_refused_by_name() -> None:
    with pytest.raises(KdError, match="other has outputs of shape"):
        fit(net(0), [Mutual(partners=("other",))], context(other=net(1, classes=5)))


def test_a_net_that_can_not_begin_again_is_refused() -> None:
    class Bare(nn.Module):
        """Weights and no reset_parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    with pytest.raises(KdError, match="reset_parameters"):
        fit(Bare(), [Mutual()], context())


def test_it_is_valid_and_knows_its_tasks() -> None:
    assert not list(validate_stage(Mutual))
    assert Mutual().incompatible_task(Regression())

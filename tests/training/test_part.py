"""What a part may do to the batch: mixup, adversarial inputs, batches of another size, text sampled from the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import Batch, KdError, Step, Term, TrainPart
from kdkit.data import Data, MapDataset
from kdkit.data.datasets import TensorRows
from kdkit.tasks import CausalLM
from kdkit.training import fit
from kdkit_distill.response.soft import Soft
from tests.fixtures.training import Labels, context, in_order, net, points, stage_of, weights


class Mixup(Labels):
    """Mixes each item with another one of its batch, and their labels alike (Zhang et al., 2018)."""

    share = 0.3

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        x, y = batch.args[0], F.one_hot(batch.labels, 3).to(batch.args[0].dtype)
        return replace(batch, args=((1 - self.share) * x + self.share * x.flip(0),), labels=(1 - self.share) * y + self.share * y.flip(0))


def test_mixup_trains_as_written_out() -> None:
    x, y = points()
    mine, theirs = net(), net()
    fit(mine, [stage_of(Mixup, optimizer="sgd", learning_rate=0.1, schedule="constant")], context(in_order(x, y)))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for start in range(0, 64, 16):
        one, labels = x[start : start + 16], y[start : start + 16]
        logits = theirs(0.7 * one + 0.3 * one.flip(0)).log_softmax(-1)
        loss = 0.7 * F.nll_loss(logits, labels) + 0.3 * F.nll_loss(logits, labels.flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-6)
    assert not torch.allclose(weights(mine), weights(net()), atol=1e-3)


class Attack(Labels):
    """Moves the inputs against the model by one step of the gradient's sign."""

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        assert model.training
        x = batch.args[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch.labels), x)
        return replace(batch, args=((x + 0.1 * slope.sign()).detach(),))


def test_adversarial_inputs_follow_the_model_as_it_learns() -> None:
    x, y = points()
    mine, theirs = net(), net()
    fit(mine, [stage_of(Attack, epochs=2, optimizer="sgd", learning_rate=0.1, schedule="constant")], context(in_order(x, y)))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for start in [*range(0, 64, 16)] * 2:
        inputs, labels = x[start : start + 16].clone().requires_grad_(), y[start : start + 16]
        (slope,) = torch.autograd.grad(F.cross_entropy(theirs(inputs), labels), inputs)
        optimizer.zero_grad()
        F.cross_entropy(theirs((inputs + 0.1 * slope.sign()).detach()), labels).backward()
        optimizer.step()
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-6)


class Seen(TrainPart):
    """Keeps what the terms are given."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def terms(self, step: Step) -> Iterator[Term]:
        self.steps.append(step)
        yield Term.from_labels(step)


class Doubled(TrainPart):
    """Each item twice, the second time with its sign changed."""

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        return Batch((torch.cat([batch.args[0], -batch.args[0]]),), labels=torch.cat([batch.labels, batch.labels]), numbers=batch.numbers)


class Shifted(TrainPart):
    """Adds one to the inputs."""

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        return replace(batch, args=(batch.args[0] + 1,))


def test_the_parts_of_a_group_replace_the_batch_in_order_and_all_terms_see_the_last_one() -> None:
    seen, x = Seen(), points()[0]
    fit(net(), [stage_of(Doubled, "doubled", steps=1), stage_of(lambda: seen, "seen"), stage_of(Shifted, "shifted")], context(in_order(*points())))
    (step,) = seen.steps
    assert torch.equal(step.batch.args[0], torch.cat([x[:16], -x[:16]]) + 1)
    assert step.output.shape == (32, 3)


def test_a_replaced_batch_has_no_item_numbers_so_a_cache_never_mistakes_it_for_the_items() -> None:
    plain, replaced = Seen(), Seen()
    fit(net(), [stage_of(lambda: plain, "plain", steps=1)], context())
    fit(net(), [stage_of(lambda: replaced, "replaced", steps=1), stage_of(Shifted, "shifted")], context())
    assert plain.steps[0].batch.numbers is not None
    assert replaced.steps[0].batch.numbers is None


def test_the_teacher_is_asked_about_the_replaced_batch(tmp_path: Path) -> None:
    asked: list[Tensor] = []

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(5)

        def forward(self, x: Tensor) -> Tensor:
            asked.append(x)
            return self.inner(x)

    x = points()[0]
    fit(net(), [Soft(steps=1), stage_of(Shifted, "shifted")], context(in_order(*points()), teacher=Teacher()))
    assert torch.equal(asked[-1], x[:16] + 1)
    with pytest.raises(KdError, match="cache"):
        fit(net(), [Soft(steps=1, cache=str(tmp_path / "answers")), stage_of(Shifted, "shifted")], context(teacher=net(5)))


class Shortened(Labels):
    """Keeps the first items of a batch; how many depends on its first number."""

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        kept = 2 + int(1000 * batch.args[0][0, 0].abs()) % 9
        return batch[:kept]


def test_counts_are_of_the_returned_batches_so_accumulation_stays_one_large_batch() -> None:
    x, y = points()
    mine, theirs = net().double(), net().double()
    data = MapDataset(TensorRows(Batch((x.double(),), labels=y)), "float64", 16, lambda batch: batch)
    fit(mine, [stage_of(Shortened, steps=1, accumulate=4, optimizer="sgd", learning_rate=1.0)], context(data))
    batches = [Shortened().batch(batch, theirs, 0.0) for batch in data.batches(shuffle=True, seed=3 * 1_000_003)]
    assert len({batch.size for batch in batches}) > 1
    F.cross_entropy(theirs(torch.cat([batch.args[0] for batch in batches])), torch.cat([batch.labels for batch in batches])).backward()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight -= weight.grad
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-12)


class Writer(nn.Module):
    """A causal language model of one layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).cumsum(1))


class OnPolicy(TrainPart):
    """Continues each prompt with tokens of the student's own, and learns the teacher's next-token distribution on them."""

    def __init__(self, teacher: nn.Module):
        self.teacher = teacher

    @torch.no_grad()
    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        tokens = batch.kwargs["input_ids"]
        for _ in range(4):
            following = model(tokens, torch.ones_like(tokens))[:, -1].softmax(-1).multinomial(1)
            tokens = torch.cat([tokens, following], 1)
        return Batch((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    def terms(self, step: Step) -> Iterator[Term]:
        with torch.no_grad():
            teacher = step.batch.call(self.teacher).log_softmax(-1)
        student = step.output.log_softmax(-1)
        yield Term("reverse", (student.exp() * (student - teacher)).sum(-1))


@pytest.mark.slow
def test_a_language_model_learns_on_text_that_it_writes_itself() -> None:
    prompts = torch.randint(1, 11, (32, 3), generator=torch.Generator().manual_seed(0))
    data = Data(lambda: [Batch((), {"input_ids": prompts[at : at + 8], "attention_mask": torch.ones(8, 3).long()}) for at in range(0, 32, 8)], "prompts", 32)
    reported: list[Any] = []
    run = context(data, CausalLM(), observe=reported.append)
    student, teacher = Writer(1), Writer(2).eval()
    before = weights(teacher)
    fit(student, [stage_of(lambda: OnPolicy(teacher), epochs=40, learning_rate=0.02)], run)
    assert reported[-1].figures["reverse"] < 0.3 * reported[0].figures["reverse"]
    assert torch.equal(weights(teacher), before)


@pytest.mark.parametrize(("returned", "message"), [(None, "NoneType"), (Batch((torch.zeros(0, 6),)), "an empty batch")])
def test_what_is_no_batch_is_refused_by_the_name_of_the_stage(returned: Any, message: str) -> None:
    class Wrong(Labels):
        def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
            return returned

    with pytest.raises(KdError, match=f"tune.made: batch returned {message}"):
        fit(net(), [stage_of(Wrong)], context())


def _in_a_process(folder: str) -> None:
    torch.set_num_threads(1)
    model = fit(net().double(), [stage_of(Shortened, epochs=2, batch_size=16, learning_rate=0.1)], context(_doubles()))
    torch.save(weights(model), f"{folder}/{torch.distributed.get_rank()}.pt")


def _doubles() -> Data:
    x, y = points(72)
    return MapDataset(TensorRows(Batch((x.double(),), labels=y)), "float64", 16, lambda batch: batch)


@pytest.mark.slow
def test_two_processes_replace_each_their_own_batches_and_train_as_one(tmp_path: Path) -> None:
    from accelerate import debug_launcher

    debug_launcher(_in_a_process, (str(tmp_path),), num_processes=2)
    alone = fit(net().double(), [stage_of(Shortened, epochs=2, batch_size=16, accumulate=2, learning_rate=0.1)], context(_doubles()))
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt"), weights(alone), rtol=0, atol=1e-9)

"""The CTC task: the loss as it is defined, the error rate as it is counted, and a teacher frame by frame."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import kdkit
from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.session.task_lookup import task
from kdkit.tasks import CTC, Classification, infer_task
from kdkit.tasks.ctc import edit_distance, greedy
from kdkit.views.agreement import compare_predictions

LABELS = torch.tensor([[1, 2, 2, -100], [3, -100, -100, -100], [1, 2, 3, 1], [-100, -100, -100, -100]])


def of_outputs(frames: int = 6, items: int = 4, classes: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(items, frames, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(labels: Tensor | None = LABELS, mask: Tensor | None = None, items: int = 4) -> Batch:
    return Batch((torch.zeros(items, 1),), {} if mask is None else {"attention_mask": mask}, labels)


def collapsed(path: tuple[int, ...], blank: int = 0) -> list[int]:
    return [each for each, _ in itertools.groupby(path) if each != blank]


def by_definition(logits: Tensor, labels: list[int], blank: int = 0) -> Tensor:
    """-log of the summed probability of every path of frames that reads as the labels."""
    chances = logits.softmax(-1)
    paths = (path for path in itertools.product(range(logits.shape[-1]), repeat=len(logits)) if collapsed(path, blank) == labels)
    return -torch.stack([torch.stack([chances[at, each] for at, each in enumerate(path)]).prod() for path in paths]).sum().log()


@pytest.mark.parametrize("blank", [0, 3])
def test_the_loss_sums_over_all_alignments_and_is_divided_by_the_labels(blank: int) -> None:
    logits = of_outputs(4, 2, 4)
    labels = torch.tensor([[1, 2, -100], [2, 2, -100]])
    expected = [by_definition(each, [int(one) for one in label if one != -100], blank) / 2 for each, label in zip(logits, labels, strict=True)]
    assert torch.allclose(CTC(blank=blank).losses(logits, batch_of(labels, items=2)), torch.stack(expected), atol=1e-9, rtol=0)


def test_its_mean_is_that_of_torch() -> None:
    logits, labels = of_outputs()[:3], LABELS[:3]
    expected = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels.clamp_min(1), torch.full((3,), 6), torch.tensor([3, 1, 4]))
    assert CTC().losses(logits, batch_of(labels, items=3)).mean().item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_gradient_is_that_of_the_definition() -> None:
    logits = of_outputs(4, 1, 3).requires_grad_()
    (found,) = torch.autograd.grad(CTC().losses(logits, batch_of(torch.tensor([[1, 2]]), items=1)).sum(), logits)
    (expected,) = torch.autograd.grad(by_definition(logits[0], [1, 2]) / 2, logits)
    assert torch.allclose(found, expected, atol=1e-9)


def test_frames_behind_the_mask_change_nothing_whatever_is_there() -> None:
    logits, lengths = of_outputs(), torch.tensor([6, 3, 5, 2])
    mask = torch.arange(6)[None] < lengths[:, None]
    inside = logits.clone().requires_grad_()
    wild = logits.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    for part, frames in ((inside, mask), (wild, mask)):
        CTC().losses(part, batch_of(mask=frames.long())).sum().backward()
    assert torch.equal(inside.grad, wild.grad)  # type: ignore[arg-type]
    assert inside.grad[~mask].abs().max() == 0  # type: ignore[index]
    alone = CTC().losses(logits[1:2, :3], batch_of(LABELS[1:2], items=1))
    assert CTC().losses(logits, batch_of(mask=mask.long()))[1].item() == pytest.approx(alone.item(), abs=1e-12)


def test_an_item_without_labels_has_no_loss_and_does_not_count() -> None:
    assert CTC().labelled(batch_of()).tolist() == [True, True, True, False]  # type: ignore[union-attr]
    assert CTC().count(batch_of()) == 3
    assert CTC().losses(of_outputs(), batch_of())[3] == 0


def test_labels_that_no_path_can_spell_give_neither_loss_nor_gradient_and_are_reported() -> None:
    labels = torch.tensor([[1, 1, 1, 1], [1, 2, 3, 1], [1, 2, -100, -100]])
    logits = of_outputs(4, 3).requires_grad_()
    losses = CTC().losses(logits, batch_of(labels, items=3))
    losses.sum().backward()
    assert losses[0] == 0 < losses[1]
    assert logits.grad[0].abs().max() == 0 < logits.grad[1].abs().max()  # type: ignore[index]
    figures = CTC().evaluate(lambda batch: logits.detach(), Data(lambda: [batch_of(labels, items=3)], "three", 3))
    assert figures["unalignable"] == pytest.approx(1 / 3)
    assert figures["loss"] == pytest.approx(losses[1:].mean().item())


def test_a_whole_batch_of_them_is_an_error() -> None:
    with pytest.raises(KdError, match="no item of the batch can be aligned: 7 frames are needed and there are 4"):
        CTC().losses(of_outputs(4, 2), batch_of(torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]]), items=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_and_half_precision_stay_finite(dtype: torch.dtype) -> None:
    logits = (of_outputs() * 1e4).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    losses = CTC().losses(logits, batch_of())
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_the_greedy_decoding_drops_repeats_then_blanks() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 3, 0, 3, 3]])
    assert greedy(F.one_hot(path, 4).float(), torch.tensor([6, 5])) == [[1, 1, 2], [3, 3]]
    assert greedy(F.one_hot(path, 4).float(), torch.tensor([2, 2]), blank=1) == [[], [0]]


@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_the_edit_distance_is_the_recursion(one: list[int], two: list[int]) -> None:
    def slow(left: tuple[int, ...], right: tuple[int, ...]) -> int:
        if not left or not right:
            return len(left) + len(right)
        best = min(slow(left[1:], right), slow(left, right[1:])) + 1
        return min(best, slow(left[1:], right[1:]) + (left[0] != right[0]))

    assert edit_distance(one[:4], two[:4]) == slow(tuple(one[:4]), tuple(two[:4]))
    assert edit_distance(one, two) == edit_distance(two, one) >= abs(len(one) - len(two))


def test_the_error_rate_is_over_all_labels_however_they_are_batched() -> None:
    path = torch.tensor([[1, 2, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0], [1, 2, 3, 3, 0, 1], [1, 1, 1, 1, 1, 1]])
    logits = 9 * F.one_hot(path, 4).double()
    whole = Batch((logits,), labels=LABELS)
    for size in (1, 3, 4):
        cuts = [whole[at : at + size] for at in range(0, 4, size)]
        figures = CTC().evaluate(lambda batch: batch.args[0], Data(lambda cuts=cuts: cuts, "cut", 4))  # type: ignore[misc]
        assert figures["label_error_rate"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 2]), "are no sequences of classes"),
        (torch.tensor([[0.5], [1.0]]), "are no sequences of classes"),
        (torch.tensor([[1, 4], [1, 1]]), "a label is 4, and the model has 4 classes"),
        (torch.tensor([[1, -3], [1, 1]]), "a label is -3"),
        (torch.tensor([[1, 0], [1, 1]]), "a label is the blank, 0"),
        (torch.tensor([[-100, 1], [1, 1]]), "-100 comes before a label"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: Tensor, message: str) -> None:
    with pytest.raises(KdError, match=message):
        CTC().losses(of_outputs(6, 2), batch_of(labels, items=2))


def test_a_mask_of_other_steps_needs_a_rule_how_they_become_frames() -> None:
    mask = torch.tensor([[1] * 12, [1] * 8 + [0] * 4])
    batch = batch_of(LABELS[:2], mask, items=2)
    with pytest.raises(KdError, match="the mask gives 12 frames, and the model returns 6"):
        CTC().losses(of_outputs(6, 2), batch)
    halved = CTC(frames=lambda steps: steps // 2)
    assert halved.mask(batch).sum(1).tolist() == [6, 4]  # type: ignore[union-attr]
    plain = batch_of(LABELS[:2], torch.tensor([[1] * 6, [1] * 4 + [0] * 2]), items=2)
    assert torch.equal(halved.losses(of_outputs(6, 2), batch), CTC().losses(of_outputs(6, 2), plain))
    with pytest.raises(KdError, match="padding on the left"):
        CTC().mask(batch_of(None, torch.tensor([[0, 1], [1, 1]]), items=2))


class Listener(nn.Module):
    """(batch, frames, 5) features, and which frames are real -> (batch, frames, 4) scores."""

    def __init__(self, hidden: int = 16, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Conv1d(5, hidden, 3, padding=1)
        self.head = nn.Linear(hidden, 4)

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.inner(features.transpose(1, 2)).relu().transpose(1, 2))


def speech(items: int = 48, masked: bool = True, seed: int = 0) -> Any:
    """Items whose labels can be heard: each label sounds for two frames, then silence for one."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 5, (items,), generator=generator)
    words = torch.randint(1, 4, (items, 4), generator=generator)
    received = torch.zeros(items, 12, 5)
    for item in range(items):
        for at in range(lengths[item]):
            received[item, 3 * at : 3 * at + 2, words[item, at]] = 1.0
    received += 0.1 * torch.randn(received.shape, generator=generator)
    real = torch.arange(4)[None] < lengths[:, None]
    named = {"features": received, "labels": words.masked_fill(~real, -100)}
    return named | ({"attention_mask": (torch.arange(12)[None] < 3 * lengths[:, None]).long()} if masked else {})


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_a_model_learns_to_spell_and_teaches_another_frame_by_frame(masked: bool) -> None:
    session = kdkit.Session(Listener(), train=[speech(masked=masked)], eval=[speech(masked=masked, seed=1)], task="ctc", batch_size=16, measures=("quality", "agreement"))
    taught = session.run("tune finetune --steps 40 --learning-rate 0.05")
    assert session.head.report["label_error_rate"].better == "lower"
    assert taught["label_error_rate"] < 0.25 < session["@base"]["label_error_rate"]
    teacher = session.pop(taught)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    learner = kdkit.Session(Listener(8, 5), train=[speech(masked=masked)], eval=[speech(masked=masked, seed=1)], teacher=teacher, task="ctc", measures=("quality",))
    student = learner.run("distill soft --no-labels --temperature 1 --steps 60 --learning-rate 0.05")
    assert student["label_error_rate"] < 0.35 < learner["@base"]["label_error_rate"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    both = learner.run("distill soft --steps 5", on="@base")
    assert any("label" in note and "soft" in note for note in both.notes)
    found = learner.show("agreement @1")
    assert found.value > 0.85
    assert found.count == int(speech(masked=masked, seed=1)["attention_mask"].sum()) if masked else 48 * 12
    assert found.verdict is None


def test_a_teacher_needs_no_labels_at_all() -> None:
    data = {name: value for name, value in speech().items() if name != "labels"}
    session = kdkit.Session(Listener(), train=[data], teacher=Listener(8, 5), task="ctc", measures=("parameters",))
    assert session.run("distill soft --no-labels --steps 2").notes


def test_a_step_does_not_depend_on_how_it_is_cut_into_batches() -> None:
    session = kdkit.Session(Listener().double(), train=_doubled(speech()), task="ctc", measures=("parameters",))
    whole = session.run("tune finetune --steps 3 --batch-size 48 --learning-rate 0.1")
    cut = session.run("tune finetune --steps 3 --batch-size 12 --accumulate 4 --learning-rate 0.1", on="@base")
    for one, two in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-9)


def _doubled(data: dict[str, Tensor]) -> Any:
    batch = Batch((), {"features": data["features"].double(), "attention_mask": data["attention_mask"]}, data["labels"])
    from kdkit.data import MapDataset
    from kdkit.data.datasets import TensorRows

    return MapDataset(TensorRows(batch), "float64", 16, lambda batch: batch)


def test_it_is_chosen_by_name_and_guessed_of_classes_that_say_it() -> None:
    assert isinstance(task("ctc"), CTC)
    assert isinstance(task("ctc"), Classification)

    class ToyForCTC(Listener):
        config = type("Config", (), {"pad_token_id": 3})()

        def _get_feat_extract_output_lengths(self, steps: Tensor) -> Tensor:
            return steps // 2

    data = speech(4)
    batch = Batch((), {"features": data["features"], "attention_mask": data["attention_mask"]}, data["labels"])
    guessed = infer_task(ToyForCTC(), batch)
    assert isinstance(guessed, CTC)
    assert (guessed.blank, guessed.frames(torch.tensor([8])).tolist()) == (3, [4])
    assert guessed.reason == "ToyForCTC labels frames; its blank is 3"


def test_decisions_are_compared_frame_by_frame_and_padding_does_not_count() -> None:
    data = speech(4)
    batch = Batch((), {"features": data["features"], "attention_mask": data["attention_mask"]}, data["labels"])
    net = Listener()
    found = compare_predictions(CTC(), ("a", lambda batch: batch.call(net)), ("b", lambda batch: batch.call(net)), Data(lambda: [batch], "four", 4))
    assert (found.value, found.count) == (1.0, int(data["attention_mask"].sum()))

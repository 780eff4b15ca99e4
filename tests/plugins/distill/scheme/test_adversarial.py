"""distill adversarial: the attack within its bounds and without traces, both objectives by hand, robustness told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.models.evaluation import frozen
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import CausalLM, Classification, Regression
from kdkit.training import fit
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.adversarial import Adversarial, robust_soft_labels
from kdkit_distill.scheme.attack import Threat, moved_part, pgd, robust_accuracy, with_inputs
from kdkit_tune.finetune import Finetune

SMALL: dict[str, Any] = {"attack_steps": 3, "measure": 0}


def net(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(16, classes))


def images(items: int = 32, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(items, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0].mean((1, 2)) * 40).long() % 3


def context(data: Any = None, teacher: nn.Module | None = None, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(images() if data is None else data, 16), "teacher": teacher or net(9), **objects}, original=net(50))


def state(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, two, strict=True))


# The attack ----------------------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, step: float, steps: int) -> Tensor:
    """Madry's attack on pixels from 0 to 1, without a random start."""
    moved = x.clone()
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), y), moved)
        moved = torch.clamp(torch.clamp(moved + step * slope.sign() - x, -epsilon, epsilon) + x, 0, 1)
    return moved.detach()


def test_it_is_projected_gradient_ascent_written_out() -> None:
    model, (x, y) = net(0).eval().double(), images()
    x = x.double()
    found = pgd(lambda moved: nn.functional.cross_entropy(model(moved), y, reduction="none"), x, Threat(0.1, 0.03), steps=5, random_start=False)
    assert torch.allclose(found, by_hand(model, x, y, 0.1, 0.03, 5), rtol=0, atol=1e-9)


@pytest.mark.parametrize("random_start", [True, False])
def test_it_stays_within_epsilon_and_within_the_range(random_start: bool) -> None:
    x = images()[0]
    found = pgd(lambda moved: moved.flatten(1).sum(1), x, Threat(0.2, 0.15), steps=4, random_start=random_start)
    assert (found - x).abs().max() <= 0.2 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found >= x - 1e-6).all()
    assert torch.allclose(found, (x + 0.2).clamp(max=1.0))


def test_an_attack_on_normalised_inputs_is_the_same_attack_in_pixels() -> None:
    x, mean, std = images()[0].double(), (0.4, 0.6), (0.2, 0.5)
    centre, width = (torch.tensor(each, dtype=torch.float64).view(1, 2, 1, 1) for each in (mean, std))
    model, y = net(0).eval().double(), images()[1]

    def loss(pixels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model((pixels - centre) / width), y, reduction="none")

    plain = pgd(loss, x, Threat(0.1, 0.03), steps=4, random_start=False)
    normalised = pgd(lambda z: loss(z * width + centre), (x - centre) / width, Threat(0.1, 0.03, mean=mean, std=std), steps=4, random_start=False)
    assert torch.allclose(normalised * width + centre, plain, rtol=0, atol=1e-9)


def test_a_longer_attack_costs_more_and_the_inputs_are_left_alone() -> None:
    model, (x, y) = net(0).eval(), images()
    before, found = x.clone(), []
    for steps in (0, 1, 10):
        torch.manual_seed(0)
        moved = pgd(lambda z: nn.functional.cross_entropy(model(z), y, reduction="none"), x, Threat(0.1, 0.02), steps)
        found.append(nn.functional.cross_entropy(model(moved), y).item())
    assert found == sorted(found)
    assert found[2] > found[0] + 0.02
    assert torch.equal(x, before)


@pytest.mark.parametrize(("threat", "what"), [(Threat(), "go from"), (Threat(mean=(0.5, 0.5, 0.5)), "channels")])
def test_inputs_that_are_no_pixels_are_refused_with_the_way_out(threat: Threat, what: str) -> None:
    with pytest.raises(KdError, match=what):
        threat.check(images()[0] * 4 - 2)
    Threat(mean=(0.5,), std=(0.25,)).check(images()[0] * 4 - 2)


@pytest.mark.parametrize(
    "batch", [Batch((torch.zeros(2, 3, dtype=torch.int64),)), Batch((torch.zeros(2, 3), torch.zeros(2, 3))), Batch(kwargs={"input_ids": torch.ones(2, 3).long()})]
)
def test_only_one_tensor_of_floats_can_be_attacked(batch: Batch) -> None:
    with pytest.raises(KdError, match="one tensor of floats"):
        moved_part(batch)


def test_an_input_by_name_can_be_attacked_too() -> None:
    batch = Batch(kwargs={"pixel_values": torch.zeros(2, 3)}, labels=torch.ones(2))
    assert torch.equal(moved_part(with_inputs(batch, torch.ones(2, 3))), torch.ones(2, 3))


# Robust accuracy -----------------------------------------------------------------------------------------------------


def test_robust_accuracy_is_that_of_the_attack_written_out() -> None:
    model, (x, y) = net(0).eval(), images()
    with frozen(model):
        found = robust_accuracy(lambda batch: batch.call(model), adopt_data((x, y), 8), Threat(0.05, 0.05), steps=1, seed=3)
        attacked = robust_accuracy(lambda batch: batch.call(model), adopt_data((x, y), 8), Threat(0.3, 0.05))
    assert found["clean"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    assert attacked["robust"] < found["clean"]


def test_robust_accuracy_leaves_generators_and_model_as_they_were() -> None:
    model = net(0)
    before, random = state(model), torch.get_rng_state()
    with frozen(model):
        first, second = (robust_accuracy(lambda batch: batch.call(model), adopt_data(images(), 8), Threat(0.1, 0.05), steps=2) for _ in range(2))
    assert first == second
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())


def test_items_without_labels_do_not_count_and_there_must_be_one() -> None:
    x = torch.tensor([[0.2], [0.9]])
    data = Data(lambda: [(x, torch.tensor([-100, 1]))], "two items")
    reported = robust_accuracy(lambda batch: torch.cat([0.5 - batch.args[0], batch.args[0] - 0.5], 1), data, Threat(0.1, 0.05))
    assert reported == {"clean": 1.0, "robust": 1.0}
    with pytest.raises(KdError, match="has no labels that count"):
        robust_accuracy(lambda batch: batch.args[0], Data(lambda: [(x, torch.tensor([-100, -100]))], "nothing"), Threat(0.1, 0.05))


# The objectives ------------------------------------------------------------------------------------------------------


def test_rslad_is_five_sixths_moved_and_one_sixth_clean() -> None:
    moved, clean, teacher = (torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    p = teacher.softmax(-1)
    expected = 5 / 6 * (p * (p.log() - moved.log_softmax(-1))).sum(-1) + 1 / 6 * (p * (p.log() - clean.log_softmax(-1))).sum(-1)
    assert torch.allclose(robust_soft_labels(moved, clean, teacher), expected, rtol=0, atol=1e-6)


def test_identical_answers_give_zero_loss_and_zero_gradient() -> None:
    teacher = torch.randn(5, 4, dtype=torch.float64)
    moved, clean = teacher.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = robust_soft_labels(moved, clean, teacher, 3.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert max(each.grad.abs().max() for each in (moved, clean)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_losses(dtype: torch.dtype) -> None:
    moved = torch.tensor([[1e4, -1e4, 0.0]]).to(dtype).requires_grad_()
    loss = robust_soft_labels(moved, moved, -moved.detach())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(moved.grad).all()


def quiet(seed: int) -> nn.Module:
    """Without dropout, so that the hand-written loop draws the same random numbers."""
    model = net(seed).double()
    model[3].p = 0.0
    return model


@pytest.mark.parametrize("objective", ["ard", "rslad"])
def test_three_steps_equal_a_loop_written_by_hand(objective: str) -> None:
    x, y = images(16)
    x, student, teacher = x.double(), quiet(0), quiet(9).eval()
    data = Data(lambda: [Batch((x,), labels=y)], "one batch", 16)
    mine = copy.deepcopy(student).train()
    options = {"objective": objective, "alpha": 0.8, "steps": 3, "optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant", "random_start": False}
    fit(student, [Adversarial(**options, **SMALL)], context(data, teacher))
    optimizer = torch.optim.SGD(mine.parameters(), 0.1, momentum=0.9)
    temperature = 30.0 if objective == "ard" else 1.0
    for _ in range(3):
        mine.train()
        clean, asked = mine(x), teacher(x).detach()
        mine.eval()

        def loss(moved: Tensor, asked: Tensor = asked) -> Tensor:
            answers = mine(moved)
            return nn.functional.cross_entropy(answers, y, reduction="none") if objective == "ard" else soft_labels(answers, asked)

        moved = pgd(loss, x, Threat(), 3, random_start=False)
        mine.train()
        after = mine(moved)
        taught = soft_labels(after, asked, temperature) if objective == "ard" else robust_soft_labels(after, clean, asked)
        optimizer.zero_grad()
        (0.2 * nn.functional.cross_entropy(clean, y) + 0.8 * taught.mean()).backward()
        optimizer.step()
    assert all(torch.allclose(*pair, rtol=0, atol=1e-9) for pair in zip(state(student), state(mine), strict=True))


# The stage -----------------------------------------------------------------------------------------------------------


class Step:
    """What an attack asks of a step."""

    task, progress = Classification(), 0.0

    def __init__(self, x: Tensor, y: Tensor):
        self.batch = Batch((x,), labels=y)


@pytest.mark.parametrize("objective", ["ard", "rslad"])
def test_the_attack_leaves_statistics_modes_flags_and_gradients_alone(objective: str) -> None:
    model, (x, y) = net(0).train(), images()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    Adversarial(objective=objective).attack(model, torch.zeros(len(x), 3), Step(x, y))  # type: ignore[arg-type]
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()].count(False) == 1
    assert all(weight.grad is None for weight in model.parameters())


def test_the_ard_attack_without_labels_goes_for_the_teachers_class() -> None:
    model, (x, _) = net(0), images()
    asked = torch.randn(len(x), 3)
    stage = Adversarial(objective="ard", labels=False, random_start=False)
    without = stage.attack(model, asked, Step(x, None))  # type: ignore[arg-type]
    labelled = Adversarial(objective="ard", random_start=False).attack(model, asked, Step(x, asked.argmax(1)))  # type: ignore[arg-type]
    assert torch.equal(without, labelled)


@pytest.mark.parametrize(
    ("options", "labels"),
    [({}, False), ({"objective": "ard"}, True), ({"objective": "ard", "labels": False}, False), ({"alpha": 0.5}, True), ({"alpha": 0.5, "labels": False}, False)],
)
def test_labels_are_needed_where_loss_or_attack_use_them(options: dict[str, Any], labels: bool) -> None:
    assert Adversarial(**options).required_inputs() == Needs(train=True, teacher=True, labels=labels)


def test_the_teacher_is_untouched_and_sees_clean_inputs_only() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        """Remembers what it is asked."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net(9)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return self.net(x)

    teacher = Watching().train()
    before, x = state(teacher), images()[0]
    student = fit(net(0), [Adversarial(steps=2, **SMALL)], context(teacher=teacher))
    assert same(state(teacher), before)
    assert all(module.training for module in teacher.modules())
    known = {tuple(row.flatten().tolist()) for row in x}
    assert all(tuple(row.flatten().tolist()) in known for batch in seen for row in batch)
    assert student.state_dict().keys() == net(0).state_dict().keys()


def test_four_small_batches_make_the_step_of_a_large_one() -> None:
    x, y = images(16)
    found = []
    for cuts in (1, 4):
        torch.manual_seed(0)
        # no batch norm, which sees its batch
        student = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
        batches = [Batch((part.double(),), labels=label) for part, label in zip(x.chunk(cuts), y.chunk(cuts), strict=True)]
        data = Data(lambda batches=batches: batches, "cut", 16)
        fit(student, [Adversarial(accumulate=4, random_start=False, optimizer="sgd", steps=1, learning_rate=0.5, **SMALL)], context(data, quiet(9)))
        found.append(student[1].weight.detach())
    assert torch.allclose(*found, rtol=0, atol=1e-9)


def test_clean_and_robust_accuracy_are_reported_before_and_after() -> None:
    run = context(eval=adopt_data(images(16, seed=2), 8))
    fit(net(0), [Adversarial(steps=1, attack_steps=1, measure=8)], run)
    note = next(note for note in run.notes if note.startswith("accuracy on eval"))
    assert "clean" in note
    assert "robust" in note
    assert "->" in note


def test_measuring_changes_nothing_of_the_training() -> None:
    found = []
    for measure in (0, 16):
        student = net(0)
        fit(student, [Adversarial(steps=2, attack_steps=2, measure=measure)], context(eval=adopt_data(images(16, seed=2), 8)))
        found.append(state(student))
    assert same(*found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((images()[0] * 4 - 2, images()[1]), "--mean"),
        ((torch.zeros(8, 4).long(), torch.zeros(8).long()), "one tensor of floats"),
    ],
)
def test_unsuitable_data_is_refused_before_any_step(data: Any, message: str) -> None:
    student = net(0)
    before = state(student)
    with pytest.raises(KdError) as caught:
        fit(student, [Adversarial(**SMALL)], context(data))
    assert message in str(caught.value)
    assert same(state(student), before)


def test_unsuitable_tasks_and_options_are_refused() -> None:
    assert Adversarial().incompatible_task(Regression())
    assert not Adversarial().incompatible_task(CausalLM())
    assert any("--low" in line for line in Adversarial(low=1.0, high=0.0).conflicts())
    assert any("--std" in line for line in Adversarial(std=(0.0,)).conflicts())
    assert not list(validate_stage(Adversarial))


# Does it help? -------------------------------------------------------------------------------------------------------


def stripes(items: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes told by one strong pixel and, for who looks, by many weak ones that an attacker can turn."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (items,), generator=random)
    sign = (2.0 * y - 1)[:, None]
    weak = 0.5 + 0.05 * sign + 0.02 * torch.randn(items, 31, generator=random)
    strong = 0.5 + 0.3 * sign * (torch.rand(items, 1, generator=random) < 0.85).float()
    return torch.cat([strong, weak], 1).clamp(0, 1), y


@pytest.mark.slow
def test_a_student_of_a_robust_teacher_withstands_attacks_that_break_one_trained_on_labels() -> None:
    data, threat = adopt_data(stripes(512, 0), 64), Threat(0.15, 0.04)
    robust = nn.Linear(32, 2)
    with torch.no_grad():
        robust.weight.zero_()[:, 0] = torch.tensor([-8.0, 8.0])
        robust.bias.copy_(torch.tensor([4.0, -4.0]))

    def student() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    options: dict[str, Any] = {"epochs": 20, "learning_rate": 0.02}
    plain = fit(student(), [Finetune(**options)], context(data))
    taught = fit(student(), [Adversarial(epsilon=0.15, attack_step=0.04, attack_steps=5, measure=0, **options)], context(data, robust))
    test = adopt_data(stripes(256, 1), 64)
    found = []
    for model in (plain, taught):
        with frozen(model):
            found.append(robust_accuracy(lambda batch, model=model: batch.call(model), test, threat)["robust"])
    assert found[0] < 0.5
    assert found[1] > 0.8

"""distill flow: the products of consecutive layers against their formula, channels, sizes and padding."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit_distill.relation.flow import Flow, flow, flow_difference
from tests.fixtures import zoo
from tests.fixtures.lessons import fingerprint, weights
from tests.fixtures.relations import curve, shaken


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_formula_written_out() -> None:
    lower, upper = maps(2, 3, 4, 5), maps(2, 2, 4, 5, seed=1)
    for item, one, two in product(range(2), range(3), range(2)):
        places = [float(lower[item, one, row, column] * upper[item, two, row, column]) for row, column in product(range(4), range(5))]
        assert flow(lower, upper)[item, one, two].item() == pytest.approx(sum(places) / 20, rel=1e-9)


def test_the_larger_map_is_pooled_to_the_smaller() -> None:
    large, small = maps(2, 3, 8, 8), maps(2, 2, 4, 4, seed=1)
    pooled = nn.functional.avg_pool2d(large, 2)
    assert torch.allclose(flow(large, small), flow(pooled, small))
    assert torch.allclose(flow(small, large), flow(small, pooled))


def test_tokens_are_places_and_padding_is_none() -> None:
    lower, upper, real = maps(2, 4, 3), maps(2, 4, 5, seed=1), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    expected = torch.stack([lower[0, :2].T @ upper[0, :2] / 2, lower[1].T @ upper[1] / 4])
    assert torch.allclose(flow(lower, upper, real), expected)


def test_the_difference_is_the_mean_of_squares() -> None:
    one, two = maps(2, 3, 4), maps(2, 3, 4, seed=1)
    assert torch.allclose(flow_difference(one, two), (one - two).pow(2).mean((1, 2)))


def test_its_gradient_is_that_of_finite_differences_and_zero_for_identical_maps() -> None:
    upper, other = maps(2, 2, 3, 3, seed=1), flow(maps(2, 3, 3, 3, seed=2), maps(2, 2, 3, 3, seed=3))
    assert torch.autograd.gradcheck(lambda lower: flow_difference(flow(lower, upper), other), maps(2, 3, 3, 3).requires_grad_())
    lower = maps(2, 3, 3, 3).requires_grad_()
    flow_difference(flow(lower, upper), flow(lower.detach(), upper)).sum().backward()
    assert lower.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = flow(torch.full((1, 2, 40, 40), 200.0, dtype=dtype), torch.full((1, 2, 40, 40), 200.0, dtype=dtype))
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.full((1, 2, 2), 4e4))


# The stage -----------------------------------------------------------------------------------------------------------


def context(model: str, teacher: nn.Module | None = None, size: int = 8, batch: Batch | None = None) -> Context:
    return Context(Classification(), objects={"train": adopt_data(batch or zoo.batch(model, 8), size), "teacher": teacher or shaken(zoo.MODELS[model]())}, original=None)


@pytest.mark.slow
def test_it_trains_on_maps_and_leaves_the_teacher_as_it_was() -> None:
    teacher, student = shaken(zoo.cnn()).train(), zoo.cnn()
    before = fingerprint(teacher)
    seen = curve(Flow(labels=False, epochs=15, learning_rate=3e-3, layers=("stem", "blocks.0", "blocks.1")), student, context("cnn", teacher))
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert fingerprint(teacher) == before


@pytest.mark.slow
def test_it_trains_alone_first_and_leaves_the_rest_to_the_labels() -> None:
    seen = curve(Flow(steps=20, layers=("stem", "blocks.0")), zoo.cnn(), context("cnn"))
    assert {"flow"} == set(seen[0]) - {"loss", "learning_rate"}
    assert {"label"} == set(seen[-1]) - {"loss", "learning_rate"}
    both = curve(Flow(steps=2, flow_share=0, layers=("stem", "blocks.0")), zoo.cnn(), context("cnn"))
    assert {"flow", "label"} <= set(both[0])


def test_without_anything_else_it_trains_to_the_end() -> None:
    seen = curve(Flow(steps=4, labels=False, layers=("stem", "blocks.0")), zoo.cnn(), context("cnn"))
    assert "flow" in seen[-1]


@pytest.mark.slow
def test_other_channels_are_projected_and_the_projection_is_not_the_students() -> None:
    torch.manual_seed(0)
    teacher, student = zoo.Cnn(channels=24, blocks=3).eval(), zoo.cnn()
    names = list(student.state_dict())
    seen = curve(Flow(labels=False, epochs=15, learning_rate=1e-2, layers=("blocks.0", "blocks.1=blocks.2")), student, context("cnn", teacher))
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert list(student.state_dict()) == names


@pytest.mark.slow
def test_consecutive_layers_are_summed() -> None:
    teacher, parts = shaken(zoo.cnn()), []
    for layers in (("stem", "blocks.0"), ("blocks.0", "blocks.1"), ("stem", "blocks.0", "blocks.1")):
        parts.append(curve(Flow(labels=False, steps=1, layers=layers), zoo.cnn(), context("cnn", teacher))[0]["flow"])
    assert parts[2] == pytest.approx(parts[0] + parts[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"padding": 5}, {"size": 4, "accumulate": 2}])
def test_padding_and_the_cut_of_a_step_change_nothing(other: dict[str, Any]) -> None:
    ids, lengths = 3 + torch.randint(0, 90, (8, 9), generator=torch.Generator().manual_seed(0)), torch.tensor([9, 4, 6, 9, 2, 5, 3, 8])[:, None]
    results = []
    for options in ({}, other):
        mask = (torch.arange(9 + options.get("padding", 0))[None] < lengths).long()
        batch = Batch(kwargs={"input_ids": nn.functional.pad(ids, (0, options.get("padding", 0))) * mask, "attention_mask": mask})
        student = zoo.tiny_bert()
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        stage = Flow(labels=False, steps=2, optimizer="sgd", layers=("bert.encoder.layer.0", "bert.encoder.layer.1"), accumulate=options.get("accumulate", 1))
        fit(student, [stage], context("tiny_bert", size=options.get("size", 8), batch=batch))
        results.append(weights(student))
    assert torch.allclose(*results, atol=1e-6)
    assert not torch.allclose(results[0], weights(zoo.tiny_bert()), atol=1e-4)


def test_one_pair_of_layers_is_refused() -> None:
    with pytest.raises(KdError, match="compares consecutive layers, but has 1 pair"):
        fit(zoo.cnn(), [Flow(layers=("stem",))], context("cnn"))


def test_vectors_have_no_flow() -> None:
    with pytest.raises(KdError, match="no flow to compare"):
        fit(zoo.mlp(), [Flow(layers=("first", "second"))], context("mlp"))

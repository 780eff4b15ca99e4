"""peft adalora: the fall of the ranks against peft's own loop, the penalty, and the options."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import infer_task
from kdkit.training import Step
from kdkit_peft.adalora import AdaLora, RankPart
from tests.fixtures import zoo


def context(model: nn.Module, batch: Batch) -> Context:
    data = adopt_data([(*batch.args, batch.labels)])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def run(**options) -> tuple[nn.Module, list[str]]:
    model, batch = zoo.mlp(), zoo.batch("mlp")
    about = context(model, batch)
    torch.manual_seed(0)
    return AdaLora(**{"steps": 20, "learning_rate": 0.05, "initial_rank": 6, "rank": 3, **options}).apply(copy.deepcopy(model), about), about.notes


def ranks(model: nn.Module) -> dict[str, int]:
    return {name.partition(".lora_E")[0]: int((weight != 0).sum()) for name, weight in model.named_parameters() if "lora_E" in name}


def test_ranks_fall_to_the_budget_and_a_note_names_them():
    model, notes = run()
    found = ranks(model)
    assert sum(found.values()) == 2 * 3
    assert f"ranks after training: first {found['first']}, second {found['second']}" in notes


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("options", [{}, {"warmup": 0.0, "final": 0.0}, {"warmup": 0.5, "final": 0.4, "every": 3}])
def test_short_trainings_end_at_the_budget_too(steps, options):
    model, _ = run(steps=steps, **options)
    assert sum(ranks(model).values()) <= 2 * 3


def test_the_schedule_and_the_masks_are_those_of_pefts_own_loop():
    """peft's model, stepped as its documentation shows, beside a part that is called as the loop calls it."""
    from peft import AdaLoraConfig, get_peft_model

    total, batch = 20, zoo.batch("mlp")
    stage = AdaLora(initial_rank=6, rank=3)
    torch.manual_seed(0)
    ours = stage.model_copy(update={"train": False}).apply(zoo.mlp(), context(zoo.mlp(), batch))
    torch.manual_seed(0)
    config = AdaLoraConfig(target_modules="first|second", init_r=6, target_r=3, lora_alpha=16.0, total_step=total, tinit=2, tfinal=6)
    theirs = get_peft_model(zoo.mlp(), config)
    theirs.load_state_dict({f"base_model.model.{name}": value for name, value in ours.state_dict().items()})
    part = RankPart(stage)
    part.open(ours)
    counts = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
        for index in range(total):
            nn.functional.cross_entropy(model(*batch.args), batch.labels).backward()
            optimizer.step()
            if model is ours:
                optimizer.zero_grad()  # as the loop does
                part.after_step(Step(batch, None, ours, None, index, index / (total - 1)))
                counts.append(sum(ranks(ours).values()))
            else:
                theirs.base_model.update_and_allocate(index + 1)
            optimizer.zero_grad()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[f"base_model.model.{name}"]), name
    assert counts[1] == 12 > counts[6] > counts[-1] == 6


def test_the_penalty_is_0_for_orthogonal_matrices_only():
    model, _ = run(train=False)
    part = RankPart(AdaLora(loss=0.0))
    part.open(model)
    step = Step(None, None, model, None, 0, 0.0)
    (term,) = part.terms(step)
    expected = []
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            expected.append(torch.linalg.norm(weight @ weight.T - torch.eye(6)))
        if "lora_B" in name:
            expected.append(torch.linalg.norm(weight.T @ weight - torch.eye(6)))
    torch.testing.assert_close(term.values, sum(expected) / 4)
    for name, weight in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            nn.init.orthogonal_(weight)
    (term,) = part.terms(step)
    assert float(term.values.detach()) < 1e-5
    assert (term.penalty, term.weight) == (True, 0.5)
    part.close(model)


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 12}, "--rank 12 must be below --initial-rank 12"), ({"warmup": 0.6, "final": 0.4}, "leave no part of the training")]
)
def test_a_schedule_without_a_fall_is_refused(options, message):
    with pytest.raises(KdError, match=message):
        AdaLora.build("peft adalora", options)

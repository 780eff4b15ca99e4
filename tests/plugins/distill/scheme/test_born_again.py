"""distill born-again: generations begin anew, each taught by the one before, and none is lost on the way."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdkit
from kdkit.errors import Cancelled, KdError
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit_distill.evaluation import figure
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.born_again import BornAgain
from kdkit_distill.students.fresh import reinitialized
from kdkit_tune.finetune import Finetune
from tests.fixtures import lessons, zoo
from tests.fixtures.lessons import points, weights

net = partial(lessons.net, dropout=0.1)


def context(teacher: nn.Module | None = None, **objects: Any) -> Context:
    held = {"train": adopt_data(points(), 16), "eval": adopt_data(points(seed=2), 16), "teacher": teacher, **objects}
    return Context(Classification(), seed=5, objects=held, original=net(50).eval())


def reference(generations: int, run: Context) -> list[nn.Module]:
    """The scheme written out: a loop over fresh students, each taught by the one before."""
    made: list[nn.Module] = []
    for number in range(generations):
        fresh = reinitialized(net(0), run, run.seed + 7919 * number)
        taught = context(made[-1] if made else run.objects["teacher"])
        made.append(fit(fresh, [Soft(epochs=2, temperature=4.0)], taught))
    return made


@pytest.mark.slow
def test_it_is_distillation_of_fresh_students_one_after_another() -> None:
    run = context(net(1).eval())
    made = BornAgain(generations=3, epochs=2).apply(net(0), run)
    expected = reference(3, context(net(1).eval()))
    assert made is not None
    assert torch.equal(weights(made), weights(expected[-1]))
    data = run.data("eval")
    reported = next(note for note in run.notes if note.startswith("accuracy:"))
    for number, each in enumerate(expected, 1):
        assert f"generation {number} {figure([each], data, run):.4g}" in reported
    assert f"ensemble of them {figure(expected, data, run):.4g}" in reported


def test_what_the_student_knew_before_does_not_matter() -> None:
    one, other = (BornAgain(generations=1).apply(net(seed), context(net(1))) for seed in (0, 9))
    assert one is not None
    assert other is not None
    assert torch.equal(weights(one), weights(other))


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
    logits = [torch.tensor([[4.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 3.9]])]
    mean = torch.stack([each.softmax(-1) for each in logits]).mean(0)

    class Says(nn.Module):
        def __init__(self, logits: Tensor):
            super().__init__()
            self.logits = logits

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    data = adopt_data((torch.zeros(2, 1), torch.full((2,), int(mean.argmax()))), 2)
    assert figure([Says(each) for each in logits], data, Context(Classification())) == 1.0
    assert figure([Says(logits[0])], data, Context(Classification())) == 0.0
    likely = Context(Classification(probabilities=True))
    assert figure([Says(each.softmax(-1)) for each in logits], data, likely) == 1.0


@pytest.mark.parametrize("scheme", ["born-again --generations 1", "assistant --through narrow=0.5"])
def test_in_a_group_it_would_be_one_training_and_is_refused(scheme: str) -> None:
    for lines in (f"distill {scheme}\n    distill hints", f"distill hints\n    distill {scheme}"):
        with pytest.raises(KdError, match=f"together: distill {scheme.split()[0]} runs several trainings in sequence"):
            Pipeline.from_lines(f"together:\n    {lines}")


def test_progress_counts_the_generations() -> None:
    run, seen = context(net(1)), []
    run.observe = seen.append
    BornAgain(generations=2).apply(net(0), run)
    assert list(dict.fromkeys(progress.text.partition(":")[0] for progress in seen)) == ["generation 1 of 2", "generation 2 of 2"]
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert (seen[-1].done, seen[-1].total) == (8, 8)


@pytest.mark.slow
def test_the_best_generation_on_validation_data_is_kept_where_that_is_asked() -> None:
    run = context(net(1), held=adopt_data(points(seed=4), 16))
    made = BornAgain(generations=3, epochs=2, validation="held", keep_generation="best").apply(net(0), run)
    figures = [figure([each], run.data("held"), run) for each in reference(3, context(net(1)))]
    best = figures.index(max(figures))
    assert any(note.startswith(f"kept generation {best + 1}:") for note in run.notes)
    assert made is not None
    assert figure([made], run.data("held"), run) == pytest.approx(max(figures))


def test_the_best_generation_wants_validation_data() -> None:
    assert any("validation" in line for line in BornAgain(keep_generation="best").check(net(0), context(net(1))))


@pytest.mark.parametrize("option", [{"checkpoint": "folder"}, {"resume": True}])
def test_a_checkpoint_of_several_generations_is_refused(option: dict[str, Any]) -> None:
    assert any("several" in line for line in BornAgain(**option).check(net(0), context(net(1))))


def test_teacher_and_student_are_intact_after_a_cancel_in_the_second_generation() -> None:
    teacher, student = net(1).train(), net(0)
    kept = copy.deepcopy(teacher), copy.deepcopy(student)
    run = context(teacher)
    run.observe = lambda progress: run.cancelled.set() if progress.text.startswith("generation 2") else None
    with pytest.raises(Cancelled):
        BornAgain(generations=3).apply(student, run)
    assert torch.equal(weights(teacher), weights(kept[0]))
    assert torch.equal(weights(student), weights(kept[1]))
    assert teacher.training
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert set(run.objects) == {"train", "eval", "teacher"}


@pytest.mark.slow
def test_a_single_generation_without_a_teacher_is_its_control_and_begins_as_the_first_one_does() -> None:
    session = kdkit.Session(net(0), teacher=net(1), train=points(), eval=points(seed=2), batch_size=16, measures=("quality",))
    session.run("distill born-again --generations 2")
    found = kdkit.compare_with(session, "same --generations 1 --alpha 0", seeds=1)
    run = Context(Classification(), objects=context(net(1)).objects)
    alone = fit(reinitialized(net(0), run, 0), [Finetune()], run)
    assert found.control[0].figure == figure([alone], run.data("eval"), run)
    assert found.control[0].notes[0].endswith("in 4 steps")


@pytest.mark.parametrize("option", [{"checkpoint": "folder"}, {"resume": True}])
def test_a_checkpoint_of_several_trainings_is_refused(option: dict[str, Any]) -> None:
    assert any("this stage runs several" in line for line in BornAgain(generations=2, **option).conflicts())
    assert not any("several" in line for line in BornAgain(generations=1, **option).conflicts())


# Fresh weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_every_weight_that_is_drawn_is_drawn_again_and_the_net_stays_as_it_is(name: str) -> None:
    model = zoo.MODELS[name]()
    before = copy.deepcopy(model)
    fresh, again, other = (reinitialized(model, context(), seed) for seed in (0, 0, 1))
    assert torch.equal(weights(model), weights(before))
    assert torch.equal(weights(fresh), weights(again))
    for key, weight in fresh.named_parameters():
        if weight.ndim > 1:
            assert not torch.equal(weight, dict(model.named_parameters())[key]), key
            assert not torch.equal(weight, dict(other.named_parameters())[key]), key


def test_statistics_of_batch_norm_begin_again_and_ties_hold() -> None:
    fresh = reinitialized(zoo.cnn(), context(), 0)
    assert torch.equal(fresh.bn.running_var, torch.ones(16))
    gpt = reinitialized(zoo.tiny_gpt2(), context(), 0)
    assert gpt.lm_head.weight is gpt.transformer.wte.weight


class Scaled(nn.Module):
    """A module that holds a weight and can't draw it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_what_cannot_be_drawn_again_is_kept_and_named() -> None:
    run = context()
    reinitialized(nn.Sequential(Scaled(), nn.Linear(6, 3)), run, 0)
    assert any(note.endswith("no reset_parameters: 0") for note in run.notes)


def test_a_net_of_which_nothing_can_be_drawn_again_is_refused() -> None:
    with pytest.raises(KdError, match="can't be re-initialized") as caught:
        reinitialized(nn.Sequential(Scaled()), context(), 0)
    assert "reset_parameters(self)" in str(caught.value)


def test_a_narrowed_transformer_whose_configuration_no_longer_fits_is_reset_module_by_module() -> None:
    model = zoo.tiny_bert()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    fresh = reinitialized(model, context(), 0)
    assert len(fresh.bert.encoder.layer) == 1
    assert not torch.equal(fresh.classifier.weight, model.classifier.weight)


def test_in_a_session_the_model_itself_teaches_and_generations_are_one_version() -> None:
    session = kdkit.Session(net(0), train=points(), eval=points(seed=2), measures=("quality", "parameters"))
    made = session.run("distill born-again --generations 2 --epochs 2 --student narrow=0.5")
    assert len(session.versions) == 2
    assert made["parameters"] < session["@base"]["parameters"]
    assert session.plan("distill born-again", on="@base").steps[-1].parameters == session["@base"]["parameters"]


def test_a_cache_keeps_the_first_teachers_answers_and_later_generations_do_without(tmp_path: Any) -> None:
    teacher = net(1)
    cached, plain = (BornAgain(generations=2, epochs=1, cache=cache).train(net(2), context(teacher)) for cache in (str(tmp_path / "teacher.kd"), None))
    assert torch.equal(weights(cached), weights(plain))

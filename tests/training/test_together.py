"""Several stages in one loop: simulated quantization, gradual masks and distillation, none of which knows of the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit import Context, KdError, Needs, Session, Step, Term, TrainPart, TrainStage, param
from kdkit.models import Storage
from kdkit.training import fit
from kdkit.training.curve import Curve
from kdkit.training.together import Together
from kdkit_distill.feature.hints import Hints
from kdkit_distill.response.soft import Soft
from kdkit_peft.lora import Lora
from tests.fixtures import lessons
from tests.fixtures.lessons import fingerprint, points, weights

# Simulated quantization: leaves are wrapped ----------------------------------------------------------------------------


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest points of a symmetric grid, one scale a tensor."""
    scale = weight.detach().abs().max().clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


class Simulated(nn.Module):
    """A linear layer that computes with rounded weights; the gradient goes straight through the rounding."""

    def __init__(self, layer: nn.Linear, bits: int):
        super().__init__()
        self.base_layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base_layer.weight
        return F.linear(x, weight + (rounded(weight, self.bits) - weight).detach(), self.base_layer.bias)


class LabelPart(TrainPart):
    """The task's loss on labels, unless its weight is 0."""

    def __init__(self, loss: float):
        self.loss = loss

    def terms(self, step: Step) -> Iterable[Term]:
        if self.loss:
            yield Term.from_labels(step, self.loss)


class FakeQuant(TrainStage):
    """Train with simulated quantization, and round the weights."""

    id: ClassVar[str] = "quantize.toy"
    bits: int = param(4, "bits per weight", ge=2, le=8)
    loss: float = param(1.0, "weight of the label loss", ge=0)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(labels=self.loss > 0)

    def prepare(self, model: nn.Module, context: Context) -> None:
        for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]:
            _put(model, name, Simulated(layer, self.bits))

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return LabelPart(self.loss)

    @torch.no_grad()
    def finish(self, model: nn.Module, context: Context) -> None:
        for name, wrapped in [(name, module) for name, module in model.named_modules() if isinstance(module, Simulated)]:
            layer, final = wrapped.base_layer, rounded(wrapped.base_layer.weight, self.bits)
            layer.weight = final if parametrize.is_parametrized(layer, "weight") else nn.Parameter(final)
            _put(model, name, layer)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


# Gradual masks: weights are parametrized -------------------------------------------------------------------------------


class Masked(nn.Module):
    """A weight times a mask."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class MaskPart(LabelPart):
    """Masks the smallest weights, more with each step: s·(1 - (1 - progress)³), Zhu and Gupta, 2017."""

    def __init__(self, loss: float, sparsity: float):
        super().__init__(loss)
        self.sparsity = sparsity

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        share = self.sparsity * (1 - (1 - step.progress) ** 3)
        for layer in step.model.modules():
            if parametrize.is_parametrized(layer, "weight"):
                held = layer.parametrizations.weight
                magnitude, zeros = held.original.abs().flatten(), round(share * held.original.numel())
                held[0].mask.view(-1).fill_(1.0)[magnitude.argsort()[:zeros]] = 0.0


class Mask(TrainStage):
    """Train with gradual magnitude masks, and fold them."""

    id: ClassVar[str] = "prune.toy"
    sparsity: float = param(0.5, "share of the weights to zero", gt=0, lt=1)
    loss: float = param(1.0, "weight of the label loss", ge=0)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(labels=self.loss > 0)

    def prepare(self, model: nn.Module, context: Context) -> None:
        for layer in [layer for layer in model.modules() if isinstance(layer, nn.Linear)]:
            parametrize.register_parametrization(layer, "weight", Masked(layer.weight))

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return MaskPart(self.loss, self.sparsity)

    def finish(self, model: nn.Module, context: Context) -> None:
        for layer in model.modules():
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


# Help --------------------------------------------------------------------------------------------------------------


def net(seed: int = 0, width: int = 24) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)).eval()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A net that knows its classes well."""
    from kdkit_tune.finetune import Finetune

    return fit(net(7, 48), [Finetune(epochs=60, learning_rate=0.01)], lessons.context(points(512)))


def noise(items: int = 512) -> tuple[Tensor, Tensor]:
    """Points whose labels say nothing: what a student knows of them, it has from a teacher."""
    generator = torch.Generator().manual_seed(5)
    return points(items)[0], torch.randint(3, (items,), generator=generator)


def session(teacher: nn.Module, **objects: Any) -> Session:
    return Session(net(), train=noise(), eval=points(256, seed=9), teacher=teacher, measures=("quality",), batch_size=32, **objects)


def levels(weight: Tensor) -> int:
    return len(weight.unique())


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


def linears(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def agreement(model: nn.Module, teacher: nn.Module) -> float:
    x = points(256, seed=9)[0]
    with torch.no_grad():
        return float((model(x).argmax(1) == teacher(x).argmax(1)).float().mean())


# One loop --------------------------------------------------------------------------------------------------------------

LINES = {"soft": "distill soft --no-labels --epochs 12 --learning-rate 0.01", "quant": "quantize toy --bits 4 --loss 0", "mask": "prune toy --sparsity 0.5 --loss 0"}


@pytest.mark.slow
@pytest.mark.parametrize("order", [("soft", "quant", "mask"), ("soft", "mask", "quant")])
def test_quantization_masks_and_distillation_train_in_one_loop_and_know_nothing_of_each_other(offered, teacher, order) -> None:
    offered(FakeQuant, Mask)
    before = fingerprint(teacher)
    kd = session(teacher)
    version = kd.run("together:\n" + "\n".join(f"    {LINES[name]}" for name in order))
    model = version.model
    assert sorted(model.state_dict()) == sorted(net().state_dict())
    for layer in linears(model):
        assert type(layer) is nn.Linear
        assert levels(layer.weight) <= 2**4 - 1
        assert torch.allclose(rounded(layer.weight, 4), layer.weight, atol=1e-6)
        assert zeros(layer.weight) >= 0.5
    (curve,) = (each for each in version.attachments if isinstance(each, Curve))
    soft = [value for _, value in curve.terms["distill.soft.soft"]]
    assert soft[-1] < soft[0] / 2
    assert fingerprint(teacher) == before
    assert torch.equal(weights(kd["@base"].model), weights(net()))


@pytest.mark.slow
def test_the_group_learns_from_the_teacher_what_it_does_not_learn_without(offered, teacher) -> None:
    offered(FakeQuant, Mask)
    taught = session(teacher).run("together:\n" + "\n".join(f"    {line}" for line in LINES.values())).model
    untaught = session(teacher).run(f"together:\n    quantize toy --epochs 12 --learning-rate 0.01\n    {LINES['mask']}").model
    assert agreement(taught, teacher) > agreement(untaught, teacher) + 0.3


@pytest.mark.slow
def test_a_student_of_one_stage_is_prepared_and_finished_by_the_others(offered, teacher) -> None:
    offered(FakeQuant, Mask)
    kd = session(teacher)
    small = net(3, 12)
    kd.set(small=small)
    before = fingerprint(small)
    version = kd.run(f"together:\n    {LINES['quant']} --epochs 2\n    distill soft --no-labels --student small\n    {LINES['mask']}")
    assert linears(version.model)[0].out_features == 12
    assert all(levels(layer.weight) <= 15 and zeros(layer.weight) >= 0.5 for layer in linears(version.model))
    assert fingerprint(small) == before
    assert torch.equal(weights(kd["@base"].model), weights(net()))


def test_the_forecast_of_a_group_is_the_structure_of_its_student_after_all_stages() -> None:
    run = lessons.context(teacher=net(7, 48), small=net(3, 12))
    group = Together(stages=(FakeQuant(loss=0), Soft(student="small"), Mask(loss=0)))
    predicted = group.forecast(net(), run).model
    assert {name: weight.shape for name, weight in predicted.state_dict().items()} == {name: weight.shape for name, weight in net(3, 12).state_dict().items()}


# What a stage does is the same alone and in a group ------------------------------------------------------------------


class Nothing(TrainStage):
    """Adds nothing to a loop, and draws random numbers whenever it can."""

    id: ClassVar[str] = "tune.nothing"

    def prepare(self, model: nn.Module, context: Context) -> None:
        torch.rand(100)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return TrainPart()

    def finish(self, model: nn.Module, context: Context) -> None:
        torch.rand(100)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [FakeQuant(epochs=2), Mask(epochs=2), Soft(epochs=2), Lora(epochs=2)], ids=lambda stage: stage.title)
@pytest.mark.parametrize("first", [True, False])
def test_a_stage_gives_in_a_group_with_an_idle_one_what_it_gives_alone(stage: TrainStage, first: bool) -> None:
    """The idle stage comes first or last; it takes the same loop options, so that the loop is the same."""
    run = lessons.context(points(), net(7, 48))
    alone = stage.apply(net(), run)
    idle = Nothing(epochs=2)
    together = fit(net(), [idle, stage] if first else [stage, idle], lessons.context(points(), net(7, 48)))
    assert alone.state_dict().keys() == together.state_dict().keys()
    assert torch.equal(weights(alone), weights(together))


def test_each_toy_alone_does_its_own_work_and_no_other() -> None:
    quantized, sparse = (stage.apply(net(), lessons.context(points())) for stage in (FakeQuant(epochs=3), Mask(epochs=3)))
    assert all(levels(layer.weight) <= 15 and zeros(layer.weight) < 0.4 for layer in linears(quantized))
    assert all(zeros(layer.weight) >= 0.5 and levels(layer.weight) > 15 for layer in linears(sparse))


# The order, and what goes wrong ----------------------------------------------------------------------------------------


def recorder(log: list[str], name: str, **methods: Any) -> TrainStage:
    """A stage that logs what is called on it."""

    class Recorded(LabelPart):
        def open(self, model: nn.Module) -> None:
            log.append(f"open {name}")

        def close(self, model: nn.Module) -> None:
            log.append(f"close {name}")

    class Recorder(TrainStage):
        """Logs its calls."""

        id: ClassVar[str] = f"tune.{name}"

        def make_student(self, model: nn.Module, context: Context) -> nn.Module | None:
            log.append(f"student {name}")
            return methods["make_student"](model) if "make_student" in methods else None

        def prepare(self, model: nn.Module, context: Context) -> Any:
            log.append(f"prepare {name}")
            return methods["prepare"](model) if "prepare" in methods else None

        def part(self, model: nn.Module, context: Context) -> TrainPart:
            return methods["part"]() if "part" in methods else Recorded(1.0)

        def finish(self, model: nn.Module, context: Context) -> Any:
            log.append(f"finish {name}")
            return methods["finish"](model) if "finish" in methods else None

    return Recorder(steps=2)


def test_stages_prepare_in_order_and_finish_in_reverse_after_all_parts_are_closed() -> None:
    log: list[str] = []
    fit(net(), [recorder(log, "a"), recorder(log, "b")], lessons.context(points()))
    assert log == ["student a", "student b", "prepare a", "prepare b", "open a", "open b", "close b", "close a", "finish b", "finish a"]


def test_each_stage_prepares_what_the_one_before_returned_and_the_loop_trains_the_last() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    log: list[str] = []
    unwrap = {"prepare": Wrapper, "finish": lambda model: model.inner}
    seen: list[nn.Module] = []

    def look(model: nn.Module) -> None:
        seen.append(model)

    model = net()
    before = weights(model)
    done = fit(model, [recorder(log, "a", **unwrap), recorder(log, "b", prepare=look)], lessons.context(points()))
    assert isinstance(seen[0], Wrapper)
    assert done is model
    assert not torch.equal(weights(done), before)


def test_two_students_in_one_loop_are_refused_by_name() -> None:
    stages = [recorder([], name, make_student=lambda model: net(1)) for name in "ab"]
    with pytest.raises(KdError, match="tune a and tune b of one loop bring a student each"):
        fit(net(), stages, lessons.context(points()))


@pytest.mark.parametrize("method", ["make_student", "prepare", "finish"])
def test_what_is_no_model_is_refused_with_the_method_that_returned_it(method: str) -> None:
    with pytest.raises(KdError, match=f"tune a: {method} returned str, not a model"):
        fit(net(), [recorder([], "a", **{method: lambda model: "model"})], lessons.context(points()))


def test_a_stage_that_renames_modules_is_named_where_another_looks_for_one() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    stages = [recorder([], "outer", prepare=Outer), Hints(layers=("1",))]
    with pytest.raises(KdError, match="has no layer '1'") as caught:
        fit(net(), stages, lessons.context(points(), net(5)))
    assert any(hint.startswith("tune outer renamed modules of the model (0, 1, 2, ...)") for hint in caught.value.hints)
    hinted = fit(net(), [FakeQuant(loss=0), Hints(layers=("1",), steps=2)], lessons.context(points(), net(5)))
    assert all(levels(layer.weight) <= 15 for layer in linears(hinted))


class Failing(TrainPart):
    """Stops in the second step."""

    def __init__(self, error: BaseException):
        self.error = error

    def terms(self, step: Step) -> Iterator[Term]:
        if step.index == 1:
            raise self.error
        yield Term.from_labels(step)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), KdError("no"), RuntimeError("no")], ids=lambda error: type(error).__name__)
def test_a_group_that_fails_leaves_session_and_teacher_as_they_were_and_is_not_finished(offered, teacher, error: BaseException) -> None:
    log: list[str] = []
    offered(FakeQuant, Mask, type(recorder(log, "fails", part=lambda: Failing(error))))
    kd = session(teacher)
    before, base, generator = fingerprint(teacher), fingerprint(kd["@base"].model), torch.get_rng_state()
    with pytest.raises((type(error), KdError)):
        kd.run(f"together:\n    {LINES['soft']}\n    {LINES['quant']}\n    tune fails\n    {LINES['mask']}")
    assert "finish fails" not in log
    assert len(kd.versions) == 1
    assert (fingerprint(teacher), fingerprint(kd["@base"].model)) == (before, base)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("error", [KdError("no"), RuntimeError("no"), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["make_student", "prepare", "part", "terms"])
def test_the_message_of_a_group_that_fails_names_the_stage_inside(offered, teacher, error: BaseException, method: str) -> None:
    def fail(*given: Any) -> Any:
        raise error

    methods = {"part": lambda: Failing(error)} if method == "terms" else {method: fail}
    offered(FakeQuant, type(recorder([], "fails", **methods)))
    with pytest.raises(KdError) as caught:
        session(teacher).run(f"together:\n    {LINES['soft']}\n    {LINES['quant']}\n    tune fails")
    expected = "together: tune fails: no" if isinstance(error, KdError) else f"together failed in tune fails: {type(error).__name__}: {error}"
    assert caught.value.message.startswith(expected)


# The old name ----------------------------------------------------------------------------------------------------------


def test_a_class_that_overrides_learner_still_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"write make_student\(self, model, context\) to train another model, or prepare"):

        class Other(TrainStage):
            """Trains another net."""

            id: ClassVar[str] = "tune.other"

            def learner(self, model: nn.Module, context: Context) -> nn.Module:
                return net(1)

            def part(self, model: nn.Module, context: Context) -> TrainPart:
                return LabelPart(1.0)

    with pytest.warns(DeprecationWarning, match="InPlace.learner is deprecated"):

        class InPlace(Other):
            """Changes the net at hand."""

            def learner(self, model: nn.Module, context: Context) -> nn.Module:
                model[0].requires_grad_(False)
                return model

    model, frozen = net(), net()
    trained = fit(model, [Other(steps=2)], lessons.context(points()))
    assert trained is not model
    assert torch.equal(weights(model), weights(net()))
    assert fit(frozen, [InPlace(steps=2)], lessons.context(points())) is frozen
    assert torch.equal(frozen[0].weight, net()[0].weight)
    assert not torch.equal(frozen[2].weight, net()[2].weight)
    with pytest.raises(KdError, match="tune other changes the model in `learner`, and distill soft trains a student"):
        fit(net(), [InPlace(), Soft(student="small")], lessons.context(points(), net(7, 48), small=net(3, 12)))


def test_the_new_names_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class New(TrainStage):
            """Prepares."""

            id: ClassVar[str] = "tune.new"

            def prepare(self, model: nn.Module, context: Context) -> nn.Module:
                return model


class Encoding(FakeQuant):
    """Train, and encode the weights in the saved folder."""

    id: ClassVar[str] = "quantize.encoding"

    def storage(self) -> Storage | None:
        return Storage("huffman") if self.bits < 8 else None


def test_a_stage_that_sets_the_stored_form_is_refused_in_a_group() -> None:
    with pytest.raises(KdError, match=r"together: quantize encoding chooses how the weights are stored.*\n.*run it on its own, after the group"):
        Together(stages=(Soft(), Encoding(bits=4)))


def test_a_stage_whose_options_set_no_stored_form_trains_in_a_group() -> None:
    assert Together(stages=(Soft(), Encoding(bits=8))).storage() is None

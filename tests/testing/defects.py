"""Stages that are each wrong in one way, and the check that must find it."""

import os
import threading
import time
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import PrivateAttr, field_validator, model_validator
from torch import nn

from kdkit import Forecast, KdError, Needs, Stage, Trait, param

DEFECTS: dict[str, tuple[type[Stage], str]] = {}
"""Name of a stage's class -> the class, and the check that it breaks."""


def breaks(check: str):
    """Enlist a stage by the check that must find it."""

    def enlist(stage):
        DEFECTS[stage.__name__] = stage, check
        return stage

    return enlist


class Scale(Stage):
    """Multiply every weight by a factor, and nothing is wrong with it."""

    id: ClassVar = "tune.test-scale"
    factor: float = param(0.5, "what every weight is multiplied by", gt=0, le=1)

    def apply(self, model, context):
        for weight in model.parameters():
            weight.data.mul_(self.factor)


class Narrow(Stage):
    """Take a hidden unit away, and nothing is wrong with it."""

    id: ClassVar = "prune.test-narrow"

    def apply(self, model, context):
        if not hasattr(model, "first"):
            raise KdError("prune test-narrow knows only models with a layer named first")
        first, second = model.first, model.second
        first.weight, first.bias = nn.Parameter(first.weight.detach()[1:].clone()), nn.Parameter(first.bias.detach()[1:].clone())
        second.weight = nn.Parameter(second.weight.detach()[:, 1:].clone())
        first.out_features = second.in_features = first.out_features - 1


# schema


@breaks("schema")
class NoHelp(Scale):
    """A parameter without help."""

    strength: float = param(1.0, ge=0)


@breaks("schema")
class NoBounds(Scale):
    """A number that may be anything."""

    strength: float = param(1.0, "of the work")


@breaks("schema")
class NamedAsAVerb(Scale):
    """A family that %kd hears as something else."""

    id: ClassVar = "list.test-scale"


@breaks("schema")
class NoDefault(Scale):
    """A number that must be given."""

    strength: float = param(..., "of the work", ge=0)


@breaks("schema")
class SearchOutside(Scale):
    """A search that leaves the bounds."""

    strength: float = param(1.0, "of the work", ge=0, le=1, search=(0.5, 2))


@breaks("schema")
class ForeignChoice(Scale):
    """A search among choices that are none."""

    how: Literal["hard", "soft"] = param("hard", "the work is done", search=("hard", "gentle"))


@breaks("schema")
class NoDocstring(Scale):
    __doc__ = ""


# loads


@breaks("loads")
class Heavy(Scale):
    """A stage whose module takes long to load."""

    __module__ = "tests.testing.heavy"


# line and recipe


@breaks("line")
class ForgetfulLine(Scale):
    """A line that leaves its option out."""

    def line(self):
        return "tune test-scale"


@breaks("line")
class RoundedLine(Scale):
    """A line that rounds."""

    def line(self):
        return f"tune test-scale --factor {self.factor:.2f}"


@breaks("recipe")
class OnlyTuples(Scale):
    """A validator that takes no list, which is what a recipe holds."""

    layers: tuple[str, ...] = param((), "names to note")

    @field_validator("layers", mode="before")
    @classmethod
    def a_tuple(cls, value):
        if not isinstance(value, tuple):
            raise ValueError("give a tuple")
        return value


# form


@breaks("form")
class OffersNothing(Scale):
    """A stage that fails where it is asked what may be chosen."""

    @classmethod
    def offers(cls, parameter):
        raise ValueError("nothing to offer")


# messages


@breaks("messages")
class RaisesKeyError(Scale):
    """A validator that raises what pydantic does not catch."""

    @model_validator(mode="after")
    def whole(self):
        return {0.5: self}[self.factor]


@breaks("messages")
class CheckRaises(Scale):
    """A check that fails at one end of a parameter's range."""

    def check(self, model, context):
        if 1 / (1 - self.factor) > 1000:
            yield "--factor does nearly nothing"


@breaks("messages")
class Nameless(Scale):
    """A message that does not say which option is wrong."""

    @classmethod
    def build(cls, title, values):
        try:
            return super().build(title, values)
        except KdError:
            raise KdError("that does not work") from None


@breaks("messages")
class TakesAnything(Scale):
    """Bounds that are declared and not held."""

    @classmethod
    def build(cls, title, values):
        return cls.model_construct(**values)


@breaks("messages")
class NoSuchLayer(Scale):
    """A pattern that means no layer, and is taken for all."""

    layers: tuple[str, ...] = param((), "only these layers", refers="layers")


@breaks("messages")
class CrashesOnLayer(Scale):
    """A pattern that means no layer, and crashes."""

    layers: tuple[str, ...] = param((), "only these layers", refers="layers")

    def apply(self, model, context):
        for name in self.layers:
            model.get_submodule(name)
        super().apply(model, context)


# example


@breaks("example")
class FalseExample(Scale):
    """An example that is not so.

    >>> 1 + 1
    3
    """


@breaks("example")
class StaleLine(Scale):
    """A line with an option that it no longer has.

    %kd tune test-scale --strength 0.5
    """


@breaks("example")
class StaleSample(Scale):
    """A line in help with an option that it has not."""

    sample_options: ClassVar = "--strength 0.5"


@breaks("example")
class RefusedSample(Scale):
    """A line in help that is refused."""

    sample_options: ClassVar = "--loud"
    loud: bool = param(False, "say what it does")

    def apply(self, model, context):
        if self.loud:
            raise KdError("it can't be loud")
        super().apply(model, context)


# untouched


@breaks("untouched")
class ChangesOriginal(Scale):
    """Work done on the session's model too."""

    def apply(self, model, context):
        super().apply(model, context)
        next(context.original.parameters()).data.mul_(0.99)


@breaks("untouched")
class LeavesModeOnFailure(Scale):
    """A teacher whose mode is put back only where all goes well."""

    needs: ClassVar = Needs(teacher=True)

    def apply(self, model, context):
        teacher = context.named("teacher")
        teacher.train()
        for weight, other in zip(model.parameters(), teacher.parameters(), strict=True):
            weight.data.add_(other.data)
        teacher.eval()


@breaks("untouched")
class LeavesFlagsOnInterrupt(Scale):
    """A teacher whose flags are put back after errors, and not after an interrupt."""

    needs: ClassVar = Needs(teacher=True)

    def apply(self, model, context):
        teacher = context.named("teacher")
        teacher.requires_grad_(False)
        try:
            for weight, other in zip(model.parameters(), teacher.parameters(), strict=True):
                weight.data.add_(other.data)
        except Exception:
            teacher.requires_grad_(True)
            raise
        teacher.requires_grad_(True)


@breaks("untouched")
class LeavesHook(Scale):
    """A hook that stays on the teacher."""

    needs: ClassVar = Needs(teacher=True)

    def apply(self, model, context):
        seen = []
        with context.teacher() as teacher:
            teacher.first.register_forward_hook(lambda module, inputs, output: seen.append(output.mean()))
            context.example.call(teacher)
        model.first.weight.data.add_(float(seen[0]))

    def needed(self):
        return replace(self.needs, example=True)


@breaks("untouched")
class ChangesInCheck(Scale):
    """A check that works on the model itself."""

    def check(self, model, context):
        model.train()
        return ()


@breaks("untouched")
class ChangesAndRefuses(Scale):
    """A check that works on the model itself, and then refuses it."""

    def check(self, model, context):
        model.train()
        yield "it is too small"


@breaks("untouched")
class ChangesInForecast(Scale):
    """A forecast that works on the session's model."""

    def forecast(self, model, context):
        context.original.head.bias.data.zero_()
        return Forecast(model)


@breaks("untouched")
class LeavesASwitch(Scale):
    """Doubles for all that comes after."""

    def apply(self, model, context):
        torch.set_default_dtype(torch.float64)
        super().apply(model, context)


@breaks("runs")
class Exits(Scale):
    """A script's way to end."""

    def apply(self, model, context):
        raise SystemExit(3)


@breaks("untouched")
class OverwritesData(Scale):
    """Data normalized in place."""

    needs: ClassVar = Needs(example=True)

    def apply(self, model, context):
        inputs = context.example.args[0]
        inputs.mul_(0.5)
        model.first.bias.data.add_(inputs.mean())


@breaks("untouched")
class HoldsTeacher(Scale):
    """A result that is partly the teacher itself."""

    needs: ClassVar = Needs(teacher=True)

    def apply(self, model, context):
        model.second = context.named("teacher").second


# repeats


@breaks("repeats")
class Unseeded(Scale):
    """Noise that no seed decides."""

    def apply(self, model, context):
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        for weight in model.parameters():
            weight.data.add_(torch.randn(weight.shape, generator=generator))


@breaks("repeats")
class Remembers(Scale):
    """A class that learns from one run for the next."""

    runs: ClassVar[list] = []

    def apply(self, model, context):
        self.runs.append(model)
        for weight in model.parameters():
            weight.data.mul_(self.factor / len(self.runs))


@breaks("repeats")
class ChangesItself(Scale):
    """A stage that changes its own parameter."""

    def apply(self, model, context):
        super().apply(model, context)
        self.__dict__["factor"] = self.factor / 2


# copies


@breaks("copies")
class NotALeaf(Scale):
    """A weight that is the result of a computation, which can't be copied."""

    def apply(self, model, context):
        weight = model.first._parameters.pop("weight")
        model.first.weight = weight * self.factor


@breaks("copies")
class HoldsLock(Scale):
    """A stage that holds what can't be copied."""

    _lock: Any = PrivateAttr(default_factory=threading.Lock)


# traits


@breaks("traits")
class HiddenMask(Scale):
    """A mask that is not declared."""

    def apply(self, model, context):
        model.first.register_parameter("weight_orig", nn.Parameter(model.first.weight.detach().clone()))
        model.first.register_buffer("weight_mask", torch.ones_like(model.first.weight))


@breaks("traits")
class ClaimsPacked(Scale):
    """Packed weights that are declared, and are not there."""

    adds: ClassVar = {Trait.PACKED_WEIGHTS}


@breaks("traits")
class Misspelt(Scale):
    """A trait whose name has a slip in it, so that no model ever has it."""

    requires: ClassVar = {"float_weight"}


@breaks("traits")
class MisspeltRemoval(Scale):
    """A trait to take away whose name has a slip in it."""

    removes: ClassVar = {"masks_pendings"}


# figures


@breaks("figures")
class ForecastsNothing(Narrow):
    """A forecast that leaves the structure as it is."""

    def forecast(self, model, context):
        return Forecast(model)


@breaks("figures")
class ForecastsHalfTheBytes(Scale):
    """A forecast of half the bytes, where all stay."""

    def forecast(self, model, context):
        return Forecast(model, size_bytes=1000)


@breaks("figures")
class ForecastsHalfTheMacs(Scale):
    """A forecast of half the MACs, where all stay."""

    def forecast(self, model, context):
        return Forecast(model, macs_ratio=0.5)


@breaks("figures")
class ForecastCrashes(Scale):
    """A forecast that fails."""

    def forecast(self, model, context):
        return Forecast(model.no_such_part)


@breaks("figures")
class ForecastsModel(Scale):
    """A forecast that is a model."""

    def forecast(self, model, context):
        return model


# output


@breaks("output")
class AnotherShape(Scale):
    """Outputs of another shape, undeclared."""

    def apply(self, model, context):
        model.head = nn.Linear(32, 2)


@breaks("output")
class NotFinite(Scale):
    """Weights that are not numbers."""

    def apply(self, model, context):
        model.first.weight.data.div_(0)


@breaks("output")
class Broken(Scale):
    """A model that can't be called."""

    def apply(self, model, context):
        model.second = nn.Linear(3, 3)


@breaks("output")
class Idle(Scale):
    """Nothing done, and said nothing of it."""

    def apply(self, model, context):
        return model


@breaks("output")
class ReturnsText(Scale):
    """A result that is no model."""

    def apply(self, model, context):
        return "done"


# restores


@breaks("restores")
class LeavesLambda(Scale):
    """A function on the model, which no file can hold."""

    def apply(self, model, context):
        super().apply(model, context)
        model.scale = lambda x: x * self.factor


class Gate(nn.Module):
    """A layer of a package that no other process knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


@breaks("restores")
class OwnLayer(Scale):
    """A layer of a class of its own, outside any plugin's package."""

    def apply(self, model, context):
        model.dropout = Gate()


# cancels


@breaks("cancels")
class Deaf(Scale):
    """Work that never looks whether it should stop."""

    def apply(self, model, context):
        time.sleep(0.08)
        super().apply(model, context)


@breaks("cancels")
class Stubborn(Scale):
    """Work that hears, and goes on."""

    def apply(self, model, context):
        for weight in model.parameters():
            try:
                context.progress(0, 1)
            except Exception:
                continue
            finally:
                weight.data.mul_(self.factor)


@breaks("cancels")
class SwallowsInterrupt(Scale):
    """Work that takes an interrupt for a failure of one layer."""

    def apply(self, model, context):
        for weight in model.parameters():
            try:
                halved = weight.data * self.factor
                weight.data = halved
            except BaseException:
                weight.data.zero_()


# needs


@breaks("needs")
class AsksForTokenizer(Scale):
    """A tokenizer that is asked for, and not declared."""

    def apply(self, model, context):
        model.first.bias.data.fill_(len(context.named("tokenizer")))


@breaks("needs")
class ReadsObjects(Scale):
    """Data that is taken past the context, and not declared."""

    def apply(self, model, context):
        model.first.bias.data.fill_(context.objects["train"].items)


@breaks("needs")
class NeedsNoTeacher(Scale):
    """A teacher that is declared, and not asked."""

    needs: ClassVar = Needs(teacher=True)


@breaks("needs")
class NeedsNoLabels(Scale):
    """Labels that are declared, and not looked at."""

    needs: ClassVar = Needs(train=True, labels=True)

    def apply(self, model, context):
        model.first.bias.data.add_(next(iter(context.data())).args[0].mean())


@breaks("needs")
class HiddenImport(Scale):
    """A package that is imported, and not declared."""

    def apply(self, model, context):
        import yaml

        model.first.bias.data.fill_(yaml.safe_load("0.5"))


@breaks("needs")
class IdlePackage(Scale):
    """A package that is declared, and not imported."""

    needs: ClassVar = Needs(packages=("yaml",))


# runs


@breaks("runs")
class Crashes(Scale):
    """An error of Python's where a refusal is due."""

    def apply(self, model, context):
        model.no_such_layer.weight.data.zero_()


@breaks("runs")
class RefusesAll(Scale):
    """A check that no model passes."""

    def check(self, model, context):
        yield "this is no model for it"

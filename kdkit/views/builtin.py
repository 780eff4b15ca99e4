"""The kit's own views: their options, and what each takes from a session. What computes and draws is a module of its own each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from kdkit.display.page import Written
from kdkit.errors import KdError
from kdkit.parameters.settings import param
from kdkit.plugins.hookspecs import hookimpl
from kdkit.views.pareto import pareto_frontier
from kdkit.views.report_page import Summary
from kdkit.views.view import Shown, View

if TYPE_CHECKING:
    from kdkit.session.session import Session


class Pareto(View):
    """Which versions no other version beats in both quality and cost; default: all versions are compared."""

    positional: ClassVar = ("versions",)
    example_line: ClassVar = "%kd pareto @base @slim --cost latency"
    method: ClassVar = "pareto"

    versions: tuple[str, ...] = param((), "the versions", names="version")
    quality: str = param("", "a quality figure; default: the task's metric", names="figure")
    cost: str = param("size", "a cost figure, such as latency, macs or energy", names="figure")

    def of(self, session: Session) -> Shown:
        if not self.quality and session.task is None:
            raise KdError("pareto needs a quality figure, and no quality was measured", "%kd set --eval {data}, or --quality FIGURE")
        quality = self.quality or session.task.metric  # type: ignore[union-attr]
        return pareto_frontier([session.version(name) for name in self.versions] or session.versions, quality, self.cost)


class Layers(View):
    """The modules of a version as a tree: class, parameters, bytes, share and MACs of each, and their sizes as bars."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd layers @slim --layers 'encoder.*'"
    method: ClassVar = "layers"
    renamed: ClassVar = {"patterns": "layers"}

    version: str | None = param(None, "a version; default: the head", names="version")
    layers: tuple[str, ...] = param((), "name patterns of layers to mark and to list", names="layers")

    def of(self, session: Session) -> Shown:
        from kdkit.data.batch import resize
        from kdkit.views.layers import LayerTree

        version, example = session.version(self.version), session.objects.example()
        return LayerTree.of(session.history.model_of(version), version.name, self.layers, None if example is None else resize(example, 1))


class Sensitivity(View):
    """How much quality each single layer costs when its weights are rounded or its smallest weights are zeroed; the version does not change."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd sensitivity @base --bits 4"
    method: ClassVar = "sensitivity"

    version: str | None = param(None, "a version; default: the head", names="version")
    bits: int = param(4, "bits to round each layer's weights to, symmetric, with one scale per output channel", ge=2, le=16)
    ratio: float | None = param(None, "share of each layer's smallest weights to zero, instead of rounding", gt=0, le=1, share="removed")
    layers: tuple[str, ...] = param((), "name patterns of layers; default: all layers with weights", names="layers")
    items: int = param(256, "how many items of the eval data to use", ge=1)

    def of(self, session: Session) -> Shown:
        from kdkit.views.sensitivity import measure_sensitivity
        from kdkit.views.sources import find_data

        data, _ = find_data(session, "eval", "sensitivity needs data to call the model on")
        with session.working("sensitivity") as context:
            version = session.version(self.version)
            model = session.history.model_of(version)
            backend = session.backend_for(model)
            return measure_sensitivity(model, version.name, data.take(self.items), context, backend, bits=self.bits, ratio=self.ratio, layers=self.layers)


class Weights(View):
    """How the weights of two versions are distributed, in one layer or in all: histogram, zeros, distinct values, extremes."""

    positional: ClassVar = ("before", "after")
    example_line: ClassVar = "%kd weights @base @slim --layer features.0"
    method: ClassVar = "weights"

    before: str | None = param(None, "a version; default: the first version", names="version")
    after: str | None = param(None, "another version; default: the head", names="version")
    layer: str = param("", "name or pattern of a layer; default: all layers", names="layers")

    def of(self, session: Session) -> Shown:
        from kdkit.views.weights import compare_weights

        first = session.versions[0] if self.before is None else session.version(self.before)
        chosen = {version.number: version for version in (first, session.version(self.after))}.values()
        return compare_weights([(version.name, session.history.model_of(version)) for version in chosen], self.layer)


class Confusion(View):
    """The confusion matrix of a version, labels against predictions, with recall and precision of each class."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd confusion @slim"
    method: ClassVar = "confusion"

    version: str | None = param(None, "a version; default: the head", names="version")
    data: str = param("eval", "a data set with labels", names="data")

    def of(self, session: Session) -> Shown:
        from kdkit.views.agreement import class_names
        from kdkit.views.confusion import confusion_matrix
        from kdkit.views.sources import find_data

        version = session.version(self.version)
        data, task = find_data(session, self.data, "confusion needs data with labels")
        model = session.history.model_of(version)
        names = class_names(task, model, session.original, session.objects.get("tokenizer"))
        with session.answering(model) as call:
            return confusion_matrix(task, version.name, call, data, self.data, names)


class Agreement(View):
    """Where a version predicts the same as its teacher, where not, and which of the two is right."""

    positional: ClassVar = ("student",)
    example_line: ClassVar = "%kd agreement @slim --teacher @base"
    method: ClassVar = "agreement"

    student: str | None = param(None, "a version; default: the head", names="version")
    teacher: str = param("teacher", "a model or version to compare with; default: the teacher, or else the original model", names="model")
    data: str = param("eval", "a data set to run both on", names="data")

    def of(self, session: Session) -> Shown:
        from kdkit.views.agreement import class_names, compare_predictions
        from kdkit.views.sources import find_data, find_model

        version = session.version(self.student)
        name, teacher = find_model(session, self.teacher)
        data, task = find_data(session, self.data, "agreement needs data to call both models on")
        student = session.history.model_of(version)
        names = class_names(task, student, teacher, session.objects.get("tokenizer"))
        with session.answering(student) as one, session.answering(teacher) as other:
            return compare_predictions(task, (version.name, one), (name, other), data, self.data, names)


class Examples(View):
    """The items that a version answers otherwise than another one, most confident first, and the confusion that arose."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd examples @small --against @base"

    version: str | None = param(None, "a version; default: the head", names="version")
    against: str | None = param(None, "a version or model to compare with; default: the first version", names="model")
    data: str = param("eval", "a data set to run both on", names="data")
    items: int = param(12, "how many items to show", ge=1)

    def of(self, session: Session) -> Shown:
        from kdkit.views.agreement import class_names
        from kdkit.views.examples import changed_answers
        from kdkit.views.sources import find_data, find_model

        version = session.version(self.version)
        name, other = find_model(session, self.against or session.versions[0].name)
        data, task = find_data(session, self.data, "examples needs data to call both models on")
        model, tokenizer = session.history.model_of(version), session.objects.get("tokenizer")
        names = class_names(task, model, other, tokenizer)
        with session.answering(model) as after, session.answering(other) as before:
            return changed_answers(task, (version.name, after), (name, before), data, self.data, self.items, names, tokenizer)


class Report(View):
    """The session on one page to keep: figures, Pareto frontier, how a version was made, notes and pictures; shown here or written to a file."""

    positional: ClassVar = ("path",)
    example_line: ClassVar = "%kd report slim.html --version @slim"
    tab: ClassVar = "Export"
    method: ClassVar = "summary"

    version: str | None = param(None, "the version whose steps are listed; default: the head", names="version")
    path: str | None = param(None, "an .html file to write; default: the page is shown here", names="path")
    quality: str = param("", "quality figure of the frontier; default: the task's metric", names="figure")
    cost: str = param("size", "cost figure of the frontier, such as latency, macs or energy", names="figure")

    def of(self, session: Session) -> Shown:
        version = session.version(self.version)
        summary = Summary.of(session, version, self._frontier(session))
        return summary if self.path is None else Written(summary.save(self.path), f"the report on {version.name} was written")

    def _frontier(self, session: Session) -> Shown | str:
        """The Pareto frontier, or why there is none where no figures were chosen."""
        try:
            return Pareto(quality=self.quality, cost=self.cost).of(session)
        except KdError as error:
            if self.quality or self.cost != "size":
                raise
            return f"no picture: {error.message}"


BUILT_IN = (Pareto, Layers, Sensitivity, Weights, Confusion, Agreement, Examples, Report)


class Views:
    """The kit's own views."""

    @hookimpl
    def kdkit_views(self) -> Iterable[type[View]]:
        return BUILT_IN

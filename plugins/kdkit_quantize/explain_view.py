"""The view `explain`: how a quantized layer computes, on real numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdkit import View, param

if TYPE_CHECKING:
    from kdkit.session import Session
    from kdkit_quantize.explanation import Explanation


class Explain(View):
    """How one layer of an 8-bit version computes: scales, zero points, what is clipped, and each step from integers to integers."""

    positional: ClassVar = ("what", "version")
    example_line: ClassVar = "%kd explain quantize @small --layer conv1"

    what: Literal["quantize"] = param("quantize", "the family to explain")
    version: str | None = param(None, "a version of quantize static; default: the head", names="version")
    layer: str = param("", "a layer by its name in the model; default: the first one")

    def of(self, session: Session) -> Explanation:
        """Explain the layer on one item of the session's data."""
        from kdkit_quantize.explanation import explain_layer

        version = session.version(self.version)
        example = session.objects.example()
        lineage = [session.history.model_of(each) for each in reversed(session.history.lineage(version))]
        return explain_layer(lineage, version.name, self.layer, None if example is None else example[:1])

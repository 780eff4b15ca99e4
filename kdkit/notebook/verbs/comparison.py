"""The verb that compares a pipeline with a control over seeds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.measurement.confidence import SEEDS
from kdkit.notebook.command import read_step
from kdkit.notebook.resolution import resolve_word
from kdkit.notebook.verb import Verb
from kdkit.parameters.settings import param
from kdkit.pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class CompareWith(Verb):
    """Run the pipeline that made a version, and a control, over several seeds: is the difference more than chance?

    Both start from the same version, with the same seed in each pair; no version is added. The control is written as stages,
    one a line, each in quotes; or as `same` with the options that differ, such as "same --alpha 0"; or as a version.
    """

    positional: ClassVar = ("control",)
    example_line: ClassVar = '%kd compare-with "tune finetune" --same-loop'
    tab: ClassVar = "Compare"

    control: tuple[str, ...] = param(..., 'the control: stage lines in quotes, "same --alpha 0" for the compared pipeline with other options, or a version')
    seeds: int = param(SEEDS, "number of pairs, each of the compared pipeline and the control", ge=1)
    same_loop: bool = param(False, "train the control with the loop options of the compared pipeline, for as many steps, except those that it sets itself")
    version: str | None = param(None, "whose pipeline is compared; default: the head", names="version")
    on: str | None = param(None, "the version that both start from; default: the parent of the compared version", names="version")
    stages: tuple[str, ...] = param((), "compare these stage lines, in quotes, instead of those of a version; they start from the head")
    data: Any = param(None, "data to measure on; default: the session's evaluation data", names="data")
    seed: int | None = param(None, "of the first pair; default: that of the compared version", ge=0)

    def run(self, workspace: Workspace) -> Any:
        from kdkit.session.comparison import contrast, subject
        from kdkit.session.control import pipeline_since, read_control, with_loop_of

        session, control = workspace.session, "\n".join(self.control)
        written = Pipeline.from_lines("\n".join(self.stages), read=lambda line: read_step(line, workspace)) if self.stages else None
        compared, start = subject(session, self.version, written, self.on)
        if control.startswith("@"):
            other = pipeline_since(session, session.version(control), start)
        else:
            other = read_control(control, compared, lambda line: read_step(line, workspace), lambda stage: partial(resolve_word, workspace, stage))
        with workspace.temporary_objects(), workspace.progress() as observe:
            other = with_loop_of(other, compared, session) if self.same_loop else other
            return contrast(session, compared, other, start, self.seeds, self.seed, self.data, observe)

"""A draft: a pipeline being edited. It has a start version, its steps as lines, and the `%kd` cell that would run it.

A draft is immutable: each operation returns a new one. Its steps are text, so nothing is lost between the wizard and a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kdkit.errors import KdError
from kdkit.notebook.parser import parse_header, parse_stage
from kdkit.parameters.command_line import write_values
from kdkit.parameters.tokenizer import named, split
from kdkit.pipelines.needs import named_objects
from kdkit.pipelines.pipeline import Pipeline
from kdkit.pipelines.text import blocks
from kdkit.stages.line_options import Running
from kdkit.stages.stage import Stage
from kdkit.training.stage import TrainStage


@dataclass(frozen=True)
class Draft:
    """A pipeline being edited.

    Attributes:
        steps: one stage each; a step of several lines is a group that trains in one loop.
        start: the version to start from, empty for the head.
        label: label of the new version.
        seed: random seed, None for the session's.
        dry_run: only validate and predict.

    >>> draft = Draft(("prune channels --ratio 0.5",), start="@base", label="slim")
    >>> draft.cell
    '%kd prune channels --ratio 0.5 --on @base --as slim'
    >>> print(draft.with_step("tune finetune").cell)
    %%kd slim --on @base
    prune channels --ratio 0.5
    tune finetune
    """

    steps: tuple[str, ...] = ()
    start: str = ""
    label: str = ""
    seed: int | None = None
    dry_run: bool = False

    @property
    def cell(self) -> str:
        """The line or cell that runs it; empty without a step."""
        if not self.steps:
            return ""
        options = {"on": self.start or None, "seed": self.seed, "dry_run": self.dry_run or None}
        where = write_values(Running, {name: value for name, value in options.items() if value is not None})
        label = write_values(Running, {"as_": self.label}) if self.label else []
        if len(self.steps) == 1 and "\n" not in self.steps[0]:
            return " ".join(["%kd", self.steps[0], *where, *label])
        return "\n".join([" ".join(["%%kd", *label[1:], *where]), *(written(step) for step in self.steps)])

    def stages(self) -> tuple[Stage, ...]:
        """Its stages; an object is represented by the source of its expression.

        Raises:
            KdError: a step can't be read.
        """
        return Pipeline.from_lines("\n".join(map(written, self.steps)), self.label, read).stages

    def named(self) -> set[str]:
        """Names of the objects that its stages use."""
        return {name for stage in self.stages() for _, _, name in named_objects(stage)}

    def with_step(self, step: str, at: int | None = None) -> Draft:
        """With a step appended, or replaced."""
        steps = [*self.steps, step] if at is None else [*self.steps[:at], step, *self.steps[at + 1 :]]
        return replace(self, steps=tuple(steps))

    def without(self, at: int) -> Draft:
        """Without a step."""
        return replace(self, steps=self.steps[:at] + self.steps[at + 1 :])

    def moved(self, at: int, by: int) -> Draft:
        """With a step moved up (-1) or down (1); at an end it stays in place."""
        steps = list(self.steps)
        steps.insert(max(at + by, 0), steps.pop(at))
        return replace(self, steps=tuple(steps))

    def joined(self, at: int) -> Draft:
        """With a step and the one above it in one training loop.

        Raises:
            KdError: one of the two does not train.
        """
        both = "\n".join(self.steps[at - 1 : at + 1])
        idle = [line for line in both.splitlines() if not isinstance(read(line), TrainStage)]
        if idle:
            raise KdError(f"{' '.join(idle[0].split()[:2])} does not train, so it can't share a loop", "only stages that train, such as distill and tune, go together")
        return replace(self, steps=(*self.steps[: at - 1], both, *self.steps[at + 1 :]))

    def parted(self, at: int) -> Draft:
        """With the stages of a group as separate steps."""
        return replace(self, steps=(*self.steps[:at], *self.steps[at].splitlines(), *self.steps[at + 1 :]))

    @classmethod
    def of(cls, text: str) -> Draft:
        """The draft of a `%kd` line, a `%%kd` cell or plain stage lines.

        Raises:
            KdError: it can't be read.

        >>> Draft.of("%kd prune channels --ratio 0.5 --as slim")
        Draft(steps=('prune channels --ratio 0.5',), start='', label='slim', seed=None, dry_run=False)
        """
        text = text.strip()
        if text.startswith("%%kd"):
            first, _, body = text.partition("\n")
            running = parse_header(first.removeprefix("%%kd")).values
        else:
            body = text.removeprefix("%kd ")
            words = split(body)
            if not words:
                raise KdError("there is no stage to run", "write one stage a line, such as prune channels --ratio 0.5")
            running = {} if words[:1] == ["together:"] or "\n" in body else parse_stage(words).running
        options = Running.build("%kd", running)
        return cls(_steps(body), options.on or "", options.as_ or "", options.seed)


def written(step: str) -> str:
    """A step as written in a `%%kd` cell."""
    return step if "\n" not in step else "\n".join(["together:", *("    " + line for line in step.splitlines())])


def read(line: str) -> Stage:
    """The stage of a line; an object is represented by the source of its expression.

    Raises:
        KdError: it can't be read.
    """
    parsed = parse_stage(split(line))
    return parsed.target.build(parsed.title, {name: named(value) for name, value in parsed.values.items()})


def _steps(body: str) -> tuple[str, ...]:
    """The steps of a pipeline's text, each line as kdkit writes it."""
    Pipeline.from_lines(body, read=read)
    return tuple("\n".join(rewritten(line) for _, line in block.lines) for block in blocks(body))


def rewritten(line: str, **more: Any) -> str:
    """A stage's line as kdkit writes it, with some values replaced.

    >>> rewritten("tune finetune --steps=3   # short", resume=True)
    'tune finetune --steps 3 --resume'
    """
    parsed = parse_stage(split(line))
    return " ".join([*parsed.title.split(), *write_values(parsed.target, parsed.values | more)])

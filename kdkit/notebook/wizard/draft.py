"""A draft: a pipeline that is being put together. Where it begins, its steps as lines, and the `%kd` cell that would run it.

A draft is never changed: each operation gives another one. What it shows is text, so that nothing is lost between a wizard and a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kdkit.contract import Stage, TrainStage
from kdkit.errors import KdError
from kdkit.lines import Reference, split, write_values
from kdkit.notebook.grammar import header, unresolved
from kdkit.notebook.verbs import Running
from kdkit.pipeline import Pipeline, blocks, references


@dataclass(frozen=True)
class Draft:
    """A pipeline on its way.

    Attributes:
        steps: a line a stage; one of several lines is a group that trains in one loop.
        start: the version it begins with; the head where it is empty.
        label: of the version that comes of it.
        seed: None for the session's.
        dry_run: only to be judged and foretold.

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
        """The magics that run it; empty without a step."""
        if not self.steps:
            return ""
        said = {"on": self.start or None, "seed": self.seed, "dry_run": self.dry_run or None}
        where = write_values(Running, {name: value for name, value in said.items() if value is not None})
        label = write_values(Running, {"as_": self.label}) if self.label else []
        if len(self.steps) == 1 and "\n" not in self.steps[0]:
            return " ".join(["%kd", self.steps[0], *where, *label])
        return "\n".join([" ".join(["%%kd", *label[1:], *where]), *(written(step) for step in self.steps)])

    def stages(self) -> tuple[Stage, ...]:
        """Its stages, with the source of an expression in place of its object.

        Raises:
            KdError: a step can't be read.
        """
        return Pipeline.from_lines("\n".join(map(written, self.steps)), self.label, read).stages

    def named(self) -> set[str]:
        """Names of objects that its stages ask for."""
        return {name for stage in self.stages() for _, _, name in references(stage)}

    def with_step(self, step: str, at: int | None = None) -> Draft:
        """With one step more, at the end or in place of another."""
        steps = [*self.steps, step] if at is None else [*self.steps[:at], step, *self.steps[at + 1 :]]
        return replace(self, steps=tuple(steps))

    def without(self, at: int) -> Draft:
        """Without a step."""
        return replace(self, steps=self.steps[:at] + self.steps[at + 1 :])

    def moved(self, at: int, by: int) -> Draft:
        """With a step further up (-1) or down (1); at an end it stays."""
        steps = list(self.steps)
        steps.insert(max(at + by, 0), steps.pop(at))
        return replace(self, steps=tuple(steps))

    def joined(self, at: int) -> Draft:
        """With a step in one loop with the one above it.

        Raises:
            KdError: one of the two does not train.
        """
        both = "\n".join(self.steps[at - 1 : at + 1])
        idle = [line for line in both.splitlines() if not isinstance(read(line), TrainStage)]
        if idle:
            raise KdError(f"{' '.join(idle[0].split()[:2])} does not train, so it can't share a loop", "only stages that train, such as distill and tune, go together")
        return replace(self, steps=(*self.steps[: at - 1], both, *self.steps[at + 1 :]))

    def parted(self, at: int) -> Draft:
        """With a group's stages one after another."""
        return replace(self, steps=(*self.steps[:at], *self.steps[at].splitlines(), *self.steps[at + 1 :]))

    @classmethod
    def of(cls, text: str) -> Draft:
        """The draft that a `%kd` line, a `%%kd` cell or plain stage lines stand for.

        Raises:
            KdError: it can't be read.

        >>> Draft.of("%kd prune channels --ratio 0.5 --as slim")
        Draft(steps=('prune channels --ratio 0.5',), start='', label='slim', seed=None, dry_run=False)
        """
        text = text.strip()
        if text.startswith("%%kd"):
            first, _, body = text.partition("\n")
            running, _ = header(first.removeprefix("%%kd"), lambda name, word: word)
        else:
            body = text.removeprefix("%kd ")
            words = split(body)
            if not words:
                raise KdError("there is no stage in it", "write one a line, such as prune channels --ratio 0.5")
            running = Running() if words[:1] == ["together:"] or "\n" in body else unresolved(words)[2]
        return cls(_steps(body), running.on or "", running.as_ or "", running.seed)


def written(step: str) -> str:
    """A step as it stands in a `%%kd` cell."""
    return step if "\n" not in step else "\n".join(["together:", *("    " + line for line in step.splitlines())])


def read(line: str) -> Stage:
    """A stage out of its line, with the source of an expression in place of its object.

    Raises:
        KdError: it can't be read.
    """
    made, values, _ = unresolved(split(line))
    return made.build(made.id.replace(".", " ", 1), {name: named(value) for name, value in values.items()})


def named(value: Any) -> Any:
    """A value with the source of an expression in place of what it stands for.

    >>> named((Reference("big"), "small"))
    ('big', 'small')
    """
    return value.source if isinstance(value, Reference) else tuple(map(named, value)) if isinstance(value, tuple) else value


def _steps(body: str) -> tuple[str, ...]:
    """The steps of a pipeline's text, each line as kdkit writes it."""
    Pipeline.from_lines(body, read=read)
    return tuple("\n".join(rewritten(line) for _, line in block.lines) for block in blocks(body))


def rewritten(line: str, **more: Any) -> str:
    """A stage's line as kdkit writes it, with some values set anew.

    >>> rewritten("tune finetune --steps=3   # short", resume=True)
    'tune finetune --steps 3 --resume'
    """
    made, values, _ = unresolved(split(line))
    return " ".join([*made.id.split(".", 1), *write_values(made, values | more)])

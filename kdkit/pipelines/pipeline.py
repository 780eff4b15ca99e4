"""Pipelines: stages in order, validated by traits before anything runs, and saved as recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.errors import KdError, brief, printable
from kdkit.parameters.tokenizer import split
from kdkit.pipelines.order import Planned, _short, after, bridge, fits, impossible
from kdkit.pipelines.recipe import SCHEMA, distributions, read_header, read_step, write_step
from kdkit.pipelines.text import _at_line, blocks, read_stage
from kdkit.pipelines.yaml_file import read_yaml, write_yaml
from kdkit.renaming import renamed_argument, warn_renamed
from kdkit.stages.stage import Stage
from kdkit.storage.atomic_file import replace_file
from kdkit.training.together import Together


@dataclass(frozen=True)
class Pipeline:
    """Stages in order.

    >>> print(Pipeline.from_lines("tune finetune --epochs 3   # recover").lines())
    tune finetune --epochs 3
    """

    stages: tuple[Stage, ...]
    name: str = ""
    seed: int | None = None

    @classmethod
    def of(cls, stages: str | Stage | Pipeline | Iterable[Any]) -> Pipeline:
        """Convert a stage, lines, another pipeline, or a list of these to a pipeline."""
        if isinstance(stages, Pipeline):
            return stages
        if isinstance(stages, Stage):
            return cls((stages,))
        if isinstance(stages, str):
            return cls.from_lines(stages)
        if isinstance(stages, Iterable) and not isinstance(stages, (dict, bytes)):
            return cls(tuple(stage for part in stages for stage in cls.of(part).stages))
        raise KdError(f"{brief(stages)} is not a stage", "pass a stage such as Channels(ratio=0.5), a line such as 'prune channels --ratio 0.5', or a list of these")

    @classmethod
    def from_lines(cls, text: str, name: str = "", read: Callable[[str], Stage] = lambda line: read_stage(split(line))) -> Pipeline:
        """Parse one stage per line, as in the body of a `%%kd` cell; `together:` opens a group of indented lines.

        Args:
            text: the lines; blank ones and comments are passed over.
            name: of the pipeline.
            read: makes a stage of one line.

        Raises:
            KdError: a line that can't be read; the message names its number.
        """
        stages: list[Stage] = []
        alone = len(text.strip().splitlines()) == 1
        for block in blocks(text):
            made = [_at_line(number, line, read, alone) for number, line in block.lines]
            stages += [Together(stages=tuple(made))] if block.together else made
        return cls(tuple(stages), name)

    def lines(self) -> str:
        """The stages as lines of a `%%kd` cell."""
        return "\n".join(stage.line() for stage in self.stages)

    @renamed_argument("made_by", "trait_sources")
    def plan(self, traits: Iterable[str], trait_sources: dict[str, str] | None = None) -> list[Planned]:
        """Validate the order of the stages and insert bridging stages where necessary.

        Args:
            traits: of the model the pipeline begins with.
            trait_sources: which earlier stage added or removed a trait, for messages.

        Raises:
            KdError: a stage can't follow the stages before it; the message says which, why, and what to do.
        """
        steps: list[Planned] = []
        for found in self.validate_order(traits, trait_sources):
            if isinstance(found, KdError):
                raise found
            steps += found
        return steps

    def validate_order(self, traits: Iterable[str], trait_sources: dict[str, str] | None = None) -> Iterator[list[Planned] | KdError]:
        """For each stage, the steps that it needs, bridges first, or the error of its position; later stages are validated as if that stage were absent.

        Args:
            traits, trait_sources: as for `plan`.
        """
        now, sources = frozenset(traits), dict(trait_sources or {})
        for number, stage in enumerate(self.stages, 1):
            where = f" (step {number})" if len(self.stages) > 1 else ""
            bridges = [] if fits(stage, now) else bridge(stage, now)
            if bridges is None:
                yield impossible(stage, where, now, sources)
                continue
            steps = []
            for step in (*bridges, stage):
                now = after(step, now)
                sources |= {trait: f"{_short(stage)}{where}" for trait in (*step.adds, *step.removes)}
                steps.append(Planned(step, step is not stage, now))
            yield steps

    @renamed_argument("made_by", "trait_sources")
    def judge(self, traits: Iterable[str], trait_sources: dict[str, str] | None = None) -> Iterator[list[Planned] | KdError]:
        """The old name of `validate_order`."""
        warn_renamed("Pipeline.judge", "validate_order", stacklevel=4)
        return self.validate_order(traits, trait_sources)

    def data(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return {"kdkit": SCHEMA, "name": self.name, "seed": self.seed, "distributions": distributions(self.stages), "steps": [write_step(stage) for stage in self.stages]}

    @classmethod
    def from_data(cls, data: Any, where: str = "the recipe", anywhere: bool = False) -> Pipeline:
        """A pipeline out of a recipe's plain data.

        Args:
            data: plain data, such as `data` returns.
            where: it is, for messages.
            anywhere: its options may name files and folders outside of the working directory, such as a cache; use it only for a recipe you trust.

        Raises:
            KdError: it is no recipe, of a newer kdkit, names what is not installed, or a place outside of the working directory.
        """
        read = read_header(data, where)
        stages = tuple(read_step(step, f"{where}, step {number}", read.distributions or {}, anywhere) for number, step in enumerate(read.steps, 1))
        return cls(stages, read.name or "", read.seed)

    def save(self, path: str | Path, replace_other: bool = True) -> Path:
        """Write the recipe as YAML, with the distributions that its stages come from.

        Args:
            path: the file.
            replace_other: whether to replace a file with another content.

        Raises:
            KdError: the file can't be written, or must not be replaced.
        """
        target, text = Path(path), write_yaml(self.data()).encode()
        try:
            if not replace_other and target.exists() and target.read_bytes() != text:
                raise KdError(f"{target} holds something else", "--force replaces it", "or choose another name")
            with replace_file(target) as file:
                file.write(text)
        except OSError as error:
            raise KdError(f"can't write {target}: {error.strerror or error}", "choose a folder that exists and that you may write to") from error
        return target

    @classmethod
    def load(cls, path: str | Path, anywhere: bool = False) -> Pipeline:
        """Read a recipe.

        Args:
            path: a YAML file that `save` wrote.
            anywhere: as for `from_data`.

        Raises:
            KdError: the file can't be read, is no recipe, or names a place outside of the working directory; the message names file and field.
        """
        return cls.from_data(read_yaml(Path(path)), printable(str(path)), anywhere)

    def __str__(self) -> str:
        return self.lines()

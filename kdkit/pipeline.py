"""Pipelines: stages in order, judged by traits before anything runs, and saved as recipes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.contract import Forecast, Needs, Stage, TrainStage, Trait
from kdkit.errors import KdError
from kdkit.lines import option, read_options, split
from kdkit.plugins import manager

if TYPE_CHECKING:
    from torch import nn

    from kdkit.context import Context

SCHEMA = 1
"""The number of the recipe format."""

_WORDS = {
    Trait.FLOAT_WEIGHTS: "float weights",
    Trait.TRAINABLE: "weights that can be trained",
    Trait.FREE_STRUCTURE: "a structure that may be changed",
    Trait.MASKS_PENDING: "pruning masks that are not folded in",
    Trait.ADAPTERS_ATTACHED: "adapters attached",
    Trait.FAKE_QUANT: "simulated quantization",
    Trait.PACKED_WEIGHTS: "packed weights",
    Trait.ONNX: "the onnxruntime form",
    Trait.ENCODED: "entropy-coded weights",
}


def in_words(trait: str) -> str:
    """A trait as messages and help say it.

    >>> in_words(Trait.FLOAT_WEIGHTS)
    'float weights'
    """
    return _WORDS.get(Trait(trait), trait) if trait in set(Trait) else trait


def _united(fact: str) -> Any:
    """What any of a group's stages declares of its traits."""
    return property(lambda group: frozenset().union(*(getattr(stage, fact) for stage in group.stages)))


class Together(Stage):
    """Several training stages in one loop: their loss terms are summed, the first one's loop options count."""

    id: ClassVar[str] = "together"
    stages: tuple[Any, ...]

    def model_post_init(self, context: Any) -> None:
        strangers = [stage.line() for stage in self.stages if not isinstance(stage, TrainStage)]
        if strangers or len(self.stages) < 2:
            raise KdError(
                f"together: {strangers[0]} does not train" if strangers else "together wants two stages or more",
                "put stages that train, such as distill soft and tune finetune, in one group",
            )
        if apart := next((stage for stage in self.stages if not stage.shares_loop), None):
            raise KdError(f"together: {apart.title} runs trainings of its own, one after another, and a group is one", "run it by itself, before or after the group")

    requires = _united("requires")
    forbids = _united("forbids")
    adds = _united("adds")
    removes = _united("removes")

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return all(stage.keeps_output for stage in self.stages)

    def needed(self) -> Needs:
        joined = Needs()
        for stage in self.stages:
            joined |= stage.needed()
        return joined

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        for stage in self.stages:
            yield from stage.check(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        return self.stages[0].lead(model, context, list(self.stages))

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """Each stage's in turn: adapters and students come into the loop in that order too."""
        forecast = Forecast(model)
        for stage in self.stages:
            forecast = stage.forecast(forecast.model, context)
        return forecast

    def line(self) -> str:
        return "\n".join(["together:", *("    " + stage.line() for stage in self.stages)])


@dataclass(frozen=True)
class Planned:
    """One step of a plan: a stage, whether the kit put it in, and the model's traits once it is done."""

    stage: Stage
    inserted: bool
    traits: frozenset[str]


@dataclass(frozen=True)
class Pipeline:
    """Stages in order.

    >>> print(Pipeline.from_lines("tune finetune --epochs 3   # recover").lines())
    tune finetune --epochs 3.0
    """

    stages: tuple[Stage, ...]
    name: str = ""
    seed: int | None = None

    @classmethod
    def of(cls, stages: str | Stage | Pipeline | Iterable[Any]) -> Pipeline:
        """A pipeline of whatever stands for one: a stage, lines, another pipeline, or a list of these."""
        if isinstance(stages, Pipeline):
            return stages
        if isinstance(stages, Stage):
            return cls((stages,))
        if isinstance(stages, str):
            return cls.from_lines(stages)
        if isinstance(stages, Iterable) and not isinstance(stages, (dict, bytes)):
            return cls(tuple(stage for part in stages for stage in cls.of(part).stages))
        raise KdError(f"{stages!r} is not a stage", "pass a stage such as Channels(ratio=0.5), a line such as 'prune channels --ratio 0.5', or a list of these")

    @classmethod
    def from_lines(cls, text: str, name: str = "", read: Callable[[str], Stage] = lambda line: read_stage(split(line))) -> Pipeline:
        """Read one stage a line, as in the body of a `%%kd` cell; `together:` opens a group of indented lines.

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

    def plan(self, traits: Iterable[str], made_by: dict[str, str] | None = None) -> list[Planned]:
        """Judge the order and insert bridges where they are known.

        Args:
            traits: of the model the pipeline begins with.
            made_by: which earlier stage added or removed a trait, for messages.

        Raises:
            KdError: a stage can't follow what stands before it; the message says which, why, and what to do.
        """
        steps: list[Planned] = []
        for judged in self.judge(traits, made_by):
            if isinstance(judged, KdError):
                raise judged
            steps += judged
        return steps

    def judge(self, traits: Iterable[str], made_by: dict[str, str] | None = None) -> Iterator[list[Planned] | KdError]:
        """For each stage what it would run as, bridges first; or why it can't stand there, and then those behind it are judged as if it did not.

        Args:
            traits, made_by: as for `plan`.
        """
        now, makers = frozenset(traits), dict(made_by or {})
        for number, stage in enumerate(self.stages, 1):
            where = f" (step {number})" if len(self.stages) > 1 else ""
            bridges = [] if fits(stage, now) else bridge(stage, now)
            if bridges is None:
                yield impossible(stage, where, now, makers)
                continue
            steps = []
            for step in (*bridges, stage):
                now = after(step, now)
                makers |= {trait: f"{_short(stage)}{where}" for trait in (*step.adds, *step.removes)}
                steps.append(Planned(step, step is not stage, now))
            yield steps

    def data(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return {"kdkit": SCHEMA, "name": self.name, "seed": self.seed, "distributions": distributions(self.stages), "steps": [_write(stage) for stage in self.stages]}

    @classmethod
    def from_data(cls, data: Any, where: str = "the recipe") -> Pipeline:
        """A pipeline out of a recipe's plain data.

        Raises:
            KdError: it is no recipe, of a newer kdkit, or names what is not installed.
        """
        if not isinstance(data, dict) or "kdkit" not in data or not isinstance(data.get("steps"), list):
            raise KdError(f"{where} is not a kdkit recipe", "a recipe has the keys kdkit and steps; session.recipe().save(path) writes one")
        if data["kdkit"] != SCHEMA:
            raise KdError(f"{where} is of recipe format {data['kdkit']}; this kdkit reads {SCHEMA}", "update kdkit")
        used = data.get("distributions") or {}
        return cls(tuple(_read(step, f"{where}, step {number}", used) for number, step in enumerate(data["steps"], 1)), str(data.get("name") or ""), data.get("seed"))

    def save(self, path: str | Path) -> Path:
        """Write the recipe as YAML, with the distributions that its stages come from."""
        import yaml

        target = Path(path)
        try:
            target.write_text(yaml.safe_dump(self.data(), sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise KdError(f"can't write {target}: {error.strerror}", "choose a folder that exists and that you may write to") from error
        return target

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """Read a recipe."""
        import yaml

        try:
            return cls.from_data(yaml.safe_load(Path(path).read_text()), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise KdError(f"can't read {path}: {error}", "a recipe is a YAML file that session.recipe().save(path) wrote") from error
        except yaml.YAMLError as error:
            raise KdError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error

    def __str__(self) -> str:
        return self.lines()


@dataclass
class Block:
    """Lines of a pipeline's text that belong together, each with its number: one stage's, or those of a `together:` group."""

    together: bool
    lines: list[tuple[int, str]]


def blocks(text: str) -> list[Block]:
    """The text of a pipeline, cut where its steps begin; blank lines and comments are left out.

    >>> [(block.together, len(block.lines)) for block in blocks("prune channels  # first\\ntogether:\\n  distill soft\\n  tune finetune")]
    [(False, 1), (True, 2)]

    Raises:
        KdError: a quote or a brace is not closed.
    """
    found: list[Block] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = split(line)
        except KdError as error:
            raise KdError(f"line {number}: {error.message}", *error.hints) from error
        if words == ["together:"]:
            found.append(Block(True, []))
        elif words and found and found[-1].together and line[:1].isspace():
            found[-1].lines.append((number, line))
        elif words:
            found.append(Block(False, [(number, line)]))
    return found


def _at_line(number: int, line: str, read: Callable[[str], Stage], alone: bool) -> Stage:
    try:
        return read(line)
    except KdError as error:
        if alone:
            raise
        raise KdError(f"line {number}: {error.message}", *error.hints) from error


def read_stage(words: Sequence[Any]) -> Stage:
    """A stage out of the words of its line.

    Raises:
        KdError: unknown family, technique or option, or a value out of bounds.
    """
    if len(words) < 2 or not all(isinstance(word, str) and not word.startswith("--") for word in words[:2]):
        raise KdError(f"{' '.join(map(str, words))!r} is not a stage", "write FAMILY TECHNIQUE --option value, such as prune channels --ratio 0.5", "%kd list shows them")
    made = manager().stage(f"{words[0]}.{words[1]}")
    title = f"{words[0]} {words[1]}"
    return made.build(title, read_options(made, words[2:], title))


def fits(stage: Stage | type[Stage], traits: frozenset[str]) -> bool:
    """Whether a stage may follow a model of these traits."""
    return set(stage.requires) <= traits and not set(stage.forbids) & traits


def follows(stage: Stage | type[Stage], traits: frozenset[str]) -> bool:
    """Whether a stage may follow a model of these traits, with bridges where they are known."""
    return fits(stage, traits) or bridge(stage, traits) is not None


def after(stage: Stage, traits: frozenset[str]) -> frozenset[str]:
    """The traits that a stage claims to leave."""
    return (traits | frozenset(stage.adds)) - frozenset(stage.removes)


def bridge(stage: Stage | type[Stage], traits: frozenset[str]) -> list[Stage] | None:
    """The shortest chain of bridging stages after which `stage` fits; None if there is none."""
    known = [made() for made in manager().stages().values() if made.bridge]
    chains: list[tuple[list[Stage], frozenset[str]]] = [([], traits)]
    for _ in range(3):
        chains = [([*chain, step], after(step, now)) for chain, now in chains for step in known if step not in chain and fits(step, now) and after(step, now) != now]
        for chain, now in chains:
            if fits(stage, now):
                return chain
    return None


def impossible(stage: Stage, where: str, traits: frozenset[str], makers: dict[str, str]) -> KdError:
    """The message for a stage that can't stand where it was put."""
    missing, standing = sorted(set(stage.requires) - traits), sorted(set(stage.forbids) & traits)
    reasons = [
        *(f"needs {words}, which {f'{culprit} took away' if culprit else 'the model has not'}" for culprit, words in _by_maker(missing, makers)),
        *(f"can't follow {words}, which {f'{culprit} left' if culprit else 'the model has'}" for culprit, words in _by_maker(standing, makers)),
    ]
    hints: list[str] = []
    for trait in missing:
        culprit = makers.get(trait)
        if culprit and culprit.startswith(_short(stage) + " ("):
            hints += ["it was done already"]
            continue
        hints += [f"put {_short(stage)} before {culprit}", f"or branch from a version before it: %kd {_short(stage)} --on @..."] if culprit else _makers(trait)
    for trait in standing:
        culprit = makers.get(trait)
        hints += [f"put {_short(stage)} before {culprit}"] if culprit else _removers(trait)
    return KdError(f"{_short(stage)}{where} {'; '.join(reasons)}", *dict.fromkeys(hints))


def _by_maker(traits: Iterable[str], makers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(what added or removed some of the traits, these in words); "" where no stage did."""
    found = list(traits)
    for maker in dict.fromkeys(makers.get(trait, "") for trait in found):
        yield maker, " and ".join(in_words(trait) for trait in found if makers.get(trait, "") == maker)


def _short(stage: Stage) -> str:
    return " + ".join(_short(each) for each in stage.stages) if isinstance(stage, Together) else f"{stage.family} {stage.technique}"


def _makers(trait: str) -> list[str]:
    ids = [id for id, made in manager().stages().items() if trait in made.adds]
    return [f"made by: {', '.join(id.replace('.', ' ') for id in ids)}"] if ids else []


def _removers(trait: str) -> list[str]:
    ids = [id for id, made in manager().stages().items() if trait in made.removes]
    return [f"removed by: {', '.join(id.replace('.', ' ') for id in ids)}"] if ids else []


def distributions(stages: Iterable[Stage]) -> dict[str, str]:
    """The versions of the distributions that stages come from, kdkit's among them."""
    found = {}
    for stage in stages:
        for each in stage.stages if isinstance(stage, Together) else (stage,):
            plugin = manager().provider(each.id)
            if plugin.distribution:
                found[plugin.distribution] = plugin.version
    return dict(sorted(found.items()))


def _write(stage: Stage) -> dict[str, Any]:
    if isinstance(stage, Together):
        return {"together": [_write(each) for each in stage.stages]}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in stage.changed().items()}
    return {"stage": stage.id, "version": stage.version, "options": options}


def _read(step: Any, where: str, used: dict[str, str]) -> Stage:
    if isinstance(step, dict) and isinstance(step.get("together"), list):
        return Together(stages=tuple(_read(each, where, used) for each in step["together"]))
    if not isinstance(step, dict) or not isinstance(step.get("stage"), str) or not isinstance(step.get("options", {}), dict):
        raise KdError(f"{where} is not a stage", "a step has the keys stage and options, or together")
    try:
        made = manager().stage(step["stage"])
    except KdError as error:
        raise KdError(
            f"{where}: {error.message}", *error.hints, f"the recipe was made with {', '.join(f'{name} {version}' for name, version in used.items())}" if used else ""
        ) from error
    if step.get("version", 1) > made.version:
        raise KdError(
            f"{where}: {step['stage']} of version {step['version']}; version {made.version} is installed", f"update {manager().provider(step['stage']).distribution}"
        )
    return made.build(f"{where}, {step['stage'].replace('.', ' ')}", step.get("options", {}))


def references(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """(option, kind, name) for each object of the session that a stage names."""
    for each in stage.stages if isinstance(stage, Together) else (stage,):
        for name, kind, value in each.references():
            yield option(name), kind, value


def missing_packages(needs: Needs) -> list[str]:
    """The packages among the needs that are not installed.

    >>> missing_packages(Needs(packages=("json", "not_there_at_all")))
    ['not_there_at_all']
    """
    return [name for name in needs.packages if importlib.util.find_spec(name) is None]

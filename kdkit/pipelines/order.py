"""The order of stages: which traits each requires, forbids, adds and removes, and the bridges between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kdkit.errors import KdError
from kdkit.models.traits import Trait, in_words
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage
from kdkit.training.together import Together


@dataclass(frozen=True)
class Planned:
    """One step of a plan: a stage, whether kdkit inserted it, and the model's traits after it."""

    stage: Stage
    inserted: bool
    traits: frozenset[str]


def fits(stage: Stage | type[Stage], traits: frozenset[str]) -> bool:
    """Whether a stage accepts a model with these traits."""
    return set(stage.requires) <= traits and not set(stage.forbids) & traits


def follows(stage: Stage | type[Stage], traits: frozenset[str]) -> bool:
    """Whether a stage accepts a model with these traits, directly or after bridging stages."""
    return fits(stage, traits) or bridge(stage, traits) is not None


def after(stage: Stage, traits: frozenset[str]) -> frozenset[str]:
    """The traits that a stage claims to leave."""
    return (traits | frozenset(stage.adds)) - frozenset(stage.removes)


def bridge(stage: Stage | type[Stage], traits: frozenset[str]) -> list[Stage] | None:
    """The shortest chain of bridging stages after which `stage` fits; None if there is none.

    No chain leads to the onnxruntime form, in which few stages work, unless the stage asks for that.
    """
    known = [made() for made in manager().stages().values() if made.bridge]
    chains: list[tuple[list[Stage], frozenset[str]]] = [([], traits)]
    for _ in range(3):
        chains = [([*chain, step], after(step, now)) for chain, now in chains for step in known if step not in chain and fits(step, now) and after(step, now) != now]
        for chain, now in chains:
            if fits(stage, now) and (Trait.ONNX in stage.requires or Trait.ONNX not in now - traits):
                return chain
    return None


def impossible(stage: Stage, where: str, traits: frozenset[str], sources: dict[str, str]) -> KdError:
    """The error for a stage that can't run at its position."""
    missing, standing = sorted(set(stage.requires) - traits), sorted(set(stage.forbids) & traits)
    reasons = [
        *(f"needs {words}, which {f'{culprit} took away' if culprit else 'the model has not'}" for culprit, words in _by_source(missing, sources)),
        *(f"can't follow {words}, which {f'{culprit} left' if culprit else 'the model has'}" for culprit, words in _by_source(standing, sources)),
    ]
    hints: list[str] = []
    for trait in missing:
        culprit = sources.get(trait)
        if culprit and culprit.startswith(_short(stage) + " ("):
            hints += ["it was done already"]
            continue
        hints += (
            [f"put {_short(stage)} before {culprit}", f"or branch from a version before it: %kd {_short(stage)} --on @..."]
            if culprit
            else _stages_that_add(trait, traits)
        )
    for trait in standing:
        culprit = sources.get(trait)
        hints += [f"put {_short(stage)} before {culprit}"] if culprit else _stages_that_remove(trait, traits)
    return KdError(f"{_short(stage)}{where} {'; '.join(reasons)}", *dict.fromkeys(hints))


def _by_source(traits: Iterable[str], sources: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(what added or removed some of the traits, these in words); "" where no stage did."""
    found = list(traits)
    for source in dict.fromkeys(sources.get(trait, "") for trait in found):
        yield source, " and ".join(in_words(trait) for trait in found if sources.get(trait, "") == source)


def _short(stage: Stage) -> str:
    return " + ".join(_short(each) for each in stage.stages) if isinstance(stage, Together) else f"{stage.family} {stage.technique}"


def _stages_that_add(trait: str, traits: frozenset[str]) -> list[str]:
    """A hint to the stages that a model with these traits can get another one from, or to the model that had it."""
    makers = {id.replace(".", " ", 1): made for id, made in manager().stages().items() if trait in made.adds and set(made.requires) <= traits}
    if fitting := [title for title, made in makers.items() if fits(made, traits)]:
        return [f"made by: {', '.join(fitting)}"]
    if blocked := {obstacle: title for title, made in makers.items() for obstacle in sorted(set(made.forbids) & traits)}:
        return [hint for each, title in blocked.items() for hint in (f"made by {title}, which can't follow {in_words(each)}", *_stages_that_remove(each, traits))]
    packed = traits & {Trait.PACKED_WEIGHTS, Trait.ONNX}
    return ["the model came with packed weights: begin with the float model that it was made of, %kd use {float_model}"] if packed else []


def _stages_that_remove(trait: str, traits: frozenset[str]) -> list[str]:
    ids = [id for id, made in manager().stages().items() if trait in made.removes and fits(made, traits)]
    if ids:
        return [f"removed by: {', '.join(id.replace('.', ' ') for id in ids)}"]
    return ['make the masks permanent, such as by torch.nn.utils.prune.remove(layer, "weight"), then %kd use again'] if trait == Trait.MASKS_PENDING else []

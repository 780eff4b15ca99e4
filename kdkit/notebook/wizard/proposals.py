"""Proposals: pipelines for a goal, made of what stages declare and predict.

Which stages remove parameters, and which hold them in fewer bits, follows from their forecasts; which ones train, from their class; which
fit one after another, from their traits and needs. A technique of a plugin is proposed like one of kdkit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from kdkit.errors import Cancelled, KdError
from kdkit.models.traits import Trait
from kdkit.notebook.help_pages import families
from kdkit.parameters.description import search_of
from kdkit.plugins.manager import manager
from kdkit.session.forecast import Plan, StepForecast
from kdkit.stages.context import Progress
from kdkit.stages.stage import Stage
from kdkit.training.stage import TrainStage

if TYPE_CHECKING:
    from kdkit.session.session import Session

LESS = 0.9
"""A stage counts as one that removes something if at most this share remains."""

Observe = Callable[[Progress], None]


@dataclass(frozen=True)
class Proposal:
    """A pipeline for a goal.

    Attributes:
        goal: what it is for.
        steps: its lines.
        plan: the predicted figures.
        latency_ratio: latency afterwards over latency before, as far as the MACs tell; None if they don't.
        risk: for the quality, and why.
    """

    goal: str
    steps: tuple[str, ...]
    plan: Plan
    latency_ratio: float | None
    risk: str


@dataclass(frozen=True)
class _Effect:
    """What a stage does to the start version, as shares that remain."""

    stage: Stage
    parameters: float
    size: float
    macs: float
    compiled: bool

    @property
    def removes(self) -> bool:
        """Whether parameters are removed."""
        return self.parameters <= LESS

    @property
    def packs(self) -> bool:
        """Whether the same parameters take fewer bytes."""
        return not self.removes and self.size <= LESS


def propose(session: Session, start: str = "", observe: Observe = lambda progress: None) -> list[Proposal]:
    """Pipelines that make a version smaller, faster, or smaller at the least risk; a goal that no stage serves is left out.

    Args:
        session: whose model, data and objects are considered; it does not change.
        start: the version to start from; default: the head.
        observe: receives progress.

    Raises:
        Cancelled: the session's `cancel` was called.
    """
    effects = list(_effects(session, start or None, observe))
    by_size, by_macs = (lambda effect: effect.size), (lambda effect: (effect.macs, effect.size))
    removing, packing = [each for each in effects if each.removes], [each for each in effects if each.packs]
    compiled = [each for each in packing if each.compiled]
    fastest = sorted((each for each in removing if each.macs <= LESS), key=by_macs)
    goals = {
        "smaller": (_one_of_each_family(sorted(removing, key=by_size)), sorted(packing, key=by_size)),
        "faster": (fastest[:1], sorted(compiled, key=by_size)),
        "least risk": ([], sorted(packing, key=by_size)),
    }
    made = [_proposal(session, start or None, goal, *choices, observe) for goal, choices in goals.items()]
    return [each for each in made if each is not None]


def _effects(session: Session, start: str | None, observe: Observe) -> Iterator[_Effect]:
    """The stages that fit the start version with their defaults and that can be predicted without running them."""
    known = [made for made in manager().stages().values() if not (issubclass(made, TrainStage) or made.bridge or made.forecast is Stage.forecast)]
    for number, made in enumerate(known):
        observe(Progress(made.id.replace(".", " ", 1), number, len(known), "predicting"))
        try:
            stage = made.build(made.id, {})
        except KdError:
            continue
        steps = session.validate_order((stage,), start)[0]
        plan = None if isinstance(steps, KdError) else _plan(session, start, [stage], observe)
        if plan is None or isinstance(steps, KdError):
            continue
        before, after = plan.steps[0], plan.steps[-1]
        yield _Effect(
            stage,
            _share(before.parameters, after.parameters),
            _share(before.size_bytes, after.size_bytes),
            _share(before.macs, after.macs),
            Trait.ONNX in steps[-1].traits,
        )


def _one_of_each_family(effects: Sequence[_Effect]) -> list[_Effect]:
    """The first of each family, in the usual order of families."""
    first: dict[str, _Effect] = {}
    for each in effects:
        first.setdefault(each.stage.family, each)
    return [first[family] for family in families() if family in first]


def _plan(session: Session, start: str | None, stages: Sequence[Stage], observe: Observe) -> Plan | None:
    """The predicted figures; None where a stage does not fit the structure that the ones before it leave, or a plugin's forecast is wrong."""
    try:
        return session.plan(tuple(stages), start, observe)
    except Cancelled:
        raise
    except Exception:
        return None


def _share(before: int | None, after: int | None) -> float:
    return after / before if before and after is not None else 1.0


def _proposal(session: Session, start: str | None, goal: str, removing: Sequence[_Effect], packing: Sequence[_Effect], observe: Observe) -> Proposal | None:
    """Stages that remove parameters, as far as they fit, a training that restores quality, and the best stage after these that packs what remains."""
    stages: list[Stage] = []
    size: float | None = None
    for each in removing:
        longer = [*stages, each.stage]
        plan = _plan(session, start, longer, observe) if _fits(session, start, longer) else None
        if plan is not None and (reached := plan.steps[-1].size_bytes or 0) < (size or reached + 1):
            stages, size = longer, reached
    trained = _training_after(session, start, stages) if stages else None
    stages += [trained] if trained is not None else []
    last = next((each for each in packing if _fits(session, start, [*stages, each.stage])), None)
    stages += [last.stage] if last is not None else []
    if not stages:
        return None
    plan = _plan(session, start, stages, observe)
    if plan is None:
        return None
    macs = _share(plan.steps[0].macs, plan.steps[-1].macs)
    return Proposal(goal, tuple(stage.line() for stage in stages), plan, macs if macs <= LESS else None, _risk(plan.steps[0], plan.steps[-1], trained, last))


def _training_after(session: Session, start: str | None, stages: Sequence[Stage]) -> Stage | None:
    """The first training, in the usual order of families, that leaves the structure as it is and fits after these stages."""
    order = families()
    known = [made for made in manager().stages().values() if issubclass(made, TrainStage) and not (set(made.adds) | set(made.removes))]
    for made in sorted(known, key=lambda made: order.index(made.id.partition(".")[0])):
        try:
            stage = made.build(made.id, _usual_epochs(made))
        except KdError:
            continue
        if _fits(session, start, [*stages, stage]):
            return stage
    return None


def _usual_epochs(made: type[Stage]) -> dict[str, Any]:
    """The middle of the range of epochs that a training declares, on a logarithmic scale."""
    search = search_of(made, "epochs") if "epochs" in made.model_fields else None
    return {"epochs": float(round(sqrt(search.low * search.high)))} if search is not None and search.low and search.high else {}


def _fits(session: Session, start: str | None, stages: Sequence[Stage]) -> bool:
    return not any(isinstance(found, KdError) for found in session.validate_order(tuple(stages), start))


def _risk(before: StepForecast, after: StepForecast, trained: Stage | None, packed: _Effect | None) -> str:
    """How much the quality may suffer, and why: by what is removed, whether a training follows, and whether what remains is rounded."""
    gone = 1 - _share(before.parameters, after.parameters)
    rounded = "; the weights are rounded" if packed is not None else ""
    if gone <= 1 - LESS:
        return "low: no weight is removed" + rounded
    if trained is None:
        return f"high: {gone:.0%} of the weights go, and no training follows{rounded}"
    return f"medium: {gone:.0%} of the weights go, and {trained.title} restores quality{rounded}"

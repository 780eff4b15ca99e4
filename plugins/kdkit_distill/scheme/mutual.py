"""Mutual learning: several students learn from the labels and from one another, with no teacher.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2018 (arXiv:1706.00384): DML.

Pitfalls:

- The peers must differ: copies with the same weights learn nothing from each other. Peers made here start from new random weights.
- A trained student learns from untrained peers at first; in the paper all nets start untrained.
- A peer's predictions are detached in the others' losses: each net learns only from its own loss, in one forward pass.
- Memory and time grow with the number of peers.
- The paper adds label loss and divergence without weights. Alpha 0.5 is half of that sum: no difference with Adam, and the same as
  half the learning rate with SGD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Data, KdError, Step, Term, TrainPart, adopt_model, param
from kdkit.models import device_of, evaluating, private_copy
from kdkit_distill.evaluation import best, figure, scored_data
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.stage import NoTeacher
from kdkit_distill.students.fresh import reinitialized

if TYPE_CHECKING:
    from kdkit import Context


def mutual(logits: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """For each net i: 1 / (K - 1) · sum over the others j of T² · KL(p_j ‖ p_i), with p_j detached.

    Args:
        logits: of K nets, at least two, each (..., classes).
        temperature: T; 1 in the paper.

    Returns:
        K tensors (...), at least float32.

    >>> [each.item() for each in mutual([torch.zeros(2), torch.zeros(2), torch.zeros(2)])]
    [0.0, 0.0, 0.0]
    """
    others = len(logits) - 1
    return [
        torch.stack([soft_labels(mine, theirs.detach(), temperature) for number, theirs in enumerate(logits) if number != place]).sum(0) / others
        for place, mine in enumerate(logits)
    ]


class Mutual(NoTeacher):
    """Train several students together, each learning from the others' predictions (DML).

    Loss of net i: (1 - alpha) · label loss + alpha · weight · 1/(K-1) · sum over the others j of T² · KL(p_j ‖ p_i), p_j detached.

    The peers are copies of the student with new random weights, or the models that --partners names. All train in one
    optimizer; only the student is kept, or with --keep-peer best the best one on --validation. The notes show the metric of each
    on the evaluation data.
    """

    id: ClassVar[str] = "distill.mutual"
    known_as: ClassVar[tuple[str, ...]] = ("DML", "deep mutual learning")

    alpha: float = param(0.5, "share of the other nets in the loss; the rest is the labels'", gt=0, lt=1, search=(0.1, 0.9))
    temperature: float = param(1.0, "softens the nets' predictions; 1, as in the paper: no softening", gt=0, search=(1, 4))
    peers: int = param(2, "how many nets learn together, the student included", ge=2, main=True)
    partners: tuple[str, ...] = param((), "models of the session to train with the student, as copies, instead of newly initialized peers", names="model")
    keep_peer: Literal["student", "best"] = param("student", "which net is kept; best needs validation data, and no --partners")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.labels:
            yield "mutual learning needs labels, since untrained nets can't teach each other; leave out --no-labels"
        if "teacher" in self.changed():
            yield f"--teacher {self.teacher} is not used; distill soft learns from a teacher"
        if self.also:
            yield "--also adds terms that need a teacher, but mutual learning has none; put the techniques in a together: group"
        if self.cache:
            yield "--cache stores a fixed teacher's outputs, but the peers change at each step; leave it out"
        if self.partners and "peers" in self.changed() and self.peers != len(self.partners) + 1:
            yield f"--peers {self.peers} and {len(self.partners)} --partners: the student and its partners are {len(self.partners) + 1}; leave out --peers"
        if self.keep_peer == "best" and self.validation is None:
            yield "--keep-peer best needs validation data: --validation {held_out_loader}"
        if self.keep_peer == "best" and self.partners:
            yield "--keep-peer best chooses among copies of the student; with --partners the student is kept"

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Peers(self, context)


class Peers(TrainPart):
    """The peers of the student: they run once a step, and train in the same loop."""

    def __init__(self, stage: Mutual, context: Context):
        self.stage, self.context = stage, context
        self.nets: list[nn.Module] = []
        self.trained = False

    def open(self, model: nn.Module) -> None:
        if reason := self.stage.incompatible_task(self.context.task):
            raise KdError(f"{self.stage.title}: {reason}", f"the task is {self.context.task.name}; set yours with --task")
        device = device_of(model)
        if self.stage.partners:
            nets = [private_copy(adopt_model(self.context.named(name, "a model"))) for name in self.stage.partners]
        else:
            nets = [reinitialized(model, self.context, self.context.seed * 1_000_003 + number) for number in range(1, self.stage.peers)]
        self.nets = [net.to(device).train() for net in nets]
        self._compare(model)
        self.modules["peers"] = nn.ModuleList(self.nets)

    def _compare(self, model: nn.Module) -> None:
        """Check that all nets have the same classes."""
        device = device_of(model)
        batch = self.context.example.to(device)
        shapes = []
        for net in (model, *self.nets):
            with evaluating(net):
                shapes.append(tuple(self.context.task.prediction(batch.call(net), batch).shape))
        for name, shape in zip(self.names[1:], shapes[1:], strict=True):
            if shape != shapes[0]:
                raise KdError(f"{name} has outputs of shape {shape}, the student {shapes[0]}", "peers need the same classes in the same order")

    @property
    def names(self) -> list[str]:
        """The names of the nets, the student first."""
        return ["student", *(self.stage.partners or [f"peer{number}" for number in range(1, self.stage.peers)])]

    def terms(self, step: Step) -> Iterator[Term]:
        outputs = [step.output, *(step.batch.call(net) for net in self.nets)]
        logits = [step.task.prediction(output, step.batch) for output in outputs]
        apart = mutual(logits, self.stage.temperature_at(step.progress))
        for number, (name, output, values) in enumerate(zip(self.names, outputs, apart, strict=True)):
            prefix = f"{name}." if number else ""
            yield Term(f"{prefix}label", step.task.losses(output, step.batch), 1 - self.stage.alpha, labels=True, weighted=True, label_loss=not number)
            yield Term(f"{prefix}mutual", values, lambda progress: self.stage.alpha * self.stage.factor(progress))

    def after_step(self, step: Step) -> None:
        self.trained = True

    def close(self, model: nn.Module) -> None:
        if not self.trained or self.context.channel.cancelled():
            return
        if self.stage.keep_peer == "best" and self.stage.validation:
            self._keep_best(model, self.context.data(self.stage.validation))
        held = scored_data(self.context)
        if held is not None:
            texts = [f"{name} {figure([net], held, self.context):.4g}" for name, net in zip(self.names, (model, *self.nets), strict=True)]
            self.context.note(f"{self.context.task.metric} on eval: {', '.join(texts)}")

    def _keep_best(self, model: nn.Module, data: Data) -> None:
        """Swap the weights of the student with those of the best net on the validation data."""
        figures = [figure([net], data, self.context) for net in (model, *self.nets)]
        kept = best(figures, self.context.task.better)
        if kept:
            mine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(self.nets[kept - 1].state_dict())
            self.nets[kept - 1].load_state_dict(mine)
        self.context.note(f"kept {self.names[kept]}: {self.context.task.metric} {figures[kept]:.4g} on {self.stage.validation}")

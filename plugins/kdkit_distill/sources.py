"""Sources: where a teacher's signals come from. A lesson asks; who answers is none of the objectives' business."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import Served, adopt_teacher, frozen, private_copy
from kdkit.tasks import Task
from kdkit_distill.matching import Capture
from kdkit_distill.outline import answered
from kdkit_distill.signals import Signal

if TYPE_CHECKING:
    from kdkit.context import Context


class Source:
    """Gives a teacher's signals; opened before the training and closed after it, also when it failed."""

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        """Get ready to answer on `device`, with the features of these layers."""

    def signal(self, batch: Batch) -> Signal:
        """What the teacher says of a batch, without a graph, on the batch's device."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything; the teacher is then as it was, to the bit."""

    @property
    def model(self) -> nn.Module | None:
        """The teacher as a module, for matching layers; None where there is none at hand."""
        return None

    def identity(self) -> str:
        """What the answers depend on beside the inputs, hashed: a cache is refused when it differs.

        Raises:
            KdError: the answers can't be recognised another time, so they can't be cached.
        """
        raise KdError("this technique's teacher changes while the student learns, so its answers can't be cached", "leave out --cache")


class Live(Source):
    """A teacher in memory, asked at each step, in eval mode and without gradients.

    Several that name the same teacher, as in a `together` group, ask it once a step between them.

    Args:
        name: of the teacher in the session: a model, or a function of a batch's inputs.
        context: of the run.
    """

    def __init__(self, name: str, context: Context):
        self.name, self.context = name, context
        self.task: Task = context.task
        self._asked: _Asked | None = None

    @property
    def model(self) -> nn.Module:
        return self._teacher().model

    def _teacher(self) -> _Asked:
        if self._asked is None:
            self._asked = _Asked.of(self.name, self.context)
            self._asked.users.add(self)
        return self._asked

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        self._teacher().open(device, layers)

    def signal(self, batch: Batch) -> Signal:
        return self._teacher().signal(batch, self.task)

    def close(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.leave(self)

    def identity(self) -> str:
        given = getattr(self.model, "kdkit_identity", None)
        if given is None and isinstance(self.model, Served):
            raise KdError(
                f"the teacher {self.name} is a function, and nothing tells whether it still answers the same another time",
                f'say what answers: {getattr(self.model.ask, "__name__", "function")}.kdkit_identity = "name and version"',
                "or leave out --cache",
            )
        return hashlib.sha256(str(given).encode()).hexdigest() if given is not None else recognised(self.model)


class _Asked:
    """One teacher of a run, however many sources ask it."""

    # weak, so that a run which ended anyhow leaves nothing behind
    of_threads: weakref.WeakValueDictionary[tuple, _Asked] = weakref.WeakValueDictionary()

    def __init__(self, name: str, context: Context):
        self.users: weakref.WeakSet[Live] = weakref.WeakSet()
        self.held = contextlib.ExitStack()
        self.name, self.given = name, context.objects.get(name)
        if self.given is None or isinstance(self.given, nn.Module):
            self.model = self.held.enter_context(context.teacher(name))
        else:
            self.model = self.held.enter_context(frozen(adopt_teacher(self.given, name)))
        self.layers: tuple[str, ...] = ()
        self.capture = Capture()
        self.last: tuple[Batch, Task, Signal] | None = None

    @classmethod
    def of(cls, name: str, context: Context) -> _Asked:
        """The one that the thread has for this teacher, or a new one."""
        given = context.objects.get(name)
        key = (threading.get_ident(), id(context.original if given is None else given))
        found = cls.of_threads.get(key)
        if found is None:
            found = cls(name, context)
            cls.of_threads[key] = found
        return found

    def open(self, device: torch.device, layers: Sequence[str]) -> None:
        places = {tensor.device for tensor in (*self.model.parameters(), *self.model.buffers())}
        if places - {device}:
            # a copy, since moving the user's own model would change it
            self.model = private_copy(self.model).to(device)
            self.capture = Capture()
        self.layers = tuple(dict.fromkeys((*self.layers, *layers)))
        self.capture.__exit__()
        self.capture = self.held.enter_context(Capture(self.model, self.layers))

    @torch.no_grad()
    def signal(self, batch: Batch, task: Task) -> Signal:
        if self.last is not None and self.last[0] is batch and self.last[1] is task:
            return self.last[2]
        output = answered(self.model, batch, f"the teacher{'' if self.name == 'teacher' else f' {self.name}'}, {type(self.model).__name__},")
        signal = Signal(task.prediction(output, batch), self.capture.take(), output)
        self.last = (batch, task, signal) if len(self.users) > 1 else None
        return signal

    def leave(self, user: Live) -> None:
        self.users.discard(user)
        if not self.users:
            for key in [key for key, asked in list(self.of_threads.items()) if asked is self]:
                self.of_threads.pop(key, None)
            self.last = None
            self.held.close()


def recognised(model: nn.Module) -> str:
    """A hash of a model: weights, buffers, the classes of its modules and their plain attributes.

    >>> torch.manual_seed(0) and None
    >>> one, other = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    >>> _ = other.load_state_dict(one.state_dict())
    >>> recognised(one) == recognised(other)
    False
    """
    from kdkit.training.checkpoint import digest

    found = hashlib.sha256(digest(model).encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str) and key != "training" and key[0] != "_"}
        told = re.sub(r" at 0x[0-9a-f]+", "", f"{name} {type(module).__qualname__} {module.extra_repr()} {sorted(plain.items())}")
        found.update(told.encode())
    return found.hexdigest()


class Several(Source):
    """Several teachers at once, whose answers a subclass joins to one.

    Args:
        names: of the teachers in the session.
        context: of the run.
    """

    def __init__(self, names: Sequence[str], context: Context):
        self.names = tuple(names)
        self.lives = [Live(name, context) for name in names]
        self.task: Task = context.task

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        if layers:
            raise KdError(
                f"several teachers have no layer {layers[0]!r} in common to learn from",
                f"learn from the layers of one in the same loop: put a technique with --teacher {self.names[0]} beside it, in a together: group",
            )
        for live in self.lives:
            live.open(device)

    def signal(self, batch: Batch) -> Signal:
        return self.joined([live.signal(batch) for live in self.lives], batch)

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        """One signal of the teachers' signals, in the order of their names."""
        raise NotImplementedError

    def settings(self) -> str:
        """What the joined answer depends on beside the teachers and the inputs."""
        return ""

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for live in self.lives:
                stack.callback(live.close)

    def identity(self) -> str:
        told = [type(self).__qualname__, self.settings(), *(live.identity() for live in self.lives)]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


class Panel(nn.Module):
    """Several teachers as one model, to be measured like any."""

    def __init__(self, source: Several):
        super().__init__()
        self.source = source

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = self.source.signal(Batch(args, kwargs)).dense
        return logits.softmax(-1) if getattr(self.source.task, "probabilities", False) else logits

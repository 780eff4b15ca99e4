"""Sources of a teacher's signals. Objectives do not depend on the source."""

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

from kdkit import Batch, KdError, Task, adopt_teacher
from kdkit.guards import without_gradients
from kdkit.models import FunctionModel, frozen, private_copy
from kdkit.storage import path_of
from kdkit.training import digest
from kdkit_distill.layers.matching import Capture
from kdkit_distill.layers.stage_detection import answered
from kdkit_distill.signals import Signal

if TYPE_CHECKING:
    from kdkit import Context


class Source:
    """Returns a teacher's signals; opened before the training and closed after it, also after an error."""

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        """Prepare to run on `device`, with the features of these layers."""

    def signal(self, batch: Batch) -> Signal:
        """The teacher's signal for a batch, without a graph, on the batch's device."""
        raise NotImplementedError

    def close(self) -> None:
        """Release everything; the teacher is then bit-exact as before the training."""

    @property
    def model(self) -> nn.Module | None:
        """The teacher as a module, for matching layers; None if it is not in memory."""
        return None

    def identity(self) -> str:
        """A hash of what the outputs depend on besides the inputs; a cache with another hash is refused.

        Raises:
            KdError: there is no such hash, so the outputs can't be cached.
        """
        raise KdError("this technique's teacher changes while the student learns, so its outputs can't be cached", "leave out --cache")


class ModelSource(Source):
    """A teacher in memory, run at each step, in eval mode and without gradients.

    Sources of the same teacher, as in a `together` group, share one forward pass in each step.

    Args:
        name: of the teacher in the session: a model, or a function of a batch's inputs.
        context: of the run.
    """

    def __init__(self, name: str, context: Context):
        self.name, self.context = name, context
        self.task: Task = context.task
        self._asked: _SharedTeacher | None = None

    @property
    def model(self) -> nn.Module:
        return self._teacher().model

    def _teacher(self) -> _SharedTeacher:
        if self._asked is None:
            self._asked = _SharedTeacher.of(self.name, self.context)
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
        if given is None and isinstance(self.model, FunctionModel):
            raise KdError(
                f"the teacher {self.name} is a function, so kdkit can't check whether a cache still matches it",
                f'name it: {getattr(self.model.ask, "__name__", "function")}.kdkit_identity = "name and version"',
                "or leave out --cache",
            )
        return hashlib.sha256(str(given).encode()).hexdigest() if given is not None else model_hash(self.model)


class _SharedTeacher:
    """One teacher of a run, shared by all sources that name it."""

    # weak references, so that a run that ends with an error leaves nothing behind
    of_threads: weakref.WeakValueDictionary[tuple, _SharedTeacher] = weakref.WeakValueDictionary()

    def __init__(self, name: str, context: Context):
        self.users: weakref.WeakSet[ModelSource] = weakref.WeakSet()
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
    def of(cls, name: str, context: Context) -> _SharedTeacher:
        """The thread's shared teacher of this name, or a new one."""
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
            # a copy, since moving the user's model would change it
            self.model = private_copy(self.model).to(device)
            self.capture = Capture()
        self.layers = tuple(dict.fromkeys((*self.layers, *layers)))
        self.capture.__exit__()
        self.capture = self.held.enter_context(Capture(self.model, self.layers))

    @without_gradients
    def signal(self, batch: Batch, task: Task) -> Signal:
        if self.last is not None and self.last[0] is batch and self.last[1] is task:
            return self.last[2]
        output = answered(self.model, batch, f"the teacher{'' if self.name == 'teacher' else f' {self.name}'}, {type(self.model).__name__},")
        signal = Signal(task.prediction(output, batch), self.capture.take(), output)
        self.last = (batch, task, signal) if len(self.users) > 1 else None
        return signal

    def leave(self, user: ModelSource) -> None:
        self.users.discard(user)
        if not self.users:
            for key in [key for key, asked in list(self.of_threads.items()) if asked is self]:
                self.of_threads.pop(key, None)
            self.last = None
            self.held.close()


def model_hash(model: nn.Module) -> str:
    """A hash of a model: weights, buffers, the classes of its modules and their plain attributes.

    >>> torch.manual_seed(0) and None
    >>> one, other = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    >>> _ = other.load_state_dict(one.state_dict())
    >>> model_hash(one) == model_hash(other)
    False
    """
    found = hashlib.sha256(digest(model).encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str) and key != "training" and key[0] != "_"}
        facts = re.sub(r" at 0x[0-9a-f]+", "", f"{name} {_class_name(type(module))} {module.extra_repr()} {sorted(plain.items())}")
        found.update(facts.encode())
    return found.hexdigest()


def _class_name(kind: type) -> str:
    """The name of a class in a hash, which does not change if a registered class is renamed.

    >>> _class_name(nn.Linear)
    'Linear'
    """
    return path_of(kind).partition(":")[2]


class MultiSource(Source):
    """Several teachers at once; a subclass joins their signals into one.

    Args:
        names: of the teachers in the session.
        context: of the run.
    """

    def __init__(self, names: Sequence[str], context: Context):
        self.names = tuple(names)
        self.lives = [ModelSource(name, context) for name in names]
        self.task: Task = context.task

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        if layers:
            raise KdError(
                f"can't learn from layer {layers[0]!r} of several teachers",
                f"to learn from the layers of one of them, add a technique with --teacher {self.names[0]} in a together: group",
            )
        for live in self.lives:
            live.open(device)

    def signal(self, batch: Batch) -> Signal:
        return self.joined([live.signal(batch) for live in self.lives], batch)

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        """Join the teachers' signals, given in the order of their names, into one."""
        raise NotImplementedError

    def settings(self) -> str:
        """What the joined signal depends on besides the teachers and the inputs."""
        return ""

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for live in self.lives:
                stack.callback(live.close)

    def identity(self) -> str:
        facts = [_class_name(type(self)), self.settings(), *(live.identity() for live in self.lives)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


class TeacherEnsemble(nn.Module):
    """Several teachers as one model, to be measured like any model."""

    def __init__(self, source: MultiSource):
        super().__init__()
        self.source = source

    @without_gradients
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = self.source.signal(Batch(args, kwargs)).dense
        return logits.softmax(-1) if getattr(self.source.task, "probabilities", False) else logits

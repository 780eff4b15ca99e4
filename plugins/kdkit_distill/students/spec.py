"""What `--student` accepts, and the student that it makes.

================  ====================================================================================================
`small`, `@slim`  a model of the session, as a copy
`layers=0,2,5`    a copy of the teacher that has only these of its repeated layers
`narrow=0.5`      the teacher with every inner width scaled
`mobilenet-v2`    a light net of the catalogue, with fresh weights; `mobilenet-v2=0.5` half as wide
================  ====================================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from kdkit import KdError, adopt_model, did_you_mean
from kdkit.guards import seeded
from kdkit.models import private_copy
from kdkit_distill.students.catalogue import CATALOGUE, of_catalogue
from kdkit_distill.students.fewer import with_layers
from kdkit_distill.students.narrower import narrowed

if TYPE_CHECKING:
    from kdkit import Context


@dataclass(frozen=True)
class Student:
    """A parsed `--student`.

    Attributes:
        kind: how it is made.
        name: of a model of the session, or of the catalogue.
        layers: the numbers of the layers to keep.
        width: factor of the widths.
    """

    kind: Literal["named", "layers", "narrow", "catalogue"]
    name: str = ""
    layers: tuple[int, ...] = ()
    width: float = 1.0

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that making it needs, besides torch."""
        if self.kind == "narrow":
            return ("torch_pruning",)
        return ("transformers",) if self.kind == "catalogue" and CATALOGUE[self.name].startswith("published:") else ()

    def make(self, model: nn.Module, teacher: str, context: Context) -> nn.Module:
        """Make the student, an independent model.

        Args:
            model: the current model; it is the teacher if the session has none.
            teacher: its name in the session.

        Raises:
            KdError: the session has no such model, or the teacher can't be made smaller in this way.
        """
        if self.kind == "named":
            return private_copy(adopt_model(context.named(self.name, "a model")))
        held = context.objects.get(teacher)
        # a teacher that is a function has no layers to copy
        source = held if isinstance(held, nn.Module) else model
        # the same seed gives the same student, independent of earlier random numbers
        with seeded(context.seed):
            if self.kind == "layers":
                return with_layers(source, self.layers, context.example)
            if self.kind == "narrow":
                return narrowed(source, self.width, context)
            return of_catalogue(self.name, self.width, source, context)


def read(spec: str, context: Context | None = None) -> Student:
    """Parse a `--student` specification.

    Args:
        context: a model of this name in its session comes first; without a context, any other word counts as such a name.

    Raises:
        KdError: it names no known student.

    >>> read("layers=0,2").layers, read("mobilenet-v2=0.5").width, read("small").kind
    ((0, 2), 0.5, 'named')
    """
    if context is not None and context.objects.get(spec) is not None:
        return Student("named", spec)
    kind, given, value = spec.partition("=")
    if kind == "layers" and given:
        return Student("layers", layers=_layers(spec, value))
    if kind == "narrow" and given:
        return Student("narrow", width=_width(spec, value, below_one=True))
    if kind in CATALOGUE:
        return Student("catalogue", kind, width=_width(spec, value) if given else 1.0)
    if given or context is not None:
        raise _unknown(spec, kind, context)
    return Student("named", spec)


def is_name(spec: str) -> bool:
    """Whether a specification can only mean a model of the session.

    >>> is_name("@slim"), is_name("small_net"), is_name("narrow"), is_name("mobilnet-v2")
    (True, True, False, False)
    """
    return spec.startswith("@") or ("=" not in spec and not did_you_mean(spec, [*CATALOGUE, "layers", "narrow"]))


def _layers(spec: str, value: str) -> tuple[int, ...]:
    numbers = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() for word in numbers):
        raise KdError(f"--student {spec}: layers are numbers from 0", "--student layers=0,2,5")
    return tuple(map(int, numbers))


def _width(spec: str, value: str, below_one: bool = False) -> float:
    try:
        width = float(value)
    except ValueError:
        width = math.nan
    if not 0 < width <= (1 if below_one else 4) or (below_one and width == 1):
        raise KdError(
            f"--student {spec}: the width is a number above 0" + (" and below 1" if below_one else ", 1 as published, at most 4"),
            f"--student {spec.split('=')[0]}=0.5",
        )
    return width


def _unknown(spec: str, kind: str, context: Context | None) -> KdError:
    held = [name for name, each in (context.objects.items() if context else ()) if isinstance(each, nn.Module)]
    return KdError(
        f"there is no student {spec!r}",
        did_you_mean(kind, [*CATALOGUE, "layers", "narrow", *held]),
        f"light nets: {', '.join(CATALOGUE)}; half as wide: {next(iter(CATALOGUE))}=0.5",
        "copies of the teacher: layers=0,2,5 keeps these layers, narrow=0.5 halves its widths",
        f"models of the session: {', '.join(held) or 'none'}; your own: --student {{net}}",
    )

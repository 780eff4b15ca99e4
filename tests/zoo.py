"""The zoo that ships with the kit, under the name by which the tests know it; two of its models are a user's own classes here."""

from torch import nn

from kdkit.testing import zoo
from kdkit.testing.zoo import *  # noqa: F403


class Mlp(zoo.Mlp):
    """Of a package that a saved folder may not name, as a user's own class is."""


class Cnn(zoo.Cnn):
    """The same with convolutions."""


def mlp(seed: int = 0) -> nn.Module:
    """An `Mlp`."""
    return zoo.seeded(Mlp, seed)


def cnn(seed: int = 0) -> nn.Module:
    """A `Cnn`."""
    return zoo.seeded(Cnn, seed)

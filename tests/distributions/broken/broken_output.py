from typing import ClassVar

from torch import nn

from kdkit import Stage, hookimpl


class Output(Stage):
    """It changes the shape of the output, and does not say so."""

    id: ClassVar = "prune.output"

    def apply(self, model, context):
        return nn.Sequential(model, nn.Linear(3, 2))


@hookimpl
def kdkit_stages():
    return [Output]

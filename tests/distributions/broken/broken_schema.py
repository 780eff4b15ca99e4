from typing import ClassVar

from kdkit import Stage, hookimpl, param


class Schema(Stage):
    """A parameter that no option can carry."""

    id: ClassVar = "prune.schema"
    table: dict = param({}, "a dictionary")

    def apply(self, model, context):
        return model


@hookimpl
def kdkit_stages():
    return [Schema]

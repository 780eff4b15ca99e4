from typing import ClassVar

from kdkit import Stage, hookimpl


class Type(Stage):
    """It returns the weights instead of a model."""

    id: ClassVar = "prune.wrong-type"

    def apply(self, model, context):
        return model.state_dict()


@hookimpl
def kdkit_stages():
    return [Type]

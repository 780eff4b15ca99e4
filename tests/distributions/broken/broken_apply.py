from typing import ClassVar

from kdkit import Stage, hookimpl


class Apply(Stage):
    """Its apply raises, having spoiled its copy."""

    id: ClassVar = "prune.raising-apply"

    def apply(self, model, context):
        for weight in model.parameters():
            weight.data.zero_()
        raise ZeroDivisionError("in apply")


@hookimpl
def kdkit_stages():
    return [Apply]

from typing import ClassVar

from kdkit import Stage, hookimpl


class Finetune(Stage):
    """A second technique by a name that is taken."""

    id: ClassVar = "tune.finetune"

    def apply(self, model, context):
        return model


@hookimpl
def kdkit_stages():
    return [Finetune]

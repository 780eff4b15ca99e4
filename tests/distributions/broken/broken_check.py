from typing import ClassVar

from kdkit import Stage, hookimpl


class Check(Stage):
    """Its check raises."""

    id: ClassVar = "prune.raising-check"

    def check(self, model, context):
        raise ZeroDivisionError("in check")

    def apply(self, model, context):
        return model


@hookimpl
def kdkit_stages():
    return [Check]

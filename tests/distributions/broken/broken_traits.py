from typing import ClassVar

from kdkit import Stage, Trait, hookimpl


class Traits(Stage):
    """It says that it packs the weights, and does not."""

    id: ClassVar = "quantize.lying"
    adds: ClassVar = {Trait.PACKED_WEIGHTS}
    removes: ClassVar = {Trait.FLOAT_WEIGHTS}

    def apply(self, model, context):
        for weight in model.parameters():
            weight.data.mul_(0.5)


@hookimpl
def kdkit_stages():
    return [Traits]

"""Training: one loop for all stages that train.

A `TrainStage` returns a `TrainPart` with its loss terms; `fit` trains a model for the parts of one or more stages.

| module | concern |
|---|---|
| `options` | the loop's options, shared by all stages |
| `loop_stage`, `stage`, `together` | a stage as the loop sees it; the base class of stages that train; the `together:` group |
| `fitting`, `preparation` | `fit`: student, prepare, loop, finish |
| `part` | a stage's contribution: loss terms, replaced batches, parameter groups, hooks |
| `loop`, `epochs`, `optimizer`, `learning_rate` | the loop; the order of batches; groups of weights; the schedule |
| `frozen_layers` | what a stage that trains some layers keeps as it is |
| `objective`, `gradient_balance` | the terms as one loss; the gradient norm of each term |
| `weight_choice` | weights that are chosen from gradients |
| `validation`, `loss_history`, `curve` | early stopping; the terms over the steps, and their chart |
| `training_state`, `checkpoint` | what a resumed training needs, and the files that hold it |
| `accelerator`, `precision` | device, precision and processes; which dtypes can be trained |
"""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "checkpoint": ["digest"],
        "curve": ["Curve"],
        "part": ["Pull", "Step", "Term", "TrainPart"],
        "stage": ["TrainStage"],
        "frozen_layers": ["FrozenLayers"],
        "fitting": ["fit"],
        "options": ["LoopOptions"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

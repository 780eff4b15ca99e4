"""Training: the one loop, and what a stage brings into it.

A stage that trains gives a `TrainPart`; `fit` runs one loop for the parts of one or more stages.
"""

from kdkit.training.loop import fit
from kdkit.training.part import Step, Term, TrainPart

__all__ = ["Step", "Term", "TrainPart", "fit"]

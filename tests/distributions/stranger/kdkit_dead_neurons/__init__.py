"""Remove hidden neurons that nothing listens to, as a kdkit plugin."""

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    from kdkit_dead_neurons.stage import DeadNeurons

    return [DeadNeurons]


@hookimpl
def kdkit_measures():
    from torch import nn

    from kdkit.measurement.measure import Measure

    return [Measure("linear layers", "", "lower", lambda subject: sum(isinstance(module, nn.Linear) for module in subject.model.modules()))]

"""Export forms: modules that are exported in another form than the one in which torch runs them, such as packed layers.

A module states its form in `kdkit_exported() -> nn.Module`. The form computes the same from the same inputs.
"""

from __future__ import annotations

from torch import nn


def has_export_forms(model: nn.Module) -> bool:
    """Whether a module of the model is exported in another form."""
    return any(hasattr(module, "kdkit_exported") for module in model.modules())


def in_export_forms(model: nn.Module) -> nn.Module:
    """The model, changed in place, with each module in the form in which it is exported; a shared module stays shared.

    >>> class Doubled(nn.Module):
    ...     def kdkit_exported(self): return nn.ReLU()
    >>> in_export_forms(nn.Sequential(Doubled(), nn.Tanh()))
    Sequential(
      (0): ReLU()
      (1): Tanh()
    )
    """
    made: dict[nn.Module, nn.Module] = {}

    def form(module: nn.Module) -> nn.Module:
        if module not in made:
            exported = getattr(module, "kdkit_exported", None)
            made[module] = exported().train(module.training) if exported else module
        return made[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = form(child)
    return form(model)

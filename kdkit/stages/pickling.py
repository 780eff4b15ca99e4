"""Pickling of what travels to another process, parametrized modules included, which torch refuses to pickle."""

from __future__ import annotations

import io
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def pickle_value(value: Any) -> bytes:
    """A value as bytes for `pickle.loads`, with functions and classes of `__main__` by value.

    >>> import pickle, torch
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> twin = pickle.loads(pickle_value(layer))
    >>> torch.equal(twin.weight, layer.weight), type(twin).__name__
    (True, 'ParametrizedLinear')

    Raises:
        Exception: whatever pickling it raises.
    """
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
                return _create, (type(obj).__bases__[0],), vars(obj), None, None, _restore_parametrized
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _create(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _restore_parametrized(module: nn.Module, state: dict[str, Any]) -> None:
    """Give a module its attributes and, as `torch.nn.utils.parametrize` does, a class that computes its parametrized tensors."""
    vars(module).update(state)
    parametrize._inject_new_class(module)
    for name in module.get_submodule("parametrizations")._modules:
        parametrize._inject_property(module, name)

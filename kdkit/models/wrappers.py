"""Wrappers: models inside other objects, and models that can't be changed, with what to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdkit.errors import KdError


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`; any other module itself.

    >>> net = nn.Linear(2, 2)
    >>> unwrap_model(nn.DataParallel(net)) is net
    True
    """
    while (name := _held_in(model)) is not None:
        model = getattr(model, name)
    return model


def unwrap_parts(model: nn.Module) -> nn.Module:
    """Replace the wrapped modules inside a model by what they wrap; the model is changed in place.

    >>> net = nn.Sequential(nn.DataParallel(nn.Linear(2, 2)))
    >>> [type(part).__name__ for part in unwrap_parts(net)]
    ['Linear']
    """
    for module in list(model.modules()):
        for name, part in module._modules.items():
            if part is not None and _held_in(part) is not None:
                module._modules[name] = unwrap_model(part)
    return model


def read_held_model(obj: Any) -> nn.Module | None:
    """The model of a trainer or a pipeline of transformers, a trainer of Lightning, or a fitted skorch net; None for all else.

    >>> read_held_model("a text")
    """
    attribute = next((_HOLDERS[place] for kind in type(obj).__mro__ for place in _HOLDERS if str(kind.__module__).startswith(place)), None)
    model = None if attribute is None else getattr(obj, attribute, None)
    return model if isinstance(model, nn.Module) and not isinstance(obj, nn.Module) else None


_HOLDERS = {
    "transformers.trainer": "model",
    "transformers.pipelines": "model",
    "lightning.pytorch.trainer": "lightning_module",
    "pytorch_lightning.trainer": "lightning_module",
    "skorch.": "module_",
}
"""Modules of classes that train or call a model, and the attribute that holds it."""


def _held_in(module: nn.Module) -> str | None:
    """The attribute of a wrapper that holds the model."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    compiled = type(module).__module__ == "torch._dynamo.eval_frame" and isinstance(getattr(module, "_orig_mod", None), nn.Module)
    return "_orig_mod" if compiled else None


def refuse_unusable(model: Any) -> None:
    """Refuse what looks like a model and can't be changed or measured.

    Raises:
        KdError: it is a scripted, exported or prepared model, or holds a model; the hints name what to give instead.

    >>> refuse_unusable(nn.Linear(2, 2))
    """
    again = "give the nn.Module that it was made of"
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise KdError("this is a scripted model (TorchScript), whose layers can't be changed", again, "as a teacher it can be used as it is")
    if isinstance(model, nn.Module) and (part := next((name for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)), "")):
        raise KdError(f"its part {part} is a scripted model (TorchScript), whose layers can't be changed", "put the nn.Module there that it was made of")
    if isinstance(model, torch.export.ExportedProgram) or _is_exported(model):
        raise KdError("this is an exported program (torch.export): a graph whose layers can't be changed", again)
    if isinstance(model, nn.Module) and (watcher := _observer_in(model)):
        raise KdError(
            f"this model is prepared for quantization with torch.ao: {watcher} changes with every batch, in eval mode too",
            "give the float model; %kd quantize quantizes it",
        )
    if isinstance(model, nn.Module) and _is_sharded(model):
        raise KdError("this model is sharded (FSDP): each process holds a part of its weights", "give the nn.Module before it was wrapped")


def describe_other(obj: Any) -> tuple[str, str]:
    """What an object is that is not a model, and what to give instead.

    >>> describe_other(nn.Linear)
    ('the class Linear is not a model', 'make an instance of it: Linear(...)')
    """
    if isinstance(obj, type):
        return f"the class {obj.__name__} is not a model", f"make an instance of it: {obj.__name__}(...)"
    if isinstance(obj, str | Path):
        return (
            f"the text {str(obj)!r:.60} is not a model",
            "%kd load FOLDER loads a folder that %kd save wrote; for other files, make the model in Python and load its weights",
        )
    if isinstance(obj, dict) and obj and all(isinstance(value, torch.Tensor) for value in obj.values()):
        return "these are the weights of a model, not a model", "make an instance of its class, and call its load_state_dict(weights)"
    if hasattr(obj, "initialize_module"):
        return f"{type(obj).__name__} is not fitted, so it has no model yet", "call its fit(X, y) or initialize() first"
    if isinstance(steps := getattr(obj, "steps", None), list) and steps:
        return (
            f"{type(obj).__name__} is not a model, but a chain of {len(steps)} steps",
            f"give the one that is a net, such as [{steps[-1][0]!r}], and data that went through the steps before it",
        )
    inner = next((name for name in ("model", "module", "net", "network") if isinstance(getattr(obj, name, None), nn.Module)), None)
    if inner is not None:
        return f"{type(obj).__name__} is not a model, but holds one", f"give its attribute .{inner}"
    if isinstance(obj, list | tuple) and any(isinstance(item, nn.Module) for item in obj):
        return f"a {type(obj).__name__} of modules is not a model", "give one of them, or nn.Sequential(*them)"
    if callable(obj):
        return f"{getattr(obj, '__name__', type(obj).__name__)} is a function, not a model: it has no layers and weights", "give the nn.Module that it calls"
    return f"{type(obj).__name__} is not a model", "pass a torch nn.Module; plugins can adopt other kinds with kdkit_adopt_model"


def _is_exported(model: Any) -> bool:
    """Whether a module is what `ExportedProgram.module()` returns; it refuses `eval()` and `train()`."""
    return isinstance(model, torch.fx.GraphModule) and hasattr(model, "validate_inputs")


def _observer_in(model: nn.Module) -> str:
    found = (module for module in model.modules() if any(kind.__module__ == "torch.ao.quantization.observer" for kind in type(module).__mro__))
    return next((type(module).__name__ for module in found), "")


def _is_sharded(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("torch.distributed.fsdp") for module in model.modules() for kind in type(module).__mro__)

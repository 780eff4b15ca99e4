"""The skeleton: a new instance of the model's class, to which the saved structure is applied."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.errors import KdError
from kdkit.guards import explain_error, random_state_kept
from kdkit.storage.environment import installed_version
from kdkit.storage.layout import AGAIN, HEAD
from kdkit.storage.rebuild import empty_copy
from kdkit.storage.size_limit import Size, check_config, largest_axis, limit_size
from kdkit.storage.trusted_classes import Classes, class_at, path_of, top_package, unparametrized


def choose_base(model: nn.Module, original: nn.Module | None) -> nn.Module:
    """The model whose class makes the skeleton: the original, or `model` if its class is another one and needs no original."""
    if original is None or unparametrized(type(original)) is unparametrized(type(model)):
        return original or model
    known = Classes({type(module) for module in original.modules()}).find(path_of(type(model)))
    return original if known and recipe(model)["kind"] == "user" else model


def recipe(model: nn.Module) -> dict[str, Any]:
    """How to create a new instance of a model's class: from an HF config, without arguments, or by the user.

    >>> recipe(nn.Sequential(nn.ReLU()))
    {'kind': 'class', 'class': 'torch.nn.modules.container:Sequential'}
    """
    kind = unparametrized(type(model))
    config: Any = getattr(model, "config", None)
    if kind.__module__.startswith("transformers.") and hasattr(config, "to_json_string") and (data := _config_data(model)) is not None:
        return {"kind": "transformers", "class": path_of(kind), "config_class": path_of(type(config)), "config": data}
    alone = class_at(path_of(kind)) is kind and _needs_nothing(kind)
    return {"kind": "class" if alone else "user", "class": path_of(kind)}


def _config_data(model: Any) -> dict[str, Any] | None:
    """The config of a transformers model as plain data; None if a model could not be created from it when it is loaded."""
    try:
        data = json.loads(model.config.to_json_string(use_diff=False))
        check_config(data, largest_axis(model.parameters()), "config")
        type(model.config).from_dict(_decoded(data))
    except Exception:  # whatever the config's class raises;  # it holds other than plain data, or numbers that `check_config` refuses at load
        return None
    return data


def _needs_nothing(kind: type) -> bool:
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(parameter.default is not parameter.empty or parameter.kind in free for parameter in inspect.signature(kind).parameters.values())


def load_own(recipe: Mapping[str, Any], folder: Path) -> nn.Module:
    """A model that wrote its own files.

    Raises:
        KdError: its class is not installed, or can't read the files.
    """
    path = recipe["class"]
    kind: Any = Classes().find(path)
    if kind is None or not issubclass(kind, nn.Module) or not hasattr(kind, "kdkit_load"):
        raise KdError(f"the saved model is a {path}, which is not installed here", f"install the package that has it: {top_package(path)}")
    try:
        model = kind.kdkit_load(folder, recipe["facts"])
    except KdError:
        raise
    except Exception as error:  # a plugin's class may raise anything for files that do not fit
        raise KdError(f"{path} can't read {folder}: {explain_error(error, kind.__module__)}", AGAIN) from error
    if not isinstance(model, nn.Module):
        raise KdError(f"{path} made a {type(model).__name__} from {folder}, not a model", "its author must return a model from kdkit_load")
    return model


def make_skeleton(recipe: Mapping[str, Any], given: Any, folder: Path, size: Size) -> nn.Module:
    """A new instance to rebuild the structure on; a model that the user passed is not changed.

    Args:
        size: of the saved model; an instance that kdkit creates from what the folder names may not be much larger.
    """
    if isinstance(given, nn.Module):
        return empty_copy(given)
    with random_state_kept():
        try:
            if given is None:
                with limit_size(size, f"the skeleton that {folder / HEAD} names"):
                    made = _maker(recipe, folder, size)()
            else:
                made = given() if callable(given) else given
        except KdError:
            raise
        except Exception as error:
            raise KdError(
                f"no fresh instance of {recipe['class']}: {explain_error(error, recipe['class'].partition(':')[0])}", "pass one as skeleton: load(folder, skeleton=net)"
            ) from error
    if not isinstance(made, nn.Module):
        raise KdError(f"the skeleton is a {type(made).__name__}, not a model", "pass an instance of the model's class, the class, or a function that returns one")
    return made


def _decoded(value: Any) -> Any:
    """A config's plain data with the numbers that JSON lacks, which transformers writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        return float(value["__float__"]) if value.keys() == {"__float__"} else {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _maker(recipe: Mapping[str, Any], folder: Path, size: Size) -> Callable[[], Any]:
    path = recipe["class"]
    if recipe["kind"] == "transformers":
        model, config = _transformers(path, "PreTrainedModel"), _transformers(recipe["config_class"], "PreTrainedConfig")
        check_config(recipe["config"], size.largest, f"{folder / HEAD}: skeleton.config")
        facts = {key: _decoded(value) for key, value in recipe["config"].items() if key != "auto_map"}  # which names code of a hub
        return lambda: model(config.from_dict(facts))
    kind = class_at(path) if recipe["kind"] == "class" else None
    if kind is None or not issubclass(kind, nn.Module):
        name = path.rpartition(":")[2]
        raise KdError(
            f"{folder} holds a {path}, which kdkit can't create by itself", f"pass a new one as skeleton: {name}(...)", "the weights it starts with don't matter"
        )
    return kind


def _transformers(path: str, base: str) -> Any:
    """A class of transformers that has this base class."""
    import transformers

    kind = class_at(path) if top_package(path) == "transformers" else None
    if kind is None or not issubclass(kind, getattr(transformers, base)):
        raise KdError(f"there is no {base} {path} in this transformers ({installed_version('transformers')})", "install the transformers it was saved with")
    return kind

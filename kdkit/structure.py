"""A model's structure as data: described, compared, and rebuilt on a fresh instance of its class.

*Restore is not replay.* A pruned, factorised or adapted model is its class's fresh instance (the skeleton), a manifest (JSON) and its
tensors; none of the data, the plugin or the algorithm that made it is needed. Every module is its class, its plain attributes, its children and
the shapes of its tensors; a module that the skeleton lacks is made from these without calling its constructor.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdkit.errors import KdError
from kdkit.values import ABSENT, Classes, Decoder, Encoder, dtype_named, path_of

Manifest = dict[str, Any]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")
INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_output_capturing_hooks_installed"}
"""Attributes of every module that the manifest tells in its own way, or that belong to a running process."""
SHOWN = 5


def describe(model: nn.Module) -> Manifest:
    """A model's structure: `{"modules": {name: entry}}`, plain JSON.

    An entry holds the class, the plain attributes, the order of the children, shape, dtype, flags and ties of parameters and buffers, hooks
    that are plain objects, and `training`.

    >>> entry = describe(nn.Sequential(nn.Linear(3, 2)))["modules"]["0"]
    >>> entry["attributes"], entry["parameters"]["bias"]
    ({'in_features': 3, 'out_features': 2}, {'shape': [2], 'dtype': 'float32', 'grad': True})
    """
    return _Survey(model).manifest


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor a model holds, once, by the first name it has: parameters, buffers (also non-persistent ones), tensors in attributes.

    >>> list(tensors(nn.Linear(3, 2)))
    ['weight', 'bias']
    """
    return _Survey(model).tensors


def difference(before: Manifest, after: Manifest) -> Manifest:
    """What `after` changed: its entries that are new or other than in `before`, and the names of those that are gone.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> before = describe(net)
    >>> net[1].inplace = True
    >>> list(difference(before, describe(net))["modules"])
    ['1']
    """
    old, new = before["modules"], after["modules"]
    return {"modules": {name: entry for name, entry in new.items() if old.get(name) != entry}, "removed": [name for name in old if name not in new]}


def rebuild(skeleton: nn.Module, manifest: Manifest) -> nn.Module:
    """Change `skeleton` into the structure of `manifest`; tensors that changed shape are zero until `fill`.

    Modules are kept where name and class agree; others are made from torch, transformers, peft, kdkit, installed plugins, or classes that the
    skeleton holds itself. The skeleton is used up: give an instance of its own.

    Returns:
        The skeleton, or another root where the manifest's root has another class.

    Raises:
        KdError: a class is not to be found, or a module held something that is not data; the first few are named.
    """
    return _Rebuild(skeleton, manifest).model()


def fill(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Copy values, named as `tensors` names them, into a rebuilt model.

    Raises:
        KdError: names, shapes or dtypes differ; the first few are named.
    """
    places = tensors(model)
    problems = [f"{name} is missing" for name in places if name not in values]
    problems += [f"{name} belongs to no module" for name in values if name not in places]
    for name in places.keys() & values.keys():
        ours, theirs = places[name], values[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            problems.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, its module wants {ours.dtype} {tuple(ours.shape)}")
    _refuse(problems, "the weights do not fit the structure", "weights and structure are from different saves: save the model again")
    with torch.no_grad():
        for name, tensor in places.items():
            tensor.data.copy_(values[name])
    return model


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model whose tensors hold nothing yet, on the CPU: their memory is not touched until it is written.

    Raises:
        KdError: the model can't be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _Survey(model).tensors.values():
        empty = torch.empty_like(tensor.detach(), device="cpu")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise KdError(f"{type(model).__name__} can't be copied: {error}", "make a new instance of it, and give that") from error


def _refuse(problems: list[str], what: str, *hints: str) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise KdError(f"{what}: {'; '.join([*problems[:SHOWN], *more])}", *hints)


class _Survey:
    """One walk over a model: its manifest, and its tensors by the names the manifest gives them."""

    def __init__(self, model: nn.Module):
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._names: dict[int, str] = {}
        self._storages: dict[tuple[Any, ...], str] = {}
        self.tensors: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        held = {name: self._held(name, module) for name, module in modules.items()}
        self._encoder = Encoder(self._loose, self._modules)
        self.manifest: Manifest = {"modules": {name: self._entry(name, module) | held[name] for name, module in modules.items()}}

    def _entry(self, name: str, module: nn.Module) -> dict[str, Any]:
        places = {key: self._modules[id(child)] for key, child in module._modules.items() if child is not None}
        entry: dict[str, Any] = {"class": path_of(type(module)), "training": module.training, "children": list(module._modules)}
        entry["attributes"] = {key: self._encoder.encode(value, f"{name}:{key}") for key, value in vars(module).items() if key not in INTERNAL}
        aliases = {key: places.get(key) for key in module._modules if places.get(key) != join(name, key)}
        hooks = {kind: codes for kind in HOOKS if (codes := self._hooks(name, kind, getattr(module, kind).values()))}
        return entry | ({"aliases": aliases} if aliases else {}) | ({"hooks": hooks} if hooks else {})

    def _hooks(self, name: str, kind: str, hooks: Iterable[Any]) -> list[Any]:
        own = [hook for hook in hooks if not _is_transformers(hook)]
        return [self._encoder.encode(hook, f"{name}:{kind}.{index}") for index, hook in enumerate(own)]

    def _held(self, name: str, module: nn.Module) -> dict[str, Any]:
        parameters = {key: self._spec(tensor, join(name, key)) for key, tensor in module._parameters.items()}
        buffers = {key: self._spec(tensor, join(name, key)) for key, tensor in module._buffers.items()}
        for key in module._non_persistent_buffers_set & buffers.keys():
            buffers[key] = (buffers[key] or {}) | {"persistent": False}
        return {"parameters": parameters, "buffers": buffers}

    def _loose(self, tensor: Tensor, place: str) -> dict[str, Any]:
        """The code of a tensor in an attribute: a name, and its shape where no module has registered it."""
        if id(tensor) in self._names:
            return {"$": "tensor", "name": self._names[id(tensor)]}
        return {"$": "tensor", "name": place, "spec": self._spec(tensor, place)}

    def _spec(self, tensor: Tensor | None, name: str) -> dict[str, Any] | None:
        if tensor is None:
            return None
        spec = _shape_of(tensor)
        if id(tensor) in self._names:
            return spec | {"same": self._names[id(tensor)]}
        self._names[id(tensor)] = name
        key = _memory_of(tensor)
        if key in self._storages:
            return spec | {"shares": self._storages[key]}
        if key:
            self._storages[key] = name
        self.tensors[name] = tensor
        return spec


def join(name: str, key: str) -> str:
    """A child's full name.

    >>> join("", "fc"), join("layer.0", "fc")
    ('fc', 'layer.0.fc')
    """
    return f"{name}.{key}" if name else key


def _shape_of(tensor: Tensor) -> dict[str, Any]:
    spec: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_leaf and tensor.requires_grad:
        spec["grad"] = True
    if not is_plain(tensor):
        return spec | {"class": path_of(type(tensor))}
    if not tensor.is_contiguous() and not _overlaps(tensor):
        spec["stride"] = list(tensor.stride())  # kernels add in another order for another layout: outputs would differ in their last bits
    return spec


def _overlaps(tensor: Tensor) -> bool:
    """Whether two of its elements may be one, as in an expanded tensor."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in strided memory: no subclass, not sparse, not quantized, not lazy."""
    return type(tensor) in (Tensor, nn.Parameter) and type(tensor.data) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def _memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have alike that are one memory; empty for tensors that have none of their own."""
    if not is_plain(tensor) or not tensor.numel():
        return ()
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


class _Rebuild:
    """The steps of `rebuild`: modules, their children, their tensors, their attributes."""

    def __init__(self, skeleton: nn.Module, manifest: Manifest):
        self._entries: dict[str, Any] = manifest["modules"]
        self._classes = Classes({type(module) for module in skeleton.modules()})
        self._skeleton = self._grafted(skeleton)
        self._kind = path_of(type(skeleton))
        self._modules: dict[str, nn.Module] = {}
        self._tensors: dict[str, Tensor] = {}
        self._kept: set[int] = set()
        self._decoder = Decoder(self._classes, self._loose, self._modules)

    def model(self) -> nn.Module:
        self._make_modules()
        for name, entry in self._entries.items():
            self._connect(name, entry)
        for name, entry in self._entries.items():
            self._hold(name, entry)
        for name, entry in self._entries.items():
            self._set(name, entry)
        _refuse(
            self._decoder.problems,
            f"the skeleton {self._kind} lacks what is not data",
            "give a skeleton that has it, built as the saved model was",
            "or keep lambdas, locks and open files out of the module's attributes",
        )
        for name, entry in self._entries.items():
            self._hook(name, entry)
        if self._decoder.problems:
            warnings.warn(f"saved with hooks that the skeleton lacks, and restored without them: {'; '.join(self._decoder.problems[:SHOWN])}", stacklevel=4)
        return self._modules[""]

    def _grafted(self, skeleton: nn.Module) -> dict[str, nn.Module]:
        """The skeleton's modules by the names they have in the manifest, whose root may be a wrapper around the skeleton's."""
        root = type(skeleton)
        home = next((name for name, entry in self._entries.items() if self._classes.find(entry["class"]) is root), "")
        return {f"{home}.{name}".strip("."): module for name, module in skeleton.named_modules()}

    def _make_modules(self) -> None:
        problems = []
        for name, entry in self._entries.items():
            kind = self._classes.find(entry["class"])
            if kind is None or not issubclass(kind, nn.Module):
                problems.append(f"{name or 'the model'} is a {entry['class']}")
            elif type(self._skeleton.get(name)) is kind:
                self._modules[name] = self._skeleton[name]
            else:
                self._modules[name] = _shell(kind)
        _refuse(
            problems,
            f"the saved model does not fit the skeleton {self._kind}",
            "give an instance of the class that was saved",
            "or install the package (a kdkit plugin, say) that has the class; a model's own classes must be in the skeleton",
        )

    def _connect(self, name: str, entry: Mapping[str, Any]) -> None:
        aliases = entry.get("aliases", {})
        children = {key: aliases.get(key, ABSENT) for key in entry["children"]}
        places = {key: join(name, key) if place is ABSENT else place for key, place in children.items()}
        module = self._modules[name]
        module._modules = {key: None if place is None else self._modules[place] for key, place in places.items()}
        module.training = entry["training"]

    def _hold(self, name: str, entry: Mapping[str, Any]) -> None:
        module = self._modules[name]
        parameters = {key: self._held(module._parameters.get(key), spec, join(name, key), nn.Parameter) for key, spec in entry["parameters"].items()}
        buffers = {key: self._held(module._buffers.get(key), spec, join(name, key), Tensor) for key, spec in entry["buffers"].items()}
        module._parameters, module._buffers = parameters, buffers
        module._non_persistent_buffers_set = {key for key, spec in entry["buffers"].items() if spec and not spec.get("persistent", True)}
        for key in (*parameters, *buffers, *module._modules):
            vars(module).pop(key, None)

    def _held(self, existing: Tensor | None, spec: dict[str, Any] | None, name: str, kind: type) -> Any:
        """The tensor of a spec: the skeleton's own where it fits, so that whoever else refers to it still does."""
        if spec is None or "shape" not in spec:
            return None
        if "same" in spec:
            self._tensors[name] = self._tensors[spec["same"]]
            return self._tensors[name]
        if existing is None or id(existing) in self._kept or not isinstance(existing, kind) or not is_plain(existing):
            existing = kind(torch.empty(0)) if kind is Tensor else kind(torch.empty(0), requires_grad=False)
        if "shares" in spec:
            existing.data = self._tensors[spec["shares"]].data
        elif _shape_of(existing.detach()) != {key: spec[key] for key in ("shape", "dtype", "stride") if key in spec} or existing.is_meta:
            existing.data = _zeros(spec)
        existing.grad = None
        existing.requires_grad_(spec.get("grad", False))
        self._kept.add(id(existing))
        self._tensors[name] = existing
        return existing

    def _loose(self, code: Mapping[str, Any]) -> Tensor:
        name = code["name"]
        if name not in self._tensors:
            self._held(None, code["spec"], name, Tensor)
        return self._tensors[name]

    def _set(self, name: str, entry: Mapping[str, Any]) -> None:
        module = self._modules[name]
        for key, code in entry["attributes"].items():
            vars(module)[key] = self._decoder.decode(code, vars(module).get(key, ABSENT), f"{name}:{key}")

    def _hook(self, name: str, entry: Mapping[str, Any]) -> None:
        """Put in hooks that are plain objects; one that is a function can only be the skeleton's own."""
        for kind in HOOKS:
            hooks = getattr(self._modules[name], kind)
            own = {key: hook for key, hook in hooks.items() if not _is_transformers(hook)}
            codes = entry.get("hooks", {}).get(kind, [])
            theirs = [*own.values(), *[ABSENT] * len(codes)]
            values = [self._decoder.decode(code, theirs[index], f"{name}:{kind}.{index}") for index, code in enumerate(codes)]
            for key in [key for key, hook in own.items() if not any(hook is value for value in values)]:
                del hooks[key]
            for value in values:
                if value is not None and not any(value is hook for hook in hooks.values()):
                    hooks[RemovableHandle(hooks).id] = value


def _is_transformers(hook: Any) -> bool:
    """Whether it is one of the hooks that transformers puts in by itself at a call, and would put in again."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _shell(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _zeros(spec: Mapping[str, Any]) -> Tensor:
    if "class" in spec:
        raise KdError(f"a tensor of class {spec['class']} can't be made from plain data", "save the model before its weights are packed, or export it to ONNX")
    dtype = dtype_named(spec["dtype"])
    if "stride" in spec:
        return torch.empty_strided(spec["shape"], spec["stride"], dtype=dtype).zero_()
    return torch.zeros(spec["shape"], dtype=dtype)


WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff")
"""What HF configs call the width of the feed-forward layers."""
WIDENING = ("intermediate.dense", "mlp.up_proj", "mlp.c_fc", "mlp.fc1", "fc1", "ffn.lin1", "DenseReluDense.wi", "DenseReluDense.wi_0")
QUERIES, KEYS = ("q_proj", "query", "q_lin", "q"), ("k_proj", "key", "k_lin", "k")


def sync_config(model: nn.Module) -> dict[str, Any]:
    """Write the sizes of a uniformly pruned transformers model back to its config, so that plain `from_pretrained` builds it.

    The config is changed only if a fresh model of the new config has this one's structure: the same tensors and the same attributes.
    The layers that are left are then numbered as the fresh model's, since a cache made from the new config counts them so.

    Returns:
        The fields that changed, by the config's names; empty where there is nothing to change or the sizes differ between layers.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    changes = {key: value for key, value in _sizes(model).items() if hasattr(config, key) and getattr(config, key) != value}
    fresh = _fresh(model, config, changes) if changes else None
    if fresh is None:
        return {}
    for key, value in changes.items():
        setattr(config, key, value)
    for module, twin in zip(model.modules(), fresh.modules(), strict=True):
        if hasattr(twin, "layer_idx"):
            module.layer_idx = twin.layer_idx
    return changes


def fits_config(model: Any) -> bool:
    """Whether a fresh model of a transformers model's own config has the same tensors, so that `from_pretrained` can fill it."""
    make: Any = type(model)
    with torch.device("meta"):
        fresh = make(copy.deepcopy(model.config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()} == {name: tensor.shape for name, tensor in fresh.state_dict().items()}


def _fresh(model: nn.Module, config: Any, changes: Mapping[str, Any]) -> nn.Module | None:
    """A model of the changed config, without data; None where it would not be like this one."""
    trial = copy.deepcopy(config)
    make: Any = type(model)
    try:
        for key, value in changes.items():
            setattr(trial, key, value)
        with torch.device("meta"):
            fresh = make(trial)
    except Exception:  # whatever a config of that family says to sizes it can't express
        return None
    return fresh if _outline(describe(model)) == _outline(describe(fresh)) else None


def _outline(manifest: Manifest) -> dict[str, Any]:
    """What decides a model's outputs, besides the values of its weights."""
    apart = {"layer_idx", "name_or_path"}
    outline: dict[str, Any] = {}
    for name, entry in manifest["modules"].items():
        attributes = {key: value for key, value in entry["attributes"].items() if not key.startswith("_") and key not in apart and not isinstance(value, dict)}
        shapes = {key: spec and spec["shape"] for key, spec in (entry["parameters"] | entry["buffers"]).items()}
        outline[name] = (entry["class"], attributes, shapes)
    return outline


def _sizes(model: Any) -> dict[str, Any]:
    """Sizes in a config's words, as far as they are the same in every layer."""
    modules = dict(model.named_modules())
    stacks = [module for name, module in modules.items() if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in name.split("."))]
    attentions = [sizes for module in modules.values() if (sizes := _heads(module))]
    found: dict[str, set[int]] = {"hidden_size": {model.get_input_embeddings().weight.shape[1]}, "num_hidden_layers": {len(stack) for stack in stacks}}
    widths = {_outputs(module) for name, module in modules.items() if name.endswith(WIDENING)}
    found |= dict.fromkeys(WIDTHS, widths)
    found |= {key: {each[key] for each in attentions if key in each} for key in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    return {key: min(values) for key, values in found.items() if len(values) == 1}


def _heads(module: nn.Module) -> dict[str, int]:
    """Heads of an attention layer, told by its projections and the size of one head; empty for other modules."""
    size = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    children = module._modules
    fused = children.get("c_attn")
    query = next((children[key] for key in QUERIES if key in children), None)
    key = next((children[key] for key in KEYS if key in children), None)
    if not isinstance(size, int) or (fused is None and (query is None or key is None)):
        return {}
    if fused is not None:
        return {"num_attention_heads": _outputs(fused) // (3 * size)}
    return {"num_attention_heads": _outputs(query) // size, "num_key_value_heads": _outputs(key) // size, "head_dim": size}


def _outputs(layer: Any) -> int:
    """Outputs of a linear layer, of transformers' Conv1D and of a chain of linear layers too."""
    if isinstance(layer, nn.Sequential):
        return _outputs(layer[-1])
    return layer.weight.shape[1] if hasattr(layer, "nf") else layer.weight.shape[0]

"""Rebuild a model from a skeleton and its structure manifest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from kdkit.errors import KdError, brief
from kdkit.guards import explain_error
from kdkit.models.packed_tensors import as_parameter, flatten, map_parts, packed_parts, unflatten
from kdkit.parameters.schema import field_name
from kdkit.storage.json_values import MISSING, Decoder, dtype_named
from kdkit.storage.layout import AGAIN
from kdkit.storage.manifest import check_manifest
from kdkit.storage.structure import HOOKS, SHOWN, Manifest, ModelScan, is_library_hook, is_plain, join, raise_if_any, tensor_spec, tensors
from kdkit.storage.trusted_classes import Classes, path_of, top_package, unparametrized
from kdkit.storage.value_kinds import check_field, is_inert


def rebuild(skeleton: nn.Module, manifest: Manifest, place: str = "the manifest") -> nn.Module:
    """Change `skeleton` into the structure of `manifest`; tensors that changed shape are zero until `load_tensors` sets them.

    Modules with the same name and class are kept. Others are created from classes of trusted packages, of installed plugins, or of the
    skeleton itself. The skeleton is changed in place, so pass an instance that nothing else uses. What the manifest says of sizes is taken
    as it is: `check_weights` checks it against the tensors that there are.

    Args:
        place: begins the messages.

    Returns:
        The skeleton, or a new root module if the manifest's root has another class.

    Raises:
        KdError: a field of the manifest does not fit, a class is not found or may not be made, a value that is not data is missing in the
            skeleton, or a name hides a method; the message names it.
    """
    return _Rebuild(skeleton, manifest, place).model()


def load_tensors(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Copy values, named as `tensors` names them, into a rebuilt model.

    Raises:
        KdError: names, shapes or dtypes differ; the message names the first few.
    """
    places = tensors(model)
    problems = [f"{name} is missing" for name in places if name not in values]
    problems += [f"{name} belongs to no module" for name in values if name not in places]
    for name in places.keys() & values.keys():
        ours, theirs = places[name], values[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            problems.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, its module expects {ours.dtype} {tuple(ours.shape)}")
    raise_if_any(problems, "the weights do not fit the structure", "weights and structure are from different saves: save the model again")
    with torch.no_grad():
        for name, tensor in places.items():
            tensor.data.copy_(values[name])
    return model


def empty_copy(model: nn.Module) -> nn.Module:
    """A copy of a model on the CPU with uninitialised tensors, whose memory is not used until it is written.

    Raises:
        KdError: the model can't be copied.
    """
    memo: dict[int, Any] = {}
    scan = ModelScan(model)

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in memo:
            plain = torch.empty_like(tensor.detach(), device="cpu")
            memo[id(tensor)] = nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain
        return memo[id(tensor)]

    try:
        for tensor in (*scan.tensors.values(), *scan.packed.values()):
            memo[id(tensor)] = map_parts(tensor, empty)
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise KdError(f"{type(model).__name__} can't be copied: {explain_error(error, type(model).__module__)}", "create a new instance and pass that") from error


class _Rebuild:
    """The steps of `rebuild`: modules, their children, their tensors, their attributes."""

    def __init__(self, skeleton: nn.Module, manifest: Manifest, place: str):
        self._entries: dict[str, Any] = check_manifest(manifest, place)["modules"]
        self._place = place
        self._classes = Classes(_classes_in(skeleton))
        self._skeleton = self._match_skeleton(skeleton)
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
            self._parametrize(name, entry)
        for name, entry in self._entries.items():
            self._set(name, entry)
        raise_if_any(
            self._decoder.problems,
            f"the skeleton {self._kind} lacks values that can't be restored from data",
            "pass a skeleton that has it, built like the saved model",
            "or remove lambdas, locks and open files from the module's attributes",
        )
        for name, entry in self._entries.items():
            self._hook(name, entry)
        if self._decoder.unchecked:
            warnings.warn(
                f"taken from the skeleton without a comparison, as an earlier kdkit saved the model: {'; '.join(self._decoder.unchecked[:SHOWN])}", stacklevel=4
            )
        if self._decoder.problems:
            warnings.warn(f"saved with hooks that the skeleton lacks, and restored without them: {'; '.join(self._decoder.problems[:SHOWN])}", stacklevel=4)
        return self._modules[""]

    def _match_skeleton(self, skeleton: nn.Module) -> dict[str, nn.Module]:
        """The skeleton's modules by their names in the manifest, whose root may be a wrapper around the skeleton."""
        root = unparametrized(type(skeleton))
        home = next((name for name, entry in self._entries.items() if self._classes.find(entry["class"]) is root), "")
        return {f"{home}.{name}".strip("."): module for name, module in skeleton.named_modules()}

    def _make_modules(self) -> None:
        problems = []
        for name, entry in self._entries.items():
            kind = self._classes.find(entry["class"])
            if kind is None or not issubclass(kind, nn.Module) or not is_inert(kind):
                problems.append(f"{name or 'the model'} is a {entry['class']}")
            elif unparametrized(type(self._skeleton.get(name))) is kind:
                self._modules[name] = self._skeleton[name]
                self._modules[name].__class__ = kind
            else:
                self._modules[name] = _bare_module(kind)
        raise_if_any(
            problems,
            f"the saved model does not fit the skeleton {self._kind}",
            "pass an instance of the class that was saved",
            "or install the package that has the class, such as a kdkit plugin; the skeleton must contain the classes of the user's own code",
        )

    def _connect(self, name: str, entry: Mapping[str, Any]) -> None:
        aliases = entry.get("aliases", {})
        children = {key: aliases.get(key, MISSING) for key in entry["children"]}
        places = {key: join(name, key) if place is MISSING else place for key, place in children.items()}
        module = self._modules[name]
        for key in children.keys() - module._modules.keys():
            check_field(type(module), key, None, MISSING, self._at(name))
        module._modules = {key: None if place is None else self._modules[place] for key, place in places.items()}
        module.training = entry["training"]

    def _hold(self, name: str, entry: Mapping[str, Any]) -> None:
        module = self._modules[name]
        parameters = {key: self._held(module._parameters.get(key), spec, join(name, key), nn.Parameter) for key, spec in entry["parameters"].items()}
        buffers = {key: self._held(module._buffers.get(key), spec, join(name, key), Tensor) for key, spec in entry["buffers"].items()}
        for key in (parameters.keys() | buffers.keys()) - (module._parameters.keys() | module._buffers.keys()):
            check_field(type(module), key, None, MISSING, self._at(name))
        module._parameters, module._buffers = parameters, buffers
        module._non_persistent_buffers_set = {key for key, spec in entry["buffers"].items() if spec and not spec.get("persistent", True)}
        for key in (*parameters, *buffers, *module._modules):
            vars(module).pop(key, None)

    def _held(self, existing: Tensor | None, spec: dict[str, Any] | None, name: str, kind: type) -> Any:
        """The tensor of a spec: the skeleton's tensor if it fits, so that other references to it stay valid."""
        if spec is None or "shape" not in spec:
            return None
        if "same" in spec:
            self._tensors[name] = self._earlier(spec["same"], spec, name, kind)
            return self._tensors[name]
        if "inner" in spec:
            self._tensors[name] = self._packed(spec, name, kind)
            return self._tensors[name]
        if existing is None or id(existing) in self._kept or not isinstance(existing, kind) or not is_plain(existing):
            existing = kind(torch.empty(0)) if kind is Tensor else kind(torch.empty(0), requires_grad=False)
        if "shares" in spec:
            existing.data = self._earlier(spec["shares"], spec, name, Tensor).data
        elif tensor_spec(existing.detach()) != {key: spec[key] for key in ("shape", "dtype", "stride") if key in spec} or existing.is_meta:
            existing.data = _zeros(spec)
        existing.grad = None
        existing.requires_grad_(spec.get("grad", False))
        self._kept.add(id(existing))
        self._tensors[name] = existing
        return existing

    def _earlier(self, other: str, spec: Mapping[str, Any], name: str, kind: type) -> Tensor:
        found = self._tensors.get(other)
        if found is None or not isinstance(found, kind) or (list(found.shape), found.dtype) != (spec["shape"], dtype_named(spec["dtype"])):
            raise KdError(f"{self._at(name)} is the same as {brief(other)}, which is no such tensor before it", AGAIN)
        return found

    def _at(self, name: str) -> str:
        return f"{self._place}: {field_name([name or 'the model'])}"

    def _packed(self, spec: dict[str, Any], name: str, kind: type) -> Tensor:
        """Build a packed tensor from its parts.

        Raises:
            KdError: its class is not found, or builds a different tensor from the parts.
        """
        made_of = self._classes.find(spec["class"])
        if made_of is None or not issubclass(made_of, Tensor) or not (hasattr(made_of, "__tensor_unflatten__") or issubclass(made_of, nn.Parameter)):
            raise KdError(
                f"{name} is a {spec['class']}, which is not installed here", f"install {top_package(spec['class'])}, as a kdkit plugin if it is your own package"
            )
        parts = {key: self._held(None, part, f"{name}:{key}", Tensor) for key, part in spec["inner"].items()}
        context = self._decoder.decode(spec["context"], MISSING, f"{name}:context")
        try:
            tensor = unflatten(made_of, parts, context, torch.Size(spec["shape"]), tuple(spec["stride"]))
            tensor = as_parameter(tensor, spec.get("grad", False)) if kind is nn.Parameter else tensor
            found = (type(tensor), list(tensor.shape), tensor.dtype, flatten(tensor)[0].keys())
            fits = found == (made_of, spec["shape"], dtype_named(spec["dtype"]), parts.keys())
        except Exception as error:  # a class may raise anything for parts that do not fit
            raise KdError(f"{name}: {spec['class']} can't be built from the saved parts: {explain_error(error)}", AGAIN) from error
        if not fits:
            raise KdError(f"{name}: {spec['class']} builds a different tensor from the saved parts: {type(tensor).__name__} {tuple(tensor.shape)}", AGAIN)
        return tensor

    def _parametrize(self, name: str, entry: Mapping[str, Any]) -> None:
        """Let a module compute tensors from its parametrizations, as `torch.nn.utils.parametrize` does."""
        module = self._modules[name]
        names = entry.get("parametrized", [])
        if not names:
            return
        lists: Any = module._modules.get("parametrizations")
        lacking = [key for key in names if not isinstance(lists, nn.ModuleDict) or key not in lists or not isinstance(lists[key], parametrize.ParametrizationList)]
        if lacking:
            raise KdError(f"{self._at(name)} can't be parametrized as it was saved: {brief(lacking)} have no parametrizations", AGAIN)
        try:
            parametrize._inject_new_class(module)
            for key in names:
                parametrize._inject_property(module, key)
        except (AssertionError, KeyError, TypeError) as error:
            raise KdError(f"{self._at(name)} can't be parametrized as it was saved: {explain_error(error)}", AGAIN) from error

    def _loose(self, name: str, spec: dict[str, Any] | None, place: str) -> Tensor:
        if name not in self._tensors and spec is not None:
            self._held(None, spec, name, Tensor)
        if name not in self._tensors:
            raise KdError(f"{self._at(place)} refers to {brief(name)}, which is no tensor of the model", AGAIN)
        return self._tensors[name]

    def _set(self, name: str, entry: Mapping[str, Any]) -> None:
        module = self._modules[name]
        for key, code in entry["attributes"].items():
            existing = vars(module).get(key, MISSING)
            value = self._decoder.decode(code, existing, f"{name}:{key}")
            check_field(type(module), key, value, existing, self._at(name))
            vars(module)[key] = value

    def _hook(self, name: str, entry: Mapping[str, Any]) -> None:
        """Install hooks that are plain objects; a hook that is a function is taken from the skeleton."""
        for kind in HOOKS:
            hooks = getattr(self._modules[name], kind)
            own = {key: hook for key, hook in hooks.items() if not is_library_hook(hook)}
            codes = entry.get("hooks", {}).get(kind, [])
            theirs = [*own.values(), *[MISSING] * len(codes)]
            values = [self._decoder.decode(code, theirs[index], f"{name}:{kind}.{index}") for index, code in enumerate(codes)]
            for key in [key for key, hook in own.items() if not any(hook is value for value in values)]:
                del hooks[key]
            odd = [value for value in values if value is not None and (isinstance(value, type) or not callable(value))]
            if odd:
                raise KdError(f"{self._at(name)}: {kind} holds {brief(odd[0])}, which is no hook", AGAIN)
            for value in values:
                if value is not None and not any(value is hook for hook in hooks.values()):
                    hooks[RemovableHandle(hooks).id] = value


def _classes_in(model: nn.Module) -> set[type]:
    """The classes of modules, of packed tensors, and of the objects in packed tensors."""
    packed = [part for tensors in (model.parameters(), model.buffers()) for tensor in tensors for part in packed_parts(tensor)]
    return {type(item) for item in (*model.modules(), *packed, *tree_leaves([flatten(tensor)[1] for tensor in packed]))}


def _bare_module(kind: type[nn.Module]) -> nn.Module:
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

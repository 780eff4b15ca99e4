"""The names of classes in saved folders: which classes a folder may name, and stable names that a package can register.

A class is saved as `module:qualname`, unless its package registers a name for it. A registered name, `package:name`, survives when the
class moves or is renamed. kdkit registers its classes in `KDKIT_CLASSES`; a plugin defines a dict `kdkit_classes` in its top-level package:

    kdkit_classes = {"Tiny": ["my_plugin.nets:Tiny", "my_plugin.models:TinyNet"]}     # present path, then former paths

The list is data: looking up a name imports only the package itself.

A name in a folder causes an import only if its package is trusted and is the installed one, see `kdkit.storage.installed_packages`. A class of any
other package is used if its module has been imported already, or if the skeleton holds it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, NamedTuple

from kdkit.errors import KdError
from kdkit.storage.installed_packages import import_installed

TRUSTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "torch": ("torch.nn.modules", "torch.nn.utils", "torch.nn.parameter", "torch.ao.nn", "torch.ao.quantization"),
        "torchao": ("torchao.core", "torchao.dtypes", "torchao.float8", "torchao.quantization", "torchao.sparsity"),
        "bitsandbytes": ("bitsandbytes.nn", "bitsandbytes.functional"),
        "transformers": (
            *(f"transformers.{name}" for name in ("models", "generation", "activations", "configuration_utils", "modeling_layers", "pytorch_utils")),
            "transformers.utils.quantization_config",
            *(f"transformers.integrations.{name}" for name in ("bitnet", "eetq", "fbgemm_fp8", "finegrained_fp8", "higgs", "mxfp4")),
        ),
        "peft": ("peft.config", "peft.mixed_model", "peft.peft_model", "peft.tuners", "peft.utils"),
        "kdkit": ("kdkit.backends", "kdkit.models"),
    }
)
"""Packages whose classes a folder may name, besides installed kdkit plugins, and those of their modules that it may name."""
PROGRAMS = frozenset({"__main__", "cli", "commands", "convert", "scripts", "test", "tests", "testing", "conftest"})
"""Parts of packages that are run rather than imported; a folder can't name them, except a registered class in them."""

KDKIT_CLASSES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "OnnxModel": ("kdkit.backends.onnx.model:OnnxModel", "kdkit.backends.onnx_model:OnnxModel"),
        "FunctionModel": ("kdkit.models.function_model:FunctionModel", "kdkit.models:Served"),
        "Trait": ("kdkit.models.traits:Trait", "kdkit.contract:Trait"),
        **{name: (f"kdkit.testing.zoo:{name}",) for name in ("Mlp", "TwoHeads", "Block", "Cnn", "Depthwise", "Lstm")},
    }
)
"""The classes of kdkit that can be in a saved folder: name -> present path, then paths in earlier releases."""


class _Registered(NamedTuple):
    """The registered classes of one package."""

    names: Mapping[str, str]
    """`module:qualname`, present or former -> registered name."""
    paths: Mapping[str, str]
    """Registered name -> present `module:qualname`."""


def path_of(kind: type) -> str:
    """The name of a class in saved folders: its registered name, or `module:qualname`.

    >>> from torch import nn
    >>> path_of(nn.Linear)
    'torch.nn.modules.linear:Linear'
    >>> from kdkit.models import FunctionModel
    >>> path_of(FunctionModel)
    'kdkit:FunctionModel'
    """
    return canonical(location_of(unparametrized(kind)))


def unparametrized(kind: type) -> type:
    """The original class of a module whose class `torch.nn.utils.parametrize` replaced by a generated subclass.

    >>> from torch import nn
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1))
    >>> type(layer).__name__, unparametrized(type(layer)).__name__
    ('ParametrizedLinear', 'Linear')
    """
    return kind.__bases__[0] if kind.__module__ == "torch.nn.utils.parametrize" and kind.__name__.startswith("Parametrized") else kind


def canonical(path: str) -> str:
    """The present name of a class in saved folders, from a present or former name.

    >>> canonical("kdkit.models:Served"), canonical("kdkit:FunctionModel"), canonical("torch.nn.modules.linear:Linear")
    ('kdkit:FunctionModel', 'kdkit:FunctionModel', 'torch.nn.modules.linear:Linear')
    """
    return _registered_by(top_package(path)).names.get(path, path)


def top_package(path: str) -> str:
    """The top-level package of a class name.

    >>> top_package("torch.nn.modules.linear:Linear")
    'torch'
    """
    return path.partition(":")[0].partition(".")[0]


@functools.cache
def trusted_packages() -> frozenset[str]:
    """Top-level packages whose classes a saved folder may name."""
    return frozenset(TRUSTED) | {top_package(point.value) for point in entry_points(group="kdkit")}


def class_at(path: str) -> type | None:
    """The class with that name in saved folders, from its present path; None if there is none, or if nothing may be imported to find it.

    >>> class_at("torch.nn.modules.linear:Linear")
    <class 'torch.nn.modules.linear.Linear'>
    >>> class_at("kdkit.models:Served")
    <class 'kdkit.models.function_model.FunctionModel'>
    >>> class_at("torch.serialization:os._wrap_close") is None
    True
    """
    name = canonical(path)
    location = _registered_by(top_package(name)).paths.get(name)
    registered, location = location is not None, location or name
    module, _, attributes = location.partition(":")
    found: Any = sys.modules.get(module)
    if found is None and (registered or _is_importable(module)):
        found = import_installed(module)
    for attribute in attributes.split(".") if found is not None else ():
        found = vars(found).get(attribute) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and location_of(found) == location else None


def _is_importable(module: str) -> bool:
    """Whether a folder may have a module imported."""
    package, *parts = module.split(".")
    if PROGRAMS & {*parts} or any(part.startswith("test_") for part in parts):
        return False
    return package in trusted_packages() and is_within(module, TRUSTED.get(package, (package,)))


def is_within(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of these packages, or in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class Classes:
    """Finds classes by their names in saved folders: first among the skeleton's classes, then in trusted packages.

    A class from a notebook or a moved module is found if the skeleton has exactly one class with the same qualified name.
    """

    def __init__(self, held: Iterable[type] = ()):
        self.held = {path_of(kind): unparametrized(kind) for kind in held}

    def holds(self, kind: type) -> bool:
        """Whether the skeleton has an instance of the class."""
        return any(kind is held for held in self.held.values())

    def find(self, path: str) -> type | None:
        """The class with that name; None if there is none, or if it may not be used."""
        path = canonical(path)
        if path in self.held:
            return self.held[path]
        if top_package(path) in trusted_packages():
            return class_at(path) if _is_nameable(path) else None
        namesakes = [kind for other, kind in self.held.items() if other.partition(":")[2] == path.partition(":")[2]]
        return namesakes[0] if len(namesakes) == 1 else None


def is_trusted(kind: type) -> bool:
    """Whether the package of a class is one whose classes a folder may name."""
    return top_package(location_of(kind)) in trusted_packages()


def is_of_plugin(kind: type) -> bool:
    """Whether the package of a class is an installed plugin."""
    return is_trusted(kind) and top_package(location_of(kind)) not in TRUSTED


def _is_nameable(path: str) -> bool:
    package = top_package(path)
    return package not in TRUSTED or path in _registered_by(package).paths or is_within(path.partition(":")[0], TRUSTED[package])


def location_of(kind: type) -> str:
    """Where a class is defined, as `module:qualname`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _registered_by(package: str) -> _Registered:
    if package == "kdkit":
        return _registered(package)
    return _registered(package) if package in trusted_packages() and package not in TRUSTED else _Registered({}, {})


@functools.cache
def _registered(package: str) -> _Registered:
    """The registered classes of a package; none if the package can't be imported.

    Raises:
        KdError: `kdkit_classes` is not a dict of names to paths.
    """
    if package == "kdkit":
        classes: Any = KDKIT_CLASSES
    else:
        try:
            classes = getattr(sys.modules.get(package) or import_installed(package), "kdkit_classes", {})
        except Exception:  # a broken plugin may raise anything; the plugin manager reports it
            classes = {}
    try:
        items = {f"{package}:{name}": [classes[name]] if isinstance(classes[name], str) else list(classes[name]) for name in classes}
        names = {path: name for name, paths in items.items() for path in paths}
        return _Registered(names, {name: paths[0] for name, paths in items.items()})
    except (TypeError, IndexError, KeyError) as error:
        raise KdError(
            f"kdkit_classes of {package} can't be used: it is no dict of names to paths", 'write a dict such as {"Tiny": ["my_plugin.nets:Tiny", "my_plugin.old:Tiny"]}'
        ) from error

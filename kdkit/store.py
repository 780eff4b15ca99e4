"""Save and load: a folder that restores a version bit by bit, without its data, the plugin that made it, or any pickle.

small/
  kd.json               format, schema, skeleton, environment, files with checksums; beside them the session's facts
  structure.json        the manifest of `kdkit.structure`
  weights.safetensors   every tensor, once
  model.onnx            instead of the last two, for a model that writes itself (`kdkit_save`, `kdkit_load`)
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdkit.errors import KdError, did_you_mean
from kdkit.folders import recover, replaced
from kdkit.structure import Manifest, describe, difference, fill, hollow, is_plain, rebuild, tensors
from kdkit.values import Classes, class_at, path_of, trusted_packages

SCHEMA = 1
"""Counts up when an older kdkit could not read the folder any more."""
HEAD, STRUCTURE, WEIGHTS = "kd.json", "structure.json", "weights.safetensors"
RESERVED = ("format", "schema", "class", "skeleton", "environment", "files")
PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})
AGAIN = "the folder is not whole: save the version again"


def save(folder: str | Path, model: nn.Module, original: nn.Module | None, facts: Mapping[str, Any]) -> Path:
    """Write a model to a folder, which is replaced as a whole or not at all.

    Args:
        folder: new, empty, or one that kdkit wrote.
        model: what to save.
        original: what it was made from; its class makes the skeleton at load. None: `model` itself.
        facts: plain data that `load` gives back.

    Returns:
        The folder.

    Raises:
        KdError: the folder holds something else or can't be written, or the model could not be loaded again.
    """
    target = Path(folder).expanduser().absolute()
    target = target.resolve() if target.is_symlink() else target
    _check_target(target)
    taken = sorted(set(facts) & set(RESERVED))
    if taken:
        raise KdError(f"facts can't be named {', '.join(taken)}: kd.json uses that itself", "choose other names")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as fresh:
            skeleton = _write_model(fresh, model, original)
            head = {"format": "kdkit", "schema": SCHEMA, "class": path_of(type(model)), "skeleton": skeleton, "environment": environment(model), "files": _files(fresh)}
            _write_json(fresh / HEAD, head | dict(facts))
    except OSError as error:
        raise KdError(f"can't write {target}: {error.strerror or error}", "choose a folder that you may write to, on a disk with room") from error
    return target


def load(folder: str | Path, skeleton: Any = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model that `save` wrote, and its facts.

    Args:
        folder: what `save` wrote.
        skeleton: an instance of the model's class (not changed), the class, or a function that makes one; None where kdkit can make it by itself.

    Returns:
        The model, on the CPU, and everything in kd.json that this kdkit does not use itself, fields that a newer one put there too.

    Raises:
        KdError: the folder is missing, damaged, newer, holds a pickle, or does not fit the skeleton.
    """
    place = Path(folder).expanduser()
    head = read(place)
    facts = {key: value for key, value in head.items() if key not in RESERVED}
    if head["skeleton"]["kind"] == "own":
        return _own_class(head).kdkit_load(place, head["skeleton"]["facts"]), facts
    manifest, values = _read_json(place / STRUCTURE), _read_weights(place / WEIGHTS)
    try:
        return fill(rebuild(_skeleton(head["skeleton"], skeleton, place), manifest), values), facts
    except KdError as error:
        raise error.with_hints(*_changed_versions(head["environment"])) from error.__cause__
    except (KeyError, TypeError, AttributeError) as error:
        raise KdError(f"{place / STRUCTURE} tells no structure that this kdkit can build: {error!r}", AGAIN, *_changed_versions(head["environment"])) from error


def read(folder: str | Path) -> dict[str, Any]:
    """What kd.json says of a folder, after its files were checked against it; nothing is built.

    Raises:
        KdError: as for `load`.
    """
    folder = Path(folder).expanduser()
    _check_source(folder)
    head = _read_json(folder / HEAD)
    if not isinstance(head, dict) or head.get("format") != "kdkit":
        raise KdError(f"{folder / HEAD} was not written by kdkit", "give a folder that %kd save wrote")
    if not isinstance(head.get("schema"), int) or head["schema"] > SCHEMA:
        raise KdError(f"{folder} was saved by a newer kdkit (schema {head.get('schema')}; this one reads up to {SCHEMA})", "upgrade kdkit")
    lacking = [key for key in RESERVED if key not in head]
    if lacking:
        raise KdError(f"{folder / HEAD} lacks {', '.join(lacking)}", AGAIN)
    for name, facts in head["files"].items():
        _check_file(folder / name, facts)
    return head


def environment(model: nn.Module) -> dict[str, str]:
    """Versions of python and of the distributions that hold the model's classes.

    >>> sorted(environment(nn.Linear(1, 1)))
    ['kdkit', 'python', 'safetensors', 'torch']
    """
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()} | {"kdkit", "torch", "safetensors"}
    return {"python": platform.python_version()} | {name: version for name in sorted(packages) if (version := _version(name))}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _changed_versions(saved: Mapping[str, str]) -> Iterator[str]:
    for name, version in saved.items():
        here = platform.python_version() if name == "python" else _version(name)
        if here != version:
            yield f"it was saved with {name} {version}; here is {here or 'none'}"


def _check_target(folder: Path) -> None:
    """Refuse to replace what kdkit did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise KdError(f"{folder} is a file", "give the name of a folder")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return
    if HEAD not in present:
        raise KdError(f"{folder} is not empty, and kdkit did not write it", "choose a new folder: nothing is overwritten but what kdkit wrote")
    head = _read_json(folder / HEAD)
    ours = {HEAD, STRUCTURE, WEIGHTS, *(head.get("files", {}) if isinstance(head, dict) and head.get("format") == "kdkit" else {})}
    others = sorted(present - {name.partition("/")[0] for name in ours})
    if others:
        raise KdError(f"{folder} also holds {', '.join(others[:5])}, which kdkit did not write", "move that away, or choose a new folder")


def _write_model(folder: Path, model: nn.Module, original: nn.Module | None) -> dict[str, Any]:
    """Write a model's files; return the recipe of its skeleton."""
    write: Any = getattr(model, "kdkit_save", None)
    if write is not None:
        return {"kind": "own", "class": path_of(type(model)), "facts": write(folder)}
    base = _base(model, original)
    manifest = describe(model)
    values = _plain_tensors(model)
    _check_restorable(model, base, manifest)
    _write_json(folder / STRUCTURE, manifest)
    try:
        safetensors.torch.save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
    except (SafetensorError, ValueError, KeyError) as error:
        raise KdError(f"the weights can't be written: {error}", "safetensors holds plain dense tensors; see that the disk has room") from error
    return recipe(base)


def _base(model: nn.Module, original: nn.Module | None) -> nn.Module:
    """What the skeleton is an instance of: the original, unless the model is of a class that stands for itself."""
    if original is None or type(original) is type(model):
        return original or model
    known = Classes({type(module) for module in original.modules()}).find(path_of(type(model)))
    return original if known and recipe(model)["kind"] == "user" else model


def recipe(model: nn.Module) -> dict[str, Any]:
    """How a fresh instance of a model's class is made: from an HF config, without arguments, or by the user.

    >>> recipe(nn.Sequential(nn.ReLU()))
    {'kind': 'class', 'class': 'torch.nn.modules.container:Sequential'}
    """
    kind = type(model)
    config: Any = getattr(model, "config", None)
    if kind.__module__.startswith("transformers.") and hasattr(config, "to_json_string"):
        return {"kind": "transformers", "class": path_of(kind), "config_class": path_of(type(config)), "config": json.loads(config.to_json_string(use_diff=False))}
    alone = class_at(path_of(kind)) is kind and _needs_nothing(kind)
    return {"kind": "class" if alone else "user", "class": path_of(kind)}


def _needs_nothing(kind: type) -> bool:
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(parameter.default is not parameter.empty or parameter.kind in free for parameter in inspect.signature(kind).parameters.values())


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the CPU, each in memory of its own."""
    values = tensors(model)
    odd = [f"{name} is a {type(tensor.data).__name__ if tensor.layout is torch.strided else tensor.layout}" for name, tensor in values.items() if not is_plain(tensor)]
    odd += [f"{name} has no data (meta)" for name, tensor in values.items() if is_plain(tensor) and tensor.is_meta]
    if odd:
        raise KdError(
            f"{type(model).__name__} holds tensors that can't be stored as plain numbers: {'; '.join(odd[:5])}",
            "save the version from before its weights were packed, or convert it to ONNX first",
        )
    seen: set[int] = set()
    return {name: _standalone(tensor, seen) for name, tensor in values.items()}


def _standalone(tensor: Tensor, seen: set[int]) -> Tensor:
    plain = tensor.detach().cpu().contiguous()
    storage = plain.untyped_storage()
    if storage._cdata in seen or storage.nbytes() != plain.nbytes:
        return plain.clone()
    seen.add(storage._cdata)
    return plain


def _check_restorable(model: nn.Module, base: nn.Module, manifest: Manifest) -> None:
    """Rebuild the structure on a hollow copy: what could not be loaded is not saved."""
    name = type(model).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = describe(rebuild(hollow(base), json.loads(json.dumps(manifest))))
    except KdError as error:
        raise KdError(f"{name} can't be saved so that it could be loaded again: {error.message}", *error.hints) from error
    lost = difference(manifest, again)
    for module, entry in manifest["modules"].items():
        if module in lost["modules"] or module in lost["removed"]:
            found = again["modules"].get(module, {})
            parts = [key for key in entry if entry[key] != found.get(key)]
            if parts != ["attributes"] or not entry["attributes"].items() <= found["attributes"].items():
                raise KdError(
                    f"{name} can't be saved so that it could be loaded again: {module or 'the model'} would lose its {', '.join(parts)}", "remove hooks before saving"
                )


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.rglob("*")) if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(data, ensure_ascii=False, indent=1)
    except (TypeError, ValueError) as error:
        raise KdError(f"{path.name} can hold only plain data: {error}", "facts are numbers, text, lists and dicts") from error
    path.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KdError(f"{path} is missing", AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise KdError(f"{path} is damaged: {error}", AGAIN) from error
    except OSError as error:
        raise KdError(f"can't read {path}: {error.strerror or error}", "see that you may read it") from error


def _check_source(folder: Path) -> None:
    try:
        recover(folder.absolute())
    except OSError as error:
        raise KdError(f"can't read {folder}: {error.strerror or error}", "see that you may read it") from error
    if not folder.exists():
        near = [path.name for path in folder.absolute().parent.iterdir()] if folder.absolute().parent.is_dir() else []
        raise KdError(f"there is no folder {folder}", did_you_mean(folder.name, near), "give a folder that %kd save wrote")
    if not folder.is_dir():
        raise KdError(f"{folder} is a file; a saved version is a folder", "give the folder that %kd save wrote")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _is_pickle(path):
            raise KdError(
                f"{path} is a pickle, which runs code when it is read; kdkit never does",
                "load it yourself if you trust it, save its tensors with safetensors, and take it away",
            )


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return True
    if path.suffix != ".safetensors":
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:9] != b"{" and start[:1] in (b"\x80", b"P")


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    if ".." in path.parts or not path.is_file():
        raise KdError(f"{path} is missing", AGAIN)
    size = path.stat().st_size
    if size != facts["size"]:
        raise KdError(f"{path} is {'cut off' if size < facts['size'] else 'changed'}: {size:,} bytes of {facts['size']:,}", AGAIN)
    if _digest(path) != facts["sha256"]:
        raise KdError(f"{path} was changed since it was saved: its checksum differs", AGAIN)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise KdError(f"{path} is missing", AGAIN) from error
    except (SafetensorError, OSError) as error:
        raise KdError(f"{path} is damaged: {error}", AGAIN) from error


def _own_class(head: Mapping[str, Any]) -> Any:
    path = head["skeleton"]["class"]
    kind = Classes().find(path)
    if kind is None or not hasattr(kind, "kdkit_load"):
        raise KdError(f"the saved model is a {path}, which is not to be found here", f"install the package that has it: {path.partition('.')[0].partition(':')[0]}")
    return kind


def _skeleton(recipe: Mapping[str, Any], given: Any, folder: Path) -> nn.Module:
    """The fresh instance to rebuild on; what the user gave is not changed."""
    if isinstance(given, nn.Module):
        return hollow(given)
    make = _maker(recipe, folder) if given is None else given
    with torch.random.fork_rng(devices=[]):
        try:
            made = make() if callable(make) else make
        except Exception as error:
            raise KdError(f"no fresh instance of {recipe['class']}: {type(error).__name__}: {error}", "give one as skeleton: load(folder, skeleton=net)") from error
    if not isinstance(made, nn.Module):
        raise KdError(f"the skeleton is a {type(made).__name__}, not a model", "give an instance of the model's class, the class, or a function that makes one")
    return made


def _maker(recipe: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    path = recipe["class"]
    if recipe["kind"] == "transformers":
        model, config = (_transformers(recipe[key]) for key in ("class", "config_class"))
        return lambda: model(config.from_dict(dict(recipe["config"])))
    kind = class_at(path) if recipe["kind"] == "class" and not _comes_from(path, folder) else None
    if kind is None or not issubclass(kind, nn.Module):
        name = path.rpartition(":")[2]
        raise KdError(
            f"{folder} holds a {path}, which kdkit can't make by itself", f"give a fresh one as skeleton: {name}(...)", "the weights it starts with don't matter"
        )
    return kind


def _transformers(path: str) -> Any:
    kind = class_at(path) if path.startswith("transformers.") and "transformers" in trusted_packages() else None
    if kind is None:
        raise KdError(f"there is no {path} in this transformers ({_version('transformers') or 'not installed'})", "install the transformers it was saved with")
    return kind


def _comes_from(path: str, folder: Path) -> bool:
    """Whether a class would be imported from the saved folder itself, which must not run code."""
    try:
        spec = importlib.util.find_spec(path.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and folder.resolve() in Path(spec.origin).resolve().parents

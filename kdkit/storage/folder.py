"""Save and load a version as a folder that restores it bit by bit. It needs neither data nor the plugin that made the version, and no pickle.

small/
  kd.json               format, schema, skeleton, environment, files with checksums; and the facts of the session
  structure.json        the manifest of `kdkit.storage.structure`
  weights.safetensors   every tensor, once
  model.onnx            replaces the last two for a model that writes its own files (`kdkit_save`, `kdkit_load`)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.models.stored_form import Storage
from kdkit.storage.atomic_folder import replace_folder
from kdkit.storage.codecs import Codec, decode_tensors, encode_tensors
from kdkit.storage.environment import changed_versions, environment
from kdkit.storage.head import check_head
from kdkit.storage.integrity import check_file, check_source, check_target, checksums
from kdkit.storage.layout import AGAIN, HEAD, RESERVED, SCHEMA, STORAGE, STRUCTURE, WEIGHTS, read_json, write_json
from kdkit.storage.manifest import check_manifest, check_weights
from kdkit.storage.rebuild import empty_copy, load_tensors, rebuild
from kdkit.storage.size_limit import Size
from kdkit.storage.skeleton import choose_base, load_own, make_skeleton, recipe
from kdkit.storage.structure import Manifest, describe, difference, is_plain, tensors
from kdkit.storage.trusted_classes import path_of


def save(
    folder: str | Path,
    model: nn.Module,
    original: nn.Module | None,
    facts: Mapping[str, Any],
    storage: Storage | None = None,
    codec: Codec | None = None,
    replace_other: bool = True,
) -> Path:
    """Write a model to a folder, which is replaced completely or not at all.

    Args:
        folder: new, empty, or one that kdkit wrote.
        model: the model to save.
        original: the model it was made from; `load` makes the skeleton from its class. None: `model` itself.
        facts: plain data that `load` returns.
        storage, codec: the stored form of some layers, and the codec that it names; None: plain tensors.
        replace_other: whether to replace a folder that holds another model.

    Returns:
        The folder.

    Raises:
        KdError: the folder contains other files, can't be written or must not be replaced, or the model could not be loaded again.
    """
    target = Path(folder).expanduser().absolute()
    target = target.resolve() if target.is_symlink() else target
    check_target(target)
    if not replace_other and (target / HEAD).exists() and not _holds(target, model):
        label = read_json(target / HEAD).get("label")
        other = f"@{label}" if isinstance(label, str) and label else "another version"
        raise KdError(f"{target} holds {other}, not this version", "--force replaces it", "or choose another name")
    taken = sorted(set(facts) & {*RESERVED, STORAGE})
    if taken:
        raise KdError(f"facts can't be named {', '.join(taken)}: kd.json uses that itself", "choose other names")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(target) as fresh:
            skeleton, encoded = _write_model(fresh, model, original, storage, codec)
            head = {
                "format": "kdkit",
                "schema": SCHEMA,
                "class": path_of(type(model)),
                "skeleton": skeleton,
                "environment": environment(model),
                "files": checksums(fresh),
            }
            write_json(fresh / HEAD, head | encoded | dict(facts))
    except OSError as error:
        raise KdError(f"can't write {target}: {error.strerror or error}", "choose a folder that you may write to, on a disk with free space") from error
    return target


def load(folder: str | Path, skeleton: Any = None, codec_named: Callable[[str], Codec] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model that `save` wrote, and its facts.

    Args:
        folder: a folder that `save` wrote.
        skeleton: an instance of the model's class (not changed), the class, or a function that returns one; None if kdkit can create it.
        codec_named: finds a codec by name, or raises KdError; needed for folders whose weights are encoded.

    Returns:
        The model, on the CPU, and the facts: everything in kd.json that this kdkit does not use itself, including fields of a newer
        kdkit. A stored form, if any, is under "storage".

    Raises:
        KdError: the folder is missing, damaged, written by a newer kdkit, contains a pickle, or does not fit the skeleton.
    """
    place = Path(folder).expanduser()
    head = read(place)
    facts = {key: value for key, value in head.items() if key not in RESERVED}
    try:
        if head["skeleton"]["kind"] == "own":
            return load_own(head["skeleton"], place), facts
        structure = f"{place / STRUCTURE} holds no structure that this kdkit can build"
        manifest, values = check_manifest(read_json(place / STRUCTURE), structure), _decoded(place, head, codec_named)
        check_weights(manifest, values, structure)
        size = Size.of(len(manifest["modules"]), values.values())
        return load_tensors(rebuild(make_skeleton(head["skeleton"], skeleton, place, size), manifest, structure), values), facts
    except KdError as error:
        raise error.with_hints(*changed_versions(head["environment"])) from error.__cause__
    except Exception as error:  # classes of a model may raise anything for fields that do not fit
        raise KdError(
            f"{place / STRUCTURE} holds no structure that this kdkit can build: {explain_error(error)}", AGAIN, *changed_versions(head["environment"])
        ) from error


def read(folder: str | Path) -> dict[str, Any]:
    """Read kd.json and check the folder's files against it; no model is built.

    Raises:
        KdError: as for `load`.
    """
    folder = Path(folder).expanduser()
    check_source(folder)
    data = read_json(folder / HEAD)
    for name, file in check_head(data, folder).files.items():
        check_file(folder, name, file.size, file.sha256)
    return data


def _holds(folder: Path, model: nn.Module) -> bool:
    """Whether a saved folder holds a model of this structure with these weights."""
    if not (folder / STRUCTURE).exists() or read_json(folder / STRUCTURE) != json.loads(json.dumps(describe(model))):
        return False
    saved, mine = _read_weights(folder / WEIGHTS), tensors(model)
    return saved.keys() == mine.keys() and all(torch.equal(saved[name], tensor.cpu()) for name, tensor in mine.items())


def _write_model(folder: Path, model: nn.Module, original: nn.Module | None, storage: Storage | None, codec: Codec | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a model's files; return the recipe of its skeleton, and the entry of kd.json about the encoded tensors."""
    write: Any = getattr(model, "kdkit_save", None)
    if write is not None:
        if storage is not None:
            raise KdError(f"a {type(model).__name__} writes its own files, so the codec {storage.codec!r} can't encode it", "save the version before its conversion")
        return {"kind": "own", "class": path_of(type(model)), "facts": write(folder)}, {}
    base = choose_base(model, original)
    manifest = describe(model)
    values = plain_tensors(model)
    _check_restorable(model, base, manifest)
    write_json(folder / STRUCTURE, manifest)
    entry: dict[str, Any] = {}
    if storage is not None and codec is not None:
        encoded = encode_tensors(model, values, storage, codec)
        values, entry = encoded.values, {STORAGE: storage.as_data() | {"tensors": encoded.data}}
    try:
        safetensors.torch.save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
    except (SafetensorError, ValueError, KeyError) as error:
        raise KdError(f"the weights can't be written: {explain_error(error)}", "safetensors holds plain dense tensors; check that the disk has free space") from error
    return recipe(base), entry


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the CPU, each with its own memory."""
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
    """Rebuild the structure on an empty copy, so that a model that could not be loaded is not saved."""
    name = type(model).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = describe(rebuild(empty_copy(base), json.loads(json.dumps(manifest))))
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


def _decoded(place: Path, head: Mapping[str, Any], codec_named: Callable[[str], Codec] | None) -> dict[str, Tensor]:
    """The tensors of a folder; encoded ones are decoded."""
    values, entry = _read_weights(place / WEIGHTS), head.get(STORAGE)
    if entry is None:
        return values
    name, data = Storage.from_data(entry).codec, entry["tensors"]
    if codec_named is None:
        raise KdError(f"the weights in {place} are encoded with the codec {name!r}, and no codecs are given to load with", "open it in a session: %kd load")
    try:
        codec = codec_named(name)
    except KdError as error:
        raise KdError(
            f"the weights in {place} are encoded with the codec {name!r}, which is not installed", "install the plugin that contributes it", *error.hints
        ) from error
    return decode_tensors(values, data, codec)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise KdError(f"{path} is missing", AGAIN) from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # a dtype that this torch lacks is one of several
        raise KdError(f"{path} is damaged: {explain_error(error)}", AGAIN) from error

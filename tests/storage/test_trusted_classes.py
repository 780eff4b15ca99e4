"""Classes are saved under names that survive a move, and a folder may name only classes of trusted packages."""

from __future__ import annotations

import enum
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from kdkit import KdError
from kdkit.storage import folder, trusted_classes
from kdkit.storage.json_values import MISSING, Decoder, Encoder, encode_opaque
from kdkit.storage.trusted_classes import KDKIT_CLASSES, Classes, canonical, class_at, path_of

FIXTURES = Path(__file__).parents[1] / "legacy" / "fixtures"


def classes_in(code: Any) -> Iterator[str]:
    """Every class that a saved file names."""
    if isinstance(code, Mapping):
        if isinstance(code.get("class"), str):
            yield code["class"]
        for item in code.values():
            yield from classes_in(item)
    elif isinstance(code, list):
        for item in code:
            yield from classes_in(item)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., types.ModuleType]]:
    """Make an installed plugin `moving_plugin` with a class Tiny in a module, and its list of registered classes."""

    def make(module: str, classes: Any) -> types.ModuleType:
        package = types.ModuleType("moving_plugin")
        package.kdkit_classes = classes  # type: ignore[attr-defined]
        inner = types.ModuleType(f"moving_plugin.{module}")
        inner.Tiny = type("Tiny", (nn.Linear,), {"__module__": inner.__name__, "__qualname__": "Tiny"})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "moving_plugin", package)
        monkeypatch.setitem(sys.modules, inner.__name__, inner)
        trusted_classes._registered.cache_clear()
        return inner

    monkeypatch.setattr(trusted_classes, "trusted_packages", lambda: frozenset({*trusted_classes.TRUSTED, "moving_plugin"}))
    yield make
    trusted_classes._registered.cache_clear()


def test_every_class_that_kdkit_0_1_0_saved_is_found() -> None:
    found = {path for file in FIXTURES.rglob("*.json") for path in classes_in(json.loads(file.read_text()))}
    assert len(found) > 40
    assert [path for path in sorted(found) if not path.startswith(("builtins:", "torch:")) and Classes().find(path) is None] == []


@pytest.mark.parametrize("name", KDKIT_CLASSES)
def test_a_registered_class_of_the_kit_is_where_the_list_says(name: str) -> None:
    kind = class_at(f"kdkit:{name}")
    assert kind is not None
    assert path_of(kind) == f"kdkit:{name}"


@pytest.mark.parametrize("former", [path for paths in KDKIT_CLASSES.values() for path in paths])
def test_a_former_path_of_the_kit_names_the_same_class(former: str) -> None:
    assert path_of(class_at(former)) == canonical(former)  # type: ignore[arg-type]


def test_every_registered_class_of_distill_is_where_its_list_says() -> None:
    import kdkit_distill

    for name, paths in kdkit_distill.kdkit_classes.items():
        assert {path_of(class_at(path)) for path in (*paths, f"kdkit_distill:{name}")} == {f"kdkit_distill:{name}"}  # type: ignore[arg-type]


def test_a_class_of_a_plugin_is_saved_by_its_path_unless_it_is_registered(plugin: Callable[..., types.ModuleType]) -> None:
    assert path_of(plugin("nets", {}).Tiny) == "moving_plugin.nets:Tiny"
    assert path_of(plugin("nets", {"Tiny": "moving_plugin.nets:Tiny"}).Tiny) == "moving_plugin:Tiny"


def test_a_saved_plugin_class_loads_after_its_module_was_renamed(plugin: Callable[..., types.ModuleType], tmp_path: Path) -> None:
    for number, before in enumerate([{}, {"Tiny": "moving_plugin.nets:Tiny"}]):
        net = plugin("nets", before).Tiny(2, 3)
        folder.save(tmp_path / str(number), net, None, {})
        del sys.modules["moving_plugin.nets"]
        moved = plugin("layers", {"Tiny": ["moving_plugin.layers:Tiny", "moving_plugin.nets:Tiny"]}).Tiny
        again, _ = folder.load(tmp_path / str(number), moved(2, 3))
        assert type(again) is moved
        assert again.weight.equal(net.weight)


def test_a_folder_in_the_former_name_of_its_root_needs_no_other_skeleton(plugin: Callable[..., types.ModuleType], tmp_path: Path) -> None:
    model = nn.Sequential(plugin("nets", {}).Tiny(2, 3))
    folder.save(tmp_path / "net", model, None, {})
    del sys.modules["moving_plugin.nets"]
    moved = plugin("layers", {"Tiny": ["moving_plugin.layers:Tiny", "moving_plugin.nets:Tiny"]}).Tiny
    assert type(folder.load(tmp_path / "net")[0][0]) is moved


def test_a_former_name_of_an_enum_gives_todays_enum() -> None:
    kind = Decoder(Classes(), lambda code: None, {}).decode({"$": "enum", "class": "kdkit.contract:Trait", "name": "ONNX"}, MISSING, "a")  # type: ignore[arg-type,return-value]
    assert isinstance(kind, enum.Enum)
    assert kind == "onnx"


def test_what_is_not_data_is_recognised_under_its_former_name(plugin: Callable[..., types.ModuleType]) -> None:
    value = plugin("layers", {"Tiny": ["moving_plugin.layers:Tiny", "moving_plugin.nets:Tiny"]}).Tiny(1, 1)
    decoder = Decoder(Classes(), lambda code: None, {})  # type: ignore[arg-type,return-value]
    assert decoder.decode({**encode_opaque(value), "class": "moving_plugin.nets:Tiny"}, value, "a") is value
    assert decoder.problems == []


def test_the_encoder_writes_registered_names() -> None:
    from kdkit import Trait

    assert Encoder(lambda tensor, place: None, {}).encode(Trait.ONNX, "a")["class"] == "kdkit:Trait"


@pytest.mark.parametrize("classes", [["Tiny"], {"Tiny": 3}, {"Tiny": []}, 7])
def test_a_list_that_is_no_dict_of_paths_is_refused_by_the_name_of_its_package(plugin: Callable[..., types.ModuleType], classes: Any) -> None:
    tiny = plugin("nets", classes).Tiny
    with pytest.raises(KdError, match="kdkit_classes of moving_plugin can't be used"):
        path_of(tiny)


def test_a_registered_name_of_a_package_that_is_not_trusted_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("stranger")
    package.kdkit_classes = {"Linear": "torch.nn.modules.linear:Linear"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger", package)
    assert Classes().find("stranger:Linear") is None

"""The house: which room may import which, and where things are. CONTRIBUTING.md explains the layers.

Type-only and deferred imports count: a knot of imports is a knot, whenever it is tied.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdkit
from tests.fixtures.source_tree import FAMILIES, KIT, ROOT, Import, arrows, circles, imports, known, lazy_exports, packages_loaded_by, room

LAYERS = [
    "errors renaming __version__",
    "deprecated",
    "lazy",
    "guards display parameters",
    "data",
    "models",
    "tasks backends",
    "measurement storage stages",
    "plugins",
    "training",
    "pipelines",
    "session",
    "views authoring forms",
    "testing",
    "notebook",
    "terminal",
    "__init__ __main__",
]
"""The rooms, lowest first. A room imports only rooms of lower layers."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}

ROOMS = [name for names in LAYERS[3:-1] for name in names.split()]
"""The rooms that are folders, lowest first."""

PUBLIC = (
    "kdkit",
    "kdkit.guards",
    "kdkit.display",
    "kdkit.data",
    "kdkit.models",
    "kdkit.tasks",
    "kdkit.backends",
    "kdkit.backends.onnx",
    "kdkit.measurement",
    "kdkit.storage",
    "kdkit.stages",
    "kdkit.plugins",
    "kdkit.training",
    "kdkit.session",
    "kdkit.testing",
)
"""The faces from which a plugin imports. Whatever is inside a room may move without notice."""

HEAVY = {
    "IPython",
    "accelerate",
    "cloudpickle",
    "constriction",
    "huggingface_hub",
    "ipywidgets",
    "onnx",
    "onnxruntime",
    "pandas",
    "peft",
    "pluggy",
    "pydantic",
    "pynvml",
    "pytest",
    "rouge_score",
    "safetensors",
    "scipy",
    "tensorly",
    "tokenizers",
    "torch",
    "torch_pruning",
    "torchao",
    "torchmetrics",
    "transformers",
    "yaml",
}
"""Packages that cost start-up time, or that not everybody has: the only reason to import inside a function."""

START_UP = {"kdkit", "kdkit.notebook", "kdkit.notebook.completion", "kdkit.notebook.magics"}
"""What `%load_ext kdkit` and completion run: here all that is not needed at once waits until it is used."""

WHOLE_ROOM = {
    "user interfaces at work": [
        *("browser/test_lab", "browser/test_newcomer", "browser/test_screenshots", "browser/test_wizard"),
        *("authoring/test_cells", "notebook/test_kernel", "notebook/verbs/test_verbs"),
    ],
    "promises of a room, for every stage or error": [
        *("data/test_what_is_given_as_data", "display/test_escaping"),
        *("legacy/test_legacy", "notebook/test_errors", "session/test_bad_input", "session/test_interrupts"),
        *("plugins/decompose/test_what_follows",),
        *("storage/test_hostile_folders", "storage/test_packed_tensors", "storage/test_restore_real"),
    ],
    "faults and load": [
        *("faults/test_concurrent_writers", "faults/test_full_disk", "faults/test_fuzzed_lines", "faults/test_interrupted_writes"),
        *("faults/test_killed", "faults/test_mute_errors", "faults/test_long_use"),
    ],
    "plugins of others": [
        *("plugins/test_broken_plugins", "plugins/test_guide", "plugins/test_stranger"),
        *("plugins/test_misbehaviour", "plugins/test_interrupted_discovery"),
    ],
    "the conformance suite on good and on bad stages": ["testing/test_conformance", "testing/test_defects"],
    "a plugin family as a whole": ["plugins/distill/test_family"],
    "all plugin families together": ["plugins/test_detectors", "plugins/test_every_task"],
}
"""Test files of a whole room, by kind. Every other test file is named after the module that it tests."""

KIT_MODULES = [name for name in known() if name.split(".")[0] == "kdkit"]
PLUGIN_MODULES = [name for name in known() if name.split(".")[0] != "kdkit"]


def upward() -> list[Import]:
    """Imports of a room that is not below the importing one."""
    kit = [item for name in KIT_MODULES for item in imports(name) if item.module.split(".")[0] == "kdkit"]
    return [item for item in kit if room(item.module) != room(item.source) and RANK[room(item.module)] >= RANK[room(item.source)]]


def needless() -> list[Import]:
    """Deferred imports that bring no heavy package which the module does not load anyway."""
    deferred = [item for name in known() for item in imports(name) if item.deferred and not item.type_only]
    return [item for item in deferred if item.source not in START_UP and not brought(item) & HEAVY - packages_loaded_by(item.source)]


def brought(item: Import) -> frozenset[str]:
    """The third-party packages that an import loads."""
    home = lazy_exports(item.module).get(item.name, item.module) if item.module in known() else item.module
    return packages_loaded_by(home)


def private() -> list[Import]:
    """Imports of a first-party plugin from inside the kit."""
    return [item for name in PLUGIN_MODULES for item in imports(name) if item.module.split(".")[0] == "kdkit" and item.module not in PUBLIC]


def shown(found: list[Import]) -> list[str]:
    """Violations as `importer -> imported`."""
    return sorted({f"{item.source} -> {item.module}" for item in found})


def test_a_room_imports_only_rooms_below_it():
    assert shown(upward()) == []


def test_an_import_waits_inside_a_function_only_for_a_heavy_package():
    assert shown(needless()) == []


def test_a_first_party_plugin_imports_only_public_faces():
    assert shown(private()) == []


@pytest.mark.parametrize("package", ["kdkit", *(family.name for family in FAMILIES)])
def test_no_files_import_each_other_in_a_circle(package):
    assert circles(arrows(package)) == []


def test_every_module_of_the_kit_is_in_a_room_with_a_layer():
    assert {room(name) for name in KIT_MODULES} == set(RANK)


def test_every_public_face_is_a_package():
    assert [face for face in PUBLIC if not (ROOT / face.replace(".", "/") / "__init__.py").exists()] == []


def test_the_face_of_the_kit_lists_its_exports_in_the_order_of_the_layers():
    ranks = [RANK[module.split(".")[1]] for module in dict.fromkeys(lazy_exports("kdkit").values())]
    assert ranks == sorted(ranks)
    assert set(lazy_exports("kdkit")) <= set(kdkit.__all__)


def test_the_readme_shows_the_rooms_in_the_order_of_the_layers():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## The house\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `kdkit/(\w+)/` \|", section, re.MULTILINE) == ROOMS


def test_contributing_names_the_layers_and_the_public_faces():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "\n".join(f"    {names}" for names in LAYERS) in text
    assert ", ".join(f"`{face}`" for face in PUBLIC) in text


IMPORT_OF_A_TEST = re.compile(r"^\s*from tests\.\S*\btest_\w+ import", re.MULTILINE)


def test_no_test_module_imports_another_test_module():
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert [str(path.relative_to(ROOT)) for path in tests if IMPORT_OF_A_TEST.search(path.read_text(encoding="utf-8"))] == []


def mirrored(test: Path) -> Path:
    """The module that a test file is named after, without its suffix."""
    folders = test.relative_to(ROOT / "tests").parent.parts
    family = folders[0] == "plugins" and len(folders) > 1
    code = ROOT / "plugins" / f"kdkit_{folders[1]}" / Path(*folders[2:]) if family else KIT / Path(*folders)
    return code / test.stem.removeprefix("test_")


def test_a_test_file_is_named_after_the_module_that_it_tests():
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent != ROOT / "tests"]
    whole_room = {name for names in WHOLE_ROOM.values() for name in names}
    others = [path for path in tests if str(path.relative_to(ROOT / "tests").with_suffix("")) not in whole_room]
    assert len(tests) - len(others) == len(whole_room), "a test file of a whole room is gone: delete its entry"
    assert [str(path.relative_to(ROOT)) for path in others if not mirrored(path).is_dir() and not mirrored(path).with_suffix(".py").exists()] == []


def test_fixtures_are_in_one_folder():
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    elsewhere = {path.relative_to(ROOT / "tests").parts[0] for path in helpers} - {"fixtures", "benchmarks", "distributions"}
    assert elsewhere <= {"browser", "legacy"}, "what tests share is in tests/fixtures"

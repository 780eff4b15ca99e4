"""The words: docstrings, messages, option helps, comments and guides are plain technical English. CONTRIBUTING.md shows what to write instead."""

from __future__ import annotations

import pytest

from tests.fixtures.prose import BANNED, DIALECT, dialect, in_names
from tests.fixtures.source_tree import FAMILIES, KIT, ROOT

PLACES = {
    **{f"kdkit/{path.stem}": sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in sorted(KIT.iterdir()) if path.is_dir() or path.suffix == ".py"},
    **{f"plugins/{family.name}": sorted(family.rglob("*.py")) for family in FAMILIES},
    **{f"notebooks/{path.name}": [path] for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
    **{name: [ROOT / name] for name in ("README.md", "plugins/README.md", "CHANGELOG.md")},
}
"""Where prose is: a room, a plugin family, a notebook, a guide."""

PLACES = {name: paths for name, paths in PLACES.items() if paths}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_has_no_banned_word(place):
    assert [word for path in PLACES[place] for word in dialect(path)] == []


def test_the_names_of_functions_classes_and_variables_in_tests_have_no_banned_word():
    assert [word for path in sorted((ROOT / "tests").rglob("*.py")) for word in in_names(path)] == []


@pytest.mark.parametrize(
    "text", ["when not said", "what the callback is told", "handed over", "it stands in the report", "comes of it", "the model is whole", "what it foretells"]
)
def test_the_dialect_is_found(text):
    assert DIALECT.search(text)


@pytest.mark.parametrize(
    "text",
    ["IR stands for intermediate representation", "the whole session", "an outstanding result", "amended", "beforehand", "default: all layers", "a hand-written loop"],
)
def test_plain_english_is_left_alone(text):
    assert not DIALECT.search(text)


def test_contributing_lists_each_banned_word_with_its_replacement():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [better for better in BANNED.values() if better not in text] == []

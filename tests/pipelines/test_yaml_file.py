"""YAML of a stranger: whatever it holds, it is read within bounds or refused in one message."""

import time
from pathlib import Path

import pytest

from kdkit.errors import KdError
from kdkit.pipelines.yaml_file import LARGEST_BYTES, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "no anchors and aliases"),
        ("steps: &s [*s]", "no anchors and aliases"),
        ("!!python/object:os.system x", "no tags"),
        ("[" * 100_000, "nested more than"),
        ("{" * 100_000, "nested more than"),
        ("- " * 90_000, "nested more than"),
        ("? " * 90_000, "nested more than"),
        ("a: " * 60_000, "is not YAML"),
        ("seed: " + "9" * 6000, "a number has more than 64 characters"),
        ("seed: 0x" + "f" * 6000, "a number has more than 64 characters"),
        ("seed: 1" + ":1" * 90_000, "a number has more than 64 characters"),
        ("seed: 0b_", "is not YAML"),
        ("seed: 2001-99-99", "is not YAML"),
        ("seed: 1\nseed: 2", "'seed' occurs twice"),
        ("<<: 5", "is not YAML"),
        ("? [a, b]\n: c", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ('a: "\\uD800"', "is not YAML"),
        ("#" * (LARGEST_BYTES + 1), "larger than 200,000 bytes"),
    ],
)
def test_yaml_that_would_take_memory_time_or_the_stack_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    began = time.perf_counter()
    with pytest.raises(KdError, match=message) as caught:
        read_yaml(path)
    assert time.perf_counter() - began < 5
    assert "recipe.yaml" in caught.value.message
    assert len(str(caught.value)) < 2000
    assert caught.value.hints


@pytest.mark.parametrize("path", ["/dev/zero", "nowhere.yaml", "two\nlines.yaml", "."])
def test_what_is_no_file_is_refused_in_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdError, match=r"is not a file|can't read") as caught:
        read_yaml(Path(path))
    assert "\n" not in caught.value.message


def test_plain_values_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: Größe\nseed: 3\nsteps:\n- options: {ratio: 0.5, layers: [a, b], on: yes, text: '&x'}\n", encoding="utf-8")
    assert read_yaml(path) == {"name": "Größe", "seed": 3, "steps": [{"options": {"ratio": 0.5, "layers": ["a", "b"], True: True, "text": "&x"}}]}

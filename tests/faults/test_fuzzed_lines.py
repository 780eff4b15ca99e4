"""Lines that nobody meant to write: each one works or ends in one message, and the session stays usable."""

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit.notebook.verb import verbs
from kdkit.plugins.manager import manager
from tests.fixtures.notebook import Notebook
from tests.fixtures.thoroughness import SOAK

LINES = 1500 if SOAK else 100
SLOW = ("doctor", "plugins", "wizard", "new-plugin", "compare-with", "export", "sensitivity")
"""Verbs that start other processes or take seconds each; they, and stages that export, have tests of their own."""

TEXT = some.text(alphabet=some.one_of(some.sampled_from("'\"{}#$@;=- \\\t%!`*.,[]()"), some.characters(codec="utf-8", exclude_characters="\n\r/~")), max_size=8)
VALUES = some.sampled_from(
    ["0", "1", "-1", "0.5", "1e999", "nan", "none", "true", "@base", "@0", "@head", "@nobody", "head", "{net}", "{train}", "{1/0}", "{nothing}", "$net", "*", "''"]
)


@some.composite
def lines(draw: Any) -> str:
    """A line of words that mean something, in an order that may not."""
    stages = [each for each in sorted(manager().stages()) if not each.startswith(("quantize.", "convert."))]
    verb = draw(some.sampled_from(sorted(set(verbs()) - set(SLOW))))
    stage = draw(some.sampled_from(stages))
    begin = draw(some.sampled_from([verb, stage.replace(".", " ", 1), stage.partition(".")[0], ""]) | TEXT)
    options = [f"--{name.rstrip('_').replace('_', '-')}" for name in manager().stages()[stage].model_fields if name not in ("epochs", "steps")]
    word = some.sampled_from([*options, "--on", "--as", "--seed", "--help", "--debug"]) | VALUES | TEXT
    return " ".join([begin, *draw(some.lists(word, max_size=5))])


@given(line=lines())
@settings(max_examples=LINES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.slow
def test_a_line_works_or_ends_in_one_message(cells: Notebook, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(KdError):
        cells.shell.run_line_magic("kd", line)
    assert isinstance(repr(cells.session), str)
    assert len(cells.session.versions) >= 1

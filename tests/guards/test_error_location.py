"""Error location: the line of the author's code in the traceback of an error."""

from __future__ import annotations

import importlib.util

import pytest

from kdkit.guards.error_location import SourceLine, find_error_line

CODE = """def divide(by):
    return 1 / by


def call(function):
    return function()
"""


@pytest.fixture
def plugin(tmp_path):
    """A module `kd_author` with two functions."""
    file = tmp_path / "kd_author.py"
    file.write_text(CODE)
    spec = importlib.util.spec_from_file_location("kd_author", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_of(function, *args):
    with pytest.raises(Exception) as caught:
        function(*args)
    return caught.value


def test_the_line_is_the_one_of_the_author_that_raised(plugin):
    assert find_error_line(error_of(plugin.divide, 0), "kd_author") == SourceLine("kd_author.py", 2, "return 1 / by")


def test_the_line_is_the_innermost_of_the_author_where_another_package_raised(plugin):
    assert find_error_line(error_of(plugin.call, lambda: [][0]), "kd_author").line == 6


def test_any_module_of_the_authors_package_counts(plugin):
    assert find_error_line(error_of(plugin.divide, 0), "kd_author.stages.prune").line == 2


def test_an_error_without_a_line_of_the_author_has_no_location(plugin):
    assert find_error_line(error_of(plugin.divide, 0), "somebody_else") is None


def test_a_location_is_a_file_and_a_line_as_text():
    assert str(SourceLine("Cell In[3]", 4, "raise ValueError")) == "Cell In[3], line 4"

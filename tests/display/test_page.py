"""Pages: paragraphs, tables, lines of code and written files, as text and HTML."""

from __future__ import annotations

import os
from pathlib import Path

from kdkit.display import Table
from kdkit.display.page import Page, Source, Written


def test_a_page_has_its_parts_in_order_without_empty_ones():
    page = Page("One.", "", Table(["size"], [[1]]), Source("%kd undo"))
    assert repr(page) == "One.\n\nsize\n   1\n\n%kd undo"
    html = page._repr_html_()
    assert html.index("One.") < html.index("<table>") < html.index("%kd undo")


def test_a_paragraph_is_escaped_in_html():
    assert Page("a < b")._repr_html_() == '<p style="white-space: pre-wrap">a &lt; b</p>'


def test_source_is_text_and_shown_as_code():
    assert Source("a < b") == "a < b"
    assert Source("a < b")._repr_html_() == '<pre style="margin: 0"><code>a &lt; b</code></pre>'


def test_a_written_file_is_a_path(tmp_path):
    written = Written(tmp_path / "small.onnx", "@slim was exported")
    Path(written).write_text("graph")
    assert os.fspath(written) == str(tmp_path / "small.onnx")
    assert repr(written) == f"@slim was exported to {tmp_path / 'small.onnx'}"


def test_an_absolute_path_is_left_out_of_stable_text_and_a_relative_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert repr(Written(tmp_path / "a", "saved")) == "saved to …"
    assert repr(Written(Path("a"), "saved")) == "saved to a"
    assert Written(Path("a<b"), "saved")._repr_html_() == "<p>saved to <code>a&lt;b</code></p>"

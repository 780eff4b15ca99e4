"""Attachments of a version: text and HTML, also where an object's own display fails."""

from __future__ import annotations

from kdkit.display import Table
from kdkit.display.attachments import as_html, as_text


class Broken:
    """An object that can't be displayed."""

    def __repr__(self):
        raise RuntimeError("no text")

    def _repr_html_(self):
        raise RuntimeError("no <html>")


class OnlyText:
    def __repr__(self):
        return "a < b"


class BrokenHtml(OnlyText):
    def _repr_html_(self):
        raise RuntimeError("no <html>")


def test_an_attachment_with_html_is_shown_as_its_html():
    table = Table(["size"], [[1]])
    assert (as_text(table), as_html(table)) == (repr(table), table._repr_html_())


def test_an_attachment_without_html_is_shown_as_escaped_text():
    assert as_html(OnlyText()) == "<pre>a &lt; b</pre>"


def test_an_attachment_whose_html_fails_is_shown_as_text_with_the_reason():
    assert as_html(BrokenHtml()) == "<pre>a &lt; b\n(as text, since its HTML failed: RuntimeError: no &lt;html&gt;)</pre>"


def test_an_attachment_whose_text_fails_is_a_line_with_the_reason():
    assert as_text(Broken()) == "an attachment, Broken, could not be shown: RuntimeError: no text"
    assert "could not be shown: RuntimeError: no text" in as_html(Broken())

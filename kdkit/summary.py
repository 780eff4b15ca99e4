"""Summaries: a session as a page of text or HTML that needs neither the session nor a kernel any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError
from kdkit.versions import said, shown

if TYPE_CHECKING:
    from kdkit.session import Session
    from kdkit.versions import Version

_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:70em;margin:0 auto;padding:1.5em}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.8em}table{border-collapse:collapse;font-size:.9em;margin:.5em 0}"
    "th,td{padding:.25em .7em;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent);vertical-align:top}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.7em;background:color-mix(in srgb,currentColor 7%,transparent)}"
    "footer{margin-top:2.5em;font-size:.85em}@media print{main{max-width:none;padding:0}}"
)


@dataclass(frozen=True)
class Section:
    """A part of a summary: what it is about, and what is shown; texts are paragraphs, or lines of code where `code` says so."""

    title: str
    parts: tuple[Any, ...]
    code: bool = False

    def text(self) -> str:
        """As text."""
        return "\n".join([self.title, "-" * len(self.title), *(part if isinstance(part, str) else said(part) for part in self.parts)])

    def html(self, level: int) -> str:
        """As HTML, under a heading of that level."""
        return f"<h{level}>{escape(self.title)}</h{level}>" + "".join(map(self._shown, self.parts))

    def _shown(self, part: Any) -> str:
        if not isinstance(part, str):
            return f'<div style="margin: 0.5em 0">{shown(part)}</div>'
        return f"<pre><code>{escape(part)}</code></pre>" if self.code else f"<p>{escape(part)}</p>"


@dataclass(frozen=True, repr=False)
class Summary:
    """How a session stands and how a version of it was made, as something to keep.

    Attributes:
        title: the first line.
        sections: one below the other; none holds on to models or data.

    >>> Summary("kdkit: @slim", (Section("Data", ("eval",)),))
    kdkit: @slim
    ============
    <BLANKLINE>
    Data
    ----
    eval
    """

    title: str
    sections: tuple[Section, ...]

    @classmethod
    def of(cls, session: Session, version: Version, quality: str = "", cost: str = "size") -> Summary:
        """What a session can tell of itself and of a version."""
        line = session.history.lineage(version)
        told = [Section("Where it stands", (session.status().caption,)), Section(f"How {version.name} was made", (session.code(version),), code=True)]
        told += [Section("Versions", (session.compare().table,)), *_frontier(session, quality, cost)]
        return cls(f"kdkit: {version.name}", (*told, *(section for each in line for section in _about(each))))

    def __repr__(self) -> str:
        return "\n\n".join([f"{self.title}\n{'=' * len(self.title)}", *(section.text() for section in self.sections)])

    def _repr_html_(self) -> str:
        return self._html(3)

    def _html(self, level: int) -> str:
        return f"<h{level}>{escape(self.title)}</h{level}>" + "".join(section.html(level + 1) for section in self.sections)

    @property
    def page(self) -> str:
        """As an HTML document of its own, light or dark as the reader's system is; it loads nothing."""
        from kdkit import __version__

        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(self.title)}</title><style>{_STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{self._html(1)}<footer>kdkit {__version__}</footer></main></body></html>\n'

    def save(self, path: str | Path) -> Path:
        """Write the page to a file; one that was there is replaced.

        Raises:
            KdError: the name does not end in .html, or the file can't be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise KdError(f"report: {path} is no name of an HTML file", f"%kd report {path.with_suffix('.html')}")
        try:
            path.write_text(self.page, encoding="utf-8")
        except OSError as error:
            raise KdError(f"report: {path} can't be written: {error.strerror or error}", "name a file in a folder that is there") from error
        return path


def _frontier(session: Session, quality: str, cost: str) -> Iterator[Section]:
    """The Pareto picture, or why there is none."""
    try:
        yield Section("Quality and cost", (session.pareto(quality=quality, cost=cost),))
    except KdError as error:
        if quality or cost != "size":
            raise
        yield Section("Quality and cost", (f"no picture: {error.message}",))


def _about(version: Version) -> Iterator[Section]:
    """What a version has to say and to show, if anything."""
    parts: Sequence[Any] = [*version.notes, *version.report.notes, *version.exhibits]
    if parts:
        yield Section(f"{version.name}: {version.made_by.splitlines()[0] if version.made_by else ''}", tuple(parts))

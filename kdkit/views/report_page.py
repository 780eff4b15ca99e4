"""The report page: a session as text or HTML that needs neither the session nor a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.__version__ import __version__
from kdkit.display.attachments import as_html, as_text
from kdkit.errors import KdError, printable_lines
from kdkit.storage.atomic_file import replace_file

if TYPE_CHECKING:
    from kdkit.session.history import Version
    from kdkit.session.session import Session

_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:70em;margin:0 auto;padding:1.5em}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.8em}table{border-collapse:collapse;font-size:.9em;margin:.5em 0}"
    "th,td{padding:.25em .7em;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent);vertical-align:top}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.7em;background:color-mix(in srgb,currentColor 7%,transparent)}"
    "footer{margin-top:2.5em;font-size:.85em}@media print{main{max-width:none;padding:0}}"
)


@dataclass(frozen=True)
class Section:
    """A section of the page: a title and what is shown; strings are paragraphs, or code if `code` is true."""

    title: str
    parts: tuple[Any, ...]
    code: bool = False

    def text(self) -> str:
        """As text."""
        return "\n".join([self.title, "-" * len(self.title), *(part if isinstance(part, str) else as_text(part) for part in self.parts)])

    def html(self, level: int) -> str:
        """As HTML, under a heading of that level."""
        return f"<h{level}>{escape(self.title)}</h{level}>" + "".join(map(self._shown, self.parts))

    def _shown(self, part: Any) -> str:
        if not isinstance(part, str):
            return f'<div style="margin: 0.5em 0">{as_html(part)}</div>'
        return f"<pre><code>{escape(part)}</code></pre>" if self.code else f"<p>{escape(part)}</p>"


@dataclass(frozen=True, repr=False)
class Summary:
    """The state of a session, and how one of its versions was made.

    Attributes:
        title: the first line.
        sections: in order; none keeps models or data in memory.

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
    def of(cls, session: Session, version: Version, frontier: Any) -> Summary:
        """The page about a session and one of its versions.

        Args:
            frontier: the Pareto frontier of all versions, or a line that says why there is none.
        """
        line = session.history.lineage(version)
        state = [Section("State", (session.status().caption,)), Section(f"How {version.name} was made", (session.code(version),), code=True)]
        figures = [Section("Versions", (session.compare().table,)), Section("Quality and cost", (frontier,))]
        return cls(f"kdkit: {version.name}", (*state, *figures, *(section for each in line for section in _about(each))))

    def __repr__(self) -> str:
        return printable_lines("\n\n".join([f"{self.title}\n{'=' * len(self.title)}", *(section.text() for section in self.sections)]))

    def _repr_html_(self) -> str:
        return self._html(3)

    def _html(self, level: int) -> str:
        return f"<h{level}>{escape(self.title)}</h{level}>" + "".join(section.html(level + 1) for section in self.sections)

    @property
    def page(self) -> str:
        """A complete HTML document in the light or dark theme of the reader's system; it loads no other file."""
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(self.title)}</title><style>{_STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{self._html(1)}<footer>kdkit {__version__}</footer></main></body></html>\n'

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, replacing an existing one.

        Raises:
            KdError: the name does not end in .html, or the file can't be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise KdError(f"report: {path} is no name of an HTML file", f"%kd report {path.with_suffix('.html')}")
        try:
            with replace_file(path) as file:
                file.write(self.page.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise KdError(f"report: {path} can't be written: {error.strerror or error}", "choose a folder that exists") from error
        return path


def _about(version: Version) -> Iterator[Section]:
    """The notes and attachments of a version, if it has any."""
    parts: Sequence[Any] = [*version.notes, *version.report.notes, *version.attachments]
    if parts:
        yield Section(f"{version.name}: {version.made_by.splitlines()[0] if version.made_by else ''}", tuple(parts))

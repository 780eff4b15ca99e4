"""Verbs that work on versions: compare, keep, drop, restore, save, load, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.display.page import Source, Written
from kdkit.notebook.verb import Verb
from kdkit.parameters.settings import param
from kdkit.session.listing import Format

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class Compare(Verb):
    """Compare versions side by side, each figure with its ratio to the first version's."""

    positional: ClassVar = ("versions",)
    example_line: ClassVar = '%kd compare @base @slim --sort size --where "accuracy>=0.9"'
    tab: ClassVar = "Compare"

    versions: tuple[str, ...] = param((), "default: all versions", names="version")
    sort: str | None = param(None, "figure to sort by, the best version first", names="figure")
    where: tuple[str, ...] = param((), 'only versions that meet these conditions, such as "size<100kB" "accuracy>=90%"')
    by: str | None = param(None, "the same as --sort", names="figure")
    all: bool = param(False, "show every measured figure, not only the main ones")
    format: Format | None = param(None, "text to copy into a paper or a spreadsheet; csv has plain numbers in base units; default: a table")

    def run(self, workspace: Workspace) -> Any:
        listing = workspace.session.compare(*self.versions)
        if self.all:
            listing = replace(listing, also=tuple(listing.figures))
        listing = listing.where(self.where) if self.where else listing
        name = self.sort or self.by
        listing = listing.sorted_by(name) if name is not None else listing
        return listing if self.format is None else listing.text_as(self.format)


class Keep(Verb):
    """Label a version; if another version has this label, it loses it."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd keep @2 --as slim"

    version: str | None = param(None, "default: the head", names="version")
    as_: str = param(..., "the label")

    def run(self, workspace: Workspace) -> Any:
        return workspace.session.keep(self.version, self.as_)


class Drop(Verb):
    """Free the memory of a version; it stays listed while other versions were made from it. `undo` and `restore` bring it back."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd drop @2"

    version: str = param(..., "the version", names="version")
    forever: bool = param(False, "keep nothing from which it could come back")

    def run(self, workspace: Workspace) -> Any:
        name = workspace.session.version(self.version).name
        listing = workspace.session.drop(self.version, self.forever)
        if not self.forever:
            workspace.tell(f"dropped {name}; until the kernel ends, %kd restore {name} brings it back")
        return listing


class Restore(Verb):
    """Bring back a version that was dropped, or that a line replaced when it ran again.

    The head stays, unless the version was the head when it was dropped and no version was made since.
    """

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd restore @2"

    version: str | None = param(None, "label or number that it had; default: the last one removed", names="removed")

    def run(self, workspace: Workspace) -> Any:
        return workspace.session.restore(self.version)


class Pop(Verb):
    """Return a copy of a version's model, for use in Python."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "net = %kd pop @slim"

    version: str | None = param(None, "default: the head", names="version")

    def run(self, workspace: Workspace) -> Any:
        return workspace.session.pop(self.version)


class Code(Verb):
    """Insert the lines that made a version into a new cell."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd code @slim"
    tab: ClassVar = "Export"

    version: str | None = param(None, "default: the head", names="version")

    def run(self, workspace: Workspace) -> Source:
        from kdkit.session.saving import group_cell

        session = workspace.session
        lines = group_cell(session.history, session.version(self.version)) or session.code(self.version)
        workspace.put_below(lines)
        return Source(lines)


class Save(Verb):
    """Save a version to a folder: structure, weights, recipe, report. Loading needs neither pickle nor plugins."""

    positional: ClassVar = ("path", "version")
    example_line: ClassVar = "%kd save small/ @slim"
    tab: ClassVar = "Export"

    path: str = param(..., "the folder", names="path")
    version: str | None = param(None, "default: the head", names="version")
    force: bool = param(False, "replace a folder that holds another version")

    def run(self, workspace: Workspace) -> Written:
        name = workspace.session.version(self.version).name
        return Written(workspace.session.save(self.path, self.version, self.force), f"saved {name}")


class Load(Verb):
    """Load a saved version bit-exactly, into this session or as the first version of a new one."""

    positional: ClassVar = ("path",)
    example_line: ClassVar = "%kd load small/ --skeleton {Net()}"

    path: str = param(..., "folder that `save` wrote", names="path")
    skeleton: Any = param(None, "the model's class or a new instance of it, if kdkit can't find it", names="object")

    def run(self, workspace: Workspace) -> Any:
        if workspace.has_session:
            return workspace.session.load(self.path, skeleton=self.skeleton)
        from kdkit.session.session import Session

        session = Session.open(self.path, skeleton=self.skeleton)
        workspace.begin(session, {}, Path(self.path).expanduser().absolute().name)
        return session.head


class Export(Verb):
    """Export a version for use without kdkit: an `.onnx` file, a `.pt2` program of torch.export, or a folder for `from_pretrained`."""

    positional: ClassVar = ("path", "version")
    example_line: ClassVar = "%kd export small.onnx @slim"
    tab: ClassVar = "Export"

    path: str = param(..., "file or folder", names="path")
    version: str | None = param(None, "default: the head", names="version")
    force: bool = param(False, "replace a file or folder that holds something else")
    card: bool | None = param(None, "write a model card: README.md in a folder, a file with the suffix .md beside a file; default: in folders")
    licence: str = param("", "licence that the model card states, such as apache-2.0; default: that of the base model's own card")

    def run(self, workspace: Workspace) -> Written:
        name = workspace.session.version(self.version).name
        written = workspace.session.export(self.path, self.version, self.force, self.card, self.licence)
        return Written(written, f"exported {name}")

"""Written files: which version a session wrote where, so that saving it there again needs no question."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdkit.session.history import Version

Stamp = tuple[tuple[str, int, int], ...]


@dataclass
class WrittenFiles:
    """The folders and files that a session wrote, each with the name of the version and the state of the files."""

    written: dict[Path, tuple[str, Stamp]] = field(default_factory=dict)

    def remember(self, path: str | Path, version: Version) -> Path:
        """Remember that a version was written to a path.

        Returns:
            The path.
        """
        self.written[_place(path)] = (version.name, _stamp(_place(path)))
        return Path(path)

    def holds(self, path: str | Path, version: Version) -> bool:
        """Whether a path still holds what this session wrote there as the version of this name."""
        return self.written.get(_place(path)) == (version.name, _stamp(_place(path)))


def _place(path: str | Path) -> Path:
    return Path(path).expanduser().absolute().resolve()


def _stamp(place: Path) -> Stamp:
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.exists() else []
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)

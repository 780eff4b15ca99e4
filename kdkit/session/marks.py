"""Marks: warnings about a version's figures, with what usually helps."""

from __future__ import annotations

from kdkit.session.cures import lines_to_restore
from kdkit.session.history import Version


def marks(version: Version, limit: float) -> tuple[str, ...]:
    """A mark if a version lost more quality than the limit, against the step before or else the first version.

    Args:
        limit: in points, hundredths, of a share such as accuracy; in percent of another figure.
    """
    for name, change in version.changes.items():
        if change.quality is not None and change.lost_points > limit:
            cures = lines_to_restore(version.traits)
            lost = f"{change.quality[1].name} is {change.lost_points:.2g} {change.loss_unit} worse than that of {name}"
            return (lost + (f"; this usually restores it: {' or '.join(cures)}" if cures else ""),)
    return ()

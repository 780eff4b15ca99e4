"""Which views there are."""

from __future__ import annotations

import sys

from kdkit.plugins.manager import manager
from kdkit.views.builtin import BUILT_IN
from kdkit.views.view import View


def offered_views() -> dict[str, type[View]]:
    """Views by name: all that plugins contribute once torch is imported, before that the kit's own.

    Plugins import torch, and nobody waits for that to complete a line.

    >>> offered_views()["pareto"].__name__
    'Pareto'
    """
    if "torch" not in sys.modules:
        return {view.name: view for view in BUILT_IN}
    return {view.name: view for _, view in manager().contributions("kdkit_views")}

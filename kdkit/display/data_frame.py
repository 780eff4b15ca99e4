"""Data frames of pandas, for those who have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdkit.errors import KdError


def as_dataframe(records: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame.

    Raises:
        KdError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise KdError("a DataFrame needs pandas, which is not installed", "pip install 'kdkit[pandas]'") from error
    return pandas.DataFrame(list(records))

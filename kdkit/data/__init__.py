"""Data: whatever holds batches in a notebook, adopted as one re-iterable thing with known labels."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "batch": ["LABEL_KEYS", "Batch", "as_batch"],
        "conversion": ["ACCEPTED", "collate_items", "holds_data"],
        "text": ["TextRows", "Tokenization"],
        "datasets": ["Data", "MapDataset", "PairedData", "BatchList", "TensorRows", "own_randomness"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

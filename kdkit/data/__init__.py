"""Data: whatever holds batches in a notebook, adopted as one re-iterable thing with known labels."""

from kdkit.data.adoption import ACCEPTED, adopt_data, collate_items, holds_data
from kdkit.data.batch import LABEL_KEYS, Batch, as_batch
from kdkit.data.calling import try_call
from kdkit.data.sets import Data, Items, Joined, Listed, Rows

__all__ = [
    "ACCEPTED", "LABEL_KEYS", "Batch", "Data", "Items", "Joined", "Listed", "Rows", "adopt_data", "as_batch", "collate_items", "holds_data", "try_call",
]  # fmt: skip

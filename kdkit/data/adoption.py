"""Adoption: `Data` out of whatever holds data in a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from kdkit.data.batch import LABEL_KEYS, Batch, as_batch
from kdkit.data.sets import Data, Items, Listed, Rows
from kdkit.errors import KdError

ACCEPTED = (
    "data is: a DataLoader or Dataset; a tensor or array; (inputs, labels); a dict of arrays; a pandas frame, or (frame, 'label column'); "
    "a Hugging Face dataset; a list or any iterable of batches; a function that makes one"
)
"""What `adopt_data` takes, as its errors say it."""


def adopt_data(obj: Any, batch_size: int = 32) -> Data:
    """`Data` out of whatever holds data in a notebook; `ACCEPTED` lists the forms, `as_batch` those of single batches.

    Args:
        batch_size: items a batch, where `obj` has no batches of its own.

    A tuple of arrays is one data set, (inputs, labels). A list is a list of batches, or of items if their labels are
    single numbers. What can be gone through only once is kept in memory. Plugins may take further kinds
    (`kdkit_adopt_data`).

    Raises:
        KdError: nobody knows how; it is empty; it is text; its parts differ in length.

    >>> adopt_data((torch.zeros(50, 3), torch.zeros(50, dtype=torch.long)))
    Data(arrays of (x, y): 50 items, batches of 32)
    """
    if isinstance(obj, Data):
        return obj
    data = _known(obj, batch_size) or _from_plugin(obj, batch_size) or _iterable(obj, batch_size)
    if data.items == 0:
        raise KdError(f"no items in {data.why}", "give data with at least one item")
    data.why += _told(data)
    return data


def holds_data(obj: Any) -> bool:
    """Whether an object looks like a data set at a glance; nothing is gone through, and what only looks like something else may be one too.

    >>> [holds_data(obj) for obj in ((torch.zeros(4, 2), torch.zeros(4)), torch.zeros(4, 2), torch.tensor(1.0), (1, 2), "text")]
    [True, True, False, False, False]
    """
    arrays = torch.Tensor | numpy.ndarray
    if isinstance(obj, Data | Batch | DataLoader | Dataset) or (_from("datasets", obj) and hasattr(obj, "column_names")):
        return True
    if isinstance(obj, arrays):
        return not isinstance(obj, torch.nn.Parameter) and obj.ndim > 1
    if isinstance(obj, tuple):
        return len(obj) == 2 and (all(isinstance(part, arrays) and part.ndim for part in obj) or (hasattr(obj[0], "columns") and isinstance(obj[1], str)))
    if isinstance(obj, Mapping):
        return bool(obj) and all(isinstance(part, arrays) and part.ndim for part in obj.values())
    return _from("pandas", obj) and hasattr(obj, "columns")


def _told(data: Data) -> str:
    """What the first batch shows: " of (x, y): 1797 items, batches of 32"."""
    example = data.example()
    names = list(example.kwargs) or (["x"] if len(example.args) == 1 else [f"x{number + 1}" for number in range(len(example.args))])
    names += [] if example.labels is None else ["labels" if example.kwargs else "y"]
    form = names[0] if len(names) == 1 else f"{{{', '.join(names)}}}" if example.kwargs else f"({', '.join(names)})"
    counted = [f"{data.items} items"] if data.items is not None else []
    return f" of {form}{' without labels' if example.labels is None else ''}: {', '.join([*counted, f'batches of {example.size}'])}"


def _known(obj: Any, batch_size: int) -> Data | None:
    if isinstance(obj, DataLoader):
        return _loader(obj)
    if _from("datasets", obj) and hasattr(obj, "column_names"):
        return _hugging_face(obj, batch_size)
    if _from("pandas", obj) and hasattr(obj, "columns"):
        return _frame(obj, None, batch_size)
    if isinstance(obj, tuple) and len(obj) == 2 and hasattr(obj[0], "columns") and isinstance(obj[1], str):
        return _frame(*obj, batch_size)
    if isinstance(obj, Batch | Mapping | torch.Tensor | numpy.ndarray | tuple) or _from("pandas", obj):
        kind = {Batch: "a batch", torch.Tensor: "a tensor", numpy.ndarray: "an array", tuple: "arrays"}.get(type(obj), _name(obj))
        return _rows(as_batch(obj), kind, batch_size)
    if isinstance(obj, IterableDataset):
        return Data(lambda: DataLoader(obj, batch_size, collate_fn=collate_items), f"{_name(obj)}, a stream,")
    return None


def _from_plugin(obj: Any, batch_size: int) -> Data | None:
    from kdkit.plugins import manager

    data = manager().first("kdkit_adopt_data", warnings.warn, obj=obj, batch_size=batch_size)
    if data is not None and not isinstance(data, Data):
        raise KdError(f"a plugin's kdkit_adopt_data returned {_name(data)}, not Data, for {_name(obj)}", "%kd plugins lists who answers that hook")
    return data


def _from(package: str, obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == package


def _name(obj: Any) -> str:
    name = type(obj).__name__
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"


def _rows(batch: Batch, why: str, batch_size: int) -> Data:
    return Items(Rows(batch), why, batch_size, as_batch)


def _loader(loader: DataLoader) -> Data:
    """With the loader's own dataset, batches and workers; the order is ours unless it has a sampler of its own."""
    if not _orderable(loader):
        return Data(lambda: loader, "a DataLoader in an order of its own", numbered=isinstance(loader.dataset, IterableDataset))
    loading = {key: getattr(loader, key) for key in ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")}
    return Items(loader.dataset, "a DataLoader", loader.batch_size or 1, loader.collate_fn, loading, loader.drop_last)


def _orderable(loader: DataLoader) -> bool:
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler.data_source))
    return whole and type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None


def _frame(frame: Any, column: str | None, batch_size: int) -> Data:
    if column is not None and column not in frame.columns:
        raise KdError(f"the frame has no column {column!r}", f"its columns: {', '.join(map(str, frame.columns))}")
    label = column if column is not None else next((key for key in LABEL_KEYS if key in frame.columns), None)
    inputs = frame if label is None else frame.drop(columns=[label])
    odd = [str(name) for name, kind in inputs.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
    if odd:
        raise KdError(
            f"not numbers: {', '.join(odd)}, of the frame's columns", "encode them (pandas.get_dummies) or drop them", "if one is the label, name it: (frame, 'column')"
        )
    gaps = [str(name) for name in frame.columns if frame[name].isna().any()]
    if gaps:
        raise KdError(f"missing values: {', '.join(gaps)}, of the frame's columns", "fill them in, or leave those rows out: frame.dropna()")
    labels = None if label is None else frame[label].to_numpy()
    told = "no label column" if label is None else f"labels in {label!r}"
    return _rows(as_batch((inputs.to_numpy(dtype="float32"), labels)), f"a frame ({inputs.shape[1]} columns, {told})", batch_size)


_READY = {"input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features"}


def _hugging_face(obj: Any, batch_size: int) -> Data:
    if isinstance(obj, Mapping):
        raise KdError(f"{_name(obj)} holds several data sets", f"choose one of {', '.join(map(repr, obj))}")
    columns, features = list(obj.column_names or []), obj.features or {}
    text = [name for name in columns if getattr(features.get(name), "dtype", "") in ("string", "large_string")]
    if text and not _READY & set(columns):
        tokenize = f"dataset.map(lambda rows: tokenizer(rows[{text[0]!r}], truncation=True), batched=True)"
        raise KdError(f"the dataset holds text ({', '.join(text)}), and a model wants tokens", f"tokenize it: {tokenize}")
    told = f"a Hugging Face dataset{f' ({chr(44).join(text)} left out)' if text else ''}"
    ready = obj.with_format("torch")
    if not hasattr(obj, "__len__"):
        return Data(lambda: DataLoader(ready, batch_size, collate_fn=collate_items), told)
    return Items(ready, told, batch_size, collate_items)


def _iterable(obj: Any, batch_size: int) -> Data:
    if isinstance(obj, str | bytes) or (isinstance(obj, list) and obj and isinstance(obj[0], str)):
        raise KdError("text is not data", "tokenize it: tokenizer(texts, padding=True, return_tensors='pt')")
    if isinstance(obj, type) or not any(hasattr(obj, name) for name in ("__iter__", "__getitem__", "__call__")):
        raise KdError(f"{obj.__name__ if isinstance(obj, type) else _name(obj)} is not data", ACCEPTED)
    if isinstance(obj, list):
        return Items(obj, "a list", batch_size, collate_items) if obj and _is_item(obj[0]) else Listed(obj, "a list of batches,")
    if isinstance(obj, Dataset) or (hasattr(obj, "__getitem__") and hasattr(obj, "__len__")):
        return Items(obj, _name(obj), batch_size, collate_items)
    if not hasattr(obj, "__iter__"):
        return Data(obj, f"what {getattr(obj, '__name__', type(obj).__name__)}() makes")
    if iter(obj) is obj:
        return Listed(obj, f"{_name(obj)}, kept in memory because it can be gone through only once,")
    return Data(lambda: obj, _name(obj))


def _is_item(obj: Any) -> bool:
    """Whether an element of a list is one item and no batch: its label is a single number."""
    if isinstance(obj, Mapping):
        label = next((obj[key] for key in LABEL_KEYS if key in obj), None)
    else:
        label = obj[-1] if isinstance(obj, list | tuple) and len(obj) > 1 else None
    return isinstance(label, bool | int | float | numpy.generic) or (isinstance(label, torch.Tensor | numpy.ndarray) and label.ndim == 0)


def collate_items(items: list) -> Any:
    """A batch of items; token sequences of different lengths are padded at the end, with a mask.

    Inputs are padded with 0, labels of tokens with -100; an `attention_mask` is made where there is none.

    >>> collate_items([{"input_ids": torch.ones(2), "label": 1}, {"input_ids": torch.ones(3), "label": 0}])["attention_mask"]
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    if not (isinstance(items[0], Mapping) and "input_ids" in items[0]):
        return _stacked(items)
    columns = {key: [torch.as_tensor(item[key]) for item in items] for key in items[0] if not isinstance(items[0][key], str | None)}
    if "attention_mask" not in columns and len(set(map(len, columns["input_ids"]))) > 1:
        columns["attention_mask"] = [torch.ones(len(row), dtype=torch.long) for row in columns["input_ids"]]
    return {key: _padded(rows, -100 if key in LABEL_KEYS else 0) for key, rows in columns.items()}


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value) if rows[0].ndim else torch.stack(rows)


def _stacked(items: list) -> Any:
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise KdError(f"items that can't be made one batch: {str(error).splitlines()[0]}", "bring them to one shape, or pass a DataLoader with a collate_fn") from error

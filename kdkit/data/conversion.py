"""Adoption: `Data` out of whatever holds data in a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from kdkit.data.batch import LABEL_KEYS, Batch, as_batch
from kdkit.data.datasets import BatchList, Data, MapDataset, TensorRows, own_randomness, remedies
from kdkit.data.tensors import is_text
from kdkit.data.text import NO_TOKENIZER, Tokenization, adopt_text, is_text_item, text_column
from kdkit.errors import KdError

ACCEPTED = (
    "data is: a DataLoader or Dataset; a tensor or array; (inputs, labels); a dict of arrays; a pandas frame, or (frame, 'label column'); "
    "a Hugging Face dataset; a list or any iterable of batches; a function that makes one; with a tokenizer, a list of texts or of "
    "{'prompt': ..., 'completion': ...}"
)
"""What `adopt_data` takes, as its errors say it."""


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


def _known(obj: Any, batch_size: int, tokenization: Tokenization | None = None) -> Data | None:
    if isinstance(obj, DataLoader):
        return _loader(obj)
    if _from("datasets", obj) and hasattr(obj, "column_names"):
        return _hugging_face(obj, batch_size, tokenization)
    if _from("pandas", obj) and hasattr(obj, "columns"):
        return _frame(obj, None, batch_size, tokenization)
    if isinstance(obj, tuple) and len(obj) == 2 and hasattr(obj[0], "columns") and isinstance(obj[1], str):
        return _frame(*obj, batch_size, tokenization)
    if isinstance(obj, Batch | Mapping | torch.Tensor | numpy.ndarray | tuple) or _from("pandas", obj):
        kind = {Batch: "a batch", torch.Tensor: "a tensor", numpy.ndarray: "an array", tuple: "arrays"}.get(type(obj), _name(obj))
        return _rows(as_batch(obj), kind, batch_size)
    if isinstance(obj, list) and (text := text_rows(obj)) is not None:
        return adopt_text(text, "a list", tokenization, batch_size)
    if isinstance(obj, IterableDataset):
        return Data(lambda: DataLoader(obj, batch_size, collate_fn=collate_items), f"{_name(obj)}, a stream,")
    return None


def adopt_text_rows(obj: Any, tokenization: Tokenization | None, batch_size: int) -> Data | None:
    """A data set, or a loader of one, whose items are text; None for other items."""
    text = text_rows(obj.dataset if isinstance(obj, DataLoader) else obj)
    return None if text is None else adopt_text(text, _name(obj), tokenization, getattr(obj, "batch_size", None) or batch_size)


def text_rows(dataset: Any) -> Any | None:
    """The rows of a data set whose items are text: strings, (text, label), or mappings of text; None for other items."""
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or _from("datasets", dataset) or not len(dataset):
        return None
    item = next(own_randomness(lambda: iter([dataset[0]]), 0))
    if is_text_item(item):
        return dataset
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and not isinstance(item[1], str):
        return _Renamed(dataset, _texts_and_labels)
    if not isinstance(item, Mapping):
        return None
    columns = {str(name): value for name, value in item.items() if name not in LABEL_KEYS}
    text = [name for name, value in columns.items() if isinstance(value, str)]
    if not text or any(not isinstance(value, str | int | float | None) for value in columns.values()):
        return None
    column = text_column(list(columns), text)
    return _Renamed(dataset, lambda row: {"text" if name == column else name: value for name, value in row.items()})


def _texts_and_labels(row: Any) -> dict[str, Any]:
    return {"text": row[0], "label": row[1]}


class _Renamed:
    """The rows of a data set as mappings with the names that text has."""

    def __init__(self, rows: Any, rename: Callable[[Any], Mapping[str, Any]]):
        self.rows, self.rename = rows, rename

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.rename(self.rows[number])


def _from(package: str, obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == package


def _name(obj: Any) -> str:
    name = type(obj).__name__
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"


def _rows(batch: Batch, reason: str, batch_size: int) -> Data:
    return MapDataset(TensorRows(batch), reason, batch_size, as_batch)


def _loader(loader: DataLoader) -> Data:
    """With the loader's own dataset, batches and workers; the order is ours unless it has a sampler of its own."""
    if not _orderable(loader):
        return Data(lambda: loader, "a DataLoader in an order of its own", numbered=isinstance(loader.dataset, IterableDataset))
    loading = {key: getattr(loader, key) for key in ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")}
    return MapDataset(loader.dataset, "a DataLoader", loader.batch_size or 1, loader.collate_fn, loading, loader.drop_last)


def _orderable(loader: DataLoader) -> bool:
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler.data_source))
    return whole and type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None


def _frame(frame: Any, column: str | None, batch_size: int, tokenization: Tokenization | None = None) -> Data:
    if column is not None and column not in frame.columns:
        raise KdError(f"the frame has no column {column!r}", f"its columns: {', '.join(map(str, frame.columns))}")
    label = column if column is not None else next((key for key in LABEL_KEYS if key in frame.columns), None)
    inputs = frame if label is None else frame.drop(columns=[label])
    text = [str(name) for name in inputs.columns if is_text(inputs[name].tolist())]
    if text and (not _numeric(inputs) or "text" in text or {"prompt", "completion"} <= set(text)):
        rows = frame.rename(columns={label: "label"} if label is not None else {}).to_dict("records")
        return adopt_text(rows, "a frame", tokenization, batch_size, text_column(list(map(str, inputs.columns)), text))
    odd = [str(name) for name in inputs.columns if str(name) not in _numeric(inputs)]
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


def _numeric(frame: Any) -> list[str]:
    """The columns of a frame that hold numbers."""
    return [str(name) for name, kind in frame.dtypes.items() if getattr(kind, "kind", "O") in "biuf"]


_READY = {"input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features"}


def _hugging_face(obj: Any, batch_size: int, tokenization: Tokenization | None = None) -> Data:
    if isinstance(obj, Mapping):
        raise KdError(f"{_name(obj)} holds several data sets", f"choose one of {', '.join(map(repr, obj))}")
    columns, features = list(obj.column_names or []), obj.features or {}
    text = [name for name in columns if getattr(features.get(name), "dtype", "") in ("string", "large_string")]
    if (text or "messages" in columns) and not _READY & set(columns):
        if tokenization is not None and hasattr(obj, "__len__"):
            return adopt_text(obj, "a Hugging Face dataset", tokenization, batch_size, text_column(columns, text))
        tokenize = f"dataset.map(lambda rows: tokenizer(rows[{(text or columns)[0]!r}], truncation=True), batched=True)"
        raise KdError(f"the dataset holds text ({', '.join(text)}), and a model needs tokens", NO_TOKENIZER, f"or tokenize it: {tokenize}")
    told = f"a Hugging Face dataset{f' ({chr(44).join(text)} left out)' if text else ''}"
    ready = obj.with_format("torch")
    if not hasattr(obj, "__len__"):
        return Data(lambda: DataLoader(ready, batch_size, collate_fn=collate_items), told)
    return MapDataset(ready, told, batch_size, collate_items)


_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList, torch.nn.ParameterDict)
"""Modules whose items are parts of a model, not data."""


_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "get_train_dataloader", "get_eval_dataloader")
"""Methods of Lightning's data modules and of transformers' trainers that make loaders."""


def _iterable(obj: Any, batch_size: int) -> Data:
    if isinstance(obj, str | bytes):
        raise KdError("a single text is not data", "pass a list of texts, one an item")
    if isinstance(obj, torch.nn.Module) and (isinstance(obj, _CONTAINERS) or not hasattr(obj, "__iter__")):
        raise KdError(f"{_name(obj)} is a model, not data", ACCEPTED)
    if loaders := [f"{{it.{name}()}}" for name in _LOADERS if callable(getattr(obj, name, None))]:
        raise KdError(f"{_name(obj)} holds several data sets", f"pass one of them: {' or '.join(loaders)}, where it is the name of this object")
    if isinstance(obj, type) or not (callable(obj) or any(hasattr(type(obj), name) for name in ("__iter__", "__getitem__"))):
        raise KdError(f"{obj.__name__ if isinstance(obj, type) else _name(obj)} is not data", ACCEPTED)
    if isinstance(obj, list):
        return MapDataset(obj, "a list", batch_size, collate_items) if obj and _is_item(obj[0]) else BatchList(obj, "a list of batches,")
    if isinstance(obj, Dataset) or (hasattr(obj, "__getitem__") and hasattr(obj, "__len__")):
        return MapDataset(obj, _name(obj), batch_size, collate_items)
    if not hasattr(obj, "__iter__"):
        return _made_by(obj)
    if isinstance(obj, Iterator):
        return BatchList(obj, f"{_name(obj)}, kept in memory because it can be gone through only once,")
    return Data(lambda: obj, _name(obj))


def _made_by(function: Callable) -> Data:
    """What a function without arguments returns for each pass."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C, and objects that only look like functions, have none
        raise KdError(f"{name} is not data", ACCEPTED) from None
    try:
        signature.bind()
    except TypeError as error:
        raise KdError(f"{name} is not data: as a function that makes batches it needs arguments ({error})", f"lambda: {name}(...) makes one without", ACCEPTED) from error

    def make() -> Any:
        made = function()
        if not hasattr(made, "__iter__"):
            raise KdError(f"{name}() returned {_name(made)}, not batches", "return an iterable of batches, such as a DataLoader")
        return made

    return Data(make, f"what {name}() makes")


def _has_targets(item: Any) -> bool:
    """Whether an item is a picture and the mapping of its true boxes."""
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping) and "boxes" in item[1]


def _target_key(item: Any) -> str | None:
    """Where a mapping has the true boxes of its picture, as an image processor of transformers returns them; None if nowhere."""
    return next((key for key in LABEL_KEYS if isinstance(item.get(key), Mapping) and "boxes" in item[key]), None) if isinstance(item, Mapping) else None


def _is_item(obj: Any) -> bool:
    """Whether an element of a list is one item and no batch: its label is a single number, or the boxes of one picture."""
    if _has_targets(obj) or _target_key(obj):
        return True
    if isinstance(obj, Mapping):
        label = next((obj[key] for key in LABEL_KEYS if key in obj), None)
    else:
        label = obj[-1] if isinstance(obj, list | tuple) and len(obj) > 1 else None
    return isinstance(label, bool | int | float | numpy.generic) or (isinstance(label, torch.Tensor | numpy.ndarray) and label.ndim == 0)


def collate_items(items: list) -> Any:
    """A batch of items; token sequences of different lengths are padded at the end, with a mask.

    Inputs are padded with 0, labels of tokens with -100; an `attention_mask` is made where there is none. True boxes stay lists,
    and pictures of pairs with them too, since pictures differ in their number of boxes.

    >>> collate_items([{"input_ids": torch.ones(2), "label": 1}, {"input_ids": torch.ones(3), "label": 0}])["attention_mask"]
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    if _has_targets(items[0]):
        return [item[0] for item in items], [item[1] for item in items]
    if key := _target_key(items[0]):
        return _stacked([{name: value for name, value in item.items() if name != key} for item in items]) | {key: [item[key] for item in items]}
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
        raise KdError(
            f"items that can't be made one batch: {str(error).splitlines()[0]}",
            *remedies(error),
            "bring them to one shape, or pass a DataLoader with a collate_fn",
        ) from error

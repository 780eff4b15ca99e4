"""Data: whatever holds batches in a notebook, adopted as one re-iterable thing with known labels."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset, default_collate

from kdkit.errors import KdError
from kdkit.models import evaluating

if TYPE_CHECKING:
    from torch import nn

LABEL_KEYS = ("labels", "label", "label_ids", "target", "targets", "y")
"""Keys under which dict batches carry their labels."""

ACCEPTED = (
    "data can be: a DataLoader or Dataset; a tensor or array; (inputs, labels); a dict of arrays; a pandas frame, or (frame, 'label column'); "
    "a Hugging Face dataset; a list or any iterable of batches; a function that makes one"
)
"""What `adopt_data` takes, as its errors say it."""


@dataclass(frozen=True)
class Batch:
    """One batch, as a model is called with it.

    Attributes:
        args: positional inputs, tensors of shape (batch, ...).
        kwargs: inputs by name, as HF models take them.
        labels: (batch, ...) or None.

    >>> Batch((torch.zeros(4, 3),), labels=torch.zeros(4)).size
    4
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None

    @property
    def size(self) -> int:
        """Items in the batch."""
        return len(next(item for item in (*self.args, *self.kwargs.values()) if isinstance(item, torch.Tensor)))

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, items: slice | torch.Tensor | list[int]) -> Batch:
        """Some of its items."""
        return self._map(lambda tensor: tensor[items] if tensor.ndim else tensor)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        def each(item: Any) -> Any:
            if isinstance(item, tuple):
                return tuple(map(each, item))
            return change(item) if isinstance(item, torch.Tensor) else item

        return Batch(tuple(map(each, self.args)), {key: each(item) for key, item in self.kwargs.items()}, each(self.labels))

    def call(self, model: Callable) -> Any:
        """What `model` gives for it."""
        return model(*self.args, **self.kwargs)

    def __str__(self) -> str:
        named = [_shape(item) for item in self.args] + [f"{key} {_shape(item)}" for key, item in self.kwargs.items()]
        return ", ".join(named) + (f"; labels {_shape(self.labels)}" if self.labels is not None else "; no labels")


def _shape(item: Any) -> str:
    if isinstance(item, torch.Tensor):
        return f"{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    return type(item).__name__


# Batches -------------------------------------------------------------------------------------------------------------


def as_batch(obj: Any) -> Batch:
    """One batch in any of the forms in which loaders give it.

    ========================  ===========================================================================================
    `x`, `(x,)`               inputs without labels
    `(x, y)`                  inputs and labels; `x` may be a tensor, a tuple of tensors or a dict; `y` may be None
    `(x1, x2, ..., y)`        the last one is the labels; without labels write `((x1, x2), None)`
    `{"name": x, ...}`        inputs by name; the first of `LABEL_KEYS` that it has is the labels
    ========================  ===========================================================================================

    Arrays and lists of numbers become tensors, float64 becomes float32 (models are float32), integer labels become int64.
    uint8 stays: how images are scaled belongs to the model's training, so the kit does not guess it. Text is left out of
    dicts that hold tensors too.

    Raises:
        KdError: it is none of these; or its parts differ in length.

    >>> as_batch(([[1.0, 2.0], [3.0, 4.0]], [0, 1])).labels
    tensor([0, 1])
    >>> sorted(as_batch({"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}).kwargs)
    ['input_ids']
    """
    inputs, labels = _parted(obj)
    if isinstance(inputs, Batch):
        batch = inputs if labels is None else Batch(inputs.args, inputs.kwargs, labels)
    elif isinstance(inputs, Mapping):
        named = {key: tensor for key, item in inputs.items() if (tensor := as_tensor(item, str(key), text=False)) is not None}
        batch = Batch((), named, labels)
    else:
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        batch = Batch(tuple(as_tensor(part, "the inputs") for part in parts), {}, labels)
    _check_lengths(batch)
    return batch


def _parted(obj: Any) -> tuple[Any, Any]:
    """Inputs and labels of a raw batch."""
    if isinstance(obj, Batch):
        return obj, None
    if isinstance(obj, Mapping):
        key = next((key for key in LABEL_KEYS if key in obj), None)
        return {name: item for name, item in obj.items() if name != key}, None if key is None else as_labels(obj[key])
    if not isinstance(obj, list | tuple) or not obj or isinstance(obj[0], bool | int | float):
        return obj, None
    *inputs, labels = obj if len(obj) > 1 else (obj[0], None)
    if len(inputs) > 1:
        return tuple(inputs), as_labels(labels)
    found, inner = _parted(inputs[0]) if isinstance(inputs[0], Mapping | Batch) else (inputs[0], None)
    if isinstance(found, list | tuple) and found and not isinstance(found[0], bool | int | float | list):
        found = tuple(found)
    return found, inner if labels is None else as_labels(labels)


def as_tensor(item: Any, where: str, text: bool = True) -> torch.Tensor | None:
    """A tensor of what holds numbers; float64 becomes float32.

    Args:
        text: whether text is an error; otherwise it gives None.
    """
    if type(item).__module__.partition(".")[0] == "pandas":
        item = item.to_numpy()
    if isinstance(item, list | tuple):
        item = _rectangle(item, where)
    if isinstance(item, numpy.ndarray | numpy.generic):
        if item.dtype.kind in "OSU":
            if text:
                raise KdError(
                    f"{where}: holds {'text' if item.dtype.kind != 'O' else 'objects'}, not numbers", "tokenize text, and encode names as numbers, before handing it over"
                )
            return None
        wide = item.dtype.kind == "u" and item.dtype.itemsize > 1
        item = torch.as_tensor(numpy.array(item, dtype=numpy.int64 if wide else item.dtype.newbyteorder("="), copy=None))
    if isinstance(item, torch.Tensor):
        return item.float() if item.dtype == torch.float64 else item
    if isinstance(item, bool | int | float):
        return torch.tensor(item)
    if not text and (item is None or isinstance(item, str)):
        return None
    raise KdError(f"{where}: {type(item).__name__} is not a tensor", ACCEPTED)


def as_labels(item: Any) -> Any:
    """Labels as tensors, integers and booleans as int64; a tuple of labels stays a tuple."""
    if item is None:
        return None
    if isinstance(item, tuple) and item and not isinstance(item[0], bool | int | float):
        return tuple(map(as_labels, item))
    labels = as_tensor(item, "the labels")
    return labels if labels.is_floating_point() or labels.is_complex() else labels.long()


def _rectangle(rows: list | tuple, where: str) -> numpy.ndarray:
    if rows and all(isinstance(row, torch.Tensor) for row in rows):
        shapes = {tuple(row.shape) for row in rows}
        if len(shapes) > 1:
            raise KdError(f"{where}: items of different shapes, {' and '.join(map(str, sorted(shapes)[:2]))}", "pad them to one length")
        return torch.stack(list(rows)).numpy()
    try:
        return numpy.array(rows)
    except ValueError as error:
        lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")})
        raise KdError(f"{where}: rows of different lengths, {lengths[0]} to {lengths[-1]}" if lengths else f"{where}: {error}", "pad them to one length") from error


def _check_lengths(batch: Batch) -> None:
    named = {f"input {index + 1}": item for index, item in enumerate(batch.args)} | dict(batch.kwargs) | {"labels": batch.labels}
    lengths = {name: len(item) for name, item in named.items() if isinstance(item, torch.Tensor) and item.ndim}
    if not any(name != "labels" for name in lengths):
        raise KdError("a batch without any input tensor" + (f" (only {', '.join(map(str, named))})" if named else ""), ACCEPTED)
    if len(set(lengths.values())) > 1:
        raise KdError(
            f"parts of different lengths: {', '.join(f'{name} has {length}' for name, length in lengths.items())}", "every input and the labels need one entry an item"
        )


# Data ----------------------------------------------------------------------------------------------------------------


class Data:
    """Batches that can be gone through again and again, always in the same order unless shuffled.

    Args:
        batches: called for each pass; gives an iterable of batches in any form that `as_batch` takes.
        why: what was adopted and how it was understood, one line.
        items: how many items a pass has, where it is known.

    Items of such a stream stay in the order in which it gives them; `Items` can really shuffle.

    >>> data = Data(lambda: [torch.zeros(3, 2), torch.ones(1, 2)], "two tensors")
    >>> [batch.size for batch in data.batches()], data.labelled, data.example().size
    ([3, 1], False, 3)
    """

    def __init__(self, batches: Callable[[], Iterable], why: str, items: int | None = None):
        self._make = batches
        self.why = why
        self.items = items
        self._example: Batch | None = None

    def batches(self, shuffle: bool = False, seed: int | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        """One pass.

        Args:
            shuffle: another order for every seed.
            seed: of the order and of all that loading does at random; drawn from torch's generator when not given and shuffled.
            batch_size: items a batch; as the data comes when not said.

        The random generators of torch (on the CPU), numpy and Python are as before after each batch.

        Raises:
            KdError: there is no batch; or batches of different shapes can't be joined to `batch_size`.
        """
        if seed is None:
            seed = int(torch.randint(2**31, ())) if shuffle else 0
        found = False
        for batch in self._pass(shuffle, seed, batch_size):
            found = True
            yield batch
        if not found:
            raise KdError(f"no batch in {self.why}", "the data is empty, or can be gone through only once; pass a list of its batches")

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        batches = map(as_batch, own_randomness(self._make, seed))
        return batches if batch_size is None else _rebatched(batches, batch_size)

    def example(self) -> Batch:
        """The first batch; kept, so that it costs loading once."""
        if self._example is None:
            self._example = self._first()
        return self._example

    def _first(self) -> Batch:
        return next(self.batches())

    @property
    def labelled(self) -> bool:
        """Whether its batches carry labels."""
        return self.example().labels is not None

    def length(self, batch_size: int | None = None) -> int | None:
        """How many batches a shuffled pass has, where that is known without making one."""
        return None if self.items is None or batch_size is None else -(-self.items // batch_size)

    def take(self, items: int) -> Data:
        """The first `items` items, for a quick look."""

        def first() -> Iterator[Batch]:
            left = items
            for batch in self.batches():
                yield batch[:left]
                left -= batch.size
                if left <= 0:
                    return

        return Data(first, f"the first {items} items of {self.why}", items if self.items is None else min(items, self.items))

    def __repr__(self) -> str:
        return f"Data({self.why})"


class Listed(Data):
    """Batches in a list; shuffling changes their order, and items of one batch stay together."""

    def __init__(self, batches: list, why: str):
        super().__init__(lambda: batches, why)
        self._list = [as_batch(batch) for batch in batches]
        self.items = sum(batch.size for batch in self._list)

    def length(self, batch_size: int | None = None) -> int | None:
        return len(self._list) if batch_size is None else super().length(batch_size)

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        batches = map(self._list.__getitem__, _order(len(self._list), shuffle, seed))
        return batches if batch_size is None else _rebatched(batches, batch_size)


class Items(Data):
    """Items that can be had by number, so that they are really shuffled and batched at will.

    Args:
        dataset: has `__len__` and `__getitem__`.
        why: one line.
        batch_size: items a batch when a pass does not say.
        collate: makes a batch of a list of items.
        loading: further arguments for the DataLoader that loads them, such as `num_workers`.
        drop_last: leave out the last, smaller batch of a shuffled pass. A pass in order has every item.
    """

    def __init__(self, dataset: Any, why: str, batch_size: int = 32, collate: Callable | None = None, loading: Mapping[str, Any] | None = None, drop_last: bool = False):
        super().__init__(self._again, why, len(dataset))
        self._dataset, self._batch_size, self._drop_last = dataset, batch_size, drop_last
        self._loading = {"collate_fn": collate or collate_items} | dict(loading or {})

    def _again(self) -> Iterator[Batch]:
        return self.batches()

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        order, size = _order(len(self._dataset), shuffle, seed), batch_size or self._batch_size
        loader: DataLoader = DataLoader(
            self._dataset,
            size,
            sampler=order,
            drop_last=shuffle and self._drop_last and len(order) >= size,
            generator=torch.Generator().manual_seed(seed),
            **self._loading,
        )
        return map(as_batch, own_randomness(lambda: loader, seed))

    def length(self, batch_size: int | None = None) -> int | None:
        items, size = len(self._dataset), batch_size or self._batch_size
        return items // size if self._drop_last and items >= size else -(-items // size)

    def _first(self) -> Batch:
        if not len(self._dataset):
            return super()._first()
        items = range(min(self._batch_size, len(self._dataset)))
        loader: DataLoader = DataLoader(self._dataset, len(items), sampler=items, collate_fn=self._loading["collate_fn"], generator=torch.Generator().manual_seed(0))
        return as_batch(next(own_randomness(lambda: loader, 0)))

    def take(self, items: int) -> Data:
        some = Subset(self._dataset, range(min(items, len(self._dataset))))
        return Items(some, f"the first {items} items of {self.why}", self._batch_size, loading=self._loading, drop_last=self._drop_last)


class Rows(Dataset):
    """The items of one big batch in memory."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __len__(self) -> int:
        return self.batch.size

    def __getitem__(self, index: int) -> Batch:
        return self.batch[[index]]

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.batch[torch.as_tensor(indices)]


def _order(items: int, shuffle: bool, seed: int) -> list[int]:
    return torch.randperm(items, generator=torch.Generator().manual_seed(seed)).tolist() if shuffle else list(range(items))


def own_randomness(make: Callable[[], Iterable], seed: int) -> Iterator[Any]:
    """Go through `make()` with random generators of its own, seeded with `seed`; the user's are as before after each step.

    >>> list(own_randomness(lambda: (random.random() for _ in range(2)), 5)) == list(own_randomness(lambda: (random.random() for _ in range(2)), 5))
    True
    """
    theirs = _random_states()
    torch.default_generator.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        iterator = iter(make())
        mine = _random_states()
    finally:
        _set_random_states(theirs)
    while True:
        theirs = _random_states()
        _set_random_states(mine)
        try:
            item = next(iterator)
            mine = _random_states()
        except StopIteration:
            return
        finally:
            _set_random_states(theirs)
        yield item


def _random_states() -> tuple:
    return torch.default_generator.get_state(), numpy.random.get_state(), random.getstate()


def _set_random_states(states: tuple) -> None:
    torch.default_generator.set_state(states[0])
    numpy.random.set_state(states[1])
    random.setstate(states[2])


def _rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    rest: Batch | None = None
    for batch in batches:
        rest = batch if rest is None else _joined(rest, batch)
        while rest.size > size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None:
        yield rest


def _joined(one: Batch, other: Batch) -> Batch:
    def cat(first: Any, second: Any) -> Any:
        return torch.cat([first, second]) if isinstance(first, torch.Tensor) and first.ndim else first

    try:
        named = {key: cat(item, other.kwargs[key]) for key, item in one.kwargs.items()}
        return Batch(tuple(map(cat, one.args, other.args)), named, cat(one.labels, other.labels))
    except (RuntimeError, KeyError, TypeError) as error:
        raise KdError(f"batches of ({one}) and ({other}) can't be joined to another batch size", "leave --batch-size out, or pad the batches to one length") from error


# Adoption ------------------------------------------------------------------------------------------------------------


def adopt_data(obj: Any, batch_size: int = 32) -> Data:
    """`Data` out of whatever holds data in a notebook; `ACCEPTED` lists the forms.

    Args:
        batch_size: items a batch, where `obj` has no batches of its own.

    A tuple of arrays is one data set, (inputs, labels); a list is a list of batches. A plugin may take further kinds
    (`kdkit_adopt_data`).

    Raises:
        KdError: nobody knows how, it is empty, it is text, or its parts differ in length.

    >>> adopt_data((torch.zeros(50, 3), torch.zeros(50, dtype=torch.long)))
    Data(a pair of arrays, (x, y): 50 items, batches of 32)
    """
    if isinstance(obj, Data):
        return obj
    data = _adopt(obj, batch_size)
    if data.items == 0:
        raise KdError(f"no items in {data.why}", "give data with at least one item")
    data.example()
    return data


def _adopt(obj: Any, batch_size: int) -> Data:
    home = type(obj).__module__.partition(".")[0]
    if isinstance(obj, DataLoader):
        return _loader(obj)
    if home == "datasets":
        return _hugging_face(obj, batch_size)
    if home == "pandas" and hasattr(obj, "columns"):
        return _frame(obj, None, batch_size)
    if isinstance(obj, tuple) and len(obj) == 2 and type(obj[0]).__module__.partition(".")[0] == "pandas" and isinstance(obj[1], str):
        return _frame(obj[0], obj[1], batch_size)
    if isinstance(obj, Batch | Mapping | torch.Tensor | numpy.ndarray) or home == "pandas" or (isinstance(obj, tuple) and obj):
        return _rows(obj, batch_size)
    if isinstance(obj, IterableDataset):
        return Data(lambda: DataLoader(obj, batch_size, collate_fn=collate_items), f"{_name(obj)}, an iterable dataset: batches of {batch_size}")
    from kdkit.plugins import manager

    adopted = manager().hook.kdkit_adopt_data(obj=obj, batch_size=batch_size)
    return adopted if isinstance(adopted, Data) else _iterable(obj, batch_size)


def _rows(obj: Any, batch_size: int) -> Data:
    batch = as_batch(obj)
    kind = {Batch: "a batch", torch.Tensor: "a tensor", numpy.ndarray: "an array"}.get(
        type(obj), "a dict" if isinstance(obj, Mapping) else "arrays" if not isinstance(obj, tuple) else "a pair of arrays"
    )
    return Items(
        Rows(batch),
        f"{kind}{', ' * (kind != 'a tensor' and kind != 'an array')}{_form(batch) if kind not in ('a tensor', 'an array') else ''}: {batch.size} items, batches of {batch_size}",
        batch_size,
        _same,
    )


def _same(batch: Batch) -> Batch:
    return batch


def _form(batch: Batch) -> str:
    if batch.kwargs:
        return "{" + ", ".join([*batch.kwargs, *(["labels"] if batch.labels is not None else [])]) + "}"
    names = ["x"] if len(batch.args) == 1 else [f"x{index + 1}" for index in range(len(batch.args))]
    names += ["y"] if batch.labels is not None else []
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _name(obj: Any) -> str:
    name = type(obj).__name__
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _loader(loader: DataLoader) -> Data:
    plain = type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset) and type(loader.batch_sampler) is BatchSampler
    ordered = isinstance(loader.sampler, SequentialSampler) or (
        isinstance(loader.sampler, RandomSampler) and not loader.sampler.replacement and loader.sampler._num_samples is None
    )
    if not (plain and ordered and loader.batch_size):
        return Data(lambda: loader, "a DataLoader with an order of its own")
    loading = {key: getattr(loader, key) for key in ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")}
    return Items(
        loader.dataset, f"a DataLoader: {len(loader.dataset)} items, batches of {loader.batch_size}", loader.batch_size, loader.collate_fn, loading, loader.drop_last
    )


def _frame(frame: Any, column: str | None, batch_size: int) -> Data:
    if column is not None and column not in frame.columns:
        raise KdError(f"the frame has no column {column!r}", f"its columns: {', '.join(map(str, frame.columns))}")
    label = column if column is not None else next((key for key in LABEL_KEYS if key in frame.columns), None)
    inputs = frame.drop(columns=[label]) if label is not None else frame
    odd = [str(name) for name, kind in inputs.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
    if odd:
        raise KdError(
            f"column {', '.join(odd)} of the frame: not numbers", "encode it (pandas.get_dummies) or drop it", "name the label column: --train {(frame, 'column')}"
        )
    empty = [str(name) for name in frame.columns if frame[name].isna().any()]
    if empty:
        raise KdError(f"column {', '.join(empty)} of the frame: missing values", "fill them in or drop those rows (frame.dropna())")
    batch = as_batch((inputs.to_numpy(dtype="float32"), None if label is None else frame[label].to_numpy()))
    labels = f"labels in {label!r}" if label is not None else f"no labels (none of its columns is {', '.join(LABEL_KEYS[:3])}, ...)"
    return Items(Rows(batch), f"a frame of {inputs.shape[1]} columns, {labels}: {len(frame)} items, batches of {batch_size}", batch_size, _same)


def _hugging_face(obj: Any, batch_size: int) -> Data:
    if isinstance(obj, Mapping):
        raise KdError(f"{_name(obj)} holds several data sets", f"choose one: {', '.join(f'[{key!r}]' for key in obj)}")
    columns = obj.column_names or []
    if not hasattr(obj, "__len__"):
        return Data(lambda: DataLoader(obj, batch_size, collate_fn=collate_items), f"a streamed Hugging Face dataset of {', '.join(columns)}: batches of {batch_size}")
    text = [name for name in columns if getattr(obj.features[name], "dtype", "") in ("string", "large_string")]
    if text and not {"input_ids", "pixel_values", "input_values", "input_features"} & set(columns):
        hint = f'dataset.map(lambda rows: tokenizer(rows["{text[0]}"], truncation=True), batched=True)'
        raise KdError(f"the dataset holds text ({', '.join(text)}), and a model wants tokens", f"tokenize it: {hint}")
    kept = [name for name in columns if name not in text]
    left = f", without {', '.join(text)}" if text else ""
    return Items(
        obj.select_columns(kept).with_format("torch"), f"a Hugging Face dataset of {', '.join(kept)}{left}: {len(obj)} items, batches of {batch_size}", batch_size
    )


def _iterable(obj: Any, batch_size: int) -> Data:
    if isinstance(obj, str | bytes):
        raise KdError(f"text is not data: {obj[:40]!r}", "tokenize it: tokenizer(texts, padding=True, return_tensors='pt')")
    if callable(obj) and not isinstance(obj, type) and not hasattr(obj, "__iter__") and not hasattr(obj, "__getitem__"):
        return Data(obj, f"batches made by {getattr(obj, '__name__', type(obj).__name__)}")
    if isinstance(obj, list):
        return _list(obj, batch_size)
    if isinstance(obj, Dataset) or (hasattr(obj, "__getitem__") and hasattr(obj, "__len__")):
        return Items(obj, f"{_name(obj)}: {len(obj)} items, batches of {batch_size}", batch_size)
    if not hasattr(obj, "__iter__"):
        raise KdError(f"{_name(obj)} is not data", ACCEPTED)
    if iter(obj) is obj:
        batches = list(obj)
        return Listed(batches, f"{_name(obj)} that can be gone through only once; its {len(batches)} batches were kept in memory")
    return Data(lambda: obj, f"{_name(obj)} of batches")


def _list(obj: list, batch_size: int) -> Data:
    if obj and isinstance(obj[0], str):
        raise KdError("a list of text is not data", "tokenize it: tokenizer(texts, padding=True, return_tensors='pt')")
    if obj and _is_item(obj[0]):
        return Items(obj, f"a list of {len(obj)} items, batches of {batch_size}", batch_size)
    return Listed(obj, f"a list of {len(obj)} batches")


def _is_item(obj: Any) -> bool:
    """Whether an element of a list is one item, not a batch: its label is a single number."""
    label = (
        next((obj[key] for key in LABEL_KEYS if key in obj), None) if isinstance(obj, Mapping) else obj[-1] if isinstance(obj, list | tuple) and len(obj) > 1 else None
    )
    return isinstance(label, bool | int | float | numpy.generic) or (isinstance(label, torch.Tensor | numpy.ndarray) and label.ndim == 0)


def collate_items(items: list) -> Any:
    """A batch of items; token sequences of different lengths are padded at the end, with a mask.

    `input_ids` and all else are padded with 0, per-token labels with -100; an `attention_mask` is made where there is none.

    >>> collate_items([{"input_ids": torch.ones(2), "label": 1}, {"input_ids": torch.ones(3), "label": 0}])["attention_mask"]
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    if not (isinstance(items, list) and items and isinstance(items[0], Mapping) and "input_ids" in items[0]):
        return default_collate(items)
    columns = {key: [torch.as_tensor(item[key]) for item in items] for key in items[0] if not isinstance(items[0][key], str | None)}
    if "attention_mask" not in columns and len({len(row) for row in columns["input_ids"]}) > 1:
        columns["attention_mask"] = [torch.ones(len(row), dtype=torch.long) for row in columns["input_ids"]]
    pad = {key: -100 if key in LABEL_KEYS else 0 for key in columns}
    return {key: torch.nn.utils.rnn.pad_sequence(rows, True, pad[key]) if rows[0].ndim else torch.stack(rows) for key, rows in columns.items()}


# Models and batches --------------------------------------------------------------------------------------------------


def try_call(model: nn.Module, batch: Batch) -> Any:
    """What `model` gives for the first item of a batch, in eval mode and without gradients.

    Raises:
        KdError: it can't be called with such a batch; the message names what forward wants and what the batch gives.
    """
    item = batch[:1]
    try:
        signature = inspect.signature(model.forward)
        signature.bind(*item.args, **item.kwargs)
    except TypeError as error:
        raise KdError(
            f"{type(model).__name__}.forward{signature} can't take such a batch: {error}",
            f"the batch gives {item}",
            "give batches of (x, y), of (x1, x2, y) for several inputs, or dicts whose keys are forward's arguments",
        ) from error
    try:
        with evaluating(model):
            return item.call(model)
    except KdError:
        raise
    except Exception as error:
        raise KdError(
            f"{type(model).__name__} fails on the first item: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            f"the batch gives {item}",
            *_remedies(model, item),
        ) from error


def _remedies(model: nn.Module, item: Batch) -> Iterator[str]:
    tensors = [tensor for tensor in (*item.args, *item.kwargs.values()) if isinstance(tensor, torch.Tensor)]
    if any(tensor.dtype == torch.uint8 for tensor in tensors):
        yield "the inputs are uint8; scale them as in the model's training, such as x.float() / 255"
    kinds = {weight.dtype for weight in itertools.islice(model.parameters(), 100) if weight.is_floating_point()}
    if kinds and not kinds & {tensor.dtype for tensor in tensors} and any(tensor.is_floating_point() for tensor in tensors):
        yield f"the model's weights are {', '.join(str(kind).removeprefix('torch.') for kind in kinds)}"
    if len(item.args) > 1:
        yield "of a tuple the last part is taken for the labels; write ((x1, x2), None) where there are none"

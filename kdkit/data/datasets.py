"""Data sets: batches that can be iterated repeatedly, in an order that a seed determines."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Subset

from kdkit.data.batch import Batch, as_batch
from kdkit.data.tensors import PICTURES
from kdkit.errors import Cancelled, KdError, describe_exception, read_message
from kdkit.guards.error_location import find_error_line
from kdkit.renaming import renamed_argument, renamed_property


class Data:
    """Batches that can be iterated repeatedly, in the same order unless shuffled.

    Args:
        batches: called for each pass; gives an iterable of batches in any form that `as_batch` takes.
        reason: the object that was adopted and how it was interpreted, one line.
        items: number of items in a pass, if known.
        numbered: whether each pass has the same order, so that counting gives items their numbers.

    Attributes:
        prepare: called with each batch of a pass: the batch that the model is called with.

    Such a stream keeps the order in which it comes, seeded; `MapDataset` can really shuffle.

    >>> data = Data(lambda: [torch.zeros(3, 2), torch.ones(1, 2)], "two tensors")
    >>> [batch.size for batch in data.batches()], data.labelled, data.example().size
    ([3, 1], False, 3)
    >>> [batch.numbers.tolist() for batch in data.batches()]
    [[0, 1, 2], [3]]
    """

    why = renamed_property("why", "reason")

    @renamed_argument("why", "reason")
    def __init__(self, batches: Callable[[], Iterable], reason: str, items: int | None = None, numbered: bool = True):
        self._make = batches
        self.reason = reason
        self.items = items
        self.numbered = numbered
        self.prepare: Callable[[Batch], Batch] | None = None
        self._example: Batch | None = None

    def batches(self, shuffle: bool = False, seed: int | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        """One pass.

        Args:
            shuffle: another order for every seed.
            seed: of the order; when not given, the same for each pass in order, drawn from torch's generator if shuffled.
            batch_size: items per batch; default: the batch size of the data.

        A pass in order is the same every time, random augmentation included, and leaves the generators of torch (CPU),
        numpy and Python as they were. So does a shuffled stream; the augmentation of shuffled `MapDataset` follows those generators.

        Raises:
            KdError: there is no batch; or batches of different shapes can't be joined to `batch_size`.
        """
        if seed is None:
            seed = int(torch.randint(2**31, ())) if shuffle else 0
        found = False
        for batch in self._explained(self._pass(shuffle, seed, batch_size)):
            found = True
            yield self._prepared(batch)
        if not found:
            self._empty()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def prepared(self, prepare: Callable[[Batch], Batch], how: str) -> Data:
        """The same data, each batch passed through a function.

        Args:
            prepare: batch -> the batch that the model is called with.
            how: what it does, for `reason`.

        >>> data = Data(lambda: [torch.zeros(3, 2)], "one tensor").prepared(lambda batch: batch[:1], "cut")
        >>> data, data.example().size
        (Data(one tensor, cut), 1)
        """
        made = copy.copy(self)
        made.prepare, made.reason = prepare, f"{self.reason}, {how}"
        return made

    def _explained(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; an error of the user's own code that loads them is explained."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (KdError, Cancelled):
                raise
            except Exception as error:
                raise self._failure(error) from error
            yield batch

    def _failure(self, error: Exception) -> KdError:
        place = find_error_line(error, "__main__")
        what = f"{self.reason.rstrip(',')} can't be loaded: {describe_exception(error).splitlines()[0]}" + (f" ({place}: {place.code})" if place else "")
        return KdError(what, *remedies(error), "next(iter(data)) shows the same error with its traceback")

    def _prepared(self, batch: Batch) -> Batch:
        return batch if self.prepare is None else self.prepare(batch)

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        batches = map(as_batch, own_randomness(self._make, seed))
        return rebatched(self._counted(batches) if self.numbered else (replace(batch, numbers=None) for batch in batches), batch_size)

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """With numbers, by counting; without, where the stream turns out to have another order than at first."""
        done, known = 0, True
        for batch in batches:
            if not done and self._example is not None:
                known = _same_start(batch, self._example)
            yield replace(batch, numbers=torch.arange(done, done + batch.size) if known else None)
            done += batch.size

    def example(self) -> Batch:
        """The first batch; kept, so that it is loaded once."""
        if self._example is None:
            self._example = next(self._explained(_once(self._first)))
        return self._prepared(self._example)

    def _first(self) -> Batch:
        return next(self._pass(False, 0, None), None) or self._empty()

    def _empty(self) -> Any:
        raise KdError(f"no batch in {self.reason}", "the data is empty, or is an iterator that was exhausted; pass a list of its batches")

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

        return Data(first, f"the first {items} of {self.reason}", None if self.items is None else min(items, self.items), self.numbered)

    def sample(self, items: int) -> Data:
        """Some of the items, from batches that are spread evenly over a pass; the first ones where the number of items is not known.

        >>> [batch.flatten().tolist() for batch in (each.args[0] for each in Data(lambda: torch.arange(8).split(2), "pairs", 8).sample(4))]
        [[0, 1], [4, 5]]
        """
        total = self.items
        if total is None or items >= total:
            return self.take(items)

        def spread() -> Iterator[Batch]:
            passed = taken = 0
            for batch in self.batches():
                if taken < items and taken * total <= items * passed:
                    chosen = batch[: items - taken]
                    yield chosen
                    taken += chosen.size
                passed += batch.size

        return Data(spread, f"{items} of {self.reason}", items, self.numbered)

    def __repr__(self) -> str:
        return f"Data({self.reason})"


def _once(make: Callable[[], Batch]) -> Iterator[Batch]:
    yield make()


def remedies(error: Exception) -> Iterator[str]:
    """Hints for an error of the code that loads data."""
    if "PIL." in read_message(error):
        yield PICTURES


class BatchList(Data):
    """Batches in a list; shuffling changes their order, and the items of a batch stay together."""

    @renamed_argument("why", "reason")
    def __init__(self, batches: Iterable, reason: str):
        self._list: list[Batch] = []
        done = 0
        for batch in map(as_batch, batches):
            self._list.append(replace(batch, numbers=torch.arange(done, done + batch.size)))
            done += batch.size
        super().__init__(lambda: self._list, reason, sum(batch.size for batch in self._list))

    def length(self, batch_size: int | None = None) -> int | None:
        return len(self._list) if batch_size is None else super().length(batch_size)

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        return rebatched(map(self._list.__getitem__, order(len(self._list), shuffle, seed)), batch_size)


class MapDataset(Data):
    """A map-style data set: items are indexable, so they can be shuffled and re-batched.

    Args:
        dataset: has `__len__` and `__getitem__`; `__getitems__`, if it exists, loads all items of a batch at once.
        reason: one line.
        batch_size: items per batch; default of each pass.
        collate: combines items into a batch.
        loading: further arguments for the DataLoader that loads them, such as `num_workers`.
        drop_last: skip the last, smaller batch of a shuffled pass. A pass in order has every item.

    >>> data = MapDataset([(torch.zeros(2), label) for label in range(5)], "five items", batch_size=2)
    >>> [batch.labels.tolist() for batch in data.batches()]
    [[0, 1], [2, 3], [4]]
    """

    @renamed_argument("why", "reason")
    def __init__(
        self, dataset: Any, reason: str, batch_size: int = 32, collate: Callable | None = None, loading: Mapping[str, Any] | None = None, drop_last: bool = False
    ):
        super().__init__(lambda: self._loader(range(len(dataset)), batch_size, 0, **self._loading), reason, len(dataset))
        self._dataset, self.batch_size, self._collate, self._loading, self._drop_last = dataset, batch_size, collate, loading or {}, drop_last

    def _loader(self, numbers: Any, batch_size: int, seed: int, **loading: Any) -> DataLoader:
        return DataLoader(self._dataset, batch_size, sampler=numbers, collate_fn=self._collate, generator=torch.Generator().manual_seed(seed), **loading)

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        numbers, size = order(len(self._dataset), shuffle, seed), batch_size or self.batch_size
        drop_last = shuffle and self._drop_last and len(numbers) >= size
        loader = self._loader(numbers, size, seed, drop_last=drop_last, **self._loading)
        batches = map(as_batch, loader if shuffle else own_randomness(lambda: loader, seed))
        return (_numbered(batch, numbers[index * size : (index + 1) * size]) for index, batch in enumerate(batches))

    def length(self, batch_size: int | None = None) -> int | None:
        items, size = len(self._dataset), batch_size or self.batch_size
        return items // size if self._drop_last and items >= size else -(-items // size)

    def _first(self) -> Batch:
        """Loaded in this process, so that no workers start for one batch."""
        if not len(self._dataset):
            return super()._first()
        numbers = range(min(self.batch_size, len(self._dataset)))
        return _numbered(as_batch(next(own_randomness(lambda: self._loader(numbers, len(numbers), 0), 0))), list(numbers))

    def take(self, items: int) -> MapDataset:
        some = Subset(self._dataset, range(min(items, len(self._dataset))))
        made = MapDataset(some, f"the first {items} of {self.reason}", self.batch_size, self._collate, self._loading, self._drop_last)
        made.prepare = self.prepare
        return made

    def sample(self, items: int) -> Data:
        """Items drawn at random, in order, the same each time; only these are loaded."""
        if items >= len(self._dataset):
            return self
        drawn = sorted(random.Random(0).sample(range(len(self._dataset)), items))
        made = MapDataset(Subset(self._dataset, drawn), f"{items} of {self.reason}", self.batch_size, self._collate, self._loading, self._drop_last)
        made.prepare = self.prepare
        return made


class PairedData(Data):
    """Several data sets as one; shuffled batches mix their items. Items are numbered in the order of the sets.

    Args:
        parts: map-style data sets.
        change: (number of a part, what a batch holds of it) -> the same with other labels, or without.

    Raises:
        KdError: a part is a stream.

    >>> parts = [MapDataset([(torch.zeros(2), label) for label in labels], "items", batch_size=3) for labels in ([0, 1], [2, 3])]
    >>> [batch.labels.tolist() for batch in PairedData(parts).batches()]
    [[0, 1, 2], [3]]
    """

    def __init__(self, parts: Sequence[Data], change: Callable[[int, Batch], Batch] = lambda part, batch: batch):
        stream = next((part for part in parts if not isinstance(part, MapDataset)), None)
        if stream is not None:
            raise KdError(f"{stream.reason} can't be joined with other data", "pass a map-style data set or arrays instead of a stream")
        self._parts = [part for part in parts if isinstance(part, MapDataset)]
        self._begins = [sum(len(part._dataset) for part in self._parts[:number]) for number in range(len(parts) + 1)]
        self._change, self.batch_size = change, self._parts[0].batch_size
        super().__init__(lambda: self._loaded(list(range(self._begins[-1])), self.batch_size), " and ".join(part.reason for part in parts), self._begins[-1])

    def _loaded(self, numbers: list[int], size: int) -> Iterator[Batch]:
        return (self._batch(torch.tensor(numbers[start : start + size])) for start in range(0, len(numbers), size))

    def _batch(self, numbers: torch.Tensor) -> Batch:
        whole: Batch | None = None
        owner = torch.bucketize(numbers, torch.tensor(self._begins[1:]), right=True)
        for number in owner.unique().tolist():
            part, mine = self._parts[number], numbers[owner == number]
            loader = part._loader((mine - self._begins[number]).tolist(), len(mine), 0)
            batch = self._change(number, part._prepared(_numbered(as_batch(next(iter(loader))), mine.tolist())))
            whole = batch if whole is None else _joined(whole, batch, "their inputs must have the same names, shapes and types, and all of them labels or none")
        assert whole is not None  # a batch has items
        # in the order that was asked for
        return whole[owner.argsort(stable=True).argsort()]

    def _pass(self, shuffle: bool, seed: int, batch_size: int | None) -> Iterator[Batch]:
        numbers, size = order(self._begins[-1], shuffle, seed), batch_size or self.batch_size
        return self._loaded(numbers, size) if shuffle else own_randomness(lambda: self._loaded(numbers, size), seed)

    def length(self, batch_size: int | None = None) -> int | None:
        return -(-self._begins[-1] // (batch_size or self.batch_size))


class TensorRows:
    """The items of one batch in memory, as a map-style data set."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __len__(self) -> int:
        return self.batch.size

    def __getitem__(self, number: int) -> Batch:
        return self.batch[number : number + 1]

    def __getitems__(self, numbers: list[int]) -> Batch:
        return self.batch[torch.as_tensor(numbers)]


def _numbered(batch: Batch, numbers: list[int]) -> Batch:
    """With these numbers; a collate function that makes more or fewer of its items leaves them without."""
    return replace(batch, numbers=torch.tensor(numbers) if batch.size == len(numbers) else None)


def _same_start(one: Batch, other: Batch) -> bool:
    """Whether two batches begin with the same items, by their labels; these stay where inputs are augmented."""
    if isinstance(one.labels, torch.Tensor) and isinstance(other.labels, torch.Tensor):
        return one.labels.shape == other.labels.shape and torch.equal(one.labels, other.labels)
    pairs = zip((*one.args, *one.kwargs.values()), (*other.args, *other.kwargs.values()), strict=False)
    return all(mine.shape == theirs.shape and torch.equal(mine, theirs) for mine, theirs in pairs if isinstance(mine, torch.Tensor))


def order(items: int, shuffle: bool, seed: int) -> list[int]:
    """Numbers 0 to `items` - 1, shuffled by `seed` or as they are.

    >>> order(3, False, 0), sorted(order(3, True, 1))
    ([0, 1, 2], [0, 1, 2])
    """
    return torch.randperm(items, generator=torch.Generator().manual_seed(seed)).tolist() if shuffle else list(range(items))


def own_randomness(make: Callable[[], Iterable], seed: int) -> Iterator[Any]:
    """Go through `make()` with random generators of its own, seeded with `seed`; after each step the user's are as they were.

    >>> def draw(): return (random.random() for _ in range(2))
    >>> list(own_randomness(draw, 5)) == list(own_randomness(draw, 5))
    True
    """
    torch_states = torch.Generator().manual_seed(seed).get_state()
    mine = torch_states, numpy.random.RandomState(seed % 2**32).get_state(), random.Random(seed).getstate()
    iterator: Iterator | None = None
    while True:
        theirs = _random_states()
        try:
            _set_random_states(mine)
            iterator = iter(make()) if iterator is None else iterator
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


def rebatched(batches: Iterable[Batch], size: int | None) -> Iterator[Batch]:
    """The same items in the same order, `size` a batch, the last one what is left; untouched without a size.

    Raises:
        KdError: batches of different shapes.

    >>> [batch.size for batch in rebatched([Batch((torch.zeros(3),)), Batch((torch.zeros(4),))], 2)]
    [2, 2, 2, 1]
    """
    if size is None:
        yield from batches
        return
    rest: Batch | None = None
    for batch in batches:
        rest = batch if rest is None else _joined(rest, batch)
        while rest is not None and rest.size >= size:
            yield rest[:size]
            rest = rest[size:] if rest.size > size else None
    if rest is not None:
        yield rest


def _joined(one: Batch, other: Batch, remedy: str = "leave --batch-size out, or pad the batches to one length") -> Batch:
    def cat(first: Any, second: Any) -> Any:
        if isinstance(first, tuple):
            return tuple(cat(*pair) for pair in zip(first, second, strict=True))
        return torch.cat([first, second]) if isinstance(first, torch.Tensor) else first

    numbers = None if one.numbers is None or other.numbers is None else torch.cat([one.numbers, other.numbers])
    fields = {name: [*values, *other.fields[name]] for name, values in one.fields.items() if name in other.fields}
    try:
        named = {key: cat(item, other.kwargs[key]) for key, item in one.kwargs.items()}
        return Batch(cat(one.args, other.args), named, cat(one.labels, other.labels), numbers, fields)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise KdError(f"batches of ({one}) and ({other}) can't be joined", remedy) from error

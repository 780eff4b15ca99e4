"""Data sets: passes in order and shuffled, batch sizes, and the numbers of items."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from kdkit.data import Data, MapDataset
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from tests.fixtures.datasets import FORMS, Cut, Map, cut, pair, whole


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@given(items=st.integers(1, 12), size=st.integers(1, 5), width=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_every_form_gives_the_same_items_in_the_same_order_each_time(form: str, items: int, size: int, width: int) -> None:
    x, y = torch.randn(items, width), torch.randint(0, 9, (items,))
    data = adopt_data(FORMS[form](x, y, size), batch_size=size)
    for _ in range(2):
        inputs, labels = whole(data)
        torch.testing.assert_close(inputs, x)
        assert inputs.dtype == torch.float32
        assert labels.tolist() == y.tolist()
        assert labels.dtype == torch.int64
    assert data.labelled
    assert data.items in (items, None)
    assert data.example().size == min(size, items)
    assert all(batch.size <= size for batch in data.batches())


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(set(FORMS) - {"data"}))
@given(items=st.integers(1, 12), size=st.integers(1, 5), other=st.integers(1, 14))
@settings(max_examples=8, deadline=None)
def test_another_batch_size_keeps_the_items_and_fills_every_batch_but_the_last(form: str, items: int, size: int, other: int) -> None:
    x, y = torch.randn(items, 2), torch.arange(items)
    data = adopt_data(FORMS[form](x, y, size), batch_size=size)
    sizes = [batch.size for batch in data.batches(batch_size=other)]
    assert sizes == [other] * (items // other) + [items % other] * (items % other > 0)
    assert whole(data, batch_size=other)[1].tolist() == y.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["a pair of tensors", "a DataLoader", "a shuffling DataLoader", "a map-style Dataset", "a list of items", "a list of batches", "a dict of arrays"]
)
@given(seed=st.integers(0, 2**31), items=st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_a_seed_decides_the_shuffled_order_and_keeps_items_with_their_labels(form: str, seed: int, items: int) -> None:
    x, y = pair(items)
    data = adopt_data(FORMS[form](x, y, 4), batch_size=4)
    torch.manual_seed(1)
    inputs, labels = whole(data, shuffle=True, seed=seed)
    torch.manual_seed(2)
    again = whole(data, shuffle=True, seed=seed)[1]
    assert labels.tolist() == again.tolist()
    assert sorted(labels.tolist()) == y.tolist()
    assert torch.equal(inputs, x[labels])


def test_other_seeds_give_other_orders() -> None:
    data = adopt_data(pair(100))
    orders = {tuple(whole(data, shuffle=True, seed=seed)[1].tolist()) for seed in range(5)}
    assert len(orders) == 5


def test_without_a_seed_torchs_own_decides() -> None:
    data = adopt_data(pair(50))
    torch.manual_seed(3)
    first, second = whole(data, shuffle=True)[1], whole(data, shuffle=True)[1]
    torch.manual_seed(3)
    assert torch.equal(first, whole(data, shuffle=True)[1])
    assert not torch.equal(first, second)


class Noisy(Map):
    """Augments with every generator there is."""

    def __getitem__(self, number: int) -> tuple:
        return self.x[number] + torch.rand(()) + numpy.random.rand() + random.random(), int(self.y[number])


@pytest.mark.parametrize("make", [lambda: Noisy(*pair()), lambda: DataLoader(Noisy(*pair()), 4, shuffle=True), lambda: Cut(DataLoader(Noisy(*pair()), 4, shuffle=True))])  # type: ignore[arg-type]
def test_a_pass_in_order_is_the_same_every_time_and_leaves_the_users_generators_alone(make: Any) -> None:
    data = adopt_data(make())
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    first, second = whole(data), whole(data)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (numpy.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


def test_a_pass_that_is_left_or_fails_leaves_the_users_generators_alone() -> None:
    def failing() -> Any:
        yield torch.rand(2, 1)
        yield torch.rand(2, 1)
        raise RuntimeError("broken")

    data = Data(failing, "broken")
    before = torch.get_rng_state()
    next(data.batches())
    with pytest.raises(KdError, match="broken"):
        list(data.batches())
    assert torch.equal(before, torch.get_rng_state())


def test_a_sampler_of_the_users_own_is_kept_and_seeded() -> None:
    x, y = pair(20)
    loader = DataLoader(TensorDataset(x, y), 5, sampler=WeightedRandomSampler([0.0] * 10 + [1.0] * 10, 40))
    data = adopt_data(loader)
    labels = whole(data, shuffle=True, seed=4)[1]
    assert len(labels) == 40
    assert labels.min() >= 10
    assert torch.equal(labels, whole(data, shuffle=True, seed=4)[1])
    assert not torch.equal(labels, whole(data, shuffle=True, seed=5)[1])
    assert data.items is None


def test_a_sampler_that_draws_with_replacement_keeps_doing_so() -> None:
    dataset = TensorDataset(*pair(50))
    data = adopt_data(DataLoader(dataset, 50, sampler=RandomSampler(dataset, replacement=True)))
    assert len(set(whole(data, shuffle=True, seed=0)[1].tolist())) < 50


def test_a_loader_that_drops_its_last_batch_does_so_in_training_only() -> None:
    data = adopt_data(DataLoader(TensorDataset(*pair(10)), 4, shuffle=True, drop_last=True))
    assert [batch.size for batch in data.batches()] == [4, 4, 2]
    assert [batch.size for batch in data.batches(shuffle=True, seed=0)] == [4, 4]


def test_a_loader_keeps_its_collate_function_and_its_workers() -> None:
    def double(items: list) -> tuple:
        return torch.stack([x for x, _ in items]) * 2, torch.tensor([y for _, y in items])

    x, y = pair(6)
    data = adopt_data(DataLoader(Map(x, y), 4, collate_fn=double, num_workers=1, multiprocessing_context="fork"))
    inputs, labels = whole(data)
    torch.testing.assert_close(inputs, 2 * x)
    assert labels.tolist() == y.tolist()


def test_the_example_consumes_nothing_and_is_loaded_once() -> None:
    loaded = []

    class Counting(Map):
        def __getitem__(self, number: int) -> tuple:
            loaded.append(number)
            return super().__getitem__(number)

    data = adopt_data(Counting(*pair(10)), batch_size=3)
    assert data.example() is data.example()
    assert loaded == [0, 1, 2]
    assert len(whole(data)[1]) == 10


@pytest.mark.parametrize("form", ["a pair of tensors", "a DataLoader", "a list of batches", "a re-iterable"])
def test_take_is_the_first_items(form: str) -> None:
    x, y = pair(10)
    data = adopt_data(FORMS[form](x, y, 4), batch_size=4)
    assert whole(data.take(5))[1].tolist() == [0, 1, 2, 3, 4]
    assert whole(data.take(99))[1].tolist() == y.tolist()


def test_items_are_batched_at_will_by_number() -> None:
    data = MapDataset([(torch.zeros(2), label) for label in range(5)], "five items", batch_size=2)
    assert [batch.labels.tolist() for batch in data.batches(batch_size=4)] == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"shuffle": True, "seed": 5}, {"shuffle": True, "seed": 6, "batch_size": 7}])
def test_an_item_has_the_same_number_in_every_pass(form: str, options: dict[str, Any]) -> None:
    x, y = pair(10)
    for batch in adopt_data(FORMS[form](x, y, 4), batch_size=4).batches(**options):
        assert batch.numbers is not None
        assert batch.numbers.dtype == torch.int64
        assert batch.numbers.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("form", ["a pair of tensors", "a DataLoader", "a list of batches", "a re-iterable"])
def test_the_example_and_the_first_items_keep_their_numbers(form: str) -> None:
    data = adopt_data(FORMS[form](*pair(10), 4), batch_size=4)
    assert data.example().numbers.tolist() == [0, 1, 2, 3]
    assert [number for batch in data.take(6).batches(batch_size=4) for number in batch.numbers.tolist()] == [0, 1, 2, 3, 4, 5]


def test_a_dropped_last_batch_does_not_shift_the_numbers() -> None:
    x, y = pair(10)
    data = adopt_data(DataLoader(TensorDataset(x, y), 4, shuffle=True, drop_last=True))
    for batch in data.batches(shuffle=True, seed=3):
        assert batch.numbers.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("make", [lambda x, y: WeightedRandomSampler(torch.ones(10), 10), lambda x, y: RandomSampler(range(10), num_samples=4)])
def test_a_loader_with_a_sampler_of_its_own_gives_no_numbers(make: Any) -> None:
    x, y = pair(10)
    data = adopt_data(DataLoader(TensorDataset(x, y), 4, sampler=make(x, y)))
    assert all(batch.numbers is None for source in (data, data.take(5)) for batch in source.batches())
    assert all(batch.numbers is None for batch in data.batches(batch_size=3))


@pytest.mark.parametrize("labels", [True, False])
def test_a_function_that_shuffles_for_itself_loses_its_numbers(labels: bool) -> None:
    x, y = pair(40)

    def shuffled() -> Any:
        order = torch.randperm(40)
        return cut(x[order], y[order], 8) if labels else x[order].split(8)

    data = adopt_data(shuffled)
    assert all(batch.numbers is None for batch in data.batches(shuffle=True, seed=9))


def test_augmented_items_of_a_stream_keep_their_numbers() -> None:
    x, y = pair(10)
    data = adopt_data(lambda: cut(x + torch.rand(10, 1), y, 4))
    assert [number for batch in data.batches(shuffle=True, seed=9) for number in batch.numbers.tolist()] == list(range(10))


def test_a_collate_function_that_makes_two_of_each_item_leaves_them_without_numbers() -> None:
    def doubled(items: list) -> tuple:
        x, y = zip(*items, strict=True)
        return torch.stack(x * 2), torch.tensor(y * 2)

    x, y = pair(8)
    assert all(batch.numbers is None for batch in adopt_data(DataLoader(TensorDataset(x, y), 4, collate_fn=doubled)).batches())

"""Data: every form in which a notebook holds batches comes out with the same items, in the same order."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from kdkit import hookimpl
from kdkit.data import ACCEPTED, Batch, Data, Items, adopt_data, as_batch, collate_items, try_call
from kdkit.errors import KdError
from kdkit.plugins import manager


class Map(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple:
        return self.x[number], int(self.y[number])


class Stream(IterableDataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __iter__(self) -> Any:
        return zip(self.x, self.y, strict=True)


class Cut:
    """A re-iterable of batches that is no Dataset."""

    def __init__(self, batches: list):
        self.cut = batches

    def __iter__(self) -> Any:
        return iter(self.cut)


def whole(data: Data, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and all labels of a pass."""
    batches = list(data.batches(**options))
    inputs = torch.cat([batch.args[0] if batch.args else batch.kwargs["x"] for batch in batches])
    return inputs, torch.cat([batch.labels for batch in batches])


def pair(items: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(items * 3.0).view(items, 3), torch.arange(items)


def cut(x: torch.Tensor, y: torch.Tensor, size: int) -> list:
    return list(zip(x.split(size), y.split(size), strict=True))


FORMS: dict[str, Any] = {
    "a pair of tensors": lambda x, y, size: (x, y),
    "a pair of arrays": lambda x, y, size: (x.numpy().astype("float64"), y.numpy().astype("int32")),
    "a pair of lists": lambda x, y, size: (x.tolist(), y.tolist()),
    "a dict of arrays": lambda x, y, size: {"x": x.numpy(), "labels": y.numpy()},
    "a DataLoader": lambda x, y, size: DataLoader(TensorDataset(x, y), size),
    "a shuffling DataLoader": lambda x, y, size: DataLoader(TensorDataset(x, y), size, shuffle=True),
    "a DataLoader of dicts": lambda x, y, size: DataLoader([{"x": a, "label": b} for a, b in zip(x, y, strict=True)], size),
    "a map-style Dataset": lambda x, y, size: Map(x, y),
    "an iterable Dataset": lambda x, y, size: Stream(x, y),
    "a DataLoader of a stream": lambda x, y, size: DataLoader(Stream(x, y), size),
    "a list of batches": cut,
    "a list of lists": lambda x, y, size: [list(batch) for batch in cut(x, y, size)],
    "a list of items": lambda x, y, size: list(zip(x, y, strict=True)),
    "a list of dict batches": lambda x, y, size: [{"x": a, "targets": b} for a, b in cut(x, y, size)],
    "a generator": lambda x, y, size: (batch for batch in cut(x, y, size)),
    "a function": lambda x, y, size: lambda: iter(cut(x, y, size)),
    "a re-iterable": lambda x, y, size: Cut(cut(x, y, size)),
    "a batch": lambda x, y, size: Batch((x,), labels=y),
    "data": lambda x, y, size: Data(lambda: cut(x, y, size), "made by hand"),
}


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


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"data"}))
@given(items=st.integers(1, 12), size=st.integers(1, 5), other=st.integers(1, 14))
@settings(max_examples=8, deadline=None)
def test_another_batch_size_keeps_the_items_and_fills_every_batch_but_the_last(form: str, items: int, size: int, other: int) -> None:
    x, y = torch.randn(items, 2), torch.arange(items)
    data = adopt_data(FORMS[form](x, y, size), batch_size=size)
    sizes = [batch.size for batch in data.batches(batch_size=other)]
    assert sizes == [other] * (items // other) + [items % other] * (items % other > 0)
    assert whole(data, batch_size=other)[1].tolist() == y.tolist()


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
    with pytest.raises(RuntimeError, match="broken"):
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


# forms of a batch

X, Y = torch.ones(2, 3), torch.tensor([1, 0])

BATCHES = [
    (X, 1, (), False),
    ((X,), 1, (), False),
    ([X], 1, (), False),
    ((X, Y), 1, (), True),
    ([X, Y], 1, (), True),
    ((X, None), 1, (), False),
    (((X, X), Y), 2, (), True),
    (((X, X), None), 2, (), False),
    ((X, X, Y), 2, (), True),
    ({"a": X, "b": X}, 0, ("a", "b"), False),
    ({"a": X, "label": Y}, 0, ("a",), True),
    (({"a": X}, Y), 0, ("a",), True),
    (({"a": X, "b": X}, None), 0, ("a", "b"), False),
    ({"a": X, "text": ["one", "two"]}, 0, ("a",), False),
    (Batch((X,), labels=Y), 1, (), True),
    ((Batch((X,)), Y), 1, (), True),
]


@pytest.mark.parametrize(("raw", "positional", "named", "labelled"), BATCHES)
def test_each_form_of_a_batch_is_understood(raw: Any, positional: int, named: tuple, labelled: bool) -> None:
    batch = as_batch(raw)
    assert (len(batch.args), tuple(batch.kwargs), batch.labels is not None) == (positional, named, labelled)
    assert batch.size == 2


def test_a_batch_encoding_is_a_dict() -> None:
    transformers = pytest.importorskip("transformers")
    batch = as_batch(transformers.BatchEncoding({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]], "labels": [0, 1]}))
    assert sorted(batch.kwargs) == ["attention_mask", "input_ids"]
    assert batch.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("float64", torch.float32),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("int32", torch.int32),
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        ("bool", torch.bool),
        (">f4", torch.float32),
    ],
)
def test_the_types_of_inputs_are_kept_but_for_float64(given_: str, expected: torch.dtype) -> None:
    assert as_batch(numpy.ones((2, 3), dtype=given_)).args[0].dtype == expected


@pytest.mark.parametrize(("given_", "expected"), [("float64", torch.float32), ("int32", torch.int64), ("uint8", torch.int64), ("bool", torch.int64)])
def test_labels_are_int64_or_float32(given_: str, expected: torch.dtype) -> None:
    assert as_batch((X, numpy.ones(2, dtype=given_))).labels.dtype == expected


def test_arrays_that_are_reversed_or_read_only_are_copied() -> None:
    backwards, frozen = numpy.arange(6.0).reshape(2, 3)[::-1], numpy.broadcast_to(numpy.arange(3.0), (2, 3))
    assert as_batch(backwards).args[0].tolist() == backwards.tolist()
    assert as_batch(frozen).args[0].tolist() == frozen.tolist()


def test_what_lies_in_a_batch_goes_with_its_items() -> None:
    batch = Batch((torch.arange(4),), {"mask": torch.arange(4), "flag": True}, (torch.arange(4), torch.arange(4)))
    for some in (batch[1:3], batch[torch.tensor([1, 2])]):
        assert [some.args[0].tolist(), some.kwargs["mask"].tolist(), some.labels[1].tolist()] == [[1, 2]] * 3
        assert some.kwargs["flag"] is True


# pandas and Hugging Face


def test_a_frames_label_column_is_found_by_name_or_named() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "label": [0, 1, 0], "grade": [1.0, 2.0, 3.0]})
    found = adopt_data(frame).example()
    assert found.args[0].tolist() == [[1, 0.5, 1], [2, 1.5, 2], [3, 2.5, 3]]
    assert found.labels.tolist() == [0, 1, 0]
    named = adopt_data((frame, "grade")).example()
    assert named.args[0].shape == (3, 3)
    assert named.labels.tolist() == [1.0, 2.0, 3.0]
    parted = adopt_data((frame[["a", "b"]], frame["label"])).example()
    assert parted.labels.tolist() == [0, 1, 0]
    assert "labels in 'label'" in adopt_data(frame).why
    assert "no label column" in adopt_data(frame[["a", "b"]]).why


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        ({"a": [1, 2], "city": ["Rome", "Bonn"], "y": [0, 1]}, None, "not numbers: city"),
        ({"a": [1.0, None], "y": [0, 1]}, None, "missing values: a"),
        ({"a": [1.0, 2.0], "y": [0, 1]}, "z", "no column 'z'"),
        ({"a": [1.0, 2.0], "y": ["cat", "dog"]}, None, "the labels: text"),
    ],
)
def test_a_frame_that_is_no_numbers_is_refused_by_column(columns: dict, label: str | None, message: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns)
    with pytest.raises(KdError, match=message):
        adopt_data(frame if label is None else (frame, label))


def hugging_face(**columns: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


def test_a_tokenized_hugging_face_dataset_is_padded_per_batch_and_its_text_left_out() -> None:
    data = adopt_data(
        hugging_face(sentence=["a", "b c", "d e f"], input_ids=[[1], [2, 3], [4, 5, 6]], attention_mask=[[1], [1, 1], [1, 1, 1]], label=[0, 1, 0]), batch_size=2
    )
    first, second = data.batches()
    assert first.kwargs["input_ids"].tolist() == [[1, 0], [2, 3]]
    assert first.kwargs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert first.labels.tolist() == [0, 1]
    assert second.kwargs["input_ids"].tolist() == [[4, 5, 6]]
    assert "sentence left out" in data.why
    assert data.items == 3
    assert sorted(label for batch in data.batches(shuffle=True, seed=1, batch_size=3) for label in batch.labels.tolist()) == [0, 0, 1]


def test_a_hugging_face_dataset_of_text_says_how_to_tokenize_it() -> None:
    with pytest.raises(KdError, match=r"tokenizer\(rows\['sentence'\]"):
        adopt_data(hugging_face(sentence=["a"], label=[0]))


def test_several_hugging_face_splits_ask_for_one() -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(KdError, match="choose one of 'train', 'test'"):
        adopt_data(datasets.DatasetDict(train=hugging_face(label=[0]), test=hugging_face(label=[0])))


def test_a_streamed_hugging_face_dataset_is_gone_through_again_and_again() -> None:
    data = adopt_data(hugging_face(input_ids=[[1, 2], [3, 4], [5, 6]], labels=[0, 1, 0]).to_iterable_dataset(), batch_size=2)
    assert [[batch.size for batch in data.batches()] for _ in range(2)] == [[2, 1], [2, 1]]
    assert data.items is None


def test_text_beside_the_tokens_of_an_item_is_left_out() -> None:
    batch = adopt_data([{"input_ids": [1, 2], "sentence": "one two", "label": 0}, {"input_ids": [3], "sentence": "three", "label": 1}]).example()
    assert sorted(batch.kwargs) == ["attention_mask", "input_ids"]
    assert batch.labels.tolist() == [0, 1]


def test_a_users_own_module_called_datasets_is_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Map, "__module__", "datasets")
    assert whole(adopt_data(Map(*pair(4))))[1].tolist() == [0, 1, 2, 3]


def test_token_labels_are_padded_with_what_does_not_count() -> None:
    batch = as_batch(collate_items([{"input_ids": [1, 2], "labels": [5, 6]}, {"input_ids": [3], "labels": [7]}]))
    assert batch.labels.tolist() == [[5, 6], [7, -100]]
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1], [1, 0]]


# what is told


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("a DataLoader", "a DataLoader of (x, y): 10 items, batches of 4"),
        ("a pair of tensors", "arrays of (x, y): 10 items, batches of 4"),
        ("a dict of arrays", "a dict of {x, labels}: 10 items, batches of 4"),
        ("a map-style Dataset", "a Map of (x, y): 10 items, batches of 4"),
        ("a generator", "a generator, kept in memory because it can be gone through only once, of (x, y): 10 items, batches of 4"),
        ("a re-iterable", "a Cut of (x, y): batches of 4"),
    ],
)
def test_why_says_what_was_adopted_and_how_it_was_understood(form: str, why: str) -> None:
    assert adopt_data(FORMS[form](*pair(10), 4), batch_size=4).why == why


def test_unlabelled_data_says_so() -> None:
    data = adopt_data(torch.zeros(10, 3))
    assert not data.labelled
    assert data.why == "a tensor of x without labels: 10 items, batches of 10"


# plugins


class Vault:
    def __init__(self) -> None:
        self.secret = pair(4)


class Keeper:
    def __init__(self, answer: Any):
        self.answer = answer

    @hookimpl
    def kdkit_adopt_data(self, obj: Any, batch_size: int) -> Any:
        return self.answer(obj, batch_size) if isinstance(obj, Vault) else None


@pytest.fixture
def keeper() -> Any:
    def register(answer: Any) -> None:
        plugin = Keeper(answer)
        manager().register(plugin, "keeper")

    yield register
    if manager().has_plugin("keeper"):
        manager().unregister(name="keeper")


def test_a_plugin_adopts_what_the_kit_does_not_know(keeper: Any) -> None:
    keeper(lambda vault, batch_size: Data(lambda: [vault.secret], "a vault"))
    assert whole(adopt_data(Vault()))[1].tolist() == [0, 1, 2, 3]


def test_a_plugin_that_returns_no_data_is_an_error(keeper: Any) -> None:
    keeper(lambda vault, batch_size: 7)
    with pytest.raises(KdError, match="returned an int, not Data, for a Vault"):
        adopt_data(Vault())


# bad input

BAD = [
    (Vault(), "a Vault is not data"),
    (7, "an int is not data"),
    (None, "a NoneType is not data"),
    (Vault, "Vault is not data"),
    ("some text", "text is not data"),
    (["one", "two"], "text is not data"),
    ([], "no items in a list of batches"),
    (iter([]), "no items in a list_iterator"),
    (torch.zeros(0, 3), "no items in a tensor"),
    (Cut([]), "no batch in a Cut"),
    (lambda: iter(()), "no batch in what <lambda>"),
    (DataLoader(TensorDataset(torch.zeros(0, 3)), 4), "no items in a DataLoader"),
    ((torch.zeros(3, 2), torch.zeros(2)), "parts of different lengths: input 1 3, labels 2"),
    ({"a": torch.zeros(3, 2), "b": torch.zeros(2, 2)}, "parts of different lengths: a 3, b 2"),
    ({"input_ids": [[1, 2], [3]]}, "input_ids: rows of different lengths, 1 to 2"),
    ({"labels": [1, 2]}, "a batch without inputs"),
    ([{}], "a batch without inputs"),
    (torch.tensor(3.0), "a single number, not a batch"),
    ([(torch.zeros(3, 2), "yes")], "the labels: text, not numbers"),
    ([object()], "the inputs: object holds no numbers"),
    ([(torch.zeros(2), 0), (torch.zeros(3), 1)], "items that can't be made one batch"),
]


@pytest.mark.parametrize(("obj", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_no_data_is_refused_in_words(obj: Any, message: str) -> None:
    with pytest.raises(KdError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        adopt_data(obj)
    assert caught.value.hints


def test_an_object_that_nobody_knows_lists_what_is_accepted() -> None:
    with pytest.raises(KdError) as caught:
        adopt_data(Vault())
    assert ACCEPTED in caught.value.hints


def test_data_that_is_spent_after_one_pass_says_so() -> None:
    once = iter([torch.zeros(2, 3)])
    data = Data(lambda: once, "made by hand")
    list(data.batches())
    with pytest.raises(KdError, match="no batch in made by hand"):
        list(data.batches())


def test_batches_of_different_lengths_can_be_cut_but_not_joined() -> None:
    data = adopt_data([torch.zeros(4, 2), torch.zeros(4, 3)])
    assert [batch.size for batch in data.batches(batch_size=2)] == [2, 2, 2, 2]
    with pytest.raises(KdError, match="can't be joined"):
        list(data.batches(batch_size=3))


# models


class Needy(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * (left + right)


def test_a_model_that_fits_gives_its_output_for_the_first_items() -> None:
    assert try_call(Needy(), Batch((torch.zeros(9, 3), torch.zeros(9, 3)))).shape == (2, 3)


def test_calling_leaves_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    before = model[0].running_mean.clone()  # type: ignore[union-attr]
    try_call(model, Batch((torch.randn(8, 3),)))
    assert model.training
    assert model[1].training
    assert torch.equal(before, model[0].running_mean)  # type: ignore[arg-type]


def test_a_model_that_wants_other_inputs_is_told_with_its_signature_and_the_batch() -> None:
    with pytest.raises(KdError) as caught:
        try_call(Needy(), as_batch((X, Y)))
    told = str(caught.value)
    assert "Needy can't take such a batch: missing a required argument: 'right'" in told
    assert "Needy.forward(left, right, scale=1.0)" in told
    assert "the batch gives float32 (2, 3); labels int64 (2,)" in told


def test_a_key_that_forward_does_not_have_is_named() -> None:
    with pytest.raises(KdError, match="unexpected keyword argument 'middle'"):
        try_call(Needy(), as_batch({"left": X, "right": X, "middle": X}))


@pytest.mark.parametrize(
    ("model", "batch", "hint"),
    [
        (nn.Linear(3, 1), Batch((torch.ones(2, 3, dtype=torch.uint8),)), "scale them"),
        (nn.Linear(3, 1).double(), Batch((X,)), r"model\.float\(\)"),
        (nn.Linear(4, 1), Batch((X,)), r"the batch gives float32 \(2, 3\)"),
        (nn.Bilinear(3, 2, 1), Batch((X, X)), "the last part is the labels"),
    ],
)
def test_a_model_that_fails_on_the_batch_says_what_it_was_given_and_what_to_do(model: nn.Module, batch: Batch, hint: str) -> None:
    with pytest.raises(KdError, match=f"(?s){type(model).__name__} fails on the first items: RuntimeError: .*{hint}") as caught:
        try_call(model, batch)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_items_are_batched_at_will_by_number() -> None:
    data = Items([(torch.zeros(2), label) for label in range(5)], "five items", batch_size=2)
    assert [batch.labels.tolist() for batch in data.batches(batch_size=4)] == [[0, 1, 2, 3], [4]]


# numbers of items


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


def test_numbers_go_with_their_items_when_a_batch_is_cut_or_moved() -> None:
    batch = adopt_data(pair(6)).example()
    assert batch[2:4].numbers.tolist() == [2, 3]
    assert batch[torch.tensor([5, 0])].numbers.tolist() == [5, 0]
    assert batch.to("cpu").numbers.tolist() == list(range(6))


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

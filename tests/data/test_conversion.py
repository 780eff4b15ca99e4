"""Conversion: what is accepted as data, and why other objects are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kdkit.data import ACCEPTED, Data, as_batch, collate_items
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from tests.fixtures.datasets import FORMS, Cut, Map, Vault, pair, whole


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
    assert "labels in 'label'" in adopt_data(frame).reason
    assert "no label column" in adopt_data(frame[["a", "b"]]).reason


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


@pytest.mark.slow
def test_a_tokenized_hugging_face_dataset_is_padded_per_batch_and_its_text_left_out() -> None:
    data = adopt_data(
        hugging_face(sentence=["a", "b c", "d e f"], input_ids=[[1], [2, 3], [4, 5, 6]], attention_mask=[[1], [1, 1], [1, 1, 1]], label=[0, 1, 0]), batch_size=2
    )
    first, second = data.batches()
    assert first.kwargs["input_ids"].tolist() == [[1, 0], [2, 3]]
    assert first.kwargs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert first.labels.tolist() == [0, 1]
    assert second.kwargs["input_ids"].tolist() == [[4, 5, 6]]
    assert "sentence left out" in data.reason
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
    assert adopt_data(FORMS[form](*pair(10), 4), batch_size=4).reason == why


def test_unlabelled_data_says_so() -> None:
    data = adopt_data(torch.zeros(10, 3))
    assert not data.labelled
    assert data.reason == "a tensor of x without labels: 10 items, batches of 10"


BAD = [
    (Vault(), "a Vault is not data"),
    (7, "an int is not data"),
    (None, "a NoneType is not data"),
    (Vault, "Vault is not data"),
    ("some text", "a single text is not data"),
    (["one", "two"], "a list holds text, and the session has no tokenizer"),
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


@pytest.mark.parametrize(
    "model", [torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.ModuleList([torch.nn.Linear(2, 2)])], ids=["layer", "sequential", "list"]
)
def test_a_model_given_as_data_is_named_as_one(model):
    with pytest.raises(KdError, match="is a model, not data"):
        adopt_data(model)


class Photographs(torch.utils.data.Dataset):
    """Items as an image processor of transformers returns them."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number >= len(self):
            raise IndexError(number)
        boxes = torch.full((number + 1, 4), 0.5)
        return {"pixel_values": torch.full((3, 4, 4), float(number)), "labels": {"class_labels": torch.arange(number + 1), "boxes": boxes, "image_id": number}}


@pytest.mark.parametrize("form", [Photographs, lambda: list(Photographs())])
def test_items_with_true_boxes_in_a_mapping_are_stacked_and_their_boxes_filled_up(form: Any) -> None:
    data = adopt_data(form(), batch_size=2)
    first, second = data
    assert first.kwargs["pixel_values"].shape == (2, 3, 4, 4)
    assert second.kwargs["pixel_values"].flatten()[0] == 2
    assert first.labels[..., 0].tolist() == [[0, -100], [0, 1]]
    assert second.labels.shape == (1, 3, 5)

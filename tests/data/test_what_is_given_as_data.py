"""What people give as data: adopted, or refused in one line that says what to do."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data


class Rows(Dataset):
    """Items that a function makes of their number."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def needing(argument: int) -> list:
    return [argument]


def broken(number: int) -> Any:
    raise RuntimeError("the disk is gone")


def picture() -> Any:
    return pytest.importorskip("PIL.Image").new("RGB", (4, 4))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a model": (lambda: nn.Linear(2, 2), "a Linear is a model, not data"),
    "a loss": (nn.CrossEntropyLoss, "CrossEntropyLoss is a model, not data"),
    "a class": (lambda: nn.Linear, "Linear is not data"),
    "a number": (lambda: 5, "an int is not data"),
    "a text": (lambda: "text", "a single text is not data"),
    "nothing in a list": (lambda: [None], "None, not numbers"),
    "nothing in batches": (lambda: [(None, None)], "None, not numbers"),
    "a module of Python": (lambda: torch, "a module is not data"),
    "an optimizer": (lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1), "is not data"),
    "an object without attributes": (Broken, "is not data"),
    "a function with arguments": (lambda: needing, "needing is not data: as a function that makes batches it needs arguments"),
    "a function written in C": (lambda: iter, "iter is not data"),
    "a function that returns a number": (lambda: lambda: 5, "returned an int, not batches"),
    "a function that fails": (lambda: lambda: 1 / 0, "can't be loaded: ZeroDivisionError"),
    "a loader that fails": (lambda: DataLoader(Rows(broken)), "a DataLoader can't be loaded: RuntimeError: the disk is gone"),
    "a dataset that fails": (lambda: Rows(broken), "can't be loaded: RuntimeError: the disk is gone"),
    "a picture": (picture, "not data"),
    "pictures": (lambda: [picture()], "a picture of PIL, not numbers"),
    "a dataset of pictures": (lambda: Rows(lambda number: (picture(), number)), "can't be made one batch"),
    "a loader of pictures": (lambda: DataLoader(Rows(lambda number: (picture(), number))), "can't be loaded"),
    "a sparse tensor": (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
    "texts as labels": (lambda: (torch.zeros(2, 3), ["cat", "dog"]), "text, not numbers"),
    "an array of objects": (lambda: numpy.array([object()] * 3), "an array of object, not of numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_data_is_refused_with_a_remedy(what: str) -> None:
    make, reported = REFUSED[what]
    with pytest.raises(KdError, match=reported) as caught:
        adopt_data(make())
    assert caught.value.hints


def test_pictures_are_refused_with_the_way_to_make_tensors_of_them() -> None:
    for given in ([picture()], Rows(lambda number: (picture(), number)), DataLoader(Rows(lambda number: (picture(), number)))):
        with pytest.raises(KdError) as caught:
            adopt_data(given)
        assert "ToTensor()" in str(caught.value)


def test_a_holder_of_several_data_sets_is_refused_with_the_lines_that_choose_one() -> None:
    from pytorch_lightning import LightningDataModule

    class Module(LightningDataModule):
        """A class of the user's."""

    with pytest.raises(KdError, match="holds several data sets") as caught:
        adopt_data(Module())
    assert "{it.train_dataloader()} or {it.val_dataloader()}" in str(caught.value)

    class Trainer:
        def get_train_dataloader(self) -> DataLoader:
            raise NotImplementedError

        def __iter__(self) -> None:
            raise NotImplementedError

    with pytest.raises(KdError, match="holds several data sets") as caught:
        adopt_data(Trainer())
    assert "{it.get_train_dataloader()}" in str(caught.value)


def test_an_item_that_fails_late_is_named_by_the_error_of_its_dataset() -> None:
    data = adopt_data(DataLoader(Rows(lambda number: (torch.zeros(2), number if number < 5 else broken(number))), 2))
    with pytest.raises(KdError, match="the disk is gone"):
        list(data.batches())


@pytest.mark.parametrize("path", [str, pathlib.Path])
def test_file_names_beside_inputs_and_labels_become_fields(path: Callable[[str], Any]) -> None:
    def collate(items: list) -> tuple:
        x, y, names = zip(*items, strict=True)
        return torch.stack(x), torch.tensor(y), list(names)

    batch = adopt_data(DataLoader(Rows(lambda number: (torch.zeros(2), number, path(f"{number}.png"))), 3, collate_fn=collate)).example()
    assert (len(batch.args), batch.labels.tolist(), batch.fields) == (1, [0, 1, 2], {"text2": ["0.png", "1.png", "2.png"]})


class Words:
    """A tokenizer of words by their length."""

    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


TEXTS: dict[str, Callable[[int], Any]] = {
    "pairs of text and label": lambda number: ("a few words", number),
    "mappings with a column of another name": lambda number: {"sentence": "a few words", "label": number},
    "mappings with text": lambda number: {"text": "a few words", "label": number},
}


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("holder", [Rows, lambda make: DataLoader(Rows(make), 3), lambda make: [make(number) for number in range(6)]])
def test_rows_of_text_are_tokenized_whatever_holds_them(form: str, holder: Callable) -> None:
    batch = adopt_data(holder(TEXTS[form]), 3, tokenizer=Words()).example()
    assert batch.kwargs["input_ids"].tolist() == [[1, 3, 5]] * 3
    assert batch.labels.tolist() == [0, 1, 2]
    with pytest.raises(KdError, match="holds text, and the session has no tokenizer"):
        adopt_data(holder(TEXTS[form]), 3)


def test_an_object_that_refuses_to_be_gone_through_is_one_line():
    class Refuses:
        def __iter__(self):
            raise TypeError("\n".join(["it holds no batches"] * 150))

    with pytest.raises(KdError, match="a Refuses can't be loaded: TypeError: it holds no batches") as caught:
        adopt_data(Refuses())
    assert "\n" not in caught.value.message

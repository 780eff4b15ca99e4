"""Items as a person sees them."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch

from kdkit.data import Batch
from kdkit.views.items import item_html, item_text


class Words:
    """A tokenizer."""

    def decode(self, tokens):
        return " ".join(f"w{int(token)}" for token in tokens)


@pytest.mark.parametrize(
    ("batch", "text", "html"),
    [
        (Batch((torch.tensor([[0.5, 2.0, -1.0]]),)), "0.5, 2, -1", "0.5, 2, -1"),
        (Batch((torch.arange(20.0)[None],)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …", "0, 1, 2"),
        (Batch((torch.rand(1, 3, 8, 6),)), "3 x 8 x 6", '<img alt="picture, 6 x 8"'),
        (Batch((torch.rand(1, 28, 28),)), "28 x 28", '<img alt="picture, 28 x 28"'),
        (Batch((torch.rand(1, 3200),)), "3200", '<audio controls aria-label="item 0, 0.2 s"'),
        (Batch((torch.rand(1, 1, 3200),)), "1 x 3200", "<audio controls"),
        (Batch((torch.rand(1, 5, 4, 4),)), "5 x 4 x 4", "5 x 4 x 4"),
        (Batch((torch.zeros(1, 2),), fields={"prompt": ["2 < 3?\nyes"]}), "2 < 3? yes", "2 &lt; 3?\nyes"),
        (Batch(kwargs={"input_ids": torch.tensor([[4, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}), "w4 w7", "w4 w7"),
    ],
)
def test_each_kind_of_item_is_shown_as_what_it_is(batch, text, html):
    assert item_text(batch, 0, Words()) == text
    assert html in item_html(batch, 0, Words())


def test_a_long_text_is_cut():
    assert len(item_text(Batch((torch.zeros(1, 2),), fields={"text": ["x" * 5000]}), 0)) == 301


def test_a_picture_shows_its_smallest_value_black_and_its_largest_white_in_any_unit():
    Image = pytest.importorskip("PIL.Image")
    html = item_html(Batch((torch.tensor([[[[-2.0, 0.0], [1.0, 2.0]]]]),)), 0)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]))))
    assert shown.tolist() == [[0, 128], [191, 255]]

"""Error words: torch's messages in plain words, the user's own as they are."""

import pytest
import torch
from torch import nn

from kdkit import KdError
from kdkit.guards import explain_error


def raised(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("should have failed")


@pytest.mark.parametrize(
    ("layer", "given", "says"),
    [
        (nn.Linear(3, 1), torch.zeros(2, 4), "a linear layer expects 3 features and receives 4"),
        (nn.Conv2d(3, 1, 3), torch.zeros(1, 5, 8, 8), "a convolution expects 3 channels and receives 5"),
        (nn.BatchNorm2d(3), torch.zeros(1, 5, 8, 8), "a batch norm expects 3 channels and receives 5"),
        (nn.LayerNorm(3), torch.zeros(1, 5), "a layer norm expects a last axis of 3 and receives (1, 5)"),
        (nn.Embedding(3, 1), torch.tensor([5]), "an id is larger than the table that it selects from"),
        (nn.Conv2d(3, 1, 9), torch.zeros(1, 3, 8, 8), "an image or sequence is smaller than the kernel of a layer"),
        (nn.Linear(3, 1).half(), torch.zeros(2, 3), "the inputs and the weights have different dtypes"),
        (lambda x: x[:, 8], torch.zeros(2, 8), "a part is selected at position 8 of an axis of size 8"),
        (lambda x: x + torch.zeros(3), torch.zeros(2, 8), "two tensors of sizes 8 and 3 do not fit each other"),
        (lambda x: x.reshape(3, 5), torch.zeros(2, 8), "16 values can't be reshaped to (3, 5)"),
    ],
)
def test_what_torch_raises_is_explained(layer, given, says):
    if isinstance(layer, nn.BatchNorm2d):
        layer.eval()
    assert explain_error(raised(layer, given)) == says


def test_an_unknown_message_of_a_library_is_replaced_by_its_kind():
    assert explain_error(raised(torch.zeros(2).unflatten, 0, (3, 3))) == "an operation does not accept its inputs"


def test_the_user_s_own_words_are_kept():
    def refuse():
        raise ValueError("the image has no face")

    assert explain_error(raised(refuse)) == "ValueError: the image has no face"
    assert explain_error(KdError("that is why")) == "that is why"


def test_lines_of_libraries_are_not_shown():
    assert explain_error(raised(nn.Linear(3, 1), torch.zeros(2, 4)), nn.Linear.__module__) == "a linear layer expects 3 features and receives 4"


def test_the_user_s_line_is_named():
    def forward(x):
        return x.reshape(3, 5)

    assert "test_error_words.py, line" in (text := explain_error(raised(forward, torch.zeros(2)), __name__))
    assert "return x.reshape(3, 5)" in text

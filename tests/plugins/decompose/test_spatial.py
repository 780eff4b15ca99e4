"""decompose spatial: the form by space for convolutions only; its factors are tested with those of decompose svd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.stages.validation import validate_stage
from kdkit_decompose.spatial import Spatial
from kdkit_decompose.svd import Svd
from tests.fixtures import zoo
from tests.fixtures.decomposition import context, convolution, parameters, run_stage


def test_the_stage_is_valid():
    assert list(validate_stage(Spatial)) == []


def test_it_is_decompose_svd_by_space_on_convolutions():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    made, _ = run_stage(Spatial(ratio=0.4), model, batch)
    same, _ = run_stage(Svd(ratio=0.4, form="spatial", skip=("head",)), model, batch)
    assert all(torch.equal(one, other) for one, other in zip(made.parameters(), same.parameters(), strict=True))
    assert [part.kernel_size for part in made.blocks[0].conv1] == [(3, 1), (1, 3)]
    assert parameters(made) < parameters(model)


def test_a_kernel_that_is_a_column_of_few_rows_is_found():
    """Vertical edges of three channels: rank 3 is exact."""
    layer = convolution(8, 12, kernel_size=5, padding=2)
    layer.weight.data = torch.einsum("orw,rih->oihw", torch.randn(12, 3, 5), torch.randn(3, 8, 5))
    x = torch.randn(2, 8, 9, 9)
    made, _ = run_stage(Spatial(rank=3), nn.Sequential(layer).eval(), Batch((x,)))
    torch.testing.assert_close(made(x), layer(x), atol=1e-3, rtol=1e-3)


def test_rows_and_columns_are_left_alone():
    model = nn.Sequential(convolution(8, 8), nn.Conv2d(8, 8, (1, 3)), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 3)).eval()
    _, notes = run_stage(Spatial(), model, Batch((torch.randn(2, 8, 9, 9),)))
    assert notes[:2] == ["skipped 1, 2: its kernel has one row or one column", "skipped 3: a transposed convolution"]


def test_a_net_without_such_convolutions_says_so():
    with pytest.raises(KdError, match="decompose spatial works on convolutions of two dimensions, and finds none here: Mlp has 3 Linear"):
        Spatial().check(zoo.mlp(), context(zoo.batch("mlp")))

"""A decomposed net consists of plain layers: it is pruned, exported and quantized like any other, and restored from its folder."""

from __future__ import annotations

import pytest
import torch

from kdkit import Session
from tests.fixtures import zoo


@pytest.mark.slow
@pytest.mark.parametrize("line", ["decompose svd --form channel", "decompose svd --form spatial", "decompose tucker", "decompose cp", "decompose separable"])
def test_a_decomposed_net_is_pruned_quantized_and_restored(line, tmp_path):
    session = Session(zoo.cnn(), train=zoo.data("cnn"), eval=zoo.data("cnn"), measures=("quality", "size"))
    session.run(f"{line} --skip stem head", label="thin")
    session.run("prune channels --ratio 0.25", label="pruned")
    session.run("quantize static", label="int8")
    whole, thin, pruned, small = (session[f"@{name}"]["size"] for name in ("base", "thin", "pruned", "int8"))
    assert whole > thin > pruned
    assert small < whole / 2  # beside so few weights the graph itself counts
    folder = tmp_path / "thin"
    session.save(folder, version="@thin")
    x = zoo.batch("cnn").args[0]
    with torch.no_grad():
        assert torch.equal(Session.open(folder, measures=()).head.model(x), session["@thin"].model(x))


@pytest.mark.slow
def test_a_net_written_as_linear_layers_and_for_winograd_is_quantized_and_restored(tmp_path):
    session = Session(zoo.depthwise(), train=zoo.data("depthwise"), eval=zoo.data("depthwise"), measures=("quality", "size"))
    session.run("decompose linear", label="linear")
    session.run("decompose winograd", label="both")
    session.run("quantize dynamic", label="int8")
    folder = tmp_path / "both"
    session.save(folder, version="@both")
    x = zoo.batch("depthwise").args[0]
    with torch.no_grad():
        expected = session["@base"].model(x)
        assert torch.equal(Session.open(folder, measures=()).head.model(x), session["@both"].model(x))
        torch.testing.assert_close(session["@both"].model(x), expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(session["@int8"].model(x), expected, atol=0.1, rtol=0.1)

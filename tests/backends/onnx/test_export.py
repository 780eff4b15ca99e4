"""Export to ONNX, and why some models can't be exported."""

import io
import logging
import warnings

import pytest
import torch
from torch import nn

from kdkit import KdError, Session
from kdkit.backends.onnx.export import to_onnx
from kdkit.data import Batch
from tests.fixtures import detectors, zoo
from tests.fixtures.onnx_models import assert_same

pytestmark = pytest.mark.slow


def test_exporting_leaves_the_model_as_it_was():
    model = zoo.tiny_llama().train()
    model.model.layers[0].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, modes = model.config.to_dict(), [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    flags = [weight.requires_grad for weight in model.parameters()]
    to_onnx(model, zoo.batch("tiny_llama"))
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention == "sdpa"
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_exporting_says_nothing(capfd, caplog):
    stream = logging.StreamHandler(captured := io.StringIO())
    logging.getLogger().addHandler(stream)
    try:
        with warnings.catch_warnings(record=True) as stated:
            warnings.simplefilter("always")
            to_onnx(zoo.mlp(), zoo.batch("mlp"))
    finally:
        logging.getLogger().removeHandler(stream)
    assert capfd.readouterr() == ("", "")
    assert not captured.getvalue()
    assert not [item for item in stated if "onnx" in item.filename or "onnx" in str(item.message).lower()]


def test_a_single_item_as_example_gives_a_graph_for_any_batch():
    model = zoo.mlp()
    onnx = to_onnx(model, zoo.batch("mlp", items=1))
    assert_same(zoo.batch("mlp", items=5).call(onnx), zoo.batch("mlp", items=5).call(model))


class Pair(nn.Module):
    """Two inputs by name, one of them unused, a switch, and a nested output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, left, right=None, unused=None, double: bool = False):
        hidden = self.linear(left) + right
        return {"sum": hidden * (2 if double else 1), "parts": (left * 1.0, [right + 1, None])}


def test_switches_unused_inputs_and_nested_outputs_come_through():
    model, left, right = Pair().eval(), torch.randn(3, 4), torch.randn(3, 4)
    onnx = to_onnx(model, Batch((left,), {"right": right, "unused": left, "double": True}))
    assert onnx.signature.inputs == ("left", "right")
    assert onnx.signature.unused == ("unused",)
    assert_same(onnx(left, right=right, unused=left, double=True), model(left, right=right, unused=left, double=True))
    assert onnx(left, right)["parts"][1][1] is None
    with pytest.raises(KdError, match="double is no input"):
        onnx(left, right, double=3)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(8, -1) * 1.0


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) if x.sum().item() > 0 else self.linear(-x)


class First(nn.Module):
    def forward(self, parts, x):
        return parts[0] + x


class Worded(nn.Module):
    def forward(self, x):
        return {"x": x, "said": "yes"}


class Noisy(nn.Module):
    """Not the same from call to call."""

    def forward(self, x):
        return x + torch.randn(x.shape[-1])


@pytest.mark.parametrize(
    ("model", "batch", "says"),
    [
        (Branching(), Batch((torch.randn(8, 4),)), "can't be exported to ONNX"),
        (Noisy(), Batch((torch.randn(8, 4),)), "differs from the model"),
        (FixedBatch(), Batch((torch.randn(8, 4),)), "runs on 8 items and not on 3"),
        (nn.Linear(5, 5), Batch((torch.randn(8, 4),)), "can't be called with the example batch"),
        (First(), Batch(([torch.zeros(4, 2)], torch.zeros(4, 2))), "input parts of First is a list"),
        (Worded(), Batch((torch.randn(8, 4),)), "output holds a str"),
    ],
)
def test_what_can_not_be_exported_is_reported_with_its_reason(model, batch, says):
    with pytest.raises(KdError) as error:
        to_onnx(model, batch)
    assert says in str(error.value)


class Named(nn.Module):
    """Inputs named like operators, and like values that the exporter makes; an output named like an input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, cat, add, linear):
        scores = self.linear(torch.cat([cat, add + 1], 1)) + linear
        return {"logits": scores, "boxes": (scores * 2, scores - 1), "add": add + 2}


def test_inputs_and_outputs_have_the_names_of_the_model_whatever_they_are():
    model, batch = Named().eval(), Batch((torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 3)))
    onnx = to_onnx(model, batch)
    assert [item.name for item in onnx.session.get_inputs()] == ["cat", "add", "linear"]
    assert [item.name for item in onnx.session.get_outputs()] == ["logits", "boxes_0", "boxes_1", "add_output"]
    assert_same(batch.call(onnx), batch.call(model))


class Loop(nn.Module):
    """A loop over the steps of a sequence."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = cell = x.new_zeros(x.shape[0], 8)
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
        return self.head(hidden)


def test_an_axis_that_forward_loops_over_keeps_the_size_of_the_example_and_says_so(capfd):
    model, batch = Loop().eval(), Batch((torch.randn(4, 5, 6),))
    onnx = to_onnx(model, batch)
    assert_same(onnx(torch.ones(9, 5, 6)), model(torch.ones(9, 5, 6)))
    assert onnx.signature.fixed == {"x": {1: 5}}
    assert "axis 1 of x at 5" in onnx.signature.note
    with pytest.raises(KdError, match=r"has shape \(2, 4, 6\), and the model expects \(batch, 5, 6\)") as caught:
        onnx(torch.ones(2, 4, 6))
    assert "cut or pad" in caught.value.hints[0]
    assert capfd.readouterr() == ("", ""), "onnxruntime's own lines"


def test_sounds_of_any_length_are_taken_where_the_model_takes_them():
    model = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    onnx = to_onnx(model, Batch((torch.randn(4, 2, 40),)))
    for length in (17, 100):
        x = torch.randn(2, 2, length)
        assert_same(onnx(x), model(x))
    with pytest.raises(KdError, match=r"shape \(2, 3, 40\), and the model expects \(batch, 2, "):
        onnx(torch.randn(2, 3, 40))


@pytest.mark.parametrize(
    ("layers", "shape", "fixed", "note"),
    [
        ((nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (8, 6), {"input": {2: 8, 3: 6}}, "input at 8 x 6: images keep the size of the example"),
        ((nn.Conv3d(3, 4, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (4, 6, 5), {"input": {2: 4, 3: 6, 4: 5}}, "input at 4 x 6 x 5: images keep"),
        ((nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 48, 2)), (8, 6), {}, ""),
    ],
)
def test_images_keep_their_size_which_is_stated_where_the_model_takes_others(layers, shape, fixed, note):
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 3, *shape)
    onnx = to_onnx(model, Batch((x,)))
    assert_same(onnx(x[:1]), model(x[:1]))
    assert onnx.signature.fixed == fixed
    assert note in onnx.signature.note
    with pytest.raises(KdError, match="and the model expects") as caught:
        onnx(torch.randn(1, 3, *shape[:-1], shape[-1] + 2))
    assert bool(caught.value.hints) == bool(fixed)


def test_an_encoder_whose_padded_positions_are_read_is_refused_with_the_reason():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.encoder = nn.Embedding(9, 8), nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

        def forward(self, ids):
            return self.encoder(self.table(ids), src_key_padding_mask=ids == 0).mean(1)

    ids = torch.randint(1, 9, (4, 6))
    ids[::2, 4:] = 0
    with pytest.raises(KdError, match="the exported Pooled differs from the model") as caught:
        to_onnx(Pooled().eval(), Batch((ids,)))
    assert any("mask its output before pooling" in hint for hint in caught.value.hints)


def test_the_experts_of_transformers_are_exported_with_any_length():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=50, **sizes)).eval()
    before = model.get_experts_implementation()
    onnx = to_onnx(model, Batch(kwargs={"input_ids": torch.randint(50, (4, 8))}))
    assert model.get_experts_implementation() == before
    ids = torch.randint(50, (2, 5))
    torch.testing.assert_close(onnx(input_ids=ids).logits, model(input_ids=ids, use_cache=False).logits, rtol=1e-3, atol=1e-4)


def test_inputs_in_half_precision_are_exported_in_float():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).half().eval()
    x = torch.randn(4, 4).half()
    torch.testing.assert_close(to_onnx(model, Batch((x,)))(x), model(x).float(), rtol=2e-2, atol=2e-3)


def test_the_phases_of_an_export_are_reported():
    phases = []
    to_onnx(nn.Linear(4, 2), Batch((torch.randn(4, 4),)), report=lambda done, phase: phases.append((done, phase)))
    assert [phase for _, phase in phases] == ["preparing", "tracing forward into a graph", "checking the graph against torch"]
    assert [done for done, _ in phases] == sorted(done for done, _ in phases)


def test_more_than_two_gigabytes_are_refused_at_once():
    with torch.device("meta"):
        model = nn.Linear(32_768, 32_768)
    with pytest.raises(KdError, match="at most 2 GB"):
        to_onnx(model, Batch((torch.zeros(2, 32_768),)))


def test_half_precision_is_exported_in_float():
    model = zoo.mlp().bfloat16()
    onnx = to_onnx(model, zoo.batch("mlp"))
    assert onnx(*zoo.batch("mlp").args).dtype == torch.float32
    assert next(model.parameters()).dtype == torch.bfloat16


def vit():
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=detectors.SIDE, patch_size=16, num_labels=3)
    )


class Heads(nn.Module):
    """A detector that returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.classes, self.places = nn.Conv2d(3, 2, 16, 16), nn.Conv2d(3, 4, 16, 16)

    def forward(self, pixel_values):
        return {"logits": self.classes(pixel_values), "boxes": self.places(pixel_values).sigmoid()}


NAMED = {
    "a dictionary": (Heads, ["logits", "boxes"]),
    "ViT": (vit, ["logits"]),
    "DETR": (detectors.detr, ["logits", "pred_boxes", "last_hidden_state", "encoder_last_hidden_state"]),
    "YOLOS": (detectors.yolos, ["logits", "pred_boxes", "last_hidden_state"]),
}
"""Model -> (what makes it, the names of its outputs)."""


@pytest.mark.parametrize("name", NAMED)
def test_models_of_pictures_keep_the_names_of_their_outputs_at_any_batch_size(name, tmp_path):
    import onnx

    make, names = NAMED[name]
    model, images = make().eval(), torch.stack(detectors.pictures())
    exported = to_onnx(model, Batch((), {"pixel_values": images[:2]}))
    for some in (images, images[:1]):
        expected, found = model(pixel_values=some), exported(pixel_values=some)
        assert type(found) is type(expected)
        assert list(found) == names
        assert_same(found, expected)
    path = Session(model, example=Batch((), {"pixel_values": images[:2]}), measures=()).export(tmp_path / "net.onnx")
    graph = onnx.load(path).graph
    assert ([each.name for each in graph.input], [each.name for each in graph.output]) == (["pixel_values"], names)

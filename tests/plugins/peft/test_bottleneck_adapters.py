"""peft adapters: where they are, what trains, and what remains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit import Session
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.traits import traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import infer_task
from kdkit_peft.bottleneck import Adapted
from kdkit_peft.bottleneck_adapters import Adapters
from tests.fixtures import zoo


def context(model: nn.Module, batch: Batch) -> Context:
    data = adopt_data([(batch.kwargs | {"labels": batch.labels}) if batch.kwargs else (*batch.args, batch.labels)])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, Context]:
    about = context(model, batch)
    torch.manual_seed(0)
    return Adapters(**{"steps": 3, "learning_rate": 0.05, "reduction": 4, **options}).apply(copy.deepcopy(model), about), about


def prepared(name: str, **options) -> nn.Module:
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    return Adapters(**options).prepare(model, context(model, batch))


def places(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Adapted)]


def output(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        given = batch.call(model)
    return given if isinstance(given, torch.Tensor) else given.logits


def test_the_stage_is_valid():
    assert list(validate_stage(Adapters)) == []


EXPECTED = {
    "tiny_bert": (["bert.encoder.layer.{}.attention.output.dense"], "bert.encoder.layer.{}.output.dense"),
    "tiny_gpt2": (["transformer.h.{}.attn.c_proj"], "transformer.h.{}.mlp.c_proj"),
    "tiny_llama": (["model.layers.{}.self_attn.o_proj"], "model.layers.{}.mlp.down_proj"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_kinds_are_where_the_papers_put_them(name):
    attention, feed_forward = EXPECTED[name]
    both = [each.format(layer) for layer in (0, 1) for each in (*attention, feed_forward)]
    assert places(prepared(name, kind="houlsby")) == both
    assert places(prepared(name)) == places(prepared(name, kind="parallel")) == [feed_forward.format(layer) for layer in (0, 1)]


@pytest.mark.parametrize("kind", ["distilbert", "vit", "opt", "wav2vec2", "t5"])
def test_other_architectures_have_their_places_or_a_reason(kind):
    from transformers import AutoConfig, AutoModel

    sizes = {"distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}, "t5": {"d_model": 16, "d_ff": 32, "num_layers": 2, "d_kv": 8, "num_heads": 2}}
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    extra = {"vit": {"image_size": 8, "patch_size": 4}, "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "wav2vec2": {"num_conv_pos_embeddings": 4}}.get(kind, {})
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**common, **sizes.get(kind, {}), **extra}))
    both, one = (Adapters(kind=name)._selected(model) for name in ("houlsby", "pfeiffer"))
    layers = 4 if kind == "t5" else 2
    assert len(one) == layers
    assert len(both) == (2 * layers + 2 if kind == "t5" else 2 * layers)  # a decoder has cross-attention too


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", EXPECTED)
def test_only_the_adapters_train_and_all_else_stays_bit_for_bit(name, kind):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    start = Adapters(kind=kind).prepare(copy.deepcopy(model), context(model, batch))
    assert torch.equal(output(start, batch), output(model, batch))
    assert all(("adapter" in key) == weight.requires_grad for key, weight in start.named_parameters())
    made, about = run(model, batch, kind=kind)
    now = {key.replace(".base.", "."): value for key, value in made.state_dict().items() if ".adapter." not in key}
    assert now.keys() == model.state_dict().keys()
    assert all(torch.equal(value, now[key]) for key, value in model.state_dict().items())
    assert not torch.allclose(output(made, batch), output(model, batch), atol=1e-4)
    assert traits_of(made) == traits_of(model)
    assert all(weight.requires_grad for weight in made.parameters())
    assert about.renamed == {place: f"{place}.base" for place in places(made)}


def test_what_was_frozen_stays_frozen_and_also_train_trains():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    made, _ = run(model, batch, also_train=("classifier",))
    assert not torch.equal(made.classifier.weight, model.classifier.weight)
    frozen = {name for name, weight in made.named_parameters() if not weight.requires_grad}
    assert frozen == {f"bert.embeddings.{name}" for name, _ in model.bert.embeddings.named_parameters()} | {"bert.encoder.layer.0.output.dense.base.weight"}


def test_training_lowers_the_loss():
    model, batch = zoo.mlp(), zoo.batch("mlp")
    about = context(model, batch)
    before = about.task.evaluate(lambda item: item.call(model), about.data("train"))["loss"]
    made = Adapters(steps=60, learning_rate=0.05, reduction=2, targets=("first", "second")).apply(copy.deepcopy(model), about)
    assert about.task.evaluate(lambda item: item.call(made), about.data("train"))["loss"] < 0.8 * before


def test_a_net_of_ones_own_names_its_layers():
    with pytest.raises(KdError, match="Mlp has no layers with names of attention and feed-forward outputs that kdkit knows") as caught:
        list(Adapters().check(zoo.mlp(), context(zoo.mlp(), zoo.batch("mlp"))))
    assert "its layers: first, second, head" in caught.value.hints
    made, about = run(zoo.mlp(), zoo.batch("mlp"), targets=("second",))
    assert places(made) == ["second"]
    assert about.notes[0].startswith("1 pfeiffer adapters: 552 of 2,284 parameters train")


def test_convolutions_get_serial_adapters_only():
    made, _ = run(zoo.cnn(), zoo.batch("cnn"), targets=("blocks",))
    assert len(places(made)) == 4
    with pytest.raises(KdError, match="no layer can get an adapter") as caught:
        run(zoo.cnn(), zoo.batch("cnn"), targets=("blocks",), kind="parallel")
    assert caught.value.hints[0] == "blocks.0.conv1: parallel adapters are for linear layers"


def test_layers_whose_weight_is_read_are_left_alone():
    net = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(80, 3)).eval()
    _, about = run(net, Batch((torch.randn(4, 5, 16),), labels=torch.zeros(4, dtype=torch.long)), targets=("0", "1.linear2"))
    assert "skipped 1.linear2: TransformerEncoderLayer reads its weight directly" in about.notes


def test_labels_are_needed_only_for_the_tasks_loss():
    assert Adapters().required_inputs() == Needs(example=True, train=True, labels=True)
    assert Adapters(loss=0).required_inputs() == Needs(example=True, train=True)


@pytest.mark.slow
def test_a_folder_restores_them_and_they_quantize(tmp_path):
    session = Session(zoo.tiny_bert(), train=zoo.data("tiny_bert"), eval=zoo.data("tiny_bert"), measures=())
    session.run("peft adapters --steps 2 --learning-rate 0.05 --reduction 4", label="adapted")
    folder = session.save(tmp_path / "adapted", "@adapted")
    batch = zoo.batch("tiny_bert")
    assert torch.equal(output(Session.open(folder, measures=()).head.model, batch), output(session["@adapted"].model, batch))
    session.run("quantize dynamic", label="int8")
    torch.testing.assert_close(output(session["@int8"].model, batch), output(session["@adapted"].model, batch), atol=0.05, rtol=0.1)

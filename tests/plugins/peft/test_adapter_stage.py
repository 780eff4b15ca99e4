"""What all stages with peft's adapters promise: the outputs start unchanged, only adapters train, a merge is exact, and folders restore them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit import Session
from kdkit.data import Batch
from kdkit.models.traits import traits_of
from kdkit.pipelines.order import after
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.validation import validate_stage
from kdkit.tasks import infer_task
from kdkit_peft.adalora import AdaLora
from kdkit_peft.adapter_stage import AdapterStage
from kdkit_peft.ia3 import Ia3
from kdkit_peft.lora import Lora
from kdkit_peft.merge import Merge
from kdkit_peft.oft import Oft
from kdkit_peft.vera import Vera
from tests.fixtures import zoo

STAGES: dict[str, tuple[type[AdapterStage], dict]] = {
    "pissa": (Lora, {"init": "pissa", "rank": 4}),
    "olora": (Lora, {"init": "olora", "rank": 4}),
    "orthogonal": (Lora, {"init": "orthogonal", "rank": 4}),
    "ia3": (Ia3, {}),
    "vera": (Vera, {"rank": 16}),
    "oft": (Oft, {"block_size": 4}),
    "adalora": (AdaLora, {"initial_rank": 4, "rank": 2}),
}
MODELS = ["mlp", "tiny_bert", "tiny_llama"]
KEEPS_THE_WEIGHT = ["ia3", "vera", "oft", "adalora"]


def context(model: nn.Module, batch: Batch) -> Context:
    data = adopt_data([(batch.kwargs | {"labels": batch.labels}) if batch.kwargs else (*batch.args, batch.labels)])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def run(name: str, model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, Context]:
    stage, own = STAGES[name]
    about = context(model, batch)
    torch.manual_seed(0)
    return stage(**{"steps": 3, "learning_rate": 0.05, **own, **options}).apply(copy.deepcopy(model), about), about


def output(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        given = batch.call(model)
    return given if isinstance(given, torch.Tensor) else given.logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's own weights, by the names that they have without adapters."""
    found = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    return {name: value for name, value in found.items() if not any(part in name for part in ("lora_", "ranknum", "ia3_", "vera_", "oft_"))}


@pytest.mark.parametrize("stage", [Ia3, Vera, Oft, AdaLora])
def test_the_stages_are_valid(stage):
    assert list(validate_stage(stage)) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", STAGES)
def test_attached_and_untrained_the_model_gives_what_it_gave(name, model):
    net, batch = zoo.MODELS[model](), zoo.batch(model)
    adapted, _ = run(name, net, batch, train=False)
    assert type(adapted) is type(net)
    torch.testing.assert_close(output(adapted, batch), output(net, batch), atol=1e-5, rtol=1e-4)
    assert traits_of(adapted) == after(STAGES[name][0](), traits_of(net))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", STAGES)
def test_trained_adapters_merge_exactly_and_leave_a_plain_model(name, model):
    net, batch = zoo.MODELS[model](), zoo.batch(model)
    adapted, about = run(name, net, batch)
    trained = output(adapted, batch)
    assert not torch.allclose(trained, output(net, batch), atol=1e-5)
    own = weights(adapted)
    assert own.keys() == net.state_dict().keys()
    if name in KEEPS_THE_WEIGHT:
        assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())
    merged = Merge().apply(copy.deepcopy(adapted), about)
    torch.testing.assert_close(output(merged, batch), trained, atol=1e-4, rtol=1e-3)
    assert [key for key, _ in merged.named_parameters()] == [key for key, _ in net.named_parameters()]
    assert traits_of(merged) == traits_of(net)
    assert all(weight.requires_grad for weight in merged.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_folder_restores_trained_adapters_which_merge_there_too(name, tmp_path):
    stage, own = STAGES[name]
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in own.items())
    session = Session(zoo.tiny_bert(), train=zoo.data("tiny_bert"), measures=())
    session.run(f"{stage(**own).title} --steps 2 --learning-rate 0.05 {options}", label="adapted")
    folder = session.save(tmp_path / "adapted", "@adapted")
    again = Session.open(folder, measures=())
    batch = zoo.batch("tiny_bert")
    assert torch.equal(output(again.head.model, batch), output(session["@adapted"].model, batch))
    again.run("peft merge", label="merged")
    torch.testing.assert_close(output(again.head.model, batch), output(session["@adapted"].model, batch), atol=1e-5, rtol=1e-4)


def counted(name: str, model: str, **options) -> int:
    adapted, _ = run(name, zoo.MODELS[model](), zoo.batch(model), train=False, **options)
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def test_the_numbers_of_trained_parameters_are_those_of_the_papers():
    """The layers of mlp: first (32, 16) and second (32, 32)."""
    assert counted("ia3", "mlp") == 32 + 32
    assert counted("ia3", "mlp", scale_inputs=("first",)) == 16 + 32
    assert counted("vera", "mlp", rank=8) == 2 * (8 + 32)
    assert counted("oft", "mlp", block_size=8) == (16 // 8 + 32 // 8) * 8 * 7 // 2
    assert counted("adalora", "mlp", initial_rank=4) == 4 * (16 + 32 + 1) + 4 * (32 + 32 + 1)
    assert counted("pissa", "mlp", rank=4) == 4 * (16 + 32) + 4 * (32 + 32)


def test_ia3_computes_the_formula():
    net, batch = zoo.mlp(), zoo.batch("mlp")
    adapted, _ = run("ia3", net, batch, scale_inputs=("second",))
    first, second = (adapted.get_submodule(name).ia3_l["default"].detach().flatten() for name in ("first", "second"))
    (x,) = batch.args
    with torch.no_grad():
        hidden = torch.relu(first * net.first(x))
        expected = net.head(torch.relu(net.second(second * hidden)))
    torch.testing.assert_close(output(adapted, batch), expected)


def test_vera_computes_the_formula():
    net, batch = zoo.mlp(), zoo.batch("mlp")
    adapted, _ = run("vera", net, batch, targets=("first",))
    layer, (x,) = adapted.first, batch.args
    a, b = layer.vera_A["default"], layer.vera_B["default"]
    with torch.no_grad():
        added = layer.vera_lambda_b["default"] * ((layer.vera_lambda_d["default"] * (x @ a.T)) @ b.T)
        torch.testing.assert_close(layer(x), net.first(x) + added)


def test_oft_rotates_the_inputs():
    net, batch = zoo.mlp(), zoo.batch("mlp")
    adapted, about = run("oft", net, batch, targets=("second",), learning_rate=0.005)
    merged = Merge().apply(adapted, about)
    rotation = torch.linalg.lstsq(net.second.weight.double(), merged.second.weight.double()).solution
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(32, dtype=torch.float64), atol=1e-3, rtol=0)


def test_pissa_starts_with_the_first_singular_vectors():
    net, batch = zoo.mlp(), zoo.batch("mlp")
    adapted, _ = run("pissa", net, batch, train=False, targets=("second",))
    layer = adapted.second
    left, values, right = torch.linalg.svd(net.second.weight.detach())
    product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(product.detach(), (left[:, :4] * values[:4]) @ right[:4], atol=1e-5, rtol=1e-4)


def test_layers_that_do_not_suit_are_named():
    _, about = run("oft", zoo.mlp(), zoo.batch("mlp"), train=False, block_size=32)
    assert "skipped first: its 16 inputs are no multiple of --block-size 32" in about.notes
    _, about = run("pissa", zoo.mlp(), zoo.batch("mlp"), train=False, rank=20)
    assert "skipped first: --init pissa needs a rank of at most 16 here" in about.notes
    _, about = run("olora", zoo.tiny_bert(), zoo.batch("tiny_bert"), train=False, targets=("word_embeddings", "query"))
    assert "skipped bert.embeddings.word_embeddings: --init olora works on linear layers only" in about.notes


def test_weights_that_are_read_directly_are_named():
    net = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(80, 3)).eval()
    _, about = run("ia3", net, Batch((torch.randn(4, 5, 16),), labels=torch.zeros(4, dtype=torch.long)), train=False)
    assert any("1.linear1" in note and note.endswith("reads its weight directly, where peft ia3 has no form") for note in about.notes)

"""quantize qat: what was trained is what onnxruntime computes."""

import copy

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kdkit import Batch, Context, KdError, Session, Trait
from kdkit.models.traits import traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.qat import Qat, _simulation
from kdkit_quantize.simulation.attach import ATTRIBUTE
from kdkit_quantize.static import Static
from tests.fixtures import zoo


class Inplace(nn.Sequential):
    """A root that calls all its children, with in-place ReLUs, pooling and a flattened image."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(8 * 16, 4),
        )  # fmt: skip


NETS = {"cnn": zoo.cnn, "depthwise": zoo.MODELS["depthwise"], "mlp": zoo.mlp, "inplace": Inplace}


def batch_of(name: str, items: int = 32, seed: int = 1) -> Batch:
    if name != "inplace":
        return zoo.batch(name, items=items, seed=seed)
    random = torch.Generator().manual_seed(seed)
    return Batch((torch.randn(items, 3, 14, 14, generator=random),), labels=torch.arange(items) % 4)


def trained(name: str, steps: int = 4, **options) -> tuple[nn.Module, Qat, Context]:
    """A model in simulation, after some steps."""
    torch.manual_seed(0)
    batch, stage = batch_of(name), Qat(**options)
    context = Context(task=Classification(), objects={"train": adopt_data([batch])}, stage="quantize qat")
    model = stage.prepare(NETS[name]().eval(), context)
    optimizer = torch.optim.Adam([*model.parameters(), *_simulation(model).quantizers.parameters()], 3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(batch.call(model), batch.labels).backward()
        optimizer.step()
    return model.eval(), stage, context


def last_scale(made) -> float:
    graph = made.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return float(held[makers[graph.output[0].name].input[1]])


def test_it_is_a_valid_stage():
    assert not list(validate_stage(Qat))
    assert "labels" in Qat().required_inputs().names()
    assert "labels" not in Qat(labels=False).required_inputs().names()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("method", "bits"), [("lsq", 8), ("lsq", 3), ("ste", 8), ("ste", 4)])
def test_outputs_of_onnxruntime_are_those_trained_to_one_step_of_the_last_scale(name, method, bits):
    model, stage, context = trained(name, method=method, bits=bits)
    fresh = batch_of(name, items=64, seed=9)
    with torch.no_grad():
        wanted = fresh.call(model)
    made = stage.finish(copy.deepcopy(model), context)
    off = (fresh.call(made) - wanted).abs() / last_scale(made)
    assert float(off.max()) <= 1.01
    assert float((off > 0.5).float().mean()) < 0.1
    assert traits_of(made) == {Trait.ONNX, Trait.PACKED_WEIGHTS}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_the_graph_holds_the_integers_that_were_trained(bits):
    model, stage, context = trained("cnn", bits=bits)
    layer = model.stem
    codes = layer.parametrizations.weight[0].codes(layer.parametrizations.weight.original.detach()).detach().numpy()
    made = stage.finish(model, context)
    stored = [numpy_helper.to_array(tensor) for tensor in made.graph().graph.initializer]
    upper = codes * 2 ** ((7 if Static().narrow else 8) - bits)  # in the upper bits of a byte
    assert any(each.dtype == np.int8 and each.shape == codes.shape and np.array_equal(each, upper) for each in stored)
    assert max(len(np.unique(each)) for each in stored if each.dtype == np.int8 and each.ndim == 4) <= 2**bits - 1


@pytest.mark.slow
def test_names_stay_while_it_trains_and_nothing_of_the_simulation_stays_afterwards():
    plain = zoo.cnn()
    names = {name for name, _ in plain.named_modules()}
    model, stage, context = trained("cnn", steps=1)
    assert names <= {name for name, _ in model.named_modules()}
    assert Trait.FAKE_QUANT in traits_of(model)
    assert isinstance(model, type(plain))
    stage.finish(model, context)
    assert type(model) is type(plain)
    assert {name for name, _ in model.named_modules()} == names
    assert ATTRIBUTE not in vars(model)
    assert Trait.FAKE_QUANT not in traits_of(model)


class Moody(nn.Module):
    """Takes another way in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        return self.two(x.tanh() if self.training else x.relu())


@pytest.mark.slow
def test_a_forward_that_takes_other_steps_in_training_is_refused():
    batch = Batch((torch.randn(8, 6),), labels=torch.arange(8) % 3)
    model = Qat().prepare(Moody().eval(), Context(task=Classification(), objects={"train": adopt_data([batch])}))
    with pytest.raises(KdError, match="forward calls tanh in training where it calls relu"):
        batch.call(model.train())


def test_without_labels_it_needs_another_stage():
    with pytest.raises(KdError, match="nothing to train for"):
        Qat(labels=False).apply(zoo.mlp(), Context(task=Classification()))


@pytest.mark.slow
def test_it_runs_alone_and_beside_distillation_without_labels():
    data = [zoo.batch("cnn", items=16, seed=seed) for seed in range(4)]
    session = Session(zoo.cnn(), train=data, eval=data, teacher=zoo.cnn(seed=3))
    alone = session.run("quantize qat --bits 4 --steps 4 --learning-rate 1e-3", label="alone")
    assert any(note.startswith("simulated: weights of 6 layers in 4 bits, 10 of 10 activations") for note in alone.notes)
    both = session.run("together:\n    distill soft --no-labels --steps 4\n    quantize qat --no-labels", on="@base", label="both")
    assert any("soft" in note for note in both.notes)
    for version in (alone, both):
        assert traits_of(version.model) == {Trait.ONNX, Trait.PACKED_WEIGHTS}


@pytest.mark.slow
def test_two_bits_learn_what_rounding_loses():
    """A task that a linear layer of 2 bits rounded to nearest does not solve."""
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    labels = (x @ torch.randn(16, 4)).argmax(1)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    session = Session(net, train=(x, labels), eval=(x, labels), measures=("quality",))
    untrained = session.run("quantize qat --bits 2 --steps 1 --learning-rate 1e-8", label="untrained")
    learned = session.run("quantize qat --bits 2 --steps 200 --learning-rate 1e-2", on="@base", label="learned")
    assert learned["accuracy"] > untrained["accuracy"] + 0.05

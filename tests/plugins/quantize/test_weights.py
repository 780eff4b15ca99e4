"""quantize weights: which layers are packed, ties, saving, and what other stages do with the result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit import Context, KdError, Session
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import Trait, traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.packed_layers import PackedLinear
from kdkit_quantize.weights import Weights
from tests.fixtures import zoo


def run(model: nn.Module, **options) -> tuple[nn.Module, list[str]]:
    """The packed model and the notes; no data is given."""
    context = Context(task=Classification(), stage="quantize weights")
    return Weights(**options).apply(copy.deepcopy(model), context), context.notes


def output(model: nn.Module, name: str) -> torch.Tensor:
    given = zoo.batch(name).call(model.eval())
    return (given if isinstance(given, torch.Tensor) else given.logits if hasattr(given, "logits") else given[0]).detach()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0).item()


def test_it_is_a_valid_stage_that_needs_no_data():
    assert not list(validate_stage(Weights))
    assert Weights().required_inputs().names() == []


@pytest.mark.parametrize("name", zoo.MODELS)
@pytest.mark.parametrize(("bits", "least"), [(8, 0.9999), (4, 0.99), (3, 0.96)])
def test_every_model_answers_nearly_alike(name, bits, least):
    model = zoo.MODELS[name]()
    small, _ = run(model, bits=bits, group=32)
    assert cosine(output(small, name), output(model, name)) > least
    assert count_parameters(small) == count_parameters(model)
    assert size_bytes(small) < size_bytes(model)


def test_weights_take_the_bits_that_were_asked_for():
    """(64, 64) weights in 4 bits, a float16 scale and a zero point of 8 bits for each group of 32."""
    small, _ = run(nn.Sequential(nn.Linear(64, 64, bias=False)), bits=4, group=32)
    assert size_bytes(small) == 64 * 64 // 2 + 64 * 2 * 3


def test_layers_skip_and_embeddings_choose():
    model = zoo.tiny_bert()

    def packed(**options):
        return {name for name, layer in run(model, **options)[0].named_modules() if hasattr(layer, "packed")}

    assert packed(layers=("classifier",)) == {"classifier"}
    assert "classifier" not in packed(skip=("classifier",))
    assert packed() - packed(embeddings=False) == {f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")}


def test_a_pattern_that_fits_nothing_is_found_before_any_work():
    with pytest.raises(KdError, match="'secnd' fits no Linear") as caught:
        list(Weights(layers=("secnd",)).check(zoo.mlp(), Context(task=Classification())))
    assert "did you mean second?" in caught.value.hints


def test_tied_weights_stay_tied():
    model = zoo.tiny_gpt2()
    small, notes = run(model, bits=4)
    assert small.lm_head.packed is small.transformer.wte.packed
    assert not any("tied" in note for note in notes)


def test_a_weight_that_is_tied_to_a_layer_in_float_stays_in_float():
    small, notes = run(zoo.tiny_gpt2(), embeddings=False)
    assert "in float: lm_head: its weight is tied to transformer.wte, which is not packed with it" in notes
    assert small.lm_head.weight is small.transformer.wte.weight


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_that_cannot_be_packed_are_named_with_the_reason():
    net = nn.Sequential(nn.Linear(8, 8), Own(8, 8), nn.Linear(8, 8), nn.Embedding(4, 8, max_norm=1.0), nn.Linear(8, 8), nn.GRU(8, 8))
    net[2].register_forward_hook(lambda *args: None)
    net[4].weight.data[0, 0] = torch.nan
    small, notes = run(net)
    assert isinstance(small[0], PackedLinear)
    assert [note for note in notes if note.startswith("in float")] == [
        "in float: 1: Own has a forward of its own",
        "in float: 2: it has hooks",
        "in float: 3: it rescales its rows at each call (max_norm)",
        "in float: 4: its weight has values that are not finite",
        "in float: 5: GRU keeps its weights in weight_ih_l0 (24, 8), weight_hh_l0 (24, 8), not in layers of its own (51% of the parameters)",
    ]


def test_a_model_without_a_layer_that_can_be_packed_is_refused_by_name():
    with pytest.raises(KdError, match="quantize weights: no layer can be packed") as caught:
        run(nn.Sequential(nn.BatchNorm1d(4)))
    assert caught.value.hints == ("Sequential has no linear layer, convolution or embedding to pack",)


def test_layers_that_are_packed_already_are_named_and_left_alone():
    first, _ = run(zoo.mlp(), bits=4, layers=("first",))
    second, notes = run(first, bits=8)
    assert (second.first.packed.bits, second.second.packed.bits) == (4, 8)
    assert "in float" not in " ".join(note for note in notes if "first" in note)
    assert "left alone: first: it has packed weights" in notes


def session(name: str = "mlp") -> Session:
    return Session(zoo.MODELS[name](), eval=[zoo.batch(name)], train=[zoo.batch(name)], measures=["size"])


def test_a_packed_model_is_not_packed_again():
    mine = session()
    mine.run("quantize weights --bits 4")
    with pytest.raises(KdError, match="needs float weights, which quantize weights .* took away"):
        mine.run("quantize weights --bits 2")


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_saved_version_comes_back_bit_for_bit_and_is_as_small_on_disk(name, tmp_path):
    mine = session(name)
    made = mine.run("quantize weights --bits 3 --method hqq --group 32")
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head.model
    assert torch.equal(output(loaded, name), output(made.model, name))
    tensors = made.model.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.state_dict().items())
    written = (tmp_path / "small" / "weights.safetensors").stat().st_size
    assert size_bytes(made.model) <= written < size_bytes(made.model) + 150 * len(tensors) + 200


def test_a_tied_pair_is_still_one_weight_after_loading(tmp_path):
    mine = session("tiny_gpt2")
    mine.run("quantize weights --bits 4")
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head.model
    assert loaded.lm_head.packed is loaded.transformer.wte.packed


def test_traits_are_packed_alone_or_beside_float_layers():
    assert traits_of(run(zoo.mlp())[0]) == {Trait.PACKED_WEIGHTS}
    partly = traits_of(run(zoo.mlp(), layers=("first",))[0])
    assert {Trait.PACKED_WEIGHTS, Trait.FLOAT_WEIGHTS, Trait.TRAINABLE, Trait.FREE_STRUCTURE} == partly


def test_a_mistake_leaves_the_session_as_it_was():
    mine = session()
    before = mine.head
    with pytest.raises(KdError):
        mine.run("quantize weights --layers nowhere")
    assert mine.head is before


# data and mixed precision


def run_on_data(model: nn.Module, name: str, **options) -> tuple[nn.Module, Context]:
    data = adopt_data([zoo.batch(name)])
    context = Context(task=Classification(), stage="quantize weights", objects={"calibration": data})
    return Weights(**options).apply(copy.deepcopy(model), context), context


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gptq_disturbs_the_output_less_than_rounding_to_nearest(name):
    model = zoo.MODELS[name]()
    plain, exact = run(model, bits=3)[0], output(model, name)
    smart = run_on_data(model, name, bits=3, method="gptq")[0]
    assert (output(smart, name) - exact).norm() < 0.7 * (output(plain, name) - exact).norm()


def test_gptq_names_the_layers_that_it_rounds_to_nearest():
    _, context = run_on_data(zoo.depthwise(), "depthwise", bits=4, method="gptq")
    assert "rounded to nearest, since gptq works on linear layers and convolutions of one group: depthwise.0" in context.notes


def test_gptq_sees_the_inputs_that_the_packed_layers_before_give(monkeypatch):
    monkeypatch.setattr("kdkit_quantize.weights.MOMENTS_BYTES", 1)
    model = zoo.mlp()
    small, _ = run_on_data(model, "mlp", bits=2, method="gptq")
    monkeypatch.undo()
    at_once, _ = run_on_data(model, "mlp", bits=2, method="gptq")
    assert torch.equal(small.first.packed.codes, at_once.first.packed.codes)
    assert not torch.equal(small.head.packed.codes, at_once.head.packed.codes)


def test_gptq_and_average_bits_ask_for_data():
    assert Weights(method="gptq").required_inputs().names() == ["calibration"]
    assert Weights(average_bits=4).required_inputs().names() == ["calibration"]


def test_inputs_that_are_not_finite_are_refused_by_name():
    model = zoo.mlp()
    model.first.bias.data[0] = torch.inf
    with pytest.raises(KdError, match="the inputs of second, head are not finite on the calibration data"):
        run_on_data(model, "mlp", method="gptq")


def average_bits(model: nn.Module) -> float:
    packed = {id(module): module for module in model.modules() if hasattr(module, "kdkit_encoded")}.values()
    return sum(each.bits * each.kdkit_encoded["codes"] for each in packed) / sum(each.kdkit_encoded["codes"] for each in packed)


@pytest.mark.parametrize("name", ["cnn", "tiny_bert", "tiny_gpt2"])
def test_average_bits_keep_the_budget_and_disturb_the_output_less_than_the_same_bits_everywhere(name):
    model = zoo.MODELS[name]()
    mixed, context = run_on_data(model, name, average_bits=3)
    assert average_bits(mixed) <= 3
    exact, plain = output(model, name), run(model, bits=3)[0]
    assert (output(mixed, name) - exact).norm() < (output(plain, name) - exact).norm()
    assert any("bits a weight: " in note for note in context.notes)
    assert context.attachments[0].head == ["layer", "weights", "bits", "output SQNR"]


def test_measuring_the_layers_leaves_the_model_as_it_was():
    model = zoo.tiny_gpt2()
    kept = copy.deepcopy(model.state_dict())
    stage, context = Weights(average_bits=3), Context(task=Classification(), objects={"calibration": adopt_data([zoo.batch("tiny_gpt2")])})
    stage.layer_widths(model, stage.chosen(model)[0], context)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_layer_bits_are_kept_and_the_others_get_the_rest_of_the_budget():
    small, _ = run_on_data(zoo.mlp(), "mlp", average_bits=4, layer_bits={"head": 8})
    assert small.head.packed.bits == 8
    assert average_bits(small) <= 4
    assert run(zoo.mlp(), bits=4, layer_bits={"*": 3, "head": 8})[0].second.packed.bits == 3


def test_a_budget_that_layer_bits_exceed_is_found_before_any_work():
    (problem,) = Weights(average_bits=2.5, layer_bits={"second": 8}).check(zoo.mlp(), Context(task=Classification()))
    assert "--average-bits 2.5 is less than --layer-bits alone takes" in problem


def test_bits_that_a_weight_cannot_have_are_refused():
    with pytest.raises(Exception, match="--layer-bits head=5: a weight can have 2, 3, 4 or 8 bits"):
        Weights(layer_bits={"head": 5})

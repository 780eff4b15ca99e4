"""decompose svd: against numpy, by hand, and on the models whose code looks past a layer's forward."""

from __future__ import annotations

import copy
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.traits import traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Regression
from kdkit_decompose.factors import decompose, factorize
from kdkit_decompose.forms import CHANNEL, INPUT, LINEAR, SPATIAL
from kdkit_decompose.moments import Moment, Observation, observe_layers
from kdkit_decompose.ranks import break_even, by_budget, by_energy, by_ratio, price
from kdkit_decompose.svd import Svd
from tests.fixtures import zoo
from tests.fixtures.decomposition import CONVOLUTIONS, context, convolution, images, observed, parameters, run_stage


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    return run_stage(Svd(**options), model, batch)


def output(model: nn.Module, batch: Batch) -> torch.Tensor:
    given_ = batch.call(model.eval())
    return (given_ if isinstance(given_, torch.Tensor) else given_.logits if hasattr(given_, "logits") else given_[0]).detach()


def linear(outputs: int, inputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


def test_the_stage_is_valid():
    assert list(validate_stage(Svd)) == []


# factors


@given(some.integers(2, 12), some.integers(2, 12), some.integers(1, 12), some.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_error_is_the_norm_of_the_singular_values_left_out(outputs, inputs, rank, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    down, up = factorize(weight, rank)
    values = numpy.linalg.svd(weight.numpy().astype(float), compute_uv=False)
    assert torch.linalg.norm(weight - up @ down).item() == pytest.approx(math.sqrt((values[rank:] ** 2).sum()), abs=1e-4)


def test_at_full_rank_the_output_is_the_same():
    layer, x = linear(6, 10), torch.randn(4, 10)
    torch.testing.assert_close(decompose(layer, LINEAR, 6)(x), layer(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_with_calibration_full_rank_is_exact_too(shape):
    layer, x = linear(*shape), torch.randn(4, shape[1])
    torch.testing.assert_close(decompose(layer, LINEAR, 6, observed(layer, torch.randn(50, shape[1]), LINEAR))(x), layer(x), atol=1e-4, rtol=0)


def correlated(rows: int, width: int, seed: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=random) @ torch.diag(torch.logspace(0, -2, width)) @ torch.randn(width, width, generator=random)


def whitened_svd(weight: torch.Tensor, inputs: torch.Tensor, rank: int) -> numpy.ndarray:
    """[W C^½]_r C^-½ with the damped second moment C of the inputs, in numpy."""
    columns = weight.shape[1]
    second = (inputs.T @ inputs / len(inputs)).double().numpy()
    second += numpy.eye(columns) * Observation.DAMPING * numpy.trace(second) / columns
    values, vectors = numpy.linalg.eigh(second)
    root = vectors @ numpy.diag(values**0.5) @ vectors.T
    left, spread, right = numpy.linalg.svd(weight.double().numpy() @ root)
    return (left[:, :rank] * spread[:rank]) @ right[:rank] @ numpy.linalg.inv(root)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)])
def test_aware_factors_are_the_whitened_svd_of_the_paper_from_inputs_and_from_outputs(shape):
    layer, inputs = linear(*shape), correlated(400, shape[1])
    seen = observed(layer, inputs, LINEAR)
    assert seen.of_outputs == (shape[0] < shape[1])
    down, up = factorize(LINEAR.matrix(layer), 3, seen)
    numpy.testing.assert_allclose((up @ down).numpy(), whitened_svd(layer.weight.detach(), inputs, 3), atol=1e-3)


def test_aware_factors_err_less_in_the_output_and_more_in_the_weight():
    layer, inputs = linear(16, 24), correlated(2000, 24)
    weight = LINEAR.matrix(layer)
    plain, aware = (up @ down for down, up in (factorize(weight, 6), factorize(weight, 6, observed(layer, inputs[:1000], LINEAR))))
    held_out = inputs[1000:].T
    assert torch.linalg.norm((weight - aware) @ held_out) < 0.5 * torch.linalg.norm((weight - plain) @ held_out)
    assert torch.linalg.norm(weight - aware) > torch.linalg.norm(weight - plain)


def test_a_moment_does_not_depend_on_how_inputs_are_batched():
    inputs, whole, cut = torch.randn(30, 4, 5), Moment(5), Moment(5)
    whole.add(inputs)
    for piece in inputs.split(7):
        cut.add(piece)
    assert (whole.rows, cut.rows) == (120, 120)
    torch.testing.assert_close(whole.sum, cut.sum, atol=1e-3, rtol=1e-5)


def test_padding_does_not_count_in_a_moment():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    mask = batch.kwargs["attention_mask"].clone()
    mask[:, 7:] = 0
    padded = Batch(kwargs={**batch.kwargs, "attention_mask": mask})
    layers = {name: (layer, LINEAR) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    seen = observe_layers(model, layers, [padded])
    assert seen["bert.encoder.layer.0.attention.self.query"].moment.rows == zoo.ITEMS * 7
    assert seen["bert.encoder.layer.0.output.dense"].of_outputs
    assert seen["bert.encoder.layer.0.output.dense"].moment.rows == zoo.ITEMS * 7
    assert seen["classifier"].moment.rows == zoo.ITEMS
    assert not any(layer._forward_hooks for layer, _ in layers.values())


# ranks


def test_break_even_is_where_the_product_costs_as_much():
    for shape in ((8, 8), (30, 20), (7, 5), (1, 9)):
        costs = [price(shape, rank) for rank in range(40)]
        assert break_even(shape) == next(rank for rank, cost in enumerate(costs) if cost >= math.prod(shape))


@pytest.mark.slow
@given(some.integers(2, 64), some.integers(2, 64), some.floats(0.05, 0.95), some.sampled_from([1, 2, 4, 8]))
def test_by_ratio_keeps_at_most_that_share_and_could_not_keep_more(outputs, inputs, ratio, step):
    rank = by_ratio((outputs, inputs), ratio, step)
    assert rank % step == 0
    assert rank == step or price((outputs, inputs), rank) <= ratio * outputs * inputs + 1e-6
    assert price((outputs, inputs), rank + step) > ratio * outputs * inputs


@pytest.mark.parametrize(("energy", "rank"), [(0.1, 1), (9 / 14, 1), (0.7, 2), (13 / 14, 2), (0.99, 3), (1.0, 3)])
def test_by_energy_by_hand(energy, rank):
    assert by_energy(torch.tensor([3.0, 2.0, 1.0]), energy) == rank


def test_by_energy_rounds_up_so_that_the_energy_is_kept():
    assert by_energy(torch.tensor([3.0, 2.0, 1.0, 0.5]), 0.9, step=4) == 4


def kept(shapes, values, ranks):
    """Normalised energy kept, and parameters spent; a layer at break-even stays whole."""
    whole = {name: ranks[name] >= break_even(shape) for name, shape in shapes.items()}
    energy = sum(1.0 if whole[name] else float((values[name][: ranks[name]] ** 2).sum() / (values[name] ** 2).sum()) for name in shapes)
    return energy, sum(math.prod(shape) if whole[name] else price(shape, ranks[name]) for name, shape in shapes.items())


@pytest.mark.slow
@given(some.integers(0, 500), some.sampled_from([0.4, 0.55, 0.7]))
@settings(max_examples=25, deadline=None)
def test_by_budget_spends_no_more_and_no_equal_layers_could_keep_more(seed, budget):
    random = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys("abc", (12, 12))
    values = {name: torch.rand(12, generator=random).sort(descending=True).values ** 3 + 0.01 for name in shapes}
    ranks = by_budget(shapes, values, budget)
    energy, spent = kept(shapes, values, ranks)
    assert spent <= budget * 3 * 144
    below = range(1, break_even((12, 12)))
    options = ({"a": a, "b": b, "c": c} for a in below for b in below for c in below)
    best = max(kept(shapes, values, option)[0] for option in options if kept(shapes, values, option)[1] <= budget * 3 * 144)
    assert energy >= best - 1e-5


def test_by_budget_gives_a_sharp_layer_less_than_a_flat_one():
    shapes = {"sharp": (16, 16), "flat": (16, 16)}
    ranks = by_budget(shapes, {"sharp": torch.logspace(0, -4, 16), "flat": torch.ones(16)}, 0.5)
    assert ranks["sharp"] < ranks["flat"]
    assert sum(price((16, 16), rank) for rank in ranks.values()) <= 256


def test_by_budget_counts_what_a_singular_value_costs():
    """64 parameters are left after rank 1 for both: one more of the wide layer, or the small one whole for 48."""
    shapes = {"wide": (8, 56), "small": (8, 8)}
    ranks = by_budget(shapes, {"wide": torch.linspace(1.2, 1.0, 8), "small": torch.ones(8)}, 144 / 512)
    assert ranks == {"wide": 1, "small": 8}


# the stage


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "tiny_bert", "tiny_llama", "tiny_gpt2", "lstm", "cnn"])
@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"energy": 0.6}, {"budget": 0.5}, {"rank": 1}, {"ratio": 0.6, "aware": False}, {"budget": 0.5, "aware": False}])
def test_every_model_gets_smaller_and_is_called_as_before(name, options):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    small, notes = run(model, batch, **options)
    assert parameters(small) < parameters(model)
    assert output(small, batch).shape == output(model, batch).shape
    assert "decomposed" in notes[-1]
    assert {type(layer).__module__.partition(".")[0] for layer in small.modules()} <= {type(layer).__module__.partition(".")[0] for layer in model.modules()} | {"torch"}
    assert traits_of(small) == traits_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_all_energy_but_what_is_zero_leaves_the_output_alone(name):
    """Weights of low rank come out exactly: transposed Conv1D, biases and all places are right."""
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    for layer in model.modules():
        if hasattr(layer, "weight") and layer.weight.dim() == 2 and not isinstance(layer, nn.Embedding):
            left, values, right = torch.linalg.svd(layer.weight.data, full_matrices=False)
            layer.weight.data = (left[:, :3] * values[:3]) @ right[:3]
    small, _ = run(model, batch, rank=3, skip=("lm_head",) if name == "tiny_llama" else ())
    assert sum(type(layer) is nn.Sequential for layer in small.modules()) >= 2
    torch.testing.assert_close(output(small, batch), output(model, batch), atol=1e-4, rtol=1e-4)


def test_a_layer_becomes_two_plain_linears_with_its_bias_mode_and_flags():
    model, batch = zoo.mlp(), zoo.batch("mlp")
    model.second.weight.requires_grad_(False)
    small, _ = run(model, batch, rank=4, layers=("second",))
    down, up = small.second
    assert (type(small.second), type(down), type(up)) == (nn.Sequential, nn.Linear, nn.Linear)
    assert (down.weight.shape, up.weight.shape, down.bias) == ((4, 32), (32, 4), None)
    assert torch.equal(up.bias, model.second.bias)
    assert not any((small.second.training, down.weight.requires_grad, up.weight.requires_grad))
    assert up.bias.requires_grad


def test_layers_and_skip_choose():
    small, notes = run(zoo.mlp(), zoo.batch("mlp"), ratio=0.5, layers=("first", "second"), skip=("second",))
    assert (type(small.first), type(small.second)) == (nn.Sequential, nn.Linear)
    assert notes == ["1 layer decomposed, rank 5: 240 of 512 weights kept (47%)"]


def test_a_pattern_that_fits_nothing_is_found_before_any_work():
    with pytest.raises(KdError, match="'secnd' fits no Linear or") as caught:
        Svd(layers=("secnd",)).check(zoo.mlp(), context(zoo.batch("mlp")))
    assert "did you mean second?" in caught.value.hints


def test_layers_that_would_cost_parameters_are_left_alone_and_named():
    small, notes = run(zoo.mlp(), zoo.batch("mlp"), rank=8)
    assert type(small.head) is nn.Linear
    assert "skipped head: rank 8 saves no parameters, only ranks below 4 do" in notes


def test_nothing_to_save_is_an_error_that_says_why():
    with pytest.raises(KdError, match="would save no parameter in any layer") as caught:
        run(zoo.mlp(), zoo.batch("mlp"), rank=100)
    assert "second: rank 100 saves no parameters, only ranks below 16 do" in caught.value.hints


def test_a_budget_too_small_for_rank_one_names_the_least():
    with pytest.raises(KdError, match=r"--budget 0\.01 is too small") as caught:
        run(zoo.mlp(), zoo.batch("mlp"), budget=0.01)
    least = float(caught.value.hints[0].split()[-1])
    run(zoo.mlp(), zoo.batch("mlp"), budget=least)


def test_round_to_makes_every_rank_a_multiple():
    small, _ = run(zoo.tiny_bert(), zoo.batch("tiny_bert"), energy=0.5, round_to=4)
    assert {layer[0].out_features % 4 for layer in small.modules() if type(layer) is nn.Sequential} == {0}


@pytest.mark.parametrize("options", [{"ratio": 0.5, "rank": 3}, {"energy": 0.9, "budget": 0.5}])
def test_two_ways_to_choose_the_ranks_are_refused(options):
    with pytest.raises(KdError, match="each choose the ranks; give one of them"):
        Svd.build("decompose svd", options)


def test_calibration_data_is_used_where_the_session_has_it_and_not_needed():
    assert Svd().required_inputs() == Svd(aware=False).required_inputs() == Needs(example=True)
    assert Svd().optional_inputs() == Needs(calibration=True)
    assert Svd(aware=False).optional_inputs() == Needs()
    about = Context(task=Regression(), objects={"example": adopt_data([zoo.batch("mlp")])})
    plain, _ = run(zoo.mlp(), zoo.batch("mlp"), aware=False)
    assert torch.equal(Svd().apply(zoo.mlp(), about).second[0].weight, plain.second[0].weight)


def test_tied_weights_are_skipped_by_name():
    small, notes = run(zoo.tiny_gpt2(), zoo.batch("tiny_gpt2"), ratio=0.5)
    assert "skipped lm_head: its weight is tied to transformer.wte" in notes
    assert small.lm_head.weight is small.transformer.wte.weight


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        x = self.inner(x)
        return self.layer(self.attention(x, x, x)[0])


@pytest.mark.parametrize("grad", [True, False])
def test_layers_whose_weight_is_read_past_their_forward_are_skipped_and_the_model_still_runs(grad):
    model, batch = Attention().eval(), Batch((torch.randn(2, 5, 16),))
    small, notes = run(model, batch, ratio=0.5)
    assert type(small.inner) is nn.Sequential
    assert "skipped attention.out_proj: MultiheadAttention reads its weight itself" in notes
    assert "skipped layer.self_attn.out_proj, layer.linear1, layer.linear2: TransformerEncoderLayer reads its weight itself" in notes
    with torch.set_grad_enabled(grad):
        assert small(*batch.args).shape == (2, 5, 16)


def test_t5_reads_the_dtype_of_wo_so_wo_is_skipped():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)).eval()
    batch = Batch(kwargs={"input_ids": torch.arange(12).view(2, 6), "decoder_input_ids": torch.arange(8).view(2, 4)})
    small, notes = run(model, batch, ratio=0.5)
    assert "skipped encoder.block.0.layer.1.DenseReluDense.wo, decoder.block.0.layer.2.DenseReluDense.wo: T5DenseActDense reads its weight itself" in notes
    assert output(small, batch).shape == (2, 4, 50)


def test_a_vision_transformer_runs_decomposed():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4, num_labels=3)
    model, batch = ViTForImageClassification(config).eval(), Batch((torch.randn(2, 3, 8, 8),))
    small, _ = run(model, batch, ratio=0.5)
    assert parameters(small) < parameters(model)
    assert output(small, batch).shape == (2, 3)


def test_a_module_that_is_in_two_places_stays_one():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    small, notes = run(model, Batch((torch.randn(3, 16),)), ratio=0.5)
    assert small[0] is small[2]
    assert type(small[0]) is nn.Sequential
    assert notes == ["1 layer decomposed, rank 4: 128 of 256 weights kept (50%)"]


def test_a_model_that_is_one_layer_becomes_the_product():
    small, _ = run(nn.Linear(16, 16), Batch((torch.randn(3, 16),)), ratio=0.5)
    assert type(small) is nn.Sequential


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_decomposed_in_float32_and_stay_half(dtype):
    layer = nn.Linear(32, 32)
    left, values, right = torch.linalg.svd(layer.weight.data)
    layer.weight.data = (left[:, :4] * values[:4]) @ right[:4]
    layer.to(dtype)
    made = decompose(layer, LINEAR, 4)
    assert {weight.dtype for weight in made.parameters()} == {dtype}
    error = torch.linalg.norm(layer.weight.float() - made[1].weight.float() @ made[0].weight.float()) / torch.linalg.norm(layer.weight.float())
    assert error < 4 * torch.finfo(dtype).eps


def strange_layers() -> dict[str, nn.Linear]:
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    hooked, broken = nn.Linear(16, 16), nn.Linear(16, 16)
    hooked.register_forward_hook(lambda module, args, result: result + 1)
    broken.weight.data[0, 0] = float("nan")
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    return {"own": Own(16, 16), "hooked": hooked, "broken": broken, "parametrized": parametrized}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("own", "a forward of its own"),
        ("hooked", "hooks hang on it"),
        ("broken", "not finite"),
        ("parametrized", "its weight is computed by weight_norm (torch.nn.utils.parametrize.remove_parametrizations"),
    ],
)
def test_layers_that_are_more_than_a_linear_are_left_alone(kind, reason):
    model = nn.Sequential(strange_layers()[kind], nn.Linear(16, 16)).eval()
    small, notes = run(model, Batch((torch.randn(3, 16),)), ratio=0.5)
    assert type(small[1]) is nn.Sequential
    assert notes[0].startswith("skipped 0: ")
    assert reason in notes[0]


def test_nothing_that_can_be_replaced_is_an_error():
    with pytest.raises(KdError, match="none of the layers can be decomposed") as caught:
        run(nn.Sequential(strange_layers()["own"]), Batch((torch.randn(3, 16),)))
    assert caught.value.hints == ("0: Own has a forward of its own",)


def test_a_layer_that_no_calibration_batch_reaches_is_decomposed_by_its_weight():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x)

    model = Spare().eval()
    small, notes = run(model, Batch((torch.randn(40, 16),)), ratio=0.5, aware=True)
    assert "spare: no calibration batch reached it: its weight alone counts" in notes
    plain = decompose(model.spare, LINEAR, 4)
    torch.testing.assert_close(small.spare[1].weight @ small.spare[0].weight, plain[1].weight @ plain[0].weight)


def test_aware_keeps_the_output_better_on_data_that_is_in_few_directions():
    model, batch = zoo.mlp(), Batch((correlated(256, 16),))
    plain, aware = (output(run(model, batch, ratio=0.5, aware=aware)[0], batch) for aware in (False, True))
    truth = output(model, batch)
    assert torch.linalg.norm(aware - truth) < torch.linalg.norm(plain - truth)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"energy": 0.5, "aware": False}, {"rank": 2}, {"ratio": 0.5, "aware": False}])
def test_the_forecast_has_the_structure_without_calibration(options):
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    about = Context(task=Regression(), objects={"example": adopt_data([batch])})
    predicted = Svd(**options).forecast(copy.deepcopy(model), about).model
    made, _ = run(model, batch, **options)
    assert [(name, weight.shape) for name, weight in predicted.named_parameters()] == [(name, weight.shape) for name, weight in made.named_parameters()]


def test_the_line_of_a_stage_reads_as_it_was_typed():
    assert Svd(energy=0.9, skip=("lm_head",)).line() == "decompose svd --skip lm_head --energy 0.9"


def pointwise(dimensions: int, **options) -> nn.Module:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    return kind(6, 8, 1, **options)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"padding": 1, "padding_mode": "circular"}, {"bias": False}])
def test_a_1x1_convolution_at_full_rank_gives_the_same(dimensions, options):
    layer = pointwise(dimensions, **options)
    x = torch.randn(2, 6, *(5,) * dimensions)
    torch.testing.assert_close(decompose(layer, CHANNEL, 6)(x), layer(x), atol=1e-5, rtol=1e-4)


def test_a_1x1_convolution_has_the_factors_of_the_linear_layer_that_it_is_at_each_position():
    layer, linear = pointwise(2), nn.Linear(6, 8)
    linear.weight.data.copy_(layer.weight.flatten(1))
    x = correlated(64, 6)
    seen = [observed(*each) for each in ((layer, x.T.reshape(1, 6, 8, 8), CHANNEL), (linear, x, LINEAR))]
    torch.testing.assert_close(seen[0].moment.sum, seen[1].moment.sum)
    made, expected = decompose(layer, CHANNEL, 3, seen[0]), decompose(linear, LINEAR, 3, seen[1])
    torch.testing.assert_close((made[1].weight.flatten(1) @ made[0].weight.flatten(1)), expected[1].weight @ expected[0].weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", [CHANNEL, INPUT, SPATIAL])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_at_full_rank_gives_the_same(form, options):
    layer, x = convolution(**options), torch.randn(2, 4, 9, 10)
    made = decompose(layer, form, min(form.shape(layer)))
    torch.testing.assert_close(made(x), layer(x), atol=1e-5, rtol=1e-4)
    assert math.prod(form.shape(layer)) == layer.weight.numel()


@pytest.mark.parametrize("form", [CHANNEL, SPATIAL])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_vectors_that_a_matrix_multiplies_are_the_patches(form, options):
    """Of the layer by channels; by space those of its column, whose sums over the row give the output."""
    layer, x = convolution(**options), torch.randn(2, 4, 9, 10)
    given = form.columns(layer, x) @ form.matrix(layer).T
    if form is CHANNEL:
        torch.testing.assert_close(given, CHANNEL.product(layer, layer(x)), atol=1e-5, rtol=1e-4)
        return
    outputs, width = layer.out_channels, layer.kernel_size[1]
    row = nn.Conv2d(outputs * width, outputs, (1, width), (1, layer.stride[1]), SPATIAL.layers(layer, 1)[1].padding, (1, layer.dilation[1]), 1, False, layer.padding_mode)
    row.weight.data = torch.eye(outputs * width).reshape(outputs, width, outputs * width).transpose(1, 2)[:, :, None]
    torch.testing.assert_close(row(given.movedim(-1, 1)), layer(x) - (0 if layer.bias is None else layer.bias.view(-1, 1, 1)), atol=1e-5, rtol=1e-4)


def test_aware_factors_of_a_convolution_are_the_whitened_svd_over_its_patches():
    layer, x = convolution(), images()
    seen = observed(layer, x, CHANNEL)
    down, up = factorize(CHANNEL.matrix(layer), 3, seen)
    rows = nn.functional.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    numpy.testing.assert_allclose((up @ down).numpy(), whitened_svd(CHANNEL.matrix(layer), rows, 3), atol=2e-3)


@pytest.mark.parametrize("form", [CHANNEL, INPUT, SPATIAL])
def test_aware_keeps_the_output_of_a_convolution_better_on_new_images(form):
    layer, x = convolution(8, 16, padding=1), images(32, 8)
    seen = observed(layer, x[:16], form)
    plain, aware = (torch.linalg.norm(decompose(layer, form, 4, each)(x[16:]) - layer(x[16:])) for each in (None, seen))
    assert aware < 0.8 * plain


@pytest.mark.parametrize(("form", "kernels"), [("channel", [(3, 3), (1, 1)]), ("input", [(1, 1), (3, 3)]), ("spatial", [(3, 1), (1, 3)])])
def test_form_chooses_how_convolutions_are_split(form, kernels):
    small, _ = run(zoo.cnn(), zoo.batch("cnn"), form=form, layers=("blocks",))
    assert [layer.kernel_size for layer in small.blocks[0].conv1] == kernels


def test_auto_takes_the_form_that_keeps_more_of_the_weight():
    column = convolution(16, 16, bias=False)
    column.weight.data = torch.einsum("orw,rih->oihw", torch.randn(16, 2, 3), torch.randn(2, 16, 3))
    mixed = convolution(16, 16, bias=False)
    mixed.weight.data = torch.einsum("or,rihw->oihw", torch.randn(16, 2), torch.randn(2, 16, 3, 3))
    small, _ = run(nn.Sequential(column, mixed).eval(), Batch((torch.randn(2, 16, 9, 9),)), ratio=0.15)
    assert [small[0][1].kernel_size, small[1][1].kernel_size] == [(1, 3), (1, 1)]


def test_a_net_of_convolutions_becomes_smaller_and_names_what_it_leaves():
    small, notes = run(zoo.depthwise(), zoo.batch("depthwise"))
    assert "skipped depthwise.0: its channels are in groups" in notes
    assert type(small.depthwise[0]) is nn.Conv2d
    assert type(small.expand[0]) is nn.Sequential
    assert parameters(small) < parameters(zoo.depthwise())


def test_a_convolution_of_one_dimension_is_split_by_channels():
    torch.manual_seed(0)
    small, _ = run(nn.Sequential(nn.Conv1d(8, 16, 5, stride=2), nn.ReLU()).eval(), Batch((torch.randn(2, 8, 20),)))
    assert [(type(layer), layer.kernel_size) for layer in small[0]] == [(nn.Conv1d, (5,)), (nn.Conv1d, (1,))]


def test_a_net_without_such_layers_names_what_it_has():
    net = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8))
    with pytest.raises(KdError, match="works on linear layers and convolutions, and finds none here: Sequential has 1 Embedding, 1 LayerNorm"):
        Svd().check(net, context(Batch((torch.zeros(2, 3).long(),))))


def test_experts_and_recurrent_layers_are_named_as_left_alone():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 16)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    _, notes = run(Reader().eval(), Batch((torch.randn(3, 4, 16),)), ratio=0.5)
    assert any(note.startswith("skipped rnn: GRU keeps its weights in weight_ih_l0") for note in notes)

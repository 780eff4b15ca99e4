"""decompose tucker: weights of known rank, the bound of its error, ranks against all others, and the stage."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit_decompose.forms import INPUT
from kdkit_decompose.tucker import Tucker, TuckerConvolution, factorize
from kdkit_decompose.tucker_ranks import Spectrum, by_budget
from tests.fixtures import zoo
from tests.fixtures.decomposition import CONVOLUTIONS, context, convolution, images, observed, parameters, run_stage


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    return run_stage(Tucker(**options), model, batch)


def weight(outputs: int = 8, inputs: int = 6, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    decay = torch.einsum("o,i->oi", torch.logspace(0, -1, outputs), torch.logspace(0, -1, inputs))[:, :, None, None]
    return torch.randn(outputs, inputs, 3, 3, generator=random) * decay


def rebuilt(core: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oa,ib,abhw->oihw", outputs, inputs, core)


def test_the_stage_is_valid():
    assert list(validate_stage(Tucker)) == []


# factors


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_at_full_ranks_the_output_is_the_same(options, aware):
    layer, x = convolution(**options), images(4)
    made = TuckerConvolution(layer, (6, 4), observed(layer, x, INPUT) if aware else None).made()
    torch.testing.assert_close(made(x), layer(x), atol=2e-4, rtol=1e-3)
    assert [part.kernel_size for part in made] == [(1, 1), layer.kernel_size, (1, 1)]


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_convolutions_of_other_dimensions(kind):
    torch.manual_seed(0)
    layer = kind(4, 6, 3, stride=2)
    x = torch.randn(2, 4, *(7 for _ in layer.kernel_size))
    torch.testing.assert_close(TuckerConvolution(layer, (6, 4)).made()(x), layer(x), atol=1e-5, rtol=1e-3)


def test_a_weight_of_these_ranks_comes_out_exactly():
    random = torch.Generator().manual_seed(0)
    known = torch.einsum("oa,ib,abhw->oihw", *(torch.randn(*shape, generator=random) for shape in ((8, 2), (6, 3), (2, 3, 3, 3))))
    torch.testing.assert_close(rebuilt(*factorize(known, (2, 3))), known, atol=1e-5, rtol=1e-4)
    assert torch.linalg.norm(rebuilt(*factorize(known, (1, 3))) - known) > 0.1 * torch.linalg.norm(known)


@given(some.integers(1, 8), some.integers(1, 6), some.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_the_error_is_between_the_greater_loss_and_the_sum_of_both(first, second, seed):
    held = weight(seed=seed)
    spectrum = Spectrum.of_weight(held)
    error = float((torch.linalg.norm(rebuilt(*factorize(held, (first, second))) - held) / torch.linalg.norm(held)) ** 2)
    assert max(spectrum.lost_outputs[first], spectrum.lost_inputs[second]) - 1e-5 <= error <= spectrum.lost((first, second)) + 1e-5


def test_aware_factors_keep_the_output_better_on_new_images():
    layer, x = convolution(8, 16, padding=1), images(32, 8)
    seen = observed(layer, x[:16], INPUT)
    plain, aware = (torch.linalg.norm(TuckerConvolution(layer, (8, 3), each).made()(x[16:]) - layer(x[16:])) for each in (None, seen))
    assert aware < 0.8 * plain


def test_aware_factors_are_those_of_the_weight_times_the_root_of_the_second_moment():
    layer, x = convolution(4, 6), images(16)
    channels = x.movedim(1, -1).reshape(-1, 4).double()
    second = channels.T @ channels / len(channels)
    second += 1e-3 * second.trace() / 4 * torch.eye(4, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(second)
    root = (vectors * values.sqrt() @ vectors.T).float()
    whitened = torch.einsum("oihw,ij->ojhw", layer.weight.detach(), root)
    core, outputs, inputs = factorize(whitened, (3, 2))
    expected = rebuilt(core, outputs, root.inverse() @ inputs)
    torch.testing.assert_close(rebuilt(*factorize(layer.weight.detach(), (3, 2), observed(layer, x, INPUT))), expected, atol=1e-3, rtol=1e-2)


# ranks


@given(some.integers(0, 30), some.floats(0.1, 0.95), some.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_the_best_ranks_lose_no_more_than_any_others_of_that_price(seed, ratio, step):
    spectrum = Spectrum.of_weight(weight(seed=seed), step)
    chosen = spectrum.best(ratio * spectrum.whole)
    others = [ranks for ranks in itertools.product(range(step, 9, step), range(step, 7, step)) if spectrum.price(ranks) <= ratio * spectrum.whole]
    assert all(rank % step == 0 for rank in chosen)
    assert chosen in others or not others
    assert spectrum.lost(chosen) <= min(map(spectrum.lost, others), default=9) + 1e-9


@given(some.integers(0, 30), some.floats(0.2, 1.0))
@settings(max_examples=25, deadline=None)
def test_ranks_by_energy_keep_it(seed, energy):
    held = weight(seed=seed)
    ranks = Spectrum.of_weight(held).keeping(energy)
    error = torch.linalg.norm(rebuilt(*factorize(held, ranks)) - held) / torch.linalg.norm(held)
    assert 1 - float(error) ** 2 >= energy - 1e-5


@pytest.mark.parametrize("ranks", [(1, 1), (3, 5), (6, 4)])
def test_the_price_is_the_number_of_weights(ranks):
    layer = convolution(bias=False)
    made = TuckerConvolution(layer, ranks)
    assert made.weights == Spectrum.of_weight(layer.weight.detach()).price(ranks) == parameters(made.structure())


@given(some.integers(0, 20), some.floats(0.1, 0.9))
@settings(max_examples=20, deadline=None)
def test_a_budget_is_not_exceeded_and_beats_equal_shares(seed, budget):
    spectra = {name: Spectrum.of_weight(weight(seed=seed + index) if index else torch.ones(8, 6, 3, 3) + 0.01 * weight(seed=seed)) for index, name in enumerate("abc")}
    if sum(spectrum.price((1, 1)) for spectrum in spectra.values()) > budget * sum(spectrum.whole for spectrum in spectra.values()):
        return
    chosen = by_budget(spectra, budget)
    assert sum(spectra[name].price(ranks) for name, ranks in chosen.items()) <= budget * sum(spectrum.whole for spectrum in spectra.values())
    equal = {name: spectrum.best(budget * spectrum.whole) for name, spectrum in spectra.items()}
    assert sum(spectra[name].lost(ranks) for name, ranks in chosen.items()) <= sum(spectra[name].lost(ranks) for name, ranks in equal.items()) + 0.1


# the stage


@pytest.mark.parametrize("options", [{}, {"ratio": 0.3}, {"energy": 0.6}, {"budget": 0.5}, {"ranks": (4, 4)}, {"aware": False}])
def test_a_net_gets_smaller_and_is_called_as_before(options):
    model, batch = zoo.cnn(), zoo.batch("cnn")
    small, notes = run(model, batch, **options)
    assert parameters(small) < parameters(model)
    assert batch.call(small).shape == batch.call(model).shape
    assert [type(part) for part in small.blocks[0].conv1] == [nn.Conv2d] * 3
    assert "decomposed" in notes[-1]
    predicted = Tucker(**options).forecast(zoo.cnn(), context(batch)).model
    if not options.keys() & {"energy", "budget"}:
        assert [value.shape for value in predicted.parameters()] == [value.shape for value in small.parameters()]


def test_at_half_the_parameters_no_more_than_half_remain_in_each_layer():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    small, _ = run(model, batch, ratio=0.5)
    for name in ("blocks.0.conv1", "blocks.1.conv2"):
        assert parameters(small.get_submodule(name)) <= 0.5 * parameters(model.get_submodule(name))


def test_kernels_of_one_position_and_groups_are_left_alone_and_named():
    _, notes = run(zoo.depthwise(), zoo.batch("depthwise"))
    assert "skipped expand.0, project.0: a kernel of one position (decompose svd splits it)" in notes
    assert "skipped depthwise.0: its channels are in groups" in notes


def test_a_net_without_convolutions_says_what_it_has():
    with pytest.raises(KdError, match="works on convolutions, and finds none here: Mlp has 3 Linear"):
        Tucker().check(zoo.mlp(), context(zoo.batch("mlp")))


def test_given_ranks_end_at_the_channels_and_are_multiples():
    model, batch = nn.Sequential(convolution(16, 32)), Batch((torch.randn(2, 16, 6, 6),))
    small, _ = run(model, batch, ranks=(5, 30), round_to=4)
    assert (small[0][1].in_channels, small[0][1].out_channels) == (16, 8)


def planted(ranks: tuple[int, int], noise: float) -> nn.Conv2d:
    """A trained layer: a weight of these ranks, and noise."""
    random = torch.Generator().manual_seed(1)
    layer = convolution(24, 32)
    signal = torch.einsum("oa,ib,abhw->oihw", *(torch.randn(*shape, generator=random) for shape in ((32, ranks[0]), (24, ranks[1]), (*ranks, 3, 3))))
    layer.weight.data = signal / signal.std() + noise * torch.randn(signal.shape, generator=random)
    return layer


def test_vbmf_finds_the_ranks_above_the_noise():
    model = nn.Sequential(planted((5, 3), 0.2), nn.ReLU(), convolution(32, 8)).eval()
    model[2].weight.data = torch.randn(8, 32, 3, 3, generator=torch.Generator().manual_seed(2))
    small, notes = run(model, Batch((torch.randn(2, 24, 9, 9),)), vbmf=True)
    assert (small[0][1].out_channels, small[0][1].in_channels) == (5, 3)
    assert "skipped 2: --vbmf finds nothing but noise in its weight" in notes
    assert Tucker(vbmf=True).required_inputs() == Needs(example=True, packages=("tensorly", "scipy"))


def test_vbmf_of_an_untrained_net_is_an_error_with_a_remedy():
    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    model[0].weight.data = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    with pytest.raises(KdError, match="nothing but noise in every layer"):
        run(model, Batch((torch.randn(2, 16, 9, 9),)), vbmf=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "vbmf": True}, "--ratio and --vbmf each choose the ranks"),
        ({"ranks": (3,)}, "--ranks takes two numbers"),
        ({"ranks": (3, 0)}, "--ranks takes two numbers"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(KdError, match=message):
        Tucker.build("decompose tucker", options)


def test_a_budget_too_small_names_the_least():
    with pytest.raises(KdError, match=r"--budget 0\.01 is too small") as caught:
        run(zoo.cnn(), zoo.batch("cnn"), budget=0.01)
    run(zoo.cnn(), zoo.batch("cnn"), budget=float(caught.value.hints[0].split()[-1]))


def test_half_weights_stay_half():
    made = TuckerConvolution(convolution().to(torch.bfloat16), (3, 2)).made()
    assert {value.dtype for value in made.parameters()} == {torch.bfloat16}


def test_users_backend_of_tensorly_stays_theirs():
    import tensorly

    with tensorly.backend_context("pytorch"):
        factorize(weight(), (2, 2))
        assert tensorly.get_backend() == "pytorch"


def test_prices_add_up_in_the_note():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    small, notes = run(model, batch, ranks=(4, 3), skip=("stem",))
    kept, of = 4 * (16 * 3 + 9 * 12 + 16 * 4), 4 * 16 * 16 * 9
    assert notes[-1] == f"4 layers decomposed, ranks 3 to 4: {kept:,} of {of:,} weights kept ({kept / of:.0%})"
    assert parameters(model) - parameters(small) == of - kept
    assert math.isfinite(float(batch.call(small).sum()))

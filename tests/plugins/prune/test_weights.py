"""prune weights: which weights go, that they stay zero, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit import Session
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import Trait, private_copy, traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune.masks import mask_of
from kdkit_prune.weights import Weights
from tests.fixtures import zoo


def context(batch: Batch | None) -> Context:
    return Context(task=Classification(), objects={} if batch is None else {"calibration": adopt_data([batch])})


def prune(model: nn.Module, batch: Batch | None = None, **options) -> tuple[nn.Module, list[str]]:
    about, stage = context(batch), Weights(**options)
    if problems := list(stage.check(model, about)):
        raise KdError(problems[0])
    return stage.apply(private_copy(model), about), about.notes


def kept(layer: nn.Module, key: str = "weight") -> Tensor:
    mask = mask_of(layer, key)
    assert mask is not None
    return mask.keep


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


# which weights go ----------------------------------------------------------------------------------------------------


def test_the_smallest_half_of_each_layer_goes_and_the_others_stay_bit_for_bit():
    net = two_layers()
    pruned, _ = prune(net)
    for old, new in ((net[0], pruned[0]), (net[2], pruned[2])):
        median = old.weight.abs().flatten().sort().values[old.weight.numel() // 2 - 1]
        assert torch.equal(kept(new), old.weight.abs() > median)
        assert torch.equal(new.weight, old.weight * kept(new))


def test_globally_the_smallest_of_all_layers_go():
    net = two_layers()
    net[2].weight.data += 10 * net[2].weight.data.sign()
    pruned, notes = prune(net, scope="global", ratio=0.8)
    assert bool(kept(pruned[2]).all())
    assert int((~kept(pruned[0])).sum()) == int(0.8 * (16 * 8 + 8 * 4))
    assert any(note.startswith("least: 0% in 2") for note in notes)


def test_in_rows_every_output_loses_equally_many():
    pruned, _ = prune(two_layers(), scope="row", ratio=0.25)
    assert (~kept(pruned[0])).sum(1).tolist() == [4] * 8


def test_lamp_over_all_layers_is_the_formula():
    net = two_layers()
    pruned, _ = prune(net, method="lamp", scope="global", ratio=0.6)
    scores = []
    for layer in (net[0], net[2]):
        squares = layer.weight.detach().flatten() ** 2
        scores.append(torch.stack([square / squares[squares >= square].sum() for square in squares]))
    limit = torch.cat(scores).sort().values[int(0.6 * 160)]
    for score, layer in zip(scores, (pruned[0], pruned[2]), strict=True):
        assert torch.equal(kept(layer).flatten(), score >= limit)


def test_wanda_is_the_weight_times_the_norm_of_its_input():
    net, x = two_layers(), torch.randn(32, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 16)
    pruned, _ = prune(net, Batch((x,)), method="wanda")
    for layer, now, inputs in ((net[0], pruned[0], x), (net[2], pruned[2], net[1](net[0](x)))):
        score = layer.weight.abs() * inputs.norm(dim=0)
        for row, keep in zip(score, kept(now), strict=True):
            assert set((~keep).nonzero().flatten().tolist()) == set(row.argsort()[: len(row) // 2].tolist())


def test_wanda_on_a_grouped_convolution_uses_the_patches_that_each_group_reads():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular")).eval()
    x = torch.randn(5, 4, 7, 7) * torch.tensor([0.1, 1.0, 3.0, 0.5])[:, None, None]
    pruned, _ = prune(net, Batch((x,)), method="wanda")
    patches = nn.functional.unfold(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), 3, stride=2).pow(2).sum((0, 2)).sqrt().reshape(2, 2, 3, 3)
    scores = (net[0].weight.abs().reshape(2, 3, 2, 3, 3) * patches[:, None]).reshape(6, 18)
    for row, keep in zip(scores, kept(pruned[0]).reshape(6, 18), strict=True):
        assert set((~keep).nonzero().flatten().tolist()) == set(row.argsort()[:9].tolist())


def test_padding_counts_for_nothing():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = two_layers()[0]

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(x)

    net, x, mask = Masked(), torch.randn(4, 5, 16), torch.tensor([[1, 1, 1, 0, 0]] * 4)
    x[:, 3:] *= torch.linspace(100, 0, 16)
    pruned, _ = prune(net, Batch((x,), {"attention_mask": mask}), method="wanda")
    alone, _ = prune(net.layer, Batch((x[:, :3],)), method="wanda")
    assert torch.equal(kept(pruned.layer), kept(alone))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_n_of_every_m_consecutive_inputs_stay(method, pattern, n, m):
    pruned, _ = prune(two_layers(), Batch((torch.randn(32, 16),)), method=method, pattern=pattern)
    assert torch.equal(kept(pruned[0]).reshape(8, -1, m).sum(-1), torch.full((8, 16 // m), n))


def test_the_groups_of_a_convolution_run_over_its_channels():
    torch.manual_seed(0)
    pruned, _ = prune(nn.Sequential(nn.Conv2d(8, 4, 3)), pattern="2:4")
    assert torch.equal(kept(pruned[0]).reshape(4, 2, 4, 3, 3).sum(2), torch.full((4, 2, 3, 3), 2))


def test_blocks_go_whole_and_the_weakest_go_first():
    net = two_layers()
    pruned, _ = prune(net, pattern="4x4", layers=("0",))
    mean = net[0].weight.abs().reshape(2, 4, 4, 4).mean((1, 3))
    expected = (mean > mean.flatten().sort().values[3]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(kept(pruned[0]), expected)


@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise", "lstm", "tiny_bert", "tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_ratio_holds_for_every_kind_of_model(name, method):
    net, batch = zoo.MODELS[name](), zoo.batch(name)
    pruned, notes = prune(net, batch, method=method, ratio=0.75)
    layers = [module for module in pruned.modules() if mask_of(module, "weight") is not None]
    share = sum(int((layer.weight == 0).sum()) for layer in layers) / sum(layer.weight.numel() for layer in layers)
    assert layers
    assert share == pytest.approx(0.75, abs=0.03)
    assert notes[0].startswith("zeros: 7")
    assert Trait.MASKS_PENDING in traits_of(pruned)


# a second time ---------------------------------------------------------------------------------------------------------


def test_pruning_further_counts_the_zeros_that_are_there():
    once, _ = prune(two_layers(), ratio=0.5)
    twice, _ = prune(once, ratio=0.75)
    assert bool((kept(once[0]) | ~kept(twice[0])).all())
    assert int((~kept(twice[0])).sum()) == 96
    assert len(twice[0].parametrizations.weight) == 1


def test_a_ratio_below_the_zeros_that_are_there_is_refused_with_their_share():
    once, _ = prune(two_layers(), ratio=0.5)
    with pytest.raises(KdError, match=r"no further weight.*50\.0% of them are zero already"):
        prune(once, ratio=0.4)


# training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.1)])
def test_any_optimizer_trains_the_kept_weights_and_no_others(optimizer):
    pruned, _ = prune(two_layers(), ratio=0.75)
    before, keep = pruned[0].weight.clone(), kept(pruned[0]).clone()
    steps = optimizer(pruned.parameters())
    for _ in range(5):
        steps.zero_grad()
        pruned(torch.randn(8, 16)).pow(2).sum().backward()
        steps.step()
    assert bool((pruned[0].weight[keep] != before[keep]).all())
    assert bool((pruned[0].weight[~keep] == 0).all())
    assert bool((pruned[0].parametrizations.weight.original[~keep] == 0).all())


# what is left alone ----------------------------------------------------------------------------------------------------


def test_embeddings_stay_unless_they_are_named():
    pruned, _ = prune(zoo.tiny_bert())
    assert not [name for name, module in pruned.named_modules() if isinstance(module, nn.Embedding) and parametrize.is_parametrized(module)]
    pruned, _ = prune(zoo.lstm(), layers=("embed",))
    assert float((pruned.embed.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_head_tied_to_an_embedding_is_left_alone_and_named_but_masked_in_both_places_where_named():
    net = zoo.tiny_gpt2()
    assert net.lm_head.weight is net.transformer.wte.weight
    pruned, notes = prune(net)
    assert not parametrize.is_parametrized(pruned.lm_head)
    assert any("lm_head" in note and "tied to that of transformer.wte" in note for note in notes)
    pruned, notes = prune(net, layers=("lm_head",))
    assert torch.equal(pruned.lm_head.weight, pruned.transformer.wte.weight)
    assert pruned.lm_head.parametrizations.weight.original is pruned.transformer.wte.parametrizations.weight.original
    assert any("tied weights are masked wherever they are used: lm_head" in note for note in notes)
    with pytest.raises(KdError, match="no weight") as caught:
        prune(net, layers=("lm_head",), skip=("transformer.wte",))
    assert "which --skip names" in str(caught.value)


def test_attention_that_reads_its_weights_itself_is_masked_by_magnitude_and_left_alone_by_wanda():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    pruned, _ = prune(net)
    assert float((pruned.self_attn.in_proj_weight == 0).float().mean()) == 0.5
    assert bool((pruned(torch.randn(2, 3, 8)) != net(torch.randn(2, 3, 8))).any())
    pruned, notes = prune(nn.Sequential(net, nn.Linear(8, 4)), Batch((torch.randn(2, 3, 8),)), method="wanda")
    assert not parametrize.is_parametrized(pruned[0].self_attn)
    assert any("self_attn" in note and "not observed" in note for note in notes)


def test_layers_with_a_parametrization_of_their_own_are_named_and_left_alone():
    net = two_layers()
    nn.utils.parametrizations.weight_norm(net[0])
    pruned, notes = prune(net)
    assert mask_of(pruned[0], "weight") is None
    assert any(note.startswith("left alone: 0: its weight is computed by weight_norm") for note in notes)


def test_layers_that_a_pattern_does_not_fit_are_named():
    pruned, notes = prune(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)), pattern="2:4")
    assert mask_of(pruned[0], "weight") is None
    assert "left alone: 0: its 6 inputs are no multiple of 4" in notes


# bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["4:2", "4:4", "0:4", "2:", "x", "0x4", "2:4:8"])
def test_a_wrong_pattern_is_refused_with_the_right_ones(pattern):
    with pytest.raises(KdError, match="N:M with N below M"):
        Weights.build("prune weights", {"pattern": pattern})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"pattern": "2:4", "scope": "row"}, "--scope row has no meaning with --pattern 2:4"),
        ({"method": "sparsegpt", "scope": "global"}, "sparsegpt works layer by layer"),
        ({"method": "sparsegpt", "pattern": "4x4"}, "sparsegpt has no form for blocks"),
        ({"method": "sparsegpt", "pattern": "2:3"}, "must divide 128"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_any_work(options, problem):
    with pytest.raises(KdError, match=problem):
        prune(two_layers(), Batch((torch.randn(4, 16),)), **options)


def test_a_model_without_weights_to_prune_is_refused():
    with pytest.raises(KdError, match="no weight of Sequential can be pruned"):
        prune(nn.Sequential(nn.LayerNorm(4), nn.ReLU()))


def test_data_with_infinities_is_refused_by_the_name_of_the_layer():
    with pytest.raises(KdError, match="the inputs of 0 hold infinities or NaN"):
        prune(two_layers(), Batch((torch.full((2, 16), float("inf")),)), method="wanda")


# in a session ----------------------------------------------------------------------------------------------------------


def session() -> Session:
    torch.manual_seed(0)
    x, y = torch.randn(64, 16), torch.arange(64) % 4
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return Session(net, train=(x, y), eval=(x, y), measures=("quality", "size"))


@pytest.mark.parametrize("line", ["tune finetune --steps 4", "distill soft --teacher original --steps 4"])
def test_masks_hold_through_training_until_they_are_folded(line):
    work = session()
    work.run("prune weights --ratio 0.8")
    zeros = work.head.model[2].weight == 0
    work.run(line)
    assert torch.equal(work.head.model[2].weight == 0, zeros)
    assert Trait.MASKS_PENDING in work.head.traits
    trained = work.head.model[2].weight.detach().clone()
    work.run("prune fold")
    assert Trait.MASKS_PENDING not in work.head.traits
    assert torch.equal(work.head.model[2].weight, trained)
    assert type(work.head.model[2].weight) is nn.Parameter


def test_a_pruned_version_takes_fewer_bytes_and_comes_back_bit_for_bit(tmp_path):
    work = session()
    dense = work.head.report["size"].value
    work.run("prune weights --ratio 0.9")
    work.run("prune fold")
    assert work.head.report["size"].value < 0.4 * dense
    work.save(str(tmp_path / "sparse"))
    loaded = session().load(str(tmp_path / "sparse")).model
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in work.head.model.state_dict().items())


def test_masks_come_back_from_a_saved_folder_and_still_hold(tmp_path):
    work = session()
    work.run("prune weights --pattern 2:4")
    zeros = work.head.model[0].weight == 0
    work.save(str(tmp_path / "masked"))
    loaded = session().load(str(tmp_path / "masked"))
    assert torch.equal(kept(loaded.model[0]), ~zeros)
    assert Trait.MASKS_PENDING in loaded.traits


@pytest.mark.slow
def test_an_export_folds_the_masks_in_first():
    work = session()
    work.run("prune weights --ratio 0.5")
    expected = work.head.model(torch.ones(1, 16))
    work.run("convert onnx")
    assert "prune fold" in " ".join(version.stage.line() for version in work.versions if version.stage)
    torch.testing.assert_close(work.head.model(torch.ones(1, 16)), expected, atol=1e-5, rtol=1e-4)

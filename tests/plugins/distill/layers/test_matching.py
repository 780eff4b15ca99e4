"""Matching: which layers are suggested, what a capture keeps, and that looking changes nothing."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.training import fit
from kdkit_distill.feature.hints import Hints
from kdkit_distill.feature.review import Review
from kdkit_distill.feature.stage import LayerStage
from kdkit_distill.feature.variational import Variational
from kdkit_distill.layers.matching import Capture, feature_of, parsed, probed, suggested
from kdkit_distill.layers.stage_detection import observed, penultimate, stages
from tests.fixtures import zoo
from tests.fixtures.lessons import context, fingerprint, numbers, of_zoo, weights

IMAGES = Batch((torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),))
TEXT = Batch((), {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5, dtype=torch.long)})


def names(student: nn.Module, teacher: nn.Module, example: Batch, match: str = "uniform", count: int | None = None) -> list[str]:
    return [str(pair) for pair in suggested(student, teacher, example, match, count)]


class Basic(nn.Module):
    """A ResNet's block, whose one ReLU runs twice."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(Basic):
    """As in torchvision: its first convolution still has the size of the stage before."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, stride)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False), nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)


class ResNet(nn.Module):
    """torchvision's way to write it."""

    def __init__(self, block: type[Basic] = Basic, depth: int = 1, width: int = 4):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        for number, (inputs, outputs, stride) in enumerate(sizes, 1):
            blocks = [block(inputs if each == 0 else outputs, outputs, stride if each == 0 else 1) for each in range(depth)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer3(self.layer2(self.layer1(x)))).flatten(1))


def vgg(*widths: int) -> nn.Module:
    parts: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))


def bert(layers: int, hidden: int = 16, pooler: bool = True) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, max_position_embeddings=8)
    return BertModel(config, add_pooling_layer=pooler)


# What is suggested ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ["first", "second"]),
        ("cnn", ["blocks.0", "blocks.1"]),
        ("depthwise", ["expand", "depthwise", "project"]),
        ("lstm", ["lstm"]),
        ("tiny_bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        ("tiny_llama", ["model.layers.0", "model.layers.1"]),
        ("tiny_gpt2", ["transformer.h.0", "transformer.h.1"]),
    ],
)
def test_the_zoos_stages(name: str, expected: list[str]) -> None:
    assert [layer.name for layer in stages(zoo.MODELS[name](), zoo.batch(name))] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", "second"),
        ("cnn", "pool"),
        ("depthwise", "project"),
        ("lstm", "lstm"),
        ("tiny_bert", "bert.pooler"),
        ("tiny_llama", "model.norm"),
    ],
)
def test_the_zoos_last_feature(name: str, expected: str) -> None:
    assert penultimate(zoo.MODELS[name](), zoo.batch(name)) == expected


@pytest.mark.parametrize("block", [Basic, Bottleneck])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_resnet_is_compared_stage_by_stage(block: type[Basic], depth: int) -> None:
    student, teacher = ResNet(), ResNet(block, depth, 8)
    assert names(student, teacher, IMAGES) == ["layer1=layer1", "layer2=layer2", "layer3=layer3"]
    assert names(student, teacher, IMAGES, "last", 2) == ["layer2=layer2", "layer3=layer3"]
    assert names(student, teacher, IMAGES, "uniform", 1) == ["layer3=layer3"]
    assert penultimate(teacher, IMAGES) == "avgpool"


def test_a_flat_net_is_compared_where_its_maps_shrink() -> None:
    assert names(vgg(4, 8, 8), vgg(8, 16, 16), IMAGES) == ["2=2", "6=6", "10=10"]
    assert penultimate(vgg(4, 8), IMAGES) == "8"


def test_maps_are_paired_by_size() -> None:
    assert names(vgg(4, 8), ResNet(), IMAGES) == ["6=layer1"]


def test_maps_without_a_common_size_are_paired_by_depth() -> None:
    strided = nn.Sequential(*[nn.Sequential(nn.Conv2d(inputs, 4, 4, 3), nn.ReLU()) for inputs in (3, 4)], nn.Flatten(), nn.Linear(4, 5))
    assert names(strided, ResNet(), IMAGES)[-1].endswith("=layer3")


@pytest.mark.parametrize("pooler", [True, False])
def test_transformers_are_matched_as_in_tinybert(pooler: bool) -> None:
    student, teacher = bert(2, pooler=pooler), bert(6, 32, pooler)
    assert names(student, teacher, TEXT) == ["encoder.layer.0=encoder.layer.2", "encoder.layer.1=encoder.layer.5"]
    assert names(student, teacher, TEXT, "last") == ["encoder.layer.0=encoder.layer.4", "encoder.layer.1=encoder.layer.5"]
    assert names(student, teacher, TEXT, "last", 1) == ["encoder.layer.1=encoder.layer.5"]
    assert names(teacher, student, TEXT) == ["encoder.layer.2=encoder.layer.0", "encoder.layer.5=encoder.layer.1"]
    assert penultimate(teacher, TEXT) == "encoder.layer.5"


@pytest.mark.parametrize(("student", "teacher"), [(2, 4), (3, 6), (3, 3), (1, 5), (4, 12)])
def test_uniform_is_k_times_i_plus_one_minus_one(student: int, teacher: int) -> None:
    def blocks(count: int) -> nn.Module:
        made = [nn.TransformerEncoderLayer(4, 1, 4, batch_first=True) for _ in range(count)]
        return nn.Sequential(nn.Embedding(20, 4), Layers(made))

    k = teacher // student
    pairs = suggested(blocks(student), blocks(teacher), Batch((TEXT.kwargs["input_ids"],)), "uniform", None)
    assert [pair.teacher for pair in pairs] == [f"1.layers.{k * (number + 1) - 1}" for number in range(student)]


class Layers(nn.Module):
    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_vision_transformer_can_teach_a_cnn() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=16, patch_size=4, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16)
    teacher = ViTForImageClassification(config)
    found = names(ResNet(), teacher, IMAGES, count=2)
    assert [pair.partition("=")[0] for pair in found] == ["layer2", "layer3"]
    assert found[-1].endswith(".3")


def test_blocks_that_share_their_weights_are_listed_once() -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(vocab_size=20, embedding_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=8)
    assert names(AlbertModel(config), bert(4), TEXT) == ["encoder.albert_layer_groups.0=encoder.layer.3"]


def test_hidden_layers_are_taken_after_their_norm_and_relu_and_before_dropout() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    example = Batch((torch.zeros(2, 4),))
    assert names(net, net, example) == ["2=2", "5=5"]
    assert penultimate(net, example) == "5"


@pytest.mark.parametrize("name", zoo.MODELS)
def test_looking_changes_nothing(name: str) -> None:
    model = zoo.MODELS[name]().train()
    before, generator = fingerprint(model), torch.random.get_rng_state()
    suggested(model, model, zoo.batch(name), "uniform", None)
    penultimate(model, zoo.batch(name))
    assert fingerprint(model) == before
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_looking_at_a_model_that_draws_leaves_the_generator() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) + torch.randn_like(x))

    state, example = torch.random.get_rng_state(), Batch((torch.zeros(2, 2),))
    observed(Noisy(), example)
    probed(Noisy(), ["one"], example)
    made = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    Noisy(), Noisy()
    assert torch.equal(torch.random.get_rng_state(), made)


def test_a_model_that_fails_is_left_without_hooks() -> None:
    model = zoo.mlp()
    before = fingerprint(model)
    with pytest.raises(KdError, match="Mlp fails on a batch: a linear layer expects"):
        observed(model, Batch((torch.zeros(2, 5),)))
    with pytest.raises(KdError, match="Mlp fails on a batch: a linear layer expects"):
        probed(model, ["first"], Batch((torch.zeros(2, 5),)))
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (zoo.mlp(), None, "only the teacher's cached signals"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 2)), ResNet(), "no common layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), ResNet(), "can't choose layers of Sequential"),
    ],
)
def test_what_can_not_be_suggested_is_to_be_named(student: nn.Module, teacher: nn.Module | None, message: str) -> None:
    with pytest.raises(KdError, match=message) as caught:
        suggested(student, teacher, IMAGES, "uniform", None)
    assert "--layers student_layer=teacher_layer" in str(caught.value)


def test_a_net_of_one_layer_has_none_before_its_head() -> None:
    with pytest.raises(KdError, match="no layer before its head"):
        penultimate(nn.Linear(2, 2), Batch((torch.zeros(2, 2),)))
    with pytest.raises(KdError, match="no layer before its head"):
        penultimate(nn.Sequential(nn.Linear(2, 2)), Batch((torch.zeros(2, 2),)))


def test_pairs_are_read_as_written() -> None:
    assert [(pair.student, pair.teacher) for pair in parsed(["a.b=c", "d"])] == [("a.b", "c"), ("d", "d")]


# What is captured ----------------------------------------------------------------------------------------------------


class Tail(nn.Module):
    """A layer, and something done to its output."""

    def __init__(self, then):  # type: ignore[no-untyped-def]
        super().__init__()
        self.layer, self.then = nn.Linear(3, 3), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


@pytest.mark.parametrize("then", [nn.ReLU(inplace=True), torch.relu_, lambda y: y.mul_(2), lambda y: y[:, :1].zero_(), torch.relu])
def test_what_a_layer_gave_is_kept_also_where_it_is_overwritten(then) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Tail(then)
    for _ in range(2):
        x = torch.randn(4, 3)
        with Capture(model, ["layer"]) as capture:
            for _ in range(3):
                model(x)
                kept = capture.take()["layer"]
                assert torch.equal(kept, model.layer(x))
                capture.take()
            model(x)
            kept = capture.take()["layer"]
            assert torch.allclose(torch.autograd.grad(kept.sum(), model.layer.bias)[0], torch.full((3,), 4.0))


def test_from_the_second_pass_on_only_what_is_overwritten_is_copied() -> None:
    for model, shared in ((Tail(torch.relu), True), (Tail(nn.ReLU(inplace=True)), False)):
        given: list[Tensor] = []
        model.layer.register_forward_hook(lambda module, inputs, output, given=given: given.append(output))
        with Capture(model, ["layer"]) as capture:
            model(torch.ones(1, 3))
            capture.take()
            model(torch.ones(1, 3))
            assert (capture.take()["layer"] is given[-1]) == shared


@pytest.mark.slow
@pytest.mark.parametrize("technique", [Hints, Variational, Review])
def test_a_resumed_training_adds_gradients_in_the_order_of_one_that_was_not_interrupted(technique: type[LayerStage], tmp_path: Path) -> None:
    # a block's output goes to a skip connection, the next block and the technique: three gradients, whose sum depends on their order
    whole, part, place = zoo.cnn(), zoo.cnn(), str(tmp_path)
    teacher = other(3)
    fit(whole, [technique(epochs=4)], context(of_zoo("cnn"), teacher))
    run = context(of_zoo("cnn"), teacher)
    run.observe = lambda progress: run.cancelled.set() if progress.done == 5 else None
    with pytest.raises(KdError, match="cancelled"):
        fit(zoo.cnn(), [technique(epochs=4, checkpoint=place)], run)
    fit(part, [technique(epochs=4, checkpoint=place, resume=True)], context(of_zoo("cnn"), teacher))
    assert torch.equal(weights(whole), weights(part))


def other(seed: int) -> nn.Module:
    """A cnn of other weights."""
    model = zoo.cnn()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.05 * numbers(*weight.shape, seed=seed + number).float())
    return model


def test_what_a_layer_gives_in_inference_mode_is_always_copied() -> None:
    model = Tail(nn.ReLU(inplace=True))
    with Capture(model, ["layer"]) as capture, torch.inference_mode():
        for _ in range(3):
            model(-torch.ones(1, 3))
            kept = capture.take()["layer"]
            assert torch.equal(kept, model.layer(-torch.ones(1, 3)))
            capture.take()


def test_overwriting_that_begins_later_is_an_error() -> None:
    model = Tail(torch.relu)
    with Capture(model, ["layer"]) as capture:
        model(torch.ones(1, 3))
        capture.take()
        model.then = torch.relu_
        model(-torch.ones(1, 3))
        with pytest.raises(KdError, match="overwritten in place in some passes"):
            capture.take()


def test_a_layer_that_runs_twice_is_kept_as_it_ran_last() -> None:
    model = Tail(torch.relu)
    model.then = lambda y: model.layer(y)
    with Capture(model, ["layer"]) as capture:
        out = model(torch.ones(1, 3))
        assert capture.repeated == {"layer": 2}
        assert torch.equal(capture.take()["layer"], out)
        model.then = torch.relu
        model(torch.ones(1, 3))
        assert capture.repeated == {}


def test_a_pass_that_nobody_asked_about_is_forgotten() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.on = nn.Linear(2, 2), True

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if self.on else x

    model = Sometimes()
    with Capture(model, ["layer"]) as capture:
        model(torch.ones(1, 2))
        model.on = False
        model(torch.ones(1, 2))
        with pytest.raises(KdError, match="'layer' of Sometimes did not run"):
            capture.take()


def test_a_copy_of_the_model_is_not_listened_to() -> None:
    model = zoo.mlp()
    x = zoo.batch("mlp").args[0]
    with Capture(model, ["first"]) as capture:
        model(x)
        copy.deepcopy(model)(x + 1)
        assert torch.equal(capture.take()["first"], model.first(x))


def test_recomputed_activations_do_not_reach_the_next_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    class Recomputing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.layer, x, use_reentrant=False))

    model, x = Recomputing(), torch.ones(1, 2)
    with Capture(model, ["layer"]) as capture:
        for _ in range(3):
            out = model(x)
            kept = capture.take()["layer"]
            assert torch.equal(kept, model.layer(x))
            capture.take()
            (out.sum() + kept.sum()).backward()


@pytest.mark.parametrize("output", [lambda x: (x, None), lambda x: {"ids": x, "more": 1}, lambda x: [[None, (x,)]], lambda x: x])
def test_the_first_tensor_of_whatever_a_layer_gives_counts(output) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(2)
    assert feature_of(output(x), "layer") is x


@pytest.mark.parametrize("output", [None, (None, 3), torch.ones(2, dtype=torch.long)])
def test_a_layer_without_numbers_is_refused(output: object) -> None:
    with pytest.raises(KdError, match="'layer' returns no tensor of floating numbers"):
        feature_of(output, "layer")


@pytest.mark.slow
def test_hooks_go_with_the_block_the_error_and_the_capture_itself() -> None:
    model = zoo.mlp()
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError), Capture(model, ["first", "second"]):
        1 / 0  # noqa: B018
    assert fingerprint(model) == before
    with pytest.raises(KdError, match="has no layer 'third'"), Capture(model, ["first", "third"]):
        pass
    assert fingerprint(model) == before
    Capture(model, ["first"]).__enter__()
    gc.collect()
    assert fingerprint(model) == before


def test_others_hooks_stay() -> None:
    model = zoo.mlp()
    ran: list[int] = []
    model.first.register_forward_hook(lambda *seen: ran.append(1))
    with Capture(model, ["first"]) as outer:
        with Capture(model, ["first"]) as inner:
            observed(model, zoo.batch("mlp"))
            zoo.batch("mlp").call(model)
            assert torch.equal(inner.take()["first"], outer.take()["first"])
        zoo.batch("mlp").call(model)
        assert "first" in outer.take()
    assert len(ran) == 3
    assert len(model.first._forward_hooks) == 1


class Regions(nn.Module):
    """A detector with a head of its own for each region, of which another net finds another number."""

    def __init__(self, found: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.head, self.found = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 2, 3, 2, 1)), found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:1, :, :2, :2].expand(self.found, -1, -1, -1)).mean().expand(len(x), 2)


def test_layers_that_run_on_regions_and_not_on_items_are_no_stages() -> None:
    assert [layer.name for layer in stages(Regions(5), IMAGES)] == ["body.1", "body.3"]
    assert names(Regions(5), Regions(7), IMAGES) == ["body.1=body.1", "body.3=body.3"]

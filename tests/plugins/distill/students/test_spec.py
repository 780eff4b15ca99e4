"""What --student may say: a model of the session, layers or widths of the teacher, a light net; and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdkit
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_distill.response.soft import Soft
from kdkit_distill.students.fewer import stacks, with_layers
from kdkit_distill.students.narrower import narrowed
from kdkit_distill.students.spec import is_name, read
from tests.fixtures import zoo


def context(net: nn.Module, **objects: Any) -> Context:
    batch = zoo.batch(net)
    data = [(dict(batch.kwargs), batch.labels)] if batch.kwargs else (batch.args[0], batch.labels)
    return Context(Classification(), objects={"train": adopt_data(data, 4), **objects}, original=net)


def output(net: nn.Module, like: nn.Module) -> Tensor:
    with torch.no_grad():
        stated = zoo.batch(like).call(net)
    return getattr(stated, "logits", stated)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def images(items: int = 32, size: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 3, size, size, generator=torch.Generator().manual_seed(3))
    return x, (x.mean((2, 3))[:, 0] > 0).long()


def session(net: nn.Module, **given: Any) -> kdkit.Session:
    return kdkit.Session(net, train=images(), eval=images(), measures=("quality", "parameters"), batch_size=8, **given)


# Fewer layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_a_transformer_keeps_the_layers_that_are_named_and_its_configuration_says_so(name: str) -> None:
    net = zoo.MODELS[name]()
    small = with_layers(net, [1], zoo.batch(net))
    assert small.config.num_hidden_layers == 1
    assert net.config.num_hidden_layers == 2
    (kept,), (were,) = stacks_of(small), stacks_of(net)
    assert same(kept[0], were[1])
    fresh = type(net)(copy.deepcopy(small.config)).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(output(fresh, net), output(small, net))


def stacks_of(net: nn.Module) -> list[list[nn.Module]]:
    named = dict(net.named_modules())
    blocks = [module for module in named.values() if isinstance(module, nn.ModuleList)]
    return [list(block.children()) for block in blocks]


def test_what_comes_before_the_layers_left_out_is_computed_as_before() -> None:
    net = zoo.cnn()
    small = with_layers(net, [0], zoo.batch(net))
    whole = copy.deepcopy(net)
    whole.blocks[1] = nn.Identity()
    assert torch.equal(output(small, net), output(whole, net))
    assert len(net.blocks) == 2


def test_a_key_value_cache_still_works_with_fewer_layers() -> None:
    net = zoo.tiny_llama()
    small = with_layers(net, [1], zoo.batch(net)).eval()
    ids = zoo.batch(net).kwargs["input_ids"][:2, :6]
    with torch.no_grad():
        whole = small(ids).logits[:, -1]
        past = small(ids[:, :5], use_cache=True).past_key_values
        step = small(ids[:, 5:], past_key_values=past).logits[:, -1]
    assert torch.allclose(whole, step, atol=1e-5)


def test_layers_are_numbered_through_the_stages_of_a_net() -> None:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())

    net = nn.Sequential(nn.Sequential(block(16, 8), block(8, 8)), nn.Sequential(block(8, 6), block(6, 6)), nn.Linear(6, 4))
    assert list(stacks(net)) == ["0", "1"]
    small = with_layers(net, [0, 2], zoo.batch("mlp"))
    assert [len(stage) for stage in small[:2]] == [1, 1]
    assert same(small[1][0], net[1][0])
    with pytest.raises(KdError, match="do not fit together") as caught:
        with_layers(net, [0, 1, 3], zoo.batch("mlp"))
    assert "0 has 0 to 1; 1 has 2 to 3" in str(caught.value)


def test_encoder_and_decoder_lose_layers_each_by_itself() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=3, num_decoder_layers=2, num_heads=2, decoder_start_token_id=0)
    ids = torch.randint(1, 40, (2, 5))
    batch = adopt_data([{"input_ids": ids, "decoder_input_ids": ids}], 2).example()
    small = with_layers(T5ForConditionalGeneration(config).eval(), [0, 2, 3], batch)
    assert (small.config.num_layers, small.config.num_decoder_layers) == (2, 1)


@pytest.mark.parametrize(
    ("kept", "reported"), [((0, 5), "layers of 0 to 1"), ((1, 0), "in order"), ((0, 0), "each once"), ((0, 1), "keeps all layers"), ((), "layers are numbers")]
)
def test_layers_that_are_not_there_are_refused(kept: tuple[int, ...], reported: str) -> None:
    net = zoo.cnn()
    with pytest.raises(KdError, match=reported):
        read(f"layers={','.join(map(str, kept))}").make(net, "teacher", context(net))


def test_a_net_without_repeated_layers_is_reported() -> None:
    with pytest.raises(KdError, match="no repeated layers") as caught:
        with_layers(zoo.mlp(), [0], zoo.batch("mlp"))
    assert "narrow=0.5" in str(caught.value)


# Narrower ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise"])
def test_a_narrower_net_answers_in_the_same_shape_with_a_quarter_of_the_weights(name: str) -> None:
    net = zoo.MODELS[name]()
    before = copy.deepcopy(net)
    small = narrowed(net, 0.5, context(net))
    assert output(small, net).shape == output(net, net).shape
    count, whole = (sum(weight.numel() for weight in each.parameters()) for each in (small, net))
    assert 0.2 < count / whole < 0.6
    assert same(net, before)
    assert not small.training
    assert all(weight.requires_grad and weight.grad is None for weight in small.parameters())


def test_the_channels_of_the_largest_weights_are_kept() -> None:
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.fill_(0.01)
        strong = [1, 3, 4, 6]
        net[0].weight[strong] = torch.arange(1.0, 5)[:, None]
        net[2].weight[:, strong] = 1.0
    run = Context(Classification(), objects={"train": adopt_data(zoo.batch("mlp").args[0], 4)})
    small = narrowed(net, 0.5, run)
    assert small[0].weight[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("name", "heads"), [("tiny_bert", 2), ("tiny_gpt2", 2), ("tiny_llama", 2)])
def test_a_narrower_transformer_begins_again_and_says_so(name: str, heads: int) -> None:
    net = zoo.MODELS[name]()
    run = context(net)
    small = read("narrow=0.5").make(net, "teacher", run)
    assert (small.config.num_attention_heads, small.config.hidden_size) == (heads, 16)
    assert small.config.num_hidden_layers == 2
    assert output(small, net).shape == output(net, net).shape
    assert any("random weights" in note for note in run.notes)


def test_a_width_that_leaves_all_as_it_is_is_refused() -> None:
    with pytest.raises(KdError, match="leaves the widths of"):
        narrowed(nn.Linear(16, 4), 0.5, Context(Classification(), objects={"train": adopt_data(zoo.batch("mlp").args[0], 4)}))


# What may be said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "reported", "hint"),
    [
        ("mobilnet-v2", "there is no student 'mobilnet-v2'", "did you mean mobilenet-v2"),
        ("widen=2", "there is no student", "narrow=0.5"),
        ("layers=first", "layers are numbers", "layers=0,2,5"),
        ("narrow=2", "below 1", "narrow=0.5"),
        ("narrow=wide", "is a number", "narrow=0.5"),
        ("squeezenet=0", "is a number above 0", "squeezenet=0.5"),
    ],
)
def test_what_names_no_student_is_refused_before_anything_runs(spec: str, reported: str, hint: str) -> None:
    held = session(zoo.cnn())
    seen: list[Any] = []
    with pytest.raises(KdError, match=reported) as caught:
        held.run(f"distill soft --student {spec}", observe=seen.append)
    assert hint in str(caught.value)
    assert not seen
    assert len(held.versions) == 1


def test_an_unknown_word_is_answered_with_all_there_is() -> None:
    run = context(zoo.cnn(), small=zoo.depthwise())
    with pytest.raises(KdError) as caught:
        read("shufflenet", run)
    text = str(caught.value)
    assert "did you mean shufflenet-v2" in text
    assert "squeezenet" in text
    assert "models of the session: small" in text


def test_a_model_of_the_session_comes_before_a_net_of_the_same_name() -> None:
    own = zoo.cnn()
    made = read("squeezenet", context(zoo.cnn(), squeezenet=own)).make(own, "teacher", context(own, squeezenet=own))
    assert same(made, own)
    assert made is not own


def test_only_names_are_looked_up_among_the_sessions_objects() -> None:
    assert [each[2] for each in Soft(student="small").named_objects() if each[0] == "student"] == ["small"]
    for spec in ("layers=0", "narrow=0.5", "mobilenet-v2", "mobilenet-v2=0.5"):
        assert not is_name(spec)
        assert [each for each in Soft(student=spec).named_objects() if each[0] == "student"] == []


def test_layers_are_those_of_the_teacher_where_the_session_has_one() -> None:
    big, current = zoo.cnn(), zoo.depthwise()
    small = read("layers=1").make(current, "teacher", context(current, teacher=big))
    assert same(small.blocks[0], big.blocks[1])


# In a session --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["layers=1", "narrow=0.5"])
def test_it_is_predicted_trained_by_the_model_of_the_session_and_saved(spec: str, tmp_path: Any) -> None:
    held = session(zoo.cnn())
    line = f"distill soft --student {spec} --epochs 2"
    predicted = held.plan(line).steps[-1]
    made = held.run(line)
    assert predicted.parameters == made["parameters"] < held["@base"]["parameters"]
    assert same(held["@base"].model, zoo.cnn())
    kdkit.storage.folder.save(tmp_path / "small", made.model, held.original, {})
    again, _ = kdkit.storage.folder.load(tmp_path / "small", skeleton=zoo.cnn())
    x = images()[0]
    assert torch.equal(again(x), made.model(x))


def test_a_light_net_is_predicted_trained_and_undone() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    held = kdkit.Session(net, train=images(16, 32), eval=images(16, 32), measures=("quality", "parameters"), batch_size=8)
    made = held.run("distill soft --student squeezenet=0.1")
    assert type(made.model).__name__ == "SqueezeNet"
    assert held.plan("distill soft --student squeezenet=0.1", on="@base").steps[-1].parameters == made["parameters"]
    assert held.undo().name == "@base"

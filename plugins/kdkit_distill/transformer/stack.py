"""Stack: a transformer's blocks by name, and attention scores computed from the outputs of its layers.

transformers returns attention after the softmax, and none under sdpa and flash. So the outputs of the layers for queries and
keys are captured, and the scores computed from them, for any attention implementation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError
from kdkit.tasks import at_least_float32

PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
"""Names of the layers for queries, keys and values: BERT's, DistilBERT's, Llama's, MPNet's; GPT-2 has one, c_attn."""
KNOWN = "known: layers named query/key/value (BERT, RoBERTa, ELECTRA), q_lin (DistilBERT), q_proj (Llama, Mistral, Qwen), q (MPNet), c_attn (GPT-2)"


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings.

    Attributes:
        angles: (hidden states, position numbers) -> (cosines, sines).
        turn: (queries, keys, cosines, sines) -> both rotated.
    """

    angles: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    turn: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Attention:
    """The self-attention of one block.

    Attributes:
        query: the layer that outputs queries, (batch, tokens, heads · size).
        key: the layer that outputs keys, (batch, tokens, groups · size).
        value: the layer that outputs values, (batch, tokens, groups · size).
        fused: whether one layer outputs all three, concatenated.
        heads: of the queries.
        groups: heads of keys and values; several query heads may share one.
        size: of one head.
        scale: factor of the scores.
        causal: whether a token can't attend to later tokens.
        biased: whether scores get a position bias, which can't be captured.
    """

    query: str
    key: str
    value: str
    heads: int
    groups: int
    size: int
    scale: float
    fused: bool = False
    causal: bool = False
    biased: bool = False
    rotary: Rotary | None = None

    def queries(self, features: Mapping[str, Tensor]) -> Tensor:
        """Queries from captured features, (batch, tokens, heads · size), at least float32."""
        return self._rows(features, self.query, 0)

    def keys(self, features: Mapping[str, Tensor]) -> Tensor:
        """As `queries`, (batch, tokens, groups · size)."""
        return self._rows(features, self.key, 1)

    def values(self, features: Mapping[str, Tensor]) -> Tensor:
        """As `queries`, (batch, tokens, groups · size)."""
        return self._rows(features, self.value, 2)

    def _rows(self, features: Mapping[str, Tensor], name: str, part: int) -> Tensor:
        found = at_least_float32(features[name])
        return found.chunk(3, -1)[part] if self.fused else found.flatten(2)

    def scores(self, features: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Scores before mask and softmax, (batch, heads, tokens, tokens)."""
        one, two = parted(self.queries(features), self.heads), parted(self.keys(features), self.groups)
        if self.rotary is not None:
            one, two = self._turned(one, two, batch)
        with torch.autocast(one.device.type, enabled=False):
            return one @ two.repeat_interleave(self.heads // self.groups, 1).transpose(2, 3) * self.scale

    def _turned(self, queries: Tensor, keys: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.rotary is not None
        given = batch.kwargs.get("position_ids")
        numbers = given if isinstance(given, Tensor) else torch.arange(queries.shape[2], device=queries.device)[None]
        with torch.no_grad():
            cosines, sines = self.rotary.angles(queries, numbers.to(queries.device))
        return self.rotary.turn(queries, keys, cosines, sines)


@dataclass(frozen=True)
class Block:
    """One block: the layer that outputs its hidden states, and its attention."""

    name: str
    attention: Attention


@dataclass(frozen=True)
class Stack:
    """A transformer's blocks, between its embeddings and its final hidden states.

    Attributes:
        embeddings: the layer whose output enters the first block.
        final: the layer that outputs the last hidden states, after a final norm if there is one.
    """

    embeddings: str
    blocks: tuple[Block, ...]
    final: str


def parted(rows: Tensor, heads: int) -> Tensor:
    """Split the last dimension into heads: (batch, tokens, heads · size) -> (batch, heads, tokens, size).

    >>> parted(torch.zeros(2, 5, 12), 3).shape
    torch.Size([2, 3, 5, 4])
    """
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)


def stack_of(model: nn.Module) -> Stack:
    """The blocks of a transformer.

    Raises:
        KdError: there are no blocks with a known form of attention, several stacks, or blocks that run more than once.

    >>> from transformers import BertConfig, BertModel
    >>> stack = stack_of(BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)))
    >>> stack.embeddings, [block.name for block in stack.blocks], stack.blocks[0].attention.heads
    ('embeddings', ['encoder.layer.0', 'encoder.layer.1'], 2)
    """
    places = dict(model.named_modules())
    found = {name: names for name, module in places.items() if (names := _projections(module))}
    blocks = [_block_of(name, places) for name in found]
    stacks = list(dict.fromkeys(block.rpartition(".")[0] for block in blocks if block))
    if not found or "" in blocks:
        raise KdError(f"{type(model).__name__} has no blocks with a known form of attention", KNOWN, "distill hints and distill similarity compare layers of any kind")
    if len(stacks) > 1 or len(set(blocks)) < len(blocks):
        raise KdError(f"{type(model).__name__} has several stacks of attention: {', '.join(stacks)}", "only an encoder or only a decoder can be compared")
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", len(blocks))
    if len(blocks) == 1 and layers > 1 and hasattr(model.config, "num_hidden_groups"):
        raise KdError(f"{type(model).__name__} runs one block {layers} times", "the outputs of its runs can't be separated")
    made = tuple(Block(block, _attention(model, name, names, places)) for (name, names), block in zip(found.items(), blocks, strict=True))
    before, after = _nearest(stacks[0], places, ("embeddings_project", "embeddings", "drop", "embed_tokens")), _nearest(stacks[0], places, ("ln_f", "norm"))
    if not before:
        raise KdError(f"{type(model).__name__}: the layer before {blocks[0]} was not found", KNOWN)
    return Stack(before, made, after or blocks[-1])


def _projections(module: nn.Module) -> tuple[str, ...]:
    """The children for queries, keys and values; empty if the module is not an attention."""
    children = dict(module.named_children())
    if {"c_attn", "c_proj"} <= children.keys() and "q_attn" not in children:
        return ("c_attn",) * 3
    names = next((names for names in PROJECTIONS if children.keys() >= set(names)), ())
    return names if names and _size(module) else ()


def _size(attention: nn.Module) -> int:
    return int(getattr(attention, "attention_head_size", None) or getattr(attention, "head_dim", None) or 0)


def _block_of(attention: str, places: Mapping[str, nn.Module]) -> str:
    """The element of a list of modules that contains an attention; empty if there is none."""
    parts = attention.split(".")
    for stop in range(len(parts) - 1, 0, -1):
        if isinstance(places[".".join(parts[:stop])], nn.ModuleList):
            return ".".join(parts[: stop + 1])
    return ""


def _nearest(stack: str, places: Mapping[str, nn.Module], names: Sequence[str]) -> str:
    """The nearest layer with one of these names, next to a list of blocks or to a module that contains it."""
    parts = stack.split(".")[:-1]
    for stop in range(len(parts), -1, -1):
        for name in names:
            place = ".".join((*parts[:stop], name))
            if place in places:
                return place
    return ""


def _attention(model: nn.Module, name: str, names: tuple[str, ...], places: Mapping[str, nn.Module]) -> Attention:
    module = places[name]
    size = _size(module)
    query, key, value = (f"{name}.{child}" for child in names)
    fused = query == key
    heads, groups = (_outputs(places[query]) // (3 * size),) * 2 if fused else (_outputs(places[each]) // size for each in (query, key))
    # a norm of queries and keys is between the projection and the product
    query, key = (f"{name}.{norm}" if f"{name}.{norm}" in places else plain for norm, plain in (("q_norm", query), ("k_norm", key)))
    scale = getattr(module, "scaling", None)
    config = getattr(model, "config", None)
    if getattr(module, "attn_logit_softcapping", None) is not None:
        raise KdError(f"{type(model).__name__} caps its attention scores, which can't be captured", KNOWN)
    return Attention(
        query, key, value, heads, groups, size,
        scale=float(scale) if scale is not None else size**-0.5,
        fused=fused,
        causal=bool(getattr(module, "is_causal", getattr(config, "is_decoder", False))),
        biased=names == ("q", "k", "v"),
        rotary=_rotary(model, module, name, places),
    )  # fmt: skip


def _rotary(model: nn.Module, attention: nn.Module, name: str, places: Mapping[str, nn.Module]) -> Rotary | None:
    turn: Any = getattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb", None)
    if turn is None or not getattr(attention, "use_rope", True):
        return None
    angles: Any = places.get(_nearest(name, places, ("rotary_emb",)))
    if angles is None or hasattr(angles, "layer_types"):
        raise KdError(f"{type(model).__name__} has an unknown form of rotary position embeddings", KNOWN)
    return Rotary(angles, turn)


def _outputs(layer: Any) -> int:
    """Outputs of a linear layer, or of GPT-2's Conv1D, whose weight is transposed."""
    return int(layer.nf if hasattr(layer, "nf") else layer.weight.shape[0])

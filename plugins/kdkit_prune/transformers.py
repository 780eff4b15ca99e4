"""Heads, key/value groups, feed-forward and hidden widths of transformers, by surgery of our own.

torch-pruning leaves GPT-2's Conv1D as it is, raises on hidden widths and hangs on grouped queries. So the blocks of a
transformer are found by the names of their children instead: a `Layout` a way of writing attention, or feed-forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.models import evaluating
from kdkit_prune.groups import Anatomy, Axis, Group, Left, Part, is_conv1d, normalizes_across, part
from kdkit_prune.trial import observe


@dataclass(frozen=True)
class Layout:
    """How a block names its layers.

    Attributes:
        into: the layers that make its inner units: query, key, value; or gate and up. One alone may hold them side by side.
        out: the layer that reads the inner units.
        holder: the child that keeps the book (number of heads and so on), if not the block itself.
        by_head: where one layer holds query, key and value, they lie side by side in every head, not as three blocks.
    """

    into: tuple[str, ...]
    out: str
    holder: str = ""
    by_head: bool = False


ATTENTION = (
    Layout(("self.query", "self.key", "self.value"), "output.dense", "self"),  # BERT, RoBERTa, ELECTRA
    Layout(("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen, Gemma, ViT
    Layout(("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT, BART, CLIP, Whisper, GPT-Neo
    Layout(("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    Layout(("q", "k", "v"), "o"),  # T5, MPNet
    Layout(("c_attn",), "c_proj"),  # GPT-2
    Layout(("query", "key", "value"), "dense"),  # ALBERT
    Layout(("query_key_value",), "dense", by_head=True),  # GPT-NeoX, BLOOM
    Layout(("qkv",), "proj"),  # vision transformers outside transformers
)

FEEDFORWARD = (
    Layout(("intermediate.dense",), "output.dense"),  # BERT
    Layout(("gate_proj", "up_proj"), "down_proj"),  # Llama
    Layout(("gate_up_proj",), "down_proj"),  # Phi-3
    Layout(("c_fc",), "c_proj"),  # GPT-2
    Layout(("lin1",), "lin2"),  # DistilBERT
    Layout(("fc1",), "fc2"),  # OPT, BART, CLIP, ViT
    Layout(("wi",), "wo"),  # T5
    Layout(("wi_0", "wi_1"), "wo"),  # T5 1.1
    Layout(("linear1",), "linear2"),  # torch.nn.TransformerEncoderLayer
    Layout(("w1", "w3"), "w2"),
    Layout(("ffn",), "ffn_output"),  # ALBERT
    Layout(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM
)

HEAD_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
HEADS = ("num_attention_heads", "num_heads", "n_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
INNER_WIDTH = ("all_head_size", "split_size", "inner_dim", "attn_dim")
HIDDEN_WIDTH = ("hidden_size", "embed_dim", "d_model", "dim", "n_embd")
CONFIG_FEEDFORWARD = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff")


@dataclass(frozen=True)
class Block:
    """A layout found in a model, at the module of this name."""

    name: str
    layout: Layout

    @property
    def into(self) -> tuple[str, ...]:
        return tuple(self._path(child) for child in self.layout.into)

    @property
    def out(self) -> str:
        return self._path(self.layout.out)

    def holder(self, model: nn.Module) -> nn.Module:
        """The module with the bookkeeping attributes."""
        return model.get_submodule(self._path(self.layout.holder))

    def _path(self, child: str) -> str:
        return ".".join(filter(None, (self.name, child)))


@dataclass(frozen=True)
class Heads:
    """The numbers of an attention block: query heads, key/value heads, width of a head."""

    query: int
    key: int
    width: int


def is_transformer(model: nn.Module) -> bool:
    """Whether it has attention of a layout known here, or torch's own, or is one of the transformers library with known feed-forward blocks."""
    from_library = any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)
    torchs_own = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    return torchs_own or bool(blocks(model, ATTENTION)) or (from_library and bool(blocks(model, FEEDFORWARD)))


def blocks(model: nn.Module, layouts: Sequence[Layout]) -> list[Block]:
    """The blocks of any of these layouts, in the model's order."""
    found = []
    for name, module in model.named_modules():
        layout = next((each for each in layouts if all(_is_linear(_child(module, child)) for child in (*each.into, each.out))), None)
        if layout:
            found.append(Block(name, layout))
    return found


def anatomy(model: nn.Module, batch: Batch, what: Sequence[str]) -> Anatomy:
    """The units of these kinds that a transformer has."""
    attention, feedforward = blocks(model, ATTENTION), blocks(model, FEEDFORWARD)
    numbers = {block.name: heads_of(model, block) for block in attention}
    found = Anatomy([], settle=partial(_settle, attention=attention, numbers=numbers, hidden=_hidden_width(model, attention, feedforward)))
    for kind in ("heads", "groups"):
        if kind in what:
            found.left += [Left(kind, name, reason) for name, reason in _foreign_attention(model, attention)]
            for block in attention:
                _add(found, kind, block.name, partial(_attention_group, model, block, numbers[block.name], kind))
    if "ffn" in what:
        for block in feedforward:
            _add(found, "ffn", block.name, partial(_feedforward_group, model, block))
    if "hidden" in what:
        _add(found, "hidden", type(model).__name__, partial(_hidden_group, model, batch, attention, feedforward))
    if set(what) == {"channels"}:
        found.left.append(Left("channels", type(model).__name__, "the units of a transformer are --what heads groups ffn hidden"))
    return found


def _add(found: Anatomy, kind: str, name: str, make: Callable[[], Group]) -> None:
    try:
        found.groups.append(make())
    except LookupError as error:
        found.left.append(Left(kind, name, error.args[0]))


def _foreign_attention(model: nn.Module, known: Sequence[Block]) -> Iterator[tuple[str, str]]:
    """Attention whose heads can't be removed, as (name, reason)."""
    names = [block.name for block in known]
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield name, "torch.nn.MultiheadAttention computes the width of a head as embed_dim / num_heads, so none can be removed"
        elif "Attention" in type(module).__name__ and not any(f"{each}.".startswith(f"{name}.") or f"{name}.".startswith(f"{each}.") for each in names):
            yield name, f"how {type(module).__name__} lays out its heads is not known here"


def heads_of(model: nn.Module, block: Block) -> Heads | None:
    """The numbers of an attention block as its widths and attributes tell them; None where they don't."""
    holder = block.holder(model)
    stated = _number(holder, HEADS)
    queries = _out_width(model, block.into[0]) // _fused(block)
    width = _number(holder, HEAD_WIDTH) or (queries // stated if stated else 0)
    if not width or queries % width:
        return None
    keys = _out_width(model, block.into[1]) // width if len(block.into) > 1 else queries // width
    return Heads(queries // width, keys, width) if keys and (queries // width) % keys == 0 else None


def _attention_group(model: nn.Module, block: Block, heads: Heads | None, kind: str) -> Group:
    """Query heads, or key/value heads with all queries that share them.

    Raises:
        LookupError: the block has no such units; the reason.
    """
    if heads is None:
        raise LookupError("its number of heads can't be told")
    shared = heads.query // heads.key
    if kind == "groups" and shared == 1:
        raise LookupError("every query head has a key/value head of its own; they are removed as heads")
    units, bundles = (heads.key, 1) if kind == "groups" else (heads.query, heads.key if shared > 1 else 1)
    if units // bundles < 2:
        raise LookupError("there is only one query head to a key/value head" if bundles > 1 else "there is only one")
    copies = _fused(block) if not block.layout.by_head else 1
    written = block.into if kind == "groups" or shared == 1 else block.into[:1]
    parts = [part(model, name, "out", _equal_runs(_out_width(model, name), units, copies)) for name in written]
    parts.append(part(model, block.out, "in", _equal_runs(_in_width(model, block.out), units)))
    return Group(block.name, kind, units, tuple(parts), bundles=bundles)  # type: ignore[arg-type]


def _equal_runs(width: int, units: int, copies: int = 1) -> Tensor:
    """The owner of each position where units lie one after another, all of that once more for each copy.

    >>> _equal_runs(8, 2, copies=2).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    return torch.arange(units).repeat_interleave(width // copies // units).repeat(copies)


def _fused(block: Block) -> int:
    """How many of query, key and value one layer makes."""
    return 3 if len(block.layout.into) == 1 else 1


def _feedforward_group(model: nn.Module, block: Block) -> Group:
    units = _in_width(model, block.out)
    if units < 2 or any(_out_width(model, name) % units for name in block.into):
        raise LookupError(f"{' and '.join(block.layout.into)} do not feed {block.layout.out} directly")
    into = [part(model, name, "out", torch.arange(_out_width(model, name)) % units) for name in block.into]
    return Group(block.name, "ffn", units, (*into, part(model, block.out, "in", torch.arange(units))))


def _hidden_width(model: nn.Module, attention: Sequence[Block], feedforward: Sequence[Block]) -> int:
    """The width of the residual stream, 0 where the blocks do not agree on it."""
    widths = {_out_width(model, block.out) for block in (*attention, *feedforward)}
    return widths.pop() if len(widths) == 1 else 0


def _hidden_group(model: nn.Module, batch: Batch, attention: Sequence[Block], feedforward: Sequence[Block]) -> Group:
    """The residual stream: what writes it, rescales it and reads it, told apart by the order in which modules run.

    Before the blocks, embeddings and projections write it; after them the first linear layer reads it, and what follows works on another stream.
    """
    width = _hidden_width(model, attention, feedforward)
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        raise LookupError("torch.nn.MultiheadAttention ties it to the number of heads")
    if not width:
        raise LookupError("the blocks write streams of different widths")
    units = torch.arange(width)
    readers = {name for block in (*attention, *feedforward) for name in block.into}
    writers = {block.out for block in (*attention, *feedforward)}
    parts: list[Part] = []
    begun = left = False
    for name, module in _in_order(model, batch):
        if name in readers:
            parts, begun = [*parts, part(model, name, "in", units)], True
        elif name in writers:
            parts.append(part(model, name, "out", units))
        elif left:
            continue
        elif normalizes_across(module) and module.weight.numel() == width:  # type: ignore[operator]
            parts.append(part(model, name, "out", units))
        elif begun and _is_linear(module) and _in_width(model, name) == width:
            parts, left = [*parts, part(model, name, "in", units)], True
        elif (isinstance(module, nn.Embedding) or not begun) and _writes(module) == width:
            parts.append(part(model, name, "out", units))
    return Group(type(model).__name__, "hidden", width, (*parts, *_loose(model, width)))


def _loose(model: nn.Module, width: int) -> Iterator[Part]:
    """Parameters that lie on containers, such as class tokens and positions of a vision transformer."""
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            for key, weight in module._parameters.items():
                if weight is not None and weight.dim() and weight.shape[-1] == width:
                    yield Part(name, Axis(((key, weight.dim() - 1),)), torch.arange(width), writes=True)


def _writes(module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    return (module.nf if is_conv1d(module) else module.out_features) if _is_linear(module) else 0  # type: ignore[return-value]


def _in_order(model: nn.Module, batch: Batch) -> list[tuple[str, nn.Module]]:
    """The leaf modules in the order in which they first run on one item."""
    names = {module: name for name, module in model.named_modules() if not any(True for _ in module.children())}
    order: dict[str, nn.Module] = {}

    def ran(module: nn.Module, inputs: tuple) -> None:
        order.setdefault(names[module], module)

    hooks = [module.register_forward_pre_hook(ran) for module in names]
    try:
        with evaluating(model):
            batch[:1].call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order.items())


def _settle(model: nn.Module, attention: Sequence[Block], numbers: dict[str, Heads | None], hidden: int) -> None:
    """Set every bookkeeping attribute to what the layers now are."""
    for block in attention:
        before, holder = numbers[block.name], block.holder(model)
        if before is None:
            continue
        queries = _out_width(model, block.into[0]) // _fused(block)
        keys = _out_width(model, block.into[1]) if len(block.into) > 1 else queries
        _state(holder, HEADS, queries // before.width)
        _state(holder, KEY_HEADS, keys // before.width)
        _state(holder, ("num_key_value_groups",), queries // keys)
        _state(holder, INNER_WIDTH, queries)
    now = _hidden_width(model, attention, blocks(model, FEEDFORWARD))
    if hidden and now != hidden:
        for module in model.modules():
            _state(module, [name for name in HIDDEN_WIDTH if getattr(module, name, None) == hidden], now)


def write_config(model: nn.Module, batch: Batch) -> str:
    """Write uniform widths back into the model's `config`, if a model built from it with the same weights says the same.

    Returns:
        What a user must know: that `from_pretrained` can, or can't, bring the pruned model back. Empty where there is no config.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict") or not hasattr(type(model), "from_pretrained"):
        return ""
    values = _uniform(model, config)
    wanted = copy.deepcopy(config)
    for name, value in values.items():
        setattr(wanted, name, value)
    if not values or not _rebuilds(model, wanted, batch):
        return "config.json can't state these widths, so from_pretrained would not fit; kdkit's own save and load do"
    for name, value in values.items():
        setattr(config, name, value)
    return f"config: {', '.join(f'{name} {value}' for name, value in values.items())}"


def _uniform(model: nn.Module, config: Any) -> dict[str, int]:
    """What the config would have to say, where all blocks agree; nothing where they don't."""
    attention, feedforward = blocks(model, ATTENTION), blocks(model, FEEDFORWARD)
    heads = {heads_of(model, block) for block in attention}
    inner = {_in_width(model, block.out) for block in feedforward}
    hidden = _hidden_width(model, attention, feedforward)
    if len(heads) != 1 or None in heads or len(inner) != 1 or not hidden:
        return {}
    one = next(each for each in heads if each)
    stated = {"hidden_size": hidden, "num_attention_heads": one.query, "num_key_value_heads": one.key, "head_dim": one.width}
    stated |= {next((name for name in CONFIG_FEEDFORWARD if hasattr(config, name)), "intermediate_size"): inner.pop()}
    return {name: value for name, value in stated.items() if hasattr(config, name) and getattr(config, name) != value}


def _rebuilds(model: nn.Module, config: Any, batch: Batch) -> bool:
    """Whether a model of this config fits the weights, and with them answers alike: scales computed from a width must come out the same."""
    weights = model.state_dict()
    try:
        with torch.device("meta"):
            twin = type(model)(config)
        if {name: tensor.shape for name, tensor in twin.state_dict().items()} != {name: tensor.shape for name, tensor in weights.items()}:
            return False
        with torch.random.fork_rng(devices=[]):
            twin = type(model)(config)
    except Exception:  # a config that the architecture refuses is the answer
        return False
    first = next(model.parameters())
    twin.to(first.device, first.dtype).load_state_dict(weights)
    return all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in zip(observe(model, batch), observe(twin, batch), strict=True))


def _state(module: nn.Module, names: Sequence[str], value: int) -> None:
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)


def _number(module: nn.Module, names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int) and value > 0), 0)


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = module._modules.get(name) if module is not None else None  # type: ignore[assignment]
    return module


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or (module is not None and is_conv1d(module))


def _out_width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    return module.nf if is_conv1d(module) else module.out_features  # type: ignore[return-value]


def _in_width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    return module.nx if is_conv1d(module) else module.in_features  # type: ignore[return-value]

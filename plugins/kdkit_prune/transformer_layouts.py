"""How transformers name and size their layers.

A block of attention or feed-forward is found by the names of its children: a `Layout` a way of writing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kdkit_prune.groups import is_conv1d


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
    Layout(("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
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


def blocks(model: nn.Module, layouts: Sequence[Layout]) -> list[Block]:
    """The blocks of any of these layouts, in the model's order."""
    found = []
    for name, module in model.named_modules():
        layout = next((each for each in layouts if all(is_linear(_child(module, child)) for child in (*each.into, each.out))), None)
        if layout:
            found.append(Block(name, layout))
    return found


def heads_of(model: nn.Module, block: Block) -> Heads | None:
    """The numbers of an attention block from its widths and attributes; None if they don't determine them."""
    holder = block.holder(model)
    stated = _number(holder, HEADS)
    queries = out_width(model, block.into[0]) // fused(block)
    width = _number(holder, HEAD_WIDTH) or (queries // stated if stated else 0)
    if not width or queries % width:
        return None
    keys = out_width(model, block.into[1]) // width if len(block.into) > 1 else queries // width
    return Heads(queries // width, keys, width) if keys and (queries // width) % keys == 0 else None


def fused(block: Block) -> int:
    """How many of query, key and value one layer makes."""
    return 3 if len(block.layout.into) == 1 else 1


def hidden_width(model: nn.Module, attention: Sequence[Block], feedforward: Sequence[Block]) -> int:
    """The width of the residual stream, 0 where the blocks do not agree on it."""
    widths = {out_width(model, block.out) for block in (*attention, *feedforward)}
    return widths.pop() if len(widths) == 1 else 0


def _number(module: nn.Module, names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int) and value > 0), 0)


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = module._modules.get(name) if module is not None else None  # type: ignore[assignment]
    return module


def is_linear(module: nn.Module | None) -> bool:
    """Whether it is a linear layer, or a product of them as `decompose svd` makes."""
    product = type(module) is nn.Sequential and len(module) > 0 and all(isinstance(each, nn.Linear) for each in module)
    return isinstance(module, nn.Linear) or product or (module is not None and is_conv1d(module))


def ends(model: nn.Module, name: str) -> tuple[str, str]:
    """The layers that a linear layer, or a product of them, reads with and writes with.

    >>> ends(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))), "1")
    ('1.0', '1.1')
    """
    module = model.get_submodule(name)
    return (f"{name}.0", f"{name}.{len(module) - 1}") if isinstance(module, nn.Sequential) else (name, name)


def out_width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(ends(model, name)[1])
    return module.nf if is_conv1d(module) else module.out_features  # type: ignore[return-value]


def in_width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(ends(model, name)[0])
    return module.nx if is_conv1d(module) else module.in_features  # type: ignore[return-value]

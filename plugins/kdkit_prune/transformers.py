"""Heads, key/value groups, feed-forward and hidden widths of transformers, by kdkit's own surgery.

torch-pruning leaves GPT-2's Conv1D as it is, raises on hidden widths and hangs on grouped queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import evaluating, linear_kinds, weights_elsewhere
from kdkit_prune.groups import Axis, Excluded, Group, NotPrunable, Part, PruningPlanScope, is_conv1d, normalizes_across, part
from kdkit_prune.transformer_layouts import ATTENTION, FEEDFORWARD, Block, Heads, blocks, ends, fused, heads_of, hidden_width, in_width, is_linear, out_width
from kdkit_prune.transformer_sizes import settle_attributes


def is_transformer(model: nn.Module) -> bool:
    """Whether it has attention of a layout known here, or torch's own, or is one of the transformers library with known feed-forward blocks."""
    from_library = any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)
    torchs_own = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    return torchs_own or bool(blocks(model, ATTENTION)) or (from_library and bool(blocks(model, FEEDFORWARD)))


def anatomy(model: nn.Module, batch: Batch, what: Sequence[str]) -> PruningPlanScope:
    """The units of these kinds that a transformer has."""
    attention, feedforward = blocks(model, ATTENTION), blocks(model, FEEDFORWARD)
    numbers = {block.name: heads_of(model, block) for block in attention}
    found = PruningPlanScope([], sync_attributes=partial(settle_attributes, attention=attention, numbers=numbers, hidden=hidden_width(model, attention, feedforward)))
    for kind in ("heads", "groups"):
        if kind in what:
            found.left += [Excluded(kind, name, reason) for name, reason in _foreign_attention(model, attention)]
            for block in attention:
                _add(found, kind, block.name, partial(_attention_group, model, block, numbers[block.name], kind))
    if "ffn" in what:
        for block in feedforward:
            _add(found, "ffn", block.name, partial(_feedforward_group, model, block))
        elsewhere = weights_elsewhere(model, (*linear_kinds(), nn.MultiheadAttention))
        found.left += [Excluded("ffn", name, reason) for name, reason in elsewhere.items()]
    if "hidden" in what:
        _add(found, "hidden", type(model).__name__, partial(_hidden_group, model, batch, attention, feedforward))
    if set(what) == {"channels"}:
        found.left.append(Excluded("channels", type(model).__name__, "the units of a transformer are --what heads groups ffn hidden"))
    return found


def _add(found: PruningPlanScope, kind: str, name: str, make: Callable[[], Group]) -> None:
    try:
        found.groups.append(make())
    except NotPrunable as reason:
        found.left.append(Excluded(kind, name, str(reason)))


def _foreign_attention(model: nn.Module, known: Sequence[Block]) -> Iterator[tuple[str, str]]:
    """Attention whose heads can't be removed, as (name, reason)."""
    names = [block.name for block in known]
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            yield name, "torch.nn.MultiheadAttention computes the width of a head as embed_dim / num_heads, so none can be removed"
        elif "Attention" in type(module).__name__ and not any(f"{each}.".startswith(f"{name}.") or f"{name}.".startswith(f"{each}.") for each in names):
            yield name, f"how {type(module).__name__} lays out its heads is not known here"


def _attention_group(model: nn.Module, block: Block, heads: Heads | None, kind: str) -> Group:
    """Query heads, or key/value heads with all queries that share them.

    Raises:
        NotPrunable: the block has no such units; the reason.
    """
    if heads is None:
        raise NotPrunable("its number of heads can't be determined")
    shared = heads.query // heads.key
    if kind == "groups" and shared == 1:
        raise NotPrunable("every query head has a key/value head of its own; they are removed as heads")
    units, bundles = (heads.key, 1) if kind == "groups" else (heads.query, heads.key if shared > 1 else 1)
    if units // bundles < 2:
        raise NotPrunable("there is only one query head to a key/value head" if bundles > 1 else "there is only one")
    copies = fused(block) if not block.layout.by_head else 1
    written = block.into if kind == "groups" or shared == 1 else block.into[:1]
    parts = [part(model, ends(model, name)[1], "out", _equal_runs(out_width(model, name), units, copies)) for name in written]
    parts.append(part(model, ends(model, block.out)[0], "in", _equal_runs(in_width(model, block.out), units)))
    return Group(block.name, kind, units, tuple(parts), bundles=bundles)  # type: ignore[arg-type]


def _equal_runs(width: int, units: int, copies: int = 1) -> Tensor:
    """The owner of each position where units are contiguous, repeated for each copy.

    >>> _equal_runs(8, 2, copies=2).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    return torch.arange(units).repeat_interleave(width // copies // units).repeat(copies)


def _feedforward_group(model: nn.Module, block: Block) -> Group:
    units = in_width(model, block.out)
    if units < 2 or any(out_width(model, name) % units for name in block.into):
        raise NotPrunable(f"{' and '.join(block.layout.into)} do not feed {block.layout.out} directly")
    into = [part(model, ends(model, name)[1], "out", torch.arange(out_width(model, name)) % units) for name in block.into]
    return Group(block.name, "ffn", units, (*into, part(model, ends(model, block.out)[0], "in", torch.arange(units))))


def _hidden_group(model: nn.Module, batch: Batch, attention: Sequence[Block], feedforward: Sequence[Block]) -> Group:
    """The residual stream: the modules that write, rescale and read it, distinguished by the order in which they run.

    Before the blocks, embeddings and projections write it; after them the first linear layer reads it, and what follows works on another stream.
    """
    width = hidden_width(model, attention, feedforward)
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        raise NotPrunable("torch.nn.MultiheadAttention ties it to the number of heads")
    if not width:
        raise NotPrunable("the blocks write streams of different widths")
    units = torch.arange(width)
    edges = [(ends(model, name), reads) for block in (*attention, *feedforward) for name, reads in [*((name, True) for name in block.into), (block.out, False)]]
    readers = {first for (first, _), reads in edges if reads}
    writers = {last for (_, last), reads in edges if not reads}
    inside = {name for pair, _ in edges for name in pair} - readers - writers
    parts: list[Part] = []
    begun = left = False
    for name, module in _in_order(model, batch):
        if name in readers:
            parts, begun = [*parts, part(model, name, "in", units)], True
        elif name in writers:
            parts.append(part(model, name, "out", units))
        elif left or name in inside:
            continue
        elif normalizes_across(module) and module.weight.numel() == width:  # type: ignore[operator]
            parts.append(part(model, name, "out", units))
        elif begun and is_linear(module) and in_width(model, name) == width:
            parts, left = [*parts, part(model, name, "in", units)], True
        elif (isinstance(module, nn.Embedding) or not begun) and _writes(module) == width:
            parts.append(part(model, name, "out", units))
    return Group(type(model).__name__, "hidden", width, (*parts, *_loose(model, width)))


def _loose(model: nn.Module, width: int) -> Iterator[Part]:
    """Parameters of container modules, such as class tokens and positions of a vision transformer."""
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
    return (module.nf if is_conv1d(module) else module.out_features) if is_linear(module) else 0  # type: ignore[return-value]


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

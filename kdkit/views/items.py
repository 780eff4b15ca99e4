"""Items of data as a person sees them: pictures as pictures, text as text, sounds as a player, numbers as a row."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.display.media import picture, player

RATE = 16_000
"""Samples a second of sounds: what nearly all speech models take."""
SOUND = 2_000
"""Numbers in a row from which they are taken for a sound."""
NUMBERS = 12
"""Numbers of a row that are shown."""
CHARACTERS = 300
"""Characters of a text that are shown."""


def item_text(batch: Batch, number: int, tokenizer: Any = None) -> str:
    """An item's text, or numbers, or else the shapes of its inputs; in one line.

    >>> item_text(Batch((torch.tensor([[1.0, 2.5]]),)), 0), item_text(Batch((torch.zeros(1, 3, 8, 8),)), 0)
    ('1, 2.5', '3 x 8 x 8')
    """
    text = _written(batch, number, tokenizer)
    if text is not None:
        return _cut(" ".join(text.split()))
    found = _main_input(batch, number)
    if found.ndim <= 1 and found.numel() < SOUND:
        return _row(found)
    return " x ".join(map(str, found.shape))


def item_html(batch: Batch, number: int, tokenizer: Any = None, rate: int = RATE) -> str:
    """An item as HTML.

    Args:
        rate: samples a second, of a sound.
    """
    text = _written(batch, number, tokenizer)
    if text is not None:
        return f'<span style="white-space: pre-wrap">{escape(_cut(text))}</span>'
    found = _main_input(batch, number)
    if found.ndim == 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim == 1 and found.numel() >= SOUND and found.is_floating_point():
        return player(_samples(found), rate, f"item {number}, {found.numel() / rate:.1f} s")
    if found.ndim == 2 or (found.ndim == 3 and found.shape[0] in (1, 3, 4)):
        return _picture(found if found.ndim == 3 else found[None])
    return escape(item_text(batch, number, tokenizer))


def _written(batch: Batch, number: int, tokenizer: Any) -> str | None:
    """The text of an item: given beside its numbers, or decoded from its token ids; None if it has none."""
    if batch.fields:
        return "\n".join(str(values[number]) for values in batch.fields.values())
    tokens = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or not hasattr(tokenizer, "decode"):
        return None
    mask = batch.kwargs.get("attention_mask")
    return str(tokenizer.decode(tokens[number][mask[number].bool()] if isinstance(mask, Tensor) and mask.shape == tokens.shape else tokens[number]))


def _main_input(batch: Batch, number: int) -> Tensor:
    return next(each for each in (*batch.args, *batch.kwargs.values()) if isinstance(each, Tensor))[number]


def _row(values: Tensor) -> str:
    shown = [f"{value:.4g}" for value in values.flatten()[:NUMBERS].tolist()]
    return ", ".join([*shown, *(["…"] if values.numel() > NUMBERS else [])])


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + "…"


def _samples(sound: Tensor) -> bytes:
    peak = float(sound.abs().max()) or 1.0
    return (sound.float() / peak * 32767).to(torch.int16).numpy().astype("<i2").tobytes()


def _picture(values: Tensor) -> str:
    """Channels first; from its smallest to its largest value, as it may be in any units."""
    values = values.float()
    low, high = float(values.min()), float(values.max())
    pixels = ((values - low) / ((high - low) or 1.0) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width, channels = pixels.shape
    return picture(pixels.numpy().tobytes(), width, height, channels, f"picture, {width} x {height}")

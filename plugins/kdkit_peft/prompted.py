"""Prompted models: learned vectors among the embedded tokens of a transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Computes the vectors of a prompt (vectors, width) from those that train: by an MLP, or by an LSTM in both directions and an MLP.

    Liu et al., "GPT Understands, Too", 2021 (arXiv:2103.10385).
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True) if kind == "lstm" else None
        self.mlp = nn.Sequential(nn.Linear(2 * width if kind == "lstm" else width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, vectors: Tensor) -> Tensor:
        return self.mlp(vectors if self.lstm is None else self.lstm(vectors[None])[0][0])


class Prompted(nn.Module):
    """A model of transformers that reads learned vectors before, or among, its tokens; outputs of single tokens are those of the tokens alone.

    Args:
        base: takes `inputs_embeds` and `attention_mask`.
        prompt: the vectors (vectors, width).
        place: number of tokens before the prompt: 0, or 1 for an encoder whose first token represents the sequence.
        encoder: computes the vectors from `prompt` while they train.
    """

    def __init__(self, base: Any, prompt: Tensor, place: int, encoder: Encoder | None = None):
        super().__init__()
        self.base, self.prompt, self.encoder = base, nn.Parameter(prompt), encoder
        self.place = place

    @property
    def config(self) -> Any:
        return self.base.config

    def vectors(self) -> Tensor:
        """The prompt as the model reads it, (vectors, width)."""
        return self.prompt if self.encoder is None else self.encoder(self.prompt)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **options: Any) -> Any:
        """What the base gives for the prompt and the tokens (batch, tokens), with its outputs at the tokens alone."""
        output = self.base(**self._extended(input_ids, attention_mask, token_type_ids), **options)
        if not getattr(self.config, "is_encoder_decoder", False):
            for name in ("logits", "last_hidden_state"):
                if (given := output.get(name)) is not None and given.dim() == 3 and given.shape[1] == input_ids.shape[1] + len(self.prompt):
                    output[name] = torch.cat([given[:, : self.place], given[:, self.place + len(self.prompt) :]], 1)
        return output

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """The tokens (batch, tokens) and those that the base generates behind the prompt and them."""
        made = self.base.generate(**self._extended(input_ids, attention_mask, None), **options)
        return made if getattr(self.config, "is_encoder_decoder", False) else torch.cat([input_ids, made], 1)

    def _extended(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> dict[str, Tensor]:
        embedded = self.base.get_input_embeddings()(ids)
        prompt = self.vectors().to(embedded.dtype).expand(len(ids), -1, -1)
        mask = torch.ones_like(ids) if mask is None else mask
        found = {"inputs_embeds": self._insert(embedded, prompt), "attention_mask": self._insert(mask, mask.new_ones(len(ids), len(self.prompt)))}
        if types is not None:
            found["token_type_ids"] = self._insert(types, types[:, :1].expand(-1, len(self.prompt)))
        return found

    def _insert(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([tokens[:, : self.place], prompt, tokens[:, self.place :]], 1)

    @torch.no_grad()
    def drop_encoder(self) -> None:
        """Keep the vectors that the encoder computes, and not the encoder."""
        self.prompt = nn.Parameter(self.vectors().clone())
        self.encoder = None

"""The task of encoder-decoder models: the tokens of an output sequence, each from the input and the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.tasks.classification import TokenClassification
from kdkit.tasks.task import IGNORED


class SequenceToSequence(TokenClassification):
    """The tokens of an output sequence: cross entropy and accuracy of each token, given the true tokens before it.

    Labels are token ids, (batch, tokens), with -100 for what does not count; they are not shifted, as the decoder's inputs are.
    A batch needs `decoder_input_ids`; a session derives them from the labels for models of transformers. With a tokenizer, the
    measure `rouge` compares generated texts with the labels.

    >>> batch = Batch(kwargs={"input_ids": torch.ones(1, 9), "decoder_input_ids": torch.tensor([[0, 5, 6]])}, labels=torch.tensor([[5, 6, -100]]))
    >>> SequenceToSequence().mask(batch)
    tensor([[ True,  True, False]])
    """

    name = "sequence-to-sequence"
    tokenizer: Any = None

    def labels(self, batch: Batch) -> Tensor:
        """Token ids, (batch, tokens), with -100 for tokens that do not count; or probabilities, (batch, tokens, vocabulary)."""
        # the attention mask of the inputs says nothing about the decoder's tokens
        labels, real = self.given_labels(batch), _decoded(batch)
        return labels if labels.is_floating_point() or real is None or real.shape != labels.shape else labels.masked_fill(~real, IGNORED)

    def mask(self, batch: Batch) -> Tensor | None:
        if isinstance(batch.labels, Tensor) and not batch.labels.is_floating_point():
            return self.labels(batch) != IGNORED
        tokens, real = batch.kwargs.get("decoder_input_ids"), _decoded(batch)
        return torch.ones_like(tokens, dtype=torch.bool) if real is None and isinstance(tokens, Tensor) else real


def _decoded(batch: Batch) -> Tensor | None:
    mask = batch.kwargs.get("decoder_attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

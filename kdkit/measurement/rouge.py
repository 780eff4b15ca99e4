"""ROUGE: the overlap of generated texts with the true ones, for models that generate a sequence from a sequence.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; computed by the package rouge-score.
"""

from __future__ import annotations

from typing import Any

import torch

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.measurement.measure import Subject
from kdkit.measurement.report import Figure
from kdkit.models.evaluation import device_of, evaluating
from kdkit.tasks import IGNORED, SequenceToSequence

NOT_INPUTS = ("decoder_input_ids", "decoder_attention_mask")
"""Inputs that hold the true sequence: a model generates without them."""


def measure_rouge(subject: Subject) -> Figure | None:
    """The mean F-measure of ROUGE-L over the evaluation data, 0 to 1; texts are generated greedily, as long as the longest true one of a batch.

    None for other tasks, without a tokenizer or data, and for models that can't generate, such as exported ones.

    Raises:
        KdError: the package rouge-score is not installed.
    """
    task, data, generates = subject.task, subject.data, getattr(subject.model, "generate", None)
    if not isinstance(task, SequenceToSequence) or task.tokenizer is None or data is None or not data.labelled or not callable(generates):
        return None
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise KdError("it needs rouge-score, which is not installed", "pip install 'kdkit[rouge]'") from error
    scorer, scores = RougeScorer(["rougeL"]), []
    with evaluating(subject.model):
        for batch in data.batches():
            subject.check_cancelled()
            generated, true = generated_texts(subject.model, batch, task.tokenizer), true_texts(batch, task.tokenizer)
            scores += [scorer.score(one, other)["rougeL"].fmeasure for one, other in zip(true, generated, strict=True)]
    return Figure("rouge_l", sum(scores) / len(scores), n=len(scores), headline=False)


def generated_texts(model: Any, batch: Batch, tokenizer: Any) -> list[str]:
    """What a model generates for the inputs of a batch."""
    given = batch.to(device_of(model))
    inputs = {name: value for name, value in given.kwargs.items() if name not in NOT_INPUTS}
    return tokenizer.batch_decode(model.generate(*given.args, **inputs, max_new_tokens=batch.labels.shape[1], do_sample=False, num_beams=1), skip_special_tokens=True)


def true_texts(batch: Batch, tokenizer: Any) -> list[str]:
    """The labels of a batch as texts."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return tokenizer.batch_decode(torch.where(batch.labels == IGNORED, padding, batch.labels), skip_special_tokens=True)

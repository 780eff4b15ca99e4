"""Every task that people bring: recognised, measured, pruned, distilled from outputs and layers, and quantized, each with a small net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.session.session import Session
from tests.fixtures.outputs import seeded


class Tokens(nn.Module):
    """Embedding, two linear layers per token, and a head of scores per token, or per item with `pooled`."""

    def __init__(self, size: int, pooled: bool = False, returned: Callable[[Tensor, Tensor], Any] = lambda hidden, found: found):
        super().__init__()
        self.embedding, self.one, self.two, self.head = nn.Embedding(16, 8), nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, size)
        self.pooled, self.returned = pooled, returned

    def forward(self, tokens: Tensor) -> Any:
        hidden = self.two(self.one(self.embedding(tokens)).relu()).relu()
        hidden = hidden.mean(1) if self.pooled else hidden
        return self.returned(hidden, self.head(hidden))


def images(size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, size)
    )


def maps(size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, size, 1))


class Detector(nn.Module):
    """A dense head: the scores of two classes and the background, and a box, at each of 9 places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"logits": self.classes(features).flatten(2).mT, "pred_boxes": self.boxes(features).flatten(2).mT.sigmoid()}


def pictures_with_boxes() -> list[tuple]:
    """As a collate function of torchvision's detection makes them: a tuple of pictures, and a tuple of targets."""
    targets = tuple({"boxes": torch.rand(number % 3, 4, generator=seeded(number)), "labels": torch.arange(number % 3) % 2} for number in range(N))
    return [(tuple(PICTURES[:4]), targets[:4]), (tuple(PICTURES[4:]), targets[4:])]


def vectors(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, size))


def transformer(head: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16, pad_token_id=0, **settings
    )
    return getattr(transformers, f"Bert{head}")(config)


def t5() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        )
    )  # fmt: skip


def whisper() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=16, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_source_positions=8, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        )
    )  # fmt: skip


N = 8
PICTURES = torch.randn(N, 1, 6, 6, generator=seeded(0))
POINTS = torch.randn(N, 4, generator=seeded(1))
WORDS = torch.randint(3, 16, (N, 5), generator=seeded(2))
CLASSES = torch.arange(N) % 3
MASK = (PICTURES > 0).float()


def ids(**more: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS), **more}]


@dataclass(frozen=True)
class Case:
    """A net, its data, and what is expected of them.

    Attributes:
        task: the name that is inferred, or stated with `stated`.
        metric: the figure that compares versions.
        refused: techniques that are refused, with a part of the reason.
    """

    net: Callable[[], nn.Module]
    data: Any
    task: str
    metric: str
    stated: bool = False
    refused: dict[str, str] | None = None


NO_CLASSES = dict.fromkeys(("decoupled", "correlation", "standardized"), "compares classes")
CASES = {
    "classification": Case(lambda: images(3), (PICTURES, CLASSES), "classification", "accuracy"),
    "binary": Case(lambda: images(1), (PICTURES, (CLASSES > 0).float()), "classification", "accuracy", refused={"decoupled": "two classes"}),
    "multilabel": Case(lambda: images(3), (PICTURES, (torch.rand(N, 3, generator=seeded(3)) > 0.5).float()), "multilabel", "f1", refused=NO_CLASSES),
    "regression": Case(lambda: vectors(1), (POINTS, POINTS.sum(1)), "regression", "rmse", refused=NO_CLASSES),
    "several numbers": Case(lambda: vectors(2), (POINTS, POINTS[:, :2]), "regression", "rmse", refused=NO_CLASSES),
    "segmentation": Case(lambda: maps(3), (PICTURES, (PICTURES.squeeze(1) * 2).long().clamp(0, 2)), "segmentation", "mean_iou"),
    "masks": Case(lambda: maps(1), (PICTURES, MASK), "segmentation", "mean_iou", refused={"decoupled": "two classes"}),
    "detection": Case(Detector, pictures_with_boxes(), "detection", "f1", refused={"decoupled": "compares classes"}),
    "token classification": Case(lambda: Tokens(3), (WORDS, WORDS % 3), "token-classification", "accuracy"),
    "masked language model": Case(lambda: transformer("ForMaskedLM"), ids(labels=WORDS.masked_fill(WORDS % 2 == 0, -100)), "token-classification", "accuracy"),
    "causal language model": Case(lambda: transformer("LMHeadModel", is_decoder=True), ids(labels=WORDS), "causal-lm", "perplexity"),
    "T5": Case(t5, ids(labels=WORDS[:, :4]), "sequence-to-sequence", "accuracy"),
    "BART": Case(bart, ids(labels=WORDS[:, :4].masked_fill(WORDS[:, :4] == 5, -100)), "sequence-to-sequence", "accuracy"),
    "Whisper": Case(whisper, [{"input_features": torch.randn(N, 4, 16, generator=seeded(4)), "labels": WORDS}], "sequence-to-sequence", "accuracy"),
    "CTC": Case(lambda: Tokens(4), (WORDS, 1 + WORDS[:, :2] % 3), "ctc", "label_error_rate", stated=True),
    "embedding": Case(lambda: vectors(6), (POINTS, torch.randn(N, 6, generator=seeded(5))), "embedding", "cosine", stated=True, refused=NO_CLASSES),
    "retrieval": Case(lambda: Tokens(6, pooled=True), ((WORDS, WORDS.flip(0)), torch.rand(N, generator=seeded(6))), "embedding", "spearman", refused=NO_CLASSES),
    "features and logits": Case(
        lambda: Tokens(3, pooled=True, returned=lambda hidden, found: (hidden, found)), (WORDS, CLASSES), "classification", "accuracy"
    ),
}  # fmt: skip
STEPS = "--steps 2 --batch-size 4 --learning-rate 1e-3"


def session(case: Case, **settings: Any) -> Session:
    torch.manual_seed(0)
    return Session(case.net().eval(), train=case.data, eval=case.data, task=case.task if case.stated else None, measures=("quality", "agreement"), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_task_goes_from_use_through_pruning_and_distillation_to_training(name: str) -> None:
    case = CASES[name]
    own = session(case)
    assert own.task is not None
    assert (own.task.name, own.task.metric) == (case.task, case.metric)
    assert case.metric in own.head.report
    torch.manual_seed(1)
    own.set(teacher=case.net().eval())
    for line in ("prune channels --ratio 0.3", f"distill soft {STEPS}", f"distill hints {STEPS}", f"tune finetune {STEPS}"):
        made = own.run(line)
        assert case.metric in made.report, (line, made.report.notes)
        assert "agreement" in made.report, (line, made.report.notes)


QUANTIZED = {"multilabel": "static", "masks": "static", "regression": "dynamic", "features and logits": "dynamic", "retrieval": "dynamic"}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_task_is_measured_on_a_quantized_version(name: str) -> None:
    made = session(CASES[name]).run(f"quantize {QUANTIZED[name]}")
    assert CASES[name].metric in made.report, made.report.notes
    assert "agreement" in made.report, made.report.notes


@pytest.mark.parametrize(("name", "technique"), [(name, technique) for name, case in CASES.items() for technique in case.refused or ()])
def test_a_technique_that_makes_no_sense_for_a_task_is_refused_with_the_reason(name: str, technique: str) -> None:
    own = session(CASES[name])
    with pytest.raises(KdError, match=(CASES[name].refused or {})[technique]):
        own.run(f"distill {technique} {STEPS}")
    assert len(own.versions) == 1

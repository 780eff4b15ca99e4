"""ROUGE of generated texts."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from kdkit.session.session import Session

transformers = pytest.importorskip("transformers")


class Words:
    """A tokenizer whose texts are the ids themselves."""

    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(token) for token in row if token > 1) for row in ids.tolist()]


def t5() -> Any:
    config = transformers.T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config).eval()


DATA = [{"input_ids": torch.randint(3, 16, (4, 5)), "labels": torch.tensor([[5, 6, -100]] * 4)}]


def test_generated_texts_are_compared_with_the_labels_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    class Scorer:
        def __init__(self, kinds: list[str]):
            assert kinds == ["rougeL"]

        def score(self, true: str, generated: str) -> dict[str, Any]:
            compared.append((true, generated))
            return {"rougeL": SimpleNamespace(fmeasure=0.25)}

    package, module = ModuleType("rouge_score"), ModuleType("rouge_score.rouge_scorer")
    module.RougeScorer = Scorer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rouge_score", package)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", module)
    session = Session(t5(), eval=DATA, tokenizer=Words(), measures=("rouge_l",))
    assert session.head["rouge_l"] == 0.25
    assert [true for true, _ in compared] == ["5 6"] * 4


def test_the_missing_package_is_named_and_other_figures_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    session = Session(t5(), eval=DATA, tokenizer=Words(), measures=("quality", "rouge_l"))
    assert "accuracy" in session.head.report
    assert "pip install 'kdkit[rouge]'" in str(session.status())
    assert Session(t5(), eval=DATA, measures=("quality", "rouge_l")).head.report.notes == ()


def test_the_package_scores_the_generated_texts() -> None:
    pytest.importorskip("rouge_score")
    session = Session(t5(), eval=DATA, tokenizer=Words(), measures=("rouge_l",))
    assert 0 <= session.head["rouge_l"] <= 1

"""Inputs that a model needs and a usual batch does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.input_preparation import DecoderInputs, interleave_pairs
from kdkit.session.adoption import adopt_data
from kdkit.session.session import Session

transformers = pytest.importorskip("transformers")
LABELS = torch.tensor([[5, 6, 7, -100], [8, 9, -100, -100]])
NETS: dict[str, Any] = {
    "T5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0)
    ),
    "BART": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        )
    ),
    "Whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=16, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_source_positions=8, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        )
    ),
}  # fmt: skip


def inputs(name: str) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 4, 16)} if name == "Whisper" else {"input_ids": torch.randint(3, 16, (2, 6))}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_loss_with_derived_decoder_inputs_is_the_models_own(name: str) -> None:
    net, given = NETS[name]().eval(), inputs(name)
    session = Session(net, eval=[{**given, "labels": LABELS}], measures=("quality",))
    with torch.no_grad():
        expected = float(net(**given, labels=LABELS).loss)
    assert session.head["loss"] == pytest.approx(expected, rel=1e-4)


def test_decoder_inputs_that_are_given_stay() -> None:
    given = {**inputs("T5"), "labels": LABELS, "decoder_input_ids": torch.ones(2, 4, dtype=torch.long)}
    assert adopt_data([given], model=NETS["T5"]()).example().kwargs["decoder_input_ids"].tolist() == [[1] * 4] * 2


def test_a_missing_start_token_is_named() -> None:
    net = NETS["T5"]()
    net.config.decoder_start_token_id = None
    with pytest.raises(KdError, match="can't derive decoder inputs from labels") as caught:
        DecoderInputs(net)(Batch(kwargs=inputs("T5"), labels=LABELS))
    assert "decoder_start_token_id" in str(caught.value)


def test_an_encoder_decoder_without_labels_is_refused_with_what_a_batch_needs() -> None:
    with pytest.raises(KdError, match="fails on the first items") as caught:
        Session(NETS["T5"](), eval=[inputs("T5")])
    assert "decoder_input_ids" in str(caught.value)


def test_pairs_with_a_score_become_single_items_for_a_model_with_one_input() -> None:
    data = ((torch.arange(6.0).view(3, 2), torch.arange(6.0, 12.0).view(3, 2)), torch.tensor([0.1, 0.2, 0.3]))
    batch = adopt_data(data, model=nn.Linear(2, 4)).example()
    assert batch.args[0][:, 0].tolist() == [0, 6, 2, 8, 4, 10]
    assert batch.labels.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert adopt_data(data, model=nn.Bilinear(2, 2, 1)).example().size == 3


def test_pairs_keep_their_fields_numbers_and_labels_for_both_items():
    pairs = Batch((torch.arange(2), torch.arange(2) + 10), labels=torch.tensor([0.5, 1.0]), numbers=torch.tensor([3, 4]), fields={"path": ["a.png", "b.png"]})
    items = interleave_pairs(pairs)
    assert items.args[0].tolist() == [0, 10, 1, 11]
    assert items.labels.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert items.numbers.tolist() == [6, 7, 8, 9]
    assert items.fields == {"path": ["a.png", "a.png", "b.png", "b.png"]}
    assert interleave_pairs(Batch(pairs.args)).labels is None

"""Prompted models: against peft's, the outputs of single tokens, padding, generation, and encoders of prompts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit_peft.prompted import Encoder, Prompted
from tests.fixtures import zoo


def prompt(tokens: int = 5, width: int = 32) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_a_language_model_gives_what_pefts_prompt_tuning_gives_at_the_tokens(name):
    from peft import PromptTuningConfig, get_peft_model

    model, inputs = zoo.MODELS[name](), zoo.batch(name).kwargs
    theirs = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    theirs.prompt_encoder["default"].embedding.weight.data = prompt()
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, 5:]
        torch.testing.assert_close(Prompted(model, prompt(), 0)(**inputs).logits, expected)


def test_an_encoder_reads_the_prompt_behind_its_first_token():
    model, inputs = zoo.tiny_bert(), zoo.batch("tiny_bert").kwargs
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    expected = model(inputs_embeds=torch.cat([embedded[:, :1], prompt().expand(8, -1, -1), embedded[:, 1:]], 1)).logits
    types = torch.zeros_like(inputs["input_ids"])
    torch.testing.assert_close(Prompted(model, prompt(), 1)(**inputs, token_type_ids=types).logits, expected)
    states = Prompted(model.bert, prompt(), 1)(**inputs).last_hidden_state
    full = model.bert(inputs_embeds=torch.cat([embedded[:, :1], prompt().expand(8, -1, -1), embedded[:, 1:]], 1)).last_hidden_state
    torch.testing.assert_close(states, torch.cat([full[:, :1], full[:, 6:]], 1))


def test_padding_has_no_influence():
    model = zoo.tiny_bert()
    ids = zoo.batch("tiny_bert").kwargs["input_ids"]
    made = Prompted(model, prompt(), 1)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    other = ids.clone()
    other[:, 8:] = 7
    with torch.no_grad():
        torch.testing.assert_close(made(ids, mask).logits, made(other, mask).logits)
        torch.testing.assert_close(made(ids).logits, made(ids, torch.ones_like(ids)).logits)


def test_generation_continues_as_its_forward_does():
    model = zoo.tiny_llama()
    made = Prompted(model, prompt(), 0).eval()
    ids = zoo.batch("tiny_llama").kwargs["input_ids"][:2, :6]
    expected = ids
    with torch.no_grad():
        for _ in range(5):
            expected = torch.cat([expected, made(expected).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(made.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0), expected)


def test_a_sequence_to_sequence_model_reads_it_in_the_encoder():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)).eval()
    ids, targets = torch.arange(12).view(2, 6), torch.arange(22).view(2, 11)
    made = Prompted(model, prompt(width=16), 0)
    embedded = torch.cat([prompt(width=16).expand(2, -1, -1), model.get_input_embeddings()(ids)], 1)
    given = made(ids, decoder_input_ids=targets).logits
    assert given.shape == (2, 11, 50)
    torch.testing.assert_close(given, model(inputs_embeds=embedded, decoder_input_ids=targets).logits)


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_without_its_encoder_the_outputs_are_the_same(kind):
    torch.manual_seed(0)
    made, inputs = Prompted(zoo.tiny_gpt2(), prompt(), 0, Encoder(kind, 32)), zoo.batch("tiny_gpt2").kwargs
    with torch.no_grad():
        before = made(**inputs).logits
        made.drop_encoder()
        torch.testing.assert_close(made(**inputs).logits, before)
    assert made.encoder is None
    assert isinstance(made.prompt, nn.Parameter)

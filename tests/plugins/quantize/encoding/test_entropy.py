"""encode entropy: every tensor comes back bit for bit, in fewer bytes where values repeat, near Shannon's bound."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit import KdError, Session, Trait
from kdkit.measurement.size import size_bytes
from kdkit.stages.validation import validate_stage
from kdkit_quantize.bit_packing import pack_bits
from kdkit_quantize.encoding.entropy import Entropy
from kdkit_quantize.encoding.entropy_codec import decode, encode
from kdkit_quantize.encoding.symbols import entropy_bits, symbols_of, tensor_of
from tests.fixtures import zoo

CODES = [
    "huffman",
    pytest.param("ans", marks=pytest.mark.skipif(not importlib.util.find_spec("constriction"), reason="constriction is not installed")),
    "zlib",
    "lzma",
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int64)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = (each.contiguous().flatten().view(torch.uint8) for each in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def restored(tensor: torch.Tensor, code: str) -> torch.Tensor | None:
    """The tensor after encoding, a way through JSON, and decoding; None if encoding saves nothing."""
    made = encode(tensor.clone(), code)
    return None if made is None else decode({name: part.clone() for name, part in made[0].items()}, json.loads(json.dumps(made[1])))


@given(some.sampled_from(DTYPES), some.lists(some.integers(1, 9), min_size=1, max_size=3), some.integers(1, 50), some.integers(0, 999))
@settings(deadline=None)
def test_symbols_give_the_tensor_back_bit_for_bit(dtype, shape, different, seed):
    random = torch.Generator().manual_seed(seed)
    tensor = torch.randint(-different, different + 1, shape, generator=random).to(dtype) * (torch.tensor(0.3) if dtype.is_floating_point else 1)
    tensor = tensor.to(dtype)
    assert same_bits(tensor_of(symbols_of(tensor), shape, dtype), tensor)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_few_values_comes_back_bit_for_bit_in_fewer_bytes(code, dtype):
    values = torch.tensor([0.0, -0.0, 1.0, 3.0, math.inf, math.nan] if dtype.is_floating_point else [0, 1, 3, 90]).to(dtype)
    tensor = values[torch.randint(0, len(values), (40, 90), generator=torch.Generator().manual_seed(0))]
    found = restored(tensor, code)
    assert found is not None
    assert same_bits(found, tensor)


@pytest.mark.parametrize("code", CODES)
def test_floats_are_stored_by_planes_and_come_back_bit_for_bit(code):
    tensor = 0.02 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    parts, facts = encode(tensor, code) or ({}, {})
    assert sum(part.nbytes for part in parts.values()) < 0.94 * tensor.nbytes
    assert same_bits(decode(parts, json.loads(json.dumps(facts))), tensor)


@pytest.mark.parametrize("code", CODES[:2])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_integers_take_hardly_more_than_their_entropy(code, bits):
    """The bound is that of the integers, not of the bytes that they are packed in."""
    random = np.random.default_rng(0)
    codes = np.minimum(random.geometric(0.45, (100, 500)) - 1, 2**bits - 1)
    packed = pack_bits(torch.from_numpy(codes.astype(np.uint8)), bits)
    parts, _ = encode(packed, code) or ({}, {})
    taken = 8 * sum(part.nbytes for part in parts.values())
    bound = entropy_bits(codes.flatten())
    assert bound <= taken < bound * (1.12 if code == "huffman" else 1.01) + 8 * 1200
    assert same_bits(restored(packed, code), packed)


@pytest.mark.parametrize("code", CODES)
def test_a_tensor_without_redundancy_or_of_a_few_bytes_is_left_alone(code):
    assert encode(torch.randint(0, 256, (64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), code) is None
    assert encode(torch.zeros(3), code) is None
    assert encode(torch.tensor(1.0), code) is None


def test_it_is_a_valid_stage_that_asks_for_the_library_of_ans_only():
    assert not list(validate_stage(Entropy))
    assert Entropy().required_inputs().names() == []
    assert Entropy(code="ans").required_inputs().names() == ["constriction"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", ["lstm", "tiny_gpt2"])
def test_a_version_is_smaller_on_disk_and_comes_back_bit_for_bit(code, name, tmp_path):
    mine = Session(zoo.MODELS[name](), eval=[zoo.batch(name)], measures=["size"])
    plain = mine.run("encode share --bits 4")
    mine.save(tmp_path / "plain")
    made = mine.run(f"encode entropy --code {code}")
    mine.save(tmp_path / "coded")
    assert made["size"] < plain["size"] == size_bytes(made.model)
    written, before = ((tmp_path / folder / "weights.safetensors").stat().st_size for folder in ("coded", "plain"))
    assert written < before
    loaded = Session.open(tmp_path / "coded").head
    assert Trait.ENCODED in loaded.traits
    states = zip(loaded.model.state_dict().values(), made.model.state_dict().values(), strict=True)
    assert all(same_bits(one, other) for one, other in states)


def test_layers_without_redundancy_are_refused_and_the_session_stays_as_it_was():
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    with pytest.raises(KdError, match="encodes no tensor of head"):
        mine.run("encode entropy --layers head")
    assert mine.head.name == "@base"

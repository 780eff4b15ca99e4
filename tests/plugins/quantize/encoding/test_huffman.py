"""Huffman codes: optimal, free of prefixes, and decoded back."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit_quantize.encoding.huffman import LONGEST, canonical_codes, code_lengths, decode, encode
from kdkit_quantize.encoding.symbols import entropy_bits

COUNTS = some.lists(some.integers(0, 1000), min_size=1, max_size=40).filter(any)


@given(some.lists(some.integers(0, 30), max_size=2000))
@settings(deadline=None)
def test_decoding_undoes_encoding(symbols):
    stream = np.array(symbols, np.int64)
    lengths = code_lengths(np.bincount(stream, minlength=31))
    assert np.array_equal(decode(*encode(stream, lengths), lengths, len(stream)), stream)


@given(COUNTS)
def test_no_code_begins_with_another_one(counts):
    lengths = code_lengths(np.array(counts))
    codes = [f"{int(code):0{int(length)}b}" for code, length in zip(canonical_codes(lengths), lengths, strict=True) if length]
    assert not any(one.startswith(other) for one, other in itertools.permutations(codes, 2))


@given(COUNTS)
def test_the_codes_take_less_than_a_bit_a_symbol_above_the_entropy(counts):
    symbols = np.repeat(np.arange(len(counts)), counts)
    taken = int((code_lengths(np.array(counts)).astype(int) * np.array(counts)).sum())
    assert entropy_bits(symbols) - 1e-6 <= taken <= entropy_bits(symbols) + len(symbols)


@given(some.lists(some.integers(1, 60), min_size=2, max_size=6))
@settings(deadline=None, max_examples=40)
def test_no_other_lengths_of_a_prefix_code_take_fewer_bits(counts):
    best = min(
        sum(length * count for length, count in zip(lengths, counts, strict=True))
        for lengths in itertools.product(range(1, len(counts)), repeat=len(counts))
        if sum(2.0**-length for length in lengths) <= 1
    )
    assert int((code_lengths(np.array(counts)).astype(int) * np.array(counts)).sum()) == best


def test_codes_are_never_longer_than_the_table_of_the_decoder():
    counts = np.array([int(1.7**power) for power in range(40)])
    lengths = code_lengths(counts)
    assert lengths.max() <= LONGEST
    symbols = np.repeat(np.arange(40), np.minimum(counts, 50))
    assert np.array_equal(decode(*encode(symbols, lengths), lengths, len(symbols)), symbols)


def test_a_long_stream_of_many_blocks_is_decoded():
    symbols = np.random.default_rng(0).choice(200, 100_000, p=np.arange(1, 201) / 20100)
    lengths = code_lengths(np.bincount(symbols, minlength=200))
    assert np.array_equal(decode(*encode(symbols, lengths), lengths, len(symbols)), symbols)

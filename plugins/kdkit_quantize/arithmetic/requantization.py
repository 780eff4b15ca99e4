"""Requantization: sums of integer products become integers of the next scale, with integer arithmetic alone.

A layer adds products of 8-bit integers in 32 bits: a sum S stands for S · scale_x · scale_w. Its output q with the scale scale_y is

    q = zero_y + S · M,    M = scale_x · scale_w / scale_y = multiplier · 2^(−shift)

with a multiplier of 24 bits, the precision of float32 (Jacob et al., 2018, section 2.2). onnxruntime computes S · M in float32; what float32
rounds away is rounded here too, so the integers are the same to the bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdkit_quantize.arithmetic.grid import Grid

PRECISION = 24
"""Bits of a float32 number, without its exponent."""


def multiplier_and_shift(factor: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The integers of factor = multiplier · 2^(−shift), exactly as float32 holds it.

    Args:
        factor: positive, of any shape.

    Returns:
        (multiplier, from 2^23 to 2^24 − 1; shift), both of the shape of `factor`.

    Raises:
        ValueError: a factor is not positive, or not finite.

    >>> multiplier_and_shift(0.75)
    (np.int64(12582912), np.int64(24))
    """
    factor = np.asarray(factor, np.float32)
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise ValueError("factors must be positive and finite")
    fraction, exponent = np.frexp(factor.astype(np.float64))
    return (fraction * 2**PRECISION).astype(np.int64), PRECISION - exponent.astype(np.int64)


def requantize(sums: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, zero_point: ArrayLike, grid: Grid) -> NDArray[np.integer]:
    """The integers of the next scale: clamp(round(sum · multiplier · 2^(−shift)) + zero_point), halves to even.

    Args:
        sums: of products and bias, int32, of any shape.
        multiplier, shift, zero_point: of shapes that broadcast against it, such as (channels, 1, 1).
        grid: the integers of the output.

    >>> requantize([100, -100, 1000], *multiplier_and_shift(0.125), 10, Grid(8))
    array([ 22,   0, 135], dtype=uint8)
    """
    product = _to_float_precision(_to_float_precision(np.asarray(sums, np.int64)) * np.asarray(multiplier, np.int64))
    return np.clip(_shift(product, np.asarray(shift, np.int64)) + np.asarray(zero_point, np.int64), grid.lowest, grid.highest).astype(grid.dtype)


def _to_float_precision(integers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round to the nearest integer that float32 can hold."""
    excess = np.maximum(np.frexp(integers.astype(np.float64))[1].astype(np.int64) - PRECISION, 0)
    return _shift(integers, excess) << excess


def _shift(integers: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide by 2^places and round to nearest, halves to even; to the left where places are negative."""
    right = np.clip(places, 0, 62)
    floor, rest, half = integers >> right, integers & ((1 << right) - 1), (1 << right) >> 1
    up = (rest > half) | ((rest == half) & (right > 0) & (floor & 1 == 1))
    return (floor + up) << np.maximum(-places, 0)

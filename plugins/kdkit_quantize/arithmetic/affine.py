"""Affine quantization: a real number x is stored as the integer q of x ≈ scale · (q − zero_point).

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877).
The integers are onnxruntime's to the bit: it divides in float32 and rounds halves to even.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdkit_quantize.arithmetic.grid import Grid


def affine_of(low: ArrayLike, high: ArrayLike, grid: Grid, symmetric: bool = False) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The scale and the zero point with which a range fills a grid; 0 is always one of its points.

    Args:
        low, high: the range, which is widened to contain 0; numbers, or arrays of any one shape.
        grid: the integers.
        symmetric: widen the range to ±max(|low|, |high|), so that the zero point is the middle of the grid.

    Returns:
        (scale, float32; zero point, of the grid's type), both of the shape of `low`.

    >>> affine_of(-1.0, 3.0, Grid(8))
    (array(0.01568628, dtype=float32), array(64, dtype=uint8))
    >>> affine_of(-1.0, 3.0, Grid(8, signed=True, narrow=True), symmetric=True)
    (array(0.02362205, dtype=float32), array(0, dtype=int8))
    """
    low, high = (np.asarray(np.asarray(each, np.float32), np.float64) for each in (low, high))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = (high - low) / grid.steps
    empty = scale < np.finfo(np.float32).tiny
    scale = np.where(empty, 1.0, scale)
    middle = np.round((grid.lowest + grid.highest) / 2)
    zero = np.where(empty, np.clip(0, grid.lowest, grid.highest), middle if symmetric else np.round(grid.lowest - low / scale))
    return scale.astype(np.float32), zero.astype(grid.dtype)


def quantize(values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, grid: Grid) -> NDArray[np.integer]:
    """The integers of real numbers: clamp(round(x / scale) + zero_point), halves to even.

    Args:
        values: of any shape; they are taken as float32.
        scale, zero_point: of a shape that broadcasts against it, such as (channels, 1, 1, 1) for a scale for each channel.
        grid: the integers; what is outside gets its nearest end.

    >>> quantize([-1.0, 0.0, 0.4, 9.0], 0.5, 2, Grid(4))
    array([ 0,  2,  3, 15], dtype=uint8)
    """
    rounded = np.round(np.asarray(values, np.float32) / np.asarray(scale, np.float32)) + np.asarray(zero_point, np.float32)
    return np.clip(rounded, grid.lowest, grid.highest).astype(grid.dtype)


def dequantize(integers: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.float32]:
    """The real numbers that integers stand for: scale · (q − zero_point).

    >>> dequantize([0, 2, 3, 15], 0.5, 2)
    array([-1. ,  0. ,  0.5,  6.5], dtype=float32)
    """
    return (np.asarray(integers, np.int32) - np.asarray(zero_point, np.int32)).astype(np.float32) * np.asarray(scale, np.float32)

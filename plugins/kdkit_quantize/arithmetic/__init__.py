"""The arithmetic of quantization: grids of integers, scale and zero point, integer products, observers and clipping."""

from kdkit_quantize.arithmetic.affine import affine_of, dequantize, quantize
from kdkit_quantize.arithmetic.clipping import METHODS, choose_range, entropy_threshold
from kdkit_quantize.arithmetic.grid import Grid
from kdkit_quantize.arithmetic.observers import Histogram, Range
from kdkit_quantize.arithmetic.requantization import multiplier_and_shift, requantize

__all__ = ["METHODS", "Grid", "Histogram", "Range", "affine_of", "choose_range", "dequantize", "entropy_threshold", "multiplier_and_shift", "quantize", "requantize"]

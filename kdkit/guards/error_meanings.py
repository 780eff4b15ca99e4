"""Error meanings: known messages of torch and onnxruntime in plain words."""

from __future__ import annotations

import dis
import re
from types import TracebackType

from kdkit.errors import read_message

_SIZE = r"[\[(]?([\d, x]*\d)[\])]?"

_MEANINGS: tuple[tuple[str, str], ...] = (
    (r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)", "a linear layer expects {3} features and receives {2}"),
    (r"weight of size .*, expected input.* to have (\d+) channels, but got (\d+) channels", "a convolution expects {1} channels and receives {2}"),
    (r"Given normalized_shape=\[([\d, ]+)\].* but got input of size\s?\[([\d, ]+)\]", "a layer norm expects a last axis of {1} and receives ({2})"),
    (r"running_mean should contain (\d+) elements not (\d+)", "a batch norm expects {2} channels and receives {1}"),
    (r"more than 1 value per channel", "a batch norm can't train on a batch of one item"),
    (r"[Ii]ndex out of range in self|out of bounds.*[Gg]ather|indices element out of data bounds", "an id is larger than the table that it selects from"),
    (r"index (-?\d+) is out of bounds for (?:dimension|axis) \d+ with size (\d+)", "a part is selected at position {1} of an axis of size {2}"),
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", "two tensors of sizes {1} and {2} do not fit each other"),
    (rf"shape '{_SIZE}' is invalid for input of size (\d+)", "{2} values can't be reshaped to ({1})"),
    (r"Sizes of tensors must match except in dimension", "tensors of different sizes are concatenated"),
    (r"Calculated padded input size per channel|Kernel size can't be greater|[Oo]utput size is too small", "an image or sequence is smaller than the kernel of a layer"),
    (
        r"expected (?:m1 and m2|mat1 and mat2|scalar type).*|have (?:different|the same) dtype|Input type .* and (?:weight|bias) type",
        "the inputs and the weights have different dtypes",
    ),
    (r"Expected all tensors to be on the same device", "the inputs and the weights are on different devices"),
    (r"not implemented for '(\w+)'", "an operation does not exist for the dtype {1}"),
    (r"out of memory|can't allocate memory|bad_alloc|Failed to allocate", "there is too little memory"),
    (r"does not require grad|backward through the graph a second time", "the outputs do not depend on trainable weights"),
    (r"[Cc]heckpoint(?:ing)? is (?:not compatible|incompatible) with \.grad", "gradient checkpointing with use_reentrant=True allows only one backward pass"),
    (r"NaNs detected in the merged weights", "the merged weights are not finite"),
    (r"modified by an inplace operation", "a tensor that the gradient needs is overwritten in place"),
    (r"data-dependent|Could not guard|could not extract specialized|Dynamic control flow|GuardOnDataDependent", "forward branches on the values of a tensor"),
    (r"No ONNX function found for <OpOverload\(op='([\w.:]+)'|No decompositions? (?:registered )?for .*?'([\w.:]+)'", "its operation {1} has no ONNX form"),
    (r"Duplicate definition of name \((.*?)\)", "two of its values have the name {1}"),
    (r"running (\w+) node\. Name:'(?:([^'/]+)/)?[^']*'", "its operator {1} does not accept inputs of these sizes or values"),
    (r"NOT_IMPLEMENTED.*?for (?:the node )?(\w+)", "this onnxruntime can't run its operator {1}"),
    (r"'(\w+)' object has no attribute '(\w+)'", "{1} has no attribute {2}"),
    (r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'", "{1} takes no argument {2}"),
    (r"([\w.]+)\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.*)", "{1} lacks its argument {2}"),
    (r"'(\w+)' object is not (callable|subscriptable|iterable)", "a value of type {1} is not {2}"),
    (r"(?:too many|not enough) values to unpack \(expected (?:at least )?(\d+)", "a number of values other than {1} is unpacked into {1} names"),
    (r"cannot (?:pickle|deepcopy) '?([\w.]+)'? object", "it holds a {1}, which can't be copied"),
    (r"I/O error: (.*?) \(os error", "{1}"),
    (r"[Hh]eader ?[Tt]oo|[Ii]nvalid ?[Hh]eader|[Ii]ncomplete ?(?:metadata|[Bb]uffer)|[Ii]nvalid ?[Oo]ffset|deserializing header", "its header does not fit its contents"),
    (r"share memory|shared tensors", "two tensors share memory"),
    (r"INVALID_PROTOBUF|Protobuf parsing failed|Error parsing message", "it is not a complete ONNX file"),
    (r"invalid model|INVALID_GRAPH|Load model .* failed", "its graph is not valid"),
)
"""(what a message contains, what it means); {n} is a group of the pattern."""


_LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch_pruning", "numpy", "safetensors", "accelerate")


def is_library(module: str) -> bool:
    """Whether a module belongs to a library whose messages are replaced."""
    return module.partition(".")[0] in _LIBRARIES


def innermost(error: BaseException) -> TracebackType | None:
    """The innermost entry of an error's traceback; None if it was not raised."""
    end = error.__traceback__
    while end is not None and end.tb_next is not None:
        end = end.tb_next
    return end


def is_raised_outside_libraries(error: BaseException) -> bool:
    """Whether a `raise` statement outside of the libraries raised an error, so that its words are the author's."""
    end = innermost(error)
    return (
        end is not None and not is_library(str(end.tb_frame.f_globals.get("__name__", ""))) and dis.opname[end.tb_frame.f_code.co_code[end.tb_lasti]] == "RAISE_VARARGS"
    )


def known_meaning(error: BaseException) -> str:
    """What a library's message means, in plain words; empty if it is not known, or if the words are the author's own.

    >>> known_meaning(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x4 and 3x1)"))
    'a linear layer expects 3 features and receives 4'
    """
    if is_raised_outside_libraries(error):
        return ""
    text = read_message(error)
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text, re.DOTALL):
            return meaning.format(found[0], *(group or "" for group in found.groups()))
    return ""

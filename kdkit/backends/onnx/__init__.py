"""ONNX: export, graph, signature, and the model that runs it."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "export": ["to_onnx"],
        "graph": ["PACKED_OPERATORS", "every_name", "module_of", "numel", "packed_of", "rename_tensors", "shorten_names", "tidy", "untie_transposed", "weights_of"],
        "model": ["OnnxModel", "open_session"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

"""Models: copy, evaluate, inspect and select layers of any `nn.Module`."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "traits": ["Trait", "in_words", "traits_of", "untouchable"],
        "computed_weights": ["ComputedTensor", "computed_tensors"],
        "copies": ["private_copy"],
        "derived_inputs": ["derive_inputs"],
        "export_forms": ["has_export_forms", "in_export_forms"],
        "evaluation": ["device_of", "evaluating", "frozen"],
        "function_model": ["FunctionModel"],
        "layer_selection": ["select_layers"],
        "layer_usage": ["Usage", "linear_kinds", "trace_layer_usage"],
        "output_comparison": ["find_difference", "rounding_tolerance"],
        "stored_form": ["Storage"],
        "trial_call": ["failure", "try_call"],
        "other_weights": ["weights_elsewhere"],
        "wrappers": ["unwrap_model", "unwrap_parts"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

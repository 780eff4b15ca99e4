"""Guards: process state that is restored after a block, also after an interrupt."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "cleanup": ["always_run"],
        "error_words": ["explain_error"],
        "random_state": ["random_state_kept", "seeded"],
        "torch_modes": ["gradients_off", "without_gradients"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

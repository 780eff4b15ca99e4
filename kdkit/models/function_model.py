"""A function as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kdkit.data.tensors import as_tensor
from kdkit.errors import KdError
from kdkit.guards import explain_error


class FunctionModel(nn.Module):
    """A module that calls a function with a batch's inputs and returns its logits, such as a teacher on a server.

    The function may have an attribute `kdkit_identity`: a text that the user changes when the function's answers change.

    >>> FunctionModel(lambda x: x.tolist(), "far")(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, ask: Callable, name: str = "teacher"):
        super().__init__()
        self.ask, self.name = ask, name
        self.kdkit_identity = getattr(ask, "kdkit_identity", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function: it returns tensors, arrays or lists with one row per item, or the output object of a model.

        Raises:
            KdError: the function fails, or returns something other than numbers with one row per item.
        """
        title = f"the {'' if self.name == 'teacher' else 'teacher '}{self.name}, a function,"
        inputs = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
        try:
            answer = self.ask(*args, **kwargs)
        except KdError:
            raise
        except Exception as error:
            raise KdError(
                f"{title} failed: {explain_error(error, getattr(self.ask, '__module__', None) or '')}",
                "it is called with a batch's inputs, and must return logits, one row per item",
            ) from error
        if isinstance(answer, Mapping) or hasattr(answer, "logits"):
            return answer
        logits = as_tensor(answer, f"{title} gave")
        if inputs and (not logits.ndim or len(logits) != len(inputs[0])):
            raise KdError(f"{title} gave {tuple(logits.shape)} for {len(inputs[0])} items", "it must return one row of logits per item")
        return logits.to(inputs[0].device) if inputs else logits

"""Tasks: the loss and the metrics of a model's outputs on a batch.

A task returns losses without reduction: one per item, (batch,), or one per token, (batch, tokens), and a mask of the elements
that count. Means are over these elements, so padding and the batch size do not change a figure.
"""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "task": ["IGNORED", "Call", "Task", "at_least_float32"],
        "answers": ["Answer", "choose_answer", "main_tensor", "output_tensors"],
        "boxes": ["assign", "iou"],
        "classification": ["CausalLM", "Classification", "MultiLabel", "TokenClassification", "cross_entropy"],
        "ctc": ["CTC"],
        "custom": ["LOWER"],
        "detection": ["Detection"],
        "inference": ["infer_task", "with_answer"],
        "segmentation": ["Segmentation"],
        "sequence_to_sequence": ["SequenceToSequence"],
        "regression": ["Embedding", "Regression", "cosine", "mean_pooled", "nearest"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

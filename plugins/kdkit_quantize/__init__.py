"""quantize: weights and activations in fewer bits."""

from kdkit import hookimpl

kdkit_classes = {"PackedWeight": ["kdkit_quantize.packed_weight:PackedWeight"]} | {
    name: [f"kdkit_quantize.packed_layers:{name}"]
    for name in ("PackedLinear", "PackedTransposedLinear", "PackedEmbedding", "PackedConv1d", "PackedConv2d", "PackedConv3d")
}
"""The classes that saved folders name."""


@hookimpl
def kdkit_stages():
    """The stages of this family."""
    from kdkit_quantize.binary import Binary
    from kdkit_quantize.dynamic import Dynamic
    from kdkit_quantize.equalize import Equalize
    from kdkit_quantize.static import Static
    from kdkit_quantize.ternary import Ternary
    from kdkit_quantize.weights import Weights

    return [Dynamic, Static, Equalize, Weights, Binary, Ternary]


@hookimpl
def kdkit_views():
    """How a quantized layer computes."""
    from kdkit_quantize.explain_view import Explain

    return [Explain]

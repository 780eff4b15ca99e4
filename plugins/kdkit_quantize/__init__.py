"""quantize: weights and activations in fewer bits; encode: files without redundancy."""

from kdkit import hookimpl

kdkit_classes = {"PackedWeight": ["kdkit_quantize.packed_weight:PackedWeight"], "SharedWeight": ["kdkit_quantize.encoding.shared_weight:SharedWeight"]} | {
    name: [f"kdkit_quantize.packed_layers:{name}"]
    for name in ("PackedLinear", "PackedTransposedLinear", "PackedEmbedding", "PackedConv1d", "PackedConv2d", "PackedConv3d")
}
"""The classes that saved folders name."""


@hookimpl
def kdkit_stages():
    """The stages of this family."""
    from kdkit_quantize.binary import Binary
    from kdkit_quantize.dynamic import Dynamic
    from kdkit_quantize.encoding.entropy import Entropy
    from kdkit_quantize.encoding.share import Share
    from kdkit_quantize.equalize import Equalize
    from kdkit_quantize.half import Half
    from kdkit_quantize.qat import Qat
    from kdkit_quantize.static import Static
    from kdkit_quantize.ternary import Ternary
    from kdkit_quantize.weights import Weights

    return [Dynamic, Static, Equalize, Qat, Weights, Binary, Ternary, Half, Share, Entropy]


@hookimpl
def kdkit_views():
    """How a quantized layer computes."""
    from kdkit_quantize.explain_view import Explain

    return [Explain]


@hookimpl
def kdkit_codecs():
    """How encoded weights are stored."""
    from kdkit.storage import Codec
    from kdkit_quantize.encoding.entropy_codec import decode, encode

    return [Codec("entropy", encode, decode)]

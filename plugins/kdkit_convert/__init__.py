"""convert: the same model in another form."""

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    """The stages of this family."""
    from kdkit_convert.onnx import Onnx

    return [Onnx]

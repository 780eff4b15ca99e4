"""quantize: weights and activations in fewer bits."""

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    """The stages of this family."""
    from kdkit_quantize.dynamic import Dynamic
    from kdkit_quantize.static import Static

    return [Dynamic, Static]

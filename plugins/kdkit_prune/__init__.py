"""kdkit's prune family: removing what a model can do without."""

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    from kdkit_prune.channels import Channels

    return [Channels]

"""kdkit's prune family: remove parts of a model that it does not need."""

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    from kdkit_prune.channels import Channels

    return [Channels]

"""What all tests share: one thread, and stages of the test's own that go away with it."""

import pytest
import torch

from kdkit.plugins import manager

collect_ignore_glob = ["broken/*", "stranger/*"]
"""Distributions that tests install; not modules of ours."""

torch.set_num_threads(1)


@pytest.fixture
def offered():
    """Offer stages from a test, as a notebook cell would; they are taken back afterwards."""
    notebook = manager().get_plugin("notebook")
    before = dict(notebook.stages)

    def offer(*stages):
        for stage in stages:
            manager().offer(stage)
        return stages[0] if len(stages) == 1 else stages

    yield offer
    notebook.stages = before
    manager().forget()

"""The decorators of cells: a function or a class becomes a stage, or is refused with what to write instead."""

import pytest
import torch

from kdkit import KdError, param
from kdkit.plugins.decorators import stage
from kdkit.plugins.manager import manager


def test_a_function_in_a_cell_is_a_stage_and_running_the_cell_again_replaces_it(offered):
    for default in (0.1, 0.2):

        @stage("prune.test-cell")
        def cell(model, context, *, share: float = param(default, "share", ge=0, le=1)):
            """Do something."""

    assert manager().stage("prune.test-cell")().share == 0.2
    assert cell(share=0.5).line() == "prune test-cell --share 0.5"
    with pytest.raises(KdError, match="--share 2"):
        cell.build("prune test-cell", {"share": 2})


def test_a_cell_can_not_take_an_installed_id(offered):
    with pytest.raises(KdError, match=r"prune\.channels is offered by kdkit .* \(prune\) already"):

        @stage("prune.channels")
        def mine(model, context):
            """Mine."""


def test_a_parameter_without_a_type_is_refused_by_name(offered):
    with pytest.raises(KdError, match="cell: share has no type"):

        @stage("prune.test-cell")
        def cell(model, context, *, share=0.1):
            """Do something."""


def test_parameters_need_not_be_keyword_only(offered):
    @stage("prune.test-cell")
    def cell(model, context, share: float = 0.1):
        """Do something."""

    assert cell(share=0.5).line() == "prune test-cell --share 0.5"


def no_context(model):
    """Do something."""


def anything(model, context, **options):
    """Do something."""


def takes_a_ratio_for_the_context(model, ratio: float = 0.3):
    """Do something."""


def takes_version(model, context, *, version: int = 3):
    """Do something."""


def takes_tensor(model, context, *, scale: torch.Tensor = None):
    """Do something."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_context, r"no_context\(model\) is not the form of a stage"),
        (anything, r"anything\(model, context, \*\*options\) is not the form of a stage"),
        (takes_a_ratio_for_the_context, "is not the form of a stage"),
        (takes_version, "takes_version: a parameter can't be named version"),
        (takes_tensor, "takes_tensor: Unable to generate pydantic-core schema for <class 'torch.Tensor'>"),
    ],
)
def test_a_function_that_can_be_no_stage_is_refused_with_the_reason(offered, function, message):
    with pytest.raises(KdError, match=message) as caught:
        stage("prune.test-cell")(function)
    assert caught.value.hints

"""Each check finds its defect, and only that: more than fifty stages that are wrong in one way each."""

import pytest

from kdkit.testing import behaviour_checks, check_stage
from kdkit.testing.catalogue import CHECKS
from tests.fixtures.defects import DEFECTS, ByLayer, Narrow, Scale

pytestmark = pytest.mark.slow

ON = ["mlp"]


@pytest.mark.parametrize("stage", [Scale, Narrow, ByLayer])
def test_the_stages_that_the_defects_are_made_of_conform(stage):
    assert repr(check_stage(stage, models=ON)) == f"{stage.id.replace('.', ' ')}: 17 of 17 checks hold; ran on mlp"


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_its_check_and_by_no_other(name, monkeypatch):
    stage, expected = DEFECTS[name]
    if name == "Deaf":
        monkeypatch.setattr(behaviour_checks, "CANCEL_S", 0.05)
    report = check_stage(stage, models=ON)
    assert report.failed == (expected,), repr(report)


def test_every_check_has_a_defect_that_it_finds():
    assert {check for _, check in DEFECTS.values()} == {check.name for check in CHECKS}

"""Every stage that comes with kdkit keeps its word, as a stranger's must.

`make test` tries each technique of distillation on a third of the zoo, so that each model is tried by a third of them and with each
model by what all of them share; `make soak` tries each on all models.
"""

import pytest

from kdkit.models.traits import Trait
from kdkit.plugins.manager import manager
from kdkit.testing import behaviour_checks, conformance, zoo
from tests.fixtures.thoroughness import SOAK

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """An export is one call of torch's, of 0.8 s on an idle core, and tests may share a slow one."""
    monkeypatch.setattr(behaviour_checks, "CANCEL_S", 5.0)


THIRDS = (["cnn", "lstm", "tiny_bert"], ["mlp", "depthwise", "tiny_gpt2"], ["mlp", "two_heads", "tiny_llama"])
OF_THE_FIRST = {"distill.distilbert", "distill.review"}
"""Techniques that no model of the other thirds suits."""

OURS = [stage for id, stage in manager().stages().items() if manager().provider(id).distribution == "kdkit"]
EXPORTING = [stage for stage in OURS if Trait.ONNX in stage.adds]
EXPORTED = [stage for stage in OURS if Trait.ONNX in stage.requires]
DISTILLING = [stage for stage in OURS if stage.id.startswith("distill.")]
OTHERS = [stage for stage in OURS if stage not in (*EXPORTING, *EXPORTED, *DISTILLING)]


def third(number: int) -> list:
    return [stage for index, stage in enumerate(DISTILLING) if (0 if stage.id in OF_THE_FIRST else index % 3) == number]


test_conformance = conformance(*OTHERS)
test_conformance_of_one_third = conformance(*third(0), models=None if SOAK else THIRDS[0])
test_conformance_of_another_third = conformance(*third(1), models=None if SOAK else THIRDS[1])
test_conformance_of_the_last_third = conformance(*third(2), models=None if SOAK else THIRDS[2])

# an export takes seconds, and tests/backends/onnx exports the whole zoo
test_conformance_of_exports = conformance(*EXPORTING, models=["mlp", "cnn"] if SOAK else ["cnn"])
test_conformance_of_what_was_exported = conformance(*EXPORTED, models=["mlp", "cnn", "lstm", "tiny_gpt2"] if SOAK else ["mlp", "cnn"])


def test_none_is_left_out():
    tried = [stage for part in (OTHERS, third(0), third(1), third(2), EXPORTING, EXPORTED) for stage in part]
    assert sorted(stage.id for stage in tried) == sorted(stage.id for stage in OURS)
    assert len(OURS) >= 36
    assert {name for names in THIRDS for name in names} == set(zoo.MODELS)
    assert {stage.id for stage in (*EXPORTING, *EXPORTED)} == {"convert.onnx", "quantize.dynamic", "quantize.qat", "quantize.static"}

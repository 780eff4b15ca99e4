"""Every stage that comes with kdkit keeps its word, as a stranger's must."""

import pytest

from kdkit.contract import Trait
from kdkit.plugins import manager
from kdkit.testing import checks, conformance


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """An export is one call of torch's, of 0.8 s on an idle core, and tests may share a slow one."""
    monkeypatch.setattr(checks, "CANCEL_S", 5.0)


OURS = [stage for id, stage in manager().stages().items() if manager().provider(id).distribution == "kdkit"]
EXPORTING = [stage for stage in OURS if Trait.ONNX in stage.adds]
EXPORTED = [stage for stage in OURS if Trait.ONNX in stage.requires]

test_conformance = conformance(*(stage for stage in OURS if stage not in (*EXPORTING, *EXPORTED)))

# an export takes seconds, and test_backends.py exports the whole zoo
test_conformance_of_exports = conformance(*EXPORTING, models=["mlp", "cnn"])
test_conformance_of_what_was_exported = conformance(*EXPORTED, models=["mlp", "cnn", "lstm", "tiny_gpt2"])


def test_none_is_left_out():
    assert len(OURS) >= 36
    assert {stage.id for stage in (*EXPORTING, *EXPORTED)} == {"convert.onnx", "quantize.dynamic", "quantize.static"}

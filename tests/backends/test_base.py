"""The backends that kdkit offers."""

import sys

import pytest

from kdkit.plugins.builtin import Backends


def test_four_backends_are_offered():
    assert [backend.name for backend in Backends().kdkit_backends()] == ["cpu", "cpu-bf16", "cuda", "int8"]


@pytest.mark.slow
def test_importing_the_backends_imports_neither_onnx_nor_onnxruntime():
    import subprocess

    code = "import sys, kdkit.backends.onnxruntime, kdkit.backends.torch; print(sorted({'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

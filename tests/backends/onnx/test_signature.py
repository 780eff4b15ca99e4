"""Signatures: the inputs and outputs of an exported model as data."""

import json

import pytest
import torch

from kdkit.backends.onnx.signature import Signature, build_output, describe_output


@pytest.mark.parametrize("output", [torch.ones(2), (torch.ones(1), None), [torch.ones(1), {"a": torch.zeros(2)}], {"x": (torch.ones(1),)}])
def test_an_output_is_built_again_from_its_description(output):
    tree, leaves = describe_output(output)
    assert str(build_output(json.loads(json.dumps(tree)), leaves)) == str(output)


def test_a_signature_survives_json():
    signature = Signature(("a", "b"), ("a",), ("b",), {"flag": True}, {"tuple": [0, None]})
    assert Signature.read(json.loads(json.dumps(signature.facts()))) == signature

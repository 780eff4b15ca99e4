"""ONNX files keep their data in their own folder, or are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdkit import KdError
from kdkit.backends.onnx.files import read_onnx
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import Signature

NUMBERS = np.arange(4, dtype=np.float32)


def graph(**external: str) -> onnx.ModelProto:
    """x + weight, where the weight is stored in another file if there are facts about it."""
    weight = numpy_helper.from_array(NUMBERS, "weight")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def written(folder: Path, **external: str) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(graph(**external).SerializeToString())
    return path


def test_data_in_the_folder_is_put_into_the_graph(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1234" + NUMBERS.tobytes())
    content = read_onnx(written(tmp_path, location="weights.bin", offset="4", length="16"))
    assert numpy_helper.to_array(onnx.load_model_from_string(content).graph.initializer[0]).tolist() == NUMBERS.tolist()


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret", "inner/../../secret", "./secret", "", "link", "linked/secret", "missing"])
def test_data_elsewhere_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(NUMBERS.tobytes())
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(KdError, match="the tensor 'weight' is stored"):
        read_onnx(written(folder, location=place, length="16"))


@pytest.mark.parametrize("facts", [{"offset": "-4"}, {"offset": "8"}, {"length": "99"}, {"offset": "x"}, {"offset": str(2**70)}])
def test_data_beyond_its_file_is_refused(facts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(NUMBERS.tobytes())
    with pytest.raises(KdError, match="the tensor 'weight' is stored"):
        read_onnx(written(tmp_path, **({"location": "weights.bin", "length": "16"} | facts)))


def test_a_model_from_bytes_holds_all_its_data(tmp_path: Path) -> None:
    signature = Signature(("x",), ("x",))
    assert OnnxModel(graph().SerializeToString(), signature).kdkit_parameters() == 4
    with pytest.raises(KdError, match="is stored in another file"):
        OnnxModel(graph(location="/etc/passwd").SerializeToString(), signature)


@pytest.mark.parametrize("facts", [{}, {"signature": 5, "packed": True, "without": []}, {"signature": {}, "packed": False, "without": []}, None])
def test_facts_of_another_type_are_one_error(facts: object, tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(KdError, match="signature|facts"):
        OnnxModel.kdkit_load(tmp_path, facts)  # type: ignore[arg-type]


def test_inputs_and_outputs_that_the_graph_lacks_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    good = Signature(("x",), ("x",)).facts() | {"parameters": ["x"], "inputs": ["x"], "unused": []}
    assert OnnxModel.kdkit_load(tmp_path, {"signature": good, "packed": False, "without": []})
    for change in ({"inputs": ["z"]}, {"output": {"tuple": [0, 1]}}, {"output": {"tuple": 5}}, {"output": {"dict": {"a": -1}}}):
        with pytest.raises(KdError, match="the graph has the inputs|the signature's output"):
            OnnxModel.kdkit_load(tmp_path, {"signature": good | change, "packed": False, "without": []})


def sharing(folder: Path, dims: list[int], count: int, **facts: str) -> Path:
    """A graph with tensors that are all stored in the same bytes of one file."""
    made = graph()
    for number in range(count):
        tensor = made.graph.initializer.add(name=f"t{number}", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in ({"location": "weights.bin"} | facts).items():
            tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(bytes(4096))
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    return folder / "model.onnx"


def test_tensors_that_share_bytes_take_no_more_than_their_file(tmp_path: Path) -> None:
    assert read_onnx(sharing(tmp_path, [512], 2, offset="0"))
    with pytest.raises(KdError, match=r"the tensors in weights.bin take more bytes than it has"):
        read_onnx(sharing(tmp_path, [512], 1000, offset="0"))


@pytest.mark.parametrize(
    ("dims", "facts"),
    [
        ([4], {"length": "4"}),
        ([2**40], {"length": "16"}),
        ([2**40, 0], {"length": "16"}),
        ([4], {"length": "١٦"}),
        ([4], {"length": "1_6"}),
        ([4], {"length": "16", "offset": "9" * 5000}),
        ([-4], {}),
    ],
)
def test_a_tensor_whose_bytes_are_not_those_of_its_shape_is_refused(dims: list[int], facts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KdError, match=r"the tensor 't0' is stored") as caught:
        read_onnx(sharing(tmp_path, dims, 1, **facts))
    assert len(caught.value.message) < 1000


def test_texts_are_not_read_from_another_file(tmp_path: Path) -> None:
    made = graph()
    tensor = made.graph.initializer.add(name="t", data_type=TensorProto.STRING, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(KdError, match="its elements have no fixed size"):
        read_onnx(tmp_path / "model.onnx")


def test_a_graph_is_a_file_of_its_own_folder(tmp_path: Path) -> None:
    inside = tmp_path / "m"
    inside.mkdir()
    written(tmp_path)
    (inside / "model.onnx").symlink_to(tmp_path / "model.onnx")
    (inside / "pipe.onnx").parent.mkdir(exist_ok=True)
    os.mkfifo(inside / "pipe.onnx")
    for name in ("model.onnx", "pipe.onnx", "missing.onnx"):
        with pytest.raises(KdError, match="is missing, is no file, or is a link"):
            read_onnx(inside / name)

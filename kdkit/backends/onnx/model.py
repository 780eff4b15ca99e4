"""An ONNX graph as a torch module: it is called like the exported model, and onnxruntime runs it on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdkit.backends.onnx.constants import check_constants, check_expansion
from kdkit.backends.onnx.files import check_self_contained, parse_onnx, read_onnx
from kdkit.backends.onnx.graph import PACKED_OPERATORS, count_macs, count_weights, weights_of
from kdkit.backends.onnx.runs import BYTES, RunTooLarge, is_limited, limit_memory, run_session
from kdkit.backends.onnx.signature import Signature, build_output, count_outputs
from kdkit.data import Batch
from kdkit.errors import KdError, brief
from kdkit.guards import explain_error
from kdkit.models.traits import Trait
from kdkit.parameters.schema import OpenRecord, read_as

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16, "tensor(bool)": torch.bool, "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8, "tensor(int16)": torch.int16, "tensor(int32)": torch.int32, "tensor(int64)": torch.int64,
}  # fmt: skip


class _Facts(OpenRecord):
    signature: dict[str, Any]
    packed: bool
    without: list[str]


_FACTS = TypeAdapter(_Facts)

FATAL = 4
"""The level of onnxruntime's logger that lets no line through."""


class OnnxModel(nn.Module):
    """An ONNX graph with the call and the output structure of the model that it was exported from.

    Args:
        onnx: the serialized graph.
        signature: its inputs and the structure of its output.
        packed: whether it has 8-bit weights.
        without: names of onnxruntime's graph optimizers to disable, such as "SkipLayerNormFusion".

    Raises:
        KdError: the graph keeps tensors in other files.

    It has no torch parameters. Its session opens at the first call, with as many threads as torch uses, and again if that number
    changes. Copies share the graph's bytes. Outputs are tensors on the device of the inputs.
    """

    def __init__(self, onnx: bytes, signature: Signature, packed: bool = False, without: tuple[str, ...] = ()):
        super().__init__()
        if b"location" in onnx:  # the key under which a tensor names its file; a search is faster than parsing the graph
            check_self_contained(onnx, "the graph")
        self.onnx, self.signature, self.packed, self.without = onnx, signature, packed, tuple(without)
        self._session: InferenceSession | None = None
        self._threads = 0
        self.eval()

    @property
    def kdkit_traits(self) -> frozenset[Trait]:
        """Its traits: a graph can't be trained or pruned. One with blocks of packed integers can still be quantized in 8 bits elsewhere."""
        kinds = {Trait.PACKED_WEIGHTS} if self.packed else {Trait.FLOAT_WEIGHTS} | ({Trait.PACKED_WEIGHTS} if self._has_blocks else set())
        return frozenset({Trait.ONNX, *kinds})

    @functools.cached_property
    def _has_blocks(self) -> bool:
        named = any(name.encode() in self.onnx for name in PACKED_OPERATORS)  # a search is faster than parsing the graph
        return named and any(node.op_type in PACKED_OPERATORS for node in self.graph().graph.node)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            KdError: an input doesn't fit; the message names it.
        """
        bound, session = self.signature.bind(args, kwargs), self.session
        values = self._run(session, None, {name: self._feed(name, tensor, session) for name, tensor in bound.items()})
        device = next(iter(bound.values())).device if bound else torch.device("cpu")
        return build_output(self.signature.output, [torch.from_numpy(value).to(device) for value in values])

    def feeds(self, batch: Batch) -> dict[str, np.ndarray]:
        """A batch as the inputs of the graph, by name.

        Raises:
            KdError: the batch doesn't fit.
        """
        session = self.session
        return {name: self._feed(name, tensor, session) for name, tensor in self.signature.bind(batch.args, batch.kwargs).items()}

    @property
    def session(self) -> InferenceSession:
        """The open session; a new one in a block of `limit_runs`, for a graph that leaves it memory."""
        if is_limited() and 4 * len(self.onnx) < BYTES:
            return open_session(self.onnx, self.without, limited=True)
        if self._session is None or self._threads != torch.get_num_threads():
            self._session, self._threads = open_session(self.onnx, self.without), torch.get_num_threads()
        return self._session

    def close(self) -> None:
        """Close the session and its threads; the next call opens a new one."""
        self._session = None

    def graph(self) -> ModelProto:
        """The graph, parsed; a new one each time."""
        return parse_onnx(self.onnx, "the model")

    def kdkit_parameters(self) -> int:
        """The number of elements of its weights."""
        return sum(count_weights(self.graph()).values())

    def kdkit_size_bytes(self) -> int:
        """The bytes of the graph on disk."""
        return len(self.onnx)

    def kdkit_layers(self) -> list[tuple[str, str, int, int]]:
        """Its weights: name, the operator that uses it with its dimensions, elements, bytes."""
        graph = self.graph()
        user = {name: node.op_type for node in reversed(graph.graph.node) for name in node.input}
        weights, counts = weights_of(graph), count_weights(graph)
        return [(each.name, f"{user.get(each.name, '')} {' x '.join(map(str, each.dims))}".strip(), counts[each.name], each.ByteSize()) for each in weights]

    def kdkit_macs(self, batch: Batch) -> int:
        """Multiply-accumulates of one call on `batch`."""
        feeds = self.feeds(batch)
        return count_macs(self.graph(), lambda content, names: self._run(open_session(content, optimize=False), names, feeds))

    def kdkit_save(self, folder: str | Path) -> dict[str, Any]:
        """Write `model.onnx` to a folder, and return the JSON facts that `kdkit_load` needs besides it."""
        Path(folder, "model.onnx").write_bytes(self.onnx)
        return {"signature": self.signature.facts(), "packed": self.packed, "without": list(self.without)}

    @classmethod
    def kdkit_load(cls, folder: str | Path, facts: Mapping[str, Any]) -> OnnxModel:
        """The model that `kdkit_save` wrote.

        Raises:
            KdError: the file is missing, is not a complete ONNX graph, refers to files of another folder or would compute enormous constants,
                or a fact has another type.
        """
        path = Path(folder, "model.onnx")
        known = read_as(_FACTS, facts, f"{Path(folder, 'kd.json')}: skeleton.facts")
        content = read_onnx(path)
        graph = parse_onnx(content, str(path))
        check_expansion(graph, str(path))
        unbounded = check_constants(graph, len(content), str(path))
        model = cls(content, Signature.read(known.signature), known.packed, tuple(dict.fromkeys((*known.without, *unbounded))))
        names, outputs = {item.name for item in model.session.get_inputs()}, len(model.session.get_outputs())
        if names != set(model.signature.inputs) or count_outputs(model.signature.output) > outputs:
            raise KdError(f"{path}: the graph has the inputs {brief(sorted(names))} and {outputs} outputs, and kd.json states others", "save the version again")
        return model

    def to(self, *args: Any, **kwargs: Any) -> OnnxModel:
        """Stay on the CPU.

        Raises:
            KdError: the device is not the CPU.
        """
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and device.type != "cpu":
            raise KdError(f"an onnxruntime version runs on the CPU and can't go to {device}", "run the float version on cuda: %kd undo, or --on @version")
        return self

    def extra_repr(self) -> str:
        """Inputs, kind of weights, and size."""
        return f"{', '.join(self.signature.inputs)}; {'int8' if self.packed else 'fp32'}, {len(self.onnx):,} bytes"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def _feed(self, name: str, tensor: Tensor, session: InferenceSession) -> np.ndarray:
        expected = next(item for item in session.get_inputs() if item.name == name)
        kind = _TYPES[expected.type]
        if tensor.dtype != kind and (kind.is_floating_point != tensor.is_floating_point()):
            raise KdError(
                f"input {name} holds {str(tensor.dtype)[6:]}, and the model expects {str(kind)[6:]}", f"pass {name}.{'float' if kind.is_floating_point else 'long'}()"
            )
        fits = len(expected.shape) == tensor.dim() and all(not isinstance(want, int) or want == got for want, got in zip(expected.shape, tensor.shape, strict=True))
        if not fits:
            fixed = self.signature.fixed.get(name, {})
            other = [axis for axis, size in fixed.items() if axis < tensor.dim() and tensor.shape[axis] != size]
            hints = [f"{self.signature.note}; cut or pad the inputs to that size", "%kd undo goes back to the version before the export"] if other else []
            raise KdError(f"input {name} has shape {tuple(tensor.shape)}, and the model expects {_shape_text(expected.shape)}", *hints)
        return np.ascontiguousarray(tensor.detach().to("cpu", kind).numpy())

    @staticmethod
    def _run(session: InferenceSession, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return run_session(session, names, feeds)
        except RunTooLarge:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common public base class
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
            raise KdError(f"onnxruntime can't run the model on {shapes}: {explain_error(error)}") from error


def _shape_text(shape: list[int | str]) -> str:
    names = ("batch", "tokens")
    return "(" + ", ".join(str(size) if isinstance(size, int) else names[min(axis, 1)] for axis, size in enumerate(shape)) + ")"


def open_session(content: bytes, without: tuple[str, ...] = (), optimize: bool = True, limited: bool = False) -> InferenceSession:
    """A session on the CPU with as many threads as torch has.

    Its threads don't spin while they wait: spinning threads slow down everything else on the machine, including other measurements.

    Raises:
        KdError: the graph is broken, or needs a feature that this onnxruntime lacks.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # what matters is raised as an error; its own lines would appear on stderr, twice
    onnxruntime.set_default_logger_severity(FATAL)
    options.log_severity_level = FATAL
    if limited:
        limit_memory(options)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without) or None)
    except Exception as error:  # onnxruntime's exceptions have no common public base class
        raise KdError(f"onnxruntime can't open the graph: {explain_error(error)}") from error

"""An ONNX graph as a torch module: called exactly like the model it came from, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.backends.graph import count_macs, numel, weights_of
from kdkit.backends.signature import Signature, build_output
from kdkit.contract import Trait
from kdkit.data import Batch
from kdkit.errors import KdError

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16, "tensor(bool)": torch.bool, "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8, "tensor(int16)": torch.int16, "tensor(int32)": torch.int32, "tensor(int64)": torch.int64,
}  # fmt: skip


class OnnxModel(nn.Module):
    """An ONNX graph that is called like the model it was exported from, and gives the same structure.

    Args:
        onnx: the serialized graph.
        signature: how it is called and what it gives.
        packed: whether it holds 8-bit weights.
        without: names of onnxruntime's graph optimizers to leave out, such as "SkipLayerNormFusion".

    It holds no torch parameters; its session opens at the first call, with as many threads as torch has, and again when that
    number changes. Copies share the graph's bytes. Tensors come in and go out, on the device they came from.
    """

    def __init__(self, onnx: bytes, signature: Signature, packed: bool = False, without: tuple[str, ...] = ()):
        super().__init__()
        self.onnx, self.signature, self.packed, self.without = onnx, signature, packed, tuple(without)
        self._session: InferenceSession | None = None
        self._threads = 0
        self.eval()

    @property
    def kdkit_traits(self) -> frozenset[Trait]:
        """What may follow: a graph is neither trained nor cut any more."""
        return frozenset({Trait.ONNX, Trait.PACKED_WEIGHTS if self.packed else Trait.FLOAT_WEIGHTS})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            KdError: the inputs don't fit; the message names the one that doesn't.
        """
        bound = self.signature.bind(args, kwargs)
        values = self._run(self.session, None, {name: self._feed(name, tensor) for name, tensor in bound.items()})
        device = next(iter(bound.values())).device if bound else torch.device("cpu")
        return build_output(self.signature.output, [torch.from_numpy(value).to(device) for value in values])

    def feeds(self, batch: Batch) -> dict[str, np.ndarray]:
        """A batch as the graph takes it.

        Raises:
            KdError: it doesn't fit.
        """
        return {name: self._feed(name, tensor) for name, tensor in self.signature.bind(batch.args, batch.kwargs).items()}

    @property
    def session(self) -> InferenceSession:
        """The open session."""
        if self._session is None or self._threads != torch.get_num_threads():
            self._session, self._threads = open_session(self.onnx, self.without), torch.get_num_threads()
        return self._session

    def close(self) -> None:
        """Let go of the session and its threads; the next call opens it again."""
        self._session = None

    def graph(self) -> ModelProto:
        """The graph, parsed; a new one each time."""
        import onnx

        return onnx.load_model_from_string(self.onnx)

    def kdkit_parameters(self) -> int:
        """Elements of its weights."""
        return sum(map(numel, weights_of(self.graph())))

    def kdkit_size_bytes(self) -> int:
        """Bytes on disk."""
        return len(self.onnx)

    def kdkit_layers(self) -> list[tuple[str, str, int, int]]:
        """Its weights: name, the operator that uses it with its dimensions, elements, bytes."""
        graph = self.graph()
        user = {name: node.op_type for node in reversed(graph.graph.node) for name in node.input}
        weights = weights_of(graph)
        return [(each.name, f"{user.get(each.name, '')} {' x '.join(map(str, each.dims))}".strip(), numel(each), each.ByteSize()) for each in weights]

    def kdkit_macs(self, batch: Batch) -> int:
        """Multiply-accumulates of one call on `batch`."""
        feeds = self.feeds(batch)
        return count_macs(self.graph(), lambda content, names: self._run(open_session(content, optimize=False), names, feeds))

    def kdkit_save(self, folder: str | Path) -> dict[str, Any]:
        """Write `model.onnx` into a folder and return what else `kdkit_load` needs, as JSON."""
        Path(folder, "model.onnx").write_bytes(self.onnx)
        return {"signature": self.signature.facts(), "packed": self.packed, "without": list(self.without)}

    @classmethod
    def kdkit_load(cls, folder: str | Path, facts: Mapping[str, Any]) -> OnnxModel:
        """The model that `kdkit_save` wrote.

        Raises:
            KdError: the file is missing or no whole ONNX graph.
        """
        path = Path(folder, "model.onnx")
        try:
            model = cls(path.read_bytes(), Signature.read(facts["signature"]), bool(facts["packed"]), tuple(facts["without"]))
        except FileNotFoundError as error:
            raise KdError(f"{path} is missing", "the folder is not whole: save the version again") from error
        except (KeyError, TypeError) as error:
            raise KdError(f"{path}: what was saved beside it is not whole ({error})") from error
        model.session  # noqa: B018  (opens it now, so that a broken file is found here)
        return model

    def to(self, *args: Any, **kwargs: Any) -> OnnxModel:
        """Stay on the CPU.

        Raises:
            KdError: asked to go elsewhere.
        """
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and device.type != "cpu":
            raise KdError(f"an onnxruntime version runs on the CPU and can't go to {device}", "run the float version on cuda: %kd undo, or --on @version")
        return self

    def extra_repr(self) -> str:
        """Inputs, and kind of weights."""
        return f"{', '.join(self.signature.inputs)}; {'int8' if self.packed else 'fp32'}, {len(self.onnx):,} bytes"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def _feed(self, name: str, tensor: Tensor) -> np.ndarray:
        expected = next(item for item in self.session.get_inputs() if item.name == name)
        kind = _TYPES[expected.type]
        if tensor.dtype != kind and (kind.is_floating_point != tensor.is_floating_point()):
            raise KdError(
                f"input {name} holds {str(tensor.dtype)[6:]}, and the model takes {str(kind)[6:]}", f"pass {name}.{'float' if kind.is_floating_point else 'long'}()"
            )
        fits = len(expected.shape) == tensor.dim() and all(not isinstance(want, int) or want == got for want, got in zip(expected.shape, tensor.shape, strict=True))
        if not fits:
            raise KdError(f"input {name} has shape {tuple(tensor.shape)}, and the model takes {_say_shape(expected.shape)}")
        return np.ascontiguousarray(tensor.detach().to("cpu", kind).numpy())

    @staticmethod
    def _run(session: InferenceSession, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return session.run(names, feeds)
        except Exception as error:  # onnxruntime's exceptions share no public base
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
            raise KdError(f"onnxruntime can't run the model on {shapes}: {str(error).splitlines()[0]}") from error


def _say_shape(shape: list[int | str]) -> str:
    names = ("batch", "tokens")
    return "(" + ", ".join(str(size) if isinstance(size, int) else names[min(axis, 1)] for axis, size in enumerate(shape)) + ")"


def open_session(content: bytes, without: tuple[str, ...] = (), optimize: bool = True) -> InferenceSession:
    """A session on the CPU with as many threads as torch has.

    Its threads don't spin while they wait: spinning ones slow everything else on the machine, other measurements first.

    Raises:
        KdError: the graph is broken, or asks for what this onnxruntime has not.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without) or None)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise KdError(f"onnxruntime can't open the graph: {str(error).splitlines()[0]}") from error

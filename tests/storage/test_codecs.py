"""A version's storage: weights are encoded at save, decoded at load bit for bit, measured as written, and dropped when they change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kdkit
from kdkit import KdError, Session, Stage, Trait, param
from kdkit.models import Storage
from kdkit.plugins.manager import manager
from kdkit.storage import Codec, folder
from kdkit.storage.codecs import decode_tensors, encode_tensors
from kdkit.storage.structure import tensors
from tests.fixtures.bit_packing import BITS, decode, encode


class Levels(nn.Module):
    """A linear layer whose weights are one of 15 levels, a byte each."""

    kdkit_traits = frozenset({Trait.PACKED_WEIGHTS})

    def __init__(self, inputs: int = 16, outputs: int = 8):
        super().__init__()
        self.register_buffer("levels", torch.randint(-7, 8, (outputs, inputs), dtype=torch.int8))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.levels.float() / 7, self.bias)


class Bits(Stage):
    """Store integer weights in as many bits as they need."""

    id: ClassVar = "encode.bits"
    adds: ClassVar = {Trait.ENCODED}
    layers: tuple[str, ...] = param(("*",), "layers to encode", names="layers")
    codec: str = param("bits", "codec to encode with")

    def storage(self) -> Storage:
        return Storage(self.codec, self.layers)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Levels(64, 32), nn.ReLU(), Levels(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


X = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
DATA: dict[str, Any] = {"train": (X, torch.arange(24) % 4), "measures": ("size",)}
LAWS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
BROKEN = {
    "rounds": Codec("rounds", lambda tensor: ({"numbers": tensor // 2}, None), lambda parts, data: parts["numbers"] * 2),
    "raises": Codec("raises", lambda tensor: 1 / 0, lambda parts, data: parts["numbers"]),
    "nothing": Codec("nothing", lambda tensor: None, lambda parts, data: parts["numbers"]),
    "objects": Codec("objects", lambda tensor: ({"numbers": tensor}, object()), lambda parts, data: parts["numbers"]),
}


@pytest.fixture(autouse=True)
def offered() -> Iterator[None]:
    """The codecs of a plugin."""

    @kdkit.offer
    def kdkit_codecs() -> list[Codec]:
        return [BITS, *BROKEN.values()]

    yield
    manager().unregister_hook("kdkit_codecs")


@pytest.fixture
def session() -> Session:
    return Session(net(), **DATA)


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    mine, theirs = tensors(model), tensors(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# The codec ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-128, 127), min_size=2, max_size=20), st.integers(1, 3))
@LAWS
def test_the_codec_of_these_tests_is_lossless(values: list[int], rows: int) -> None:
    tensor = torch.tensor([values] * rows, dtype=torch.int8)
    code = encode(tensor)
    assert code is not None
    assert torch.equal(decode(*code), tensor)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
@LAWS
def test_the_codec_of_these_tests_uses_no_more_bits_than_the_range_needs(values: list[int]) -> None:
    code = encode(torch.tensor(values, dtype=torch.int8))
    assert code is not None
    assert code[0]["bits"].numel() <= -(-2 * len(values) // 8)


def test_what_is_encoded_is_decoded_to_the_same_tensors() -> None:
    values = {name: tensor.detach() for name, tensor in tensors(net()).items()}
    encoded = encode_tensors(net(), values, Storage("bits", ("0",)), BITS)
    assert list(encoded.data) == ["0.levels"]
    again = decode_tensors(encoded.values, encoded.data, BITS)
    assert again.keys() == values.keys()
    assert all(torch.equal(again[name], values[name]) for name in values)


def test_options_reach_the_codec() -> None:
    with pytest.raises(KdError, match="the codec 'bits' encodes no tensor of \\*"):
        encode_tensors(net(), tensors(net()), Storage("bits", options={"at_most": 3}), BITS)


def differences(tensor: Tensor) -> tuple[dict[str, Tensor], Any] | None:
    """Each number minus the one before it, computed in place."""
    if tensor.dtype != torch.int8:
        return None
    flat = tensor.flatten()
    flat[1:] -= flat[:-1].clone()
    return {"numbers": flat}, list(tensor.shape)


IN_PLACE = Codec("in-place", differences, lambda parts, data: parts["numbers"].cumsum_(0).reshape(data))


def test_a_codec_may_work_in_place() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    encoded = encode_tensors(model, {name: tensor.detach() for name, tensor in tensors(model).items()}, Storage("in-place", ("0",)), IN_PLACE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())
    assert torch.equal(decode_tensors(encoded.values, encoded.data, IN_PLACE)["0.levels"], before["0.levels"])


def test_a_name_may_hold_the_mark_of_a_part() -> None:
    model = nn.ModuleDict({"a#b": Levels(), "a": Levels()})
    values = {name: tensor.detach() for name, tensor in tensors(model).items()}
    encoded = encode_tensors(model, values, Storage("bits"), BITS)
    again = decode_tensors(encoded.values, encoded.data, BITS)
    assert again.keys() == values.keys()
    assert all(torch.equal(again[name], values[name]) for name in values)


@pytest.mark.parametrize("returned", [5, "bits"])
def test_what_is_no_storage_is_refused(session: Session, returned: Any) -> None:
    class Odd(Bits):
        """Return something else."""

        id: ClassVar = "encode.odd"

        def storage(self) -> Any:
            return returned

    with pytest.raises(KdError, match=r"encode odd: storage\(\) returned"):
        session.run(Odd())
    assert len(session.versions) == 1


# A version ---------------------------------------------------------------------------------------------------------


def test_a_stage_that_only_stores_changes_no_weight_and_is_no_error(session: Session) -> None:
    session.run(Bits())
    assert session.head.storage == Storage("bits")
    assert Trait.ENCODED in session.head.traits
    assert same_weights(session.head.model, session.original)


def test_the_size_is_that_of_what_is_written(session: Session, tmp_path: Path) -> None:
    before = session.head["size"]
    session.run(Bits())
    session.save(tmp_path / "m")
    entry = json.loads((tmp_path / "m" / "kd.json").read_text())["storage"]["tensors"]
    written = folder._read_weights(tmp_path / "m" / "weights.safetensors")
    assert session.head["size"] == sum(tensor.nbytes for tensor in written.values()) + len(json.dumps(entry).encode())
    assert session.head["size"] < 0.75 * before
    assert session.evaluate()["size"].value == session.head["size"]


def test_an_encoded_version_opens_bit_for_bit_with_its_storage(session: Session, tmp_path: Path) -> None:
    session.run(Bits(layers=("0",)))
    session.save(tmp_path / "m")
    again = Session.open(tmp_path / "m", lambda: net(), **DATA)
    assert same_weights(again.head.model, session.head.model)
    assert again.head.storage == Storage("bits", ("0",))
    assert Trait.ENCODED in again.head.traits
    assert again.head["size"] == session.head["size"]


def test_an_encoded_version_loads_into_a_session_and_is_saved_encoded_again(session: Session, tmp_path: Path) -> None:
    session.run(Bits())
    session.save(tmp_path / "m")
    loaded = session.load(tmp_path / "m")
    assert loaded["size"] == session.version("@1")["size"]
    session.save(tmp_path / "again")
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("m", "again")]
    assert sizes[0] == sizes[1]


def test_a_folder_is_refused_by_the_name_of_the_codec_that_is_missing(session: Session, tmp_path: Path) -> None:
    session.run(Bits())
    session.save(tmp_path / "m")
    manager().unregister_hook("kdkit_codecs")
    with pytest.raises(KdError, match="encoded with the codec 'bits', which is not installed"):
        Session.open(tmp_path / "m", lambda: net(), **DATA)


def test_a_stage_that_changes_weights_drops_the_storage_with_a_note(session: Session, tmp_path: Path) -> None:
    session.run([Bits(), "tune finetune --steps 1 --learning-rate 0.5"])
    assert session.head.storage is None
    assert Trait.ENCODED not in session.head.traits
    assert "the weights are no longer stored with the codec 'bits', since tune finetune changed them: encode them again" in session.head.notes
    assert session.head["size"] == session.version("@0")["size"]
    session.save(tmp_path / "m")
    assert "storage" not in json.loads((tmp_path / "m" / "kd.json").read_text())


def test_a_stage_that_changes_nothing_keeps_the_storage(session: Session) -> None:
    class Look(Stage):
        """Look at the model."""

        id: ClassVar = "tune.look"
        may_change_nothing: ClassVar = True

        def apply(self, model: Any, context: Any) -> None:
            context.note("seen")

    session.run(Bits())
    session.run(Look())
    assert session.head.storage == Storage("bits")


def test_the_original_keeps_its_plain_form(session: Session) -> None:
    session.run(Bits())
    assert session.undo().storage is None


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("rounds", "the codec 'rounds' does not restore 0.levels bit for bit"),
        ("raises", "the codec 'raises' can't encode 0.bias: ZeroDivisionError"),
        ("nothing", "the codec 'nothing' encodes no tensor"),
        ("objects", "the codec 'objects' can't encode 0.bias: TypeError"),
        ("missing", "no codec 'missing'"),
    ],
)
def test_a_codec_that_fails_is_named_and_nothing_is_committed(codec: str, message: str, session: Session) -> None:
    with pytest.raises(KdError, match=message):
        session.run(Bits(codec=codec))
    assert len(list(session.history)) == 1


def test_layers_that_do_not_exist_are_refused(session: Session) -> None:
    with pytest.raises(KdError, match="pattern 'encoder' fits no module"):
        session.run(Bits(layers=("encoder",)))


@pytest.mark.slow
def test_a_model_that_writes_itself_is_not_encoded(tmp_path: Path) -> None:
    session = Session(nn.Sequential(nn.Linear(64, 4)), **DATA)
    session.run("convert onnx")
    with pytest.raises(KdError, match="encode"):
        session.run(Bits())


DAMAGE = {
    "no codec": lambda entry: entry.pop("codec"),
    "no tensors": lambda entry: entry.pop("tensors"),
    "a tensor less": lambda entry: entry["tensors"].pop("0.levels"),
    "a tensor too many": lambda entry: entry["tensors"].update({"5.levels": entry["tensors"]["0.levels"]}),
    "another shape": lambda entry: entry["tensors"]["0.levels"].update({"shape": [2, 2]}),
    "another dtype": lambda entry: entry["tensors"]["0.levels"].update({"dtype": "float32"}),
    "no facts": lambda entry: entry["tensors"].update({"0.levels": None}),
    "no dict": lambda entry: entry.update({"tensors": 5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
def test_a_storage_that_does_not_fit_its_weights_is_one_error(what: str, session: Session, tmp_path: Path) -> None:
    session.run(Bits())
    session.save(tmp_path / "m")
    head = tmp_path / "m" / "kd.json"
    facts = json.loads(head.read_text())
    DAMAGE[what](facts["storage"])
    head.write_text(json.dumps(facts))
    with pytest.raises(KdError):
        Session.open(tmp_path / "m", lambda: net(), **DATA)

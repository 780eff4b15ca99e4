"""What kdkit 0.1.0 wrote can still be read: saved folders, recipes, teacher caches and checkpoints; `make_fixtures` made them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kdkit import KdError, Pipeline, Session

FIXTURES = Path(__file__).parent / "fixtures"
RECIPES = {
    "pruned_cnn": "prune channels\ntune finetune --steps 3",
    "pruned_zoo_cnn": "prune channels\ntune finetune --steps 3",
    "pruned_transformer": "peft lora --steps 3 --learning-rate 0.05 --rank 2\npeft merge\nprune channels --what heads ffn",
    "adapted_transformer": "peft lora --steps 3 --learning-rate 0.05 --rank 2 --targets query value",
    "student_squeezenet": "distill soft --steps 2 --student squeezenet=0.0625",
    "student_shufflenet": "distill soft --steps 2 --student shufflenet-v2=0.0625\nprune channels --ratio 0.9",
    "student_mnasnet": "distill soft --steps 2 --student mnasnet=0.0625\nprune channels --ratio 0.9",
    "student_xception": "distill soft --steps 2 --student xception=0.0625\nprune channels --ratio 0.9",
    "int8": "quantize static --layout u8s8 --reduce-range yes",
    "int8_transformer": "quantize dynamic --layout u8s8 --reduce-range yes",
}
"""Each saved folder, and how its version was made."""
LABELS = {"adapted_transformer": "adapted", "int8": "int8", "int8_transformer": "int8"} | {name: "light" for name in RECIPES if name.startswith("student")}
TORCH = [name for name in RECIPES if not name.startswith("int8")]
RECIPE = """prune channels --ratio 0.25 --importance l2 --skip 6
together:
    distill soft --epochs 2 --temperature 2
    tune finetune --layers 0 6
decompose svd --rank 2
quantize static --reduce-range yes --method entropy --batches 4"""
EXACT = "--steps 4 --learning-rate 0.01"
CACHES = {
    "teacher": f"distill soft {EXACT}",
    "function": f"distill soft --cache-as fp16 {EXACT}",
    "ensemble": f"distill ensemble --teachers teacher other --combine logits --temperature 4 {EXACT}",
    "top_k": f"distill soft --top-k 2 --temperature 4 {EXACT}",
    "features": f"distill hints --layers 0=0 {EXACT}",
}
"""Each teacher cache, and the line that filled it."""


def opened(name: str) -> Session:
    return Session.open(FIXTURES / name, measures=())


def output(session: Session, held: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = session.head.model(**{name: value for name, value in held.items() if name != "output"})
    return getattr(found, "logits", found)


def expected(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / "expected" / f"{name}.safetensors")


def machine() -> dict[str, str]:
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "cpu": f"{cpu} {torch.backends.cpu.get_cpu_capability()}"}


def agrees(name: str, found: Tensor) -> bool:
    """Whether an output is the expected one: to the bit on a machine like that which made it; others add up in another order."""
    with safe_open(FIXTURES / "expected" / f"{name}.safetensors", "pt") as file:
        made_on, wanted = file.metadata(), file.get_tensor("output")
    if made_on == machine():
        return torch.equal(found, wanted)
    # in 8 bits a last bit may carry an activation over to the next step
    return torch.allclose(found, wanted, rtol=0, atol=(0.05 if name.startswith("int8") else 1e-4) * float(wanted.abs().max()))


# Saved folders -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_version_opens_and_reports_what_it_reported(name: str) -> None:
    assert agrees(name, output(opened(name), expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
def test_every_stored_number_is_in_the_opened_model_to_the_bit(name: str) -> None:
    stored, model = load_file(FIXTURES / name / "weights.safetensors"), opened(name).head.model
    assert [key for key, value in model.state_dict().items() if not torch.equal(stored[key], value)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_version_loads_into_a_session_of_another_model(name: str) -> None:
    session = Session(nn.Sequential(nn.Linear(2, 2)), measures=())
    session.load(FIXTURES / name)
    assert agrees(name, output(session, expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_version_loads_into_the_session_that_was_opened_with_it(name: str) -> None:
    session = opened(name)
    session.load(FIXTURES / name)
    assert agrees(name, output(session, expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_an_opened_version_is_saved_and_opened_again_without_loss(name: str, tmp_path: Path) -> None:
    opened(name).save(tmp_path / "again")
    again = Session.open(tmp_path / "again", measures=())
    assert torch.equal(output(again, expected(name)), output(opened(name), expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_version_replaces_an_old_folder(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / "old")
    opened(name).save(tmp_path / "old", force=True)
    assert agrees(name, output(Session.open(tmp_path / "old", measures=()), expected(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_an_opened_version_knows_how_it_was_made(name: str) -> None:
    assert Pipeline.of(opened(name).recipe().lines()) == Pipeline.of(RECIPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_an_opened_version_has_its_label(name: str) -> None:
    assert opened(name).head.name == f"@{LABELS.get(name, 'slim')}"


@pytest.mark.slow
def test_adapters_merge_after_opening() -> None:
    session = opened("adapted_transformer")
    session.run("peft merge")
    torch.testing.assert_close(output(session, expected("adapted_transformer")), expected("adapted_transformer")["output"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_merge_after_opening_leaves_what_was_frozen_before_the_adapters_frozen() -> None:
    session = opened("adapted_transformer")
    session.run("peft merge")
    frozen = [name for name, weight in session.head.model.named_parameters() if not weight.requires_grad]
    assert frozen == [name for name, _ in session.head.model.named_parameters() if ".embeddings." in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pruned_cnn", "pruned_transformer", "student_squeezenet"])
def test_an_opened_version_takes_another_stage(name: str) -> None:
    held = expected(name)
    session = Session.open(FIXTURES / name, example={key: value for key, value in held.items() if key != "output"}, measures=())
    before = sum(weight.numel() for weight in session.head.model.parameters())
    session.run("prune channels --ratio 0.5")
    assert sum(weight.numel() for weight in session.head.model.parameters()) < before


def test_an_int8_version_is_known_for_one() -> None:
    assert opened("int8").head.traits == {"onnx", "packed_weights"}


def test_an_int8_version_runs_on_the_int8_backend() -> None:
    held = expected("int8")
    session = Session.open(FIXTURES / "int8", eval=(held["input"], held["output"].argmax(1)), backend="int8", measures=("quality",))
    assert session.head["accuracy"] == 1.0


# Recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe_reads_as_it_was_written() -> None:
    assert Pipeline.load(FIXTURES / "recipe.yaml").lines() == RECIPE


def test_a_recipe_keeps_its_name_and_seed() -> None:
    pipeline = Pipeline.load(FIXTURES / "recipe.yaml")
    assert (pipeline.name, pipeline.seed) == ("small", 3)


@pytest.mark.slow
def test_a_recipe_runs_and_tells_itself_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    images = torch.randn(16, 3, 12, 12)
    session = Session(nn.Sequential(*convolutions, nn.Linear(32, 4)), train=(images, torch.arange(16) % 4), calibration=images, measures=())
    session.run(Pipeline.load(FIXTURES / "recipe.yaml"))
    assert session.recipe().lines() == RECIPE


# Teacher caches ----------------------------------------------------------------------------------------------------


def part(held: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in held.items() if key.startswith(f"{name}.")}


def built(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The small net of these weights."""
    hidden, inputs = weights["0.weight"].shape
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, len(weights["2.weight"])))
    net.load_state_dict(dict(weights))
    return net.eval()


class Lesson:
    """The data and the teachers that a cache was filled with, and how often these are asked."""

    def __init__(self, name: str, identity: str = "answers 1"):
        self.held = load_file(FIXTURES / "caches.safetensors")
        self.asked = 0
        self.teacher = self._function(identity) if name == "function" else self._watched("teacher")
        self.other = self._watched("other")

    def _count(self, *_: Any) -> None:
        self.asked += 1

    def _watched(self, name: str) -> nn.Module:
        model = built(part(self.held, name))
        model.register_forward_hook(self._count)
        return model

    def _function(self, identity: str) -> Callable[[Tensor], Tensor]:
        def reported(x: Tensor) -> Tensor:
            self._count()
            return self.held["answers"][(x[:, None] == self.held["x"]).all(-1).int().argmax(1)]

        reported.kdkit_identity = identity  # type: ignore[attr-defined]
        return reported

    def learned(self, line: str) -> Tensor:
        """All weights of a student after that stage."""
        data = (self.held["x"], self.held["y"])
        session = Session(built(part(self.held, "student")), train=data, teacher=self.teacher, other=self.other, measures=(), batch_size=8)
        session.run(line)
        return torch.cat([weight.detach().flatten() for weight in session.head.model.parameters()])


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The caches, where they may be written to."""
    return shutil.copytree(FIXTURES / "caches", tmp_path / "caches")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CACHES if name != "features"])
def test_a_cache_is_used_without_asking_the_teacher(name: str, cached: Path) -> None:
    lesson = Lesson(name)
    lesson.learned(f"{CACHES[name]} --cache {cached / name}.kd")
    assert lesson.asked == 0


def test_a_cache_of_features_asks_the_teacher_only_for_their_shapes(cached: Path) -> None:
    lesson = Lesson("features")
    lesson.learned(f"{CACHES['features']} --cache {cached / 'features.kd'}")
    assert lesson.asked == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_left_as_it_is(name: str, cached: Path) -> None:
    Lesson(name).learned(f"{CACHES[name]} --cache {cached / name}.kd")
    assert (cached / f"{name}.kd").read_bytes() == (FIXTURES / "caches" / f"{name}.kd").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CACHES if name != "top_k"])
def test_a_cache_teaches_what_the_teacher_teaches_to_the_bit(name: str, cached: Path) -> None:
    assert torch.equal(Lesson(name).learned(f"{CACHES[name]} --cache {cached / name}.kd"), Lesson(name).learned(CACHES[name].replace("--cache-as fp16", "")))


@pytest.mark.slow
def test_a_cache_of_the_most_probable_classes_teaches_what_the_teacher_teaches(cached: Path) -> None:
    from_cache, live = Lesson("top_k").learned(f"{CACHES['top_k']} --cache {cached / 'top_k.kd'}"), Lesson("top_k").learned(CACHES["top_k"])
    torch.testing.assert_close(from_cache, live)


def test_a_cache_of_another_teacher_is_still_refused(cached: Path) -> None:
    with pytest.raises(KdError, match="is of another teacher"):
        Lesson("function", identity="answers 2").learned(f"{CACHES['function']} --cache {cached / 'function.kd'}")


# Checkpoints -------------------------------------------------------------------------------------------------------


def test_a_finished_training_is_resumed_with_the_weights_it_ended_with(tmp_path: Path) -> None:
    held = load_file(FIXTURES / "checkpoint.safetensors")
    folder = shutil.copytree(FIXTURES / "checkpoint", tmp_path / "checkpoint")
    session = Session(built(part(held, "student")), train=(held["x"], held["y"]), teacher=built(part(held, "teacher")), measures=(), batch_size=8)
    session.run(f"distill hints --layers 0=0 --epochs 2 --learning-rate 0.01 --checkpoint {folder} --resume")
    trained = part(held, "trained")
    assert [name for name, weight in session.head.model.state_dict().items() if not torch.equal(weight, trained[name])] == []

"""Makes the fixtures of `test_legacy`: what kdkit 0.1.0 wrote before its modules moved.

It was run once, with kdkit 0.1.0 at commit 10c3f8f, and is kept for the record. Running it again with a later kdkit would make
fixtures of that kdkit, which prove nothing.

fixtures/
  NAME/                           a folder of `Session.save`
  expected/NAME.safetensors       inputs by their names, and the output of the version that was saved; the metadata tell the machine
  recipe.yaml                     a recipe of `Session.save`
  caches/NAME.kd                  teacher caches of `--cache`
  caches.safetensors              their data and teachers; all numbers are small multiples of 1/8, so any machine gives the same answers
  checkpoint/                     of a finished training with `--checkpoint`
  checkpoint.safetensors          its data, teacher and student, and the weights that came out
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdkit import Session

FIXTURES = Path(__file__).parent / "fixtures"
STUDENTS = {"squeezenet": "", "shufflenet-v2": "0.9", "mnasnet": "0.9", "xception": "0.9"}
"""Light nets, and how much of each is pruned to make a small file."""
RECIPE = """
prune channels --ratio 0.25 --importance l2 --skip 6
together:
    distill soft --temperature 2 --epochs 2
    tune finetune --layers 0 6
decompose svd --rank 2
quantize static --method entropy --batches 4 --reduce-range yes
"""
EXACT = "--steps 4 --learning-rate 0.01"
CACHES = {
    "teacher": f"distill soft {EXACT}",
    "function": f"distill soft --cache-as fp16 {EXACT}",
    "ensemble": f"distill ensemble --teachers teacher other --combine logits {EXACT}",
    "top_k": f"distill soft --top-k 2 {EXACT}",
    "features": f"distill hints --layers 0=0 {EXACT}",
}


def machine() -> dict[str, str]:
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "cpu": f"{cpu} {torch.backends.cpu.get_cpu_capability()}"}


def keep(name: str, session: Session, inputs: Mapping[str, Tensor]) -> None:
    """Save the head, and what it says."""
    session.save(FIXTURES / name)
    with torch.no_grad():
        output = session.head.model(**inputs)
    held = {**inputs, "output": getattr(output, "logits", output)}
    save_file({key: value.contiguous() for key, value in held.items()}, FIXTURES / "expected" / f"{name}.safetensors", machine())


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def cnn() -> nn.Module:
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(32, 4))


def images(size: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 16}
    return BertForSequenceClassification(BertConfig(**sizes))


def texts() -> dict[str, Tensor]:
    ids = torch.randint(3, 32, (8, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def convolutional() -> None:
    from kdkit.testing import zoo

    x, y = images()
    for name, model, given in (("pruned_cnn", seeded(cnn), "input"), ("pruned_zoo_cnn", zoo.cnn(), "x")):
        session = Session(model, train=(x, y), measures=())
        session.run("prune channels --ratio 0.5\ntune finetune --steps 3", label="slim")
        keep(name, session, {given: x[:4]})
    session = Session(seeded(cnn), train=(x, y), calibration=x, measures=())
    session.run("quantize static --layout u8s8 --reduce-range yes", label="int8")
    keep("int8", session, {"input": x[:4]})


def transformers() -> None:
    inputs = texts()
    data = [{**inputs, "labels": torch.arange(8) % 2}]
    session = Session(seeded(bert), train=data, measures=())
    session.run("peft lora --rank 2 --steps 3 --learning-rate 0.05\npeft merge\nprune channels --ratio 0.5 --what heads ffn", label="slim")
    keep("pruned_transformer", session, inputs)
    frozen = seeded(bert)
    frozen.bert.embeddings.requires_grad_(False)
    session = Session(frozen, train=data, measures=())
    session.run("peft lora --rank 2 --steps 3 --learning-rate 0.05 --targets query value", label="adapted")
    keep("adapted_transformer", session, inputs)
    session = Session(seeded(bert), example=inputs, measures=())
    session.run("quantize dynamic --layout u8s8 --reduce-range yes", label="int8")
    keep("int8_transformer", session, inputs)


def students() -> None:
    x, y = images(16)
    for name, pruned in STUDENTS.items():
        session = Session(seeded(cnn), train=(x, y), measures=())
        session.run([f"distill soft --student {name}=0.0625 --steps 2", *([f"prune channels --ratio {pruned}"] if pruned else [])], label="light")
        keep(f"student_{name.partition('-')[0]}", session, {"pixel_values": 1000 * x[:2]})  # so large that the answers differ from image to image


def recipe() -> None:
    x, y = images()
    session = Session(seeded(cnn), train=(x, y), calibration=x, measures=())
    session.run(RECIPE, label="small", seed=3)
    session.save(FIXTURES / "recipe.yaml")


def eighths(seed: int, *shape: int) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)) / 8


def small(seed: int, hidden: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 4))
    for number, weight in enumerate(net.parameters()):
        weight.data = eighths(10 * seed + number, *weight.shape)
    return net.eval()


def named(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}


def caches() -> None:
    (FIXTURES / "caches").mkdir()
    x, y = eighths(1, 24, 6), torch.arange(24) % 4
    teacher, other, student = small(1, 5), small(2, 5), small(3, 5)
    with torch.no_grad():
        answers = teacher(x)

    def reported(given: Tensor) -> Tensor:
        return answers[(given[:, None] == x).all(-1).int().argmax(1)]

    reported.kdkit_identity = "answers 1"  # type: ignore[attr-defined]
    for name, line in CACHES.items():
        session = Session(copy.deepcopy(student), train=(x, y), teacher=reported if name == "function" else teacher, other=other, measures=(), batch_size=8)
        session.run(f"{line} --cache {FIXTURES / 'caches' / name}.kd")
    save_file({"x": x, "y": y, "answers": answers, **named("teacher", teacher), **named("other", other), **named("student", student)}, FIXTURES / "caches.safetensors")


def checkpoint() -> None:
    x, y = eighths(1, 24, 6), torch.arange(24) % 4
    teacher, student = small(1, 7), small(3, 5)
    session = Session(copy.deepcopy(student), train=(x, y), teacher=teacher, measures=(), batch_size=8)
    session.run(f"distill hints --layers 0=0 --epochs 2 --learning-rate 0.01 --checkpoint {FIXTURES / 'checkpoint'}")
    trained = named("trained", session.head.model)
    save_file({"x": x, "y": y, **named("teacher", teacher), **named("student", student), **trained}, FIXTURES / "checkpoint.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(FIXTURES, ignore_errors=True)
    (FIXTURES / "expected").mkdir(parents=True)
    for make in (convolutional, transformers, students, recipe, caches, checkpoint):
        make()

"""ResNet-56 on CIFAR-10: pruned to 2.1x fewer MACs, distilled from itself, static int8, against onnxruntime fp32 and torch eager.

    python -m tests.benchmarks.bench_resnet56 [--folder build/resnet56] [--rounds 15]

The models come from resnet56.ipynb, which trains for about a quarter of an hour on one core; it runs if the folder does not hold them.
Goals: bytes >= 7x, latency >= 4x against onnxruntime fp32 at batch 1, at most 1 point of top-1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kdkit import Batch
from kdkit.backends.onnx.export import to_onnx
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import size_bytes
from tests.benchmarks.timing import in_turn, keep

HERE = Path(__file__).parent
DATA = Path(os.environ.get("KDKIT_DATA", HERE.parents[2] / "shared" / "data")).resolve()


def top1(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Predicted classes, (images,)."""
    with torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in images.split(100)])


def main(folder: Path, rounds: int) -> None:
    if not (DATA / "cifar_resnet56.safetensors").exists():
        print(f"resnet56: skipped, {DATA} holds no cifar_resnet56.safetensors (set KDKIT_DATA)")
        return
    torch.set_num_threads(1)
    if not (folder / "resnet56-small").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "notebooks.execute", str(HERE / "resnet56.ipynb"), str(folder)]
        subprocess.run(command, check=True, cwd=HERE.parents[1], env=os.environ | {"KDKIT_OUT": str(folder.resolve()), "KDKIT_DATA": str(DATA)})
    sys.path.insert(0, str(DATA))
    import cifar_resnet

    net = cifar_resnet.ResNetC(9)
    net.load_state_dict(load_file(DATA / "cifar_resnet56.safetensors"))
    net.eval()
    held = np.load(DATA / "cifar10_lossless5k.npz")
    images, labels = cifar_resnet.prep(held["test_x"]), torch.from_numpy(held["test_y"]).long()
    taught, _ = folder.load(folder / "resnet56-taught", cifar_resnet.ResNetC(9))
    small, _ = folder.load(folder / "resnet56-small")
    plain = to_onnx(net, Batch((images[:32],)))
    models = {"torch eager fp32": net, "onnxruntime fp32": plain, "pruned and distilled, torch": taught.eval(), "and static int8": small}

    reference = top1(net, images)
    times = {size: _times(models, images[:size], rounds) for size in (1, 32)}
    rows = []
    for name, model in models.items():
        classes = top1(model, images)
        row = [
            name,
            f"{(classes == labels).float().mean():.3f}",
            f"{(classes == reference).float().mean():.3f}",
            f"{count_macs(model, Batch((images[:1],))) / 1e6:.1f} M",
        ]
        row += [f"{size_bytes(model):,}", f"{size_bytes(net) / size_bytes(model):.2f}x"]
        for size in (1, 32):
            mine = times[size][name]
            row += [f"{mine:.2f}", f"{times[size]['onnxruntime fp32'] / mine:.2f}x", f"{times[size]['torch eager fp32'] / mine:.2f}x"]
        rows.append(row)
    head = ["model", "top-1", "agreement", "MACs", "bytes", "smaller"]
    head += [f"batch {size}{what}" for size in (1, 32) for what in (", CPU ms", " against onnxruntime fp32", " against torch eager")]
    keep("resnet56", {"epochs": os.environ.get("KDKIT_EPOCHS", "4"), "n": f"{rounds} rounds, {len(images)} test images", "seed": 0}, head, rows)


def _times(models: dict, batch: torch.Tensor, rounds: int) -> dict[str, float]:
    with torch.no_grad():
        return in_turn({name: (lambda model=model: model(batch)) for name, model in models.items()}, rounds, 8 if len(batch) == 1 else 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/resnet56"))
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    main(given.folder, given.rounds)

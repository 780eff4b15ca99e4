"""ResNet-56 on CIFAR-10, 2.1 times fewer multiply-adds: top-1 right after the cut, before any training, by what chooses the cut.

    python -m tests.benchmarks.bench_pruning [ROW ...]

A row takes 20 s to 4 minutes of one core; the rows of earlier runs are kept. Torch-Pruning's own pruner is measured beside: its cut, with BatchNorm
statistics estimated again as kdkit does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdkit import Batch, Context
from kdkit.measurement import count_macs
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Classification
from kdkit_prune.channels import Channels
from kdkit_prune.layers import Layers
from kdkit_prune.norm_statistics import reestimate
from tests.benchmarks.real_data import cifar, cifar_resnet
from tests.benchmarks.timing import RESULTS, keep
from tests.fixtures.data_folder import absent

MACS = 1 / 2.1
"""Share of the multiply-adds to keep: 2.1 times fewer, as in the tables of the literature."""

STAGES = {
    "l1, the same ratio in each layer": Channels(macs=MACS, importance="l1"),
    "l2, the same ratio in each layer": Channels(macs=MACS, importance="l2"),
    "l2, statistics of the whole net": Channels(macs=MACS, importance="l2", statistics=0),
    "fpgm, global": Channels(macs=MACS, importance="fpgm", scope="global"),
    "taylor, global": Channels(macs=MACS, importance="taylor", scope="global", batches=4),
    "activation, the same ratio in each layer": Channels(macs=MACS, importance="activation", batches=4),
    "hessian, global": Channels(macs=MACS, importance="hessian", scope="global", batches=4),
    "first-order, global": Channels(macs=MACS, importance="first-order", scope="global", batches=4),
    "first-order, by sensitivity": Channels(macs=MACS, importance="first-order", scope="sensitivity", batches=4),
    "12 of 27 blocks, greedy": Layers(count=12),
    "12 of 27 blocks, by influence": Layers(count=12, method="influence"),
}


def main(chosen: list[str]) -> None:
    if missing := absent("cifar_resnet56.safetensors", "cifar_resnet.py", "cifar10_lossless5k.npz"):
        print(f"pruning: skipped, {missing}")
        return
    torch.set_num_threads(1)
    data, net = cifar(), cifar_resnet(56)
    cuts: dict[str, Callable[[nn.Module], nn.Module]] = {name: (lambda model, stage=stage: stage.apply(model, _context(data))) for name, stage in STAGES.items()}
    cuts |= {f"Torch-Pruning, {name}": (lambda model, power=power: _torch_pruning(model, data, power)) for name, power in (("l1", 1), ("l2", 2))}
    if unknown := [name for name in chosen if name not in cuts]:
        raise SystemExit(f"no row {', '.join(unknown)}; there are: {'; '.join(cuts)}")
    rows = _kept() | {"the whole net": ["the whole net", f"{_top1(net, data):.3f}", f"{_macs(net, data) / 1e6:.1f} M", ""]}
    for name in chosen or cuts:
        torch.manual_seed(0)
        began = time.process_time()
        small = cuts[name](private_copy(net)).eval()
        rows[name] = [name, f"{_top1(small, data):.3f}", f"{_macs(small, data) / 1e6:.1f} M", f"{time.process_time() - began:.0f}"]
        keep("pruning", {"n": f"{len(data['test_x'])} test images", "seed": 0}, ["cut", "top-1 right after", "MACs", "CPU s"], list(rows.values()))


def _kept() -> dict[str, list[str]]:
    file = RESULTS / "pruning.json"
    return {row[0]: row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}


def _context(data: dict[str, Tensor]) -> Context:
    return Context(Classification(), objects={"train": adopt_data((data["train_x"], data["train_y"]), 128)})


def _torch_pruning(model: nn.Module, data: dict[str, Tensor], power: int) -> nn.Module:
    """The cut of `torch_pruning`'s own pruner, at its smallest ratio that meets the target, and statistics estimated again.

    Of the inner widths of the blocks, as kdkit cuts them: it does not follow this net's zero-padded shortcuts, and its cut of the stream fails.
    """
    import torch_pruning

    images, whole = data["train_x"][:1], _macs(model, data)
    for step in range(30, 70):
        twin = private_copy(model)
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=power)
        ignored = [module for name, module in twin.named_modules() if isinstance(module, nn.Linear) or name == "conv1" or name.endswith("conv2")]
        torch_pruning.pruner.BasePruner(twin, images, importance, pruning_ratio=step / 100, ignored_layers=ignored).step()
        if _macs(twin, data) <= MACS * whole:
            reestimate(twin, [Batch((part,)) for part in data["train_x"][:1024].split(128)])
            return twin
    raise RuntimeError("no ratio meets the target")


def _macs(model: nn.Module, data: dict[str, Tensor]) -> int:
    return count_macs(model, Batch((data["test_x"][:1],)))


def _top1(model: nn.Module, data: dict[str, Tensor]) -> float:
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in data["test_x"].split(200)])
    return float((classes == data["test_y"]).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure; default: all")
    main(parser.parse_args().rows)

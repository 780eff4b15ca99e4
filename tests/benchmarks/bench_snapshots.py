"""What versions of a frozen 100 M-parameter model cost in memory: only what changed.

    python -m tests.benchmarks.bench_snapshots

A stack of linear layers is frozen but for its head; the head is trained twice. Bytes are those of distinct tensor storages.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from kdkit import Session
from kdkit.session.history import Version
from tests.benchmarks.timing import keep


def storages(*versions: Version) -> int:
    """Bytes of the distinct storages behind the versions' tensors."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for version in versions if version.model for tensor in version.model.state_dict().values()
    }
    return sum(found.values())


def main() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(24)), nn.Linear(2048, 10))
    for weight in net[:-1].parameters():
        weight.requires_grad_(False)
    data = torch.randn(64, 2048), torch.arange(64) % 10
    session = Session(net, train=data, measures=())
    rows = [["@base", f"{storages(session.head):,}", "", ""]]
    for _ in range(2):
        before, began = storages(*session.versions), time.perf_counter()
        session.run("tune finetune --steps 2")
        rows.append([session.head.made_by, f"{storages(session.head):,}", f"{storages(*session.versions) - before:,}", f"{time.perf_counter() - began:.2f}"])
    began = time.perf_counter()
    session.undo()
    rows.append(["undo", "", "0", f"{time.perf_counter() - began:.4f}"])
    keep(
        "snapshots",
        {"seed": 0, "n": 1, "parameters": sum(weight.numel() for weight in net.parameters())},
        ["version", "bytes of it alone", "bytes it adds", "seconds"],
        rows,
    )


if __name__ == "__main__":
    main()

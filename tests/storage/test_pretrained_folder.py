"""Folders for `from_pretrained`: read back, compared, and written completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.storage.pretrained_folder import write_pretrained

transformers = pytest.importorskip("transformers")


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config).eval()


BATCH = Batch((), {"input_ids": torch.arange(12).view(2, 6)})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_from_pretrained_reads_the_same_outputs_to_the_last_bit(tmp_path: Path) -> None:
    model = bert()
    write_pretrained(model, tmp_path / "small", BATCH, texts={"README.md": "# small"})
    read = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "small", local_files_only=True).eval()
    assert torch.equal(read(**BATCH.kwargs).logits, model(**BATCH.kwargs).logits)
    assert files(tmp_path / "small") == {"README.md", "config.json", "model.safetensors"}


def test_the_tokenizer_is_read_from_the_same_folder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    write_pretrained(bert(), tmp_path / "small", BATCH, transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "small", local_files_only=True)("bad good")["input_ids"] == [2, 1]


def test_other_files_stay_and_those_of_a_former_model_go(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    (folder / ".git" / "objects").mkdir(parents=True)
    for name in (".git/HEAD", "notes.txt", "pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "README.md"):
        (folder / name).write_text("before")
    write_pretrained(bert(), folder, BATCH, texts={"README.md": "# small"})
    assert files(folder) == {".git/HEAD", "notes.txt", "README.md", "config.json", "model.safetensors"}
    assert (folder / "notes.txt").read_text() == "before"
    assert (folder / "README.md").read_text() == "# small"
    assert (folder / ".git" / "objects").is_dir()


def test_a_folder_whose_outputs_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = bert()
    with torch.no_grad():
        other.classifier.bias += 1
    monkeypatch.setattr(transformers.BertForSequenceClassification, "from_pretrained", classmethod(lambda kind, *given, **options: other))
    (folder := tmp_path / "small").mkdir()
    (folder / "notes.txt").write_text("before")
    with pytest.raises(KdError, match=r"small was not written: read by from_pretrained, output.logits differs"):
        write_pretrained(bert(), folder, BATCH)
    assert files(tmp_path) == {"small/notes.txt"}


def test_an_interrupt_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.BertForSequenceClassification, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_pretrained(bert(), tmp_path / "small", BATCH)
    assert not list(tmp_path.iterdir())


def test_layers_of_different_widths_are_refused_with_what_works(tmp_path: Path) -> None:
    model = bert()
    first = model.bert.encoder.layer[0]
    first.intermediate.dense, first.output.dense = torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)
    with pytest.raises(KdError, match="no BertConfig states its structure") as raised:
        write_pretrained(model, tmp_path / "small", BATCH)
    assert "name.onnx writes ONNX" in raised.value.hints
    assert not list(tmp_path.iterdir())


def test_bars_for_reading_and_writing_are_as_before(tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    write_pretrained(bert(), tmp_path / "small", None)
    assert logging.is_progress_bar_enabled() == before

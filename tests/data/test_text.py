"""Text as data: what is tokenized, padded, masked and kept beside the tensors."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import kdkit
from kdkit.data import Batch, MapDataset, PairedData, as_batch
from kdkit.data.batch import resize
from kdkit.data.datasets import rebatched
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.tasks import CausalLM
from tests.fixtures.data_folder import DATA, absent

SENTENCES = ["the cat sat on the mat", "a dog ran", "the dog sat on a cat and ran", "one and one is two", "two and two is four"]
PAIRS = [{"id": f"n{number}", "prompt": "one and one is ", "completion": "two"} for number in range(3)] + [
    {"id": "x", "prompt": "a dog ", "completion": "sat on the mat"}
]


@functools.cache
def tokenizer(limit: int | None = None, template: str = "") -> Any:
    """A tokenizer of words, trained here."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator([*SENTENCES, "user: assistant:"], trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "</s>"]))
    more = {"model_max_length": limit} if limit else {}
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **more)
    made.chat_template = template or None
    return made


@functools.cache
def language_model(layers: int = 1) -> Any:
    """A tiny causal language model over the tokenizer's words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).eval()


def words(ids: Any) -> str:
    return tokenizer().decode([token for token in ids if token >= 0])


def adopted(obj: Any, batch_size: int = 8, **more: Any) -> Batch:
    (batch,) = adopt_data(obj, batch_size, **{"tokenizer": tokenizer(), **more}).batches()
    return batch


# what is adopted


def test_strings_become_padded_tokens_with_their_text_beside_them():
    batch = adopted(SENTENCES[:2])
    assert batch.kwargs["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert words(batch.kwargs["input_ids"][1][:3]) == "a dog ran"
    assert batch.kwargs["input_ids"][1, 3:].tolist() == [0, 0, 0]
    assert batch.fields == {"text": SENTENCES[:2]}
    assert batch.labels is None


def test_a_causal_model_s_text_is_its_own_label_but_for_padding():
    batch = adopted(SENTENCES[:2], model=language_model())
    real = batch.kwargs["attention_mask"].bool()
    assert torch.equal(batch.labels[real], batch.kwargs["input_ids"][real])
    assert (batch.labels[~real] == -100).all()


def test_only_the_completion_is_a_label():
    batch = adopted(PAIRS)
    assert [words(row) for row in batch.labels] == ["two </s>"] * 3 + ["sat on the mat </s>"]
    assert words(batch.kwargs["input_ids"][0]).startswith("one and one is two")
    assert batch.fields["id"] == ["n0", "n1", "n2", "x"]
    assert batch.fields["completion"][3] == "sat on the mat"


def test_labels_beside_text_are_labels():
    batch = adopted([{"text": "a dog ran", "label": 1}, {"text": "two and two is four", "label": 0}], model=language_model())
    assert batch.labels.tolist() == [1, 0]


TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def test_the_last_answer_of_a_chat_is_a_label():
    chat = [{"role": "user", "content": "one and one"}, {"role": "assistant", "content": "is two"}]
    batch = adopted([{"messages": chat}], tokenizer=tokenizer(template=TEMPLATE))
    assert words(batch.labels[0]) == "is two </s>"
    assert batch.fields["text"][0].startswith("user: one and one")


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(KdError, match="no chat template"):
        adopted([{"messages": [{"role": "user", "content": "hi"}]}])


@pytest.mark.parametrize(("limit", "expected"), [(None, 16), (4, 4)])
def test_items_are_cut_at_the_least_of_the_tokenizer_s_and_the_model_s_maximum(limit, expected):
    data = adopt_data([" ".join(["dog"] * 40)], 8, tokenizer(limit), language_model())
    assert data.example().kwargs["input_ids"].shape == (1, expected)
    assert f"cut at {expected} tokens" in data.reason


@pytest.mark.parametrize("label", [None, "kind"])
def test_a_frame_with_a_column_of_text_is_text(label):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"sentence": SENTENCES[:3], "kind": [0, 1, 0]}) if label else pandas.DataFrame({"text": SENTENCES[:3]})
    batch = adopted((frame, label) if label else frame)
    assert batch.fields["text"] == SENTENCES[:3]
    assert (batch.labels is None) if label is None else batch.labels.tolist() == [0, 1, 0]


def test_a_hugging_face_dataset_of_text_is_tokenized():
    datasets = pytest.importorskip("datasets")
    batch = adopted(datasets.Dataset.from_dict({"sentence": SENTENCES[:3], "label": [0, 1, 0]}))
    assert batch.fields["text"] == SENTENCES[:3]
    assert batch.labels.tolist() == [0, 1, 0]


# errors


@pytest.mark.parametrize("obj", [SENTENCES, PAIRS])
def test_without_a_tokenizer_the_error_says_how_to_give_one(obj):
    with pytest.raises(KdError, match=r"%kd set --tokenizer \{tokenizer\}"):
        adopt_data(obj)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (["a dog", 3], "item 1 is not text like the others"),
        ([{"prompt": "a", "completion": "dog"}, {"prompt": "a"}], "item 1 is not text like the others"),
        (["a dog", ""], "item 1 has no tokens"),
        ([{"text": "a dog", "label": "animal"}], "encode names as numbers"),
        ([{"text": "a dog", "label": 1}, {"text": "a cat"}], "an item of text has no 'label', and others have"),
    ],
)
def test_an_item_that_is_no_text_is_named(obj, message):
    with pytest.raises(KdError, match=message):
        adopted(obj)


def test_an_object_that_is_no_tokenizer_is_named_where_text_needs_one():
    with pytest.raises(KdError, match="text") as caught:
        adopt_data(SENTENCES, tokenizer=3)
    assert any("an int, is not a transformers tokenizer" in hint for hint in caught.value.hints)


def test_tensors_need_no_tokenizer_whatever_the_session_has():
    assert adopt_data(torch.zeros(4, 2), tokenizer=3).items == 4


def test_which_column_holds_the_text_must_be_clear():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(KdError, match="several columns hold text: question, answer"):
        adopt_data(pandas.DataFrame({"question": ["a"], "answer": ["b"]}), tokenizer=tokenizer())


# fields go where their items go


def numbered(size: int) -> Batch:
    return Batch((torch.arange(size),), labels=torch.arange(size), fields={"id": [str(number) for number in range(size)]})


def agrees(batch: Batch) -> bool:
    return batch.fields["id"] == [str(number) for number in batch.args[0].tolist()]


@pytest.mark.slow
@given(size=some.integers(1, 9), data=some.data())
@settings(deadline=None)
def test_fields_follow_their_items_through_slices_indices_masks_and_sizes(size, data):
    batch = numbered(size)
    start, stop = data.draw(some.integers(0, size)), data.draw(some.integers(0, size))
    assert agrees(batch[start:stop])
    assert agrees(batch[torch.tensor(data.draw(some.lists(some.integers(0, size - 1), min_size=1)))])
    assert agrees(batch[torch.tensor(data.draw(some.lists(some.booleans(), min_size=size, max_size=size)))])
    assert agrees(resize(batch, data.draw(some.integers(1, 12))))
    assert agrees(batch.to("cpu"))


@given(sizes=some.lists(some.integers(1, 4), min_size=1, max_size=4), size=some.integers(1, 6))
@settings(deadline=None)
def test_fields_follow_their_items_into_batches_of_another_size(sizes, size):
    whole = numbered(sum(sizes))
    begins = [sum(sizes[:at]) for at in range(len(sizes))]
    assert all(agrees(batch) for batch in rebatched([whole[begin : begin + count] for begin, count in zip(begins, sizes, strict=True)], size))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_over_text_carries_each_item_s_fields(shuffle):
    data = adopt_data([{"id": str(number), "text": " ".join(["dog"] * (number + 1))} for number in range(7)], 3, tokenizer())
    for batch in data.batches(shuffle=shuffle, seed=1, batch_size=2):
        assert batch.kwargs["attention_mask"].sum(1).tolist() == [int(number) + 1 for number in batch.fields["id"]]
        assert batch.numbers.tolist() == [int(number) for number in batch.fields["id"]]
    assert data.take(2).example().fields["id"] == ["0", "1"]


def test_paired_data_carries_fields():
    parts = [MapDataset([numbered(1)], "one", 1, lambda items: items[0]), MapDataset([numbered(1)], "other", 1, lambda items: items[0])]
    (batch,) = PairedData(parts).batches(batch_size=2)
    assert batch.fields == {"id": ["0", "0"]}


def test_texts_in_a_dict_of_tensors_are_fields():
    assert as_batch({"input_ids": torch.ones(2, 3), "text": ["a", "b"]}).fields == {"text": ["a", "b"]}
    with pytest.raises(KdError, match="parts of different lengths"):
        as_batch({"input_ids": torch.ones(2, 3), "text": ["a"]})


# end to end


def session(**more: Any) -> kdkit.Session:
    return kdkit.Session(language_model(), tokenizer=tokenizer(), train=PAIRS, eval=PAIRS, measures=("quality",), batch_size=2, **more)


@pytest.mark.slow
def test_a_language_model_is_finetuned_on_prompts_and_completions():
    made = session()
    assert isinstance(made.task, CausalLM)
    before = made.head["perplexity"]
    made.run("tune finetune --epochs 20 --learning-rate 0.01")
    assert made.head["perplexity"] < 0.5 * before


@pytest.mark.slow
def test_a_language_model_is_distilled_on_text():
    made = session(teacher=language_model(2))
    made.run("distill soft --epochs 30 --alpha 1 --learning-rate 0.01")
    batch = made.objects["train"].example()
    counted, models = CausalLM().mask(batch), (made.objects["teacher"], made["@base"].model, made.head.model)
    teacher, before, after = (model(**batch.kwargs).logits.softmax(-1)[counted] for model in models)
    assert (after - teacher).abs().mean() < 0.5 * (before - teacher).abs().mean()


class Longest(kdkit.Stage):
    """Set a bias to the length of the longest prompt."""

    id: ClassVar = "tune.test-longest"
    needs: ClassVar = kdkit.Needs(train=True, text=True)

    def apply(self, model, context):
        texts = [text for batch in context.named("train").batches() for text in batch.fields["prompt"]]
        model.lm_head.weight.data.add_(max(map(len, texts)))


def test_a_stage_that_needs_text_reads_it_and_is_refused_without():
    made = session()
    made.run(Longest())
    assert made.head.number == 1
    made.set(train=[{"input_ids": torch.ones(2, 3, dtype=torch.long)}])
    with pytest.raises(KdError, match="tune test-longest needs text, and train holds numbers only"):
        made.run(Longest())
    assert made.head.number == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(missing := absent("stories260k/tokenizer.json")), reason=missing)
def test_a_real_tokenizer_and_model_learn_from_stories():
    folder = DATA / "stories260k"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stories = ["Once upon a time, there was a little girl named Lily.", "Tom had a red ball. He liked to play with it."]
    made = kdkit.Session(
        AutoModelForCausalLM.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder), train=stories, eval=stories, measures=("quality",)
    )
    before = made.head["perplexity"]
    assert before < 50
    made.run("tune finetune --steps 3 --learning-rate 0.0005")
    assert made.head["perplexity"] < before

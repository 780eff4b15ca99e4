"""Examples: which answers changed, in which order, and what was confused with what."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.session.session import Session
from kdkit.tasks import CausalLM, Classification, MultiLabel, Regression, TokenClassification
from kdkit.views import Examples
from kdkit.views.examples import changed_answers
from tests.fixtures import zoo

CLASSES = 4
TRIPLES = st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 3), min_size=1, max_size=30)


def scores(decided, sure=None):
    """Logits with these decisions."""
    sure = torch.ones(len(decided)) if sure is None else torch.tensor(sure)
    return torch.eye(CLASSES)[torch.tensor(decided)] * sure[:, None]


def compare(labels, before, after, sure=None, batch_size=4, **options):
    """Changed answers of two models that decide as stated."""
    inputs = torch.arange(len(before)).float()[:, None]
    labels = None if labels is None else torch.tensor(labels)
    parts = range(0, len(before), batch_size)
    data = Data(lambda: [Batch((inputs[at : at + batch_size],), labels=None if labels is None else labels[at : at + batch_size]) for at in parts], "made", len(before))
    one, two = scores(before), scores(after, sure)

    def says(outputs):
        return lambda batch: outputs[batch.args[0][:, 0].long()]

    return changed_answers(Classification(), ("@small", says(two)), ("@base", says(one)), data, **options)


@given(TRIPLES)
def test_all_is_counted_as_in_a_loop(triples):
    labels, before, after = map(list, zip(*triples, strict=True))
    found = compare(labels, before, after, count=100)
    changed = [(number, *triple) for number, triple in enumerate(triples) if triple[1] != triple[2]]
    assert (found.changed, found.items) == (len(changed), len(triples))
    assert [example.number for example in found.examples] == [number for number, *_ in changed]
    assert found.confusion == Counter((str(one), str(two)) for _, _, one, two in changed)
    assert found.sides["newly wrong"] == sum(one == label for _, label, one, _ in changed)
    assert found.sides["newly right"] == sum(two == label for _, label, _, two in changed)
    assert found.sides["wrong before and after"] == sum(label not in (one, two) for _, label, one, two in changed)


def test_the_most_confident_come_first_and_only_as_many_as_asked_for():
    found = compare([0] * 6, [0] * 6, [1] * 6, sure=[1.0, 5.0, 3.0, 2.0, 9.0, 4.0], count=3)
    assert [example.number for example in found.examples] == [4, 1, 5]
    assert found.changed == 6
    assert found.examples[0].confidence == pytest.approx(float(scores([1], [9.0]).softmax(-1).max()))


def test_the_text_says_what_changed():
    assert repr(compare([0, 1, 2], [0, 1, 1], [0, 2, 2], sure=[1.0, 3.0, 2.0])).splitlines() == [
        "@small answers 2 of 3 items of eval otherwise than @base: 1 newly wrong, 1 newly right",
        "",
        "item  input  label  @base  @small  confidence",
        "   1  1      1      1      2             0.87  newly wrong",
        "   2  2      2      1      2             0.71  newly right",
        "",
        "What changed most often",
        "@base  @small  decisions",
        "1      2               2",
    ]
    assert repr(compare([0, 1], [0, 1], [0, 1])) == "@small answers all 2 items of eval as @base does"


def test_without_labels_only_the_answers_are_shown():
    found = compare(None, [0, 1], [1, 1])
    assert (found.sides, found.examples[0].label, found.examples[0].side) == (Counter(), "", "")


def test_classes_have_their_names_and_html_is_escaped():
    found = compare([0], [0], [1], names=lambda each: f"<{each}>")
    assert found.examples[0].after == "<1>"
    assert "&lt;1&gt;" in found._repr_html_()
    assert "<1>" not in found._repr_html_()


def test_tokens_that_changed_have_their_places_and_padding_does_not_count():
    batch = Batch(kwargs={"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0]])}, labels=torch.tensor([[1, 2, -100]]))
    one, two = scores([1, 2, 3])[None], scores([1, 3, 0])[None]
    found = changed_answers(TokenClassification(), ("@small", lambda batch: two), ("@base", lambda batch: one), Data(lambda: [batch], "one", 1))
    (example,) = found.examples
    assert (example.label, example.before, example.after, example.side) == ("1: 2", "1: 2", "1: 3", "newly wrong")


def test_a_language_model_shows_both_texts():
    class Words:
        def decode(self, tokens):
            return " ".join("abcd"[int(token)] for token in tokens)

    batch = Batch(kwargs={"input_ids": torch.tensor([[0, 1, 2]])})
    one, two = scores([1, 2, 0])[None], scores([1, 3, 0])[None]
    found = changed_answers(CausalLM(), ("@small", lambda batch: two), ("@base", lambda batch: one), Data(lambda: [batch], "one", 1), tokenizer=Words())
    (example,) = found.examples
    assert (example.text, example.before, example.after) == ("a b c", "b c", "b d")


def test_numbers_that_changed_most_come_first():
    data = Data(lambda: [(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))], "three", 3)
    one, two = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [2.1], [9.0]])
    found = changed_answers(Regression(), ("@small", lambda batch: two), ("@base", lambda batch: one), data)
    assert [example.number for example in found.examples] == [2, 1]
    assert (found.examples[0].label, found.examples[0].before, found.examples[0].after) == ("3", "3", "9")


def test_several_labels_are_listed():
    data = Data(lambda: [(torch.zeros(1, 1), torch.tensor([[1.0, 0.0, 1.0]]))], "one", 1)
    one, two = torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[-1.0, -1.0, -1.0]])
    found = changed_answers(MultiLabel(), ("@small", lambda batch: two), ("@base", lambda batch: one), data)
    assert (found.examples[0].before, found.examples[0].after) == ("0, 2", "none")


def test_versions_that_decide_another_number_of_times_are_refused():
    batch = Batch((torch.zeros(1, 1),))
    with pytest.raises(KdError, match="decides"):
        changed_answers(TokenClassification(), ("@a", lambda batch: scores([1, 2])[None]), ("@b", lambda batch: scores([1])[None]), Data(lambda: [batch], "one", 1))


def test_a_session_shows_them_from_what_was_kept(monkeypatch):
    batch = zoo.batch("cnn", items=40)
    session = Session(zoo.cnn(), eval=batch, measures=("quality", "agreement"))
    session.run("prune channels --ratio 0.9", label="small")
    monkeypatch.setattr("kdkit.backends.torch.TorchBackend.runner", lambda *given: pytest.fail("a model ran again"))
    line = session.show("examples @small --against @base")
    assert repr(line) == repr(session.show(Examples(version="@small"))) == repr(session.show("examples"))
    assert "<img" in line._repr_html_()
    before, after = (session.version(name).model(batch.args[0]).argmax(-1) for name in ("@base", "@small"))
    assert line.changed == int((before != after).sum())


def test_what_is_missing_is_named():
    session = Session(zoo.cnn(), measures=("size",))
    with pytest.raises(KdError, match="examples needs data"):
        session.show("examples")

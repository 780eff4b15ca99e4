"""peft prompt and peft p-tuning: what trains, what remains, and which models suit."""

from __future__ import annotations

import copy

import pytest
import torch

from kdkit import Session
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.traits import traits_of
from kdkit.pipelines.order import after
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import infer_task
from kdkit_peft.prompt import Prompt, PromptStage, PTuning
from kdkit_peft.prompted import Prompted
from tests.fixtures import zoo

STAGES: list[tuple[type[PromptStage], dict]] = [(Prompt, {}), (PTuning, {}), (PTuning, {"encoder": "mlp"})]


def context(model, batch: Batch) -> Context:
    data = adopt_data([batch.kwargs | {"labels": batch.labels}])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data}, seed=3)


def run(name: str, stage: type[PromptStage] = Prompt, **options):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    about = context(model, batch)
    torch.manual_seed(0)
    return stage(**{"steps": 4, "learning_rate": 0.1, "tokens": 5, **options}).apply(copy.deepcopy(model), about), about


@pytest.mark.parametrize("stage", [Prompt, PTuning])
def test_the_stages_are_valid(stage):
    assert list(validate_stage(stage)) == []


@pytest.mark.parametrize(("stage", "options"), STAGES)
@pytest.mark.parametrize(("name", "place"), [("tiny_bert", 1), ("tiny_gpt2", 0)])
def test_the_prompt_trains_and_all_else_stays_bit_for_bit(name, place, stage, options):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    made, about = run(name, stage, **options)
    assert isinstance(made, Prompted)
    assert (made.place, made.prompt.shape, made.encoder) == (place, (5, 32), None)
    assert all(torch.equal(value, made.base.state_dict()[key]) for key, value in model.state_dict().items())
    start = stage(tokens=5, **options).forecast(model, about).model
    assert not torch.equal(start.prompt, made.prompt)
    assert [value.shape for value in start.parameters()] == [value.shape for value in made.parameters()]
    assert batch.call(made).logits.shape == batch.call(zoo.MODELS[name]()).logits.shape
    assert traits_of(made) == traits_of(model) == after(stage(), traits_of(model)) - {"prompt"}
    assert list(Prompt().check(made, about)) == ["it has a prompt already, and nothing merges one; go back to before it"]
    assert all(weight.requires_grad for weight in made.parameters())


def test_more_steps_lower_the_loss_of_a_language_model():
    model, batch = zoo.tiny_llama(), zoo.batch("tiny_llama")
    about = context(model, batch)
    made = Prompt(tokens=8, steps=60, learning_rate=0.3).apply(copy.deepcopy(model), about)
    before, now = (about.task.evaluate(lambda item, net=net: item.call(net), about.data("train"))["loss"] for net in (model, made))
    assert now < before - 0.01


def test_the_note_counts_what_trains_and_what_remains():
    _, about = run("tiny_gpt2", PTuning)
    lstm = 2 * (4 * 32 * (32 + 32 + 2)) + 2 * (4 * 32 * (64 + 32 + 2))
    trained = 5 * 32 + lstm + (64 * 32 + 32) + (32 * 32 + 32)
    assert about.notes[0].startswith(f"a prompt of 5 vectors: {trained:,} of ")
    assert about.notes[-1] == "of what trained, the 160 numbers of the vectors remain"


def test_it_starts_with_embeddings_of_random_tokens_of_the_seed():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    made, other = (Prompt(tokens=5).prepare(copy.deepcopy(model), context(model, batch)) for _ in range(2))
    table = model.get_input_embeddings().weight
    assert all((row == table).all(1).any() for row in made.prompt)
    assert torch.equal(made.prompt, other.prompt)


def test_also_train_trains_and_what_was_frozen_stays_frozen():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    model.bert.embeddings.requires_grad_(False)
    made = Prompt(tokens=5, steps=3, learning_rate=0.1, also_train=("classifier",)).apply(copy.deepcopy(model), context(model, batch))
    assert not torch.equal(made.base.classifier.weight, model.classifier.weight)
    assert {name for name, weight in made.named_parameters() if not weight.requires_grad} == {
        f"base.bert.embeddings.{name}" for name, _ in model.bert.embeddings.named_parameters()
    }


def test_models_that_do_not_suit_are_refused_before_any_work():
    data = adopt_data(zoo.batch("mlp"), 8)
    (problem,) = Prompt().check(zoo.mlp(), Context(task=infer_task(zoo.mlp(), data.example()), objects={"train": data, "example": data}))
    assert problem == "it extends the embedded tokens of a transformer, and Mlp is not one of transformers that takes input_ids by name"
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    (problem,) = Prompt(tokens=30).check(model, context(model, batch))
    assert problem == "12 tokens and a prompt of 30 are more than the 32 positions of BertForSequenceClassification"


def test_a_model_that_embeds_in_another_way_is_refused():
    class Scaled(type(zoo.tiny_gpt2())):
        def forward(self, input_ids=None, inputs_embeds=None, **options):
            return super().forward(inputs_embeds=self.transformer.wte(input_ids) * 2 if inputs_embeds is None else inputs_embeds, **options)

    model = zoo.tiny_gpt2()
    model.__class__ = Scaled
    with pytest.raises(KdError, match="Scaled gives other outputs for embedded tokens than for their ids"):
        Prompt().prepare(model, context(model, zoo.batch("tiny_gpt2")))


def test_labels_are_needed_only_for_the_tasks_loss():
    assert Prompt().required_inputs() == Needs(example=True, train=True, labels=True)
    assert PTuning(loss=0).required_inputs() == Needs(example=True, train=True)


@pytest.mark.slow
def test_a_folder_restores_it_and_a_second_prompt_is_refused(tmp_path):
    session = Session(zoo.tiny_gpt2(), train=zoo.data("tiny_gpt2"), eval=zoo.data("tiny_gpt2"), measures=("quality", "size"))
    session.run("peft prompt --steps 2 --tokens 4", label="prompted")
    folder = session.save(tmp_path / "prompted", "@prompted")
    batch = zoo.batch("tiny_gpt2")
    assert torch.equal(batch.call(Session.open(folder, measures=()).head.model).logits, batch.call(session["@prompted"].model).logits)
    with pytest.raises(KdError, match="prompt"):
        session.run("peft p-tuning --steps 2")

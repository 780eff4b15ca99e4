"""Techniques beside another one: what they need, what they refuse, and how their terms are told apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.training import fit
from kdkit_distill.distill_part import DistillPart
from kdkit_distill.feature.contrast import Bank, Contrast
from kdkit_distill.feature.hints import Hints
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.unlabelled import Unlabelled
from kdkit_distill.transformer.distilbert import DistilBert
from tests.fixtures import zoo
from tests.fixtures.lessons import bert, context, of_zoo, sentences, taught, weights


def test_what_a_technique_beside_needs_is_needed() -> None:
    assert Soft(labels=False, also=("decoupled",)).required_inputs().labels
    assert Unlabelled(also=("decoupled",)).required_inputs().labels
    bare = context(adopt_data([zoo.batch("mlp", 4).args[0]], 4), zoo.mlp())
    with pytest.raises(KdError, match="needs labels"):
        fit(zoo.mlp(), [Soft(labels=False, also=("decoupled",))], bare)


@pytest.mark.parametrize("line", ["hints", "similarity --weight 30", "correlation", "distilbert"])
def test_without_labels_no_technique_beside_asks_for_them(line: str) -> None:
    assert not Soft(labels=False, also=(line,)).required_inputs().labels
    assert not Soft(alpha=1.0, also=(line,)).required_inputs().labels
    assert Soft(also=(line,)).required_inputs().labels


def test_options_of_a_technique_beside_that_do_not_go_together_are_reported() -> None:
    (reported,) = Hints(also=("soft --divergence mse --top-k 3",)).conflicts()
    assert reported.startswith("--also soft: --top-k needs probabilities")
    (reported,) = Soft(also=("correlation --inter-weight 0 --intra-weight 0",)).conflicts()
    assert reported.startswith("--also correlation: ")


@pytest.mark.parametrize("option", ["--alpha 0.3", "--no-labels", "--learning-rate 0.1", "--epochs 7", "--cache teacher.kd", "--teacher other"])
def test_an_option_of_the_loop_is_not_swallowed_beside_a_technique(option: str) -> None:
    (reported,) = Soft(also=(f"hints {option}",)).conflicts()
    assert reported == f"--also hints {option.split()[0].replace('--no-', '--')}: the loop has one value for it; set it on distill soft itself"
    assert not list(Soft(also=("hints --weight 3 --weight-warmup 0.1",)).conflicts())


@pytest.mark.parametrize(
    "line", ["ensemble --teachers one two", "merge --teachers one two", "multi-task --teachers one two", "born-again", "assistant --through narrow=0.5"]
)
def test_what_has_teachers_or_trainings_of_its_own_can_not_be_beside_others(line: str) -> None:
    with pytest.raises(KdError, match="has its own teachers or trainings"):
        Soft(also=(line,)).with_techniques()


def test_a_bank_beside_a_technique_has_a_place_for_each_item_of_the_loops_data() -> None:
    run = context(of_zoo("mlp", 8), zoo.mlp(), more=of_zoo("mlp", 32))
    stage = Soft(data="more", steps=2, also=("contrast",))
    kept: list[int] = []
    make = Contrast.modules

    def modules(self: Contrast, *given: object) -> torch.nn.ModuleDict:
        made = make(self, *given)  # type: ignore[arg-type]
        kept.extend(len(bank.classes) for bank in made.values() if isinstance(bank, Bank))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contrast, "modules", modules)
        fit(zoo.mlp(), [stage], run)
    assert kept == [32]


@pytest.mark.slow
def test_terms_of_one_name_are_distinguished() -> None:
    first = taught(Soft(steps=1, also=("soft --divergence reverse --weight 3", "soft --divergence mse")), zoo.mlp(), context(of_zoo("mlp"), other()))[0]
    assert {"soft", "soft 2", "soft 3"} <= first.keys()
    alone = {name: taught(Soft(steps=1, divergence=name), zoo.mlp(), context(of_zoo("mlp"), other()))[0]["soft"] for name in ("forward", "reverse", "mse")}
    assert [first["soft"], first["soft 2"], first["soft 3"]] == list(alone.values())
    assert first["loss"] == pytest.approx(0.1 * first["label"] + 0.9 * (first["soft"] + 3 * first["soft 2"] + first["soft 3"]), rel=1e-5)


def other() -> torch.nn.Module:
    """A teacher that says something else."""
    model = zoo.mlp()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight))
    return model


@pytest.mark.slow
def test_terms_of_one_name_with_masks_of_their_own_are_cut_as_one_batch() -> None:
    run = context(sentences(), bert(2))
    stages = [DistilBert(alpha=1.0, labels=False, steps=1, clip=None, also=("distilbert --temperature 3",), accumulate=many) for many in (1, 2)]
    made = []
    for stage, cuts in zip(stages, ((), (3,)), strict=True):
        student = bert(1)
        fit(student, [stage], dataclasses.replace(run, objects={**run.objects, "train": sentences(cuts=cuts)}))
        made.append(weights(student))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-9)


def test_the_lesson_says_how_many_values_count_under_either_name() -> None:
    part = DistillPart(Soft(also=("distilbert",)), context(sentences(), bert(2)))
    (batch,) = sentences().batches()
    counts = part.counts(batch)
    assert counts["cosine"] == counts["cosine 2"] == int(batch.kwargs["attention_mask"].sum())

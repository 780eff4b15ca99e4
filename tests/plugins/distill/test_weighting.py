"""The weight of a technique: `auto` by default, the published constant by name, and both in the help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdError, known_stages
from kdkit.parameters.command_line import write_options
from kdkit.training.gradient_balance import GradientBalance
from kdkit_distill.technique import DistillStage
from kdkit_distill.weighting import setting_of

WEIGHED = {name: stage for name, stage in known_stages("distill").items() if issubclass(stage, DistillStage)}
PULLING = [name for name, stage in WEIGHED.items() if setting_of(stage).pull]
"""Techniques whose weight is chosen from gradients."""


class Net(nn.Module):
    """Three stages of maps; (batch, 1, 8, 8) -> (batch, 3)."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        sizes = ((1, width), (width, width), (width, 2 * width))
        self.stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 3, 2 if i == 1 else 1, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in sizes))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(x).mean((2, 3)))


def session(**options: Any) -> kdkit.Session:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 1, 8, 8, generator=generator), torch.randint(3, (64,), generator=generator)
    return kdkit.Session(Net(4, 0), train=(x, y), teacher=Net(8, 1), measures=(), batch_size=32, **options)


def gradients(version: Any) -> dict[str, float]:
    (balance,) = [each for each in version.attachments if isinstance(each, GradientBalance)]
    return {term.name: term.gradient for term in balance.gradient_norms}


@pytest.mark.slow
@pytest.mark.parametrize("name", PULLING)
def test_the_first_step_has_the_pull_that_the_technique_declares_at_any_share(name: str) -> None:
    stage = WEIGHED[name]
    options = " --flow-share 0" if "flow_share" in stage.model_fields else ""
    several = "relations" in name or "hints" in name or "attention" in name or "review" in name
    for alpha in (0.5, 0.8):
        found = gradients(session().run(f"{name.replace('.', ' ')} --steps 1 --alpha {alpha}{options}"))
        label = found.pop("label")
        # the gradients of several terms add up to one of the declared length, so each is at most their sum
        wanted = setting_of(stage).pull * alpha / (1 - alpha) * label
        assert (sum(found.values()) >= wanted * 0.999 and max(found.values()) <= 3 * wanted) if several else sum(found.values()) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", WEIGHED)
def test_the_help_shows_the_published_constant_and_what_auto_aims_at(name: str) -> None:
    stage = WEIGHED[name]
    described, setting = stage.model_fields["weight"].description or "", setting_of(stage)
    if setting.pull:
        assert f"{setting.pull:g} times as hard as the labels" in described
        assert f"published: {setting.weight:g}" in described
    else:
        assert described.endswith(f"auto: the published {setting.weight:g}")


def test_auto_published_and_a_number_are_read_and_written() -> None:
    stages = {word: known_stages()["distill.attention"].build("distill attention", {"weight": word}) for word in ("auto", "published", 3.5)}
    assert [write_options(stage) for stage in stages.values()] == [[], ["--weight", "published"], ["--weight", "3.5"]]
    assert [stage.constant for stage in stages.values()] == [1000.0, 1000.0, 3.5]
    assert [stage.pull is None for stage in stages.values()] == [False, True, True]


@pytest.mark.parametrize("word", ["sometimes", "0", "-1", "nan"])
def test_another_word_is_refused_in_words(word: str) -> None:
    with pytest.raises(KdError) as caught:
        session().run(f"distill attention --weight={word} --steps 1")
    assert "--weight" in str(caught.value)
    assert "literal" not in str(caught.value)


@pytest.mark.slow
def test_the_version_says_which_weight_was_chosen_and_which_was_published() -> None:
    made = session().run("distill attention --steps 3")
    (note,) = [note for note in made.notes if "--weight" in note]
    assert note.startswith("attention: --weight ")
    assert note.endswith("published: 1000")


@pytest.mark.slow
def test_techniques_of_one_line_have_their_own_weights() -> None:
    made = session().run('distill soft --steps 3 --also attention "similarity --weight 7" "hints"')
    assert [note.split(" --weight")[0] for note in made.notes if "--weight" in note] == ["--also attention:", "--also hints:"]


@pytest.mark.slow
def test_without_labels_others_are_weighed_against_the_first_technique() -> None:
    found = gradients(session().run('distill soft --no-labels --steps 1 --also "similarity"'))
    assert found["similarity"] == pytest.approx(setting_of(WEIGHED["distill.similarity"]).pull * found["soft"], rel=1e-3)


@pytest.mark.slow
def test_several_teachers_and_a_group_choose_too() -> None:
    held = session(other=Net(8, 2))
    made = held.run("distill ensemble --teachers teacher other --steps 3 --also decoupled")
    assert any(note.startswith("other: --other-weight") and "chosen" in note for note in made.notes)
    group = session().run("together:\n    tune finetune --steps 3\n    distill attention --no-labels")
    assert any(note.startswith("distill.attention.attention: --weight") and "chosen" in note for note in group.notes)

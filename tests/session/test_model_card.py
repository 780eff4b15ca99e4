"""Model cards: what they state is what happened, and the Hub's own reader reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from kdkit import KdError, Session
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.model_card import NO_LICENCE, write_card

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def session() -> Session:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    own = Session(net, eval=(torch.randn(12, 4), torch.arange(12) % 3), measures=("quality", "size"))
    own.run("prune channels --ratio 0.5", label="slim")
    return own


def card(session: Session, name: str = "small.pt2", licence: str = "") -> str:
    return write_card(session.history, session.head, Path(name), licence, "classification")


def test_it_states_steps_notes_and_figures_before_and_after(session: Session) -> None:
    text = card(session)
    before, after = session.versions[0].report, session.head.report
    assert "1. `prune channels`" in text
    assert all(f"   - {note}" in text for note in session.head.notes)
    assert f"| size | {before['size'].text()} | {after['size'].text()} | {after['size'].against(before['size'])} |" in text
    assert "The task is classification." in text


def test_the_recipe_in_it_makes_the_same_version(session: Session, tmp_path: Path) -> None:
    recipe = card(session).split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(recipe)
    again = Session(session.original, eval=session.objects.get("eval"), measures=("size",))
    made = again.run(Pipeline.load(tmp_path / "recipe.yaml"))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(made.model.state_dict().values(), session.head.model.state_dict().values(), strict=True))


def test_the_hub_reads_its_metadata(session: Session) -> None:
    read = hub.ModelCard(card(session, licence="apache-2.0")).data
    assert (read.license, read.library_name) == ("apache-2.0", "pytorch")
    assert "kdkit" in read.tags


@pytest.mark.parametrize(
    ("name", "use"), [("small.onnx", 'InferenceSession("small.onnx")'), ("small.pt2", 'torch.export.load("small.pt2")'), ("small", 'from_pretrained("small")')]
)
def test_it_says_how_to_use_what_was_written(session: Session, name: str, use: str) -> None:
    assert use in card(session, name)


def test_a_licence_that_is_not_stated_is_asked_for_and_that_of_the_bases_card_is_taken(session: Session, tmp_path: Path) -> None:
    assert NO_LICENCE in card(session)
    (tmp_path / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n# base\n")
    session.head.model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    assert hub.ModelCard(card(session)).data.license == "bsd-3-clause"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert NO_LICENCE in card(session)


def test_a_licence_of_several_lines_is_refused(session: Session) -> None:
    with pytest.raises(KdError, match="is not the name of a licence"):
        card(session, licence="mit\n---\nbase_model: other")


def test_a_version_without_steps_has_a_card_too(session: Session) -> None:
    text = write_card(session.history, session.versions[0], Path("net.onnx"))
    assert "Nothing: this is the model as it was given." in text
    assert "| figure | value |" in text


def test_an_export_writes_it_beside_a_file_on_demand(session: Session, tmp_path: Path) -> None:
    session.export(tmp_path / "a.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    session.export(tmp_path / "b.pt2", card=True, licence="mit")
    assert yaml.safe_load((tmp_path / "b.md").read_text().split("---")[1])["license"] == "mit"
    session.export(tmp_path / "b.pt2", card=True)  # its own file is replaced
    (tmp_path / "c.md").write_text("mine")
    with pytest.raises(KdError, match=r"c\.md exists"):
        session.export(tmp_path / "c.pt2", card=True)
    assert not (tmp_path / "c.pt2").exists()
    assert (tmp_path / "c.md").read_text() == "mine"

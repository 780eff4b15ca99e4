"""Kept predictions: what was computed once is not computed again, and what is kept is bounded."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit.backends.torch import TorchBackend
from kdkit.data import Batch
from kdkit.measurement.predictions import PredictionStore, fingerprint
from kdkit.session.session import Session
from tests.fixtures import zoo


class Doubled(nn.Module):
    """Returns a structure, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return {"logits": 2 * x, "parts": [x[:, :1], None], "name": "doubled"}


def answers(store, model, *batches):
    with store.answering(model, "cpu", lambda: contextlib.nullcontext(lambda batch: batch.call(model))) as call:
        return [call(batch) for batch in batches]


def batch(value, items=4):
    return Batch((torch.full((items, 8), float(value)),))


@pytest.mark.parametrize("memory_bytes", [10**6, 0], ids=["in memory", "in files"])
def test_an_output_that_was_kept_is_the_same_and_the_model_does_not_run_again(memory_bytes):
    store, model = PredictionStore(memory_bytes), Doubled()
    first, again, other = answers(store, model, batch(1), batch(1), batch(2))
    assert model.calls == 2
    assert torch.equal(first["logits"], again["logits"])
    assert torch.equal(first["parts"][0], again["parts"][0])
    assert (again["parts"][1], again["name"]) == (None, "doubled")
    assert other["logits"].unique().item() == 4


@pytest.mark.parametrize("memory_bytes", [10**6, 0], ids=["in memory", "in files"])
def test_a_change_of_an_output_in_place_does_not_change_what_is_kept(memory_bytes):
    store, model = PredictionStore(memory_bytes), Doubled()
    for _ in range(3):
        (found,) = answers(store, model, batch(1))
        assert found["logits"].unique().item() == 2
        found["logits"].zero_()


def test_memory_and_files_are_bounded_and_the_first_model_keeps_its_outputs():
    a_call = 4 * 9 * 4  # bytes
    store = PredictionStore(memory_bytes=2 * a_call, disk_bytes=4 * a_call)
    base, old, new = Doubled(), Doubled(), Doubled()
    for model in (base, old, new):
        answers(store, model, batch(1), batch(2), batch(3))
    assert store.kept_bytes <= 6 * a_call
    assert len([*store._folder.path.iterdir()]) <= 4
    for model in (base, new, old):
        answers(store, model, batch(1), batch(2), batch(3))
    assert (base.calls, new.calls, old.calls) == (3, 3, 6)


def test_where_no_file_can_be_written_the_model_runs_again(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    store, model = PredictionStore(memory_bytes=0), Doubled()
    answers(store, model, batch(1), batch(1))
    assert (model.calls, store.kept_bytes) == (2, 0)


def test_a_file_that_someone_removed_is_made_again():
    store, model = PredictionStore(memory_bytes=0), Doubled()
    answers(store, model, batch(1))
    for file in store._folder.path.iterdir():
        file.unlink()
    (found,) = answers(store, model, batch(1))
    assert (model.calls, found["logits"].unique().item()) == (2, 2)


@pytest.mark.parametrize("memory_bytes", [10**6, 0], ids=["in memory", "in files"])
def test_outputs_and_files_go_when_the_model_goes(memory_bytes):
    store, model = PredictionStore(memory_bytes), Doubled()
    answers(store, model, batch(1), batch(2))
    assert store.kept_bytes > 0
    del model
    gc.collect()
    assert store.kept_bytes == 0
    assert memory_bytes or not [*store._folder.path.iterdir()]


def test_outputs_of_another_place_are_others():
    store, model = PredictionStore(), Doubled()
    for place in ("cpu", "cpu-bf16"):
        with store.answering(model, place, lambda: contextlib.nullcontext(lambda batch: batch.call(model))) as call:
            call(batch(1))
    assert model.calls == 2


def test_the_mode_of_gradients_is_as_before_whichever_block_ends_first():
    store, model = PredictionStore(), Doubled()
    with store.answering(model, "cpu", torch.no_grad) as call, torch.no_grad(), contextlib.suppress(TypeError):
        call(batch(1))
    assert torch.is_grad_enabled()


def test_what_is_no_tensor_number_or_text_is_not_kept():
    class Opaque(Doubled):
        def forward(self, x):
            return {"logits": super().forward(x)["logits"], "state": object()}

    store, model = PredictionStore(), Opaque()
    answers(store, model, batch(1), batch(1))
    assert (model.calls, store.kept_bytes) == (2, 0)
    assert fingerprint(Batch((torch.zeros(2), object()))) is None


@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=6), st.integers(0, 5), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_inputs_have_one_fingerprint_if_and_only_if_they_are_equal(values, at, dtype):
    given_values = torch.tensor(values, dtype=dtype)
    changed = given_values.clone()
    changed[at % len(values)] += 1
    one = fingerprint(Batch((given_values,), {"mask": torch.ones(2, dtype=torch.bool)}))
    assert one == fingerprint(Batch((given_values.clone(),), {"mask": torch.ones(2, dtype=torch.bool)}))
    others = [Batch((changed,), {"mask": torch.ones(2, dtype=torch.bool)}), Batch((given_values,), {"mask": torch.zeros(2, dtype=torch.bool)})]
    others += [Batch((given_values,), {"other": torch.ones(2, dtype=torch.bool)}), Batch((given_values[None],), {"mask": torch.ones(2, dtype=torch.bool)})]
    assert one not in map(fingerprint, others)


@pytest.fixture
def evaluated(monkeypatch):
    """The models that ran to be evaluated, one entry for each batch."""
    models = []
    runner = TorchBackend.runner

    @contextlib.contextmanager
    def watched(backend, model):
        with runner(backend, model) as call:
            yield lambda batch: (models.append(model), call(batch))[1]

    monkeypatch.setattr(TorchBackend, "runner", watched)
    return models


def batches(count):
    return [(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(8) % 4) for seed in range(count)]


def test_a_session_evaluates_each_model_once_on_each_batch(evaluated):
    session = Session(zoo.mlp(), eval=batches(3), measures=("quality", "agreement"))
    assert evaluated == [session.original] * 3
    made = session.run("decompose svd --ratio 0.5")
    assert evaluated[3:] == [made.model] * 3
    session.evaluate("@base")
    session.evaluate(data=batches(3))
    assert len(evaluated) == 6
    session.show("confusion"), session.show("agreement")
    assert len(evaluated) == 6
    session.evaluate("@base", data=batches(4))
    assert evaluated[6:] == [session.original]


def test_a_teacher_is_the_users_and_runs_each_time(evaluated):
    teacher = zoo.mlp(seed=1)
    session = Session(zoo.mlp(), eval=batches(3), teacher=teacher, measures=("quality", "agreement"))
    before = session.show("agreement").pairs
    torch.nn.init.zeros_(session.objects["teacher"].head.weight)
    assert session.show("agreement").pairs != before


def test_data_that_change_from_pass_to_pass_give_the_figures_of_what_the_model_received():
    drawn = []

    class Noise(torch.utils.data.IterableDataset):
        def __iter__(self):
            drawn.append(len(drawn))
            yield from batches(len(drawn))[-1:]

    session = Session(zoo.mlp(), eval=torch.utils.data.DataLoader(Noise(), batch_size=None), measures=("quality", "agreement"))
    made = session.run("decompose svd --ratio 0.3")
    inputs, labels = batches(len(drawn))[-1]
    decided = made.model(inputs).argmax(-1)
    assert made["accuracy"] == pytest.approx((decided == labels).float().mean().item())
    assert made["agreement"] == pytest.approx((decided == session.original(inputs).argmax(-1)).float().mean().item())

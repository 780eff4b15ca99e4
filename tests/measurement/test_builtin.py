"""The built-in measures: quality, speed, memory and energy."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.measurement import builtin, timing
from kdkit.measurement.builtin import BUILT_IN
from kdkit.models.traits import Trait
from kdkit.session.adoption import adopt_data
from kdkit.tasks import CausalLM, Embedding
from tests.fixtures import zoo
from tests.fixtures.measuring import BATCH, Plain, measure, names, subject


def test_quality_is_the_tasks_figures_its_own_metric_first_over_all_items():
    version = subject()
    report = measure(version, names("quality"))
    right = (BATCH.call(version.model).argmax(-1) == BATCH.labels).float().mean().item()
    assert list(report) == ["accuracy", "loss"]
    assert report["accuracy"].value == pytest.approx(right)
    assert [(figure.n, figure.better) for figure in report.values()] == [(20, "higher"), (20, "lower")]


def test_a_model_agrees_with_itself_entirely_and_with_its_opposite_never():
    class Opposite(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return -self.model(x)

    model = zoo.mlp()
    assert measure(subject(model, original=model), names("agreement"))["agreement"].value == 1
    other = measure(subject(Opposite(model), original=model), names("agreement"))["agreement"]
    assert (other.value, other.n) == (0, 20)


def test_agreement_needs_no_labels_and_of_embeddings_is_the_mean_cosine():
    data = adopt_data(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)), batch_size=4)
    model, other = zoo.mlp(), zoo.mlp(seed=5)
    report = measure(subject(model, data, original=other, task=Embedding()), names("agreement"))
    inputs = torch.cat([batch.args[0] for batch in data.batches()])
    expected = torch.cosine_similarity(model(inputs), other(inputs)).mean().item()
    assert report["agreement"].value == pytest.approx(expected, rel=1e-5)


def test_agreement_of_a_language_model_leaves_padding_out():
    batch = zoo.batch("tiny_gpt2", items=2)
    mask = batch.kwargs["attention_mask"].clone()
    mask[1, 6:] = 0
    padded = Batch(kwargs={"input_ids": batch.kwargs["input_ids"], "attention_mask": mask})
    version = subject(zoo.tiny_gpt2(), adopt_data([padded]), original=zoo.tiny_gpt2(), task=CausalLM())
    report = measure(version, names("agreement"))
    assert (report["agreement"].value, report["agreement"].n) == (1, 11 + 5)


def test_measuring_leaves_the_original_in_the_mode_it_was_in():
    original = zoo.mlp().train()
    measure(subject(original=original), names("agreement"))
    assert all(module.training for module in original.modules())


def test_missing_labels_are_a_note_and_the_rest_is_measured():
    report = measure(subject(data=None, original=zoo.mlp()), names("quality", "agreement", "size"))
    assert list(report) == ["size"]
    unlabelled = adopt_data(torch.randn(10, 16), batch_size=4)
    report = measure(subject(data=unlabelled, original=zoo.mlp()), names("quality", "agreement", "size"))
    assert list(report) == ["agreement", "size"]
    assert len(report.notes) == 1
    assert report.notes[0].startswith("quality was not measured: classification needs labels")


def test_size_and_speed_are_simulated_while_masks_are_pending_and_quality_is_not():
    from torch.nn.utils import prune

    model = zoo.mlp()
    prune.l1_unstructured(model.first, "weight", 0.5)
    report = measure(subject(model, original=zoo.mlp()), BUILT_IN)
    real = {name for name, figure in report.items() if not figure.simulated}
    assert real == {"accuracy", "loss", "agreement", "parameters"}
    assert {"size", "macs", "memory", "moved", "latency", "latency_32", "throughput"} <= set(report) - real


def test_memory_of_a_model_that_torch_does_not_run_is_absent():
    class Graph(nn.Module):
        kdkit_traits = frozenset({Trait.ONNX})

        def forward(self, x):
            return x.detach()

    report = measure(subject(Graph()), names("memory", "moved", "size"))
    assert (list(report), report.notes) == (["size"], ())


def test_peak_memory_on_cuda_is_what_its_allocator_held_beyond_what_was_there(monkeypatch):
    class Cuda(Plain):
        device = "cuda"

    held = {"memory_allocated": 1000, "max_memory_allocated": 1250, "reset_peak_memory_stats": None}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert measure(subject(backend=Cuda()), names("memory"))["memory"].value == 250


def test_times_have_a_ratio_to_the_original_and_are_on_one_scale_with_it(monkeypatch):
    monkeypatch.setattr("kdkit.measurement.measure.interleave", lambda calls, budget_s: timing.Timing(0.016, 0.5 if len(calls) > 1 else None, 7, "", 0.1, 0.032))
    base = subject()
    version = subject(reference=base, original=base.model)
    report = measure(version, names("latency", "latency_32", "throughput"))
    assert [(figure.name, figure.value, figure.ratio, figure.n, figure.spread) for figure in report.values()] == [
        ("latency", 16.0, 0.5, 7, 0.1), ("latency_32", 16.0, 0.5, 7, 0.1), ("throughput", 2000.0, 2.0, 7, 0.1),
    ]  # fmt: skip
    alone = measure(subject(base.model, original=base.model), names("latency", "throughput"))
    assert {figure.ratio for figure in alone.values()} == {1}


def test_an_original_that_cannot_run_costs_the_ratio_and_not_the_latency():
    report = measure(subject(reference=subject(nn.Linear(3, 2))), names("latency"))
    assert report["latency"].ratio is None
    assert len(report.notes) == 1
    assert report.notes[0].startswith("no ratio of the latency to the original's: a linear layer expects 3 features")


def test_energy_a_call_is_what_the_meter_gained_over_the_calls(monkeypatch):
    readings = itertools.count(100.0, 6.0)
    monkeypatch.setattr(builtin, "rapl", lambda: lambda: next(readings))
    figure = measure(subject(budget_s=0), names("energy"))["energy"]
    assert (figure.value, figure.unit, figure.n) == (6.0, "J", 1)

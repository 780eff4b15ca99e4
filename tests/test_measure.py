"""Reports: what is measured, what is absent, what is simulated, and that one failure takes no other figure with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit import measure as measuring
from kdkit.contract import Trait
from kdkit.counting import count_macs, count_parameters, size_bytes
from kdkit.data import Batch, adopt_data
from kdkit.errors import Cancelled, KdError
from kdkit.measure import BUILT_IN, Figure, Measure, Report, Subject, interleave, measure, rapl, resize
from kdkit.tasks import CausalLM, Classification, Embedding
from tests import zoo


class Plain:
    """A backend that calls the model as it is."""

    name = "plain"

    @contextlib.contextmanager
    def runner(self, model):
        with torch.no_grad():
            yield lambda batch: batch.call(model.eval())


@pytest.fixture(autouse=True)
def numbers_are_shown(monkeypatch):
    monkeypatch.delenv("KDKIT_STABLE", raising=False)


BATCH = zoo.batch("mlp", items=20)
DATA = adopt_data(BATCH, batch_size=8)


def subject(model=None, data=DATA, **changes):
    """An mlp with its evaluation data, timed for hardly any time."""
    facts = {"task": Classification(), "example": BATCH[:8], "backend": Plain(), "budget_s": 0.002}
    return Subject(zoo.mlp() if model is None else model, data=data, **facts | changes)


def names(*wanted):
    return [each for each in BUILT_IN if each.name in wanted]


# the whole


def test_everything_that_can_be_measured_is_there_in_order():
    version = subject(original=zoo.mlp())
    report = measure(version, BUILT_IN)
    rest = ["parameters", "size", "macs", "memory", "moved", "latency", "latency_32", "throughput"]
    assert [name for name in report if name != "energy"] == ["accuracy", "loss", "agreement", *rest]
    assert report.notes == ()
    assert {figure.backend for figure in report.values()} == {"plain"}


def test_measures_of_the_plugins_are_what_is_measured_when_no_names_are_said():
    offered = measuring.kdkit_measures()
    assert [each.name for each in measuring._chosen(None)][: len(offered)] == [each.name for each in offered]


def test_an_unknown_measure_is_an_error_that_knows_the_near_ones():
    with pytest.raises(KdError, match="no measure 'latencyy'") as caught:
        measure(subject(), ["latencyy"])
    assert "did you mean latency" in str(caught.value)


def test_counts_are_those_of_counting_for_one_item():
    version = subject(zoo.mlp())
    report = measure(version, names("parameters", "size", "macs", "memory"))
    assert report["parameters"].value == count_parameters(version.model)
    assert report["size"].value == size_bytes(version.model)
    assert report["macs"].value == count_macs(version.model, version.example[:1])
    assert report["memory"].value > report["size"].value


def test_without_data_and_without_an_example_only_what_the_model_tells_is_measured():
    report = measure(subject(data=None, example=None, original=zoo.mlp()), BUILT_IN)
    assert list(report) == ["parameters", "size"]
    assert report.notes == ()


# quality


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


# faults


def broken(subject):
    raise OSError("the meter\nis unplugged")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (broken, "watts was not measured: OSError: the meter"),
        (lambda subject: "many", "watts was not measured: TypeError: str is not a number"),
        (lambda subject: [True], "watts was not measured: TypeError"),
        (lambda subject: math.nan, "watts was not measured: ValueError: watts is nan"),
        (lambda subject: [Figure("loss", math.inf)], "watts was not measured: ValueError: loss is inf"),
        (lambda subject: Figure("size", 3.0), "watts was not measured: another measure gave a figure 'size' already"),
    ],
)
def test_a_measure_that_fails_is_noted_with_its_reason_and_the_rest_is_measured(run, said):
    report = measure(subject(), [*names("size"), Measure("watts", "W", "lower", run), *names("macs")])
    assert list(report) == ["size", "macs"]
    assert len(report.notes) == 1
    assert report.notes[0].startswith(said)
    assert "\n" not in report.notes[0]


def test_a_measure_that_gives_nothing_is_absent_without_a_note():
    report = measure(subject(), [Measure("watts", "W", "lower", lambda subject: None)])
    assert (len(report), report.notes) == (0, ())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_a_request_to_stop_is_no_failed_measure(stop):
    def stopped(subject):
        raise stop("stop")

    with pytest.raises(stop):
        measure(subject(), [Measure("watts", "W", "lower", stopped)])


def test_a_model_whose_call_fails_still_has_its_size():
    report = measure(subject(nn.Linear(3, 2)), BUILT_IN)
    assert list(report) == ["parameters", "size"]
    assert any(note.startswith("latency was not measured: RuntimeError") for note in report.notes)


def test_measures_of_strangers_give_a_value_or_whole_figures():
    several = Measure("layers", "", "lower", lambda subject: [Figure("linears", 3, better="lower"), Figure("dropouts", 1, n=5)])
    report = measure(subject(), [Measure("depth", "", "lower", lambda subject: 4), several])
    assert [(figure.name, figure.value, figure.better, figure.backend) for figure in report.values()] == [
        ("depth", 4, "lower", "plain"), ("linears", 3, "lower", "plain"), ("dropouts", 1, "higher", "plain"),
    ]  # fmt: skip


def test_a_subject_is_measured_anew_each_time_and_keeps_its_own_notes():
    version = subject(notes=["mine"])
    said = Measure("watts", "W", "lower", lambda subject: subject.notes.append("theirs"))
    assert measure(version, [said]).notes == measure(version, [said]).notes == ("theirs",)
    assert version.notes == ["mine"]


# simulated, ONNX, CUDA


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


# time


def test_calls_are_timed_in_turn_and_which_goes_first_changes():
    order = []
    timing = interleave([lambda: order.append("a"), lambda: order.append("b")], budget_s=0, least=4)
    assert timing.n == 4
    assert "".join(order).endswith("baabbaab")


def test_the_time_is_the_median_and_the_ratio_the_median_of_the_rounds(monkeypatch):
    durations = {"a": itertools.cycle([1.0, 2.0, 9.0]), "b": itertools.cycle([2.0, 2.0, 3.0])}
    monkeypatch.setattr(measuring, "_seconds", lambda call: next(durations[call()]))
    monkeypatch.setattr(measuring, "_warm_up", lambda calls, budget_s: None)
    timing = interleave([lambda: "a", lambda: "b"], budget_s=0, least=3)
    assert (timing.seconds, timing.ratio) == (2.0, 1.0)


def test_a_call_that_gets_less_than_a_core_is_told_as_load_on_the_machine():
    assert "other work" in interleave([lambda: time.sleep(0.01)], budget_s=0.01).load


def test_latency_has_a_ratio_to_the_parent_and_throughput_its_inverse(monkeypatch):
    monkeypatch.setattr(measuring, "interleave", lambda calls, budget_s: measuring.Timing(0.016, 0.5 if len(calls) > 1 else None, 7))
    report = measure(subject(parent=subject()), names("latency", "latency_32", "throughput"))
    assert [(figure.name, figure.value, figure.ratio, figure.n) for figure in report.values()] == [
        ("latency", 16.0, 0.5, 7), ("latency_32", 16.0, 0.5, 7), ("throughput", 2000.0, 2.0, 7),
    ]  # fmt: skip
    alone = measure(subject(), names("latency", "throughput"))
    assert {figure.ratio for figure in alone.values()} == {None}


def test_a_parent_that_cannot_run_costs_the_ratio_and_not_the_latency():
    report = measure(subject(parent=subject(nn.Linear(3, 2))), names("latency"))
    assert report["latency"].ratio is None
    assert len(report.notes) == 1
    assert report.notes[0].startswith("no ratio of the latency to the parent's: RuntimeError")


def test_the_collector_of_garbage_rests_during_timing_and_works_again_after_it():
    import gc

    seen = []
    interleave([lambda: seen.append(gc.isenabled())], budget_s=0, least=3)
    assert seen[-3:] == [False] * 3
    assert gc.isenabled()


# batches


@given(st.integers(1, 5), st.integers(1, 40))
def test_a_resized_batch_repeats_its_items_in_order(have, size):
    items = torch.arange(have)
    batch = resize(Batch((items, 3), {"mask": items[:, None], "scale": torch.tensor(2.0)}, items + 10), size)
    assert batch.args[0].tolist() == [index % have for index in range(size)]
    assert batch.args[1] == 3
    assert batch.kwargs["mask"].shape == (size, 1)
    assert batch.kwargs["scale"].item() == 2
    assert torch.equal(batch.labels, batch.args[0] + 10)


# energy


def powercap(root, **domains):
    for index, (name, microjoules) in enumerate(domains.items()):
        folder = root / f"intel-rapl:{index}"
        folder.mkdir(exist_ok=True)
        for file, content in (("name", name.replace("_", "-")), ("energy_uj", microjoules), ("max_energy_range_uj", 10_000_000)):
            (folder / file).write_text(f"{content}\n")
    return root


def test_energy_is_the_sum_over_the_packages_and_survives_a_counter_that_runs_over(tmp_path):
    powercap(tmp_path, package_0=9_000_000, package_1=0, psys=5)
    joules = rapl(tmp_path)
    before = joules()
    powercap(tmp_path, package_0=1_000_000, package_1=3_000_000, psys=4_000_000)
    assert joules() - before == pytest.approx(2 + 3)


def test_energy_is_absent_where_the_machine_cannot_tell(tmp_path, monkeypatch):
    assert rapl(tmp_path) is None
    monkeypatch.setattr(measuring, "rapl", lambda: None)
    report = measure(subject(), names("energy"))
    assert (len(report), report.notes) == (0, ())


def test_energy_a_call_is_what_the_meter_gained_over_the_calls(monkeypatch):
    readings = itertools.count(100.0, 6.0)
    monkeypatch.setattr(measuring, "rapl", lambda: lambda: next(readings))
    figure = measure(subject(budget_s=0), names("energy"))["energy"]
    assert (figure.value, figure.unit, figure.n) == (6.0, "J", 1)


# reports


figures = st.builds(
    Figure,
    name=st.text(min_size=1),
    value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60),
    unit=st.sampled_from(["", "B", "ms", "J"]),
    better=st.sampled_from(["higher", "lower"]),
    backend=st.text(),
    simulated=st.booleans(),
    n=st.none() | st.integers(0, 10**9),
    ratio=st.none() | st.floats(0.01, 100),
)


@given(st.lists(figures, unique_by=lambda figure: figure.name, max_size=5), st.lists(st.text(), max_size=3), st.text())
def test_a_report_comes_back_from_json_as_it_was(listed, notes, load):
    report = Report(tuple(listed), tuple(notes), load)
    assert Report.from_data(json.loads(json.dumps(report.as_data()))) == report


def test_a_report_of_a_newer_kdkit_is_read_without_what_it_added():
    data = Report((Figure("size", 3, "B"),)).as_data()
    data["figures"][0]["spread"] = 0.1
    assert Report.from_data(data | {"weather": "fine"}) == Report((Figure("size", 3, "B"),))


@pytest.mark.parametrize("data", [{}, {"figures": [{"value": 3}]}, {"figures": 3}, {"figures": [3]}])
def test_what_is_no_report_is_refused_in_a_sentence(data):
    with pytest.raises(KdError, match="this is no report"):
        Report.from_data(data)


def test_a_report_is_a_mapping_that_nobody_changes():
    report = Report((Figure("size", 3, "B"),))
    assert (report["size"].value, len(report), "size" in report, report.get("speed")) == (3, 1, True, None)
    with pytest.raises(TypeError):
        report["speed"] = Figure("speed", 1)
    with pytest.raises(AttributeError):
        report.notes = ("changed",)
    with pytest.raises(KeyError):
        report["speed"]


SHOWN = Report(
    (Figure("accuracy", 0.9512, n=1000), Figure("size", 370_123, "B", "lower", simulated=True), Figure("latency", 3.2, "ms", "lower", n=41, ratio=0.5)),
    ("energy was not measured: OSError: no meter",),
    "other work on this machine",
)


def test_a_report_as_text_has_its_figures_and_its_notes():
    assert repr(SHOWN).splitlines() == [
        "figure     value  simulated  to parent     n",
        "accuracy   0.951                        1000",
        "size         n/a     370 kB",
        "latency   3.2 ms                  x0.5    41",
        "note: energy was not measured: OSError: no meter",
        "note: other work on this machine",
    ]


def test_a_report_as_stable_text_hides_what_changes_from_run_to_run(monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert repr(SHOWN).splitlines() == [
        "figure    value  simulated  to parent     n",
        "accuracy  0.951                        1000",
        "size        n/a     370 kB",
        "latency       …                     …     …",
        "note: energy was not measured: OSError: no meter",
    ]


def test_a_report_as_html_keeps_what_is_simulated_in_a_column_of_its_own_and_escapes_its_notes():
    html = Report(SHOWN.figures, ("a < b",))._repr_html_()
    assert '<th scope="col" style="text-align: right">simulated</th>' in html
    assert "a &lt; b" in html
    assert "simulated" not in Report((Figure("size", 3, "B"),))._repr_html_()


def test_an_empty_report_shows_as_one():
    assert repr(Report()) == "figure  value"


def test_a_figure_stands_to_another_by_difference_or_by_factor():
    assert Figure("accuracy", 0.94).against(Figure("accuracy", 0.95)) == "-0.01"
    assert Figure("accuracy", 0.94).against(Figure("accuracy", 0.94)) == "+0"
    assert Figure("macs", 25, better="lower").against(Figure("macs", 100)) == "x0.25"
    assert Figure("macs", 25, better="lower").against(Figure("macs", 0)) == ""
    assert Figure("latency", 1, "ms", "lower").against(Figure("latency", 4, "ms")) == "x0.25"


def test_a_figure_that_is_simulated_says_so():
    assert Figure("size", 370_123, "B", "lower", simulated=True).text() == "370 kB simulated"


def test_a_metric_that_is_not_the_tasks_own_and_a_measure_of_detail_are_no_headlines():
    report = measure(subject(original=zoo.mlp()), ["quality", "agreement", "size", "throughput"])
    assert [name for name, figure in report.items() if figure.headline] == ["accuracy", "agreement", "size"]

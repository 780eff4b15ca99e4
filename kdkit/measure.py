"""Measuring: what a version costs and what it is worth, each figure with its unit, its backend, and whether it is real.

A figure that was not measured is absent, never guessed; a measure that fails is named in the report's notes and takes no other
with it. Where masks or fake-quant are still pending, size and speed are what they *would* be, and marked as simulated.

Times are medians of repeated calls, taken in turn with the parent's in the same rounds, so that their ratio means something
also on a machine that is busy. Differences under 5 % are noise.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from kdkit.contract import SIMULATED, Trait
from kdkit.counting import Traffic, count_macs, count_parameters, device_of, size_bytes, traffic
from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.hookspecs import hookimpl
from kdkit.models import evaluating, traits_of
from kdkit.table import Cell, Table, number, volatile
from kdkit.tasks import LOWER

if TYPE_CHECKING:
    from kdkit.backends import Backend
    from kdkit.tasks import Task

# what a measurement gives


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: such as "accuracy" or "latency".
        value: in `unit`.
        unit: "B", "ms", "J", "items/s", or "" for counts and qualities.
        better: which way is better.
        backend: where it was measured.
        simulated: it is what would be, not what is.
        n: items judged, or calls timed.
        ratio: to the parent's, where both were measured in turn.
        headline: stands in tables of versions; others in the version's own report alone.

    >>> Figure("size", 370_123, "B", "lower").text()
    '370 kB'
    """

    name: str
    value: float
    unit: str = ""
    better: str = "higher"
    backend: str = ""
    simulated: bool = False
    n: int | None = None
    ratio: float | None = None
    headline: bool = True

    @property
    def steady(self) -> bool:
        """Whether the same version gives the same figure again; times, energies and memory differ from run to run."""
        return self.name != "memory" and self.unit not in ("ns", "us", "ms", "s", "J", "mJ", "W", "items/s", "tokens/s")

    def text(self) -> str:
        """The number with its unit, marked if it is simulated; "…" for what is not steady while `KDKIT_STABLE=1`."""
        return self._shown(number(self.value, self.unit)) + (" simulated" if self.simulated else "")

    def against(self, other: Figure) -> str:
        """How it stands to another of its kind: a difference for a quality, a factor for a cost; "" where neither can be told.

        >>> Figure("accuracy", 0.94).against(Figure("accuracy", 0.95)), Figure("size", 1, "B", "lower").against(Figure("size", 4, "B", "lower"))
        ('-0.01', 'x0.25')
        """
        if not self.unit and self.better == "higher":
            return f"{self.value - other.value:+.3g}"
        return self._shown(_factor(self.value / other.value)) if other.value else ""

    def _shown(self, text: str) -> str:
        return text if self.steady else volatile(text)


def _factor(ratio: float) -> str:
    return f"x{ratio:.3g}"


@dataclass(frozen=True, repr=False)
class Report(Mapping[str, Figure]):
    """What was measured of a version: its figures by name, in order.

    Attributes:
        figures: each name once.
        notes: what could not be measured and why.
        load: what disturbed the timing; empty on a quiet machine.

    >>> Report((Figure("accuracy", 0.9512, n=1000), Figure("size", 370_123, "B", "lower")))
    figure     value     n
    accuracy   0.951  1000
    size      370 kB
    """

    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    load: str = ""

    def __getitem__(self, name: str) -> Figure:
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (figure.name for figure in self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def as_data(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        return {"figures": [asdict(figure) for figure in self.figures], "notes": list(self.notes), "load": self.load}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Report:
        """The report that `as_data` wrote; what a newer kdkit may have added is passed over.

        Raises:
            KdError: it is no report.
        """
        known = {item.name for item in fields(Figure)}
        try:
            figures = tuple(Figure(**{key: value for key, value in item.items() if key in known}) for item in data["figures"])
            return cls(figures, tuple(data.get("notes", ())), data.get("load", ""))
        except (KeyError, TypeError, AttributeError) as error:
            raise KdError(f"this is no report: {type(error).__name__}: {error}", "measure the version again with %kd eval") from error

    @property
    def table(self) -> Table:
        """A figure a row; what is simulated stands in a column of its own."""
        columns: dict[str, list[Any]] = {
            "figure": [figure.name for figure in self.figures],
            "value": [None if figure.simulated else Cell(figure.text()) for figure in self.figures],
            "simulated": [Cell(replace(figure, simulated=False).text()) if figure.simulated else "" for figure in self.figures],
            "to parent": ["" if figure.ratio is None else Cell(figure._shown(_factor(figure.ratio))) for figure in self.figures],
            "n": ["" if figure.n is None else Cell(figure._shown(str(figure.n))) for figure in self.figures],
        }
        kept = {name: cells for name, cells in columns.items() if name in ("figure", "value") or any(cell != "" for cell in cells)}
        return Table(list(kept), list(zip(*kept.values(), strict=True)))

    def _remarks(self) -> list[str]:
        return [*self.notes, *([self.load] if self.load and volatile(self.load) == self.load else [])]

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"note: {remark}" for remark in self._remarks())])

    def _repr_html_(self) -> str:
        from html import escape

        remarks = "".join(f"<li>{escape(remark)}</li>" for remark in self._remarks())
        return self.table._repr_html_() + (f"<ul>{remarks}</ul>" if remarks else "")


# what is measured


@dataclass(frozen=True, eq=False)
class Subject:
    """A version as it is measured.

    Attributes:
        model: the version's.
        task: how its outputs are judged; None where there is no data to tell.
        data: to judge it on; None where there is none.
        example: a batch to call it with; None where there is none.
        backend: where it runs.
        original: the model the session began with, to agree with.
        parent: the version it was made of, to be timed in turn with.
        budget_s: seconds to spend on each timing.
        notes: what measures have to say, for the report.
        check_cancelled: called before each measure and each batch that is judged; raises `Cancelled` to stop there.
    """

    model: nn.Module
    task: Task | None
    data: Data | None
    example: Batch | None
    backend: Backend
    original: nn.Module | None = None
    parent: Subject | None = None
    budget_s: float = 0.5
    notes: list[str] = field(default_factory=list)
    check_cancelled: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[Batch], Any]]:
        """The model on its backend: a function from a batch to the output on the CPU."""
        with self.backend.runner(self.model) as call:
            yield call

    @cached_property
    def traits(self) -> frozenset[str]:
        """What can be seen of the model."""
        return traits_of(self.model)

    @property
    def on_cuda(self) -> bool:
        """Whether the backend computes on CUDA."""
        return str(getattr(self.backend, "device", "")).startswith("cuda")

    @cached_property
    def traffic(self) -> Traffic | None:
        """What one call with one item does to memory; None where torch does not see it."""
        if self.example is None or Trait.ONNX in self.traits:
            return None
        with self.running() as call:
            return traffic(call, resize(self.example, 1), self.model)

    @cached_property
    def one_item(self) -> Timing | None:
        """Times of a call with one item."""
        return self._timed(1)

    @cached_property
    def many_items(self) -> Timing | None:
        """Times of a call with `MANY` items."""
        return self._timed(MANY)

    def _timed(self, size: int) -> Timing | None:
        if self.example is None:
            return None
        batch = resize(self.example, size)
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(self.running())]
            if self.parent is not None:
                with self._spared("no ratio of the latency to the parent's"):
                    call = stack.enter_context(self.parent.running())
                    call(batch)
                    calls.append(call)
            return interleave([partial(call, batch) for call in calls], self.budget_s)

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Note a failure and go on; a request to stop is none."""
        try:
            yield
        except Cancelled:
            raise
        except Exception as error:
            self.notes.append(f"{what}: {_reason(error)}")


@dataclass(frozen=True)
class Measure:
    """One way to measure a version.

    Attributes:
        name: of the measure, and of its figure.
        unit: of the figure.
        better: which way is better.
        run: gives the value of a subject, None where there is none to be had, or whole `Figure`s, several if it likes.
        real_only: whether the figure is simulated while masks or fake-quant are pending.
        headline: whether the figure stands in tables of versions too.

    >>> layers = Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))
    """

    name: str
    unit: str
    better: str
    run: Callable[[Subject], float | Figure | Iterable[Figure] | None]
    real_only: bool = False
    headline: bool = True

    def figures(self, subject: Subject) -> list[Figure]:
        """The figures of a subject.

        Raises:
            TypeError: `run` gave something else.
            ValueError: a figure is not a finite number.
        """
        found = self.run(subject)
        listed = [] if found is None else list(found) if isinstance(found, Iterable) else [found]
        return [self._complete(item, subject) for item in listed]

    def _complete(self, item: Any, subject: Subject) -> Figure:
        figure = item if isinstance(item, Figure) else Figure(self.name, item, self.unit, self.better)
        if isinstance(figure.value, bool) or not isinstance(figure.value, (int, float)):
            raise TypeError(f"{type(figure.value).__name__} is not a number")
        if not math.isfinite(figure.value):
            raise ValueError(f"{figure.name} is {figure.value}")
        simulated = figure.simulated or (self.real_only and bool(subject.traits & SIMULATED))
        return replace(figure, backend=figure.backend or subject.backend.name, simulated=simulated, headline=figure.headline and self.headline)


def measure(subject: Subject, names: Iterable[str | Measure] | None = None) -> Report:
    """Measure a version.

    Args:
        subject: the version.
        names: measures, by name or themselves; all that plugins offer when not said.

    Raises:
        KdError: no measure has that name.

    >>> from types import SimpleNamespace
    >>> net = nn.Linear(3, 4)
    >>> subject = Subject(net, task=None, data=None, example=Batch((torch.ones(2, 3),)), backend=SimpleNamespace(name="cpu"))
    >>> measure(subject, ["parameters", "size", "macs"])
    figure      value
    parameters     16
    size         64 B
    macs           12
    """
    subject = replace(subject, notes=[])
    figures: dict[str, Figure] = {}
    for each in _chosen(names):
        subject.check_cancelled()
        with subject._spared(f"{each.name} was not measured"):
            for figure in each.figures(subject):
                if figure.name in figures:
                    raise KdError(f"another measure gave a figure {figure.name!r} already")
                figures[figure.name] = figure
    timings = [timing for name in ("one_item", "many_items") if (timing := vars(subject).get(name))]
    load = "" if subject.on_cuda else next((timing.load for timing in timings if timing.load), "")
    return Report(tuple(figures.values()), tuple(dict.fromkeys(subject.notes)), load)


def _chosen(names: Iterable[str | Measure] | None) -> list[Measure]:
    from kdkit.plugins import manager

    if names is None:
        offered = [record for _, record in manager().contributions("kdkit_measures")]
        return sorted(offered, key=lambda record: record not in BUILT_IN)
    return [name if isinstance(name, Measure) else manager().named("kdkit_measures", name, "measure") for name in names]


def _reason(error: Exception) -> str:
    if isinstance(error, KdError):
        return error.message
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")


def resize(batch: Batch, size: int) -> Batch:
    """A batch of `size` items, made of a batch's items, taken again from the first where there are too few.

    >>> resize(Batch((torch.tensor([1, 2, 3]),)), 5).args
    (tensor([1, 2, 3, 1, 2]),)
    """
    have = batch.size
    chosen = torch.arange(size) % have

    def each(item: Any) -> Any:
        of_items = isinstance(item, torch.Tensor) and item.dim() > 0 and len(item) == have
        return item[chosen.to(item.device)] if of_items else item

    return Batch(tree_map(each, batch.args), tree_map(each, dict(batch.kwargs)), tree_map(each, batch.labels))


# time


MANY = 32
"""Items in the larger of the two batches that are timed."""


@dataclass(frozen=True)
class Timing:
    """Calls timed in turn.

    Attributes:
        seconds: median of the first call's times.
        ratio: median over the rounds of the first call's time to the second's; None without a second.
        n: rounds.
        load: what disturbed the timing; empty on a quiet machine.
    """

    seconds: float
    ratio: float | None
    n: int
    load: str = ""


def interleave(calls: Sequence[Callable[[], Any]], budget_s: float = 0.5, least: int = 3) -> Timing:
    """Time one call, or two in turn, for about `budget_s` seconds and at least `least` rounds, after a warm-up.

    Which of them goes first changes from round to round.
    """
    _warm_up(calls, budget_s / 4)
    rounds: list[list[float]] = []
    busy, began = time.process_time(), time.perf_counter()
    with _no_collection():
        while len(rounds) < least or time.perf_counter() - began < budget_s:
            times = [0.0] * len(calls)
            for index in range(len(calls))[:: 1 if len(rounds) % 2 else -1]:
                times[index] = _seconds(calls[index])
            rounds.append(times)
    share = (time.process_time() - busy) / (time.perf_counter() - began)
    ratio = statistics.median(times[0] / times[1] for times in rounds) if len(calls) > 1 else None
    load = f"other work on this machine disturbed the timing: the calls got {share:.0%} of a core" if share < 0.85 else ""
    return Timing(statistics.median(times[0] for times in rounds), ratio, len(rounds), load)


def _warm_up(calls: Sequence[Callable[[], Any]], budget_s: float) -> None:
    """Once each, and on while it costs little: allocators, thread pools and lazy compilation settle."""
    began = time.perf_counter()
    for call in calls:
        call()
    while time.perf_counter() - began < budget_s:
        for call in calls:
            call()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """As `timeit` does: no garbage is collected among the calls."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _latency(name: str, timing: Timing | None) -> Figure | None:
    return None if timing is None else Figure(name, 1000 * timing.seconds, "ms", "lower", n=timing.n, ratio=timing.ratio)


def _throughput(subject: Subject) -> Figure | None:
    timing = subject.many_items
    if timing is None:
        return None
    return Figure("throughput", MANY / timing.seconds, "items/s", "higher", n=timing.n, ratio=1 / timing.ratio if timing.ratio else None)


# quality


def _quality(subject: Subject) -> list[Figure]:
    """All the metrics of the task on the evaluation data, its own metric first."""
    task, data = subject.task, subject.data
    if data is None or task is None:
        return []
    items = 0
    with subject.running() as call:

        def counted(batch: Batch) -> Any:
            nonlocal items
            subject.check_cancelled()
            items += batch.size
            return call(batch)

        values = task.evaluate(counted, data)
    ways = {name: "lower" if LOWER & set(name.split("_")) else "higher" for name in values} | {task.metric: task.better}
    return [Figure(name, values[name], "", ways[name], n=items, headline=name == task.metric) for name in sorted(values, key=lambda name: name != task.metric)]


def _agreement(subject: Subject) -> Figure | None:
    """How far the version's outputs on the evaluation data are those of the original, which runs in torch as it is."""
    task, original = subject.task, subject.original
    if subject.data is None or task is None or original is None:
        return None
    total, count = 0.0, 0
    with subject.running() as call, evaluating(original):
        for batch in subject.data.batches():
            subject.check_cancelled()
            same = task.agreeing(call(batch), _on_cpu(batch.to(device_of(original)).call(original)), batch)
            total, count = total + same.double().sum().item(), count + same.numel()
    return Figure("agreement", total / count, n=count) if count else None


def _on_cpu(output: Any) -> Any:
    return tree_map(lambda item: item.cpu() if isinstance(item, torch.Tensor) else item, output)


# memory and energy


def _macs(subject: Subject) -> int | None:
    return None if subject.example is None else count_macs(subject.model, resize(subject.example, 1))


def _memory(subject: Subject) -> int | None:
    if subject.on_cuda and subject.example is not None and Trait.ONNX not in subject.traits:
        return _cuda_peak(subject, resize(subject.example, 1))
    return subject.traffic.peak_bytes if subject.traffic else None


def _cuda_peak(subject: Subject, batch: Batch) -> int:
    """The most that torch's allocator held for the model during a call, weights included."""
    there = size_bytes(subject.model) if device_of(subject.model).type == "cuda" else 0
    before = torch.cuda.memory_allocated()
    with subject.running() as call:
        call(batch)
        torch.cuda.reset_peak_memory_stats()
        call(batch)
        return torch.cuda.max_memory_allocated() - before + there


def _moved(subject: Subject) -> int | None:
    return subject.traffic.moved_bytes if subject.traffic else None


def _energy(subject: Subject) -> Figure | None:
    """Joules a call with one item, of the whole processor or GPU that the backend runs on; None where the machine can't tell."""
    meter = _nvml() if subject.on_cuda else rapl()
    if meter is None or subject.example is None:
        return None
    batch, calls = resize(subject.example, 1), 0
    with subject.running() as call:
        call(batch)
        before, began = meter(), time.perf_counter()
        while not calls or time.perf_counter() - began < subject.budget_s:
            call(batch)
            calls += 1
        return Figure("energy", (meter() - before) / calls, "J", "lower", n=calls)


def rapl(root: Path = Path("/sys/class/powercap")) -> Callable[[], float] | None:
    """Joules used so far by the processors' packages, from Linux's powercap files; None where they can't be read.

    A counter that has run over since the first reading is seen to have done so once.
    """
    domains = [file.parent for file in sorted(root.glob("intel-rapl:*/name")) if _content(file).startswith("package")]
    first = {domain: _content(domain / "energy_uj") for domain in domains}
    if not first or not all(first.values()):
        return None

    def joules() -> float:
        total = 0
        for domain, start in first.items():
            now, end = int(_content(domain / "energy_uj") or start), int(_content(domain / "max_energy_range_uj") or 0)
            total += now - int(start) + (end if now < int(start) else 0)
        return total / 1e6

    return joules


def _content(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _nvml() -> Callable[[], float] | None:
    """Joules used so far by the current GPU; None without NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3


BUILT_IN = (
    Measure("quality", "", "higher", _quality),
    Measure("agreement", "", "higher", _agreement),
    Measure("parameters", "", "lower", lambda subject: count_parameters(subject.model)),
    Measure("size", "B", "lower", lambda subject: size_bytes(subject.model), real_only=True),
    Measure("macs", "", "lower", _macs, real_only=True),
    Measure("memory", "B", "lower", _memory, real_only=True),
    Measure("moved", "B", "lower", _moved, real_only=True, headline=False),
    Measure("latency", "ms", "lower", lambda subject: _latency("latency", subject.one_item), real_only=True),
    Measure("latency_32", "ms", "lower", lambda subject: _latency("latency_32", subject.many_items), real_only=True, headline=False),
    Measure("throughput", "items/s", "higher", _throughput, real_only=True, headline=False),
    Measure("energy", "J", "lower", _energy, real_only=True),
)


@hookimpl
def kdkit_measures() -> Iterable[Measure]:
    """The kit's own measures."""
    return BUILT_IN

"""Layers: the modules of a model as a collapsible tree, with the size and MACs of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import nn

from kdkit.data import Batch
from kdkit.display.charts import row_chart
from kdkit.display.table import Cell, Table, number
from kdkit.guards import explain_error
from kdkit.measurement.macs import macs_by_module
from kdkit.measurement.size import bytes_by_name, count_parameters, parameters_by_name, size_bytes
from kdkit.models.layer_selection import select_layers

LINES = 40
"""Rows of the text; deeper modules are summed up in one line."""
BARS = 12
"""Layers that have their own bar."""

_OPEN = 24
"""Rows up to which the tree is expanded at first."""
_STYLE = (
    "<style>.kd-layers{max-width:60em}.kd-layers ul{list-style:none;margin:0;padding-left:1.2em}.kd-layers>ul{padding-left:0}"
    ".kd-layers summary{cursor:pointer}.kd-layers li>.kd-row{margin-left:1.05em}"
    ".kd-row{display:inline-grid;grid-template-columns:minmax(9em,1fr) 6em 6em 4em 6em;width:calc(100% - 1.4em);gap:0 .5em;vertical-align:top}"
    ".kd-row>span+span{text-align:right;font-variant-numeric:tabular-nums}.kd-row small{opacity:.8}"
    ".kd-unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}</style>"
)


@dataclass(frozen=True)
class Layer:
    """A module with its submodules.

    Attributes:
        name: its full name; "" for the model itself.
        kind: name of its class.
        parameters, bytes: of the module with its submodules; a shared tensor counts in the first module that uses it.
        own_bytes: of the module without its submodules.
        macs: of one call with one item; None if they can't be counted.
        note: its other names, or the weights that it shares.
        marked: whether a pattern matches it.
        parts: its submodules.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    own_bytes: int
    macs: int | None = None
    note: str = ""
    marked: bool = False
    parts: tuple[Layer, ...] = ()

    @property
    def last(self) -> str:
        """Its name within its parent."""
        return self.name.rpartition(".")[2] or self.kind

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Layer]]:
        """The module and all its submodules, each with its depth."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)


@dataclass(frozen=True, repr=False)
class LayerTree:
    """The layers of a version.

    Attributes:
        version: its name.
        root: the model itself.
        patterns: name patterns; matching layers are marked, and the text lists only them.
        notes: what could not be counted, and why.

    >>> LayerTree.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "@base")
    @base: 3 modules in Sequential
    layer       class       parameters  bytes   share
    Sequential  Sequential          26  104 B   100 %
      0         Linear              16   64 B  61.5 %
      1         ReLU                 0    0 B     0 %
      2         Linear              10   40 B  38.5 %
    """

    version: str
    root: Layer
    patterns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, version: str, patterns: Iterable[str] = (), example: Batch | None = None) -> LayerTree:
        """The layers of a model.

        Args:
            patterns: of layers to mark, see `kdkit.models.layer_selection.match`.
            example: one item, to count MACs with.

        Raises:
            KdError: a pattern matches no module.
        """
        patterns, notes = tuple(patterns), []
        marked = select_layers(model, patterns)
        macs: Mapping[str, int] = {}
        if example is not None:
            try:
                macs = macs_by_module(model, example)
            except Exception as error:
                notes.append(f"MACs were not counted: {explain_error(error, type(model).__module__)}")
        return cls(version, _root(model, macs, marked), patterns, tuple(notes))

    def __len__(self) -> int:
        """Number of modules, without the model itself."""
        return sum(1 for _ in self.root.walk()) - 1

    @property
    def marked(self) -> tuple[Layer, ...]:
        """The layers that match the patterns, in the model's order."""
        return tuple(layer for _, layer in self.root.walk() if layer.marked)

    @property
    def summary(self) -> str:
        """One line."""
        if not self.patterns:
            return f"{self.version}: {len(self)} modules in {self.root.kind}"
        tops = list(_tops(self.root))
        held = sum(layer.bytes for layer in tops)
        what = f"{number(sum(layer.parameters for layer in tops))} parameters, {number(held, 'B')} ({self._share(held)})"
        return f"{self.version}: {' '.join(self.patterns)} means {len(self.marked)} of {len(self)} modules: {what}"

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each module without its submodules, the largest first; small ones are summed up."""
        held = sorted(((layer.name or layer.kind, layer.own_bytes) for _, layer in self.root.walk() if layer.own_bytes), key=lambda each: -each[1])
        rest = held[BARS:]
        return dict(held[:BARS]) | ({f"others ({len(rest)})": sum(size for _, size in rest)} if rest else {})

    @property
    def chart(self) -> str:
        """The sizes as bars, as SVG."""
        return row_chart({name: [size] for name, size in self.sizes.items()}, f"Size by layer, {self.version}", unit="B")

    def _share(self, held: int) -> str:
        return f"{held / self.root.bytes:.1%}".replace("%", " %").replace(".0 ", " ") if self.root.bytes else ""

    def __repr__(self) -> str:
        rows = list(self.root.walk()) if not self.patterns else [(0, layer) for layer in self.marked]
        depth = _deepest([at for at, _ in rows], LINES)
        shown = [(at, layer) for at, layer in rows if at <= depth][:LINES]
        left = len(rows) - len(shown)
        more = [f"... and {left} more; --layers 'PATTERN' lists matching ones"] if left else []
        return "\n".join([self.summary, repr(self._table(shown)), *more, *(f"note: {note}" for note in self.notes)])

    def _table(self, rows: Sequence[tuple[int, Layer]]) -> Table:
        counted = any(layer.macs is not None for _, layer in rows)
        noted = any(layer.note for _, layer in rows)
        head = ["layer", "class", "parameters", "bytes", "share", *(["MACs"] if counted else []), *(["note"] if noted else [])]
        return Table(head, [[cell for cell, shown in zip(self._row(*each), [True] * 5 + [counted, noted], strict=True) if shown] for each in rows])

    def _row(self, depth: int, layer: Layer) -> list[str | Cell]:
        name = "  " * depth + layer.last if not self.patterns else layer.name or layer.kind
        macs = Cell("" if layer.macs is None else number(layer.macs))
        return [name, layer.kind, Cell(number(layer.parameters)), Cell(number(layer.bytes, "B")), Cell(self._share(layer.bytes)), macs, layer.note]

    def _repr_html_(self) -> str:
        depth = _deepest([at for at, _ in self.root.walk()], _OPEN)
        titles = "".join(f"<span>{title}</span>" for title in ("layer", "parameters", "bytes", "share", "MACs"))
        head = f'<div class="kd-row" aria-hidden="true" style="margin-left:1.05em">{titles}</div>'
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        tree = f'{_STYLE}<div class="kd-layers">{head}<ul>{self._item(self.root, 0, depth)}</ul></div>'
        return f"<p>{escape(self.summary)}</p>{tree}" + (f"<ul>{notes}</ul>" if notes else "") + f'<div style="margin-top: 0.6em">{self.chart}</div>'

    def _item(self, layer: Layer, depth: int, opened: int) -> str:
        if not layer.parts:
            return f"<li>{self._cells(layer)}</li>"
        state = " open" if depth < opened or any(map(_marked_within, layer.parts)) else ""
        parts = "".join(self._item(part, depth + 1, opened) for part in layer.parts)
        return f"<li><details{state}><summary>{self._cells(layer)}</summary><ul>{parts}</ul></details></li>"

    def _cells(self, layer: Layer) -> str:
        mark = "<b>◆ </b>" if layer.marked else ""
        hidden = '<span class="kd-unseen"> (marked)</span>' if layer.marked else ""
        note = f" <small>({escape(layer.note)})</small>" if layer.note else ""
        name = (
            f'<span title="{escape(layer.name or "the model itself")}">{mark}{"<b>" if layer.marked else ""}{escape(layer.last)}{"</b>" if layer.marked else ""}{hidden}'
        )
        kind = "" if layer.last == layer.kind else f" <small>{escape(layer.kind)}</small>"
        numbers = [(number(layer.parameters), " parameters"), (number(layer.bytes, "B"), ""), (self._share(layer.bytes), " of all")]
        numbers += [("", "") if layer.macs is None else (number(layer.macs), " MACs")]
        cells = "".join(f'<span>{value}{f"""<span class="kd-unseen">{unit}, </span>""" if value else ""}</span>' for value, unit in numbers)
        return f'<span class="kd-row">{name}{kind}{note}</span>{cells}</span>'


def _deepest(depths: Sequence[int], rows: int) -> int:
    """The depth down to which a tree has at most so many rows; at least 1."""
    return next((deepest for deepest in range(max(depths, default=0), 1, -1) if sum(depth <= deepest for depth in depths) <= rows), 1)


def _marked_within(layer: Layer) -> bool:
    return layer.marked or any(map(_marked_within, layer.parts))


def _tops(layer: Layer) -> Iterator[Layer]:
    """The marked layers without those inside another marked layer."""
    if layer.marked:
        yield layer
    else:
        for part in layer.parts:
            yield from _tops(part)


def _root(model: nn.Module, macs: Mapping[str, int], marked: Mapping[str, nn.Module]) -> Layer:
    if answer := getattr(model, "kdkit_layers", None):
        parts = tuple(Layer(name, kind, numbers, held, held) for name, kind, numbers, held in answer())
        held = size_bytes(model)
        return Layer("", type(model).__name__, count_parameters(model), held, held - sum(part.bytes for part in parts), macs.get(""), "", "" in marked, parts)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    owners = {name: names[0] for names in places.values() for name in names}
    parameters, sizes, tied = _by_owner(parameters_by_name(model), owners), _by_owner(bytes_by_name(model), owners), _tied(model)

    def layer(module: nn.Module, name: str) -> Layer:
        named = [(child, f"{name}.{last}" if name else last) for last, child in module.named_children()]
        parts = tuple(layer(child, inner) for child, inner in named if places[child][0] == inner)
        others = [f"also {' '.join(places[module][1:])}"] if places[module][1:] else []
        note = ", ".join([*others, *tied.get(name, ())])
        known = [part.macs for part in parts if part.macs is not None]
        count = macs.get(name, sum(known) if known else None)
        held, own = sum(part.bytes for part in parts), sizes.get(name, 0)
        numbers = parameters.get(name, 0) + sum(part.parameters for part in parts)
        return Layer(name, type(module).__name__, numbers, held + own, own, count, note, name in marked, parts)

    return layer(model, "")


def _by_owner(counts: Mapping[str, int], owners: Mapping[str, str]) -> dict[str, int]:
    """Sums by the module that an entry of a model's state belongs to: the deepest module that its name begins with."""
    sums: dict[str, int] = {}
    for name, count in counts.items():
        place = name.rpartition(".")[0]
        while place not in owners:
            place = place.rpartition(".")[0]
        sums[owners[place]] = sums.get(owners[place], 0) + count
    return sums


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Notes on parameters that a module shares with another one, by the module's name."""
    first: dict[nn.Parameter, str] = {}
    notes: dict[str, list[str]] = {}
    for place, module in model.named_modules():
        for name, weight in module.named_parameters(place, recurse=False):
            if first.setdefault(weight, name) != name:
                notes.setdefault(place, []).append(f"{name.rpartition('.')[2]} is {first[weight]}")
    return notes

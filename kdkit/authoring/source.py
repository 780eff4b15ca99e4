"""Source: a stage of a cell as the text of a module, with the imports, functions and constants that it uses."""

from __future__ import annotations
import __future__

import ast
import builtins
import importlib.metadata
import inspect
import linecache
import symtable
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import CodeType, ModuleType, UnionType
from typing import Any

from kdkit.errors import KdError
from kdkit.stages.stage import Stage


@dataclass
class Source:
    """The source code of a stage.

    Attributes:
        stage: the stage.
        name: the name of the stage in the code.
        imports: import statements, one name each.
        parts: constants, functions and classes in order of definition, the stage last.
    """

    stage: type[Stage]
    name: str
    imports: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def packages(self) -> list[str]:
        """The distributions that the code imports, except kdkit and the standard library."""
        tops = {name.partition(".")[0] for line in self.imports for name in _modules(line)} - {"kdkit", *sys.stdlib_module_names}
        homes = importlib.metadata.packages_distributions()
        return sorted({homes.get(top, [top])[0] for top in tops})


def source_of(stage: type[Stage]) -> Source:
    """The source code of a stage, collected from the cells (or the module) where it was defined.

    Raises:
        KdError: the stage is not defined at the top level, or uses an object that can't be written as code.
    """
    written = _written(stage)
    gathering = _Gathering(stage.id.replace(".", " ", 1), written.__module__)
    gathering.take(written.__name__, written)
    return Source(stage, written.__name__, list(gathering.imports), gathering.parts)


def _written(value: Any) -> Any:
    """The object in the source: for a stage made from a function, the function."""
    return vars(value).get("source", value) if isinstance(value, type) and issubclass(value, Stage) else value


class _Gathering:
    """The parts found so far, and the namespace to search."""

    def __init__(self, title: str, module: str):
        self.title, self.module = title, module
        self.namespace: Mapping[str, Any] = vars(sys.modules[module])
        self.imports: dict[str, None] = {}
        self.parts: list[str] = []
        self._taken: set[str] = set()

    def take(self, name: str, value: Any) -> None:
        """Add the definition of `name`, after everything that it uses."""
        if name in self._taken:
            return
        self._taken.add(name)
        if _is_plain(value):
            self.parts.append(f"{name} = {value!r}")
        elif self._is_defined_here(value):
            self._define(name, _written(value))
        else:
            self._import(name, value)

    def _is_defined_here(self, value: Any) -> bool:
        """Whether a value is a function or class of this module, or a type alias, which has no module."""
        return hasattr(value, "__origin__") or isinstance(value, UnionType) or (hasattr(value, "__name__") and getattr(value, "__module__", None) == self.module)

    def _define(self, name: str, value: Any) -> None:
        text = self._definition(name, value)
        for used in sorted(_globals(text) - {name}):
            if used in self.namespace and not used.startswith("__"):
                self.take(used, self.namespace[used])
            elif not hasattr(builtins, used):
                raise KdError(f"{self.title}: {name} uses {used}, which is not defined", "run the cell that defines it")
        if getattr(_code(value), "co_flags", 0) & __future__.annotations.compiler_flag:
            self.imports["from __future__ import annotations"] = None
        self.parts.append(text)

    def _definition(self, name: str, value: Any) -> str:
        """The lines where a name is defined, decorators included."""
        for lines, within in _where_written(value, self.module):
            for node in reversed(_parsed(lines)):
                first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
                if _defines(node, name) and (within is None or first <= within <= (node.end_lineno or first)):
                    return "".join(lines[first - 1 : node.end_lineno]).rstrip()
        raise KdError(f"{self.title}: the source of {name} was not found", "define it with this name at the top level of a cell, run the cell, and try again")

    def _import(self, name: str, value: Any) -> None:
        written = next((line for lines in _texts(self.module) for line in reversed(list(_imports_of(name, lines)))), None)
        statement = written or _import_of(name, value)
        if statement is None:
            raise KdError(
                f"{self.title} uses {name}, a {type(value).__name__} of this notebook, which a module can't hold",
                f"create it inside the stage, or pass it through the session: {name}: str = kdkit.param({name!r}, 'what it is', names='object')",
            )
        self.imports[statement] = None


def _is_plain(value: Any) -> bool:
    """Whether a value's repr is valid code for it, and short."""
    try:
        return isinstance(value, _PLAIN) and len(repr(value)) < 2000 and type(ast.literal_eval(repr(value))) is type(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


_PLAIN = (type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set)


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    return isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [name]


def _globals(text: str) -> set[str]:
    """The global names that a definition uses."""
    tables, found = [symtable.symtable(text, "<stage>", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned()))}
    return found


def _where_written(value: Any, module: str) -> Iterator[tuple[list[str], int | None]]:
    """Texts that contain a definition, each with the line of its code; for an object without code all cells, the latest first."""
    codes = [code for each in (vars(value).values() if isinstance(value, type) else [value]) if (code := _code(each)) is not None]
    yield from ((linecache.getlines(code.co_filename), code.co_firstlineno) for code in codes)
    if not codes:
        yield from ((lines, None) for lines in _texts(module))


def _code(value: Any) -> CodeType | None:
    return getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None


def _texts(module: str) -> Iterator[list[str]]:
    """The lines of a module's file; of the notebook, those of each cell that was run, the latest first.

    Cells are the entries of `linecache` without a modification time; IPython adds them for its tracebacks.
    """
    if module == "__main__":
        yield from (entry[2] for entry in reversed(list(linecache.cache.values())) if len(entry) == 4 and entry[1] is None)
    else:
        yield linecache.getlines(getattr(sys.modules[module], "__file__", None) or "")


def _parsed(lines: list[str]) -> list[ast.stmt]:
    try:
        return ast.parse("".join(lines)).body
    except SyntaxError:
        return []


def _imports_of(name: str, lines: list[str]) -> Iterator[str]:
    """The import statements of a text that bind a name, as short as they can be."""
    for node in _parsed(lines):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                alone = ast.ImportFrom(node.module, [alias], node.level) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
                yield ast.unparse(alone)


def _import_of(name: str, value: Any) -> str | None:
    """An import statement that binds a name to a value, None if no module exports the value."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    home, own = getattr(value, "__module__", None), getattr(value, "__qualname__", name)
    if home in (None, "__main__") or getattr(sys.modules.get(str(home)), own, None) is not value:
        return None
    return f"from {home} import {own}" if own == name else f"from {home} import {own} as {name}"


def _modules(statement: str) -> list[str]:
    node = ast.parse(statement).body[0]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def grouped(statements: Iterable[str]) -> str:
    """Import statements sorted like isort: __future__, the standard library, third parties; one statement for each module.

    >>> print(grouped(["from torch import nn", "import math", "from torch import Tensor", "import torch"]))
    import math
    <BLANKLINE>
    import torch
    from torch import Tensor, nn
    """
    plain: list[str] = []
    names: dict[str, set[str]] = defaultdict(set)
    for statement in statements:
        node = ast.parse(statement).body[0]
        if isinstance(node, ast.ImportFrom):
            names[node.module or ""] |= {ast.unparse(alias) for alias in node.names}
        else:
            plain.append(statement)
    whole = [*plain, *(f"from {module} import {', '.join(sorted(found, key=_kind))}" for module, found in names.items())]
    groups = groupby(sorted(whole, key=_place), key=lambda statement: _place(statement)[:2])
    return "\n\n".join("\n".join(group) for _, group in groups)


def _place(statement: str) -> tuple:
    top = _modules(statement)[0].partition(".")[0]
    return (top != "__future__", top not in sys.stdlib_module_names, statement.startswith("from"), statement.lower())


def _kind(name: str) -> tuple:
    """Constants, classes, functions."""
    return (not (name.isupper() and len(name) > 1), not name[:1].isupper(), name)

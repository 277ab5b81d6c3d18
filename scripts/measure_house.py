"""Measure the package: sizes, complexity, import cycles, and the modules that a run enters.

Prints a table, and with ``--list`` everything above a limit::

    python scripts/measure_house.py
    python scripts/measure_house.py --list --no-ways

Code lines are lines without docstrings, comments and blanks. Complexity is cyclomatic, as radon
counts it. A "way" is the set of modules entered during one small ``molfun fine-tune`` run of ESM-2,
up to its first loss. There are four: all modules before ``fit``, all within it, those whose
functions get the settings of the command line as an argument, and those that get a batch.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import networkx
from radon.complexity import cc_visit

ROOT = Path(__file__).parents[1]
FACADE = ("molfun/models/structure.py", "MolfunStructureModel")
MAX_FUNCTION, MAX_COMPLEXITY, MAX_FILE, MAX_FACADE = 60, 10, 500, 450
FLOORS = ("molfun/models", "molfun/training", "molfun/cli")
"""Folders in which no file may be longer than `MAX_FILE`."""

FAMILIES, MAX_FAMILY = "molfun/backbones/transformers", 100
"""Folder with one file per family of language models, and the lines that such a file may have."""

CONTRACTS = "molfun/testing/"
_DATA = ("SampleDataset", "Subset", "DataLoader", "Sample", "SampleBatch", "Inputs", "TrunkOutput")
"""Classes of a batch on its way from the data set to the loss."""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """One function or method."""

    where: str
    """File and qualified name."""
    lines: int
    complexity: int


@dataclass(frozen=True)
class House:
    """Sizes of the package; files and functions are named by their path in the repository."""

    files: dict[str, int]
    """Number of code lines of every file."""
    functions: list[Function]
    facade_lines: int
    facade_methods: list[str]

    def long_files(self, *folders: str) -> list[str]:
        """Return the files with more lines than the limit, in `folders` or anywhere."""
        inside = tuple(f"{folder}/" for folder in folders) or ("",)
        return [
            name for name in self.files if name.startswith(inside) and all_lines(name) > MAX_FILE
        ]

    @property
    def long_families(self) -> list[str]:
        """Files of a family of language models with more lines than these may have."""
        return [name for name in families() if all_lines(name) > MAX_FAMILY]

    @property
    def long_functions(self) -> list[str]:
        """Functions with more code lines than the limit."""
        return [f.where for f in self.functions if f.lines > MAX_FUNCTION]

    @property
    def complex_functions(self) -> list[str]:
        """Functions above the limit of complexity."""
        return [f.where for f in self.functions if f.complexity > MAX_COMPLEXITY]


@dataclass
class Way:
    """Modules and functions that were entered during a part of the run."""

    functions: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    entries: int = 0
    """Calls from one module of the package into another."""

    def enter(self, frame: FrameType) -> None:
        """Count a call from another module; calls within one module count as one stay."""
        module = frame.f_globals["__name__"]
        self.modules.add(module)
        caller = frame.f_back
        if caller is None or caller.f_globals.get("__name__") != module:
            self.entries += 1
            self.functions.add(f"{module}.{frame.f_code.co_qualname}")


def families() -> list[str]:
    """Return the files of the families of language models: those that the package imports from.

    What the families share stands in other files of the folder.
    """
    tree = ast.parse((ROOT / FAMILIES / "__init__.py").read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    own = FAMILIES.replace("/", ".") + "."
    names = sorted(m.removeprefix(own) for m in modules if m.startswith(own))
    return [f"{FAMILIES}/{name}.py" for name in names if name != "backbone"]


def all_lines(name: str) -> int:
    """Return the number of all lines of a file."""
    return len((ROOT / name).read_text().splitlines())


def code_lines(text: str) -> set[int]:
    r"""Return the numbers of the lines that hold code.

    Examples
    --------
    >>> sorted(code_lines('def f():\n    "Doc."\n\n    # why\n    return 1\n'))
    [1, 5]
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTION)):
            for statement in node.body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    lines -= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return lines


def functions_of(name: str, text: str, lines: set[int]) -> Iterator[Function]:
    """Yield all functions of a file, including methods and nested functions."""
    complexity = {
        (block.lineno, block.name): block.complexity
        for top in cc_visit(text)
        for block in (top, *getattr(top, "methods", ()), *getattr(top, "closures", ()))
    }
    for scope, node in _definitions(ast.parse(text), ""):
        inside = lines & set(range(node.lineno, (node.end_lineno or 0) + 1))
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found = complexity.get((node.lineno, node.name), complexity.get((first, node.name), 0))
        yield Function(f"{name}:{scope}{node.name}", len(inside), found)


def _definitions(
    node: ast.AST, scope: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTION):
            yield scope, child
        inside = f"{scope}{child.name}." if isinstance(child, (ast.ClassDef, *_FUNCTION)) else scope
        yield from _definitions(child, inside)


def measure(root: Path = ROOT) -> House:
    """Measure the sources of the package."""
    files: dict[str, int] = {}
    functions: list[Function] = []
    for path in sorted((root / "molfun").rglob("*.py")):
        name, text = path.relative_to(root).as_posix(), path.read_text()
        lines = code_lines(text)
        files[name] = len(lines)
        if not name.startswith(CONTRACTS):  # tests: radon counts every assert as a branch
            functions += functions_of(name, text, lines)
    home, facade = FACADE
    tree = ast.parse((root / home).read_text())
    (body,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == facade)
    names = [n.name for n in body.body if isinstance(n, _FUNCTION) and not n.name.startswith("_")]
    return House(files, functions, files[home], sorted(set(names)))


def cycles() -> list[list[str]]:
    """Return groups of modules that import each other, including imports for types only."""
    graph = grimp.build_graph("molfun", cache_dir=None)
    imports = networkx.DiGraph()
    for module in graph.modules:
        targets = graph.find_modules_directly_imported_by(module)
        imports.add_edges_from((module, target) for target in targets)
    groups = networkx.strongly_connected_components(imports)
    return [sorted(group) for group in groups if len(group) > 1]


def ways() -> dict[str, Way]:
    """Record the calls of one run, from the command line to the first loss."""
    from molfun.cli.main import main

    found = {name: Way() for name in ("command line to fit", "settings", "fit to loss", "batch")}
    watch = _watch(*found.values())
    with tempfile.TemporaryDirectory() as name:
        table = Path(name, "data.csv")
        rows = [f"MKVLAAG{letter},{i}" for i, letter in enumerate("ACDEFGHIKL")]
        table.write_text("\n".join(["sequence,target", *rows, ""]))
        arguments = f"fine-tune --backbone esm2 --preset tiny --data {table} --epochs 1"
        sys.argv = ["molfun", *arguments.split(), "--device", "cpu", "--output", f"{name}/run"]
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            sys.setprofile(watch)
            try:
                main()
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(
                        f"The run that is followed failed: {said.getvalue()}"
                    ) from end
            finally:
                sys.setprofile(None)
    return found


def _watch(
    before: Way, settings: Way, fit: Way, batch: Way
) -> Callable[[FrameType, str, Any], None]:
    phase = before

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal phase
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if not module.startswith("molfun.") or function == "<module>":
            return
        if event == "return" and module.startswith("molfun.tasks") and function.endswith(".loss"):
            sys.setprofile(None)
        elif event == "call":
            phase = fit if function == f"{FACADE[1]}.fit" else phase
            phase.enter(frame)
            given = _arguments(frame)
            if any(_is(value, "Settings") for value in given):
                settings.enter(frame)
            if phase is fit and any(_is(value, *_DATA) for value in given):
                batch.enter(frame)

    return watch


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [frame.f_locals.get(name) for name in names]


def _is(value: Any, *names: str) -> bool:
    return any(cls.__qualname__ in names for cls in type(value).__mro__)


def report(house: House, *, with_ways: bool = True) -> Iterator[tuple[str, object, object]]:
    """Yield the rows of the table: name, value, limit."""
    yield "facade: code lines", house.facade_lines, MAX_FACADE
    yield "facade: public methods", len(house.facade_methods), "-"
    yield f"functions above {MAX_FUNCTION} lines", len(house.long_functions), 0
    yield f"functions above complexity {MAX_COMPLEXITY}", len(house.complex_functions), 0
    yield f"files above {MAX_FILE} lines: models, training, cli", len(house.long_files(*FLOORS)), 0
    yield f"files above {MAX_FAMILY} lines: model families", len(house.long_families), 0
    yield f"files above {MAX_FILE} lines: all", len(house.long_files()), "-"
    contracts = sum(n for name, n in house.files.items() if name.startswith(CONTRACTS))
    yield "code lines, without the contracts", sum(house.files.values()) - contracts, "-"
    yield "code lines of the contracts (molfun.testing)", contracts, "-"
    yield "import cycles", len(cycles()), 0
    if not with_ways:
        return
    for name, way in ways().items():
        yield f"{name}: modules", len(way.modules), "-"
        yield f"{name}: functions entered from another module", len(way.functions), "-"
        yield f"{name}: entries into modules", way.entries, "-"


def main() -> None:
    """Print the table, and with ``--list`` everything above a limit."""
    parser = argparse.ArgumentParser(description="Measure the package.")
    parser.add_argument("--list", action="store_true", help="name what is above a limit")
    parser.add_argument("--no-ways", action="store_true", help="leave out the run that is followed")
    options = parser.parse_args()
    house = measure()
    for name, value, limit in report(house, with_ways=not options.no_ways):
        print(f"{name:<58}{value!s:>8}{limit!s:>8}")
    if options.list:
        for title, names in (
            (f"functions above {MAX_FUNCTION} lines", house.long_functions),
            (f"functions above complexity {MAX_COMPLEXITY}", house.complex_functions),
            (f"files above {MAX_FILE} lines", house.long_files()),
            (f"model families above {MAX_FAMILY} lines", house.long_families),
            ("import cycles", [" ".join(group) for group in cycles()]),
        ):
            print(f"\n{title}", *names, sep="\n  ")


if __name__ == "__main__":
    main()

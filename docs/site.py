"""Hook of mkdocs: pages that are made from the code, so that they stand nowhere twice.

The reference has one page per public package, with everything in its ``__all__``; the tutorials are
the sources of the notebooks, and with ``RUN_TUTORIALS=1`` (``make docs``) what their cells give. A
public name without a docstring stops the build.

Files are parsed and never imported, so that all but that needs neither torch nor any backbone.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
MODULES = ("molfun.errors", "molfun.registry")
"""Modules that are public as a whole."""
OPTIONS = {"molfun.data": ("    options:", "      inherited_members: true")}
"""Data sets have much of what users call from their bases; elsewhere the bases are torch's."""


class Origin(NamedTuple):
    """Where a public name is defined, and under which name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@cache
def packages() -> list[str]:
    """List the packages of Molfun that list public names."""
    files = sorted((ROOT / "molfun").rglob("__init__.py"))
    public = [file for file in files if "__all__" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(ROOT).parent.parts) for file in public]


@cache
def declared(package: str) -> dict[str, Origin]:
    """Map the public names of a package to their origins.

    A stub re-exports them (``import Head as Head``); what it does not, ``__all__`` lists as text.
    """
    imported: dict[str, Origin] = {}
    public: set[str] = set()
    for suffix in (".py", ".pyi"):
        for node in ast.walk(_tree(f"{package}.__init__", suffix)):
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    imported[name.asname or name.name] = Origin(node.module or "", name.name)
                public |= {n.name for n in node.names if suffix == ".pyi" and n.asname}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                public |= {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
    return {name: _source(imported[name]) for name in sorted(public - {"__version__"})}


def _source(origin: Origin) -> Origin:
    """Follow a name that one package takes from another to the module that defines it."""
    while origin.module in packages():
        origin = declared(origin.module)[origin.name]
    return origin


def home(origin: Origin) -> str:
    """Choose the page that describes a name.

    It is that of its module if all of this is public, else of the package that it is in, else of
    the last package that gives it.
    """
    if origin.module in MODULES:
        return origin.module
    holders = [p for p in packages() if origin in declared(p).values()]
    inside = [p for p in holders if p != "molfun" and origin.module.startswith(f"{p}.")]
    return (inside or holders)[-1]


def reference(package: str) -> str:
    """Write the page of a package; names that stand on another page are links."""
    doc = (ast.get_docstring(_tree(f"{package}.__init__")) or "").partition("\n")[0]
    lines = [f"# {package}", "", doc, ""]
    elsewhere = []
    for name, origin in declared(package).items():
        if home(origin) == package:
            lines += [f"::: {origin}", *OPTIONS.get(package, ()), ""]
        else:
            summary = (_docstring(origin) or "").strip().partition("\n")[0]
            elsewhere.append(f"- [`{name}`][{origin}]: {summary}")
    if elsewhere:
        lines += ["## Described on other pages", "", *elsewhere]
    return "\n".join(lines) + "\n"


def undocumented(package: str) -> list[str]:
    """List the public names of a package that have no docstring."""
    return [
        f"{package}.{name} ({origin.module})"
        for name, origin in declared(package).items()
        if not _docstring(origin)
    ]


def _docstring(origin: Origin) -> str | None:
    """Return the docstring of a class or function, or the text below a constant."""
    body = _tree(origin.module).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == origin.name:
            return ast.get_docstring(node)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node
            names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            if origin.name in names and isinstance(below, ast.Expr):
                return str(ast.literal_eval(below.value))
    return None


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tree(module: str, suffix: str = ".py") -> ast.Module:
    """Parse a module or its stub; an empty one if there is none."""
    path = (ROOT / module.replace(".", "/")).with_suffix(suffix)
    package = path.with_suffix("") / "__init__.py"
    if suffix == ".py" and package.is_file():
        path = package
    return _parsed(path) if path.is_file() else ast.Module([], [])


def tutorial(source: Path, *, run: bool) -> str:
    """Write the page of a notebook; with `run`, every cell is followed by what it gives.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    import jupytext

    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    if run:
        import nbclient

        with tempfile.TemporaryDirectory() as folder:
            place = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    blocks = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            blocks += [f"```python\n{cell.source}\n```", *map(_shown, cell.get("outputs", []))]
        else:
            blocks.append(cell.source)
    return "\n\n".join(filter(None, blocks)) + "\n"


def _shown(output: Any) -> str:
    """Write what a cell gave: a picture, or text; logs and warnings are left out."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    text = output["text"] if output.get("name") == "stdout" else data.get("text/plain", "")
    return f'```text title="Output"\n{text.rstrip()}\n```' if text.strip() else ""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show formulas of docstrings as code: rendering LaTeX takes a download when the site is read."""
    from markdown.extensions import Extension
    from markdown.preprocessors import Preprocessor

    class Formulas(Preprocessor):
        def run(self, lines: list[str]) -> list[str]:
            text = "\n".join(lines).replace(":math:`", "`")
            return re.sub(r"^\.\. math:: (.*)", r"```latex\n\1\n```", text, flags=re.M).split("\n")

    class Math(Extension):
        def extendMarkdown(self, md: Any) -> None:  # noqa: N802  (markdown's name)
            before_code_blocks = 40  # those of superfences have 25
            md.preprocessors.register(Formulas(md), "formulas", before_code_blocks)

    config.markdown_extensions.append(Math())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages.

    Raises
    ------
    PluginError
        Naming every public name without a docstring.
    """
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    faults = [fault for package in packages() for fault in undocumented(package)]
    if faults:
        raise PluginError(f"Public names without a docstring: {', '.join(faults)}")
    pages = {f"reference/{p}.md": reference(p) for p in packages()}
    pages |= {f"reference/{m}.md": f"# {m}\n\n::: {m}\n" for m in MODULES}
    run = os.environ.get("RUN_TUTORIALS") == "1"
    for source in sorted((ROOT / "docs/notebooks").glob("*.py")):
        pages[f"tutorials/{source.stem}.md"] = tutorial(source, run=run)
    pages["weights.md"] = (ROOT / "weights/README.md").read_text(encoding="utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files

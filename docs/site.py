"""Hook of mkdocs: pages that are made from the code, so that they stand nowhere twice.

The reference has one page per public package, with everything in its ``__all__``; the tutorials are
the sources of the notebooks.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "molfun",
    "molfun.data",
    "molfun.training",
    "molfun.heads",
    "molfun.tasks",
    "molfun.objectives",
    "molfun.backbones",
    "molfun.models",
    "molfun.testing",
    "molfun.lightning",
    "molfun.esm2",
)
MODULES = ("molfun.errors", "molfun.registry")
"""Modules that are public as a whole."""
OPTIONS = {"molfun.data": ("    options:", "      inherited_members: true")}
"""Data sets have much of what users call from their bases; elsewhere the bases are torch's."""
_DECLARED = re.compile(r"^from (\S+) import (?:\(\s+)?(\w+) as \2\b", re.MULTILINE)


def declared(package: str) -> dict[str, str]:
    """Public names of a package, with the module that defines each."""
    stub = (ROOT / package.replace(".", "/") / "__init__.pyi").read_text(encoding="utf-8")
    return {name: module for module, name in _DECLARED.findall(stub)}


def reference(package: str) -> str:
    """Page of a package; names that stand on another page are links."""
    doc = (importlib.import_module(package).__doc__ or "").partition("\n")[0]
    lines = [f"# {package}", "", doc, ""]
    for name, module in sorted(declared(package).items()):
        target = f"{module}.{name}"
        if home(module, name) == package:
            lines += [f"::: {target}", *OPTIONS.get(package, ()), ""]
        else:
            lines += [f"- [`{name}`][{target}]"]
    return "\n".join(lines) + "\n"


def home(module: str, name: str) -> str:
    """Page that describes a name: of its module if that is public, else of the last package."""
    if module in MODULES:
        return module
    holders = [package for package in PACKAGES if declared(package).get(name) == module]
    return next((h for h in reversed(holders) if h != "molfun.lightning"), "molfun.lightning")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages: dict[str, Any] = {f"reference/{p}.md": reference(p) for p in PACKAGES}
    pages |= {f"reference/{m}.md": f"# {m}\n\n::: {m}\n" for m in MODULES}
    for source in sorted((ROOT / "docs/notebooks").glob("*.py")):
        notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
        notebook.metadata.clear()
        pages[f"tutorials/{source.stem}.md"] = jupytext.writes(notebook, fmt="md")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files

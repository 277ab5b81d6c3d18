"""Import names on first use, so that ``import molfun`` and ``molfun --help`` stay instant."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from molfun.errors import MissingDependencyError

# `X as X` is how stub files mark a re-export (PEP 484)
_DECLARATION = re.compile(r"^from (\S+) import (?:\(\s+)?(\w+) as \2\b", re.MULTILINE)


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package, made from its stub file.

    The stub next to ``__init__.py`` has one line per public name. Editors, type checkers and this
    function all read it, so that they cannot disagree::

        from molfun.data.affinity import AffinityDataset as AffinityDataset

    Parameters
    ----------
    package
        ``__name__`` of the package.
    file
        ``__file__`` of the package.

    References
    ----------
    PEP 562, module ``__getattr__``; PEP 484, stub files.
    """
    stub = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    exports = {name: module for module, name in _DECLARATION.findall(stub)}

    def lookup(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return lookup, names, sorted(exports)


def require(module: str, install: str) -> ModuleType:
    """Import an optional dependency, or raise an error that says how to install it.

    Raises
    ------
    MissingDependencyError
        If `module` cannot be imported; the text holds `install`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed here and cannot be imported ({error}). Install it: {install}"
        ) from error


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Drop what packages log while they are imported.

    torchao warns of kernels for other GPUs, and torch of how torchao registers enumerations.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

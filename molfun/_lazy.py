"""Import on first use, so that ``import molfun`` and ``molfun --help`` stay instant."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from molfun.errors import MissingDependencyError


def attach(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Make ``__getattr__`` and ``__all__`` for a package whose names are imported when first used.

    Parameters
    ----------
    package
        ``__name__`` of the package.
    exports
        Public name -> module that defines it.

    References
    ----------
    PEP 562, module ``__getattr__``.
    """

    def lookup(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    return lookup, sorted(exports)


def require(module: str, install: str) -> ModuleType:
    """Import an optional dependency or say how to get it.

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

"""Modules of the user that register parts of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from molfun.errors import ConfigError


def allow_plugin(
    name: object, source: str | Path, overrides: Sequence[str], *, trust: bool
) -> None:
    """Refuse a plugin that a file names and the command line does not: it is code, and would run.

    Parameters
    ----------
    name
        Name of the module.
    source
        File that names it.
    overrides
        Settings of the command line; ``plugin=NAME`` among them allows it.
    trust
        Whether the command line has ``--trust``. What the file says of itself does not count.

    Raises
    ------
    ConfigError
        Naming the flag that allows it.
    """
    if trust or any(text.partition("=")[0] == "plugin" for text in overrides):
        return
    raise ConfigError(
        f"{source} names the plugin {name!r}: a Python module, whose code would run. If you know "
        f"what it does, name it on the command line, too: --plugin {name}"
    )


def load_plugin(name: str) -> None:
    """Import a module that registers parts, also from the working directory.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    folder = str(Path.cwd())
    # first for the plugin alone: what is imported later must not be a file that lies here by chance
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a user's module does
        raise ConfigError(
            f"--plugin {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)

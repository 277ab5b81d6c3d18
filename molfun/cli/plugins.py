"""Modules of the user that register parts of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from molfun.errors import ConfigError


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


def load_plugin_of(
    source: str | Path, name: str | None, overrides: Sequence[str], *, trust: bool
) -> None:
    """Import the plugin that a file names, if the command line allows it: its code runs.

    Parameters
    ----------
    source
        File that names it.
    name
        Name of the module; None if the file names none.
    overrides
        Settings of the command line; ``plugin=NAME`` among them allows it.
    trust
        Whether the command line has ``--trust``. What the file says of itself does not count.

    Raises
    ------
    ConfigError
        If it is not allowed, naming the flag that allows it; or if it cannot be imported.
    """
    if name is None:
        return
    if not trust and not any(text.partition("=")[0] == "plugin" for text in overrides):
        raise ConfigError(
            f"{source} names the plugin {name!r}: a Python module, whose code would run. If you "
            f"know what it does, name it on the command line, too: --plugin {name}"
        )
    load_plugin(name)

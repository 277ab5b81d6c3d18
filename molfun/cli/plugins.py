"""Import modules of the user that register further backbones, heads and other parts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from molfun.errors import ConfigError


def load_plugin(name: str) -> None:
    """Import a module that registers parts, from the working directory as well.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    folder = str(Path.cwd())
    # First on the path for the plugin alone, and last afterwards: a file such as random.py in the
    # working directory must not replace a module that is imported later.
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
        File that names the plugin.
    name
        Name of the module; None if the file names none.
    overrides
        Settings of the command line; ``plugin=NAME`` among them allows the import.
    trust
        Whether the command line has ``--trust``. A ``trust`` in the file does not count.

    Raises
    ------
    ConfigError
        If it is not allowed (the text has the flag that allows it), or cannot be imported.
    """
    if name is None:
        return
    # a config.yaml may come from anywhere, and naming a module in it must not be enough to run code
    if not trust and not any(text.partition("=")[0] == "plugin" for text in overrides):
        raise ConfigError(
            f"{source} names the plugin {name!r}: a Python module, whose code would run. If you "
            f"know what it does, name it on the command line as well: --plugin {name}"
        )
    load_plugin(name)

"""Find the relative paths in the settings of a run again, from another working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings, paths_in
from molfun.data.kinds.base import with_kinds

STARTED_IN = "started_in"
"""Setting with the directory in which a run was started, relative to the folder of the run."""


def started_in(folder: Path) -> str:
    """Return the working directory relative to the folder of a run: both can be moved together.

    Examples
    --------
    >>> started_in(Path("runs/lora"))
    '../..'
    """
    return os.path.relpath(Path.cwd(), folder.resolve())


def as_started(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of a stored run, with paths relative to the current working directory.

    A path is resolved from the directory in which the run was started; if nothing is there, it is
    not changed.

    Parameters
    ----------
    values
        Content of ``config.yaml``.
    folder
        Folder of the run.
    """
    values = dict(values)
    origin = values.pop(STARTED_IN, None)
    if not isinstance(origin, str):
        return values
    base = folder.resolve() / origin
    # the same directory under two names (a link, /private/tmp on macOS) is the same
    if os.path.realpath(base) == os.path.realpath(Path.cwd()):
        return values
    for name in _paths():
        given = values.get(name)
        if isinstance(given, str):
            values[name] = _found(given, base)
        elif isinstance(given, list):
            values[name] = [_found(path, base) for path in given]
    return values


def _found(path: Any, base: Path) -> Any:
    # os.path.expanduser returns the path of an unknown user as it is; pathlib raises an error
    if not isinstance(path, str) or os.path.isabs(os.path.expanduser(path)):  # noqa: PTH111, PTH117
        return path
    there = base / path
    return os.path.relpath(there) if os.path.lexists(there) else path


def _paths() -> set[str]:
    """Return the names of settings that are paths, of fine-tuning and pre-training runs."""
    return {*paths_in(with_kinds(FineTuneSettings)), *paths_in(PretrainSettings)}

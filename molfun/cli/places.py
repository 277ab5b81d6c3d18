"""Where the relative paths of a run's settings are found again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings, paths_in
from molfun.data.kinds.base import with_kinds

STARTED_IN = "started_in"
"""Setting that holds the folder a run was started in, as seen from the folder of the run."""


def started_in(folder: Path) -> str:
    """The working directory as seen from the folder of a run: both can be moved together.

    Examples
    --------
    >>> started_in(Path("runs/lora"))
    '../..'
    """
    return os.path.relpath(Path.cwd(), folder.resolve())


def as_started(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a stored run, with relative paths that hold in the working directory of now.

    A path is taken from the folder that the run was started in; where nothing is there, it stays as
    it is.

    Parameters
    ----------
    values
        What ``config.yaml`` holds.
    folder
        Folder of the run.
    """
    values = dict(values)
    origin = values.pop(STARTED_IN, None)
    if not isinstance(origin, str):
        return values
    base = folder.resolve() / origin
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
    # os.path leaves a user not known here as it is
    if not isinstance(path, str) or os.path.isabs(os.path.expanduser(path)):  # noqa: PTH111, PTH117
        return path
    there = base / path
    return os.path.relpath(there) if os.path.lexists(there) else path


def _paths() -> set[str]:
    """Settings that are paths, of runs of either kind."""
    return {*paths_in(with_kinds(FineTuneSettings)), *paths_in(PretrainSettings)}

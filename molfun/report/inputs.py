"""Inputs of a finished run, read again from its files to be shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.errors import MolfunError
from molfun.registry import DATASETS, DEFAULT_KIND
from molfun.report.finished import FinishedRun
from molfun.sample import Sample

LARGEST = 200 * 2**20
"""Bytes of a file that is read again for a few samples of it."""
FOLDERS = ("pdbs", "features", "alignments")
"""Settings that name folders, seen from where the run was started."""


def kind_name(run: FinishedRun) -> str:
    """Return the registered name of the kind of data of a run."""
    name = run.meta.get("data", {}).get("kind", DEFAULT_KIND)
    return DATASETS.resolve(name)[0] if name in DATASETS else str(name)


def place_of(run: FinishedRun, given: str) -> Path:
    """Return where a path of the settings is, seen from where the run was started."""
    path = as_path(given)
    origin = run.config.get("started_in")
    if path.is_absolute() or not isinstance(origin, str):
        return path
    there = run.path.resolve() / origin / path
    return there if there.exists() else path


def samples(run: FinishedRun, ids: list[str]) -> dict[str, Sample]:
    """Return the samples of some ids; fewer where files have moved or are large."""
    found: dict[str, Sample] = {}
    for files in _files(run):
        missing = [i for i in ids if i not in found]
        if missing:
            found |= _read(run, files, missing)
    return found


def _files(run: FinishedRun) -> Iterator[list[Path]]:
    """Yield the files, or folders of structures, of the test, validation and training samples."""
    for name in ("test", "val", "data"):
        given = run.config.get(name)
        if given:
            files = [place_of(run, p) for p in ([given] if isinstance(given, str) else given)]
            if all(f.is_dir() or (f.is_file() and f.stat().st_size <= LARGEST) for f in files):
                yield files


def _settings(run: FinishedRun, names: list[str]) -> dict[str, Any]:
    """Return the settings that were given, with folders as seen from here."""
    given = {name: run.config[name] for name in names if run.config.get(name) is not None}
    return given | {n: str(place_of(run, given[n])) for n in FOLDERS if n in given}


def _read(run: FinishedRun, files: list[Path], ids: list[str]) -> dict[str, Sample]:
    kind = DATASETS[kind_name(run)]()
    given = _settings(run, list(kind.settings.model_fields))
    given["data"] = [str(f) for f in files] if kind.takes_several_files else str(files[0])
    # a report is no place to fail: what cannot be read again is not shown
    with contextlib.suppress(MolfunError, OSError, ValueError, KeyError):
        data = kind.reopen(run.meta.get("data", {}), given, labels=True)
        place = {name: i for i, name in enumerate(data.ids)}
        return {name: data[place[name]] for name in ids if name in place}
    return {}

"""Provenance of a run: versions, git commit, files and machine it came from.

``provenance.json`` is written when training starts, so that a report speaks of the files and the
code of that moment, and completed with time and memory at the end::

    {"format": 1, "started": "2026-11-29T12:00:00+00:00", "seconds": 61.5,
     "peak_memory": 812345678, "versions": {"torch": "2.13.0", ...},
     "machine": {"python": ..., "system": ..., "device": ...},
     "git": {"commit": ..., "dirty": false},
     "files": {"gb1.csv": {"size": 123, "sha256": "..."}},
     "model": {"name": "ESM-2", "parameters": 106538, "trainable": 1234, "rates": "..."},
     "data": {...}}
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from molfun import __version__
from molfun._io import sha256_of, write_json
from molfun._paths import as_path
from molfun.runs.folder import PROVENANCE as FILE

FORMAT = 1
IMPORTED = datetime.datetime.now()  # the local time, as in logs
"""Start of this process, more or less: no line of its logs is older."""
PACKAGES = (
    *("torch", "numpy", "scipy", "scikit-learn", "pandas", "peft", "lightning-fabric"),
    *("openfold", "fair-esm", "metatrain", "gemmi"),
)
"""Packages whose versions may change a result."""
LARGEST = 4 * 2**30
"""Bytes of a file that is hashed in some seconds; weights have a fingerprint in the checkpoint."""


def begin(folder: Path, *, inputs: Mapping[str, Any], **about: Any) -> None:
    """Write what is known of a run when its training starts.

    Parameters
    ----------
    folder
        Folder of the run.
    inputs
        Paths that the run reads, by the flags that name them; a flag may name several.
    **about
        Further entries: ``model``, ``data`` and others, plain values.
    """
    content = {
        "format": FORMAT,
        "started": _now().isoformat(timespec="seconds"),
        **_sessions(folder, resumed=bool(about.get("resumed"))),
        "versions": versions(),
        "machine": machine(),
        "git": commit(Path.cwd()),
        "files": dict(_files(inputs)),
        **about,
    }
    write_json(folder / FILE, content)


def _sessions(folder: Path, *, resumed: bool) -> dict[str, Any]:
    """Return when the lines of this run in ``run.log`` begin, and when it was resumed.

    A log may begin with the lines of a run that this one replaced. Times are as the log has them.
    """
    now, former = f"{IMPORTED:%Y-%m-%d %H:%M:%S}", read(folder) if resumed else {}
    since = [*former.get("resumed_at", ()), now] if resumed else []
    return {"log_from": str(former.get("log_from") or now), "resumed_at": since}


def finish(folder: Path) -> None:
    """Add the time since the start and the largest memory so far."""
    content = read(folder)
    if "started" not in content:
        return
    started = datetime.datetime.fromisoformat(content["started"])
    content["seconds"] = (_now() - started).total_seconds()
    content["peak_memory"] = _peak_memory()
    write_json(folder / FILE, content)


def read(folder: Path) -> dict[str, Any]:
    """Return the content of ``provenance.json``; empty for a run of an older version."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions() -> dict[str, str]:
    """Return the versions of Molfun and of the installed packages that a result depends on."""
    found = {"molfun": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Describe interpreter, system and device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
    }


def commit(folder: Path) -> dict[str, Any] | None:
    """Return the git commit of a folder and if files differ from it; None outside a repository."""
    if shutil.which("git") is None:
        return None
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return {"commit": head, "dirty": bool(_git(folder, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *arguments: str) -> str | None:
    # a repository on a stalled network drive must not hold up a run
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _files(inputs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path, size and sha256 of each file; of a folder its number of files and one sha256."""
    for given in inputs.values():
        for name in [given] if isinstance(given, str) else given or ():
            path = as_path(name)
            if path.is_file():
                size = path.stat().st_size
                digest = {"sha256": sha256_of(path)} if size <= LARGEST else {}
                yield name, {"size": size, **digest}
            elif path.is_dir():
                yield name, _folder(sorted(path.iterdir()))


def _folder(entries: Sequence[Path]) -> dict[str, Any]:
    """Return the number of entries, and the sha256 of a list of the files as ``sha256sum`` makes.

    None for folders of folders, of which a run may read any part.
    """
    found: dict[str, Any] = {"files": len(entries)}
    if all(path.is_file() for path in entries):
        size = sum(path.stat().st_size for path in entries)
        if size <= LARGEST:
            lines = (f"{sha256_of(path)}  {path.name}\n" for path in entries)
            found |= {"size": size, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    return found


def _peak_memory() -> int:
    """Return bytes: of the GPU where there is one, else the largest resident size."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # kilobytes on Linux, bytes on macOS (getrusage(2))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

"""Check that a run can be written."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from molfun._io import write_text
from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.errors import RunError

if TYPE_CHECKING:
    from molfun.runs.folder import RunFolder

TRIAL = ".molfun-doctor"


def check(context: Context) -> Iterator[Finding]:
    """Write, sync, rename, lock and read back a file in the output folder, and remove it."""
    from molfun.runs.folder import RunFolder

    folder = context.output.absolute()
    start = time.perf_counter()
    try:
        _try(folder, RunFolder(folder / TRIAL))
    except (OSError, RunError) as error:
        yield Finding(
            status="FAILED",
            topic="output folder",
            text=f"{folder} cannot be written: {error}",
            remedy="Choose another --output.",
        )
        return
    taken = time.perf_counter() - start
    yield Finding(
        status="OK",
        topic="output folder",
        text=f"{folder} can be written, synced and locked ({1e3 * taken:.0f} ms)",
        facts={"folder": str(folder), "seconds": taken},
    )


def _try(folder: Path, trial: RunFolder) -> None:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = trial.path / "trial.txt"
    try:
        with trial.held():
            write_text(file, "written by molfun doctor\n")
            if not file.read_text().startswith("written"):
                raise RunError(f"{file}: what was written is not what is read.")
    finally:
        shutil.rmtree(trial.path, ignore_errors=True)
        for path in made:
            # only if empty: another run may have begun in it
            with contextlib.suppress(OSError):
                path.rmdir()

"""The folder of a run: what of a former run is in it, and whether a new one may begin there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from molfun import _temporary
from molfun._io import DirectoryLock
from molfun.errors import RunError
from molfun.models import checkpoint as portable
from molfun.training.callbacks import Callback, CSVLog
from molfun.training.state import STATE_FILE

CHECKPOINT, RESUME, HISTORY, WEIGHTS = (
    "checkpoint", "resume", "history.csv", "weights.safetensors",
)  # fmt: skip
RUN_FILES = (CHECKPOINT, RESUME, HISTORY, WEIGHTS)
"""What `fit` and `pretrain` write into the folder of a run."""
_FOLDERS = (CHECKPOINT, RESUME)


def prepare(
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    others: Sequence[str] = (),
    hint: str = "Continue it with resume=True, replace it with overwrite=True, or choose another "
    "output_dir.",
) -> list[str]:
    """Look whether a run may begin or go on in `folder`; gives the files that it replaces.

    A folder in which a run was killed before it wrote its first state holds nothing of worth, so a
    new run begins there as in an empty one.

    Parameters
    ----------
    folder
        The folder, which need not exist.
    resume
        Whether the run in it is continued; one that had no state yet begins.
    overwrite
        Whether a run in it may be replaced.
    others
        Further files of a run.
    hint
        What to do about a run that is in the way.

    Raises
    ------
    RunError
        If there is a run and neither is it continued nor may it be replaced, if the run to be
        continued has lost its state, or if other files are in the place of those of a run.
    """
    _refuse_other_files(folder)
    present = [name for name in (*RUN_FILES, *others) if os.path.lexists(folder / name)]
    state = os.path.lexists(folder / RESUME / STATE_FILE)
    results = [name for name in (CHECKPOINT, HISTORY, WEIGHTS) if _has_content(folder / name)]
    if resume and results and not state:
        raise RunError(
            f"Nothing to resume: {folder} holds {' and '.join(results)}, and the state of that "
            f"run, {RESUME}/{STATE_FILE}, is missing. Put it back, replace the run with "
            f"overwrite=True (--overwrite), or choose another output folder."
        )
    if resume or not (results or state):
        return []
    if not overwrite:
        raise RunError(f"{folder} already holds a run ({', '.join(present)}). {hint}")
    return present


def _has_content(path: Path) -> bool:
    """Whether a file or folder of a run holds more than its beginning."""
    if path.is_dir():
        return any(path.iterdir())
    if path.name != HISTORY or not path.is_file():
        return os.path.lexists(path)
    with path.open("rb") as file:  # a header alone says nothing
        return len([line for _, line in zip(range(2), file, strict=False) if line.strip()]) > 1


def _refuse_other_files(folder: Path) -> None:
    """Files of other kinds under the names that a run writes are never replaced."""
    if os.path.lexists(folder) and not os.path.isdir(folder):  # noqa: PTH112  # no errors on loops
        raise RunError(f"{folder} is no folder. Choose another output folder.")
    wrong = [
        name
        for name in RUN_FILES
        if os.path.lexists(folder / name) and (folder / name).is_dir() != (name in _FOLDERS)
    ]
    wrong += [f"{CHECKPOINT}/{name}" for name in portable.foreign_files(folder / CHECKPOINT)]
    if wrong:
        raise RunError(
            f"{folder} holds other things under the names of a run ({', '.join(wrong)}), which "
            f"would be replaced. Choose another output folder."
        )


def logs(folder: Path | None) -> list[Callback]:
    """What writes the history of a run into its folder."""
    return [] if folder is None else [CSVLog(folder / HISTORY)]


@contextlib.contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Lock the folder of a run and remove what killed writers left there; None does nothing."""
    if folder is None:
        yield
        return
    with DirectoryLock(folder):
        for place in (folder, folder / RESUME):
            _temporary.sweep(place, alone=True)
        yield

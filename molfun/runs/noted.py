"""Note of the structures that ``molfun predict --structures`` writes into a folder.

It is there before the first of them, so that what a run leaves that was killed is known as its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from molfun._io import write_json
from molfun.runs.folder import REPORT
from molfun.structures.files import ENDINGS, SUMMARY, file_stem

NOTE = "predict.json"
"""File that names the structures; that of ``molfun fold`` is another."""


def is_noted(folder: Path) -> bool:
    """Return whether a folder holds such a note."""
    return (folder / NOTE).is_file()


def add(folder: Path, names: Sequence[str]) -> None:
    """Add ids to the note of a folder, which is made if it is not there.

    An id that has files already which no note names is left out: they are those of the user.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "mine.pdb").touch()
    >>> add(folder, ["mine", "sp|P1"])
    >>> (folder / "sp_P1.cif").touch()
    >>> remove(folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['mine.pdb', 'predict.json']
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = _stems(folder)
    present = {path.name for path in folder.iterdir()}
    for stem in map(file_stem, names):
        if stem in own or present.isdisjoint(f"{stem}{ending}" for ending in ENDINGS):
            own[stem] = None
    write_json(folder / NOTE, {"structures": list(own)})


def remove(folder: Path) -> None:
    """Remove the structures that the note of a folder names, their table and their report.

    The note stays, for a folder in which there are files of the user as well.
    """
    for stem in _stems(folder):
        for ending in ENDINGS:
            (folder / f"{stem}{ending}").unlink(missing_ok=True)
    for name in (SUMMARY, REPORT):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / NOTE, {"structures": []})


def _stems(folder: Path) -> dict[str, None]:
    """Return the beginnings of file names that the note holds, in its order."""
    try:
        stored = json.loads((folder / NOTE).read_text(encoding="utf-8"))["structures"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # as file names again: a note from elsewhere names no file outside the folder
    return {file_stem(str(stem)): None for stem in stored} if isinstance(stored, list) else {}

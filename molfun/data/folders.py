"""Folders of files named after ids: one scan for a whole data set, nothing outside the folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from molfun._paths import as_path
from molfun.errors import DataError, UnsafeFileError
from molfun.sample import ALIGNMENT_SUFFIXES
from molfun.text import counted, listing

logger = logging.getLogger(__name__)


class FolderIndex:
    """The names in a folder, found by id.

    A file is found by its exact name first, then regardless of case. A symbolic link that leads
    out of the folder is refused.

    Parameters
    ----------
    folder
        The folder; it is read once, when the index is made.

    Raises
    ------
    DataError
        If `folder` is not a folder.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / "1A4W.cif").touch()
    >>> FolderIndex(folder).find("1a4w", (".pdb", ".cif")).name
    '1A4W.cif'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder)
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise DataError(f"{self.folder} {what}. Give the folder that holds the files.")
        self._root = self.folder.resolve()
        self._names = sorted(entry.name for entry in self.folder.iterdir())
        self._exact = set(self._names)
        # of two names that differ in case the first in sorted order counts, on every machine
        self._folded = {name.casefold(): name for name in reversed(self._names)}

    def find(self, stem: str, suffixes: Sequence[str] = ("",)) -> Path | None:
        """Return the path of `stem` with the first of `suffixes` that exists; None if none does.

        Raises
        ------
        UnsafeFileError
            If it is a symbolic link out of the folder.
        """
        wanted = [stem + suffix for suffix in suffixes]
        name = next((name for name in wanted if name in self._exact), None)
        if name is None:
            folded = (self._folded.get(name.casefold()) for name in wanted)
            name = next((name for name in folded if name is not None), None)
        return None if name is None else self._inside(name)

    def stems(self, suffixes: Sequence[str]) -> dict[str, list[str]]:
        """Return the names that end in one of `suffixes`, by what stands before it.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("1a4w.cif", "1a4w.pdb.gz", "notes.txt"):
        ...     (folder / name).touch()
        >>> FolderIndex(folder).stems((".cif", ".pdb.gz"))
        {'1a4w': ['1a4w.cif', '1a4w.pdb.gz']}
        """
        found: dict[str, list[str]] = {}
        longest_first = sorted(suffixes, key=len, reverse=True)
        for name in self._names:
            suffix = next((s for s in longest_first if name.lower().endswith(s)), None)
            if suffix is not None and len(name) > len(suffix):
                found.setdefault(name[: -len(suffix)], []).append(name)
        return found

    def beside(self, stem: str) -> list[str]:
        """Return names that begin with `stem` and a dot in any case: what may have been meant.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "1A4W.pkl.xz").touch()
        >>> FolderIndex(folder).beside("1a4w")
        ['1A4W.pkl.xz']
        """
        start = f"{stem.casefold()}."
        return [name for name in self._names if name.casefold().startswith(start)]

    def _inside(self, name: str) -> Path:
        path = self.folder / name
        target = path.resolve()
        if not target.is_relative_to(self._root):
            raise UnsafeFileError(
                f"Refused {path}: it is a link to {target}, outside the folder. Copy the file "
                f"into the folder, or give the folder that holds it."
            )
        return path


# Folders of alignments


def with_alignments(folder: Path, found: Mapping[str, Path], ids: Sequence[str]) -> dict[str, Path]:
    """Return folders that hold an alignment, by id; warn of what looks like one and is not read.

    Parameters
    ----------
    folder
        The folder of all alignments.
    found
        What is named after an id in it.
    ids
        All ids.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / "1a4w").mkdir()
    >>> (folder / "1a4w" / "hits.a3m.gz").touch()
    >>> list(with_alignments(folder, {"1a4w": folder / "1a4w"}, ["1a4w", "3htb"]))
    ['1a4w']
    """
    aligned, others = {}, []
    for name, path in found.items():
        files = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        if any(map(_is_alignment, files)):
            aligned[name] = path
        elif files:
            others.append(f"{path}: {', '.join(files[:3])}{', ...' if files[3:] else ''}")
    if others:
        logger.warning(
            "%s without an alignment that is read (.a3m or .sto, or these with .gz):\n%s",
            counted(len(others), "folder"),
            listing(others, 5),
        )
    _warn_flat(folder, aligned, ids)
    logger.info("%d of %d samples have alignments in %s", len(aligned), len(ids), folder)
    return aligned


def _warn_flat(folder: Path, aligned: Mapping[str, Path], ids: Sequence[str]) -> None:
    """Warn of files of ColabFold, which writes one per id into one folder: no sample finds them."""
    wanted = {name.casefold() for name in ids if name not in aligned}
    files = [p.name for p in folder.iterdir() if _is_alignment(p.name) and p.is_file()]
    unread = sorted(name for name in files if name.split(".")[0].casefold() in wanted)
    if unread:
        first = unread[0]
        logger.warning(
            "%s directly in %s not read (%s, ...). Move each into a folder named after its id: "
            "%s/%s.",
            counted(len(unread), "alignment"),
            folder,
            first,
            first.split(".")[0],
            first,
        )


def _is_alignment(name: str) -> bool:
    return name.lower().endswith(ALIGNMENT_SUFFIXES)

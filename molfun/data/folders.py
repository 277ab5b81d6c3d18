"""Folders of files named after ids: one scan for a whole data set, nothing outside the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from molfun._paths import as_path
from molfun.errors import DataError, UnsafeFileError


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

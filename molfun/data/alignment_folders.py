"""Find the alignments of samples, and name what lies in their folders and is not read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from molfun.sample import ALIGNMENT_SUFFIXES
from molfun.text import counted, listing

logger = logging.getLogger(__name__)


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

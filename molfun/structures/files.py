"""Write predicted structures: mmCIF, PDB, confidence and plots of each, and a table of all."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import atomic_path, write_text
from molfun.errors import DataError, RunError
from molfun.structures.folded import FoldedStructure
from molfun.structures.modelcif import mmcif_text
from molfun.structures.pdb import pdb_text, why_not_pdb
from molfun.text import first_line, listing

SUMMARY = "summary.csv"
"""Table of all structures of a folder, most confident first."""
NOTE = "fold.json"
"""File that names the model and the settings behind the structures of a folder."""
COLUMNS = ("id", "confidence", "plddt", "ptm", "iptm", "length", "chains", "recycles", "notes")
SCORES = ("confidence", "plddt", "ptm", "iptm")
OF_ENSEMBLE = ("member", "spread")
"""Columns that the table has besides, if an ensemble made the structures."""
CONFIDENCE = "_confidence.json"
PLOTS = "_confidence.png"
ENDINGS = (".pdb", CONFIDENCE, "_pae.npz", PLOTS, ".cif")
"""Endings of the files of a structure, in the order in which they are written."""
_NUMBERED = re.compile(r"\d{5}-of-\d{5}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def file_stem(name: str) -> str:
    """Return an id as the beginning of file names, without what a file system refuses.

    Examples
    --------
    >>> file_stem("sp|P01308|INS"), file_stem("../x")
    ('sp_P01308_INS', '_x')
    """
    # no hidden file, and no path to another folder
    return _UNSAFE.sub("_", name).lstrip(".") or "_"


def write_structure(structure: FoldedStructure, folder: Path, *, plots: bool = True) -> list[Path]:
    """Write all files of a structure, and return their paths.

    ``ID.cif`` (ModelCIF), ``ID.pdb`` where the format can hold it, ``ID_confidence.json``,
    ``ID_pae.npz`` (``pae`` and ``max_pae`` in angstrom) where there is a TM head,
    ``ID_confidence.png`` with pLDDT along the chain and the predicted aligned error. The mmCIF is
    written last: where it is, the structure is complete. Of an ensemble, the structures of all
    models are written likewise into folders ``member_1`` and so on.

    Parameters
    ----------
    structure
        The prediction.
    folder
        Folder, which is made if it is not there.
    plots
        Whether to draw the plots.
    """
    stem = file_stem(structure.id)
    written: list[Path] = []
    for one in structure.models:
        written += write_structure(one, folder / member_folder(one.member), plots=plots)
    if not why_not_pdb(structure):
        written.append(folder / f"{stem}.pdb")
        write_text(written[-1], pdb_text(structure))
    written.append(folder / f"{stem}{CONFIDENCE}")
    write_text(written[-1], json.dumps(confidence(structure), indent=1, allow_nan=False) + "\n")
    if structure.pae is not None:
        written.append(folder / f"{stem}_pae.npz")
        with atomic_path(written[-1]) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, pae=structure.pae, max_pae=np.float32(structure.max_pae))
    if plots:
        from molfun.structures.plots import draw_confidence

        written.append(folder / f"{stem}{PLOTS}")
        with atomic_path(written[-1]) as temporary:
            draw_confidence(structure, temporary)
    written.append(folder / f"{stem}.cif")
    write_text(written[-1], mmcif_text(structure))
    return written


def member_folder(number: int | str | None) -> str:
    """Return the name of the folder for the structures of a model; ``"*"`` matches all."""
    return f"member_{number}"


def numbered_folders(folder: Path) -> list[Path]:
    """Return the folders in which the structures of a large fold lie, in their order.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("00001-of-00002", "00000-of-00002", "mine-of-old"):
    ...     (folder / name).mkdir()
    >>> [place.name for place in numbered_folders(folder)]
    ['00000-of-00002', '00001-of-00002']
    """
    return sorted(p for p in folder.iterdir() if _NUMBERED.fullmatch(p.name) and p.is_dir())


def confidence(structure: FoldedStructure) -> dict[str, Any]:
    """Return what the confidence file of a structure holds, as plain values."""
    protein = structure.protein
    names = structure.chain_names()
    numbers = [f"{number}{insertion}" for number, insertion in structure.residue_ids()]
    return {
        "id": structure.id,
        **{name: _rounded(value) for name, value in structure.scores().items()},
        "max_pae": _rounded(structure.max_pae),
        "chains": [names[i] for i in protein.chain_index],
        "residues": numbers,
        "residue_plddt": [round(float(v), 2) for v in structure.plddt],
        "recycles": structure.recycles,
        "seed": structure.seed,
        "model": structure.maker.model,
        "weights": structure.maker.weights,
        "weights_sha256": structure.maker.weights_sha256 or None,
        "trained": structure.maker.trained or None,
        "weights_in_use": structure.maker.fingerprint or None,
        "software": structure.maker.software,
        "notes": list(structure.notes),
        **_of_ensemble(structure),
    }


def _of_ensemble(structure: FoldedStructure) -> dict[str, Any]:
    """Return what the file says of an ensemble; nothing for a single model."""
    if structure.spread is None:
        return {} if structure.member is None else {"member": structure.member}
    return {
        "member": structure.member,
        "spread": _rounded(structure.mean_spread),
        "residue_spread": [None if np.isnan(v) else round(float(v), 3) for v in structure.spread],
        "members": [
            {"member": one.member, **{n: _rounded(v) for n, v in one.scores().items()}}
            for one in structure.models
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def is_complete(folder: Path, name: str, *, plots: bool = False) -> bool:
    """Return whether a structure is there: its mmCIF is written last. With `plots` these as well.

    A PDB file and aligned errors are not there for every structure.
    """
    stem = file_stem(name)
    needed = (CONFIDENCE, ".cif", *([PLOTS] if plots else []))
    return all((folder / f"{stem}{ending}").exists() for ending in needed)


def remove_structure(folder: Path, name: str) -> None:
    """Remove all files of a structure, those of the members of an ensemble as well."""
    stem = file_stem(name)
    for own in (folder, *folder.glob(member_folder("*"))):
        # the mmCIF first: where it is, the others are taken for complete
        for ending in reversed(ENDINGS):
            (own / f"{stem}{ending}").unlink(missing_ok=True)


def read_row(folder: Path, name: str) -> dict[str, Any]:
    """Return the row of a written structure in the summary table; ``notes`` are a list.

    Raises
    ------
    RunError
        If its confidence file cannot be read.
    """
    path = folder / f"{file_stem(name)}{CONFIDENCE}"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {
            **{key: stored[key] for key in ("id", *SCORES, "recycles", "notes")},
            "length": len(stored["residues"]),
            "chains": len(set(stored["chains"])),
            **{key: stored[key] for key in OF_ENSEMBLE if key in stored},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error)
        raise RunError(f"{path} is damaged ({reason}). Remove it and run again.") from error


def write_summary(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the table of structures, most confident first; what was not folded is last."""
    text = io.StringIO()
    listed = list(rows)
    extra = [name for name in OF_ENSEMBLE if any(name in row for row in listed)]
    writer = csv.DictWriter(text, (*COLUMNS, *extra), lineterminator="\n")
    writer.writeheader()
    for row in sorted(listed, key=lambda row: (-row.get("confidence", -1.0), row["id"])):
        writer.writerow({**row, "notes": " ".join(f"{note}." for note in row["notes"])})
    write_text(path, text.getvalue())


def as_one_chain(structure: FoldedStructure) -> FoldedStructure:
    """Return a structure whose chains are one, numbered through from 1.

    For programs that take a single chain. The numbers of an input structure are lost.
    """
    protein = structure.protein
    n = len(protein)
    joined = replace(
        protein,
        chain_index=np.zeros(n, np.int64),
        chain_ids=protein.chain_ids[:1],
        residue_index=np.arange(n, dtype=np.int64),
        residue_ids=(),
    )
    note = f"{len(protein.chain_ids)} chains were written as one"
    several = len(protein.chain_ids) > 1
    return replace(
        structure,
        protein=joined,
        notes=(*structure.notes, *([note] if several else [])),
        models=tuple(map(as_one_chain, structure.models)),
    )


def name_clashes(names: Sequence[str]) -> list[str]:
    """Return a sentence for each two ids whose files would have one name."""
    taken: dict[str, str] = {}
    clashes = []
    for name in names:
        # file systems of Windows and macOS do not tell cases apart
        other = taken.setdefault(file_stem(name).lower(), name)
        if other != name:
            clashes.append(f"{other!r} and {name!r} would both be {file_stem(name)}.cif")
    return clashes


def check_names(names: Sequence[str]) -> None:
    """Check that the files of each id have a name of their own.

    Raises
    ------
    DataError
        Naming the ids that have not.
    """
    twice = [name for name, n in Counter(names).items() if n > 1]
    clashes = [f"{name!r} stands there twice" for name in twice] + name_clashes(names)
    if clashes:
        raise DataError(
            f"Every structure needs a name of its own:\n{listing(clashes)}\nRename one of each."
        )

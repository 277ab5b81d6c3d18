"""Write the structures that a fine-tuned model predicted for a part of its data, with scores."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text
from molfun.protein import CA, RESIDUE_LETTERS_WITH_X, UNKNOWN_RESIDUE, Protein
from molfun.structures.files import file_stem
from molfun.structures.folded import FoldedStructure, Maker, caveats
from molfun.structures.modelcif import mmcif_text
from molfun.structures.scoring.identical import renamed
from molfun.structures.scoring.in_place import NAMES, lddt_ca, scored, scores_in_place
from molfun.text import counted, few

logger = logging.getLogger(__name__)

MADE = "predicted with the recycling passes of the training of the model"
"""Note on each structure."""


def structures_folder(table: Path) -> Path:
    """Return the folder of predicted structures next to a table of predictions.

    Examples
    --------
    >>> structures_folder(Path("run/predictions_val.csv")).name
    'predictions_val_structures'
    """
    return table.with_name(f"{table.stem}_structures")


def scores_table(table: Path) -> Path:
    """Return the path of the scores of each structure, next to a table of predictions."""
    return table.with_name(f"{table.stem}_scores.csv")


def residues_table(table: Path) -> Path:
    """Return the path of the scores of each residue, next to a table of predictions."""
    return table.with_name(f"{table.stem}_residues.csv")


def unique_stems(names: Sequence[str]) -> dict[str, str]:
    """Return the beginning of the file name of each id; those that would be one get a number.

    Examples
    --------
    >>> unique_stems(["a/b", "a_b", "c"])
    {'a/b': 'a_b', 'a_b': 'a_b_2', 'c': 'c'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        stem, number = file_stem(name), 1
        # file systems of Windows and macOS do not tell cases apart
        while stem.lower() in taken:
            number += 1
            stem = f"{file_stem(name)}_{number}"
        taken.add(stem.lower())
        found[name] = stem
    return found


def write_predicted(
    table: Path,
    result: Mapping[str, Any],
    samples: Mapping[str, Protein],
    maker: Maker,
    *,
    aligned: Container[str] = (),
) -> Path | None:
    """Write ModelCIF files, and scores of structures and residues that have coordinates.

    Parameters
    ----------
    table
        Table of predictions; files are called after it.
    result
        What ``predict`` returned: ``ids``, ``positions`` and ``plddt``.
    samples
        Residues of each sample by its id, with the known coordinates where there are any. Samples
        of features alone are not among them, and not written, which is said.
    maker
        Software and weights, which the files name.
    aligned
        Ids of the samples that came with an alignment; the files of all others say that they had
        none.

    Returns
    -------
    Path
        The folder of structures; None where `result` holds none.
    """
    if "positions" not in result:
        return None
    folder = structures_folder(table)
    scores, residues = [], []
    each = zip(result["ids"], result["positions"], result["plddt"], strict=True)
    left_out = _left_out(result["ids"], samples)
    stems = unique_stems(result["ids"])
    _emptied(folder)
    for name, positions, plddt in each:
        if name in left_out:
            continue
        known = samples[name]
        predicted = _predicted(known, positions)
        structure = FoldedStructure(
            id=name,
            protein=predicted,
            plddt=np.asarray(plddt, np.float32),
            recycles=None,
            maker=maker,
            notes=(*caveats(known, maker, alone=name not in aligned), MADE),
        )
        write_text(folder / f"{stems[name]}.cif", mmcif_text(structure))
        if scored(known).any():
            row = {"id": name, "residues": len(known), "plddt": float(np.mean(plddt))}
            known = renamed(known, predicted)
            scores.append({**row, **scores_in_place(predicted, known)})
            residues += list(_residues(name, predicted, known, plddt))
    if scores:
        _write(scores_table(table), ("id", "residues", "plddt", *NAMES), scores)
        _write(residues_table(table), tuple(residues[0]), residues)
    return folder


def _left_out(ids: Sequence[str], samples: Mapping[str, Protein]) -> set[str]:
    """Return the samples that have no structure to write; say which ones."""
    empty = [n for n in samples if (samples[n].aatype == UNKNOWN_RESIDUE).all()]
    if empty:
        logger.warning(
            "No structure is written for %s of unknown residues alone: %s.",
            counted(len(empty), "sample"), few(empty, limit=3),
        )  # fmt: skip
    absent = [name for name in ids if name not in samples]
    if absent:
        logger.warning(
            "Predicted structures of %s of features are not written next to the table: %s. "
            "molfun predict --structures DIR writes them.",
            counted(len(absent), "sample"), few(absent, limit=3),
        )  # fmt: skip
    return {*empty, *absent}


def _emptied(folder: Path) -> None:
    """Make a folder, or remove the structures of a former prediction from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for former in folder.glob("*.cif"):
        former.unlink()


def _predicted(known: Protein, positions: np.ndarray) -> Protein:
    mask = np.isfinite(positions).all(-1)
    return replace(
        known,
        atom_positions=np.where(mask[..., None], positions, 0.0).astype(np.float32),
        atom_mask=mask.astype(np.float32),
        b_factors=np.zeros_like(known.b_factors),
        notes=(),
    )


def _residues(
    name: str, predicted: Protein, known: Protein, plddt: np.ndarray
) -> Iterator[dict[str, Any]]:
    there = np.flatnonzero(scored(known))
    mobile, fixed = (p.atom_positions[there, CA].astype(float) for p in (predicted, known))
    found = np.full(len(known), math.nan)
    found[there] = lddt_ca(mobile, fixed)
    ids = known.residue_ids or tuple(str(i + 1) for i in known.residue_index)
    for row in there:
        yield {
            "id": name,
            "chain": known.chain_ids[known.chain_index[row]],
            "residue": ids[row],
            "type": RESIDUE_LETTERS_WITH_X[known.aatype[row]],
            "plddt": float(plddt[row]),
            "lddt_ca": float(found[row]),
        }


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, text.getvalue())

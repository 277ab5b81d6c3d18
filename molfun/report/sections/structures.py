"""Structures with the largest and the smallest errors, in three dimensions."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from molfun.errors import MolfunError
from molfun.report.blocks import Section, Structures
from molfun.report.finished import FinishedRun
from molfun.report.inputs import kind_name, place_of
from molfun.report.numbers import PART_NAMES, number
from molfun.report.predicted import Predicted
from molfun.report.sections.worst import worst

SHOWN = 2
"""Structures shown of the worst, and of the best."""
MOST_TEXT = 600_000
"""Characters of coordinates in a report, which stays below 2 MB with the viewer."""
LARGEST = 50 * 2**20
"""Bytes of a file that is read again."""


def section(run: FinishedRun) -> Section | None:
    """Return the main chains of a few structures, in the colours of their chains."""
    folder = run.config.get("pdbs")
    if kind_name(run) != "structures" or not isinstance(folder, str):
        return None
    judged = run.judged_first()
    if judged is None:
        return None
    part, found = judged
    models = _models(found, place_of(run, folder))
    if not models:
        return None
    caption = (
        f"Structures of the {PART_NAMES[part]} part with the largest and the smallest errors, "
        f"main chain, one colour per chain. Drag to turn, scroll to zoom."
    )
    return Section("Structures", [Structures(models, caption)])


def _models(found: Predicted, folder: Path) -> list[tuple[str, str]]:
    """Return captions and texts of the structures that have room."""
    models, size = [], 0
    for place in _chosen(found):
        text = _pdb(folder, found.ids[place])
        size += len(text)
        if text and size <= MOST_TEXT:
            models.append((_caption(found, place), text))
    return models


def _chosen(found: Predicted) -> list[int]:
    order = worst(found, len(found.rows))
    return list(dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]]))


def _caption(found: Predicted, place: int) -> str:
    if found.form == "class" or len(found.labels) != len(found.rows):
        return found.ids[place]
    label, predicted = number(float(found.labels[place])), number(float(found.predictions[place]))
    return f"{found.ids[place]}: label {label}, predicted {predicted}"


def _pdb(folder: Path, name: str) -> str:
    """Return the main chain of a structure as a PDB file; empty if it cannot be read again."""
    import gemmi

    from molfun.data.structures import find_structure

    # gemmi raises RuntimeError and ValueError for files that changed since the run
    with contextlib.suppress(MolfunError, OSError, RuntimeError, ValueError):
        path = find_structure(folder, name)
        if path is None or path.stat().st_size > LARGEST:
            return ""
        return main_chain(gemmi.read_structure(str(path)))
    return ""


def main_chain(structure: Any) -> str:
    """Return the main-chain atoms of the first model as a PDB file.

    Parameters
    ----------
    structure
        A ``gemmi.Structure``, which is changed.
    """
    import gemmi

    structure.setup_entities()
    structure.remove_ligands_and_waters()
    structure.remove_alternative_conformations()
    del structure[1:]
    kept = gemmi.Selection("//*//N,CA,C,O").copy_structure_selection(structure)
    kept.shorten_chain_names()  # the format has one letter for a chain
    return str(kept.make_minimal_pdb())

"""Structures with the largest and the smallest errors, in three dimensions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from molfun.errors import MolfunError
from molfun.report import coordinates
from molfun.report.blocks import Model3D, Section, Structures
from molfun.report.finished import FinishedRun
from molfun.report.inputs import kind_name, place_of, samples
from molfun.report.numbers import PART_NAMES, number
from molfun.report.predicted import Predicted
from molfun.report.sections.worst import worst

SHOWN = 2
"""Structures shown of the worst, and of the best."""
MOST_TEXT = 600_000
"""Characters of coordinates in a report, which stays below 2 MB with the viewer."""
LARGEST = 50 * 2**20
"""Bytes of a file that is read again."""
LEGENDS: dict[str, tuple[tuple[str, str], ...]] = {
    "plddt": (
        ("#0053d6", "pLDDT above 90"),
        ("#65cbf3", "70 to 90"),
        ("#ffdb13", "50 to 70"),
        ("#ff7d45", "below 50"),
    ),
    "attribution": (
        ("#d1720f", "raises the prediction"),
        ("#f0e8d7", "no contribution"),
        ("#2266b8", "lowers it"),
    ),
    "chain": (),
}
"""Colours of each mode, as in ``view.js``, and what they mean."""
OUTSIDE = ("#9aa3ad", "not read by the model")
WORDS = {
    "plddt": "Colours: pLDDT, the confidence in the predicted structure, from the file.",
    "attribution": "Colours: contribution of each residue, that is by how much the prediction "
    "changes when the residue is left out of the pooling, relative to the largest change.",
    "chain": "Colours: one per chain.",
}
"""Meaning of the colours of each mode."""


def section(run: FinishedRun) -> Section | None:
    """Return the main chains of a few structures, coloured per residue."""
    folder = run.config.get("pdbs")
    chosen = shown(run)
    if chosen is None or not isinstance(folder, str):
        return None
    part, found, places = chosen
    models = list(_models(run, found, places, place_of(run, folder)))
    if not models:
        return None
    modes = [mode for mode in LEGENDS if any(model.mode == mode for model in models)]
    caption = (
        f"Structures of the {PART_NAMES[part]} part with the largest and the smallest errors, "
        f"main chain. Drag to turn, scroll to zoom."
    )
    caption = " ".join([caption, *(WORDS[mode] for mode in modes)])
    legend = [colour for mode in modes for colour in LEGENDS[mode]]
    return Section("Structures", [Structures(models, caption, [*legend, OUTSIDE])])


def _models(
    run: FinishedRun, found: Predicted, places: list[int], folder: Path
) -> Iterator[Model3D]:
    """Yield the structures that have room."""
    known = samples(run, [found.ids[place] for place in places])
    size = 0
    for place in places:
        name = found.ids[place]
        protein = known[name].protein if name in known else None
        made = _model(folder, name, protein, run.attributions.get(name))
        # a large one leaves room for the others
        if made and size + len(made[0]) <= MOST_TEXT:
            size += len(made[0])
            yield _captioned(found, place, *made)


def shown(run: FinishedRun) -> tuple[str, Predicted, list[int]] | None:
    """Return the part, its predictions, and the places of the structures that are shown.

    None where the samples are no structures, or have no prediction to compare.
    """
    judged = run.judged_first() if kind_name(run) == "structures" else None
    if judged is None:
        return None
    order = worst(judged[1], len(judged[1].rows))
    return *judged, list(dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]]))


def _model(
    folder: Path, name: str, protein: Any, values: np.ndarray | None
) -> tuple[str, coordinates.Mode, int] | None:
    """Return text, mode, and number of residues that were cropped; None without the file."""
    from molfun.data.structures import find_structure

    # gemmi raises RuntimeError and ValueError for files that changed since the run
    with contextlib.suppress(MolfunError, OSError, RuntimeError, ValueError):
        path = find_structure(folder, name)
        if path is None or path.stat().st_size > LARGEST:
            return None
        structure, plddt = coordinates.read(path)
        places = coordinates.places_in(structure, protein)
        text, mode = coordinates.coloured(structure, places, values, plddt=plddt)
        return text, mode, 0 if places is None else int((places < 0).sum())
    return None


def _captioned(
    found: Predicted, place: int, text: str, mode: coordinates.Mode, n_outside: int
) -> Model3D:
    words = found.ids[place]
    if found.form == "number" and len(found.labels) == len(found.rows):
        label, predicted = (number(float(v[place])) for v in (found.labels, found.predictions))
        words += f": label {label}, predicted {predicted}"
    if n_outside:
        words += f"; {n_outside:,} residues were not read"
    return Model3D(words, text, mode)

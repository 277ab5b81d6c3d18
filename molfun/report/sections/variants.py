"""Variants of one protein: single exchanges as measured and as predicted, by position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from molfun.protein import AMINO_ACIDS
from molfun.report import inputs
from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import cut, plot
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.heat_map import draw_heat_map, left_out, scored_places
from molfun.report.numbers import number
from molfun.report.predicted import HeadOfRun
from molfun.sample import single_label

PER_ROW = 60
LONGEST = 600
"""Positions with any exchange that are drawn."""

Values = Mapping[str, float]
"""Numbers by sequence."""


def section(run: FinishedRun) -> Section | None:
    """Return heat maps of the measured and of the predicted single exchanges of each head."""
    settings = run.meta.get("data", {})
    wild_type = settings.get("wild_type")
    if not isinstance(wild_type, str):
        return None
    blocks: list[Figure | Text] = []
    for head in run.heads:
        if head.level == "sequence":
            blocks += _of_head(run, head, wild_type.upper(), int(settings.get("offset") or 0))
    return Section("Single exchanges", blocks) if blocks else None


def _of_head(
    run: FinishedRun, head: HeadOfRun, wild_type: str, offset: int
) -> Iterator[Figure | Text]:
    measured, predicted, parts = _judged(run, head)
    if not predicted:
        return
    measured = {**_of_training(run, head), **measured}
    reference, words = _reference(measured, wild_type)
    maps = {
        "Measured": _matrix(wild_type, measured, reference),
        "Predicted": _matrix(wild_type, predicted, reference),
    }
    places = np.unique(np.concatenate([scored_places(m, wild_type) for m in maps.values()]))
    if not len(places):
        return
    missing = left_out(len(places), len(wild_type))
    if len(places) > LONGEST:
        places = places[:LONGEST]
        yield Text(f"The first {LONGEST} of the positions are drawn.", "note")
    # a few outliers would leave the others without a colour
    every = np.abs(np.concatenate([found[places].ravel() for found in maps.values()]))
    largest = float(np.nanpercentile(every[every > 0], 98)) if (every > 0).any() else 1.0
    about = {
        "Measured": f"{head.target}, all parts",
        "Predicted": f"{head.target}, variants that the model never trained on ({parts})",
    }
    for name, found in maps.items():
        shown = _Map(found, wild_type, offset, largest, places)
        n = int(np.isfinite(found).sum() - _known(wild_type))
        text = f"{name}: {about[name]}, {n:,} single exchanges. {words}"
        yield Figure(shown.drawn(cut(f"difference of {head.target}", 30)), text, wide=True)
    note = "Dots are the residues of the wild type, grey cells have no value, and colours end at "
    note += "the 98th percentile."
    note += f" {missing}; lines mark where." if missing else ""
    scan = "molfun scan CHECKPOINT --sequence FASTA predicts every exchange."
    yield Text(f"{note} {scan}", "note")


def _judged(run: FinishedRun, head: HeadOfRun) -> tuple[Values, Values, str]:
    """Return labels and predictions by sequence of all judged parts, and the names of these."""
    measured: dict[str, float] = {}
    predicted: dict[str, float] = {}
    names = []
    for part in PARTS:
        found = run.predicted(head, part)
        if found is None or found.form != "number":
            continue
        names.append({"out_of_fold": "out of fold", "val": "validation"}.get(part, part))
        texts = [row.get("sequence", "").upper() for row in found.rows]
        if len(found.labels) != len(texts):  # labels of several targets
            continue
        rows = zip(texts, found.labels.tolist(), found.predictions.tolist(), strict=True)
        for text, label, prediction in rows:
            measured.setdefault(text, label)
            predicted.setdefault(text, prediction)
    return measured, predicted, " and ".join(names)


def _of_training(run: FinishedRun, head: HeadOfRun) -> Values:
    """Return the labels of the training part by sequence; none where its file cannot be read."""
    found: dict[str, float] = {}
    for sample in inputs.samples(run, run.ids_of("train")).values():
        target: Any = sample.target
        label = target.get(head.name) if isinstance(target, Mapping) else single_label(target)
        if isinstance(label, int | float) and sample.sequence:
            found[sample.sequence.upper()] = float(label)
    return found


def _reference(measured: Values, wild_type: str) -> tuple[float, str]:
    """Return the value that has no colour, and the sentence that says which."""
    own = measured.get(wild_type, float("nan"))
    if np.isfinite(own):
        return own, f"Blue is above the wild type's {number(own)}, red below."
    known = [value for value in measured.values() if np.isfinite(value)]
    middle = float(np.median(known)) if known else 0.0
    return middle, (
        f"Blue is above {number(middle)}, the median of what was measured, red below: the wild "
        f"type has no label."
    )


def _matrix(wild_type: str, values: Values, reference: float) -> np.ndarray:
    """Return (residues, 20) differences of single exchanges, 0 at the wild type."""
    found = np.full((len(wild_type), len(AMINO_ACIDS)), np.nan)
    for place, letter in enumerate(wild_type):
        if letter in AMINO_ACIDS:
            found[place, AMINO_ACIDS.index(letter)] = 0.0
    wild = np.frombuffer(wild_type.encode("ascii", "replace"), np.uint8)
    for text, value in values.items():
        if len(text) != len(wild_type):
            continue
        places = np.flatnonzero(np.frombuffer(text.encode("ascii", "replace"), np.uint8) != wild)
        if len(places) == 1 and text[places[0]] in AMINO_ACIDS:
            found[places[0], AMINO_ACIDS.index(text[places[0]])] = value - reference
    return found


def _known(wild_type: str) -> int:
    return sum(letter in AMINO_ACIDS for letter in wild_type)


@dataclass(frozen=True)
class _Map:
    """Values of a heat map."""

    matrix: np.ndarray
    letters: str
    offset: int
    largest: float
    places: np.ndarray
    """Positions that are drawn."""

    def drawn(self, label: str) -> str:
        """Return the drawing."""
        rows = -(-len(self.places) // PER_ROW)
        with plot(9.6, 0.5 + 2.3 * rows) as found:
            found.figure.clear()
            draw_heat_map(
                found.figure,
                self.matrix,
                self.letters,
                offset=self.offset,
                label=label,
                largest=self.largest,
                per_row=min(PER_ROW, len(self.places)),
                places=self.places,
            )
        return found.svg

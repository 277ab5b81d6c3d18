"""Labels and predictions along the sequence, for tasks with a label per residue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molfun.report.blocks import Figure, Section, Text, Tracks
from molfun.report.figures import COLOURS, MUTED, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES, number
from molfun.report.predicted import Predicted

SHOWN = 4
LONGEST = 600
"""Residues of a protein that are shown."""


def section(run: FinishedRun) -> Section | None:
    """Return tracks of the worst, the best and two median proteins of each head."""
    blocks: list[Figure | Text | Tracks] = []
    for head in run.heads:
        judged = run.judged(head)
        if judged is None or head.level != "residue" or judged[1].form == "other":
            continue
        part, found = judged
        chosen = _chosen(found.errors())
        if chosen:
            blocks.append(Text(_introduction(part, found)))
        draw = _letters if found.form == "class" else _curves
        blocks += [track for place in chosen for track in draw(found, place)]
    return Section("Along the sequence", blocks) if blocks else None


def _introduction(part: str, found: Predicted) -> str:
    text = f"{found.head.target}, {PART_NAMES[part]} part: from the worst protein to the best."
    if found.form == "class":
        text += " Wrong residues are underlined; a question mark is no label."
    return text


def _chosen(errors: np.ndarray) -> list[int]:
    """Return places of samples evenly spread over the order of their errors, worst first."""
    order = [int(i) for i in np.argsort(-np.nan_to_num(errors, nan=-1.0)) if np.isfinite(errors[i])]
    if not order:
        return []
    steps = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
    return [order[i] for i in dict.fromkeys(steps.tolist())]


def _letters(found: Predicted, place: int) -> Iterator[Tracks | Text]:
    own = np.flatnonzero(found.sample == place)[:LONGEST]
    classes = found.head.classes
    letters = [c if len(c) == 1 else chr(ord("A") + i) for i, c in enumerate(classes)]
    label, predicted = (
        "".join(letters[i] if i >= 0 else "?" for i in values[own])
        for values in (found.labels, found.predictions)
    )
    sequence = found.rows[place].get("sequence", "")[: len(own)].ljust(len(own))
    wrong = (found.labels[own] >= 0) & (found.labels[own] != found.predictions[own])
    share = number(100 * float(found.errors()[place]))
    yield Tracks(
        f"{found.ids[place]}: {share} % of the residues with a label are wrong",
        [("sequence", sequence), ("label", label), ("predicted", predicted)],
        letters,
        frozenset(np.flatnonzero(wrong).tolist()),
    )


def _curves(found: Predicted, place: int) -> Iterator[Figure]:
    own = np.flatnonzero(found.sample == place)[:LONGEST]
    with plot(8.8, 2.4) as drawn:
        axes = drawn.axes[0]
        axes.plot(range(1, len(own) + 1), found.labels[own], color=MUTED, label="label")
        axes.plot(
            range(1, len(own) + 1), found.predictions[own], color=COLOURS[0], label="predicted"
        )
        axes.set_xlabel("residue")
        axes.set_ylabel(cut(found.head.target))
        axes.legend()
    error = number(float(found.errors()[place]))
    yield Figure(drawn.svg, f"{found.ids[place]}: mean absolute error {error}.", wide=True)

"""Draw the scores of all single substitutions of a protein: positions by amino acids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import atomic_path
from molfun._lazy import require
from molfun._shapes import Float64, Int64
from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS
from molfun.text import counted

ORDER = "GAVLIMFWPSTCYNQDEKRH"
"""Amino acids by their side chains: small and greasy ones, polar ones, charged ones."""
PER_ROW = 80
"""Positions in one row of the figure."""
LEAST_PER_ROW = 24
"""Positions that a row has room for at least, so that title and colours have theirs."""
ENDINGS = (".svg", ".png", ".pdf")
_COLOURS = "RdBu"


def draw_heat_map(
    figure: Any,
    matrix: Float64[np.ndarray, "residues 20"],
    wild_type: str,
    *,
    offset: int = 0,
    entropy: Float64[np.ndarray, "residues"] | None = None,
    label: str = "score",
    largest: float | None = None,
    per_row: int | None = None,
    places: Int64[np.ndarray, "shown"] | None = None,
) -> None:
    """Draw a matrix of scores into a figure of matplotlib, in rows of `per_row` positions.

    Positions that are left out show as a line between those beside them.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``.
    matrix
        Scores, with amino acids in the order of `AMINO_ACIDS`; NaN is left grey.
    wild_type
        Its sequence, whose residues get a dot.
    offset
        Number of the first residue minus 1.
    entropy
        Entropy of the amino acids at each residue, drawn above as bars.
    label
        Title of the colours.
    largest
        Score of the darkest colour; None takes the largest there is.
    per_row
        Positions in a row; None takes `row_of`.
    places
        Positions that are drawn, from 0 and in order; None draws `scored_places`.
    """
    shown = scored_places(matrix, wild_type) if places is None else places
    matrix, numbers = matrix[shown], shown + 1 + offset
    entropy = None if entropy is None else entropy[shown]
    per_row = row_of(len(shown)) if per_row is None else per_row
    starts = range(0, len(shown), per_row)
    rows = [AMINO_ACIDS.index(letter) for letter in ORDER]
    # blue is likelier than the wild type, red less likely; the same shade either way
    if largest is None:
        largest = float(np.nanmax(np.abs(matrix), initial=1e-9))
    heights = ([1, 6] if entropy is not None else [6]) * len(starts)
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = list(grid)
    colours = (
        require("matplotlib", "pip install matplotlib")
        .colormaps[_COLOURS]
        .with_extremes(bad="0.85")
    )
    image = None
    for start in starts:
        part = slice(start, start + per_row)
        if entropy is not None:
            bars = axes.pop(0)
            bars.set_xlim(-0.5, per_row - 0.5)
            _draw_entropy(bars, entropy[part], first=start == 0)
        place = axes.pop(0)
        image = place.imshow(
            matrix[part][:, rows].T,
            cmap=colours,
            vmin=-largest,
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
        )
        place.set_xlim(-0.5, per_row - 0.5)
        place.grid(visible=False)  # of the style of a report
        _draw_letters(place, [wild_type[i] for i in shown[part]], numbers[part])
    figure.colorbar(image, ax=list(grid), label=label, shrink=0.6, aspect=30, pad=0.01)


def scored_places(
    matrix: Float64[np.ndarray, "residues 20"], wild_type: str
) -> Int64[np.ndarray, "shown"]:
    """Return the positions, from 0, with the score of any other residue than the wild type's.

    Examples
    --------
    >>> matrix = np.full((3, 20), np.nan)
    >>> matrix[0, 0] = matrix[2, 5] = 0.5  # A at A, which is the wild type, and G at C
    >>> scored_places(matrix, "AKC").tolist()
    [2]
    """
    known = np.isfinite(matrix)
    for place, letter in enumerate(wild_type.upper()):
        if letter in AMINO_ACIDS:
            known[place, AMINO_ACIDS.index(letter)] = False
    return np.flatnonzero(known.any(axis=1))


def left_out(shown: int, n: int) -> str:
    """Say how many of `n` positions are not drawn; empty if all are.

    Examples
    --------
    >>> left_out(50, 56)
    '6 of 56 positions have no value and are left out'
    """
    missing = n - shown
    if not missing:
        return ""
    have, are = ("has", "is") if missing == 1 else ("have", "are")
    return f"{missing:,} of {counted(n, 'position')} {have} no value and {are} left out"


def _draw_letters(axes: Any, letters: Sequence[str], numbers: Int64[np.ndarray, "shown"]) -> None:
    axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=7)
    gaps = 1 + np.flatnonzero(np.diff(numbers) > 1)
    for place in gaps:
        axes.axvline(place - 0.5, color="black", linewidth=0.8)
    starts: list[int] = [0, *map(int, gaps)]
    tens = [
        int(i) for i in np.flatnonzero(numbers % 10 == 0) if min(abs(i - s) for s in starts) > 1
    ]
    ticks = sorted([*starts, *tens])
    axes.set_xticks(ticks, [str(numbers[i]) for i in ticks], fontsize=8)
    axes.tick_params(length=2)
    known = [(i, ORDER.index(a)) for i, a in enumerate("".join(letters).upper()) if a in ORDER]
    if known:
        axes.scatter(*zip(*known, strict=True), s=5, color="black", linewidths=0)
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(len(letters)), list(letters), fontsize=6)
    above.tick_params(length=0, pad=1)
    above.spines["top"].set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_entropy(axes: Any, entropy: np.ndarray, *, first: bool) -> None:
    axes.bar(range(len(entropy)), entropy, width=0.9, color="0.45")
    axes.set_ylim(0, np.log(20))
    axes.set_xticks([])
    axes.set_yticks([0, 3], ["0", "3"], fontsize=7)
    if first:
        axes.set_ylabel("entropy\n(nats)", fontsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def row_of(n_shown: int) -> int:
    """Return how many positions a row has room for: fewer where fewer are drawn."""
    return min(PER_ROW, max(n_shown, LEAST_PER_ROW))


def size_of(n_shown: int, *, entropy: bool) -> tuple[float, float]:
    """Return width and height in inches of a figure of so many positions."""
    rows = -(-n_shown // PER_ROW)
    width = 2.0 + 11.0 * row_of(n_shown) / PER_ROW
    return width, 0.6 + rows * (3.4 if entropy else 2.9)


def write_heat_map(
    path: Path,
    matrix: Float64[np.ndarray, "residues 20"],
    wild_type: str,
    *,
    title: str = "",
    **options: Any,
) -> None:
    """Write a figure as ``.svg``, ``.png`` or ``.pdf``; options are those of `draw_heat_map`."""
    matplotlib = require("matplotlib", "pip install matplotlib")
    figures = require("matplotlib.figure", "pip install matplotlib")
    shown = len(scored_places(matrix, wild_type))
    if not shown:
        raise DataError("A heat map needs a position with a score, and there is none.")
    width, height = size_of(shown, entropy=options.get("entropy") is not None)
    title = "\n".join(text for text in (title, left_out(shown, len(wild_type))) if text)
    with matplotlib.rc_context({"svg.hashsalt": "molfun", "text.parse_math": False}):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        draw_heat_map(figure, matrix, wild_type, **options)
        if title:
            figure.suptitle(title, fontsize=11)
        # without a date, equal scores give equal files
        dated = {"Date": None} if path.suffix == ".svg" else {}
        with atomic_path(path) as temporary:
            kind = path.suffix.removeprefix(".")
            figure.savefig(temporary, format=kind, dpi=150, metadata=dated or None)


def check_ending(path: Path, endings: Sequence[str] = ENDINGS) -> str | None:
    """Return what is wrong with the name of a figure, or None."""
    if path.suffix in endings:
        return None
    return f"{path} must end in {', '.join(endings)}."

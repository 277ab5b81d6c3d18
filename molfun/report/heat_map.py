"""Draw the scores of all single substitutions of a protein: positions by amino acids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import atomic_path
from molfun._lazy import require
from molfun._shapes import Float64
from molfun.protein import AMINO_ACIDS

ORDER = "GAVLIMFWPSTCYNQDEKRH"
"""Amino acids by their side chains: small and greasy ones, polar ones, charged ones."""
PER_ROW = 80
"""Positions in one row of the figure."""
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
    per_row: int = PER_ROW,
) -> None:
    """Draw a matrix of scores into a figure of matplotlib, in rows of `per_row` positions.

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
        Positions in a row.
    """
    starts = range(0, len(wild_type), per_row)
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
        _draw_letters(place, wild_type[part], start, offset)
    figure.colorbar(image, ax=list(grid), label=label, shrink=0.6, aspect=30, pad=0.01)


def _draw_letters(axes: Any, letters: str, start: int, offset: int) -> None:
    axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=7)
    numbers = [i for i in range(len(letters)) if (start + i + 1 + offset) % 10 == 0 or i == 0]
    axes.set_xticks(numbers, [str(start + i + 1 + offset) for i in numbers], fontsize=8)
    axes.tick_params(length=2)
    known = [(i, ORDER.index(a)) for i, a in enumerate(letters.upper()) if a in ORDER]
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


def size_of(n_residues: int, *, entropy: bool) -> tuple[float, float]:
    """Return width and height of the figure in inches."""
    rows = -(-n_residues // PER_ROW)
    return 13.0, 0.6 + rows * (3.4 if entropy else 2.9)


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
    width, height = size_of(len(wild_type), entropy=options.get("entropy") is not None)
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

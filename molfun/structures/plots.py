"""Draw the confidence of a predicted structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from molfun.structures.folded import FoldedStructure

BANDS = (
    (90.0, 100.0, "#0053d6", "very high"),
    (70.0, 90.0, "#65cbf3", "confident"),
    (50.0, 70.0, "#ffdb13", "low"),
    (0.0, 50.0, "#ff7d45", "very low"),
)
"""Ranges of pLDDT, colours and names, as the AlphaFold database shows them."""


def draw_confidence(structure: FoldedStructure, path: Path) -> None:
    """Draw pLDDT along the residues and, where there is one, the predicted aligned error.

    Parameters
    ----------
    structure
        The prediction.
    path
        PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pae = structure.pae
    # no pyplot: it keeps figures, and may open a window
    figure = Figure(figsize=(10 if pae is not None else 6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 if pae is None else 2, squeeze=False)[0]
    _draw_plddt(axes[0], structure)
    if pae is not None:
        _draw_pae(figure, axes[1], structure, pae)
    figure.suptitle(_title(structure), fontsize=10, parse_math=False)
    figure.savefig(path, format="png")


def _title(structure: FoldedStructure) -> str:
    scores = {"pLDDT": structure.mean_plddt, "pTM": structure.ptm, "ipTM": structure.iptm}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in scores.items() if value is not None)
    return f"{structure.id}: {shown}"


def _draw_plddt(axes: Any, structure: FoldedStructure) -> None:
    n = len(structure.plddt)
    for low, high, colour, name in BANDS:
        axes.axhspan(low, high, color=colour, alpha=0.25, lw=0, label=name)
    marker = "." if n < 2 else ""  # a line of one point shows nothing
    axes.plot(np.arange(1, n + 1), structure.plddt, color="#222222", lw=1.2, marker=marker)
    axes.set(xlabel="Residue", ylabel="pLDDT", ylim=(0, 100), xlim=(0.5, n + 0.5))
    for edge in _edges(structure):
        axes.axvline(edge + 0.5, color="#222222", lw=0.8, ls="--")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=4, fontsize=7, frameon=False)


def _draw_pae(figure: Any, axes: Any, structure: FoldedStructure, pae: np.ndarray) -> None:
    n = len(pae)
    image = axes.imshow(
        pae, cmap="Greens_r", vmin=0, vmax=structure.max_pae, extent=(0.5, n + 0.5, n + 0.5, 0.5)
    )
    for edge in _edges(structure):
        axes.axvline(edge + 0.5, color="#222222", lw=0.8)
        axes.axhline(edge + 0.5, color="#222222", lw=0.8)
    axes.set(xlabel="Scored residue", ylabel="Aligned residue")
    figure.colorbar(image, ax=axes, label="Predicted aligned error (Å)")


def _edges(structure: FoldedStructure) -> list[int]:
    """Return the place of the last residue of each chain but the last, from 1."""
    return (np.flatnonzero(np.diff(structure.protein.chain_index)) + 1).tolist()

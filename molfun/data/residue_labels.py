"""Labels of residues in a table, held against the sequences and masks of its rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from molfun.data.cells import Cells
from molfun.sample import n_residues
from molfun.text import counted, listing, shown

logger = logging.getLogger(__name__)


class Residues:
    """Labels of residues, held against the sequences and masks of a table."""

    def __init__(self, cells: Cells, sequences: Sequence[str], mask_column: str | None) -> None:
        self._cells = cells
        self._sequences = sequences
        self._mask_column = mask_column
        self._masks = None if mask_column is None else cells.column(mask_column)
        self._padded: list[str] = []

    def fit(self, row: int, labels: Sequence[Any]) -> tuple[Sequence[Any], str | None]:
        """Drop the labels of a row that its mask leaves out, and say what is wrong with both."""
        problem = length_problem(labels, self._sequences[row])
        if problem is None and self._masks is not None:
            labels = self._masked(row, labels, self._masks[row])
        return labels, problem

    def _masked(self, row: int, labels: Sequence[Any], mask: str) -> Sequence[Any]:
        n = len(labels)
        # a number that lost its zeros begins with 1, but for 0 itself
        short = len(mask) < n and not (mask.startswith("1") or mask == "0")
        if not mask or len(mask) > n or mask.strip("01") or short:
            problem = f"expected {n} of 0 and 1, got {len(mask)}: {shown(mask)}"
            self._cells.note(row, str(self._mask_column), problem)
            return labels
        if len(mask) < n:
            self._padded.append(f"{self._cells.where(row)}: {len(mask)} for {n} residues")
            mask = mask.rjust(n, "0")
        return [v if m == "1" else None for v, m in zip(labels, mask, strict=True)]

    def warn(self) -> None:
        """Say which masks were filled up."""
        if self._padded:
            logger.warning(
                "%s: %s shorter than the sequence, as when 0011 was once read as the number 11; "
                "zeros are put back in front, so labels there are left out:\n%s",
                self._cells.path,
                counted(len(self._padded), "mask"),
                listing(self._padded, 3),
            )


def length_problem(labels: Sequence[Any], sequence: str) -> str | None:
    """Say that there are more or fewer labels than residues; None if there are as many."""
    n = n_residues(sequence)
    if len(labels) == n:
        return None
    return f"has {len(labels)} labels for a sequence of {counted(n, 'residue')}"

"""Several chains per sample in a table: in one column with ``:`` between them, or in several."""

from __future__ import annotations

from collections.abc import Sequence

from molfun.data.cells import Cells
from molfun.errors import ConfigError
from molfun.sample import CHAIN_SEPARATOR, n_residues

BETWEEN_NAMES = ","
"""Between the names of columns, on the command line."""


def chain_columns(given: str | Sequence[str], header: Sequence[str]) -> list[str]:
    """Return the columns of the chains: ``"heavy,light"`` names two, unless one is called so.

    Raises
    ------
    ConfigError
        If there is no name, or one twice.

    Examples
    --------
    >>> chain_columns("heavy, light", ["heavy", "light", "kd"])
    ['heavy', 'light']
    """
    if isinstance(given, str):
        several = BETWEEN_NAMES in given and given not in header
        names = [name.strip() for name in given.split(BETWEEN_NAMES)] if several else [given]
    else:
        names = list(given)
    if not names or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"sequence_column must name different columns, got {given!r}.")
    return names


def first_name(given: str | Sequence[str]) -> str:
    """Return the first of the columns of the chains, for tables with one column alone."""
    return given if isinstance(given, str) else next(iter(given), "sequence")


def joined_chains(cells: Cells, columns: Sequence[str], level: str) -> Sequence[str]:
    """Return the chains of each row as one text; note rows where one is blank.

    Raises
    ------
    ConfigError
        If labels are those of residues.
    """
    found = [cells.filled(name) for name in columns]
    if len(found) == 1:
        return found[0]
    if level == "residue":
        raise ConfigError(
            f"level='residue' takes one sequence per row, got the columns {', '.join(columns)}."
        )
    for name, texts in zip(columns, found, strict=True):
        for row, text in enumerate(texts):
            if CHAIN_SEPARATOR in text:
                cells.note(row, name, f"holds {CHAIN_SEPARATOR!r}; each column has one chain")
    return [CHAIN_SEPARATOR.join(chains) for chains in zip(*found, strict=True)]


def residues_seen(sequence: str, max_length: int | None) -> int:
    """Return the residues of a sequence that a model sees, each chain cropped by itself.

    Examples
    --------
    >>> residues_seen("MKVLA:MKV", None), residues_seen("MKVLA:MKV", 4)
    (8, 7)
    """
    if max_length is None:
        return n_residues(sequence)
    return sum(min(n_residues(chain), max_length) for chain in sequence.split(CHAIN_SEPARATOR))

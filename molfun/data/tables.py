"""Tables of samples: CSV, TSV and Parquet, checked before anything starts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from molfun._paths import as_path
from molfun._shapes import Float64
from molfun.data.cells import Cells, Required, read_cells
from molfun.data.faults import is_collecting
from molfun.data.labels import read_labels
from molfun.data.texts import ArrowTexts, are_distinct, listed
from molfun.text import counted

logger = logging.getLogger(__name__)

OUTLIER_RANGES = 50
"""Labels this many interquartile ranges from the median are reported, not refused: they may be
right, but are more often a mixture of units (mol/L next to nmol/L)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of samples that passed every check.

    Parameters
    ----------
    path
        The file.
    ids
        Ids as written, blanks around them removed.
    targets
        (rows,) labels in the user's units, NaN where there is none.
    metadata
        The other columns, numbers where every value that is present is a number.
    lines
        Line of each row in the file (row number for Parquet), for messages; by default from 1.
    word
        What to call such a number; empty where there is no file.
    """

    path: Path
    ids: Sequence[str]
    targets: Float64[np.ndarray, "rows"]
    metadata: pd.DataFrame = field(default_factory=pd.DataFrame)
    lines: Sequence[int] = field(default_factory=list)
    word: str = "line"

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.metadata.columns.empty:
            object.__setattr__(self, "metadata", pd.DataFrame(index=range(n)))
        if not self.lines:
            object.__setattr__(self, "lines", list(range(1, n + 1)))

    @classmethod
    def of(
        cls, cells: Cells, ids: Sequence[str], targets: np.ndarray, *, used: Iterable[str | None]
    ) -> Table:
        """Make one of the rows of a file, whose columns that are not `used` are metadata."""
        columns = zip(cells.header, cells.columns, strict=True)
        others = {name: column.typed() for name, column in columns if name not in used}
        return cls(
            path=cells.path,
            ids=ids,
            targets=targets,
            metadata=pd.DataFrame(others),
            lines=cells.lines,
            word=cells.word,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def origin(self, index: int) -> str:
        """Say where a row was read; an empty text where there is no file."""
        return f"{self.path.name}, {self.word} {self.lines[index]}" if self.word else ""

    def take(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Keep the rows at `indices`, in that order."""
        indices, ids = np.asarray(indices, np.int64), listed(self.ids)
        return replace(
            self,
            ids=[ids[i] for i in indices],
            targets=self.targets[indices],
            metadata=self.metadata.iloc[indices].reset_index(drop=True),
            lines=[self.lines[i] for i in indices],
        )


def read_table(
    path: str | Path,
    *,
    id_column: str = "pdb_id",
    target_column: str = "affinity",
    require_target: Required = True,
) -> Table:
    r"""Read and check a table of samples.

    Every cell is read as text first, so ids such as ``1e10``, ``0001`` and ``NA`` stay what they
    are. The delimiter (comma, tab, semicolon, bar) and the encoding (UTF-8, UTF-16, else Latin-1)
    are found out. All bad rows are reported in one error.

    Parameters
    ----------
    path
        ``.parquet`` or ``.pq`` for Parquet; anything else is read as delimited text.
    id_column, target_column
        Names of the two columns that are needed.
    require_target
        False for prediction: the label column may be absent or have blank cells. With
        ``"column"`` cells may be blank, and the column must be there.

    Returns
    -------
    Table
        Rows in the order of the file, without rows that repeat an earlier one.

    Raises
    ------
    TableError
        If the file is missing, empty or unreadable, a column is missing, or any row is bad.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.csv"
    >>> _ = path.write_text("pdb_id;affinity;year\n1a4w;6.52;2015\n0001;8.1;2016\n")
    >>> table = read_table(path)
    >>> table.ids, table.targets.tolist(), table.metadata["year"].tolist()
    (['1a4w', '0001'], [6.52, 8.1], [2015, 2016])
    """
    cells = read_cells(as_path(path), id_column)
    label = {target_column: "target_column"} if require_target else {}
    cells.require({id_column: "id_column", **label})
    ids = cells.ids(id_column)
    labels = read_labels(cells, target_column, required=require_target)
    # objects where no row has one
    targets = np.array(labels, np.float64)
    keep = _without_duplicates(cells, ids, targets)
    cells.raise_problems(goes_on=True)
    keep = cells.good(keep)
    table = Table.of(cells, ids, targets, used=(id_column, target_column))
    if len(keep) < len(table):
        table = table.take(keep)
    _warn_labels(table, target_column)
    _warn_case(table)
    return table


def _without_duplicates(cells: Cells, ids: Sequence[str], targets: np.ndarray) -> Sequence[int]:
    """Return the rows to keep; note ids that come with two labels."""
    if are_distinct(ids):
        return range(len(ids))
    first: dict[str, int] = {}
    keep, dropped = [], []
    for row, name in enumerate(ids):
        earlier = first.setdefault(name, row)
        if earlier == row:
            keep.append(row)
        elif np.array_equal(targets[earlier], targets[row], equal_nan=True):
            dropped.append(f"{name} ({cells.where(row)})")
        else:
            cells.refuse(
                row,
                f"{cells.where(row)}: {name!r} has the label {targets[row]:g}, and "
                f"{targets[earlier]:g} on {cells.where(earlier)}; keep one of them",
            )
    if dropped and (is_collecting() or not cells.problems):
        logger.warning(
            "%s repeats %s (same id, same label); the first of each is kept: %s%s",
            cells.path, counted(len(dropped), "row"),
            ", ".join(dropped[:5]), ", ..." if len(dropped) > 5 else "",
        )  # fmt: skip
    return keep


def _warn_labels(table: Table, column: str) -> None:
    known = table.targets[np.isfinite(table.targets)]
    if len(known) > 1 and np.ptp(known) == 0:
        logger.warning(
            "%s: all %d values of %r are %g, so there is nothing to learn.",
            table.path, len(known), column, known[0],
        )  # fmt: skip
    if len(known) < 4:
        return
    low, middle, high = np.percentile(known, [25, 50, 75])
    far = np.abs(table.targets - middle) > OUTLIER_RANGES * (high - low)
    if high > low and far.any():
        row = int(np.flatnonzero(far)[0])
        logger.warning(
            "%s: %s of %r far from the rest (%s has %g, the middle half is %g to %g). "
            "Check the unit.",
            table.path, counted(int(far.sum()), "value"), column,
            table.ids[row], table.targets[row], low, high,
        )  # fmt: skip


def _warn_case(table: Table) -> None:
    if isinstance(table.ids, ArrowTexts) and table.ids.are_of_one_case():
        return
    text = "\n".join(table.ids)
    if text in (text.lower(), text.upper()):
        return  # ids of one case, of which none repeats another
    folded = Counter(name.casefold() for name in table.ids)
    alike = [name for name in table.ids if folded[name.casefold()] > 1]
    if alike:
        logger.warning(
            "%s: %d ids differ from another one only in case (%s); they may be the same entry.",
            table.path, len(alike), ", ".join(alike[:4]),
        )  # fmt: skip

"""Write predictions as a table that ``molfun evaluate`` reads again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from molfun._io import write_text


def write_predictions(
    path: Path, ids: Sequence[str], predictions: Iterable[float], targets: Iterable[float]
) -> None:
    """Write ``pdb_id,affinity,prediction``; the affinity is blank where it is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pdb_id", "affinity", "prediction"])
    for name, prediction, target in zip(ids, predictions, targets, strict=True):
        known = "" if math.isnan(target) else repr(float(target))
        writer.writerow([escape(name), known, repr(float(prediction))])
    write_text(path, text.getvalue())


def escape(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula.

    Examples
    --------
    >>> escape("=SUM(A1)"), escape("1a4w")
    ("'=SUM(A1)", '1a4w')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

"""Write predictions as a table that ``molfun evaluate`` reads again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text


def write_predictions(path: Path, result: Mapping[str, Any], dataset: Any) -> None:
    """Write ids, labels (blank where not known), predictions and probabilities.

    Parameters
    ----------
    path
        CSV file to write.
    result
        What `MolfunStructureModel.predict` gave for the data set.
    dataset
        The data set; its columns get the names they have in its table.
    """
    columns: dict[str, Sequence[Any]] = {dataset.id_name: [escape(i) for i in result["ids"]]}
    if getattr(dataset, "sequence_name", None):
        columns[dataset.sequence_name] = [chain for (chain,) in dataset.sequences()]
    columns[dataset.target_name] = [_cell(target) for target in dataset.targets]
    columns["prediction"] = [_cell(value) for value in result["prediction"]]
    probs = result.get("probs")
    if probs is not None and not isinstance(probs, list):
        names = result.get("classes") or range(probs.shape[1])
        for index, name in enumerate(names):
            columns[f"prob_{name}"] = [_cell(p) for p in probs[:, index]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def _cell(value: Any) -> str:
    """A label or prediction as text that is read back as the same."""
    if value is None:
        return ""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list | tuple) and (not value or isinstance(value[0], str | None)):
        letters = any(v is None for v in value) and all(v is None or len(v) == 1 for v in value)
        return ("" if letters else ";").join("?" if v is None else escape(v) for v in value)
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0:
        return "" if np.isnan(array) else repr(float(array))
    return " ".join(repr(float(v)) for v in array.reshape(-1))


def escape(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula.

    Examples
    --------
    >>> escape("=SUM(A1)"), escape("1a4w")
    ("'=SUM(A1)", '1a4w')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

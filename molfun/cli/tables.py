"""Write predictions as a table that ``molfun evaluate`` can read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_text
from molfun.data.cells import escape
from molfun.data.named_targets import NamedTargets
from molfun.sample import CHAIN_SEPARATOR, is_missing, single_label


def write_predictions(
    path: Path,
    result: Mapping[str, Any],
    dataset: Any,
    *,
    about: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write ids, labels (blank if unknown), predictions, probabilities, and all other columns.

    Columns of several heads begin with the name of the head.

    Parameters
    ----------
    path
        CSV file to write. Predictions have the column ``prediction``, or ``prediction_molfun`` if
        the labels do.
    result
        Result of `MolfunStructureModel.predict` for the data set.
    dataset
        The data set; its columns keep the names of its table.
    about
        Further columns on the predictions, after these.
    """
    columns = _inputs_and_labels(result["ids"], dataset)
    _add_predictions(columns, result)
    for name, values in (about or {}).items():
        columns[_free(name, columns)] = [_cell(value) for value in values]
    # such columns exist if the table is itself one of predictions: the new ones replace them
    others = [name for name in dataset.metadata.columns if name not in columns]
    columns |= {name: [_plain(value) for value in dataset.metadata[name]] for name in others}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(escape, columns))
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def _add_predictions(columns: dict[str, Sequence[Any]], result: Mapping[str, Any]) -> None:
    """Add the columns of each head."""
    several = {f"{name}_": part for name, part in result.items() if isinstance(part, Mapping)}
    for prefix, part in (several or {"": result}).items():
        columns |= {_free(prefix + name, columns): cells for name, cells in _predicted(part)}


def predicted_columns(result: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the columns of predictions, of each head."""
    columns: dict[str, Sequence[str]] = {}
    _add_predictions(columns, result)
    return columns


def _inputs_and_labels(ids: Sequence[str], dataset: Any) -> dict[str, Sequence[Any]]:
    """Return the columns of ids, sequences if there are any, and labels."""
    columns: dict[str, Sequence[Any]] = {dataset.id_name: [escape(i) for i in ids]}
    parts: list[Any] = (
        list(dataset.parts.values()) if isinstance(dataset, NamedTargets) else [dataset]
    )
    names = getattr(parts[0], "sequence_names", [])
    for place, name in enumerate(names):
        columns[name] = [
            escape(CHAIN_SEPARATOR.join(chains) if len(names) == 1 else chains[place])
            for chains in dataset.sequences()
        ]
    for part in parts:
        if getattr(part, "labels_from_structure", False):
            continue  # coordinates have no column
        columns |= _labels(part)
    return columns


def _labels(part: Any) -> dict[str, list[str]]:
    """Return the columns of the labels of one head, one or several."""
    targets, names = part.targets, getattr(part, "target_names", [])
    if len(names) < 2:
        name = getattr(part, "target_name", "target")
        return {name: [_cell(single_label(target)) for target in targets]}
    rows = [[None] * len(names) if target is None else target for target in targets]
    return {name: [_cell(row[k]) for row in rows] for k, name in enumerate(names)}


def _predicted(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the columns with the predictions of one head."""
    if "targets" in result:
        yield from _of_targets(result)
        return
    yield "prediction", _cells(result["prediction"])
    if "set" in result:
        yield "prediction_set", _cells(result["set"])
    probs = result.get("probs")
    if probs is not None and not isinstance(probs, list):
        yield from _of_classes(probs, result)
        return
    for name in ("std", "lower", "upper"):
        if name in result:
            yield name, _cells(result[name])


def _of_targets(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the prediction of each property, and its standard deviation over an ensemble."""
    for name in ("prediction", "std"):
        for place, target in enumerate(result["targets"] if name in result else ()):
            yield f"{target}_{name}", _cells(result[name][:, place])


def _of_classes(probs: Any, result: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the probability of each class, and its standard deviation over an ensemble."""
    for index, name in enumerate(result.get("classes") or range(probs.shape[1])):
        yield f"prob_{name}", _cells(probs[:, index])
        if "std" in result:
            yield f"std_{name}", _cells(result["std"][:, index])


def _cells(values: Iterable[Any]) -> list[str]:
    return [_cell(value) for value in values]


def _free(name: str, taken: Iterable[str]) -> str:
    """Return a column name that is not taken."""
    while name in taken:
        name += "_molfun"
    return name


def _plain(value: Any) -> str:
    """Format a cell of another column as it was: no point in whole numbers, blank if missing."""
    if is_missing(value):
        return ""
    # pandas reads a column of integers with gaps as floats
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return escape(value) if isinstance(value, str) else str(value)


def _cell(value: Any) -> str:
    """Format a label or prediction as text that is read back as the same value."""
    if value is None:
        return ""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list | tuple) and all(isinstance(v, str | None) for v in value):
        return escape(_joined(value))
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0:
        # repr is the shortest text that gives the same float again
        return "" if np.isnan(array) else repr(float(array))
    return " ".join(repr(float(v)) for v in array.reshape(-1))


def _joined(names: Sequence[str | None]) -> str:
    """Join class names to one text, with ``?`` for missing ones."""
    present = [name for name in names if name is not None]
    if not present:
        # separated by blanks, this is read back as missing by tasks of classes and of numbers
        return " ".join("?" for _ in names)
    letters = len(present) < len(names) and all(len(name) == 1 for name in present)
    return ("" if letters else ";").join("?" if name is None else name for name in names)

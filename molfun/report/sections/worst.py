"""Worst predictions: the samples to look at first."""

from __future__ import annotations

import re

import numpy as np

from molfun.errors import printable
from molfun.report.blocks import Section, Table
from molfun.report.figures import cut
from molfun.report.finished import FinishedRun
from molfun.report.numbers import DASH, PART_NAMES, number
from molfun.report.predicted import Predicted

SHOWN = 10


def section(run: FinishedRun) -> Section | None:
    """Return the samples with the largest errors of each head."""
    tables = []
    for head in run.heads:
        judged = run.judged(head)
        if judged is not None and judged[1].form != "other" and judged[1].known.any():
            tables.append(_table(*judged))
    return Section("Worst predictions", tables) if tables else None


def worst(found: Predicted, n: int = SHOWN) -> list[int]:
    """Return the places of the samples with the largest errors, the worst first.

    Of samples in the wrong class the surest come first.
    """
    errors = found.errors()
    if found.form == "class" and found.probs is not None and len(found.probs) == len(errors):
        errors = errors + found.probs.max(1)
    order = np.argsort(-np.nan_to_num(errors, nan=-np.inf), kind="stable")
    return [int(i) for i in order[:n] if np.isfinite(errors[i])]


def _wrong(found: Predicted) -> list[int]:
    """Return the worst places; of classes those alone that are wrong."""
    errors = found.errors()
    return [i for i in worst(found) if found.form == "number" or errors[i] > 0]


def _table(part: str, found: Predicted) -> Table:
    single = len(found.labels) == len(found.rows)
    others = _others(found)
    header = ["id", *(["label", "prediction"] if single else []), _error_name(found), *others]
    errors = found.errors()
    rows = []
    for place in _wrong(found):
        row = found.rows[place]
        cells = [cut(printable(found.ids[place]), 40)]
        if single:
            cells += [_value(found, found.labels[place]), _value(found, found.predictions[place])]
        cells.append(_error(found, place, errors[place]))
        rows.append([*cells, *(_short(row[name]) for name in others)])
    caption = f"{found.head.target}, {PART_NAMES[part]} part."
    return Table(header, rows, caption, numeric=found.form == "number" and not others)


def _others(found: Predicted) -> list[str]:
    """Return the first columns that tell samples apart: no labels, predictions or copies of ids."""
    own = {found.label_column, *list(found.rows[0])[:1]}
    names = [
        n for n in found.rows[0] if n not in own and "prediction" not in n and "prob_" not in n
    ]
    return [name for name in names if _tells(found, name)][:3]


def _tells(found: Predicted, name: str) -> bool:
    values = [row[name] for row in found.rows]
    return values != found.ids and (len(values) < 2 or len(set(values)) > 1)


def _short(text: str) -> str:
    """Shorten a cell: long texts, and the digits of numbers."""
    if re.fullmatch(r"-?\d+\.\d{3,}(e-?\d+)?", text):
        return number(float(text))
    return cut(printable(text), 32)


def _value(found: Predicted, value: float) -> str:
    if found.form == "number":
        return number(float(value))
    return found.head.classes[int(value)] if value >= 0 else DASH


def _error_name(found: Predicted) -> str:
    if found.form == "number":
        return "error"
    single = len(found.labels) == len(found.rows)
    return "probability" if single and found.probs is not None else "share wrong"


def _error(found: Predicted, place: int, error: float) -> str:
    if _error_name(found) == "probability":
        assert found.probs is not None
        return number(float(found.probs[place].max()))
    if found.form == "number" and len(found.labels) == len(found.rows):
        return number(float(found.predictions[place] - found.labels[place]))
    return number(float(error))

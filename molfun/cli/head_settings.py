"""Settings of each of several heads: those of the only head of a run, and a weight."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import create_model
from pydantic_core import PydanticCustomError

from molfun._paths import as_path
from molfun.config import Settings, option
from molfun.errors import ConfigError

MULTITARGET = "multitarget"
"""Task of several target columns that one head predicts."""
LONGEST_HEADER = 2**20
"""Characters of the first line of a table in which a name is looked for."""


def of_head(run: type[Settings]) -> list[str]:
    """Names of the settings of a run that describe its head and its labels.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> of_head(FineTuneSettings)[:3]
    ['head', 'head_config', 'task']
    """
    return [name for name in run.model_fields if run.flag(name).of_head]


@functools.lru_cache
def settings_of_head(run: type[Settings]) -> type[Settings]:
    """Make the settings of one of several heads from those of a run."""
    weight: Any = option(1.0, "Weight of its loss in the sum.", gt=0, allow_inf_nan=False)
    fields: dict[str, Any] = {"weight": (float, weight)}
    for name in of_head(run):
        field = run.model_fields[name]
        fields[name] = (field.annotation, copy.copy(field))
    return create_model("Head", __base__=Settings, **fields)


def checked_heads(
    run: type[Settings], heads: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Check the settings of each head, and give those that are no default.

    Raises
    ------
    PydanticCustomError
        Naming everything that is wrong in any of them, on a line each.
    """
    cls, checked, problems = settings_of_head(run), {}, []
    for name, given in heads.items():
        where, known = f"heads.{name}", {*cls.model_fields, *given}
        try:
            one = cls.build(given, names={key: f"{where}.{key}" for key in known})
        except ConfigError as error:
            problems += [line.strip() for line in str(error).splitlines()[1:]]
            continue
        if getattr(one, "head", None) is None and getattr(one, "task", None) is None:
            problems.append(f"{where}: give its head or its task")
        checked[name] = one.model_dump(exclude_defaults=True)
    if problems:
        raise PydanticCustomError("parts", "{text}", {"text": "\n".join(problems)})
    return checked


def one_head_per_target(run: type[Settings], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with a head for each of several target columns, ``kd,kon``.

    The task ``multitarget`` reads several columns with one head.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> one_head_per_target(FineTuneSettings, {"target_column": "kd,kon"})
    {'heads': {'kd': {'task': 'regression', 'target_column': 'kd'},
    'kon': {'task': 'regression', 'target_column': 'kon'}}}
    """
    values = _with_text(values)
    names = _several(values.get("target_column"), values.get("data"))
    if not names or values.get("heads") or MULTITARGET in (values.get("head"), values.get("task")):
        return values
    shared = {name: values[name] for name in (*of_head(run), "target_column") if name in values}
    if not shared.keys() & {"head", "task"}:
        shared = {"task": "regression", **shared}
    rest = {name: value for name, value in values.items() if name not in shared}
    return {**rest, "heads": {name: {**shared, "target_column": name} for name in names}}


def _with_text(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with a list of target columns, as a file may have it, as one text."""
    columns = values.get("target_column")
    if not isinstance(columns, list):
        return values
    return {**values, "target_column": ",".join(map(str, columns))}


def _several(columns: Any, data: Any) -> list[str]:
    """Return the names of several columns; none where they are the name of one."""
    if not isinstance(columns, str) or "," not in columns or _is_column(columns, data):
        return []
    names = [name.strip() for name in columns.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"target_column must name different columns, got {columns!r}.")
    return names


def _is_column(name: str, data: Any) -> bool:
    """Return whether the first line of a table has the name of one column."""
    if not isinstance(data, str) or not data.lower().endswith((".csv", ".tsv", ".txt")):
        return False
    try:
        with as_path(data).open(encoding="utf-8-sig", errors="replace") as file:
            line = file.readline(LONGEST_HEADER).rstrip("\n")
    except OSError:  # what is wrong with the file is said where it is read
        return False
    return f'"{name}"' in line or name in line.split("\t")

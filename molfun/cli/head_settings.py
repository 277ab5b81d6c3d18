"""Settings of each of several heads: those of the only head of a run, and a weight."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import create_model
from pydantic_core import PydanticCustomError

from molfun.config import Settings, option
from molfun.errors import ConfigError


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

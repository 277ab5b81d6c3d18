"""Make loggers of names and settings as users give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from molfun.errors import ConfigError
from molfun.registry import LOGGERS
from molfun.strict import build, refuse_unknown
from molfun.text import shown
from molfun.training.loggers.base import Logger
from molfun.training.loggers.names import logger_names, refuse_repeats


def named_loggers(
    given: str | Iterable[str], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Logger]:
    """Return loggers by their names, each with its settings.

    Raises
    ------
    ConfigError
        If a name or a setting is unknown, or settings are for a logger that is not named.
    MissingDependencyError
        If the package of one is not installed.

    Examples
    --------
    >>> [one.every for one in named_loggers("csv", {"csv": {"every": 5}})]
    [5]
    """
    names, settings = logger_names(given), settings or {}
    refuse_unknown("logger with settings", settings, names)
    return [build(LOGGERS[name], settings.get(name, {}), f"logger {name}") for name in names]


def as_loggers(given: Sequence[Logger | str] | str) -> list[Logger]:
    """Return the loggers of a fit, from objects and names.

    Raises
    ------
    ConfigError
        If one is neither, or a name is unknown or given twice.
    MissingDependencyError
        If the package of one is not installed.
    """
    listed = [given] if isinstance(given, str | Logger) else list(given)
    wrong = [one for one in listed if not isinstance(one, Logger | str)]
    if wrong:
        raise ConfigError(
            f"loggers must be names ({', '.join(LOGGERS)}) or molfun.training.loggers.Logger "
            f"objects, got {shown(wrong[0])}."
        )
    objects = [one for one in listed if isinstance(one, Logger)]
    named = named_loggers(one for one in listed if isinstance(one, str))
    refuse_repeats([one.name for one in [*objects, *named]])  # an object may repeat a name
    return [*objects, *named]

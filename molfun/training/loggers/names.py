"""Names of loggers in settings; without torch, since the command line checks them for its help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from molfun.errors import ConfigError
from molfun.registry import LOGGERS
from molfun.strict import check_choice


def logger_names(given: str | Iterable[str]) -> list[str]:
    """Return the names of loggers in a text with commas, or in a list of such texts.

    Raises
    ------
    ConfigError
        If a name is unknown, with the nearest one, or given twice.

    Examples
    --------
    >>> logger_names("csv, tensorboard")
    ['csv', 'tensorboard']
    """
    texts = [given] if isinstance(given, str) else list(given)
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        check_choice("logger", name, LOGGERS)
    refuse_repeats(names)
    return names


def refuse_repeats(names: Sequence[str]) -> None:
    """Refuse two loggers of one name, which would write into one folder.

    Raises
    ------
    ConfigError
        With the name.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"The logger {', '.join(twice)} is given twice.")

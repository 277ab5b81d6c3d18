"""Open the experiment trackers that settings name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from molfun.cli.shared_settings import ProcessSettings
from molfun.training.loggers.base import Logger
from molfun.training.loggers.given import named_loggers


@contextlib.contextmanager
def held_loggers(settings: ProcessSettings) -> Iterator[list[Logger]]:
    """Yield the loggers of a run, open until the end of the block: its report comes after `fit`.

    Raises
    ------
    ConfigError
        If a setting of one is unknown.
    MissingDependencyError
        If the package of one is not installed; the text has the line that installs it.
    """
    # all of them are made before one is opened, and before any data is read
    made = named_loggers(settings.logger, settings.logger_config)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one) for one in made]


def tell(loggers: Sequence[Logger], settings: Callable[[], Mapping[str, Any]]) -> None:
    """Give loggers the function that returns the settings of the run, to send at its start."""
    for one in loggers:
        one.settings = settings

"""Run a command in several processes, of which the first prints and writes for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from molfun.cli.command_settings import SpreadCommand
from molfun.cli.shared_settings import TogetherSettings
from molfun.models.build import resolve_device
from molfun.parallel.failures import named_failures
from molfun.parallel.launch import join, launch
from molfun.parallel.ranks import Ranks
from molfun.parallel.started import Started

PATIENCE = timedelta(days=7)
"""Time for which a process waits for results of another, which may have much more to do.

One that ended is noticed at once, whatever this is.
"""
ADVICE = "The same command again makes what is missing."
RESUMED = "A run that had begun goes on with --resume."


@contextlib.contextmanager
def processes(
    wanted: SpreadCommand | TogetherSettings,
    advice: str = ADVICE,
    patience: timedelta | None = PATIENCE,
) -> Iterator[Ranks]:
    """Start the processes of a command, or join those that were started for it.

    Enter it after the input was checked, where that is possible: each process says what is wrong.
    But enter it before anything that takes long: a process waits here until all have come.

    Parameters
    ----------
    wanted
        How many, and on which devices.
    advice
        What to do if a process ends, for the message of the others.
    patience
        Time for which a process waits for another; None for half an hour, as torch does.

    Raises
    ------
    ConfigError
        If others were started than are asked for.
    RunError
        If one of the others ends inside of the block.
    """
    devices = wanted.devices
    if devices is None:
        devices = "auto" if Started.found().size > 1 else 1
    launch(devices, wanted.num_nodes, wanted.device, patience)
    ranks = join(resolve_device(wanted.device), patience)
    with named_failures(ranks, advice):
        yield ranks

"""Log to TensorBoard, by Lightning Fabric's logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from molfun._lazy import require
from molfun.training.loggers.base import EVERY, LoggedRun, Logger


class TensorBoardLogger(Logger):
    """Log to event files in ``logs/tensorboard`` of the run folder.

    ``tensorboard --logdir runs`` shows all runs below a folder.

    Parameters
    ----------
    every
        Optimizer steps from one logged step to the next.

    Raises
    ------
    MissingDependencyError
        Without the package tensorboard.
    """

    name: ClassVar[str] = "tensorboard"

    def __init__(self, *, every: int = EVERY) -> None:
        super().__init__(every=every)
        require("tensorboard", "pip install 'molfun[tensorboard]'")

    def start(self, run: LoggedRun) -> str:
        """Open a file of events; of a resumed run, those after its state count no more."""
        from lightning_fabric.loggers import TensorBoardLogger as FabricLogger

        purge = {"purge_step": run.step + 1} if run.id else {}
        self._writer: Any = FabricLogger(
            run.folder.parent, name="", version=run.folder.name, **purge
        )
        if run.id is None:
            self._writer.log_hyperparams(
                {
                    k: v if isinstance(v, int | float | str) else str(v)
                    for k, v in run.config.items()
                }
            )
        return run.name

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        self._writer.log_metrics(values, step)
        self._writer.save()

    def finish(self, *, failed: bool) -> None:
        """Close the file."""
        self._writer.finalize("failed" if failed else "success")

"""Log to Weights & Biases, by its own package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from molfun._lazy import require
from molfun.training.loggers.base import EVERY, LoggedRun, Logger

STEP = "step"
"""Metric that is the x axis."""


class WandbLogger(Logger):
    """Log to Weights & Biases.

    Where and how is decided by its own environment variables (``WANDB_API_KEY``, ``WANDB_MODE``):
    with ``WANDB_MODE=offline`` everything stays in ``logs/wandb`` of the run folder, until
    ``wandb sync`` sends it.

    Parameters
    ----------
    every
        Optimizer steps from one logged step to the next.
    project
        Project of the run.
    **options
        Further arguments of ``wandb.init``: ``entity``, ``tags``, ``group``, ``mode`` ...

    Raises
    ------
    MissingDependencyError
        Without the package wandb.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, *, every: int = EVERY, project: str = "molfun", **options: Any) -> None:
        super().__init__(every=every)
        self._wandb = require("wandb", "pip install 'molfun[wandb]'")
        self._options = {"project": project, **options}

    def start(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of that id."""
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        given = {
            "name": run.name,
            "dir": str(run.folder.parent),
            "config": dict(run.config),
            "id": run.id,  # None: a new one
            "resume": "allow",
            # it would redirect the output of the whole process
            "settings": self._wandb.Settings(console="off"),
        }
        self._run: Any = self._wandb.init(**{**given, **self._options})
        # not its own counter: a resumed run repeats steps, and wandb drops those it has seen
        self._run.define_metric("*", step_metric=STEP)
        return str(self._run.id)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log values with their step."""
        self._run.log({**values, STEP: step})

    def write_file(self, path: Path) -> None:
        """Log a copy of the file as an artifact of the run."""
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, *, failed: bool) -> None:
        """Finish the run, and wait until everything is written or sent."""
        self._run.finish(exit_code=int(failed))

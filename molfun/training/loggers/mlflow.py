"""Log to MLflow, by its own package."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from molfun._lazy import require
from molfun.training.loggers.base import EVERY, LoggedRun, Logger

AT_ONCE = 100
"""Parameters per request: the most that MLflow takes."""
LONGEST = 6000
"""Characters of the value of a parameter: the most that MLflow takes."""


class MLflowLogger(Logger):
    """Log to MLflow.

    Parameters
    ----------
    every
        Optimizer steps from one logged step to the next.
    experiment
        Name of the experiment; it is made if it is not there.
    tracking_uri
        Server, data base or folder; None takes MLflow's own (``MLFLOW_TRACKING_URI``, else
        ``mlflow.db`` in the current directory).

    Raises
    ------
    MissingDependencyError
        Without the package mlflow.
    """

    name: ClassVar[str] = "mlflow"

    def __init__(
        self, *, every: int = EVERY, experiment: str = "molfun", tracking_uri: str | None = None
    ) -> None:
        super().__init__(every=every)
        self._mlflow = require("mlflow", "pip install 'molfun[mlflow]'")
        self._experiment, self._uri = experiment, tracking_uri

    def start(self, run: LoggedRun) -> str:
        """Start a run, or continue the one of that id."""
        # a client and not mlflow.start_run, whose active run is global to the process
        self._client: Any = self._mlflow.tracking.MlflowClient(tracking_uri=self._uri)
        if run.id is not None:
            self._id = run.id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment)
            if found is None
            else found.experiment_id
        )
        self._id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        param = self._mlflow.entities.Param
        params = [param(name, str(value)[:LONGEST]) for name, value in run.config.items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + AT_ONCE])
        return self._id

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics."""
        metric, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        metrics = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def write_file(self, path: Path) -> None:
        """Log the file as an artifact."""
        self._client.log_artifact(self._id, str(path))

    def finish(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")

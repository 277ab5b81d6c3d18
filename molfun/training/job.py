"""One run of training, whatever it trains: its folder, processes, precision, optimizer and loop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from molfun.config import flattened
from molfun.errors import NonFiniteError
from molfun.runs.folder import RunFolder
from molfun.strategies.base import FinetuneStrategy
from molfun.training.callbacks import Callback, CSVLog
from molfun.training.engine import Engine
from molfun.training.engine_config import EngineConfig
from molfun.training.groups import make_optimizer
from molfun.training.history import History, Row
from molfun.training.precision import choose_precision, make_fabric
from molfun.training.ranks import Ranks
from molfun.training.runner import Runner

logger = logging.getLogger(__name__)

Keep = Callable[[Row | None, RunFolder | None], None]
"""Called with the row that the weights in the model belong to (None where no epoch ended) and the
folder to write them into (None where nothing is to be written)."""


@dataclass(kw_only=True)
class Job:
    """Set-up and end of a run: made before anything is computed, then `set_up`, then `run`.

    Parameters
    ----------
    device
        Where the model is.
    train, val
        Batches to train on and to validate with; `val` may be None.
    folder
        Where the run writes, checked; None writes nothing.
    epochs, max_steps
        When to stop, at the latest.
    seed
        Decides the order of samples and dropout.
    precision
        Overrides the strategy's ``amp``; `chosen_precision` is Fabric's name of what follows.
    callbacks
        Hooks, called in order after the history is written.
    save_every_steps
        Write the state every so many optimizer steps, besides every epoch and ten minutes.
    restore_best
        Whether the best weights are in the model at the end, else the last ones.
    """

    device: torch.device
    train: Any
    val: Any
    folder: RunFolder | None
    epochs: int | None
    max_steps: int | None
    seed: int
    precision: str | None
    callbacks: Sequence[Callback]
    save_every_steps: int | None
    restore_best: bool = True

    def __post_init__(self) -> None:
        self.history = History([])
        self.ranks = Ranks.join_run(self.device)
        self.ranks.wait()  # nobody writes before all have looked into the folder

    @property
    def resume(self) -> bool:
        """Whether the run in the folder is continued."""
        return self.folder is not None and self.folder.resume

    def set_up(self, model: Any, strategy: FinetuneStrategy) -> None:
        """Freeze and adapt `model` by the strategy, and choose precision and optimizer.

        Parameters
        ----------
        model
            Something with a ``backbone`` and a ``head``, see `molfun.strategies.base.FineTunable`.
        strategy
            What trains and how fast.
        """
        strategy.setup(model, seed=self.seed)
        self.strategy = strategy
        self.chosen_precision = choose_precision(
            self.device, amp=strategy.amp, precision=self.precision
        )
        self.fabric = make_fabric(self.device, self.chosen_precision)
        self.optimizer, self.parameters = make_optimizer(strategy, model)

    def run(
        self,
        runner: Runner,
        keep: Keep,
        *,
        identity: Mapping[str, Any],
        on_start: Callable[[], None] = lambda: None,
    ) -> History:
        """Train, and keep what was best.

        Parameters
        ----------
        runner
            The model as a function of a batch.
        keep
            Notes and writes the weights in the model: whenever they are the best so far, and at
            the end if the best ones are not on disk.
        identity
            What has to be equal for the run to be resumed, besides the settings of the job.
        on_start
            Called once, when all is checked and the first batch comes next.

        Raises
        ------
        NonFiniteError
            If losses stay NaN or infinite; finite weights are kept.
        RunError
            If the run cannot be resumed or written.
        """
        folder = self.folder if self.ranks.is_first else None
        kept = False

        def keep_best(history: History) -> None:
            nonlocal kept
            self.history, kept = history, True
            keep(history[-1], folder)

        engine = self._engine(runner, identity, on_start, keep_best)
        with contextlib.nullcontext() if folder is None else folder.held():
            try:
                self.history = engine.fit(self.train, self.val, resume=self.resume)
            except NonFiniteError:
                if not kept:
                    keep(None, folder)
                raise
            restored = engine.config.restore_best
            # what was best is on disk already, unless an earlier process of this run wrote it
            is_written = runner.ranks_epochs and (
                kept or bool(engine.state.best_epoch and not restored)
            )
            row = self.history.best if restored else self.history[-1]
            keep(row, None if is_written else folder)
        self.ranks.wait()
        return self.history

    def _engine(
        self,
        runner: Runner,
        identity: Mapping[str, Any],
        on_start: Callable[[], None],
        on_best: Callable[[History], None],
    ) -> Engine:
        config = EngineConfig(
            epochs=self.epochs,
            max_steps=self.max_steps,
            seed=self.seed,
            state_dir=None if self.folder is None else self.folder.state,
            save_every_steps=self.save_every_steps,
            restore_best=self.restore_best and runner.ranks_epochs,
            identity={**self._settings(), **identity},
        )
        logs = [] if self.folder is None else [CSVLog(self.folder.history)]
        return Engine(
            runner,
            self.strategy,
            config,
            parameters=self.parameters,
            optimizer=self.optimizer,
            fabric=self.fabric,
            callbacks=[*logs, *self.callbacks],
            on_start=on_start,
            on_best=on_best,
            ranks=self.ranks,
        )

    def _settings(self) -> dict[str, Any]:
        """Settings of the job that a resumed run repeats, as they come back from a file."""
        flat = flattened({"strategy": self.strategy.to_dict()})
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()},
            "seed": self.seed,
            "precision": self.chosen_precision,
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "processes": self.ranks.size,
        }

"""Set-up and end that all training runs share: folder, processes, precision, optimizer, loop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from molfun.config import flattened
from molfun.errors import ConfigError, NonFiniteError
from molfun.nn.optimizers import DIVISIBLE
from molfun.parallel.failures import let_end, named_failures
from molfun.parallel.launch import fabric_for, join
from molfun.parallel.started import Way
from molfun.parallel.ways import parallel_of
from molfun.runs.folder import RunFolder
from molfun.strategies.base import FinetuneStrategy
from molfun.strict import check_choice
from molfun.training.callbacks import Callback, CSVLog
from molfun.training.engine import Engine
from molfun.training.engine_config import EngineConfig
from molfun.training.groups import make_optimizer
from molfun.training.history import History, Row
from molfun.training.interrupt import Interrupted
from molfun.training.loggers.base import Logger, ended, joined
from molfun.training.notebook import NotebookProgress, in_notebook
from molfun.training.runner import Runner

logger = logging.getLogger(__name__)

Keep = Callable[[Row | None, RunFolder | None], None]
"""Function that records the weights in the model.

It takes their row of the history (None before the first epoch ends) and the folder to write them
into (None to write nothing).
"""


@dataclass(kw_only=True)
class Job:
    """One training run. Create it before anything is computed, then call `set_up` and `run`.

    Parameters
    ----------
    device
        Device of the model.
    train, val
        Batches for training and for validation; `val` may be None.
    folder
        Folder of the run, already checked; None writes nothing.
    epochs, max_steps
        Limits of the training.
    seed
        Decides the order of samples and dropout.
    precision
        Overrides the strategy's ``amp``; `chosen_precision` is the result, by Fabric's name.
    callbacks
        Hooks, called in order after the history is written.
    loggers
        Experiment trackers, called after the hooks; they are closed at the end of `run`.
    save_every_steps
        Write the resume state after this many optimizer steps, as well as after every epoch and
        every ten minutes.
    restore_best
        Whether the model holds the best weights at the end, or the last ones.
    parallel
        How several processes train, see `molfun.parallel.started.Way`.
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
    loggers: Sequence[Logger] = ()
    parallel: Way = "auto"

    def __post_init__(self) -> None:
        self.history = History([])
        self.ranks = join(self.device)
        with named_failures(self.ranks):
            self.ranks.wait()  # no process may write before all have checked the folder

    @property
    def resume(self) -> bool:
        """True if the run in the folder is continued."""
        return self.folder is not None and self.folder.resume

    @property
    def divides(self) -> bool:
        """True if the blocks of the model are divided among processes."""
        return self.ranks.size > 1 and self.parallel not in ("auto", "ddp")

    def set_up(self, model: Any, strategy: FinetuneStrategy) -> None:
        """Apply the strategy to `model`, and choose precision and optimizer.

        Parameters
        ----------
        model
            Object with a ``backbone`` and a ``head``, see `molfun.strategies.base.FineTunable`.
        strategy
            What trains and how fast.
        """
        self.chosen_precision = choose_precision(
            self.device, amp=strategy.amp, precision=self.precision
        )
        self.spreading = parallel_of(self.ranks, self.parallel, self.device, self.chosen_precision)
        why = (model.backbone.why_whole or _why_whole(strategy)) if self.divides else ""
        if why:
            raise ConfigError(
                f"parallel={self.parallel!r} cannot divide this model: {why}. Train it with "
                f"parallel='ddp', a copy in each process."
            )
        strategy.setup(model, seed=self.seed)
        self.strategy = strategy
        self.fabric = fabric_for(self.device, self.chosen_precision)
        self.optimizer, self.parameters = make_optimizer(strategy, model)

    def run(
        self,
        runner: Runner,
        keep: Keep,
        *,
        identity: Mapping[str, Any],
        on_start: Callable[[], None] = lambda: None,
    ) -> History:
        """Train, and keep the best weights.

        Parameters
        ----------
        runner
            Computes outputs, loss and metrics of the model.
        keep
            Records the weights in the model: after each epoch that is the best so far, and at the
            end if the weights to keep are not on disk yet.
        identity
            Values that must be equal for the run to be resumed, in addition to the job's settings.
        on_start
            Called once after all checks, before the first batch.

        Raises
        ------
        NonFiniteError
            If losses stay NaN or infinite; the model then holds finite weights.
        RunError
            If the run cannot be resumed or written.
        """
        # all processes hold the same weights, and one of them writes
        folder = self.folder if self.ranks.is_first else None
        kept = False

        def keep_best(history: History) -> None:
            nonlocal kept
            self.history, kept = history, True
            with self.spreading.whole():
                keep(history[-1], folder)

        engine = self._engine(runner, identity, on_start, keep_best)
        held = contextlib.nullcontext() if folder is None else folder.held()
        with held, ended(self.loggers), named_failures(self.ranks):
            try:
                with self._collected():
                    self.history = engine.fit(self.train, self.val, resume=self.resume)
            except NonFiniteError:  # leave a checkpoint of finite weights, if there is none yet
                let_end()  # all processes raised it
                if not kept:
                    keep(None, folder)
                raise
            for callback in engine.callbacks:  # which may use the model, now that it is whole
                callback.on_fit_end(self.history)
            restored = engine.config.restore_best
            row = self.history.best if restored else self.history[-1]
            keep(row, None if runner.ranks_epochs and _has_best(engine, kept=kept) else folder)
            self.ranks.wait()
        return self.history

    @contextlib.contextmanager
    def _collected(self) -> Iterator[None]:
        """Make the model whole in every process at the end, also of a run that all of them stop."""
        try:
            yield
        except Interrupted:
            let_end()
            self.spreading.collect()
            raise
        except NonFiniteError:
            self.spreading.collect()
            raise
        # after other errors some processes may not be there any more to give their parts
        self.spreading.collect()

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
        # first, so that a user's callback can read the row in the file
        logs = [] if self.folder is None else [CSVLog(self.folder.history)]
        shown = [NotebookProgress()] if in_notebook() else []
        about = {"backbone": runner.backbone.name, **self._settings()}
        # last, since callbacks of a command write the settings that loggers send
        trackers = joined(self.loggers, self.folder, about)
        self.parameters = self.spreading.spread(
            runner.backbone.blocks(), self.optimizer, self.parameters
        )
        return Engine(
            runner,
            self.strategy,
            config,
            parameters=self.parameters,
            optimizer=self.optimizer,
            fabric=self.fabric,
            callbacks=[*logs, *self.callbacks, *shown, *trackers],
            on_start=on_start,
            on_best=on_best,
            parallel=self.spreading,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must repeat, in the types a file gives back."""
        # flat, so that a difference is named as strategy.rank and not as two dicts
        flat = flattened({"strategy": self.strategy.to_dict()})
        for name in [n for n in flat if ADDED.get(n.rpartition(".")[2], ...) == flat[n]]:
            del flat[name]
        # counts with the processes, of which a resumed run may have others (`PER_STEP`)
        del flat["strategy.accumulation_steps"]
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()},
            "seed": self.seed,
            "precision": self.chosen_precision,
            "epochs": self.epochs,
            "max_steps": self.max_steps,
        }


def _has_best(engine: Engine, *, kept: bool) -> bool:
    """Return whether the checkpoint on disk is the one to keep.

    It is if this process wrote the best epoch, or if an earlier one did before the run was resumed
    and the weights in the model are not the best ones.
    """
    return kept or bool(engine.state.best_epoch and not engine.config.restore_best)


def _why_whole(strategy: FinetuneStrategy) -> str:
    """Return why a strategy needs whole weights in every process; empty if it does not."""
    if strategy.quantises:
        return "its frozen weights are in int8"
    if strategy.optimizer not in DIVISIBLE:
        return f"{strategy.optimizer} was not tested on parts of weights"
    return ""


ADDED: Mapping[str, Any] = {"adapt_structure_module": False, "base": "float32"}
"""Settings of strategies that came later, and their defaults: left out where they have these, so
that a run of an older version goes on."""

# Precision


PRECISIONS = {
    **dict.fromkeys(("32-true", "32", "fp32", "float32"), "32-true"),
    **dict.fromkeys(("bf16-mixed", "bf16", "bfloat16"), "bf16-mixed"),
    **dict.fromkeys(("16-mixed", "16", "fp16", "float16"), "16-mixed"),
}
"""Accepted names of a precision, with Fabric's name for each."""


def choose_precision(device: torch.device, *, amp: bool, precision: str | None) -> str:
    """Return Fabric's name of the precision to train in.

    ``amp`` picks bfloat16 on GPUs that have it, float16 with a loss scaler on older ones, and
    float32 on a CPU; `precision` overrides it.

    Examples
    --------
    >>> choose_precision(torch.device("cpu"), amp=True, precision=None)
    '32-true'
    >>> choose_precision(torch.device("cpu"), amp=True, precision="bf16")
    'bf16-mixed'
    """
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
        return PRECISIONS[precision]
    if not amp or device.type != "cuda":
        return "32-true"
    # bfloat16 has the range of float32, so it needs no loss scaling
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"

"""The fit loop: one for every backbone, head, task and strategy.

Rules, each with a test:

* Optimizer steps per epoch are ``ceil(batches / accumulation_steps)``; the gradient of a window is
  the sum over its labels divided by their number, also in the last, shorter window.
* Frozen modules are in eval mode and build no graph. The trainable set is the optimizer set, minus
  the parameters that a strategy unfreezes in a later epoch.
* The weights that are validated are the ones that are kept: the moving average if there is one.
* A window with a non-finite loss or gradient is skipped and counted; a resumed run is bit-equal.

A *window* is the series of batches whose gradients go into one optimizer step.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from molfun.errors import DataError, NonFiniteError
from molfun.nn.modes import set_modes
from molfun.nn.process import random_state, seed_everything
from molfun.parallel.base import Parallel
from molfun.runs.resume import FitState
from molfun.strategies.base import FinetuneStrategy
from molfun.training.batches import EpochBatches
from molfun.training.callbacks import Callback, FitPlan, StepReport
from molfun.training.ema import average_of, copy_weights
from molfun.training.engine_config import EngineConfig
from molfun.training.groups import let_train, rates_of, shown_lr, warn_of_late_starts
from molfun.training.history import History, Row
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.interrupt import Asked, Interrupted, SignalWatch
from molfun.training.loading import worker_errors
from molfun.training.monitor import Monitor
from molfun.training.runner import Runner
from molfun.training.saved_state import PER_STEP, SavedState, batches_per_step, read_stored
from molfun.training.schedule import RunSchedule
from molfun.training.validation import evaluated
from molfun.training.window import WindowSums

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

SCALE_SEARCH = 20
"""Windows in a row that may be skipped in float16 on top of `EngineConfig.max_nonfinite`.

The loss scale starts at 2 ** 16 and is halved at each overflow: 16 skipped windows can be normal.
"""
STATE_EVERY_SECONDS = 600.0
"""Longest time between two writes of the resume state within an epoch."""


@dataclass(eq=False, repr=False)
class Engine:
    """Train one model for one run.

    Parameters
    ----------
    runner
        Computes outputs, loss and metrics of the model.
    strategy
        Strategy that has been set up on the model.
    config
        Settings of this fit.
    fabric
        Lightning Fabric, for device and precision.
    callbacks
        Hooks, called in order.
    parallel
        How the model is spread over processes; by default over none but this.
    on_start
        Called once after all checks, before the first batch.
    on_best
        Called after each epoch with the best monitored value so far (without a validation set,
        after every epoch), while the model holds the weights to keep.
    """

    runner: Runner
    strategy: FinetuneStrategy
    config: EngineConfig
    _: KW_ONLY
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    fabric: Fabric
    callbacks: Sequence[Callback] = ()
    on_start: Callable[[], None] = lambda: None
    on_best: Callable[[History], None] = lambda _: None
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        self.ranks = self.parallel.ranks
        self.monitor = Monitor(self.strategy, self.runner)
        self.callbacks = self.callbacks if self.ranks.is_first else ()
        self.parameters = dict(self.parameters)
        self.average = average_of(self.parameters, self.optimizer, self.strategy.ema_decay)
        self.state = FitState()
        self._best: dict[str, torch.Tensor] | None = None
        self._saved: SavedState | None = None
        self._saved_at = time.monotonic()
        self._watch = SignalWatch()
        self._sums = WindowSums(self.parallel, next(iter(self.parameters.values())).device)
        self._batch = 0  # batches of this process in this epoch
        self.batches_per_step = self.strategy.accumulation_steps * self.ranks.size
        self._closed = (0.0, 0, 0.0)  # loss and labels before the open window, and its start

    # --- the whole fit -------------------------------------------------------------------------

    def fit(
        self, train: Iterable[Any], val: Iterable[Any] | None = None, *, resume: bool = False
    ) -> History:
        """Train and validate, leave the best weights in the model, and return one row per epoch."""
        if val is None:
            self.monitor.need_validation()
        elif operator.length_hint(val, 1) == 0:
            raise DataError(
                "The validation set is empty: its loader gives no batch. Leave val_loader out to "
                "train without validation."
            )
        stored = self._stored() if resume else None
        # the plan comes first: schedule, warm-up and total steps follow from it
        shared = self.batches_per_step if self.parallel.in_step else None
        seed, ranks = self.config.seed, self.ranks
        batches = EpochBatches(train, seed, ranks, self.runner.ahead, per_step=shared)
        plan = FitPlan.of(
            batches.n_total,
            len(batches),
            per_step=self.batches_per_step,
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
        )
        self._total_steps = plan.total_steps
        self._schedule = RunSchedule(
            self.optimizer, self.strategy, plan, higher_is_better=self.monitor.higher_is_better
        )
        warn_of_late_starts(self.optimizer, plan.epochs)
        # dropout must differ between processes, or they would share their masks
        seed_everything(seed + ranks.index)
        self._saved = self._saved_state()
        if stored is not None:
            assert self._saved is not None
            self.state, self._best = self._saved.take_up(stored)
            self.state.batch = min(self.state.batch, batches.n_total)
        self.parallel.align(self.parameters.values())
        history = History(self.state.history)
        history.monitor, history.higher_is_better = self.monitor.name, self.monitor.higher_is_better
        with SignalWatch() as self._watch, worker_errors():
            plan = replace(plan, done_steps=self.state.step)
            self._start(plan, history, resumed=stored is not None)
            self.on_start()
            while not self.state.finished:
                self._train_epoch(batches)
                row = self._finish_epoch(val)
                history.append(row)
                self._write_state()
                if not self.state.finished:
                    self._stop_if_asked(self._sums.all_ask(self._wishes()).stop)
        self._leave_weights()
        history.stopped = self.state.finished
        return history

    def _tell(self, call: Callable[[Callback], object]) -> None:
        """Call the callbacks, which are in the first process alone and cannot run the model."""
        if self.callbacks:
            with self.parallel.in_one():
                for callback in self.callbacks:
                    call(callback)

    def _leave_weights(self) -> None:
        """Leave the best weights in the model, or the last ones."""
        # without validation no epoch is the best: `_keep_best` takes the average or the last
        if self.config.restore_best:
            self._keep_best()
        elif self.average is not None:
            self.average.copy_to_model()

    def _start(self, plan: FitPlan, history: History, *, resumed: bool) -> None:
        """Call the callbacks and write the first state, from which a killed run can resume.

        Callbacks write files that describe the run (settings, splits), and come before its state;
        if another run is replaced they come last, so that a kill in between leaves files of one.
        """
        replaces = self._saved is not None and self._saved.exists()
        randoms = self.ranks.gather(random_state())
        self._tell(lambda one: one.before_fit(plan))  # may refuse the run
        if replaces and not resumed:
            self._write_state(randoms)
        self._tell(lambda one: one.on_fit_start(plan, history))
        if not (replaces or resumed):
            self._write_state(randoms)

    def _saved_state(self) -> SavedState | None:
        """Return the resume state on disk; None if the run writes none."""
        if self.config.state_dir is None:
            return None
        return SavedState(
            self.config.state_dir,
            {**self.config.identity, PER_STEP: self.batches_per_step},
            self.runner,
            parameters=self.parameters,
            optimizer=self.optimizer,
            schedule=self._schedule,
            average=self.average,
            precision=self.fabric.strategy.precision,
            parallel=self.parallel,
            accumulation=self.strategy.accumulation_steps,
        )

    def _stored(self) -> Mapping[str, Any] | None:
        """Return the state on disk; None if the run was stopped before it wrote one."""
        assert self.config.state_dir is not None
        stored = read_stored(self.config.state_dir, self.parallel)
        if stored is not None:
            own = self.strategy.accumulation_steps
            self.batches_per_step = batches_per_step(stored, own, self.ranks)
        return stored

    # --- one epoch -----------------------------------------------------------------------------

    def _train_epoch(self, batches: EpochBatches) -> None:
        state, several = self.state, self.parallel.several
        if self._out_of_steps():  # a run that was stopped right after its last step
            return
        self._begin_epoch()
        self._set_modes(training=True)
        own = batches.epoch(state.epoch, start=state.batch)
        self._batch = batches.own(0, state.batch)
        for stop in self._window_ends(batches.n_total):
            n_own = batches.own(state.batch, stop)
            last = stop == batches.n_total
            n_passes = self.parallel.passes(n_own, stop - state.batch, last=last)
            for number, batch in enumerate(itertools.islice(own, n_passes), start=1):
                if number == n_passes:
                    self.parallel.last_backward()
                self._micro_step(as_inputs(batch), fills=several and number > n_own)
                if not several and number < n_own:
                    # several processes hold parts of an open window, and its state is that of one
                    state.batch += 1
                    self._save_or_stop()
            state.batch = stop
            self._optimizer_step()
            self._save_or_stop(window_closed=True)
            if self._out_of_steps():
                break

    def _window_ends(self, n_batches: int) -> Iterator[int]:
        """Yield the number of batches of an epoch, of all processes, after each optimizer step."""
        size = self.batches_per_step
        for start in range(self.state.batch // size * size, n_batches, size):
            yield min(start + size, n_batches)

    def _begin_epoch(self) -> None:
        """Unfreeze the parameters that begin to train in this epoch."""
        state = self.state
        self._closed = (state.loss_total, state.loss_count, time.perf_counter())
        changed = let_train(self.optimizer, state.epoch)
        self.parallel.begin(list(self.parameters.values()))
        if changed:
            self.runner.trainable_changed()
        starts = [group["start_epoch"] for group in self.optimizer.param_groups]
        if state.epoch and state.epoch in starts and state.batch == 0:
            state.since_best = 0  # more weights may improve more, so patience starts again
            self._schedule.more_trains()

    def _out_of_steps(self) -> bool:
        """Return whether max_steps is reached; skipped windows count, so that every run ends."""
        limit = self.config.max_steps
        return limit is not None and self.state.step + self.state.skipped_windows >= limit

    def _micro_step(self, inputs: Inputs, *, fills: bool) -> None:
        """Run a batch; one that fills up an unequal share only takes part in the passes."""
        state = self.state
        if fills:
            outputs = self.parallel.run(self.runner.outputs, inputs)
            self.parallel.take_part(outputs, self.fabric.backward)
            return
        state.window_batches += 1
        state.window_ids += inputs.ids
        self._batch += 1
        if state.window_bad and not self.parallel.in_step:
            return  # the window will be skipped: spare the forward pass
        outputs = self.parallel.run(self.runner.outputs, inputs)
        total, count = self.runner.loss(inputs, outputs)
        value = float(total.detach())
        state.window_bad |= not math.isfinite(value)
        if count and not state.window_bad:
            # `total` is a sum over labels; its gradient is divided by the labels of the window
            # later, since a mean of batch means would weigh small batches more
            self.fabric.backward(total)
        else:
            self.parallel.take_part(outputs, self.fabric.backward)
        if not state.window_bad:
            self._sums.add_loss(state, value, count)
            epoch, mean = state.epoch + 1, value / max(count, 1)
            self._tell(lambda one: one.on_batch_end(epoch, self._batch, mean))

    @torch.no_grad()
    def _optimizer_step(self) -> None:
        state = self.state
        precision = self.fabric.strategy.precision
        norm: Any = math.nan
        self._sums.close_window(state, self._wishes())
        if state.window_count and not state.window_bad:
            # unscale, divide, clip: the norm is that of the mean gradient, in any precision
            precision.unscale_gradients(self.optimizer)
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            torch._foreach_div_(gradients, float(state.window_count))
            norm = self.parallel.clip(list(self.parameters.values()), self.strategy.grad_clip)
            if bool(torch.isfinite(norm)):
                self._apply_gradients()
            else:
                state.window_bad = True
                if self._scales_loss():
                    # float16: the scaler sees the overflow, skips the step and halves its factor
                    precision.optimizer_step(self.optimizer)
        # None and not zero: weight decay and moments would move a parameter with a zero gradient
        self.optimizer.zero_grad(set_to_none=True)
        if self.callbacks:
            self._report_step(float(norm))
        self._close_window()

    def _report_step(self, norm: float) -> None:
        state, (loss, count, began_at) = self.state, self._closed
        labels = state.loss_count - count
        report = StepReport(
            epoch=state.epoch + 1,
            step=state.step,
            loss=(state.loss_total - loss) / labels if labels else math.nan,
            rates=rates_of(self.optimizer),
            grad_norm=norm,
            skipped=state.skipped_windows + state.window_bad,
            n_samples=self._sums.n_samples,
            seconds=time.perf_counter() - began_at,
        )
        self._tell(lambda one: one.on_step_end(report))
        # after the callbacks, whose time is not that of training
        self._closed = (state.loss_total, state.loss_count, time.perf_counter())

    def _scales_loss(self) -> bool:
        return getattr(self.fabric.strategy.precision, "scaler", None) is not None

    def _apply_gradients(self) -> None:
        self.fabric.strategy.precision.optimizer_step(self.optimizer)
        self._schedule.step()
        self.state.step += 1
        self.runner.after_step(self.state.step / self._total_steps)
        if self.average is not None:
            self.average.update()

    def _close_window(self) -> None:
        state = self.state
        ids = state.window_ids
        if state.window_bad:
            state.bad_in_row += 1
            state.skipped_windows += 1
            logger.warning(
                "Optimizer step skipped: loss or gradient is not finite for %s (%d in a row).",
                ", ".join(ids[:8]),
                state.bad_in_row,
            )
        else:
            state.bad_in_row = 0
        state.window_bad, state.window_ids = False, []
        state.window_count = state.window_batches = 0
        allowed = self.config.max_nonfinite + (SCALE_SEARCH if self._scales_loss() else 0)
        if state.bad_in_row >= allowed:
            self._keep_best()
            kept = f"best ones (epoch {state.best_epoch})" if state.best_epoch else "last ones"
            raise NonFiniteError(
                f"Loss or gradients were not finite in {state.bad_in_row} windows in a row, last "
                f"for {', '.join(ids[:8])}. The model holds finite weights, the {kept}. Look at "
                f"these samples, lower the learning rate, or train with amp=False."
            )

    # --- end of an epoch -----------------------------------------------------------------------

    def _finish_epoch(self, val: Iterable[Any] | None) -> Row:
        state = self.state
        state.epoch += 1
        state.batch = 0
        row: Row = {
            "epoch": state.epoch,
            # per label, so that batches of any size weigh as they should
            "train_loss": state.loss_total / state.loss_count if state.loss_count else math.nan,
            "val_loss": math.nan,
            "lr": shown_lr(self.optimizer),
            "steps": state.step,
            "skipped": state.skipped_windows,
        }
        state.loss_total, state.loss_count = 0.0, 0
        improved = False
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            if val is not None:
                improved = self._validate(val, row)
            else:
                self._end_schedule_epoch(row)
                self.on_best(History([*state.history, row]))
        state.history.append(row)
        state.finished = self._why_finished()
        logger.info("%s", "  ".join(f"{name}={value:.5g}" for name, value in row.items()))
        # once, since it would otherwise repeat in every epoch
        if val is not None and state.epoch == 1:
            self.monitor.warn_undefined(row)
        self._tell(lambda one: one.on_epoch_end(row, improved))
        return row

    def _validate(self, val: Iterable[Any], row: Row) -> bool:
        """Validate the weights in the model and keep them if they are the best so far."""
        self._tell(lambda one: one.on_validation_start(operator.length_hint(val)))
        state = self.state
        result = evaluated(self.runner, val, self.config.seed, self.parallel)
        row["val_loss"] = result.loss
        row.update({f"val/{k}": v for k, v in self.runner.metrics(result).items()})
        self._end_schedule_epoch(row)
        score = self.monitor.score(row)
        improved = score < state.best_score  # NaN never wins
        if improved:
            state.best_score, state.best_epoch, state.since_best = score, state.epoch, 0
            # on the CPU: a copy of all trainable weights may not fit on the GPU
            self._best = {n: p.detach().cpu().clone() for n, p in self.parameters.items()}
            if self._saved is not None:  # before the state that refers to it
                self._saved.write_best(state, self._best)
            self.on_best(History([*state.history, row]))
        else:
            state.since_best += 1
        return improved

    def _end_schedule_epoch(self, row: Row) -> None:
        """Pass the monitored value to the schedule, and note the rate of the next epoch."""
        self._schedule.end_epoch(self.monitor.value(row))
        row["lr"] = shown_lr(self.optimizer)

    def _why_finished(self) -> str:
        patience = self.strategy.early_stopping_patience
        # never stop before the last group of parameters has begun to train
        waits = any(
            group["start_epoch"] >= self.state.epoch for group in self.optimizer.param_groups
        )
        if patience and self.state.since_best >= patience and not waits:
            return "early_stopping"
        if self._out_of_steps():
            return "max_steps"
        if self.config.epochs is not None and self.state.epoch >= self.config.epochs:
            return "epochs"
        return ""

    def _set_modes(self, *, training: bool) -> None:
        for part in (self.runner.backbone, self.runner.head):
            set_modes(part, training=training)

    def _keep_best(self) -> None:
        """Load the best weights; without validation the moving average, else the last weights."""
        if self._best is not None:
            copy_weights(self._best, self.parameters)
        elif self.average is not None:
            self.average.copy_to_model()
        self._set_modes(training=False)

    # --- state ---------------------------------------------------------------------------------

    def _save_or_stop(self, *, window_closed: bool = False) -> None:
        """Write the state if it is due, and stop if a signal asked for it."""
        every = self.config.save_every_steps
        due = window_closed and every is not None and self.state.step % every == 0
        # of several processes what all of them know since the window closed
        asked = self._sums.asked if self.parallel.several else self._wishes()
        if due or asked.late or asked.stop is not None:
            self._write_state()
            # torchrun kills the others when one process ends, also one that is still writing
            self.ranks.wait()
        self._stop_if_asked(asked.stop)

    def _wishes(self) -> Asked:
        """Return what this process asks for."""
        late = time.monotonic() - self._saved_at > STATE_EVERY_SECONDS
        # clocks differ: the first process decides when a state is due
        return Asked(late=late and self.ranks.is_first, stop=self._watch.received)

    def _stop_if_asked(self, stop: int | None) -> None:
        if stop is not None:
            state, kept = self.state, self.config.state_dir is not None
            raise Interrupted.of(stop, epoch=state.epoch + 1, steps=state.step, kept=kept)

    def _write_state(self, randoms: Sequence[Any] | None = None) -> None:
        """Write the state, with the current random state unless an earlier one is given."""
        if self._saved is not None:
            self._saved_at = time.monotonic()
            self._saved.write(self.state, randoms)

"""The fit loop: one for every backbone, head, task and strategy.

Rules it keeps, each with a test:

* Optimizer steps per epoch are ``ceil(batches / accumulation_steps)``; the gradient of a window is
  the sum over its labels divided by their number, also in the last, shorter window.
* Frozen modules are in eval mode and build no graph; trainable set = optimizer set, less what a
  strategy lets train only in a later epoch.
* What is validated is what is kept: the moving average where there is one.
* A window with a loss or gradient that is not finite is left out and counted.
* State is written so that a resumed run continues bit by bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from molfun.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from molfun.nn.modes import set_modes
from molfun.nn.param_groups import for_optimizer
from molfun.nn.process import random_state, seed_everything, set_random_state
from molfun.runs import resume as run_state
from molfun.runs.resume import FitState
from molfun.text import unknown_name
from molfun.training.base import FinetuneStrategy
from molfun.training.batches import EpochBatches, seeded
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.ema import WeightAverage, copy_weights
from molfun.training.history import History, Row, monitored
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.interrupt import Interrupted, SignalWatch
from molfun.training.loading import worker_errors
from molfun.training.optimizers import build_optimizer
from molfun.training.ranks import Ranks
from molfun.training.runner import Runner
from molfun.training.schedule import RunSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

SCALE_SEARCH = 20
"""Windows in a row that a float16 loss scale may need to come down from 2 ** 16, besides
`EngineConfig.max_nonfinite`."""
STATE_EVERY_SECONDS = 600.0
"""State is written at the end of every epoch and at least this often within one."""

_MISTYPED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What values of the wrong type raise where they are used."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of a fit that are not the strategy's.

    Parameters
    ----------
    epochs, max_steps
        When to stop: after so many epochs or optimizer steps; at least one is given.
    seed
        Decides the order of samples and dropout.
    state_dir
        Folder for the resume state; None writes none.
    save_every_steps
        Write the state every so many optimizer steps, besides every epoch and ten minutes.
    max_nonfinite
        Windows in a row that may be skipped before the run stops.
    restore_best
        Leave the best weights in the model at the end; False leaves the last ones.
    identity
        What has to be equal for a run to be resumed.
    """

    epochs: int | None
    max_steps: int | None = None
    seed: int = 0
    state_dir: Path | None = None
    save_every_steps: int | None = None
    max_nonfinite: int = 5
    restore_best: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("epochs", "max_steps", "save_every_steps")}
        problems = [
            f"{name} must be a whole number of at least 1, got {value!r}."
            for name, value in counts.items()
            if value is not None and not (isinstance(value, int) and value >= 1)
        ]
        if self.epochs is None and self.max_steps is None:
            problems.append("Give epochs or max_steps.")
        if problems:
            raise ConfigError(" ".join(problems))


class Engine:
    """Fit one model once.

    Parameters
    ----------
    runner
        The model as a function of a batch.
    strategy
        Already set up on the model.
    config
        Settings of this fit.
    fabric
        Device and precision.
    callbacks
        Hooks, called in order.
    ranks
        The processes that train together; None is this one alone.
    on_start
        Called once, when all is checked and the first batch comes next.
    on_best
        Called whenever the monitored value is the best so far (every epoch without a validation
        set), with the weights to keep in the model.
    """

    def __init__(
        self,
        runner: Runner,
        strategy: FinetuneStrategy,
        config: EngineConfig,
        *,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        callbacks: Sequence[Callback] = (),
        on_start: Callable[[], None] = lambda: None,
        on_best: Callable[[History], None] = lambda _: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.runner = runner
        self.strategy = strategy
        self.config = config
        self.fabric = fabric
        self.ranks = ranks or Ranks()
        self.callbacks = callbacks if self.ranks.is_first else ()
        self.on_start, self.on_best = on_start, on_best
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.average = (
            WeightAverage(self.parameters, strategy.ema_decay) if strategy.ema_decay else None
        )
        self.state = FitState()
        self._best: dict[str, torch.Tensor] | None = None
        self._saved_at = time.monotonic()
        self._watch = SignalWatch()
        self._windows = 0  # closed in this epoch
        self._window_loss = 0.0  # of this process, in the open window

    # --- the whole fit -------------------------------------------------------------------------

    def fit(
        self, train: Iterable[Any], val: Iterable[Any] | None = None, *, resume: bool = False
    ) -> History:
        """Train, validate, keep the best; give one row an epoch."""
        self._check_monitor(val)
        if val is not None and operator.length_hint(val, 1) == 0:
            raise DataError(
                "The validation set is empty: its loader gives no batch. Leave val_loader out to "
                "train without validation."
            )
        batches = EpochBatches(train, self.config.seed, self.ranks)
        plan = self._plan(batches)
        self._total_steps = plan.total_steps
        self._schedule = RunSchedule(
            self.optimizer, self.strategy, plan, higher_is_better=self._higher_is_better
        )
        self._warn_late(plan)
        seed_everything(self.config.seed + self.ranks.index)
        resumed = resume and self._restore()
        if resumed:
            self.state.batch = min(self.state.batch, len(batches))
        self.ranks.align(self.parameters.values())
        history = History(self.state.history)
        history.monitor, history.higher_is_better = self.strategy.monitor, self._higher_is_better
        with SignalWatch() as self._watch, worker_errors():
            self._start(plan, history, resumed=resumed)
            self.on_start()
            while not self.state.finished:
                self._train_epoch(batches, plan)
                row = self._finish_epoch(val)
                history.append(row)
                self._write_state()
                if not self.state.finished:
                    self._stop_if_asked(self._signal())
        if self.config.restore_best:
            self._keep_best()
        elif self.average is not None:
            self.average.copy_to_model()
        history.stopped = self.state.finished
        for callback in self.callbacks:
            callback.on_fit_end(history)
        return history

    def _start(self, plan: FitPlan, history: History, *, resumed: bool) -> None:
        """Tell the callbacks and write the first state, from which a killed run is resumed.

        Callbacks write what describes the run, so they come first, and a state is never without
        that. Where the run replaces another one they come last: what a process killed in between
        leaves is then one run or the other.
        """
        folder = self.config.state_dir
        replaces = folder is not None and run_state.has_state(folder)
        randoms = self.ranks.gather(random_state())
        if replaces and not resumed:
            self._write_state(randoms)
        for callback in self.callbacks:
            callback.on_fit_start(plan, history)
        if not (replaces or resumed):
            self._write_state(randoms)

    def _check_monitor(self, val: Iterable[Any] | None) -> None:
        monitor, patience = self.strategy.monitor, self.strategy.early_stopping_patience
        known = ["val/loss", *(f"val/{m}" for m in self.runner.metric_names)]
        if monitor not in known:
            raise ConfigError(unknown_name("monitor", monitor, known))
        problems = []
        if patience:
            problems.append("early_stopping_patience needs a val_loader: early stopping watches")
        if self.strategy.scheduler == "plateau":
            problems.append("The scheduler plateau needs a val_loader: it watches")
        if problems and val is None:
            raise ConfigError(" ".join(f"{text} {monitor}." for text in problems))

    @property
    def _higher_is_better(self) -> bool:
        return self.strategy.monitor.removeprefix("val/") in self.runner.higher_is_better

    def _plan(self, batches: EpochBatches) -> FitPlan:
        per_step = self.strategy.accumulation_steps * self.ranks.size
        per_epoch = math.ceil(batches.n_total / per_step)
        limits = []
        if self.config.epochs is not None:
            limits.append(self.config.epochs * per_epoch)
        if self.config.max_steps is not None:
            limits.append(self.config.max_steps)
        total = min(limits)
        return FitPlan(
            epochs=math.ceil(total / per_epoch),
            batches_per_epoch=len(batches),
            steps_per_epoch=per_epoch,
            total_steps=total,
        )

    def _warn_late(self, plan: FitPlan) -> None:
        """Say what never begins to train."""
        late = [g for g in self.optimizer.param_groups if g["start_epoch"] >= plan.epochs]
        if late:
            names = ", ".join(dict.fromkeys(str(group["name"]) for group in late))
            logger.warning(
                "%s begin to train in epoch %d, and this run has %d: they stay as they are.",
                names,
                1 + min(int(group["start_epoch"]) for group in late),
                plan.epochs,
            )

    # --- one epoch -----------------------------------------------------------------------------

    def _train_epoch(self, batches: EpochBatches, plan: FitPlan) -> None:
        state = self.state
        if self._out_of_steps():  # a run that was stopped right after its last step
            return
        self._begin_epoch()
        self._set_modes(training=True)
        for batch in batches.epoch(state.epoch, start=state.batch):
            self._micro_step(as_inputs(batch))
            state.batch += 1
            window_full = state.window_batches == self.strategy.accumulation_steps
            if window_full or state.batch == plan.batches_per_epoch:
                self._optimizer_step()
            self._save_or_stop(window_closed=state.window_batches == 0)
            if self._out_of_steps():
                break
        while self._windows < plan.steps_per_epoch and not self._out_of_steps():
            self._optimizer_step()  # other processes have a batch more
            self._save_or_stop(window_closed=True)

    def _begin_epoch(self) -> None:
        """Let those parameters train that do in this epoch."""
        state = self.state
        if let_train(self.optimizer, state.epoch):
            self.runner.trainable_changed()
        starts = [group["start_epoch"] for group in self.optimizer.param_groups]
        if state.epoch and state.epoch in starts and state.batch == 0:
            state.since_best = 0  # patience starts anew with more weights
            self._schedule.more_trains()

    def _out_of_steps(self) -> bool:
        """Whether max_steps is reached (windows, not steps, so that skipped ones count)."""
        limit = self.config.max_steps
        return limit is not None and self.state.step + self.state.skipped_windows >= limit

    def _micro_step(self, inputs: Inputs) -> None:
        state = self.state
        state.window_batches += 1
        state.window_ids += inputs.ids
        if state.window_bad:
            return
        outputs = self.runner.outputs(inputs)
        total, count = self.runner.loss(inputs, outputs)
        value = float(total.detach())
        if not math.isfinite(value):
            state.window_bad = True
            return
        if count:
            # gradients are summed over the window and divided by its labels at the end
            self.fabric.backward(total)
        state.window_count += count
        if self.ranks.size == 1:
            state.loss_total += value
            state.loss_count += count
        else:
            self._window_loss += value
        for callback in self.callbacks:
            callback.on_batch_end(state.epoch + 1, state.batch + 1, value / max(count, 1))

    @torch.no_grad()
    def _optimizer_step(self) -> None:
        state = self.state
        precision = self.fabric.strategy.precision
        self._add_up_window()
        if state.window_count and not state.window_bad:
            precision.unscale_gradients(self.optimizer)
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            torch._foreach_div_(gradients, float(state.window_count))
            norm = torch.nn.utils.clip_grad_norm_(
                list(self.parameters.values()), self.strategy.grad_clip or math.inf
            )
            if bool(torch.isfinite(norm)):
                self._apply_gradients()
            else:
                state.window_bad = True
                if self._scales_loss():
                    # float16: the scaler skips the step and lowers its factor, as it is meant to
                    precision.optimizer_step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self._close_window()

    def _add_up_window(self) -> None:
        """Make loss, labels, faults and gradients of the window those of all processes."""
        if self.ranks.size == 1:
            return
        state, parameters = self.state, list(self.parameters.values())
        own = [state.window_count, self._window_loss, float(state.window_bad)]
        count, loss, bad = self.ranks.add_up(own, parameters[0].device)
        state.window_count, state.window_bad = int(count), bad > 0
        state.loss_total += loss
        state.loss_count += int(count)
        self._window_loss = 0.0
        if state.window_count and not state.window_bad:
            # before a scaler looks at them, so that it finds the same in every process
            self.ranks.add_up_gradients(parameters)

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
        self._windows += 1
        if state.window_bad:
            state.bad_in_row += 1
            state.skipped_windows += 1
            logger.warning(
                "Step left out: loss or gradient is not finite for %s (%d in a row).",
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
        state.batch = self._windows = 0
        row: Row = {
            "epoch": state.epoch,
            "train_loss": state.loss_total / state.loss_count if state.loss_count else math.nan,
            "val_loss": math.nan,
            "lr": self._shown_lr(),
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
        self._warn_undefined(val)
        for callback in self.callbacks:
            callback.on_epoch_end(row, improved)
        return row

    def _validate(self, val: Iterable[Any], row: Row) -> bool:
        """Validate the weights in the model and, if they are the best so far, keep them."""
        for callback in self.callbacks:
            callback.on_validation_start(operator.length_hint(val))
        state = self.state
        if self.ranks.size == 1:
            result = self.runner.evaluate(val)
        else:  # in one order, also where the loader shuffles
            result = self.runner.evaluate(self.ranks.share(seeded(val, self.config.seed)))
            result = type(result).joined(self.ranks.gather(result))
        row["val_loss"] = result.loss
        row.update({f"val/{k}": v for k, v in self.runner.metrics(result).items()})
        self._end_schedule_epoch(row)
        score = monitored(row, self.strategy.monitor) * (-1 if self._higher_is_better else 1)
        improved = score < state.best_score  # NaN never wins
        if improved:
            state.best_score, state.best_epoch, state.since_best = score, state.epoch, 0
            self._best = {n: p.detach().cpu().clone() for n, p in self.parameters.items()}
            if self.config.state_dir is not None and self.ranks.is_first:
                state.best_sha256 = run_state.write_best(
                    self.config.state_dir, state.epoch, self._best
                )
            self.on_best(History([*state.history, row]))
        else:
            state.since_best += 1
        return improved

    def _end_schedule_epoch(self, row: Row) -> None:
        """Tell the schedule how the epoch ended; the row holds the rate that follows from it."""
        self._schedule.end_epoch(monitored(row, self.strategy.monitor))
        row["lr"] = self._shown_lr()

    def _warn_undefined(self, val: Iterable[Any] | None) -> None:
        """Say once that what should decide the best epoch has no value."""
        row, monitor = self.state.history[-1], self.strategy.monitor
        if val is not None and self.state.epoch == 1 and math.isnan(monitored(row, monitor)):
            logger.warning(
                "%s is undefined on this validation set (too few samples, or all alike), so no "
                "epoch can be the best by it; the last weights are kept.",
                monitor,
            )

    def _shown_lr(self) -> float:
        """Rate of the head, where there is one, for the next step."""
        rates = {str(group["name"]): float(group["lr"]) for group in self.optimizer.param_groups}
        return rates.get("head", next(iter(rates.values())))

    def _why_finished(self) -> str:
        patience = self.strategy.early_stopping_patience
        # what has not begun to train cannot have stopped to improve
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
        set_modes(self.runner.backbone, training=training)
        set_modes(self.runner.head, training=training)

    def _keep_best(self) -> None:
        """Leave in the model what was best; without validation, the average or the last weights."""
        if self._best is not None:
            copy_weights(self._best, self.parameters)
        elif self.average is not None:
            self.average.copy_to_model()
        self._set_modes(training=False)

    # --- state ---------------------------------------------------------------------------------

    def _save_or_stop(self, *, window_closed: bool) -> None:
        """Write the state when it is time to; stop if a signal asked for it."""
        every = self.config.save_every_steps
        due = window_closed and every is not None and self.state.step % every == 0
        late = time.monotonic() - self._saved_at > STATE_EVERY_SECONDS
        if self.ranks.size > 1 and not window_closed:
            return  # an open window is spread over the processes
        asked = self.ranks.gather((late, self._watch.received))
        late, stop = asked[0][0], next((s for _, s in asked if s is not None), None)
        if due or late or stop is not None:
            self._write_state()
            self.ranks.wait()  # the end of one process ends the others, also one that still writes
        self._stop_if_asked(stop)

    def _signal(self) -> int | None:
        """The signal that any of the processes got."""
        return next((s for s in self.ranks.gather(self._watch.received) if s is not None), None)

    def _stop_if_asked(self, stop: int | None) -> None:
        if stop is not None:
            where = self.config.state_dir
            hint = "Resume to go on." if where is not None else "No output_dir: nothing was kept."
            raise Interrupted(
                stop,
                f"Stopped by signal {stop} in epoch {self.state.epoch + 1} after "
                f"{self.state.step} optimizer steps. {hint}",
            )

    def _write_state(self, randoms: Sequence[Any] | None = None) -> None:
        """Write the state, with the generators of now or those given."""
        if self.config.state_dir is None:
            return
        if randoms is None:
            randoms = self.ranks.gather(random_state())
        self._saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
        content: dict[str, Any] = {
            "identity": dict(self.config.identity),
            "fit": self.state.to_dict(),
            "weights": {n: p.detach() for n, p in self.parameters.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "random": randoms[0] if self.ranks.size == 1 else randoms,
            "runner": self.runner.resume_state(),
        }
        if not self.state.finished:  # a finished run is only looked at; moments are most of it
            gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
            content["progress"] = {
                "gradients": gradients,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "scaler": self.fabric.strategy.precision.state_dict(),
            }
        run_state.write_state(self.config.state_dir, content)

    def _restore(self) -> bool:
        """Take up the state on disk; False where a run was stopped before it wrote one."""
        folder = self.config.state_dir
        assert folder is not None
        # one answer for all: the first process may write a state while others still look
        if not self.ranks.gather(run_state.has_state(folder))[0]:
            logger.warning("%s holds no state yet: the run starts from its beginning.", folder)
            return False
        content = run_state.read_state(folder)
        run_state.check_same_run(content["identity"], self.config.identity, folder)
        try:
            self._take_up(content)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(
                f"{folder / run_state.STATE_FILE} does not fit the run: "
                f"{type(error).__name__} {' '.join(str(error).split())[:200]}. {run_state.ADVICE}"
            ) from error
        if self.state.best_epoch:
            self._best = run_state.read_best(folder, self.state)
            self._check_shapes(self._best, "the best weights")
        if not (self.state.epoch or self.state.batch):
            logger.warning("The run had not got beyond its set-up: it starts from its beginning.")
        logger.info(
            "Resumed after %d epochs, %d batches and %d optimizer steps.",
            self.state.epoch,
            self.state.batch,
            self.state.step,
        )
        return True

    def _take_up(self, content: Mapping[str, Any]) -> None:
        self.state = FitState.from_dict(content["fit"])
        self._windows = math.ceil(self.state.batch / self.strategy.accumulation_steps)
        self._check_shapes(content["weights"], "the weights")
        copy_weights(content["weights"], self.parameters)
        if self.average is not None:
            self._check_shapes(content["average"]["average"], "the average")
            self.average.load_state_dict(content["average"])
        self.runner.load_resume_state(content["runner"])
        randoms = content["random"]
        set_random_state(randoms if self.ranks.size == 1 else randoms[self.ranks.index])
        if not self.state.finished:
            self._restore_progress(content["progress"])

    def _check_shapes(self, stored: Mapping[str, torch.Tensor], what: str) -> None:
        """Refuse weights of other names or shapes, which a copy would stretch or pass over."""
        found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        ours = {name: tuple(p.shape) for name, p in self.parameters.items()}
        other = sorted(n for n in {*found, *ours} if found.get(n) != ours.get(n))
        if other:
            raise CheckpointError(
                f"{self.config.state_dir}: {what} stored there do not fit the model "
                f"({', '.join(other[:3])}). {run_state.ADVICE}"
            )

    def _restore_progress(self, progress: Mapping[str, Any]) -> None:
        for name, gradient in progress["gradients"].items():
            self.parameters[name].grad = gradient.to(self.parameters[name].device)
        self.optimizer.load_state_dict(progress["optimizer"])
        self._schedule.load_state_dict(progress["schedule"])
        self.fabric.strategy.precision.load_state_dict(progress["scaler"])


def make_optimizer(
    strategy: FinetuneStrategy, model: Any
) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    """The strategy's optimizer over its groups, and the parameters in it by name."""
    groups = strategy.groups(model)
    parameters = {name: p for group in groups for name, p in group.parameters}
    optimizer = build_optimizer(
        strategy.optimizer,
        for_optimizer(groups, strategy.weight_decay),
        momentum=strategy.momentum,
    )
    return optimizer, parameters


def let_train(optimizer: torch.optim.Optimizer, epoch: int) -> bool:
    """Freeze what begins after `epoch` (from 0), unfreeze the rest; whether any changed."""
    changed = False
    for group in optimizer.param_groups:
        active = epoch >= group["start_epoch"]
        for parameter in group["params"]:
            changed |= parameter.requires_grad != active
            parameter.requires_grad_(active)
    return changed

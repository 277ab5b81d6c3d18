"""Learning-rate schedules, for the engine and for training loops of other packages.

The engine's `RunSchedule` counts optimizer steps; `epoch_scheduler` returns torch's own classes for
loops that step a schedule once per epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from molfun.errors import ConfigError
from molfun.nn.optimizers import is_number
from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.course import MODES, SCHEDULERS
from molfun.strict import check_choice
from molfun.text import unknown_name
from molfun.training.callbacks import FitPlan

logger = logging.getLogger(__name__)

WARMUP_RATIO = 0.1
"""Default warm-up of warmup_cosine, as a fraction of all steps."""

# --- by optimizer step ---------------------------------------------------------------------------


def warmup_of(strategy: FinetuneStrategy, total_steps: int) -> int:
    """Return the number of warm-up steps, and warn if the run is too short for them."""
    ratio = strategy.warmup_ratio
    if strategy.scheduler == "warmup_cosine" and not ratio:
        ratio = WARMUP_RATIO
    warmup = strategy.warmup_steps or int(ratio * total_steps)
    if warmup >= total_steps > 0 and warmup > 0:
        logger.warning(
            "The warm-up of %d steps is not shorter than the run (%d optimizer steps): the "
            "learning rate stays below its peak. Lower warmup_steps or accumulation_steps.",
            warmup,
            total_steps,
        )
    return warmup


def delayed(
    factor: Callable[[int], float], first_step: int, warmup_steps: int
) -> Callable[[int], float]:
    """Return `factor` with an extra warm-up, for parameters that begin to train at `first_step`.

    Examples
    --------
    >>> late = delayed(lambda step: 0.5, first_step=10, warmup_steps=3)
    >>> [late(step) for step in (10, 11, 13)]
    [0.125, 0.25, 0.5]
    """
    if warmup_steps == 0:
        return factor

    def risen(step: int) -> float:
        done = max(0, step - first_step) + 1
        return factor(step) * min(1.0, done / (warmup_steps + 1))

    return risen


def _half_wave(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


_COURSES: dict[str, Callable[[float], float]] = {
    "cosine": _half_wave,
    "warmup_cosine": _half_wave,
    "linear": lambda progress: 1.0 - progress,
}
"""Factors that fall from 1 to 0 over the steps after warm-up; the others change by epoch."""


def multiplier(
    scheduler: str,
    *,
    total_steps: int,
    warmup_steps: int,
    floor: float,
    end: float = 0.0,
    level: Callable[[], float] = lambda: 1.0,
) -> Callable[[int], float]:
    """Return the function from optimizer step (from 0) to the factor on every learning rate.

    Warm-up rises linearly: step ``s`` of ``w`` has the factor ``(s + 1) / (w + 1)``. It does not
    start at 0, since a step at rate 0 would be wasted. After it, with
    ``p = (s - w) / (total - w)`` and ``e`` for `end`, cosine (and warmup_cosine) is
    ``e + (1 - e) (1 + cos(pi p)) / 2`` and linear ``e + (1 - e) (1 - p)``, never below `floor`.
    These are torch's ``CosineAnnealingLR`` and ``LinearLR``, stepped with the optimizer.

    Parameters
    ----------
    scheduler
        One of `SCHEDULERS`.
    total_steps, warmup_steps
        Optimizer steps.
    floor
        Smallest factor after warm-up.
    end
        Factor at which cosine and linear end: torch's ``eta_min`` divided by the peak.
    level
        Returns the current factor of the schedules that change by epoch (step, plateau); the
        warm-up multiplies it.

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5
    (without restarts); Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2 (warm-up).

    Examples
    --------
    >>> factor = multiplier("cosine", total_steps=18, warmup_steps=1, floor=1e-6)
    >>> [f"{1e-3 * factor(step):.2e}" for step in (6, 12, 18)]
    ['8.01e-04', '2.77e-04', '1.00e-09']
    """
    course = _COURSES.get(scheduler)

    def factor(step: int) -> float:
        if course is None:
            return min(1.0, (step + 1) / (warmup_steps + 1)) * max(floor, level())
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return max(floor, end + (1.0 - end) * course(progress))

    return factor


# --- of a run ------------------------------------------------------------------------------------


class RunSchedule:
    """Learning rates of all groups of an optimizer over one run of the engine.

    Call ``step`` after every optimizer step and ``end_epoch`` after every epoch. The rate of a
    group is its peak times the factor of `multiplier`, times an own warm-up if the group begins
    later (`delayed`). The schedule "step" has the factor ``gamma ** (epochs // step_size)``
    (torch's ``StepLR``). "plateau" follows torch's ``ReduceLROnPlateau`` with its relative
    threshold of 1e-4, but without its ``eps``, so that rates below 1e-8 still decrease.

    Parameters
    ----------
    optimizer
        Optimizer whose groups hold their peak (``lr``), ``start_epoch`` and ``start_warmup``.
    strategy
        Settings of the schedule.
    plan
        Size of the run.
    higher_is_better
        Whether the largest monitored value is the best, unless the strategy names the mode.

    Examples
    --------
    >>> from molfun.training import HeadOnlyFinetune
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> group = {"params": [weight], "start_epoch": 0, "start_warmup": 0}
    >>> optimizer = torch.optim.SGD([group], lr=0.1)
    >>> strategy = HeadOnlyFinetune(scheduler="step", step_size=1, gamma=0.5)
    >>> schedule = RunSchedule(optimizer, strategy, FitPlan(2, 3, 3, 6))
    >>> schedule.end_epoch(0.7)
    >>> optimizer.param_groups[0]["lr"]
    0.05
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strategy: FinetuneStrategy,
        plan: FitPlan,
        *,
        higher_is_better: bool = False,
    ) -> None:
        self._optimizer, self._strategy = optimizer, strategy
        self._epochs = 0
        peaks = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        ends = [_end_of(strategy, peak) for peak in peaks]
        floors = [max(strategy.min_lr_ratio, end) for end in ends]
        self._plateau: ReduceLROnPlateau | None = None
        if strategy.scheduler == "plateau":
            self._plateau = _plateau(strategy, floors, higher_is_better=higher_is_better)
        warmup = warmup_of(strategy, plan.total_steps)
        self._by_step = LambdaLR(
            optimizer,
            [
                delayed(
                    multiplier(
                        strategy.scheduler,
                        total_steps=plan.total_steps,
                        warmup_steps=warmup,
                        floor=floor,
                        end=end,
                        level=self._level_of(index),
                    ),
                    group["start_epoch"] * plan.steps_per_epoch,
                    group["start_warmup"],
                )
                for index, (group, floor, end) in enumerate(
                    zip(optimizer.param_groups, floors, ends, strict=True)
                )
            ],
        )
        # after the schedule is built, so that a warning never hides an error
        for text in _of_no_effect(strategy, plan, peaks):
            logger.warning("%s", text)

    def _level_of(self, index: int) -> Callable[[], float]:
        """Return the function that gives the current per-epoch factor of a group."""
        strategy, plateau = self._strategy, self._plateau
        if plateau is not None:
            return lambda: float(plateau.optimizer.param_groups[index]["lr"])
        if strategy.scheduler == "step":
            return lambda: strategy.gamma ** (self._epochs // strategy.step_size)
        return lambda: 1.0

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        self._by_step.step()

    def end_epoch(self, monitored: float) -> None:
        """Count an epoch; `monitored` is its monitored value, NaN if there is none."""
        self._epochs += 1
        if self._plateau is not None:
            self._plateau.step(monitored)
        if self._strategy.scheduler not in _COURSES:
            self._set_rates()

    def more_trains(self) -> None:
        """Restart the patience of plateau when further parameters begin to train."""
        if self._plateau is not None:
            self._plateau.num_bad_epochs = 0

    def _set_rates(self) -> None:
        parts = zip(
            self._optimizer.param_groups,
            self._by_step.base_lrs,
            self._by_step.lr_lambdas,
            strict=True,
        )
        for group, peak, factor in parts:
            group["lr"] = peak * factor(self._by_step.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the values that change during a run; the optimizer's state holds the rates."""
        state: dict[str, Any] = {"steps": self._by_step.last_epoch, "epochs": self._epochs}
        if self._plateau is not None:
            state["plateau"] = {name: getattr(self._plateau, name) for name in _PLATEAU_STATE}
            state["factors"] = [g["lr"] for g in self._plateau.optimizer.param_groups]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`; the optimizer's own state is loaded separately."""
        self._by_step.last_epoch, self._epochs = state["steps"], state["epochs"]
        if self._plateau is not None:
            self._plateau.load_state_dict(dict(state["plateau"]))
            groups = self._plateau.optimizer.param_groups
            for group, factor in zip(groups, state["factors"], strict=True):
                group["lr"] = factor


_PLATEAU_STATE = ("best", "num_bad_epochs", "last_epoch")
"""Attributes of torch's scheduler that change during a run."""


def _plateau(
    strategy: FinetuneStrategy, floors: list[float], *, higher_is_better: bool
) -> ReduceLROnPlateau:
    """Return torch's scheduler over factors instead of rates, one per group of the run.

    The dummy optimizer starts at rate 1, so its rates are the factors that `multiplier` needs.
    """
    groups = [{"params": [torch.zeros(0)]} for _ in floors]
    return ReduceLROnPlateau(
        torch.optim.SGD(groups, lr=1.0),
        mode=strategy.plateau_mode or ("max" if higher_is_better else "min"),
        factor=strategy.plateau_factor,
        patience=strategy.plateau_patience,
        min_lr=floors,
        eps=0.0,
    )


def _end_of(strategy: FinetuneStrategy, peak: float) -> float:
    """Return the absolute floor relative to the peak of a group, at most 1."""
    if strategy.min_lr is None:
        return 0.0
    return 1.0 if strategy.min_lr >= peak else strategy.min_lr / peak


def _of_no_effect(strategy: FinetuneStrategy, plan: FitPlan, peaks: list[float]) -> Iterator[str]:
    """Yield a warning for each setting of the schedule that has no effect in this run."""
    first = 0
    if strategy.scheduler == "step":
        first, why = strategy.step_size, "step_size"
    elif strategy.scheduler == "plateau":
        # the first epoch always improves, then torch waits for patience + 1 others
        first, why = strategy.plateau_patience + 2, "plateau_patience"
    if first >= plan.epochs > 0 and first:
        yield (
            f"The learning rate stays at its peak: it falls after epoch {first} at the earliest, "
            f"and this run has {plan.epochs}. Lower {why}."
        )
    stop = strategy.early_stopping_patience
    if strategy.scheduler == "plateau" and 0 < stop <= strategy.plateau_patience + 1:
        yield (
            f"early_stopping_patience ({stop} epochs) ends the run before plateau_patience "
            f"({strategy.plateau_patience}) lowers the learning rate. Raise it, or lower the other."
        )
    if strategy.scheduler != "constant" and peaks and _end_of(strategy, max(peaks)) == 1.0:
        yield (
            f"The learning rate stays at its peak of {max(peaks):g}: min_lr is {strategy.min_lr:g}."
        )


# --- for other loops -----------------------------------------------------------------------------

_DEFAULTS: dict[str, dict[str, Any]] = {
    "cosine": {"T_max": None, "eta_min": 0.0},
    "linear": {"total_iters": None, "max_epochs": None},
    "constant": {},
    "step": {"step_size": 30, "gamma": 0.1},
    "plateau": {"mode": "min", "factor": 0.1, "patience": 10},
    "warmup_cosine": {"warmup_epochs": 10, "max_epochs": 100, "eta_min": 0.0},
}
"""Options of `epoch_scheduler` with their defaults; None for a required one."""

_WHOLE = {
    "T_max": 1,
    "total_iters": 1,
    "max_epochs": 1,
    "step_size": 1,
    "warmup_epochs": 0,
    "patience": 0,
}
"""Options that are whole numbers, with their smallest allowed value."""


def epoch_scheduler(name: str, optimizer: Optimizer, **options: Any) -> LRScheduler:
    """Return a scheduler of torch that is stepped once at the end of every epoch.

    For training loops of other packages. After epoch ``e`` (from 1) its ``step()`` sets the rates
    of epoch ``e + 1``; plateau's ``step(value)`` takes the monitored value of the epoch, so call
    it after validation. In Lightning: ``{"scheduler": scheduler, "interval": "epoch"}``, for
    plateau with ``"monitor": "val/loss"``.

    ================= ========================================================= ====================
    name              options (defaults)                                        torch's class
    ================= ========================================================= ====================
    ``cosine``        ``T_max`` (epochs; to be given), ``eta_min`` (0)           CosineAnnealingLR
    ``linear``        ``total_iters`` or ``max_epochs`` (epochs down to 0)       LinearLR
    ``constant``      none                                                      ConstantLR
    ``step``          ``step_size`` (30 epochs), ``gamma`` (0.1)                 StepLR
    ``plateau``       ``mode`` (min), ``factor`` (0.1), ``patience`` (10)        ReduceLROnPlateau
    ``warmup_cosine`` ``warmup_epochs`` (10), ``max_epochs`` (100), ``eta_min`` LinearLR, then
                      (0)                                                       CosineAnnealingLR
    ================= ========================================================= ====================

    Warm-up is the engine's with epochs in place of steps: epoch ``e`` of ``w`` (from 0) has the
    factor ``(e + 1) / (w + 1)``, and epoch ``w`` is the first at the peak; cosine then takes
    ``max_epochs - warmup_epochs`` epochs down to `eta_min`.

    Parameters
    ----------
    name
        One of `SCHEDULERS`.
    optimizer
        Optimizer whose groups hold their peak rates. Torch raises a group whose peak is below
        `eta_min` to it; a `FinetuneStrategy` leaves it where it is.
    **options
        See the table. ``eta_min`` is absolute, in units of the learning rate.

    Returns
    -------
    LRScheduler
        Already in effect: the rates of the first epoch are set.

    Raises
    ------
    ConfigError
        If the name or an option is unknown (the text gives the nearest one), an option is missing,
        or a value is not allowed; all problems at once.

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts" (cosine);
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2 (warm-up).

    Examples
    --------
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    >>> scheduler = epoch_scheduler("warmup_cosine", optimizer, warmup_epochs=2, max_epochs=6)
    >>> rates = []
    >>> for epoch in range(6):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [0.1, 0.2, 0.3, 0.256, 0.15, 0.044]
    """
    check_choice("scheduler", name, SCHEDULERS)
    known = _DEFAULTS[name]
    unknown = [unknown_name(f"option of {name}", key, known) for key in options if key not in known]
    values = {**known, **{k: v for k, v in options.items() if k in known}}
    problems = [*unknown, *_wrong_options(name, values)]
    if problems:
        raise ConfigError(f"Scheduler {name}: " + " ".join(problems))
    return _MAKERS[name](optimizer, values)


def _wrong_options(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    given = {key: value for key, value in values.items() if value is not None}
    if name == "cosine" and "T_max" not in given:
        yield "Give T_max, the number of epochs."
    if name == "linear" and len(given) != 1:
        yield "Give total_iters or max_epochs, the number of epochs."
    yield from filter(None, map(_wrong_option, given.keys(), given.values()))
    warmup, epochs = given.get("warmup_epochs"), given.get("max_epochs")
    if is_number(warmup) and is_number(epochs) and warmup >= epochs > 0:
        yield f"warmup_epochs must be below max_epochs ({epochs}), got {warmup}."


def _wrong_option(key: str, value: Any) -> str | None:
    """Return what is wrong with an option; None if nothing is."""
    if key in _WHOLE:
        right = isinstance(value, int) and is_number(value) and value >= _WHOLE[key]
        wanted = f"a whole number of at least {_WHOLE[key]}"
    elif key == "mode":
        return None if value in MODES else unknown_name("mode", value, MODES)
    elif key == "eta_min":
        right = is_number(value) and 0 <= value < math.inf
        wanted = "a number of at least 0"
    else:
        right, wanted = _is_factor(key, value)
    return None if right else f"{key} must be {wanted}, got {value!r}."


def _is_factor(key: str, value: Any) -> tuple[bool, str]:
    """Return whether a factor on the rate is in its range, and the range as text."""
    below_one = key == "factor"
    right = is_number(value) and 0 < value <= 1 and not (below_one and value == 1)
    return right, f"above 0 and {'below 1' if below_one else 'at most 1'}"


def _linear(optimizer: Optimizer, values: Mapping[str, Any]) -> LRScheduler:
    epochs = values["total_iters"] if values["max_epochs"] is None else values["max_epochs"]
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=epochs)


def _warmup_cosine(optimizer: Optimizer, values: Mapping[str, Any]) -> LRScheduler:
    warmup, eta_min = values["warmup_epochs"], values["eta_min"]
    if warmup == 0:
        return CosineAnnealingLR(optimizer, T_max=values["max_epochs"], eta_min=eta_min)
    # from 1 / (w + 1) and not from 0, as in the engine
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=values["max_epochs"] - warmup, eta_min=eta_min)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


_MAKERS: dict[str, Callable[[Optimizer, Mapping[str, Any]], LRScheduler]] = {
    "cosine": lambda optimizer, values: CosineAnnealingLR(optimizer, **values),
    "linear": _linear,
    "constant": lambda optimizer, _: ConstantLR(optimizer, factor=1.0, total_iters=0),
    "step": lambda optimizer, values: StepLR(optimizer, **values),
    "plateau": lambda optimizer, values: ReduceLROnPlateau(optimizer, **values),
    "warmup_cosine": _warmup_cosine,
}

"""The loss of a task: a registered name, a function of the user's, or one that was not given yet.

A checkpoint runs no code, so it holds the name of a function and what it gives on four numbers. A
function is never imported by that name: it is there again once it is registered, or passed again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from molfun.errors import ConfigError, ContractError
from molfun.registry import LOSSES, path_of
from molfun.strict import check_choice, refuse_unknown
from molfun.tasks.losses import Loss, loss_named, ranks_a_batch
from molfun.text import first_line

LossChoice = str | Loss | Mapping[str, Any]
"""Registered name, function, or what `ChosenLoss.config` made of a function."""

_KEYS = {"function": str, "ranks": bool, "gives": float | int}
_TARGETS = (1.0, -0.5, 0.2, -2.0)
_PREDICTIONS = (0.3, -1.2, 0.8, 2.0)


@dataclass(frozen=True)
class ChosenLoss:
    """A loss with its options, and how it is written down.

    Parameters
    ----------
    name
        Registered name, or ``"module:function"``.
    config
        Plain value that stands for it: the name, or a mapping for a function.
    function
        The loss; None for a function of a checkpoint that was not passed again.
    options
        Its options.
    ranks
        Whether it compares the samples of a batch with each other.

    Examples
    --------
    >>> choose("mae").config
    'mae'
    >>> def cubic(prediction, target):
    ...     return (prediction - target).abs().pow(3).sum()
    >>> chosen = choose(cubic)
    >>> chosen.ranks, sorted(chosen.config)
    (False, ['function', 'gives', 'ranks'])
    """

    name: str
    config: str | dict[str, Any]
    function: Loss | None
    options: dict[str, Any]
    ranks: bool

    def need(self) -> Loss:
        """Return the function.

        Raises
        ------
        ConfigError
            If it must be passed again.
        """
        if self.function is None:
            raise ConfigError(
                f"The model was trained with the loss {self.name}, a function, which a checkpoint "
                f"does not hold. Pass it again by model.task.use_loss(function), or register it in "
                f"molfun.registry.LOSSES."
            )
        return self.function

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the sum of the loss over the labels of a batch, (labels,) each.

        Raises
        ------
        ConfigError
            If the function must be passed again.
        ContractError
            If it returns no single number with a graph, or NaN for predictions that are numbers.
        """
        function = self.need()
        if function.__module__ == loss_named.__module__:  # Molfun's, which need no checks
            return function(prediction, target, **self.options)
        # means and maxima of nothing are undefined, and so are orders of one
        if len(prediction) < (2 if self.ranks else 1):
            return prediction.sum() * 0.0  # with a graph
        found = function(prediction, target, **self.options)
        learns = torch.is_grad_enabled() and prediction.requires_grad
        _check_returned(self.name, found, learns=learns)
        if bool(torch.isnan(found.detach())) and bool(torch.isfinite(prediction).all()):
            of_both = [_range(values) for values in (prediction, target)]
            raise ContractError(
                f"The loss {self.name} gives NaN for {len(prediction)} labels, with predictions "
                f"{of_both[0]} and labels {of_both[1]} (standardised, unless standardize=False). "
                f"Make it defined for all real numbers."
            )
        return found


def _range(values: torch.Tensor) -> str:
    low, high = (float(v) for v in values.detach().aminmax())
    return f"from {low:.3g} to {high:.3g}"


def choose(loss: LossChoice, options: Mapping[str, Any] | None = None) -> ChosenLoss:
    """Return the loss that a setting stands for.

    Parameters
    ----------
    loss
        Registered name, function ``loss(prediction, target)``, or a `ChosenLoss.config`.
    options
        Further arguments of the loss.

    Raises
    ------
    ConfigError
        If a name or an option is unknown, or a function does not return a sum over labels.
    """
    if isinstance(loss, Mapping):
        return _written_down(loss, options)
    if callable(loss):
        name = next((n for n in LOSSES if LOSSES.is_entry(n, loss)), None)
        if name is None:
            return _of_user(loss, options)
        loss = name
    if loss not in LOSSES and ":" in str(loss):
        raise ConfigError(f"loss={loss!r}: give a function itself, not its name as text.")
    function, given = loss_named(loss, options)
    return ChosenLoss(loss, loss, function, given, ranks_a_batch(loss))


def again(chosen: ChosenLoss, loss: Callable[..., Any]) -> ChosenLoss:
    """Return the loss of a checkpoint with its function.

    Raises
    ------
    ConfigError
        If the function gives something else than the one of the training.
    """
    if not callable(loss):
        raise ConfigError(f"use_loss takes the function {chosen.name}, got {loss!r}.")
    found = choose(loss, chosen.options)
    if isinstance(chosen.config, str):
        if found.name != chosen.name:
            raise ConfigError(f"The loss of this model is {chosen.name!r}, got {found.name}.")
        return found
    then, now = chosen.config["gives"], _tried(loss, found.options, found.name)[0]
    if not math.isclose(then, now, rel_tol=1e-5):
        raise ConfigError(
            f"The function {found.name} is not the loss {chosen.name} of the training: for four "
            f"labels it gives {now:.6g}, and that one gave {then:.6g}."
        )
    return found


def _written_down(config: Mapping[str, Any], options: Mapping[str, Any] | None) -> ChosenLoss:
    """Return the loss of a checkpoint: with its function if that is registered."""
    if set(config) != set(_KEYS) or not all(isinstance(config[k], t) for k, t in _KEYS.items()):
        raise ConfigError(
            f"loss={dict(config)!r} stands for no loss. Give a registered name, or a function."
        )
    pending = ChosenLoss(
        config["function"], dict(config), None, dict(options or {}), config["ranks"]
    )
    for name in LOSSES:
        if LOSSES.is_entry(name, pending.name):
            try:
                return again(pending, LOSSES[name])
            except ConfigError:  # another function, which has the same name
                continue
    return pending


def _of_user(loss: Loss, options: Mapping[str, Any] | None) -> ChosenLoss:
    name, given = path_of(loss), dict(options or {})
    if isinstance(loss, type):
        raise ConfigError(f"loss={name} is a class. Give an object of it, or a function.")
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ConfigError(
            f"The loss {name} has weights, which no strategy trains. Freeze them, or make them "
            f"part of a head."
        )
    refuse_unknown(f"option of the loss {name}", given, _options_of(loss, given, name))
    gives, ranks = _tried(loss, given, name)
    ranks = bool(getattr(loss, "ranks", ranks))
    config = {"function": name, "ranks": ranks, "gives": gives}
    return ChosenLoss(name, config, loss, given, ranks)


def _options_of(loss: Loss, options: Mapping[str, Any], name: str) -> list[str]:
    """Return the names of the arguments after the prediction and the target."""
    try:
        signature = inspect.signature(loss)
    except ValueError:  # of some functions in C
        return list(options)
    known = list(signature.parameters)[2:]
    try:
        signature.bind(None, None, **{key: options[key] for key in options if key in known})
    except TypeError as error:
        raise ConfigError(
            f"The loss {name} cannot be called as loss(prediction, target): {first_line(error)}."
        ) from error
    return known


def _tried(loss: Loss, options: Mapping[str, Any], name: str) -> tuple[float, bool]:
    """Return what a loss gives for four labels, and whether it compares them with each other.

    Raises
    ------
    ConfigError
        If it fails, or returns something else than a sum over labels.
    """
    problems = []
    # positive numbers second: a loss on labels that are not standardised may need them
    for make in (float, lambda value: abs(value) + 0.1):
        values = [[make(v) for v in row] for row in (_PREDICTIONS, _TARGETS)]
        # the same draws each time, on the CPU, also where a model is being built without numbers
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            prediction = torch.tensor(values[0], requires_grad=True)
            target = torch.tensor(values[1])
            try:
                whole = loss(prediction, target, **options)
                _check_returned(name, whole, learns=True)
                alone = _alone(loss, prediction, target, options)
            except ContractError as error:
                raise ConfigError(str(error)) from error
            except Exception as error:  # anything, in code of the user
                problems.append(f"{type(error).__name__}: {first_line(error)}")
                continue
        value = float(whole.detach())
        if math.isfinite(value):
            return _judged(name, value, alone)
        problems.append(f"it gives {value}")
    raise ConfigError(
        f"The loss {name} cannot be used: tried on four predictions and labels, {problems[0]}."
    )


def _alone(
    loss: Loss, prediction: torch.Tensor, target: torch.Tensor, options: Mapping[str, Any]
) -> list[float]:
    """Return what a loss gives for each label alone; NaN if it cannot do that."""
    rows = zip(prediction.split(1), target.split(1), strict=True)
    try:
        each = [loss(p, t, **options) for p, t in rows]
        return [float(torch.as_tensor(one).detach().sum()) for one in each]
    except Exception:  # it compares labels with each other, and says that one is too few
        return [math.nan] * len(prediction)


def _judged(name: str, whole: float, alone: Sequence[float]) -> tuple[float, bool]:
    total = sum(alone)
    if math.isclose(whole, total, rel_tol=1e-5):
        ranks = False
    elif math.isclose(whole * len(alone), total, rel_tol=1e-5):
        raise ConfigError(
            f"The loss {name} returns the mean over labels, and must return the sum: end it with "
            f".sum() (reduction='sum'). Molfun takes the mean over all batches of a step."
        )
    else:
        ranks = True
    return float(f"{whole:.6g}"), ranks


def _check_returned(name: str, found: Any, *, learns: bool) -> None:
    """Refuse what is no sum over labels that a model can learn from.

    Raises
    ------
    ContractError
        Saying what it is.
    """
    if not isinstance(found, torch.Tensor):
        what = f"{type(found).__name__}. Return a tensor: the sum over the labels"
    elif found.shape != ():
        what = f"the shape {tuple(found.shape)}. Return one number: the sum over the labels"
    elif learns and not found.requires_grad:
        what = (
            "a number without a gradient. Compute it from the predictions by operations of torch, "
            "without .item(), .detach() or numpy"
        )
    else:
        return
    raise ContractError(f"The loss {name} returns {what}.")


def check_name(kind: str, loss: object, allowed: Mapping[str, Any]) -> None:
    """Refuse a loss that is none of a few names, for tasks that take no function.

    Raises
    ------
    ConfigError
        Listing the names.
    """
    if callable(loss):
        names = ", ".join(allowed)
        raise ConfigError(
            f"The {kind} is one of {names}, by name; functions are for the tasks regression and "
            f"multitarget."
        )
    check_choice(kind, loss, allowed)

"""Averages of the trainable weights: a moving one, or that of the optimizer."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


class Average(ABC):
    """Average of the trainable weights, which is what is validated and kept.

    Parameters
    ----------
    parameters
        Trainable parameters by name; frozen ones are their own average.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)

    @abstractmethod
    def copy_to_model(self) -> None:
        """Copy the average into the model and leave it there."""

    def update(self) -> None:  # noqa: B027  (the optimizer's own average has nothing to do)
        """Take note of an optimizer step."""

    def state_dict(self) -> dict[str, object] | None:
        """Return what a resumed run needs; None if the state of the optimizer holds it."""
        return None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a ``with`` block."""
        live = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            copy_weights(live, self._parameters)


class OwnAverage(Average):
    """The average that a schedule-free optimizer keeps in its own state.

    Parameters
    ----------
    parameters
        Trainable parameters by name.
    optimizer
        Optimizer with a method ``eval``, see `molfun.nn.schedule_free`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Any) -> None:
        super().__init__(parameters)
        self._optimizer = optimizer

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a ``with`` block."""
        with super().applied():
            yield
        # not by its method `train`, which computes the weights again, with other last bits
        for group in self._optimizer.param_groups:
            group["train_mode"] = True

    def copy_to_model(self) -> None:
        """Copy the average into the model and leave it there."""
        self._optimizer.eval()


class WeightAverage(Average):
    """Moving average of weights with a decay that grows during the run.

    Update number ``t`` is ``average <- d average + (1 - d) weight`` with
    ``d = min(decay, (1 + t) / (10 + t))``, as in TensorFlow's ``ExponentialMovingAverage``. A fixed
    decay of 0.999 would hold a short run close to its initial weights.

    Parameters
    ----------
    parameters
        Trainable parameters by name; frozen ones are their own average.
    decay
        Largest decay, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__(parameters)
        self.decay = decay
        self.updates = 0
        self.average = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average; call it once per optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        # one call for all tensors: a loop over small ones takes longer than the arithmetic
        torch._foreach_lerp_(
            list(self.average.values()),
            [p.detach() for p in self._parameters.values()],
            1 - decay,
        )

    def copy_to_model(self) -> None:
        """Copy the average into the model and leave it there."""
        copy_weights(self.average, self._parameters)

    def state_dict(self) -> dict[str, object]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the result of `state_dict`."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]  # as written
        for name, tensor in state["average"].items():  # type: ignore[attr-defined]  # as written
            self.average[name].copy_(tensor)


@torch.no_grad()
def copy_weights(source: Mapping[str, torch.Tensor], into: Mapping[str, nn.Parameter]) -> None:
    """Copy tensors into parameters of the same names."""
    for name, parameter in into.items():
        parameter.copy_(source[name])


def average_of(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, decay: float
) -> Average | None:
    """Return the average that a run keeps: the optimizer's own, a moving one, or None."""
    # torch has no such optimizer, and those of other packages share no base class
    if all(hasattr(optimizer, mode) for mode in ("train", "eval")):
        return OwnAverage(parameters, optimizer)
    return WeightAverage(parameters, decay) if decay else None

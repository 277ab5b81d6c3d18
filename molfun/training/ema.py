"""Exponential moving average of the trainable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class WeightAverage:
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
        self._parameters = dict(parameters)
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

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a ``with`` block."""
        live = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            copy_weights(live, self._parameters)

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

"""Exponential moving average of the weights that train, and of no others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class WeightAverage:
    """Keep ``average <- d average + (1 - d) weight`` with ``d = min(decay, (1 + t) / (10 + t))``.

    The decay grows with the number of updates ``t``, so a short run does not stay at its random
    beginning (as in TensorFlow's ExponentialMovingAverage).

    Parameters
    ----------
    parameters
        Names and parameters that train.
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
        """Take in the present weights; once per optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(
            list(self.average.values()),
            [p.detach() for p in self._parameters.values()],
            1 - decay,
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the time of the block."""
        live = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            copy_weights(live, self._parameters)

    def copy_to_model(self) -> None:
        """Put the average into the model for good."""
        copy_weights(self.average, self._parameters)

    def state_dict(self) -> dict[str, object]:
        """Average and number of updates."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` gave."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]  # as written
        for name, tensor in state["average"].items():  # type: ignore[attr-defined]  # as written
            self.average[name].copy_(tensor)


@torch.no_grad()
def copy_weights(source: Mapping[str, torch.Tensor], target: Mapping[str, nn.Parameter]) -> None:
    """Copy tensors into parameters of the same names."""
    for name, parameter in target.items():
        parameter.copy_(source[name])

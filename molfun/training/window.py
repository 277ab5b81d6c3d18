"""`WindowSums`: sums over the processes of a fit, once per optimizer step."""

from __future__ import annotations

import torch

from molfun.parallel.base import Parallel
from molfun.runs.resume import FitState
from molfun.training.interrupt import Asked


class WindowSums:
    """Sums over the processes of a fit, in one message of a few numbers.

    Parameters
    ----------
    parallel
        How the model is spread over processes.
    device
        Device of the numbers.

    Attributes
    ----------
    loss
        Loss of this process in the open window.
    asked
        What any process asked for when the last window closed.
    n_samples
        Samples of all processes in the last window.
    """

    def __init__(self, parallel: Parallel, device: torch.device) -> None:
        self._parallel, self._device = parallel, device
        self.loss = 0.0
        self.asked = Asked()
        self.n_samples = 0

    def add_loss(self, state: FitState, value: float, n_labels: int) -> None:
        """Add the loss of a batch, which several processes add up when the window closes."""
        state.window_count += n_labels
        if self._parallel.several:
            self.loss += value
        else:
            state.loss_total += value
            state.loss_count += n_labels

    def close_window(self, state: FitState, asked: Asked) -> None:
        """Sum gradients, loss, labels, failures and requests to stop over all processes."""
        self.n_samples, self.asked = len(state.window_ids), asked
        if not self._parallel.several:
            return
        # before the scaler unscales them, so that it sees the same overflow everywhere; and always,
        # since other processes may have sent gradients while this one found a loss of NaN
        self._parallel.add_up_gradients()
        own = [state.window_count, self.loss, state.window_bad, self.n_samples]
        sums = self._parallel.ranks.add_up([*own, *asked.numbers()], self._device)
        count, loss, bad, samples = sums[: len(own)]
        self.asked, self.n_samples = Asked.of(sums[len(own) :]), int(samples)
        state.window_count, state.window_bad = int(count), bad > 0
        state.loss_total += loss
        state.loss_count += int(count)
        self.loss = 0.0

    def all_ask(self, asked: Asked) -> Asked:
        """Return what any of the processes asks for now; all of them call this."""
        return Asked.of(self._parallel.ranks.add_up(asked.numbers(), self._device))

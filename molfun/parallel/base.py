"""How a model is spread over processes: alone, a copy in each, or its blocks divided."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from molfun.parallel import parts
from molfun.parallel.gradients import GradientSum
from molfun.parallel.ranks import Ranks

T = TypeVar("T")


class Parallel:
    """A model in one process; base class of the ways to train it in several.

    Parameters
    ----------
    ranks
        The processes that train together.

    Attributes
    ----------
    in_step
        Whether every process must run each forward and backward pass, even one without a sample.
    """

    in_step = False

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks

    @property
    def several(self) -> bool:
        """True if there are other processes."""
        return self.ranks.size > 1

    # --- the model -----------------------------------------------------------------------------

    def spread(
        self,
        blocks: Sequence[nn.Module],  # noqa: ARG002  (for those that divide them)
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
        parameters: Mapping[str, nn.Parameter],
    ) -> dict[str, nn.Parameter]:
        """Spread a model over the processes, and return the parameters that this one trains.

        Parameters
        ----------
        blocks
            Repeated blocks of the backbone.
        optimizer
            Optimizer over `parameters`, before its first step.
        parameters
            Parameters that train, by name.
        """
        return dict(parameters)

    def collect(self) -> None:
        """Undo `spread`: afterwards the model is whole in every process."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Let the first process see the whole weights within a block, which all of them enter."""
        yield

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that runs the model."""
        return function(*args)

    @contextlib.contextmanager
    def in_one(self) -> Iterator[None]:
        """Mark a ``with`` block in which one process works alone and must not run the model."""
        yield

    # --- batches -------------------------------------------------------------------------------

    def passes(self, n_own: int, n_all: int, *, last: bool) -> int | None:  # noqa: ARG002  (for those in step)
        """Return the passes of this process for `n_own` of the `n_all` batches of a window.

        None are as many as there are: a stream may give a few batches more in the `last` window.
        """
        return None if last else n_own

    def take_part(self, outputs: Any, backward: Callable[[torch.Tensor], object]) -> None:
        """Run a backward pass that adds nothing, where others wait for this process in theirs."""

    # --- weights and gradients -----------------------------------------------------------------

    def align(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite what several processes have copies of with that of the first."""
        self.ranks.align(parameters)

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Note which parameters train from now on; call it again whenever others do."""

    def last_backward(self) -> None:
        """Note that the next backward pass is the last one of its window."""

    def add_up_gradients(self) -> None:
        """Replace gradients by their sums over all processes; every process calls it per window.

        A parameter without a gradient in any process has none afterwards, so that the optimizer
        leaves it alone.
        """

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Scale gradients so that their norm is at most `limit`, and return what it was."""
        # without a limit as well, since the norm shows whether all gradients are finite
        return nn.utils.clip_grad_norm_(parameters, limit or math.inf)

    def put_back(
        self, gradients: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take up the gradients of a window that was open when a run was stopped."""
        # sums over all processes: one of them adds them to its own
        for name, gradient in gradients.items() if self.ranks.is_first else ():
            parameters[name].grad = gradient.to(parameters[name].device)

    # --- files ---------------------------------------------------------------------------------

    def full(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the whole of what this process has a part of; for the first process alone."""
        return dict(tensors)

    def own(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parts of this process, the opposite of `full`."""
        return dict(tensors)

    def put_apart(
        self,
        content: dict[str, Any],
        folder: Path,  # noqa: ARG002  (for those that divide)
    ) -> dict[str, Any]:
        """Write the tensors of a state that only their processes hold, and return the rest."""
        return content

    def put_together(self, content: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a state with the tensors that `put_apart` wrote, as this process needs them."""
        return parts.read_whole(content, folder)


class Replicated(Parallel):
    """A copy of the model in each process, and gradients that are added up."""

    _sum: GradientSum | None = None

    def passes(self, n_own: int, n_all: int, *, last: bool) -> int | None:  # noqa: ARG002
        """Return those for its own batches: what is more was dealt to no process."""
        return n_own

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of these from now on."""
        if self._sum is not None:
            self._sum.close()
        self._sum = GradientSum(parameters)

    def last_backward(self) -> None:
        """Send gradients as they come out of the next backward pass."""
        assert self._sum is not None
        self._sum.arm()

    def add_up_gradients(self) -> None:
        """Wait for the sums."""
        assert self._sum is not None
        self._sum.finish()

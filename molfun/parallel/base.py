"""How a model is spread over processes: alone, or a copy in each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from molfun.parallel.gradients import GradientSum
from molfun.parallel.ranks import Ranks


class Parallel:
    """A model in one process; base class of the ways to train it in several.

    Parameters
    ----------
    ranks
        The processes that train together.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks

    @property
    def several(self) -> bool:
        """True if there are other processes."""
        return self.ranks.size > 1

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Note which parameters train from now on; call it again whenever others do."""

    def last_backward(self) -> None:
        """Note that the next backward pass is the last one of its window."""

    def add_up_gradients(self) -> None:
        """Replace gradients by their sums over all processes; every process calls it per window.

        A parameter without a gradient in any process has none afterwards, so that the optimizer
        leaves it alone.
        """


class Replicated(Parallel):
    """A copy of the model in each process, and gradients that are added up."""

    _sum: GradientSum | None = None

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


def parallel_of(ranks: Ranks) -> Parallel:
    """Return the way to train on these processes."""
    return Replicated(ranks) if ranks.size > 1 else Parallel(ranks)

"""Evaluate in the middle of a fit, with the batches dealt to its processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from molfun.parallel.base import Parallel
from molfun.parallel.ranks import Ranks
from molfun.training.batches import seeded_batches
from molfun.training.inputs import as_inputs
from molfun.training.runner import Runner


def evaluated(runner: Runner, batches: Iterable[Any], seed: int, parallel: Parallel) -> Any:
    """Return the evaluation of all batches, the same in every process."""
    ranks = parallel.ranks
    if ranks.size == 1:
        return runner.evaluate(batches)
    # every process must draw the same order, or samples would be missed or run twice
    dealt = _Dealt(seeded_batches(batches, seed), ranks)
    own = parallel.run(runner.evaluate, dealt)
    if parallel.in_step and dealt.lacks_one:
        with torch.no_grad():  # others run one more
            parallel.run(runner.outputs, as_inputs(dealt.first))
    return type(own).joined(ranks.gather(own))


class _Dealt:
    """The batches of this process."""

    def __init__(self, batches: Iterable[Any], ranks: Ranks) -> None:
        self._batches, self._ranks = batches, ranks
        self.first: Any = None
        self._n = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._n == 0:
                self.first = batch
            mine = self._n % self._ranks.size == self._ranks.index
            self._n += 1
            if mine:
                yield batch

    @property
    def lacks_one(self) -> bool:
        """Whether other processes had one more."""
        return 0 < self._n % self._ranks.size <= self._ranks.index

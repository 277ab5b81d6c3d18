"""Deal work out to the processes of a command by its cost, and put results in input order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from molfun.parallel.ranks import Ranks

T = TypeVar("T")


def deal(costs: Sequence[float], n: int) -> list[list[int]]:
    """Return the numbers of the pieces of work that each of `n` processes gets, in rising order.

    The largest piece goes first, each to the process that has least to do. The slowest one then
    takes at most 4/3 of the time of the best deal.

    References
    ----------
    Graham 1969, "Bounds on Multiprocessing Timing Anomalies" (the rule LPT).

    Examples
    --------
    >>> deal([5, 1, 1, 4, 3], 2)
    [[0, 1, 2], [3, 4]]
    """
    dealt: list[list[int]] = [[] for _ in range(n)]
    # the number breaks ties, so that every process deals alike
    loads = [(0.0, number) for number in range(n)]
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, number = loads[0]
        dealt[number].append(piece)
        heapq.heapreplace(loads, (load + costs[piece], number))
    return [sorted(own) for own in dealt]


def put_back(order: Iterable[int], results: Iterable[T]) -> list[T]:
    """Return results in the order of their items; `order` has the number of the item of each.

    Examples
    --------
    >>> put_back([2, 0, 1], ["c", "a", "b"])
    ['a', 'b', 'c']
    """
    pairs = zip(order, results, strict=True)
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]


class Share:
    """Batches of items that are dealt to processes, which stay whole.

    A batch that runs as it does in one process gives the bits of one process.

    Parameters
    ----------
    batches
        Numbers of the items of each batch; every item is in one of them.
    costs
        Cost of each item.
    ranks
        This process among the others.

    Attributes
    ----------
    own
        Batches of this process.
    order
        Items of all processes, one process after the other.
    """

    def __init__(
        self, batches: Sequence[Sequence[int]], costs: Sequence[float], ranks: Ranks
    ) -> None:
        self.ranks = ranks
        dealt = deal([sum(costs[i] for i in batch) for batch in batches], ranks.size)
        parts = [[list(batches[number]) for number in numbers] for numbers in dealt]
        self.own = parts[ranks.index]
        self.order = [item for part in parts for batch in part for item in batch]

    def gathered(self, results: Sequence[T]) -> list[T]:
        """Return the results of all items in input order, in every process.

        Parameters
        ----------
        results
            One per item of the own batches, in their order.
        """
        found = self.ranks.gather(list(results))
        return put_back(self.order, (result for part in found for result in part))

    def gathered_first(self, results: Sequence[T]) -> list[T]:
        """Return the same in the first process, and nothing in the others: for large results."""
        found = self.ranks.gather_first(list(results))
        if not self.ranks.is_first:
            return []
        return put_back(self.order, (result for part in found for result in part))

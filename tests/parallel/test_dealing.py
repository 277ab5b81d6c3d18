"""Work is dealt whole, once and evenly, and results go back to their places."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molfun.parallel.dealing import Share, deal, put_back
from molfun.parallel.ranks import Ranks

COSTS = st.lists(st.floats(0, 1e12), max_size=60)
SIZES = st.integers(1, 9)


@given(COSTS, SIZES)
def test_every_piece_is_dealt_once(costs: list[float], n: int) -> None:
    dealt = deal(costs, n)
    assert len(dealt) == n
    assert sorted(i for own in dealt for i in own) == list(range(len(costs)))
    assert all(own == sorted(own) for own in dealt)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60), SIZES)
def test_no_process_has_much_more_to_do_than_the_mean(costs: list[float], n: int) -> None:
    """The slowest one had least to do when it got its last piece, which is its smallest."""
    slowest = max(([costs[i] for i in own] for own in deal(costs, n)), key=sum)
    assert sum(slowest) <= sum(costs) / n + min(slowest) * (1 - 1 / n) + 1e-6 * sum(costs)


@given(COSTS, SIZES)
def test_no_process_is_idle_while_another_has_two(costs: list[float], n: int) -> None:
    sizes = [len(own) for own in deal([cost + 1 for cost in costs], n)]
    assert min(sizes) > 0 or max(sizes) <= 1


@given(st.permutations(range(12)))
def test_results_go_back_to_their_places(order: Sequence[int]) -> None:
    assert put_back(order, [f"of {i}" for i in order]) == [f"of {i}" for i in range(12)]
    with pytest.raises(ValueError, match="shorter"):
        put_back(order, ["only one"])


@given(st.lists(st.integers(1, 5), max_size=20), SIZES)
def test_batches_stay_whole(sizes: list[int], n: int) -> None:
    """Batches of any items, dealt by the sum of their costs, the same in every process."""
    items = iter(range(sum(sizes)))
    batches = [[next(items) for _ in range(size)] for size in sizes]
    costs = [float(1 + i % 7) for i in range(sum(sizes))]
    shares = [Share(batches, costs, Ranks(index, n)) for index in range(n)]
    assert sorted(batch for share in shares for batch in share.own) == batches
    order = [item for share in shares for batch in share.own for item in batch]
    assert all(share.order == order for share in shares)


def test_one_process_has_all_in_any_order_of_batches() -> None:
    share = Share([[2, 0], [1]], [1.0, 5.0, 1.0], Ranks())
    assert share.own == [[2, 0], [1]]
    assert share.gathered(["c", "a", "b"]) == ["a", "b", "c"]
    assert share.gathered_first(["c", "a", "b"]) == ["a", "b", "c"]

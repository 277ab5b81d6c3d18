"""Names of identical chains in a label, chosen as they fit a prediction.

Two chains of one sequence have no order: a prediction that has them the other way round is as good.
AlphaFold-Multimer renames them before its losses (Evans et al. 2021, 2.1), openfold 0.0.1 does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch

from molfun.protein import CA

MOST_ORDERS = 120
"""Most orders that are compared: all those of five identical chains."""
FAR = 15.0
"""Difference of two distances in angstrom above which it counts no more."""


@torch.no_grad()
def renamed(label: Mapping[str, torch.Tensor], predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a label whose identical chains have the names that fit a prediction best.

    Chains are identical if their residues in the crop have the same types and the same numbers. All
    orders are compared by the distances between CA atoms.

    Parameters
    ----------
    label
        As in `molfun.tasks.structure.StructureTerms`.
    predicted
        (residues, 37, 3) predicted atoms in angstrom.
    """
    groups = [group for group in _identical(label) if len(group) > 1]
    if not groups:
        return dict(label)
    true, mask = label["positions"][:, CA], label["mask"][:, CA] > 0
    distance = torch.cdist(predicted[:, CA].float(), predicted[:, CA].float())
    known = torch.cdist(true, true)

    def error(order: torch.Tensor) -> float:
        there = mask[order]
        difference = (distance - known[order][:, order]).abs().clamp(max=FAR)
        return float(difference[there][:, there].mean()) if bool(there.any()) else 0.0

    best = min(_orders(groups, len(true)), key=error)
    return {**label, "positions": label["positions"][best], "mask": label["mask"][best]}


def _identical(label: Mapping[str, torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return the rows of each chain, those of identical chains together."""
    chains = label["chain_index"]
    groups: dict[tuple[bytes, bytes], list[torch.Tensor]] = {}
    for name in chains.unique().tolist():
        rows = (chains == name).nonzero()[:, 0]
        number = label["residue_index"][rows]
        kinds = label["aatype"][rows].cpu().numpy().tobytes()
        places = (number - number[0]).cpu().numpy().tobytes()
        groups.setdefault((kinds, places), []).append(rows)
    return list(groups.values())


def _orders(groups: list[list[torch.Tensor]], n: int) -> Iterator[torch.Tensor]:
    """Yield rows of the label in each order of identical chains, the given order first."""
    each = [itertools.permutations(group) for group in groups]
    for orders in itertools.islice(itertools.product(*each), MOST_ORDERS):
        rows = torch.arange(n, device=groups[0][0].device)
        for group, order in zip(groups, orders, strict=True):
            for place, source in zip(group, order, strict=True):
                rows[place] = source
        yield rows

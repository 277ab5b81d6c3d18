"""Find which chain and residue of a prediction stands for which of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from molfun._shapes import Float64, Int64
from molfun.errors import DataError
from molfun.protein import CA, Protein
from molfun.structures.scoring.superposition import superposed

SAME = 0.9
"""Identity of two sequences from which they are the same chain."""
FEWEST = 3
"""CA atoms that a superposition needs."""
APART = 1e6
"""Distance in angstrom that stands for chains of two sequences."""
Pairs = list[tuple[int, int, bool]]
"""Places in both sequences of a pair, and whether the letters are equal."""


@dataclass(frozen=True)
class Pairing:
    """Residues of two structures that stand for each other.

    Parameters
    ----------
    predicted, reference
        (pairs,) places of the residues in the two proteins.
    chains
        Chains of the reference, each with the chain of the prediction, by number.
    different
        Pairs whose residue types differ.
    """

    predicted: Int64[np.ndarray, "pairs"]
    reference: Int64[np.ndarray, "pairs"]
    chains: dict[int, int]
    different: int


def paired(predicted: Protein, reference: Protein) -> Pairing:
    """Pair the residues of a prediction and of a reference by their sequences.

    Chains go together by sequence; of several equal chains the order counts that gives the lowest
    RMSD of the CA atoms. Within a chain a global alignment pairs the residues, so residues that
    only one of the structures has are left out.

    Raises
    ------
    DataError
        If no chain of the prediction is a chain of the reference.
    """
    tables = {
        (r, p): pairs
        for r in range(len(reference.chain_ids))
        for p in range(len(predicted.chain_ids))
        if (pairs := _same_chain(_letters(reference, r), _letters(predicted, p)))
    }
    if not tables:
        raise DataError(
            f"{predicted.name} and {reference.name} have no chain in common: no two sequences are "
            f"{SAME:.0%} identical."
        )
    made = [
        _joined(order, tables, predicted, reference)
        for order in _orders(tables, predicted, reference)
    ]
    # without enough atoms for any superposition, whoever scores says so
    first = next(iter(tables))
    made = made or [_joined(dict([first]), tables, predicted, reference)]
    return min(made, key=lambda one: (-len(one.chains), _rmsd(one, predicted, reference)))


def _orders(
    tables: dict[tuple[int, int], Pairs], predicted: Protein, reference: Protein
) -> Iterator[dict[int, int]]:
    """Yield assignments of chains: one for each pair that is laid on top of each other.

    The other chains go to the nearest ones of their sequence, as many as possible. All orders of n
    equal chains would be n! of them.
    """
    for r, p in tables:
        moved = _laid_on(predicted, reference, tables[r, p], r, p)
        if moved is None:
            continue
        cost = np.full((len(reference.chain_ids), len(predicted.chain_ids)), APART)
        for one, other in tables:
            gap = _centre(reference, one) - _centre(moved, other)
            cost[one, other] = min(float(np.linalg.norm(gap)), APART / 2)
        rows, columns = linear_sum_assignment(cost)
        chosen = zip(rows.tolist(), columns.tolist(), strict=True)
        yield {one: other for one, other in chosen if (one, other) in tables}


def _laid_on(
    predicted: Protein, reference: Protein, pairs: Pairs, r: int, p: int
) -> Protein | None:
    """Return the prediction with chain `p` on chain `r`; None if too few CA atoms are common."""
    alone = _joined({r: p}, {(r, p): pairs}, predicted, reference)
    one, other = ca_pairs(alone, predicted, reference)
    if len(one) < FEWEST:
        return None
    places = predicted.atom_positions.reshape(-1, 3).astype(np.float64)
    everything = np.concatenate([one, places])
    target = np.concatenate([other, np.zeros_like(places)])
    moved = superposed(everything, target, fit=np.arange(len(one)))[len(one) :]
    return replace(predicted, atom_positions=moved.reshape(predicted.atom_positions.shape))


def _centre(protein: Protein, chain: int) -> np.ndarray:
    here = (protein.chain_index == chain) & (protein.atom_mask[:, CA] > 0)
    return np.asarray(protein.atom_positions[here, CA].mean(0) if here.any() else np.zeros(3))


def _letters(protein: Protein, chain: int) -> str:
    rows = np.flatnonzero(protein.chain_index == chain)
    return "".join(protein.sequence[i] for i in rows)


def _aligned(one: str, other: str) -> Pairs:
    """Return pairs of places of a global alignment, and whether their letters are equal."""
    if one == other:
        return [(i, i, True) for i in range(len(one))]
    from Bio.Align import PairwiseAligner

    aligner = PairwiseAligner(
        mode="global", match_score=2, mismatch_score=-1, open_gap_score=-3, extend_gap_score=-0.1
    )
    # missing residues at the ends cost nothing
    aligner.end_gap_score = 0
    found = aligner.align(one, other)[0]
    pairs = []
    for (start, stop), (other_start, _) in zip(*found.aligned, strict=True):
        for step in range(stop - start):
            i, j = int(start) + step, int(other_start) + step
            pairs.append((i, j, one[i] == other[j]))
    return pairs


def _same_chain(one: str, other: str) -> Pairs:
    """Return the pairs of two sequences of one chain; none if they are of two."""
    if not one or not other:
        return []
    pairs = _aligned(one, other)
    # of the shorter one: a few letters that happen to align are no chain
    identity = sum(same for _, _, same in pairs) / min(len(one), len(other))
    return pairs if identity >= SAME else []


def _joined(
    order: dict[int, int],
    tables: dict[tuple[int, int], Pairs],
    predicted: Protein,
    reference: Protein,
) -> Pairing:
    of_predicted: list[int] = []
    of_reference: list[int] = []
    different = 0
    for r, p in order.items():
        rows = np.flatnonzero(reference.chain_index == r)
        own = np.flatnonzero(predicted.chain_index == p)
        for i, j, same in tables[r, p]:
            of_reference.append(int(rows[i]))
            of_predicted.append(int(own[j]))
            different += not same
    return Pairing(
        np.array(of_predicted, np.int64), np.array(of_reference, np.int64), order, different
    )


def _rmsd(pairing: Pairing, predicted: Protein, reference: Protein) -> float:
    one, other = ca_pairs(pairing, predicted, reference)
    if len(one) < FEWEST:
        return float("inf")
    moved = superposed(one, other)
    return float(np.sqrt(((moved - other) ** 2).sum(-1).mean()))


def ca_pairs(
    pairing: Pairing, predicted: Protein, reference: Protein
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]]:
    """Return the CA atoms of both structures, of pairs in which both have one."""
    both = has_ca(pairing, predicted, reference)
    one = predicted.atom_positions[pairing.predicted[both], CA]
    other = reference.atom_positions[pairing.reference[both], CA]
    return one.astype(np.float64), other.astype(np.float64)


def has_ca(pairing: Pairing, predicted: Protein, reference: Protein) -> np.ndarray:
    """Return for each pair whether both residues have a CA atom."""
    both: np.ndarray = (predicted.atom_mask[pairing.predicted, CA] > 0) & (
        reference.atom_mask[pairing.reference, CA] > 0
    )
    return both

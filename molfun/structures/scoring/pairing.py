"""Find which chain and residue of a prediction stands for which of the reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from molfun._shapes import Float64, Int64
from molfun.errors import DataError
from molfun.protein import CA, Protein
from molfun.structures.scoring.superposition import superposed

SAME = 0.9
"""Identity of two sequences from which they are the same chain."""
MOST_ORDERS = 5040
"""Orders of identical chains that are all tried (seven of one sequence)."""


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
    candidates = list(_orders(tables, len(reference.chain_ids), len(predicted.chain_ids)))
    if not candidates:
        raise DataError(
            f"{predicted.name} and {reference.name} have no chain in common: no two sequences are "
            f"{SAME:.0%} identical."
        )
    made = [_joined(order, tables, predicted, reference) for order in candidates]
    return min(made, key=lambda one: _rmsd(one, predicted, reference))


def _orders(
    tables: dict[tuple[int, int], list[tuple[int, int, bool]]], n_reference: int, n_predicted: int
) -> list[dict[int, int]]:
    """Return assignments of chains that pair as many as possible."""
    partners = {r: [p for p in range(n_predicted) if (r, p) in tables] for r in range(n_reference)}
    with_any = [r for r, found in partners.items() if found]
    choices = itertools.product(*([None, *partners[r]] for r in with_any))
    best: list[dict[int, int]] = []
    for choice in itertools.islice(choices, MOST_ORDERS * 100):
        taken = [p for p in choice if p is not None]
        if len(set(taken)) < len(taken) or not taken:
            continue
        if best and len(taken) < len(best[0]):
            continue
        if best and len(taken) > len(best[0]):
            best = []
        order = {r: p for r, p in zip(with_any, choice, strict=True) if p is not None}
        if len(best) < MOST_ORDERS:
            best.append(order)
    return best


def _letters(protein: Protein, chain: int) -> str:
    rows = np.flatnonzero(protein.chain_index == chain)
    return "".join(protein.sequence[i] for i in rows)


def _aligned(one: str, other: str) -> list[tuple[int, int, bool]]:
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


def _same_chain(one: str, other: str) -> list[tuple[int, int, bool]]:
    """Return the pairs of two sequences of one chain; none if they are of two."""
    if not one or not other:
        return []
    pairs = _aligned(one, other)
    # of the shorter one: a few letters that happen to align are no chain
    identity = sum(same for _, _, same in pairs) / min(len(one), len(other))
    return pairs if identity >= SAME else []


def _joined(
    order: dict[int, int],
    tables: dict[tuple[int, int], list[tuple[int, int, bool]]],
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
    if len(one) < 3:
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

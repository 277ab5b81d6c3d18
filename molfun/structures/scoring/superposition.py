"""Superpose structures, and score them after it: RMSD, TM-score, GDT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from molfun._shapes import Float64

GDT_TS = (1.0, 2.0, 4.0, 8.0)
"""Distances in angstrom of GDT-TS."""
GDT_HA = (0.5, 1.0, 2.0, 4.0)
"""Distances of GDT-HA."""
SEARCHES = 20
"""Most rounds of refinement of one start of the TM-score search."""


def superposed(
    mobile: Float64[np.ndarray, "n 3"],
    fixed: Float64[np.ndarray, "n 3"],
    *,
    fit: np.ndarray | None = None,
) -> Float64[np.ndarray, "n 3"]:
    """Return `mobile` rotated and moved onto `fixed` with the least RMSD of the points of `fit`.

    Parameters
    ----------
    mobile, fixed
        Points in angstrom.
    fit
        (n,) mask or indices of the points that are fitted; None takes all.

    References
    ----------
    Kabsch 1976; scipy's ``Rotation.align_vectors``.
    """
    from scipy.spatial.transform import Rotation

    chosen = slice(None) if fit is None else fit
    one, other = mobile[chosen], fixed[chosen]
    from_centre, to_centre = one.mean(0), other.mean(0)
    # scipy warns where the points lie on a line and any turn around it is as good
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        turn, _ = Rotation.align_vectors(other - to_centre, one - from_centre)
    moved: np.ndarray = turn.apply(mobile - from_centre) + to_centre
    return moved


def rmsd(mobile: Float64[np.ndarray, "n 3"], fixed: Float64[np.ndarray, "n 3"]) -> float:
    """Return the least root mean square deviation of two sets of points, in angstrom."""
    return float(np.sqrt(((superposed(mobile, fixed) - fixed) ** 2).sum(-1).mean()))


def gdt(
    mobile: Float64[np.ndarray, "n 3"],
    fixed: Float64[np.ndarray, "n 3"],
    length: int,
    cutoffs: Sequence[float] = GDT_TS,
) -> float:
    """Return the global distance test: mean share of residues within each distance.

    After the one superposition of least RMSD, as openfold's ``gdt_ts`` and ``gdt_ha`` in its
    validation (equal to them, tested). LGA searches the best superposition for each distance, so
    its values are somewhat higher.

    Parameters
    ----------
    mobile, fixed
        CA atoms of residues that both structures have, in angstrom.
    length
        Residues of the reference; those that the prediction lacks count as far away.
    cutoffs
        Distances in angstrom.
    """
    distances = np.linalg.norm(superposed(mobile, fixed) - fixed, axis=-1)
    return float(np.mean([(distances <= c).sum() / length for c in cutoffs]))


def tm_score(
    mobile: Float64[np.ndarray, "n 3"], fixed: Float64[np.ndarray, "n 3"], length: int
) -> float:
    """Return the TM-score of residues that are paired already.

    The best superposition is searched from fragments of several lengths, each refined with the
    residues that it brings close (Zhang and Skolnick 2004, the search of their program TMscore).

    Parameters
    ----------
    mobile, fixed
        CA atoms of paired residues, in angstrom.
    length
        Residues of the reference, by which the score is divided.
    """
    scale = _d0(length)
    best = 0.0
    for start in _starts(len(mobile)):
        chosen = start
        for _ in range(SEARCHES):
            moved = superposed(mobile, fixed, fit=chosen)
            distance = np.linalg.norm(moved - fixed, axis=-1)
            best = max(best, float((1 / (1 + (distance / scale) ** 2)).sum() / length))
            closer = _near(distance, scale)
            if np.array_equal(closer, chosen):
                break
            chosen = closer
    return best


def _d0(length: int) -> float:
    """Return the distance scale of the TM-score, at least 0.5 angstrom as in TMscore."""
    return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)


def _starts(n: int) -> Iterator[np.ndarray]:
    """Yield the fragments from which the search starts: all residues, halves, quarters ..."""
    size = n
    while True:
        step = max(1, size // 4)
        for begin in range(0, n - size + 1, step):
            yield np.arange(begin, begin + size)
        if size <= 4:
            return
        size = max(size // 2, 4)


def _near(distance: np.ndarray, scale: float) -> np.ndarray:
    """Return the residues within the cutoff, which grows until there are three."""
    cutoff = min(max(scale, 4.5), 8.0)
    while True:
        close = np.flatnonzero(distance < cutoff)
        if len(close) >= min(3, len(distance)):
            return close
        cutoff += 0.5

"""Superpose structures, and score them after it: RMSD, TM-score, GDT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from molfun._shapes import Bool, Float64

GDT_TS = (1.0, 2.0, 4.0, 8.0)
"""Distances in angstrom of GDT-TS."""
GDT_HA = (0.5, 1.0, 2.0, 4.0)
"""Distances of GDT-HA."""
SEARCHES = 20
"""Most rounds of refinement of one start of the TM-score search."""
POINTS = 1_000_000
"""Most points that are moved at once in that search: 24 MB of coordinates."""


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
    scale, n = _d0(length), len(mobile)
    starts = np.stack(list(_starts(n)))
    size = max(1, POINTS // n)
    return max(
        _refined(mobile, fixed, starts[first : first + size], scale) / length
        for first in range(0, len(starts), size)
    )


def _refined(
    mobile: Float64[np.ndarray, "n 3"],
    fixed: Float64[np.ndarray, "n 3"],
    chosen: Bool[np.ndarray, "starts n"],
    scale: float,
) -> float:
    """Return the largest sum of TM terms over all starts, refined together.

    One call of LAPACK turns all starts: one at a time they took 50 times as long.
    """
    best = 0.0
    for _ in range(SEARCHES):
        distance = np.linalg.norm(_moved(mobile, fixed, chosen) - fixed, axis=-1)
        best = max(best, float((1 / (1 + (distance / scale) ** 2)).sum(-1).max()))
        closer = _near(distance, scale)
        changed = (closer != chosen).any(-1)
        if not changed.any():
            break
        chosen = closer[changed]
    return best


def _moved(
    mobile: Float64[np.ndarray, "n 3"],
    fixed: Float64[np.ndarray, "n 3"],
    chosen: Bool[np.ndarray, "starts n"],
) -> Float64[np.ndarray, "starts n 3"]:
    """Return `mobile` moved onto `fixed` by the points of each start (Kabsch 1976)."""
    weight = chosen / chosen.sum(-1, keepdims=True)
    from_centre, to_centre = weight @ mobile, weight @ fixed
    # the covariance of the points, from that of their products: no (starts, n, 3) copies
    products = (mobile[:, :, None] * fixed[:, None, :]).reshape(len(mobile), 9)
    covariance = (weight @ products).reshape(-1, 3, 3)
    covariance -= from_centre[:, :, None] * to_centre[:, None, :]
    left, _, right = np.linalg.svd(covariance)
    # a mirror image fits as well as a turn, but no molecule becomes its mirror image
    left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]
    turn = left @ right
    shift = to_centre - np.einsum("sx,sxy->sy", from_centre, turn)
    moved: np.ndarray = mobile @ turn + shift[:, None]
    return moved


def _d0(length: int) -> float:
    """Return the distance scale of the TM-score, at least 0.5 angstrom as in TMscore."""
    return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)


def _starts(n: int) -> Iterator[Bool[np.ndarray, "n"]]:
    """Yield the fragments from which the search starts: all residues, halves, quarters ..."""
    place, size = np.arange(n), n
    while True:
        step = max(1, size // 4)
        for begin in range(0, n - size + 1, step):
            yield (place >= begin) & (place < begin + size)
        if size <= 4:
            return
        size = max(size // 2, 4)


def _near(distance: Float64[np.ndarray, "starts n"], scale: float) -> Bool[np.ndarray, "starts n"]:
    """Return the residues within the cutoff, which grows in steps of 0.5 until there are three."""
    cutoff = min(max(scale, 4.5), 8.0)
    third = np.sort(distance, axis=-1)[:, min(3, distance.shape[-1]) - 1]
    steps = np.maximum(np.floor((third - cutoff) / 0.5) + 1, 0)
    return np.asarray(distance < (cutoff + 0.5 * steps)[:, None])

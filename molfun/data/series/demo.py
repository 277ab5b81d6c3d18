"""Synthetic time series whose physics is known, for demos and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from molfun._shapes import Float64
from molfun.data.series.dataset import TimeSeriesDataset
from molfun.errors import ConfigError
from molfun.strict import wrong_counts
from molfun.text import unknown_name

WellTarget = Literal["well", "barrier_class", "barrier", "temperature"]
OBSERVED = ("x", "x_squared", "tanh_2x", "cos_pi_x")
"""Functions of the coordinate that are observed, before noise."""
FRAME_TIME = 0.1
BURN_IN = 20
"""Frames before the first one that is kept, so that each well is at equilibrium."""
STEP_CURVATURE = 0.1
"""Largest time step times the curvature of a well: the variance comes out 5% too large there."""


def double_well(
    n_series: int = 64,
    n_frames: int | tuple[int, int] = 200,
    seed: int = 0,
    *,
    target: WellTarget = "well",
    barrier: float | tuple[float, float] | None = None,
    temperature: float | tuple[float, float] | None = None,
    noise: float = 0.1,
    missing: float = 0.1,
    replicas: int = 1,
) -> TimeSeriesDataset:
    r"""Simulate a particle in a double well, seen through noisy observables with gaps.

    Overdamped Langevin dynamics with mobility 1 in :math:`U(x) = B (x^2 - 1)^2`, which has wells at
    -1 and 1 and a barrier of height :math:`B` between them,

    .. math:: dx = -U'(x)\,dt + \sqrt{2 T}\,dW,

    by the Euler-Maruyama scheme for all series at once. A frame is kept every 0.1 time units. Seen
    are :math:`x`, :math:`x^2`, :math:`\tanh 2x` and :math:`\cos \pi x` with Gaussian noise, and at
    random not at all. The same arguments give the same data with the same version of numpy.

    Parameters
    ----------
    n_series, n_frames
        How many series of how many frames; a pair for lengths drawn between two numbers, both
        included.
    seed
        Another seed gives other series.
    target
        ``"well"``: class ``left`` or ``right``, where the particle was in most frames;
        ``"barrier_class"``: class ``low`` or ``high``, the half of the range the barrier is in;
        ``"barrier"`` and ``"temperature"``: the number.
    barrier
        Height, or a range to draw it from; by default 3, or 1 to 5 where it is the target.
    temperature
        In units of energy, or a range to draw it from; by default 1, or 0.5 to 2 where it is the
        target.
    noise
        Standard deviation of the noise of each observable.
    missing
        Probability that a value is not observed.
    replicas
        Successive series with the same barrier and temperature, which make a group.

    Raises
    ------
    ConfigError
        Naming all arguments that are not allowed.

    Examples
    --------
    >>> data = double_well(6, 50, target="barrier_class", replicas=2)
    >>> data.feature_names, sorted(set(data.groups)), data[0].features["timeseries"].shape
    (['x', 'x_squared', 'tanh_2x', 'cos_pi_x'], ['system_0', 'system_1', 'system_2'], (50, 4))
    """
    shortest, longest = n_frames if isinstance(n_frames, tuple) else (n_frames, n_frames)
    heights = _range(barrier, (1.0, 5.0), 3.0, varies=target.startswith("barrier"))
    heats = _range(temperature, (0.5, 2.0), 1.0, varies=target == "temperature")
    problems = [
        *_wrong_counts(n_series, shortest, longest, replicas),
        *_wrong_settings(target, heights, heats, noise, missing),
    ]
    if problems:
        raise ConfigError(" ".join(problems))
    random = np.random.default_rng(seed)
    n_systems = math.ceil(n_series / replicas)
    system = np.arange(n_series) // replicas
    height = random.uniform(*heights, n_systems)[system]
    heat = random.uniform(*heats, n_systems)[system]
    lengths = random.integers(shortest, longest, n_series, endpoint=True)
    x = _simulate(height, heat, longest, random)
    seen = np.stack([x, x**2, np.tanh(2 * x), np.cos(math.pi * x)], axis=-1)
    seen += noise * random.standard_normal(seen.shape)
    gaps = random.random(seen.shape) < missing
    # no series without any value
    gaps[:, 0, 0] &= ~gaps[:, 0].all(axis=1)
    seen[gaps] = np.nan
    return TimeSeriesDataset.from_arrays(
        [series[:n].astype(np.float32) for series, n in zip(seen, lengths, strict=True)],
        labels=_labels(target, x, lengths, height, heat, middle=sum(heights) / 2),
        ids=[f"series_{i}" for i in range(n_series)],
        groups=[f"system_{i}" for i in system],
        feature_names=OBSERVED,
        metadata={"barrier": height, "temperature": heat},
        path=Path("double_well"),
    )


def _simulate(
    height: Float64[np.ndarray, "series"],
    heat: Float64[np.ndarray, "series"],
    n_frames: int,
    random: np.random.Generator,
) -> Float64[np.ndarray, "series frames"]:
    """Return the coordinate in each frame."""
    curvature = 8 * float(height.max())
    n_steps = max(1, math.ceil(FRAME_TIME * curvature / STEP_CURVATURE))
    step = FRAME_TIME / n_steps
    kick = np.sqrt(2 * heat * step)
    x = np.where(random.random(len(height)) < 0.5, -1.0, 1.0)
    frames = np.empty((n_frames, len(height)))
    for frame in range(-BURN_IN, n_frames):
        for pushes in random.standard_normal((n_steps, len(height))):
            x = x - 4 * height * x * (x * x - 1) * step + kick * pushes
        if frame >= 0:
            frames[frame] = x
    return frames.T


def _labels(
    target: WellTarget,
    x: Float64[np.ndarray, "series frames"],
    lengths: np.ndarray,
    height: Float64[np.ndarray, "series"],
    heat: Float64[np.ndarray, "series"],
    *,
    middle: float,
) -> Sequence[Any]:
    if target == "well":
        share = [float(np.mean(row[:n] > 0)) for row, n in zip(x, lengths, strict=True)]
        return ["right" if part > 0.5 else "left" for part in share]
    if target == "barrier_class":
        return ["high" if value > middle else "low" for value in height.tolist()]
    values: list[float] = (height if target == "barrier" else heat).tolist()
    return values


def _range(
    given: float | tuple[float, float] | None,
    wide: tuple[float, float],
    usual: float,
    *,
    varies: bool,
) -> tuple[float, float]:
    if given is None:
        return wide if varies else (usual, usual)
    return given if isinstance(given, tuple) else (given, given)


def _wrong_counts(n_series: int, shortest: int, longest: int, replicas: int) -> Iterator[str]:
    yield from wrong_counts(n_series=n_series, n_frames=shortest, replicas=replicas)
    if longest < shortest:
        yield f"n_frames must not decrease, got {(shortest, longest)}."


def _wrong_settings(
    target: str,
    heights: tuple[float, float],
    heats: tuple[float, float],
    noise: float,
    missing: float,
) -> Iterator[str]:
    if target not in get_args(WellTarget):
        yield unknown_name("target", target, get_args(WellTarget))
    for name, values in (("barrier", heights), ("temperature", heats)):
        if not 0 < values[0] <= values[1] <= 50:
            yield f"{name} must be above 0, and at most 50, got {values}."
    if not noise >= 0:
        yield f"noise must be at least 0, got {noise!r}."
    if not 0 <= missing < 1:
        yield f"missing must be at least 0 and below 1, got {missing!r}."

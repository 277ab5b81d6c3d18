"""Intervals of metrics: samples, or groups of them, are drawn with replacement."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from molfun.errors import ConfigError
from molfun.tasks.base import Task

Statistic = Callable[[np.ndarray], np.ndarray]
"""Function from the indices of samples, with repeats, to any number of values."""

MOST_FOR_BCA = 1000
"""Samples up to which intervals are corrected for bias and skew; each costs one more value."""
FEW_DRAWS = 200
"""Draws where a thousand would take minutes: of all metrics of classes, and of many labels."""
MANY_LABELS = 2000
"""Labels of residues and pairs above which only the main metric gets an interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan


def estimates(
    statistic: Statistic,
    n: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    confidence: float = 0.95,
    corrected: bool = True,
    seed: int = 0,
) -> list[Estimate]:
    """Return each value of a statistic with its bootstrap interval.

    Intervals are those of percentiles, or bias-corrected and accelerated (BCa). Draws in which a
    value is undefined are left out; if fewer than half remain, the bounds are NaN.

    Parameters
    ----------
    statistic
        Function from indices of samples to values.
    n
        Number of samples.
    groups
        A group per sample (cluster, patient): groups are drawn whole, since samples within one are
        not independent.
    draws
        Number of draws; a thousand gives stable bounds at 95 %.
    confidence
        Share of the draws inside the bounds.
    corrected
        Whether to correct bias and skew, up to `MOST_FOR_BCA` samples.
    seed
        Seed of the draws.

    Raises
    ------
    ConfigError
        If there is no draw, or `confidence` is not between 0 and 1.

    References
    ----------
    Efron 1987, "Better bootstrap confidence intervals".

    Examples
    --------
    >>> values = np.arange(100.0)
    >>> (mean,) = estimates(lambda drawn: np.array([values[drawn].mean()]), 100)
    >>> mean.value, round(mean.low), round(mean.high)
    (49.5, 44, 55)
    """
    if draws < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"bootstrap needs at least 1 draw and a confidence between 0 and 1, got {draws} and "
            f"{confidence}."
        )
    members = _members(n, groups)
    whole = np.atleast_1d(statistic(np.arange(n)))
    if len(members) < 2:
        return [Estimate(float(value)) for value in whole]
    exact = corrected and len(members) <= MOST_FOR_BCA
    method: Literal["BCa", "percentile"] = "BCa" if exact else "percentile"
    bounds, drawn = _bounds(statistic, members, draws, confidence, seed, method)
    return [
        Estimate(float(value), *_defined(own, values, confidence))
        for value, own, values in zip(whole, bounds, drawn, strict=True)
    ]


def _defined(bounds: np.ndarray, values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the bounds, or those of the draws that are defined where others are not."""
    low, high = bounds.tolist()
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    defined = values[np.isfinite(values)]
    # bounds of the few draws that happen to be defined would look surer than they are
    if 2 * len(defined) < len(values):
        return math.nan, math.nan
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def _members(n: int, groups: Sequence[Hashable] | None) -> list[np.ndarray]:
    """Return the indices of the samples of each group, or of each sample without groups."""
    if groups is None:
        return [np.array([i]) for i in range(n)]
    places: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    return [np.array(found) for found in places.values()]


def _bounds(
    statistic: Statistic,
    members: list[np.ndarray],
    draws: int,
    confidence: float,
    seed: int,
    method: Literal["BCa", "percentile"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds (values, 2) and draws (values, draws) of scipy's bootstrap."""
    from scipy import stats

    def of_groups(chosen: np.ndarray) -> np.ndarray:
        return np.atleast_1d(statistic(np.concatenate([members[i] for i in chosen.astype(int)])))

    with warnings.catch_warnings():
        # undefined draws and constant values have their own answer in `estimates`
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (np.arange(len(members)),),
            of_groups,
            vectorized=False,
            n_resamples=draws,
            confidence_level=confidence,
            method=method,
            # a generator of its own, so that equal data gives equal bounds
            rng=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    bounds = np.stack([np.atleast_1d(low), np.atleast_1d(high)], axis=1)
    return bounds, np.atleast_2d(found.bootstrap_distribution)


def metric_estimates(
    task: Task,
    predictions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
    corrected: bool = True,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return all metrics of a task with their intervals.

    Samples are drawn whole, each with all its residues.

    Parameters
    ----------
    task
        Task that computes the metrics.
    predictions, targets
        One array per sample.
    draws, confidence, groups, corrected, seed
        As in `estimates`.
    """
    names = task.metric_names
    ours, truth = drawer(task, predictions), drawer(task, targets)

    def values(drawn: np.ndarray) -> np.ndarray:
        found = task.metrics(ours(drawn), truth(drawn))
        return np.array([found[name] for name in names])

    found = estimates(
        values,
        len(targets),
        groups=groups,
        draws=draws,
        confidence=confidence,
        corrected=corrected,
        seed=seed,
    )
    return dict(zip(names, found, strict=True))


def drawer(task: Task, values: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from indices of samples to their joined values, as `Task.metrics` takes."""
    if task.level == "sequence":  # one row per sample: joining them for every draw takes most time
        rows = task.join(values)
        return lambda drawn: rows[drawn]
    return lambda drawn: task.join([values[i] for i in drawn])

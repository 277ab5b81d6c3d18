"""Percentile bootstrap intervals of metrics, over resampled samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from molfun.errors import ConfigError
from molfun.tasks.base import Task


def intervals(
    task: Task,
    predictions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    n: int,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Return the bounds of each metric, named ``rmse_low``, ``rmse_high`` and so on.

    Samples are drawn with replacement, each with all its residues, since labels within one protein
    are not independent. Draws in which a metric is undefined are left out; if fewer than half
    remain, its bounds are NaN.

    Parameters
    ----------
    task
        Task that computes the metrics.
    predictions, targets
        One array per sample.
    n
        Number of draws; a thousand gives stable bounds at 95 %.
    confidence
        Share of the draws inside the bounds.
    seed
        Seed of the draws.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    if n < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"bootstrap needs at least 1 draw and a confidence between 0 and 1, got {n} and "
            f"{confidence}."
        )
    draws = _draws(task, predictions, targets, n=n, seed=seed)
    edges = ((1 - confidence) / 2, (1 + confidence) / 2)
    # the percentile method needs no assumption on the distribution of a metric
    bounds = {}
    for name, values in draws.items():
        # bounds of the few draws that happen to be defined would look surer than they are
        enough = 2 * len(values) >= n
        low, high = np.quantile(values, edges) if enough else (math.nan, math.nan)
        bounds[f"{name}_low"], bounds[f"{name}_high"] = float(low), float(high)
    return bounds


def _draws(
    task: Task,
    predictions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    n: int,
    seed: int,
) -> dict[str, list[float]]:
    """Return the values of each metric, from the draws in which it is defined."""
    # a generator of its own, so that equal data gives equal bounds and no other draw is disturbed
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in task.metric_names}
    for _ in range(n):
        chosen = rng.integers(len(targets), size=len(targets))
        # whole samples are drawn, never residues: one protein's labels depend on each other
        joined = [task.join([part[i] for i in chosen]) for part in (predictions, targets)]
        for name, value in task.metrics(*joined).items():
            if math.isfinite(value):
                draws[name].append(value)
    return draws

"""Summary statistics of time series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled
from molfun.sample import Sample


class SeriesSummary(FeatureBaseline):
    """Linear model of mean, spread, extremes, ends and trend of each feature, and of the length."""

    name = "series_summary"
    title = "summary statistics"

    def features(self, parts: Sequence[Labelled]) -> list[np.ndarray] | None:
        """Return eight numbers per feature of the series, and the log of the length."""
        samples = [sample for part in parts for sample in part.samples]
        if any("timeseries" not in (sample.features or {}) for sample in samples):
            return None
        rows = [np.array([summary(sample) for sample in part.samples]) for part in parts]
        # a feature that is never observed has no statistics: it gets the mean of the training set
        with np.errstate(all="ignore"):
            known = np.isfinite(rows[0])
            means = np.where(known, rows[0], 0).sum(0) / np.maximum(known.sum(0), 1)
        return [np.where(np.isfinite(part), part, means) for part in rows]


def summary(sample: Sample) -> np.ndarray:
    """Return mean, deviation, extremes, first, last, trend and share observed of each feature."""
    features = sample.features or {}
    values = np.asarray(features["timeseries"], np.float64)
    mask = np.asarray(features.get("mask", np.ones_like(values)), bool)
    columns = []
    for column, seen in zip(values.T, mask.T, strict=True):
        times, known = np.flatnonzero(seen), column[seen]
        if not len(known):
            columns += [np.nan] * 7 + [0.0]
            continue
        trend = np.polyfit(times, known, 1)[0] if len(known) > 1 else 0.0
        ends = known[0], known[-1]
        columns += [known.mean(), known.std(), known.min(), known.max(), *ends, trend, seen.mean()]
    return np.array([*columns, np.log1p(len(values))])

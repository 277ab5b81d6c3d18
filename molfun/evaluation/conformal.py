"""Intervals and sets of classes that hold with a given probability, from out-of-fold errors.

Split conformal prediction, computed by crepes: an interval reaches as far as the errors that the
model makes on samples it never saw; a set of classes holds those whose probability is no lower than
usual for the true class. Both hold if new samples are like the calibrated ones (exchangeable), and
say nothing of samples far from these.

References
----------
Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Lei et al. 2018,
"Distribution-Free Predictive Inference for Regression"; Bostrom 2022, "crepes".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from molfun._shapes import Bool, Float64, Int64
from molfun.errors import ConfigError, DataError

N_BINS = 10
"""Bins of a reliability diagram."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors of a model on samples it was not trained on.

    Parameters
    ----------
    errors
        Label minus prediction, for numbers; empty for classes.
    scores
        One minus the probability of the true class, for classes; empty for numbers.
    labels
        Position of the true class of each score.
    classes
        Names of the classes.

    Examples
    --------
    >>> calibration = Calibration.of_numbers(np.zeros(99), np.linspace(-1, 1, 99))
    >>> low, high = calibration.intervals(np.array([5.0]), coverage=0.9)
    >>> round(float(low[0]), 2), round(float(high[0]), 2)
    (4.08, 5.92)
    """

    errors: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @classmethod
    def of_numbers(
        cls, predictions: Float64[np.ndarray, "n"], targets: Float64[np.ndarray, "n"]
    ) -> Calibration:
        """Collect the errors of predicted numbers; rows without a label (NaN) are left out."""
        errors = targets - predictions
        return cls(errors=errors[np.isfinite(errors)].tolist())

    @classmethod
    def of_classes(
        cls,
        probs: Float64[np.ndarray, "n classes"],
        targets: Float64[np.ndarray, "n"],
        classes: Sequence[str],
    ) -> Calibration:
        """Collect the scores of predicted classes; `targets` are their positions, or NaN."""
        known = np.isfinite(targets)
        labels = targets[known].astype(np.int64)
        scores = 1 - probs[known][np.arange(len(labels)), labels]
        return cls(scores=scores.tolist(), labels=labels.tolist(), classes=list(classes))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Build it from what `to_dict` gave.

        Raises
        ------
        DataError
            If an entry is missing, unknown or no list.
        """
        names = set(cls.__dataclass_fields__)
        if set(content) != names or not all(isinstance(v, list) for v in content.values()):
            raise DataError(f"A calibration holds {', '.join(sorted(names))}; this one does not.")
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as plain values."""
        return asdict(self)

    def intervals(
        self, predictions: Float64[np.ndarray, "n"], *, coverage: float
    ) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
        """Return lower and upper bounds that hold the label with probability `coverage`.

        Raises
        ------
        ConfigError
            If the coverage is no probability, or the model predicts classes.
        DataError
            If there are too few errors for this coverage.
        """
        if self.classes:
            raise ConfigError("Intervals are for numbers; these are classes.")
        _check(coverage, len(self.errors), "out-of-fold predictions")
        from crepes import ConformalRegressor

        fitted = ConformalRegressor().fit(np.array(self.errors))
        bounds = fitted.predict_int(
            np.asarray(predictions, np.float64), confidence=_exact(coverage)
        )
        return bounds[:, 0], bounds[:, 1]

    def sets(
        self, probs: Float64[np.ndarray, "n classes"], *, coverage: float
    ) -> Bool[np.ndarray, "n classes"]:
        """Return for each sample which classes are in its set.

        Of the samples of each class, a share `coverage` have that class in their set (class-
        conditional, so a rare class is not given up). A class with too few calibrated samples is in
        every set.

        Raises
        ------
        ConfigError
            If the coverage is no probability, or the model predicts numbers.
        """
        if not self.classes:
            raise ConfigError("Sets of classes are for classes; these are numbers.")
        _check(coverage)
        from crepes import ConformalClassifier

        labels = np.array(self.labels)
        fitted = ConformalClassifier().fit(np.array(self.scores), bins=labels)
        new = 1 - np.asarray(probs, np.float64)
        found = np.ones(new.shape, bool)
        for place in np.unique(labels).tolist():
            bins = np.full(len(new), place)
            # without smoothing, which draws random numbers to reach the coverage exactly
            chosen = fitted.predict_set(new, bins, confidence=_exact(coverage), smoothing=False)
            found[:, place] = chosen[:, place].astype(bool)
        return found


def least(coverage: float) -> int:
    """Return how many errors an interval of this coverage needs.

    Examples
    --------
    >>> least(0.9), least(0.95)
    (9, 19)
    """
    # rounded, since 1 - 0.9 is a little below 0.1
    return math.ceil(round(1 / (1 - coverage), 9)) - 1


def _check(coverage: float, n: int | None = None, what: str = "") -> None:
    if not 0 < coverage < 1:
        raise ConfigError(f"coverage must be between 0 and 1, got {coverage}.")
    if n is not None and n < least(coverage):
        raise DataError(
            f"{n} {what} are too few for intervals of {coverage:.0%}: at least "
            f"{least(coverage)} are needed. Lower the coverage."
        )


def _exact(coverage: float) -> float:
    """Return the confidence for crepes, which takes the rank int((1 - confidence) * (n + 1)).

    1 - 0.8 is a little below 0.2, and the rank of 19 errors would be 3 instead of 4.
    """
    return coverage - 1e-12


# Reliability


def reliability(
    probs: Float64[np.ndarray, "n classes"], labels: Int64[np.ndarray, "n"]
) -> dict[str, Any]:
    """Return the reliability diagram of predicted classes and its expected calibration error.

    The confidence is the probability of the predicted class, and ``accuracy`` the share of right
    predictions among those of similar confidence.

    Parameters
    ----------
    probs
        Probabilities of the classes.
    labels
        Positions of the true classes.

    Returns
    -------
    dict
        ``ece``, and per bin that is not empty ``confidence``, ``accuracy`` and ``n``.

    References
    ----------
    Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Examples
    --------
    >>> probs = np.array([[0.2, 0.8]] * 10)
    >>> reliability(probs, np.array([1] * 6 + [0] * 4))["ece"]
    0.2
    """
    from sklearn.calibration import calibration_curve

    confidence = probs.max(1)
    right = (probs.argmax(1) == labels).astype(int)
    with warnings.catch_warnings():
        # of one class alone: all predictions are right, or all are wrong
        warnings.simplefilter("ignore")
        accuracy, mean = calibration_curve(right, confidence, n_bins=N_BINS)
    edges = np.linspace(0, 1, N_BINS + 1)
    # the bins of calibration_curve
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=N_BINS)
    counts = counts[counts > 0]
    ece = float((counts * np.abs(accuracy - mean)).sum() / max(1, counts.sum()))
    return {
        "ece": round(ece, 12),
        "confidence": mean.tolist(),
        "accuracy": accuracy.tolist(),
        "n": counts.tolist(),
    }

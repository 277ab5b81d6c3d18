"""Contacts: which pairs of residues are close in the structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from molfun.errors import ConfigError, DataError
from molfun.strict import Configured
from molfun.tasks.base import LossSum, Task
from molfun.trunk import Level


class ContactTask(Configured, Task):
    """Predict for each pair of residues whether they touch.

    Labels are (length, length) arrays: 1 for a contact (by convention C-beta atoms within 8
    angstrom), 0 for none, NaN where it is not known. Pairs closer along the chain than
    `min_separation` count neither in the loss nor in the metrics.

    Parameters
    ----------
    min_separation
        Smallest distance along the chain; 6 leaves out what helices give for free.
    level
        Only ``"pair"``.

    Examples
    --------
    >>> task = ContactTask(min_separation=2)
    >>> task.numbers(np.ones((3, 3)))[0].tolist()
    [nan, nan, 1.0]
    """

    name = "contact"
    default_head = "contact"
    main_metric = "precision_at_n"
    higher_is_better = frozenset({"precision_at_n", "auroc", "auprc"})
    n_outputs = 1

    def __init__(self, *, min_separation: int = 6, level: Level = "pair") -> None:
        if level != "pair":
            raise ConfigError(f"The task 'contact' is for pairs of residues, got level={level!r}.")
        if min_separation < 0:
            raise ConfigError(f"min_separation must be 0 or more, got {min_separation}.")
        self.level = "pair"
        self.keep_arguments(locals())
        self.fitted = False

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Refuse data without labels; there is nothing to learn.

        Raises
        ------
        DataError
            If no label is present.
        """
        if not any(np.isfinite(self.numbers(t)).any() for t in targets if t is not None):
            raise DataError("The training set has no labels. Give a contact map for each sample.")
        self.fitted = True

    def numbers(self, target: Any) -> np.ndarray:
        """Return the contact map (length, length) with NaN next to the diagonal.

        Raises
        ------
        DataError
            If the map is not square, or holds distances or other values beyond 0 and 1.
        """
        if target is None:
            return np.array(math.nan)
        values = np.array(target, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise DataError(f"A contact map has to be square, got the shape {values.shape}.")
        wrong = values[(values < 0) | (values > 1)]
        if wrong.size:
            raise DataError(
                f"A contact map holds values from 0 (none) to 1 (a contact), or NaN where it is "
                f"not known; found {wrong[0]:g}. Make contacts of distances: distances < 8 "
                f"(angstrom)."
            )
        place = np.arange(len(values))
        near = np.abs(place[:, None] - place[None, :]) < self._config["min_separation"]
        values[near] = math.nan
        return values

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the summed binary cross entropy over the pairs that count."""
        logits = outputs["prediction"].float()
        present = ~torch.isnan(targets)
        total = functional.binary_cross_entropy_with_logits(
            logits[present], targets[present].to(logits), reduction="sum"
        )
        return LossSum(total, int(present.sum()))

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the probability of a contact, float64."""
        return torch.sigmoid(outputs["prediction"].double())

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: probabilities, one (length, length) array per sample."""
        return {"prediction": list(predictions)}

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return precision of the n most probable pairs (n: true contacts), AUROC and AUPRC.

        NaN with one class only, or where predictions are not finite.
        """
        from sklearn.metrics import average_precision_score, roc_auc_score

        present = np.isfinite(targets)
        scores, truth = predictions[present], targets[present] > 0.5
        if truth.all() or not truth.any() or not np.isfinite(scores).all():
            return dict.fromkeys(("precision_at_n", "auroc", "auprc"), math.nan)
        top = np.argsort(-scores, kind="stable")[: int(truth.sum())]
        return {
            "precision_at_n": float(truth[top].mean()),
            "auroc": float(roc_auc_score(truth, scores)),
            "auprc": float(average_precision_score(truth, scores)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return whether it has been trained."""
        return {"fitted": self.fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.fitted = bool(state["fitted"])

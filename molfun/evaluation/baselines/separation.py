"""The distance along the chain, for labels of pairs of residues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import Baseline, Labelled, Predictions
from molfun.tasks.base import Task
from molfun.tasks.contact import ContactTask


class Separation(Baseline):
    """Share of the training pairs in contact at the same distance along the chain."""

    name = "separation"
    title = "distance along the chain"

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Learn one share per distance; beyond the longest training chain it is the last one."""
        if not isinstance(task, ContactTask):
            return None
        longest = max(len(label) for label in train.labels)
        contacts, pairs = np.zeros(longest), np.zeros(longest)
        for label in train.labels:
            for apart in range(len(label)):
                diagonal = np.diagonal(label, apart)
                contacts[apart] += np.nansum(diagonal)
                pairs[apart] += np.isfinite(diagonal).sum()
        shares = contacts / np.maximum(pairs, 1)
        return [[_map_of(len(label), shares) for label in part.labels] for part in others]


def _map_of(n: int, shares: np.ndarray) -> np.ndarray:
    apart = np.abs(np.arange(n)[:, None] - np.arange(n)[None])
    return shares[np.minimum(apart, len(shares) - 1)]

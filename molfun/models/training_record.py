"""Record of the training rows that a checkpoint carries: neither sequences nor labels.

From it alone, a model knows rows of its training set and estimates how far new ones are from it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from molfun._shapes import Float32
from molfun.evaluation.sketch import Sketch, evenly
from molfun.evaluation.space import FEWEST_VECTORS, MOST_VECTORS, Space
from molfun.models import given
from molfun.models.loaders import samples_of
from molfun.models.trained_on import TrainingRows, chains_of
from molfun.nn.modes import evaluating
from molfun.nn.process import seeded
from molfun.sample import Sample
from molfun.training.inputs import Inputs
from molfun.training.supervised import SupervisedRunner
from molfun.trunk import TrunkOutput

SHARE = 0.05
"""Largest part of a run's work that may go into vectors which no cache holds."""
_MOST_RUN = 500
"""Training samples that run once more for their vectors, if no cache holds them."""
_VALIDATION_ROWS = 1000
"""Validation samples whose identity to the training set is estimated."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Hashes and vectors of the training rows, which a checkpoint carries.

    Parameters
    ----------
    sketch
        Keyed hashes, from which identities are estimated; None without sequences.
    least_identity
        Estimated identity of the farthest validation sample; NaN if there was none.
    space
        Mean representations of training rows; None where heads read none.
    """

    sketch: Sketch | None = None
    least_identity: float = math.nan
    space: Space | None = None

    def then(self, later: TrainingRecord) -> TrainingRecord:
        """Return the record after another fit; vectors are those of the last one."""
        if self.sketch is None or later.sketch is None:
            return replace(later, sketch=later.sketch or self.sketch)
        return replace(later, sketch=self.sketch.joined(later.sketch))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all of it as tensors by name, for a safetensors file."""
        found: dict[str, np.ndarray] = {}
        if self.sketch is not None:
            found = {f"sketch.{name}": array for name, array in self.sketch.to_arrays().items()}
            found["least_identity"] = np.array([self.least_identity])
        if self.space is not None:
            found |= {f"space.{name}": array for name, array in self.space.to_arrays().items()}
        # without empty ones, which torch refuses to view as bytes
        return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in found.items() if a.size}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self | None:
        """Build the record from the result of `to_tensors`; None if that is empty.

        Raises
        ------
        CheckpointError
            If arrays are missing or do not fit together.
        """
        if not tensors:
            return None
        parts: dict[str, dict[str, Any]] = {"sketch": {}, "space": {}, "": {}}
        for name, tensor in tensors.items():
            group, dot, own = name.partition(".")
            parts.get(group if dot else "", {})[own or group] = tensor.numpy()
        least = parts[""].get("least_identity", np.array([math.nan]))
        return cls(
            sketch=Sketch.from_arrays(parts["sketch"]) if parts["sketch"] else None,
            least_identity=float(least[0]),
            space=Space.from_arrays(parts["space"]) if parts["space"] else None,
        )


def record_of(rows: TrainingRows, val: Any, *, before: TrainingRecord | None) -> TrainingRecord:
    """Return the record at the start of a fit.

    Parameters
    ----------
    rows
        Training rows.
    val
        Loader of the validation set, or None.
    before
        Record of an earlier fit, whose key goes on.
    """
    if not any(rows.chains):
        return TrainingRecord() if before is None else before.then(TrainingRecord())
    old = None if before is None else before.sketch
    # from the inputs: equal runs then write equal checkpoints, and no one who lacks the training
    # set could have known the key beforehand
    made = hashlib.blake2b(rows.inputs.tobytes(), digest_size=16).digest()
    key = made if old is None else old.key
    found = TrainingRecord(sketch=Sketch.of(rows.ids, rows.chains, key=key))
    found = found if before is None else before.then(found)
    assert found.sketch is not None  # as there are chains
    others = [chains_of(sample) for sample in _chosen(val, _VALIDATION_ROWS)]
    least = float(found.sketch.nearest(others).identities.min()) if others else math.nan
    return replace(found, least_identity=least)


# Vectors


class Distances:
    """Collector of the distance of each sample, from the representations that heads read anyway.

    Examples
    --------
    >>> vectors = np.eye(20, 4, dtype=np.float32)
    >>> collect = Distances(Space.of(vectors, vectors))
    >>> trunk = TrunkOutput(mask=torch.ones(1, 2), single=torch.zeros(1, 2, 4))
    >>> collect(Inputs(ids=["a"], targets=[None]), trunk)
    >>> collect.found().shape
    (1,)
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._found: list[np.ndarray] | None = []

    def __call__(self, _inputs: Inputs, trunk: TrunkOutput) -> None:
        """Add the samples of a batch."""
        vectors = mean_of(trunk)
        if vectors is None:
            self._found = None
        elif self._found is not None:
            self._found.append(self._space.distances(vectors))

    def found(self) -> Float32[np.ndarray, "samples"] | None:
        """Return the distances of all samples; None if there were no representations."""
        return np.concatenate(self._found) if self._found else None


def mean_of(trunk: TrunkOutput) -> Float32[np.ndarray, "batch channels"] | None:
    """Return the mean representations of a batch; None where heads read no such thing."""
    mean = trunk.with_mean().mean
    if mean is not None and trunk.chains is not None:
        # all chains count alike, whatever their order
        there = (trunk.chains >= 0).to(mean.dtype)
        mean = (mean[trunk.chains] * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True)
    return None if mean is None else mean.detach().float().cpu().numpy()


def space_of(runner: SupervisedRunner, train: Any, val: Any, *, epochs: int) -> Space | None:
    """Return the space of a trained model; None if it has no means or too few rows.

    With a frozen backbone and a cache nothing runs again. Else a part of the rows runs once more,
    at most `SHARE` of the work of the training.

    Parameters
    ----------
    runner
        Runner of the training, with the final weights in its model.
    train, val
        Loaders.
    epochs
        Epochs of the training.
    """
    forward = runner.forward
    most_train = most_val = MOST_VECTORS
    if not forward.frozen.whole or forward.cache is None:
        # a step with gradients costs about three forward passes
        passes = SHARE * epochs * _length(train) * (1 if forward.frozen.whole else 3)
        most_train, most_val = (min(_MOST_RUN, int(passes * part)) for part in (0.7, 0.3))
    size = getattr(train, "batch_size", None) or 1
    if most_train < FEWEST_VECTORS:
        return None
    vectors = _vectors(runner, _chosen(train, most_train), size)
    if len(vectors) < FEWEST_VECTORS:
        return None
    others = _vectors(runner, _chosen(val, most_val), size)
    return Space.of(vectors, others if len(others) else vectors[:0])


def _length(loader: Any) -> int:
    return given.length_of(getattr(loader, "dataset", loader)) or 0


def _chosen(loader: Any, most: int) -> list[Sample]:
    """Return at most `most` samples of a loader, evenly spaced; none if it has no samples."""
    dataset = getattr(loader, "dataset", loader)
    if loader is None or not given.is_map_style(dataset):
        return []
    with seeded(0):  # for data sets that draw their crops
        items = [given.item_of(dataset, int(i)) for i in evenly(len(dataset), most)]
    return list(samples_of([items]))[:most]


@torch.no_grad()
def _vectors(
    runner: SupervisedRunner, samples: Sequence[Sample], size: int
) -> Float32[np.ndarray, "samples channels"]:
    """Return the mean representations of samples in batches of `size`; none if there are none."""
    found: list[np.ndarray] = []
    with evaluating(runner.backbone):
        for start in range(0, len(samples), size):
            with runner.autocast():
                trunk = runner.forward(Inputs.of(samples[start : start + size]))
            means = mean_of(trunk)
            if means is None:
                break
            found.append(means)
    joined = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
    return joined[np.isfinite(joined).all(axis=1)]

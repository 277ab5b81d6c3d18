"""The space of a training set's mean representations, in which far samples are recognised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from molfun._shapes import Float32
from molfun.errors import CheckpointError
from molfun.nn.process import seeded

DIMENSIONS = 64
"""Principal components kept; what lies outside of them counts as one more."""
MOST_VECTORS = 2000
"""Training samples whose vectors are kept."""
FEWEST_VECTORS = 10
"""Training samples below which there is no space: distances in it would say little."""
_QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Principal components of the training vectors, and how far validation samples lie from them.

    The distance of a sample is that of its mean representation x to the nearest training vector as
    it is kept, its projection on the components,

        d(x) = min_i |x - p_i| / s,

    where s is the root mean square distance of the training vectors from their mean. So 1 is the
    size of the training set's cloud; 0.5 in a narrow training set may be 0.05 in a wide one.

    Parameters
    ----------
    mean
        (channels,) mean of the training vectors.
    axes
        (components, channels) orthonormal directions.
    scale
        The unit s of distances.
    vectors
        (samples, components) projections of the training vectors, in units of `scale`.
    quantiles
        (101,) quantiles of the distances of validation samples; empty if there were none.
    """

    mean: Float32[np.ndarray, "channels"]
    axes: Float32[np.ndarray, "components channels"]
    scale: float
    vectors: Float32[np.ndarray, "samples components"]
    quantiles: Float32[np.ndarray, "quantiles"]

    @classmethod
    def of(
        cls,
        training: Float32[np.ndarray, "samples channels"],
        validation: Float32[np.ndarray, "others channels"],
    ) -> Self:
        """Return the space of training vectors, with the distances of validation vectors.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> vectors = rng.normal(size=(300, 16)).astype(np.float32)
        >>> space = Space.of(vectors[:200], vectors[200:])
        >>> bool(space.distances(vectors[:1])[0] < 0.01), bool(space.limit < 2)
        (True, True)
        >>> bool(space.distances(vectors[:1] + 9)[0] > space.limit)
        True
        """
        mean = training.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = training - mean
        scale = float(np.sqrt(np.square(centred, dtype=np.float64).sum(axis=1).mean())) or 1.0
        with seeded(0), torch.no_grad():
            # randomized, by Halko et al. 2011: a tenth of the time of all components
            _, _, axes = torch.pca_lowrank(
                torch.from_numpy(centred), q=min(DIMENSIONS, *centred.shape), center=False
            )
        # rounded as they are stored, so that a saved space gives the same distances
        kept = axes.T.contiguous().half().float().numpy()
        vectors = (centred @ kept.T / scale).astype(np.float16).astype(np.float32)
        empty = np.zeros(0, np.float32)
        found = cls(mean=mean, axes=kept, scale=scale, vectors=vectors, quantiles=empty)
        if not len(validation):
            return found
        quantiles = np.quantile(found.distances(validation), _QUANTILES).astype(np.float32)
        return cls(mean=mean, axes=kept, scale=scale, vectors=vectors, quantiles=quantiles)

    @property
    def limit(self) -> float:
        """The largest distance of a validation sample; NaN if there was none."""
        return float(self.quantiles[-1]) if len(self.quantiles) else math.nan

    def n_beyond(self, distances: Float32[np.ndarray, "samples"]) -> int:
        """Return how many distances are larger than that of any validation sample."""
        # the last bits of a vector depend on the batch it is computed in
        return int((distances > self.limit * (1 + 1e-3)).sum())

    def distances(
        self, vectors: Float32[np.ndarray, "samples channels"]
    ) -> Float32[np.ndarray, "samples"]:
        """Return the distance of each mean representation to the nearest training vector."""
        from scipy.spatial.distance import cdist

        centred = (vectors - self.mean) / self.scale
        inside = centred @ self.axes.T
        outside = np.square(centred - inside @ self.axes).sum(axis=1)
        nearest = cdist(inside, self.vectors, "sqeuclidean").min(axis=1)
        return np.sqrt(nearest + outside).astype(np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays by name."""
        return {
            "mean": self.mean,
            "axes": self.axes.astype(np.float16),
            "scale": np.array([self.scale], np.float64),
            "vectors": self.vectors.astype(np.float16),
            "quantiles": self.quantiles,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Build the space from the result of `to_arrays`.

        Raises
        ------
        CheckpointError
            If arrays are missing or do not fit together.
        """
        try:
            mean, axes, vectors = (
                arrays[name].astype(np.float32) for name in ("mean", "axes", "vectors")
            )
            # absent without validation samples
            quantiles = arrays.get("quantiles", np.zeros(0)).astype(np.float32)
            scale = float(arrays["scale"][0])
            fits = axes.shape == (vectors.shape[1], *mean.shape) and scale > 0 and len(vectors)
        except (KeyError, ValueError, IndexError) as error:
            raise CheckpointError(f"The training vectors are damaged: {error}.") from error
        if not fits:
            raise CheckpointError("The training vectors are damaged: their shapes disagree.")
        return cls(mean=mean, axes=axes, scale=scale, vectors=vectors, quantiles=quantiles)

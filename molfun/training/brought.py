"""Use representations that samples carry in place of running the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from molfun.errors import DataError
from molfun.sample import Sample
from molfun.trunk import SAMPLE_LEVEL, TrunkOutput

REPRESENTATIONS = {"single", *SAMPLE_LEVEL}
"""Names of features that replace the backbone's output."""


def refuse_brought(samples: Sequence[Sample]) -> None:
    """Refuse representations if the backbone trains: they would be outdated after one step.

    Raises
    ------
    DataError
        Naming the first sample that carries any.
    """
    for sample in samples:
        if REPRESENTATIONS & set(sample.features or {}):
            raise DataError(
                f"{sample.id} comes with representations, but parts of the backbone train. "
                f"Use HeadOnlyFinetune, or a data set without representations."
            )


def brought_vectors(
    samples: Sequence[Sample], needs: Sequence[str], width: int, device: torch.device
) -> TrunkOutput | None:
    """Return the pooled vectors of a batch; None if a sample lacks one of `needs` or its `width`.

    `brought_by` then names what is wrong. Batches of vectors are stacked at once, since a step of
    a small head takes less time than handling its samples one by one.
    """
    if not set(needs) <= set(SAMPLE_LEVEL):
        return None
    tensors = {}
    for name in needs:
        # a missing one becomes an empty array, which fails the test of the width
        rows = [np.asarray((s.features or {}).get(name, ())) for s in samples]
        if any(row.shape != (width,) for row in rows):
            return None
        tensors[name] = torch.as_tensor(np.stack(rows), device=device).float()
    # one "residue" per sample: heads that pool take the vector as it is
    mask = torch.ones(len(samples), 1, device=device)
    return TrunkOutput.from_tensors({**tensors, "mask": mask})


def brought_by(
    sample: Sample, needs: Sequence[str], width: int, device: torch.device
) -> TrunkOutput | None:
    """Return the representations that the head reads from a sample; None if it carries none.

    Raises
    ------
    DataError
        If it carries another one than the head reads, or one of another width.
    """
    features = sample.features or {}
    names = REPRESENTATIONS & set(features)
    if not names:
        return None
    missing = sorted(set(needs) - names)
    if missing:
        raise DataError(
            f"{sample.id} comes with the representation {', '.join(sorted(names))}, but the "
            f"head reads {', '.join(missing)}. Embed with another pooling, or choose another "
            f"head or pooling."
        )
    tensors = {n: torch.as_tensor(features[n], device=device).float()[None] for n in needs}
    for name, tensor in tensors.items():
        if tensor.shape[-1] != width:
            raise DataError(
                f"{sample.id}: its representation {name!r} has {tensor.shape[-1]} channels, "
                f"the backbone {width}. Choose the backbone it came from."
            )
    length = tensors["single"].shape[1] if "single" in tensors else 1
    return TrunkOutput.from_tensors({**tensors, "mask": torch.ones(1, length, device=device)})

"""Representations that samples bring along in place of an input for the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from molfun.errors import DataError
from molfun.sample import Sample
from molfun.trunk import SAMPLE_LEVEL, TrunkOutput

REPRESENTATIONS = {"single", *SAMPLE_LEVEL}
"""Features of a sample that stand for the backbone's output."""


def refuse_brought(samples: Sequence[Sample]) -> None:
    """Refuse representations where the backbone trains: they would be out of date.

    Raises
    ------
    DataError
        Naming the first sample that brings any.
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
    """Vectors of a whole batch, where each sample brings one of `width` channels for all `needs`.

    None where one does not; `brought_by` then says what is wrong with a sample.
    """
    if not set(needs) <= set(SAMPLE_LEVEL):
        return None
    tensors = {}
    for name in needs:
        rows = [np.asarray((s.features or {}).get(name, ())) for s in samples]
        if any(row.shape != (width,) for row in rows):
            return None
        tensors[name] = torch.as_tensor(np.stack(rows), device=device).float()
    mask = torch.ones(len(samples), 1, device=device)
    return TrunkOutput.from_tensors({**tensors, "mask": mask})


def brought_by(
    sample: Sample, needs: Sequence[str], width: int, device: torch.device
) -> TrunkOutput | None:
    """Return what the head reads, from the sample itself; None where it brings no representation.

    Raises
    ------
    DataError
        If it brings another one than the head reads, or one of another width.
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

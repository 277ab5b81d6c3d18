"""Compare the memory that folds will take with what is free, before the first one starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from molfun.backbones.planning import FoldMemory, MemoryPlan
from molfun.models.assembly import AssembledModel
from molfun.models.memory import SHARE, free_bytes
from molfun.sample import Sample
from molfun.text import megabytes

logger = logging.getLogger(__name__)

LEAST = 0.75
"""Smallest part of a predicted peak that was measured (docs/performance.md)."""


def too_large(model: AssembledModel, samples: Sequence[Sample]) -> dict[str, str]:
    """Return a sentence per sample, by id, that takes more memory than is free.

    The largest of the others is warned of if it may do so: the prediction is not exact.

    Parameters
    ----------
    model
        Model that folds; of an ensemble any, since members fold one after the other.
    samples
        Samples that the model has checked.
    """
    backbone, free = model.backbone, free_bytes(model.device)
    if not isinstance(backbone, FoldMemory) or free is None:
        return {}
    found = {sample.id: backbone.fold_memory(sample, free) for sample in samples}
    fit = {name: one for name, one in found.items() if LEAST * one.peak <= free}
    largest = max(fit, key=lambda name: fit[name].peak, default="")
    if largest and fit[largest].peak > SHARE * free:
        logger.warning(
            "%s takes about %s to fold, and %s are free: it may not fit.",
            largest,
            megabytes(fit[largest].peak),
            megabytes(free),
        )
    lengths = {sample.id: _length(sample) for sample in samples}
    return {
        name: _sentence(name, lengths[name], one, free)
        for name, one in found.items()
        if name not in fit
    }


def _sentence(name: str, length: int, found: MemoryPlan, free: int) -> str:
    size = f" ({length:,} residues)" if length else ""
    return (
        f"{name}{size} takes about {megabytes(found.peak)} to fold, and {megabytes(free)} are "
        f"free: up to {found.fits_up_to:,} residues fit here."
    )


def _length(sample: Sample) -> int:
    return 0 if sample.protein is None else len(sample.protein)

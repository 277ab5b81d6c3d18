"""Compare the memory that folds will take with what is free, before the first one starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from molfun.backbones.planning import FoldMemory, MemoryPlan
from molfun.models.assembly import AssembledModel
from molfun.models.memory import SHARE, free_bytes
from molfun.parallel.started import Started
from molfun.sample import Sample
from molfun.text import megabytes

logger = logging.getLogger(__name__)

LEAST = 0.7
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
    if model.device.type == "cpu":  # the processes of a machine share its memory
        free //= Started.found().per_node
    plans = [(sample, backbone.fold_memory(sample, free)) for sample in samples]
    _warn([(s, plan) for s, plan in plans if LEAST * plan.peak <= free], free)
    return {s.id: _sentence(s, plan, free) for s, plan in plans if LEAST * plan.peak > free}


def _warn(fit: Sequence[tuple[Sample, MemoryPlan]], free: int) -> None:
    """Warn of the largest sample, if it may not fit."""
    largest, plan = max(fit, key=lambda pair: pair[1].peak, default=(None, None))
    if largest is not None and plan is not None and plan.peak > SHARE * free:
        logger.warning(
            "%s takes about %s to fold, and %s are free: it may not fit.",
            largest.id,
            megabytes(plan.peak),
            megabytes(free),
        )


def _sentence(sample: Sample, found: MemoryPlan, free: int) -> str:
    size = "" if sample.protein is None else f" ({len(sample.protein):,} residues)"
    return (
        f"{sample.id}{size} takes about {megabytes(found.peak)} to fold, and {megabytes(free)} are "
        f"free: up to {found.fits_up_to:,} residues fit here."
    )

"""Prepare the checks of a run from its settings and the parts of its data."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from molfun.checks.data import AT_NO_COST, examine
from molfun.checks.data.subject import Subject
from molfun.cli.settings import FineTuneSettings
from molfun.data.base import SampleDataset

logger = logging.getLogger(__name__)


def subject_of(settings: FineTuneSettings, parts: Mapping[str, SampleDataset | None]) -> Subject:
    """Return the subject of the checks, without a model."""
    return Subject(
        parts={name: part for name, part in parts.items() if part is not None and len(part)},
        kind=settings.kind,
        backbone_name=settings.backbone,
        labels={name: one.labels for name, one in settings.by_head.items()},
        used=_used(settings),
        split=settings.split,
        has_weights=settings.weights is not None or settings.init_from is not None,
        batch_size=settings.samples_per_batch,
        epochs=settings.epochs,
    )


def log_checks(settings: FineTuneSettings, parts: Mapping[str, SampleDataset | None]) -> None:
    """Write those checks of ``molfun check`` that cost nothing into the log of a run."""
    for finding in examine(subject_of(settings, parts), AT_NO_COST):
        logger.info("%s", finding)


def _used(settings: FineTuneSettings) -> frozenset[str]:
    """Return the names of the columns that a run reads."""
    kind = settings.kind
    names = [n for n in kind.settings.model_fields if n.endswith("_column")]
    found = {kind.column(one, n) for one in settings.by_head.values() for n in names}
    if settings.split == "column":
        found.add(settings.split_column)
    if settings.split == "group":
        found |= {settings.group_column, settings.split_column}
    if settings.split == "temporal":
        found.add("year")
    return frozenset(name for name in found if name)

"""Sections of a report, in the order in which they are read.

A section is a module with a function ``section(run)`` that returns a `Section`, or None where the
run has nothing for it; its line below puts it into every report.
"""

from __future__ import annotations

from collections.abc import Callable

from molfun.report.blocks import Section
from molfun.report.finished import FinishedRun
from molfun.report.sections import (
    baselines,
    calibration,
    classes,
    cost,
    curves,
    data,
    folds,
    forces,
    groups,
    origin,
    parity,
    predicted_structures,
    pretraining,
    reconstructions,
    residuals,
    residues,
    series,
    settings,
    structures,
    training,
    variant_splits,
    variants,
    verdict,
    worst,
)

SECTIONS: tuple[Callable[[FinishedRun], Section | None], ...] = (
    verdict.section,
    pretraining.section,
    reconstructions.section,
    baselines.section,
    variant_splits.section,
    folds.section,
    data.section,
    curves.section,
    parity.section,
    variants.section,
    classes.section,
    forces.section,
    predicted_structures.section,
    residues.section,
    residuals.section,
    worst.section,
    structures.section,
    series.section,
    calibration.section,
    groups.section,
    training.section,
    cost.section,
    settings.section,
    origin.section,
)

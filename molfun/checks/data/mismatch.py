"""Look for data that suggest another task or backbone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molfun.checks.data.labels import values_of
from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding
from molfun.data.kinds.structures import is_structure

FEW_VALUES = 10
"""Distinct whole numbers up to which labels look like classes, if there are many samples."""
MANY_SAMPLES = 50
OTHERS = {
    "structures": {"sequence": "--backbone esm2_t6_8M_UR50D"},
    "sequences": {"pdb_id": "--pdbs FOLDER, or --backbone openfold", "pdb": "--pdbs FOLDER"},
}
"""Column that another kind of data reads, and the flags for it."""


def check(subject: Subject) -> Iterator[Finding]:
    """Say what the data looks like, where that is not what the run takes it for."""
    if "train" not in subject.parts:
        return
    for head, labels in subject.labels.items():
        if labels.task == "regression":
            yield from _like_classes(subject, head)
    columns = {str(name).lower() for name in subject.parts["train"].metadata.columns}
    if any(map(is_structure, subject.labels.values())):
        columns -= {"sequence"}  # it has to agree with the structures
    for name, flags in OTHERS.get(subject.kind.name, {}).items():
        if name in columns - {used.lower() for used in subject.used}:
            yield Finding(
                status="WARNING",
                topic=f"column {name!r}",
                text=f"is not read from {subject.kind.title}; another backbone takes it",
                remedy=flags,
            )


def _like_classes(subject: Subject, head: str) -> Iterator[Finding]:
    values = values_of(subject.targets("train", head))
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    if len(known) < MANY_SAMPLES or not 1 < len(distinct) <= FEW_VALUES:
        return
    if not np.array_equal(distinct, np.round(distinct)):
        return
    task = "binary" if len(distinct) == 2 else "multiclass"
    yield Finding(
        status="WARNING",
        topic=f"task{f' {head}' if head else ''}",
        text=f"the labels are the {len(distinct)} numbers "
        f"{', '.join(f'{value:g}' for value in distinct)}, which look like classes",
        remedy=f"--task {task}, unless they are counts or ranks",
    )

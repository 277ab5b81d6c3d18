"""The number of labels that a loss counts, by which several heads are weighed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import build_tiny_model

from molfun.heads import MLPHead
from molfun.tasks import ContactTask, EnergyTask, RegressionTask, StructureTask, Task
from molfun.training.task_head import TaskHead


@pytest.mark.parametrize(
    ("task", "label", "count"),
    [
        (RegressionTask(), 6.5, 1),
        (RegressionTask(level="residue"), [1.0, math.nan, 2.0], 2),
        (ContactTask(min_separation=1), np.ones((3, 3)), 6),
        # one structure, however many atoms have forces
        (EnergyTask(), {"energy": -1.0, "forces": np.zeros((5, 3))}, 1),
        (EnergyTask(), {"energy": math.nan}, 0),
        (StructureTask(), None, 0),
    ],
)
def test_labels_are_counted_as_the_loss_counts_them(task: Task, label: object, count: int) -> None:
    assert task.count(label) == count


def test_a_head_is_weighed_by_structures_and_not_by_their_atoms() -> None:
    part = TaskHead(head=MLPHead(single_dim=4), task=EnergyTask(), name="energy")
    labels = [{"energy": -1.0, "forces": np.zeros((n, 3))} for n in (2, 7)]
    assert part.weighed(labels).labels_per_sample == 1.0
    structure = build_tiny_model(head="structure").heads[0]
    assert structure.weighed([None, None]).labels_per_sample == 1e-12

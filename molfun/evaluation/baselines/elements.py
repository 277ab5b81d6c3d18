"""Energy as a sum over the elements of a structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import Baseline, Labelled, Predictions
from molfun.tasks.base import Task
from molfun.tasks.energy import ENERGY, FORCES, N_ATOMS, STRESS, EnergyTask


class Elements(Baseline):
    """Least-squares energy per element; no forces, and the mean stress.

    On molecules of one composition this is the mean energy. On mixed ones it explains most of the
    total energy, so a model that does not beat it has learned nothing but composition.
    """

    name = "elements"
    title = "energy per element"

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Fit the energies of the elements."""
        if not (_has_atoms([train, *others]) and _is_energy(task)):
            return None
        rows = isinstance(task, EnergyTask)
        elements = np.unique(np.concatenate([s.atoms.numbers for s in train.samples]))
        labels = np.array([label[ENERGY] if rows else label for label in train.labels])
        known = np.isfinite(labels)
        each, *_ = np.linalg.lstsq(_counts(train, elements)[known], labels[known], rcond=None)
        found = [list(_counts(part, elements) @ each) for part in others]
        return _as_rows(found, train, others) if rows else found


def _has_atoms(parts: Sequence[Labelled]) -> bool:
    return all(sample.atoms is not None for part in parts for sample in part.samples)


def _is_energy(task: Task) -> bool:
    """Return whether a label is a number per structure, which may be an energy."""
    one_number = task.labels_are == "numbers" and task.numbers(None).shape == ()
    return isinstance(task, EnergyTask) or (one_number and task.level == "sequence")


def _as_rows(
    energies: Sequence[Sequence[float]], train: Labelled, others: Sequence[Labelled]
) -> list[list[np.ndarray]]:
    """Return energies as `EnergyTask.predictions` has them, with the mean stress and no forces."""
    stress = _mean_stress(train.labels)
    return [
        [_row(len(s.atoms), energy, stress) for s, energy in zip(part.samples, own, strict=True)]
        for part, own in zip(others, energies, strict=True)
    ]


def _counts(part: Labelled, elements: np.ndarray) -> np.ndarray:
    """Return how often each element occurs in each structure; new elements count nothing."""
    return np.array(
        [(s.atoms.numbers[:, None] == elements[None]).sum(0) for s in part.samples], np.float64
    ).reshape(-1, len(elements))


def _mean_stress(labels: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.array([label[STRESS] for label in labels])
    known = np.isfinite(rows).all(1)
    return rows[known].mean(0) if known.any() else np.full(rows.shape[1], np.nan)


def _row(n_atoms: int, energy: float, stress: np.ndarray) -> np.ndarray:
    row = np.zeros(FORCES + 3 * n_atoms)  # no forces
    row[N_ATOMS], row[ENERGY], row[STRESS] = n_atoms, energy, stress
    return row

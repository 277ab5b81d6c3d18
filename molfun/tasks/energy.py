"""Energies of structures, with forces and stress."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from molfun.errors import ConfigError, DataError
from molfun.sample import is_missing
from molfun.strict import Configured
from molfun.tasks.base import LossSum, Task
from molfun.tasks.chosen_loss import check_name
from molfun.tasks.losses import ELEMENTWISE
from molfun.text import unknown_name

DERIVATIVES = ("forces", "stress")
# one row per sample: number of atoms, energy, stress (9), forces (3 per atom)
N_ATOMS, ENERGY, STRESS, FORCES = 0, 1, slice(2, 11), 11


class EnergyTask(Configured, Task):
    """Predict an energy, and its derivatives where there are labels for them.

    The loss is in the scale of the network, energies and stress (times volume) per atom::

        energy_weight * loss(energy) + forces_weight * loss(forces) + stress_weight * loss(stress)

    Each term is a mean over the components of a structure, the loss a mean over structures. Labels
    are an energy, or a dict with ``energy``, ``forces`` (atoms, 3) and ``stress`` (3, 3), any of
    them missing. Units are those of the target: eV, eV/angstrom, eV/angstrom^3.

    Parameters
    ----------
    loss
        ``"mse"``, ``"mae"`` or ``"huber"`` (delta 1).
    energy_weight, forces_weight, stress_weight
        Weights of the terms.

    Examples
    --------
    >>> task = EnergyTask(forces_weight=10.0)
    >>> task.fit_targets([{"energy": -1.0, "forces": np.zeros((2, 3))}])
    >>> task.derivatives
    ('forces',)
    """

    name = "energy"
    default_head = "energy"
    n_outputs = 1
    numbers_unfitted = True

    def __init__(
        self,
        *,
        loss: str = "mse",
        energy_weight: float = 1.0,
        forces_weight: float = 1.0,
        stress_weight: float = 1.0,
    ) -> None:
        check_name("energy loss", loss, ELEMENTWISE)
        weights = {"energy": energy_weight, "forces": forces_weight, "stress": stress_weight}
        wrong = {k: w for k, w in weights.items() if not 0 <= w < math.inf}
        if wrong or not any(weights.values()):
            raise ConfigError(
                f"Weights of the loss must be at least 0, and one above it; got {weights}."
            )
        self._config = {"loss": loss, **{f"{k}_weight": w for k, w in weights.items()}}
        self._weights = weights
        self.derivatives: tuple[str, ...] = ()
        self.trained = False

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Find the derivatives that have labels; those of earlier training sets stay.

        Raises
        ------
        DataError
            If there is no label at all.
        """
        rows = [self.numbers(t) for t in targets if not is_missing(t)]
        if not any(np.isfinite(row).any() for row in rows):
            raise DataError("The training set has no energies, forces or stress to learn from.")
        self.derivatives = self._derivatives_in(rows)
        self.trained = True

    def _derivatives_in(self, rows: Sequence[np.ndarray]) -> tuple[str, ...]:
        has = {
            "forces": any(np.isfinite(row[FORCES:]).any() for row in rows),
            "stress": any(np.isfinite(row[STRESS]).any() for row in rows),
        }
        return tuple(name for name in DERIVATIVES if has[name] or name in self.derivatives)

    def for_labels(self, targets: Sequence[Any], head: Mapping[str, Any]) -> Self:
        """Return the same task, measuring all derivatives that have labels and are not refused.

        A derivative that it was not trained on is measured, but no part of the loss. A head
        refuses one with ``forces=False`` or ``stress=False``.
        """
        seen = copy.copy(self)
        rows = [self.numbers(target) for target in targets if not is_missing(target)]
        labelled = self._derivatives_in(rows)
        seen.derivatives = tuple(name for name in labelled if head.get(name) is not False)
        if self.trained:
            others = {name: 0.0 for name in seen.derivatives if name not in self.derivatives}
            seen._weights = {**self._weights, **others}
        return seen

    def gaps(self, targets: Sequence[Any]) -> str | None:
        """Say how many structures lack an energy, forces or stress that others have."""
        rows = [self.numbers(target) for target in targets]
        parts = {"energy": slice(ENERGY, ENERGY + 1), "forces": slice(FORCES, None)}
        texts = []
        for name, part in {**parts, "stress": STRESS}.items():
            texts += _gaps_of(name, [np.isfinite(row[part]) for row in rows])
        return f"Of {len(rows)} training structures, {', '.join(texts)}." if texts else None

    def numbers(self, target: Any) -> np.ndarray:
        """Return a label as one row: unknown, energy, stress (9), forces (3 per atom).

        Raises
        ------
        DataError
            If it is of another kind or shape.
        """
        if isinstance(target, np.ndarray) and target.ndim == 1 and target.size >= FORCES:
            return target.astype(np.float64)
        energy, forces, stress = _parts_of(target)
        row = np.full(FORCES + (0 if forces is None else forces.size), math.nan)
        if energy is not None:
            row[ENERGY] = float(energy.reshape(()))
        if stress is not None:
            row[STRESS] = stress.reshape(-1)
        if forces is not None:
            row[FORCES:] = forces.reshape(-1)
        if np.isinf(row).any():
            raise DataError("A label is infinite. Give NaN or None where there is none.")
        return row

    def count(self, target: Any) -> int:
        """Return 1 for a structure with any label: the loss is a mean over structures."""
        return int(np.isfinite(self.numbers(target)).any())

    def encode(self, targets: Sequence[Any], lengths: Sequence[int] | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return the rows of a batch, padded with NaN: (batch, 11 + 3 * atoms) float64."""
        return torch.from_numpy(self.join([self.numbers(t) for t in targets]))

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Join rows of samples, padded with NaN to the longest."""
        longest = max((len(v) for v in values), default=FORCES)
        rows = np.full((len(values), longest), math.nan)
        for row, value in zip(rows, values, strict=True):
            row[: len(value)] = value
        return rows

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the loss summed over structures with a label; 0 (with a graph) without any."""
        raw, n_atoms = outputs["prediction"], outputs["n_atoms"]
        scale, n = outputs["scale"], outputs["n_atoms"].double()
        wanted = (targets[:, ENERGY] - outputs["baseline"]) / scale
        terms = {"energy": ((raw / n_atoms.to(raw))[:, None], (wanted / n)[:, None])}
        if "forces" in outputs:
            forces = outputs["forces"].flatten(1)
            label = torch.full_like(forces, math.nan, dtype=torch.float64)
            known = targets[:, FORCES:][:, : forces.shape[1]]
            label[:, : known.shape[1]] = known
            terms["forces"] = forces, label / scale[:, None]
        if "virial" in outputs:
            volume = outputs["volume"]
            label = targets[:, STRESS] * (volume / scale / n)[:, None]
            # a molecule or a slab has no volume, and no stress
            label = torch.where(volume[:, None] > 0, label, torch.full_like(label, math.nan))
            terms["stress"] = outputs["virial"].flatten(1) / n_atoms.to(raw)[:, None], label
        total = raw.sum() * 0
        counted = torch.zeros_like(n_atoms, dtype=torch.bool)
        for name, (value, label) in terms.items():
            present = torch.isfinite(label)
            if self._weights[name] == 0 or not present.any():
                continue
            function = ELEMENTWISE[str(self._config["loss"])]
            zero = torch.zeros((), dtype=value.dtype, device=value.device)
            errors = function(value, torch.where(present, label, zero).to(value), reduction="none")
            means = torch.where(present, errors, zero).sum(1) / present.sum(1).clamp(min=1)
            total = total + self._weights[name] * means.sum()
            counted |= present.any(1)
        return LossSum(total, int(counted.sum()))

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the rows in the units of the target, with the number of atoms."""
        scale, n_atoms = outputs["scale"], outputs["n_atoms"]
        energy = outputs["prediction"].double() * scale + outputs["baseline"]
        forces = outputs.get("forces")
        width = FORCES + (0 if forces is None else 3 * forces.shape[1])
        rows = energy.new_full((len(energy), width), math.nan)
        rows[:, N_ATOMS], rows[:, ENERGY] = n_atoms.double(), energy
        if "virial" in outputs:
            volume = outputs["volume"]
            per_volume = torch.where(volume > 0, scale / volume, torch.full_like(scale, math.nan))
            rows[:, STRESS] = outputs["virial"].double().flatten(1) * per_volume[:, None]
        if forces is not None:
            real = torch.arange(forces.shape[1], device=forces.device) < n_atoms[:, None]
            values = forces.double() * scale[:, None, None]
            values = torch.where(real[..., None], values, torch.full_like(values, math.nan))
            rows[:, FORCES:] = values.flatten(1)
        return rows

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: (samples,) energies; lists ``forces``, ``stress`` if predicted."""
        found: dict[str, Any] = {
            "prediction": torch.tensor([row[ENERGY] for row in predictions], dtype=torch.float64)
        }
        sizes = [int(row[N_ATOMS]) for row in predictions]
        if any(len(row) > FORCES for row in predictions):
            found["forces"] = [
                row[FORCES : FORCES + 3 * n].reshape(n, 3)
                for row, n in zip(predictions, sizes, strict=True)
            ]
        if "stress" in self.derivatives or any(np.isfinite(r[STRESS]).any() for r in predictions):
            found["stress"] = [row[STRESS].reshape(3, 3) for row in predictions]
        return found

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return MAE and RMSE: energy in meV/atom, forces in meV/A, stress in meV/A^3.

        They are thousandths of the target's unit where that is not eV; forces and stress are there
        if the task has labels for them.
        """
        width = min(predictions.shape[1], targets.shape[1])
        errors = 1000 * (predictions[:, :width] - targets[:, :width])
        found = _errors("energy", errors[:, ENERGY] / predictions[:, N_ATOMS])
        for name, part in (("forces", slice(FORCES, None)), ("stress", STRESS)):
            if name in self.derivatives:
                found |= _errors(name, errors[:, part])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return which derivatives had labels."""
        return {"derivatives": list(self.derivatives), "trained": self.trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `fit_targets` saw."""
        self.derivatives = tuple(state["derivatives"])
        self.trained = bool(state.get("trained", True))


def _errors(name: str, errors: np.ndarray) -> dict[str, float]:
    present = errors[np.isfinite(errors)]
    if present.size == 0:
        return {f"{name}_mae": math.nan, f"{name}_rmse": math.nan}
    return {
        f"{name}_mae": float(np.abs(present).mean()),
        f"{name}_rmse": float(np.sqrt((present**2).mean())),
    }


def _gaps_of(name: str, present: Sequence[np.ndarray]) -> list[str]:
    """Say how many structures lack a quantity, or parts of it; nothing where all lack it."""
    none = sum(not p.any() for p in present)
    some = sum(p.any() and not p.all() for p in present)
    if none == len(present):
        return []
    found = {f"have no {name}": none, f"have NaN among their {name}": some}
    return [f"{n} {what}" for what, n in found.items() if n]


def _parts_of(target: Any) -> list[np.ndarray | None]:
    """Return energy, forces and stress of a label in the right shapes; None for what it lacks."""
    label = target if isinstance(target, Mapping) else {"energy": target}
    unknown = set(label) - {"energy", *DERIVATIVES}
    if unknown:
        raise DataError(unknown_name("label", min(unknown), ["energy", *DERIVATIVES]))
    present = {k: np.asarray(v, float) for k, v in label.items() if not is_missing(v)}
    for name, values in present.items():
        _check_shape(name, values)
    return [present.get(name) for name in ("energy", "forces", "stress")]


def _check_shape(name: str, values: np.ndarray) -> None:
    if name == "energy" and values.size != 1:
        raise DataError(f"An energy is one number, got an array of shape {values.shape}.")
    if name == "forces" and (values.ndim != 2 or values.shape[1] != 3):
        raise DataError(f"Forces are (atoms, 3), got {values.shape}.")
    if name == "stress" and values.shape != (3, 3):
        raise DataError(f"A stress is (3, 3), got {values.shape}.")

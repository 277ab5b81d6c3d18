"""Structures: coordinates of all atoms, with AlphaFold's losses."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from molfun._shapes import Float64
from molfun.errors import ConfigError, DataError
from molfun.protein import CA, UNKNOWN_RESIDUE, Protein
from molfun.sample import is_missing
from molfun.strict import Configured
from molfun.structures.rows import (
    ATOMS,
    CHAIN,
    KEPT,
    KIND,
    NUMBER,
    PLACE,
    QUALITY,
    TYPE,
    WIDTH,
    known_structure,
    own_rows,
    predicted_structure,
    rows_of,
)
from molfun.structures.scoring.identical import renamed
from molfun.structures.scoring.in_place import NAMES, measured, scores_in_place
from molfun.tasks.base import LossOfTerms, LossSum, Task
from molfun.text import counted

logger = logging.getLogger(__name__)

RESOLUTIONS = (0.1, 3.0)
"""Resolutions in angstrom for which losses of confidence count (AlphaFold 2, 1.9.6 and 1.9.10)."""
CONFIDENCE = ("plddt", "experimentally_resolved", "tm")
"""Terms that count only for these resolutions."""
DEFAULTS: Mapping[str, float] = {
    "fape": 1.0,
    "supervised_chi": 1.0,
    "distogram": 0.3,
    "masked_msa": 2.0,
    "plddt": 0.01,
    "experimentally_resolved": 0.01,
    "tm": 0.1,
    "violation": 0.0,
}
"""Weights of AlphaFold's fine-tuning (AlphaFold 2, supplement, 1.9 and 1.11.4). The violation has
weight 1 there; from random weights it hinders, so that it is left to the user."""


class StructureTerms(Protocol):
    """Losses of a backbone on coordinates."""

    names: tuple[str, ...]
    """Names of the terms that it can compute."""

    def __call__(
        self,
        outputs: Mapping[str, torch.Tensor],
        row: int,
        label: Mapping[str, torch.Tensor],
        wanted: Sequence[str],
        *,
        clamped: float,
    ) -> dict[str, torch.Tensor]:
        """Return terms of one structure of a batch, without weights.

        Parameters
        ----------
        outputs
            Outputs of the head for the batch.
        row
            Place of the structure in it.
        label
            ``aatype``, ``residue_index`` and ``chain_index`` (residues,), ``positions`` (residues,
            37, 3) in angstrom, ``mask`` (residues, 37) and ``resolution`` () of the structure. Of
            the structure before a crop ``all_positions``, ``all_mask``, ``all_chain``, ``all_kind``
            and ``all_place`` (`molfun.structures.scoring.identical.copies`), and ``kept``, the rows
            of the residues in it.
        wanted
            Names of the terms.
        clamped
            Share of the backbone's FAPE that is clamped.
        """


class StructureTask(Configured, Task):
    """Predict the coordinates of a protein.

    The loss of a structure is AlphaFold's: the weighted sum of its terms, times the square root of
    the number of residues; the loss of a batch is the sum over its structures. A label is a
    `molfun.protein.Protein` with the residues of the sample; atoms that it lacks count nowhere.

    Parameters
    ----------
    fape
        Weight of the frame-aligned point error, half of it of the backbone and half of all atoms.
    supervised_chi
        Weight of the loss of torsion angles.
    distogram
        Weight of the cross entropy of binned C-beta distances.
    masked_msa
        Weight of the reconstruction of a masked alignment. It counts only where the backbone masks
        one (``mask_msa``).
    plddt, experimentally_resolved, tm
        Weights of the heads of confidence. They count for structures of a resolution from 0.1 to
        3.0 angstrom alone; `tm` needs a preset with a TM head.
    violation
        Weight of the violation of bonds, angles and radii.
    violation_after
        Optimizer steps from which the violation counts.
    clamped_fape
        Share of the backbone's FAPE that is clamped at 10 angstrom. AlphaFold clamps 9 structures
        of 10, drawn at random; the mean over these draws is taken for each structure instead.
    resolution
        Resolution in angstrom to assume for structures without one; None assumes none, and the
        losses of confidence then do not count for them.

    References
    ----------
    Jumper et al. 2021, supplement, 1.9; Ahdritz et al. 2024 (OpenFold).

    Examples
    --------
    >>> StructureTask(violation=1.0, violation_after=1000).config_dict["violation"]
    1.0
    """

    name = "structure"
    default_head = "structure"
    only_default_head = True
    higher_is_better = frozenset({"lddt_ca", "tm_score", "gdt_ts"})
    main_metric = "lddt_ca"
    n_outputs = 1
    numbers_unfitted = True
    labels_from_structure: ClassVar[bool] = True

    def __init__(
        self,
        *,
        fape: float = DEFAULTS["fape"],
        supervised_chi: float = DEFAULTS["supervised_chi"],
        distogram: float = DEFAULTS["distogram"],
        masked_msa: float = DEFAULTS["masked_msa"],
        plddt: float = DEFAULTS["plddt"],
        experimentally_resolved: float = DEFAULTS["experimentally_resolved"],
        tm: float = DEFAULTS["tm"],
        violation: float = DEFAULTS["violation"],
        violation_after: int = 0,
        clamped_fape: float = 0.9,
        resolution: float | None = None,
    ) -> None:
        self.keep_arguments(locals())
        self.weights = {name: float(self._config[name]) for name in DEFAULTS}
        wrong = {k: w for k, w in self.weights.items() if not 0 <= w < math.inf}
        if wrong or not any(self.weights.values()):
            raise ConfigError(
                f"Weights of the loss must be at least 0, and one above it; got {self.weights}."
            )
        if not 0 <= clamped_fape <= 1:
            raise ConfigError(f"clamped_fape must be from 0 to 1, got {clamped_fape}.")
        if violation_after < 0:
            raise ConfigError(f"violation_after must be 0 or more, got {violation_after}.")
        if resolution is not None and not 0 < resolution < math.inf:
            raise ConfigError(f"resolution must be above 0 angstrom, got {resolution}.")
        self.steps = 0
        self.fitted = False
        self._terms: StructureTerms | None = None

    def use(self, terms: StructureTerms) -> None:
        """Take the losses of a backbone."""
        self._terms = terms

    # --- labels ----------------------------------------------------------------------------------

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Count the structures for which the losses of confidence do not count.

        Raises
        ------
        DataError
            If no structure has coordinates, or the loss would be zero for all of them.
        """
        rows = [self.numbers(target) for target in targets if not is_missing(target)]
        rows = [row for row in rows if np.isfinite(own_rows(row)[:, ATOMS]).any()]
        if not rows:
            raise DataError("The training set has no labels: no sample has coordinates.")
        if not self._computed_terms:
            raise DataError(
                f"The loss is zero for all structures: this model does not compute "
                f"{', '.join(self._weighted)}. Weight another term (task_config={{'fape': 1.0}})."
            )
        late = self._config["violation_after"]
        if late and self._computed_terms == ["violation"]:
            raise DataError(
                f"The loss is zero before step {late}: only the violation has a weight, and "
                f"violation_after={late} delays it. Weight another term "
                f"(task_config={{'fape': 1.0}}), or set violation_after to 0."
            )
        self._check_resolutions(rows)
        self.fitted, self.steps = True, 0

    def _check_resolutions(self, rows: Sequence[np.ndarray]) -> None:
        given = np.array([row[0, QUALITY] for row in rows])
        low, high = RESOLUTIONS
        outside = ~_is_sharp(given)
        used = [name for name in self._computed_terms if name in CONFIDENCE]
        if not used or not outside.any():
            return
        text = (
            f"{outside.sum()} of {counted(len(rows), 'structure')} without a resolution from {low} "
            f"to {high} angstrom ({np.isnan(given).sum()} without any): {', '.join(used)} do not "
            f"count for them"
        )
        if outside.all() and not set(self._computed_terms) - set(CONFIDENCE):
            raise DataError(
                f"The loss is zero for all structures: {text}. Give --resolution ANGSTROM "
                f"(task_config={{'resolution': ...}}) for structures without one, or weight "
                f"another term."
            )
        logger.warning(
            "%s. Give --resolution ANGSTROM (task_config={'resolution': ...}) to assume one for "
            "structures without, or set these weights to 0.",
            text,
        )

    def numbers(self, target: Any) -> np.ndarray:
        """Return a label as (rows, 118), one row per residue.

        Columns are type, number, chain, resolution, kind of the chain, place in it, whether the
        sample has the residue, and 37 atoms. Coordinates are NaN where there are none; no row
        stands for no label.

        Raises
        ------
        DataError
            If it is no `Protein`.
        """
        if target is None:
            return np.full((0, WIDTH), math.nan)
        if isinstance(target, np.ndarray) and target.ndim == 2 and target.shape[1] == WIDTH:
            return target.astype(np.float64)
        if not isinstance(target, Protein):
            raise DataError(
                f"The label of a structure is a Protein with coordinates "
                f"(molfun.data.read_structure), got {type(target).__name__}."
            )
        assumed = self._config["resolution"]
        resolution = assumed if target.resolution is None else target.resolution
        rows = rows_of(target)
        rows[:, QUALITY] = math.nan if resolution is None else resolution
        return rows

    def count(self, target: Any) -> int:
        """Return 1 for a structure with coordinates, 0 for another."""
        return int(np.isfinite(own_rows(self.numbers(target))[:, ATOMS]).any())

    def encode(self, targets: Sequence[Any], lengths: Sequence[int] | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return the rows of a batch, padded with NaN: (batch, rows, 118) float64."""
        return torch.from_numpy(self.join([self.numbers(t) for t in targets]))

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Join rows of structures, padded with NaN to the longest."""
        longest = max((len(v) for v in values), default=0)
        rows = np.full((len(values), longest, WIDTH), math.nan)
        for row, value in zip(rows, values, strict=True):
            row[: len(value)] = value
        return rows

    # --- loss ------------------------------------------------------------------------------------

    @property
    def _weighted(self) -> list[str]:
        return [name for name, weight in self.weights.items() if weight > 0]

    @property
    def _computed_terms(self) -> list[str]:
        """Terms with a weight that the backbone computes; presets may lack some."""
        known = DEFAULTS if self._terms is None else self._terms.names
        return [name for name in self._weighted if name in known]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Terms that count now."""
        late = self.steps < self._config["violation_after"]
        return tuple(name for name in self._weighted if not (late and name == "violation"))

    @property
    def term_names(self) -> tuple[str, ...]:
        """Terms of the loss that its backbone computes with these weights."""
        return tuple(f"{name}_loss" for name in self._computed_terms)

    def after_step(self, steps: int) -> None:
        """Count an optimizer step, on which the violation depends."""
        self.steps = steps

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the loss summed over the structures with coordinates, and each of its terms.

        Raises
        ------
        DataError
            If a label has other residues than the sample.
        """
        total, sums, n = outputs["prediction"].sum() * 0.0, dict[str, tuple[float, int]](), 0
        for row, label in enumerate(self._labels(outputs, targets)):
            if not bool(label["mask"].any()):
                continue
            found = self._computed(outputs, row, label)
            # each structure by its own length: AlphaFold 2, supplement, 1.9
            scale = math.sqrt(len(label["aatype"]))
            total = total + scale * sum(self.weights[k] * value for k, value in found.items())
            for name, value in found.items():
                if name not in CONFIDENCE or _is_sharp(label["resolution"]):
                    summed, count = sums.get(f"{name}_loss", (0.0, 0))
                    sums[f"{name}_loss"] = summed + float(value.detach()), count + 1
            n += 1
        return LossOfTerms(total, n, sums)

    def _computed(
        self, outputs: Mapping[str, torch.Tensor], row: int, label: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if self._terms is None:
            raise ConfigError(
                "The task 'structure' needs a backbone that predicts structures. Use "
                "backbone='openfold'."
            )
        # losses are computed in float32 whatever the precision of the model
        with torch.autocast(outputs["prediction"].device.type, enabled=False):
            return self._terms(
                outputs, row, label, self.wanted, clamped=float(self._config["clamped_fape"])
            )

    def _labels(
        self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor
    ) -> Sequence[dict[str, torch.Tensor]]:
        lengths = outputs["mask"].sum(1).long().tolist()
        return [
            self._label(rows, n, outputs["aatype"][i, :n])
            for i, (rows, n) in enumerate(zip(targets, lengths, strict=True))
        ]

    @staticmethod
    def _label(rows: torch.Tensor, n: int, aatype: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = rows[torch.isfinite(rows[:, TYPE])]
        kept = torch.nonzero(rows[:, KEPT] == 1)[:, 0]
        own = rows[kept]
        if len(own) not in (0, n) or (len(own) and not bool((own[:, TYPE] == aatype).all())):
            raise DataError(
                f"A label has other residues than its sample ({len(own)} against {n}). The label "
                f"must be the same protein in the same crop."
            )
        places = rows[:, ATOMS].reshape(-1, 37, 3)
        known = torch.isfinite(places).all(-1)
        positions, mask = torch.where(known[..., None], places, 0.0).float(), known.float()
        # openfold takes 0 for a resolution that is not known, which lies outside of the range
        quality = own[:1, QUALITY].nan_to_num(0.0).float()
        return {
            "aatype": own[:, TYPE].long(),
            "residue_index": own[:, NUMBER].long(),
            "chain_index": own[:, CHAIN].long(),
            "positions": positions[kept],
            "mask": mask[kept],
            "resolution": quality.reshape(-1),
            "all_positions": positions,
            "all_mask": mask,
            "all_chain": rows[:, CHAIN].long(),
            "all_kind": rows[:, KIND].long(),
            "all_place": rows[:, PLACE].long(),
            "kept": kept,
        }

    # --- predictions and metrics -----------------------------------------------------------------

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (batch, residues, 118): as labels, with pLDDT in the place of the resolution."""
        exists = outputs["atom_mask"].bool()[..., None]
        positions = outputs["prediction"].double()
        places = torch.where(exists, positions, torch.full_like(positions, math.nan))
        rows = positions.new_full((*positions.shape[:2], WIDTH), math.nan)
        for column, name in ((TYPE, "aatype"), (NUMBER, "residue_index")):
            rows[..., column] = outputs[name].double()
        rows[..., QUALITY] = outputs["plddt"].double()
        rows[..., KEPT] = 1.0
        rows[..., ATOMS] = places.flatten(2)
        return rows.masked_fill(outputs["mask"][..., None] == 0, math.nan)

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: (samples,) mean pLDDT; lists ``positions`` and ``plddt``.

        Positions are (residues, 37, 3) in angstrom, NaN for atoms that a residue does not have.
        """
        own = [row[np.isfinite(row[:, TYPE])] for row in predictions]
        plddt = [row[:, QUALITY] for row in own]
        means = [float(p.mean()) if len(p) else math.nan for p in plddt]
        return {
            "prediction": torch.tensor(means, dtype=torch.float64),
            "positions": [row[:, ATOMS].reshape(-1, 37, 3) for row in own],
            "plddt": plddt,
        }

    def combined(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the structure of the highest mean pLDDT: a mean of structures is no protein."""
        # NaN, of a broken model, goes before every number in `argmax`
        return predictions[int(np.nan_to_num(self._plddt(predictions), nan=-1.0).argmax())]

    def deviation(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the standard deviation of the mean pLDDT, ()."""
        return np.asarray(np.std(self._plddt(predictions), ddof=1))

    def _plddt(self, predictions: Sequence[np.ndarray]) -> Float64[np.ndarray, "models"]:
        found: np.ndarray = self.present(predictions)["prediction"].numpy()
        return found

    def is_finite(self, prediction: np.ndarray, target: np.ndarray) -> bool:
        """Return whether every residue of known type and CA atom has a predicted one."""
        atoms = slice(ATOMS.start + 3 * CA, ATOMS.start + 3 * CA + 3)
        own = own_rows(target)
        known = np.isfinite(own[:, atoms]).all(-1) & (own[:, TYPE] != UNKNOWN_RESIDUE)
        return bool(np.isfinite(prediction[: len(own)][known][:, atoms]).all())

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return the means over structures of `molfun.structures.scoring.in_place.NAMES`.

        A structure counts for the metrics that its known coordinates define: one with fewer than
        three CA atoms has no superposition, and no metric.
        """
        found: dict[str, list[float]] = {name: [] for name in NAMES}
        for one, label in zip(predictions, targets, strict=True):
            if not len(own_rows(label)):
                continue
            known = known_structure(label)
            # identical chains in the order that the losses take as well
            predicted = predicted_structure(one, known)
            scores = scores_in_place(predicted, renamed(known, predicted))
            for name in measured(known):
                found[name].append(scores[name])
        return {name: float(np.mean(of)) if of else math.nan for name, of in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return whether it has been trained, and the steps on which its terms depend."""
        return {"fitted": self.fitted} | ({"steps": self.steps} if self.steps else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.fitted, self.steps = bool(state["fitted"]), int(state.get("steps", 0))


def _is_sharp(resolution: Any) -> Any:
    """Return for which resolutions in angstrom the losses of confidence count."""
    low, high = RESOLUTIONS
    return (resolution >= low) & (resolution <= high)

"""Models of atoms in space: their input, the energies they predict by themselves, their units.

PET is the only one so far; this module does not need metatrain. An energy that a model was trained
on is called a *target*, as in metatrain.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from molfun.backbones.base import Backbone, Features, Run
from molfun.backbones.own_heads import OwnHeads
from molfun.backbones.pet.baselines import (
    LEAST_SCALE,
    describe_baseline,
    energy_of,
    forces_of,
    indistinct,
    symbol_of,
)
from molfun.backbones.pet.label_checks import doubts
from molfun.backbones.planning import PositionCosts
from molfun.backbones.tensor_input import TensorInput
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, in_batches
from molfun.text import unknown_name

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""Number of structures whose labels are compared with predictions before training."""
AT_ONCE = 256
"""Atoms per batch in that comparison (but at least one structure), which bounds its memory."""
KEPT_BYTES = 256 * 2**20
"""Bytes of neighbour lists that are kept, so that later epochs do not search again."""
OVERLAP = 0.4
"""Distance in angstrom below which two atoms are probably one: the shortest bond, of H2, has 0.74.
"""
DIRECTED = (3, 6, 9)
"""Sizes of labels that may be vectors or tensors, whose components turn with the structure."""
WARNINGS = 5
"""Overlaps that are logged; a broken data set would log thousands."""
SHOWN = 3
"""Structures that are named per element that the model does not know."""
NOT_NUMBERS = "has positions or a cell that are not finite numbers"


@dataclass(frozen=True)
class Readout:
    """The target that a backbone returns as ``properties``, and its derivatives.

    Parameters
    ----------
    target
        Name of the target (``"energy"``, ``"energy/pbe0"``).
    forces, stress
        Whether to add forces (minus the gradient with respect to positions) and stress (the
        gradient with respect to strain, divided by the volume).
    modules
        Groups of the backbone's modules that count as the head, and train with it.
    """

    target: str
    forces: bool
    stress: bool
    modules: tuple[str, ...]


class AtomisticBackbone(Backbone, OwnHeads, TensorInput, PositionCosts):
    """A pretrained model of atoms, with targets (energies) that it was trained on.

    A sample holds an ``ase.Atoms``. A batch is packed: the atoms of all samples are concatenated,
    as are their pairs, and ``shape`` (batch, 2) has the numbers of atoms and pairs of each sample.

    ``properties`` of the output are the target chosen by `use_readout`, in the network's own scale.
    The physical value of a derivative is ``scale * value``, that of the energy ``scale * value +
    baseline``. Keys: ``energy`` (batch,), ``baseline`` (batch,) float64 in the unit of the target,
    ``scale`` (batch,) float64, ``n_atoms`` (batch,); if asked for, ``forces`` (batch, atoms, 3);
    and for the stress ``virial`` (batch, 3, 3), the gradient with respect to strain, and ``volume``
    (batch,), which is 0 for structures that are not periodic in all directions.
    """

    inputs = ("atoms",)
    takes_preset = False
    default_head = "energy"
    names_weights = False
    checks_quickly = True
    length_power: ClassVar[float] = 1.0
    step_seconds = 0.03

    atomic_types: tuple[int, ...]
    """Atomic numbers that the model knows."""
    readout: Readout | None = None
    directed: bool = False
    """True if labels have directions, so that a rotated structure would need another label."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, Features] = {}
        self._kept_bytes = 0
        self._overlaps = 0

    # --- targets of its own ----------------------------------------------------------------------

    @property
    def own_head(self) -> str | None:
        """``"energy"`` if the model has an energy, else None."""
        return "energy" if self.targets else None

    @property
    @abstractmethod
    def targets(self) -> dict[str, str]:
        """Targets that the model predicts by itself, and their units."""

    @property
    @abstractmethod
    def head_modules(self) -> tuple[str, ...]:
        """Groups of modules that make up the head of a target."""

    @abstractmethod
    def add_target(
        self, name: str, *, unit: str | None = None, inherit: str | None = None, keep_old: bool
    ) -> None:
        """Add another energy with a head of its own to the model."""

    @abstractmethod
    def fit_baseline(self, target: str, samples: Sequence[Sample], run: Run) -> None:
        """Fit the energy of each element, and the scale of the remainder, to labels.

        If the network already predicts something sensible (its head was inherited, or it has
        learned from forces), head and scale are kept, and the element energies are fitted to the
        difference between labels and predictions.
        """

    @abstractmethod
    def per_ev(self, unit: str) -> float:
        """Return the value of one eV in a unit of energy."""

    @abstractmethod
    def set_scale(self, target: str, scale: float) -> None:
        """Set the scale of an energy that has no baseline yet."""

    @abstractmethod
    def baseline_of(self, target: str) -> tuple[dict[int, float], float] | None:
        """Return the energy of each element and the scale of the remainder; None if not fitted."""

    def use_readout(
        self,
        target: str,
        *,
        forces: bool = False,
        stress: bool = False,
        modules: Sequence[str] | None = None,
    ) -> None:
        """Choose the target that ``properties`` hold; see `Readout`.

        By default all head modules of the target belong to the head.

        Raises
        ------
        ConfigError
            If the model has no such target or module.
        """
        if target not in self.targets:
            raise ConfigError(unknown_name("target", target, self.targets))
        chosen = self.head_modules if modules is None else tuple(modules)
        wrong = [name for name in chosen if name not in self.head_modules]
        if wrong:
            raise ConfigError(unknown_name("head module", wrong[0], self.head_modules))
        self.readout = Readout(target, forces, stress, chosen)

    @contextlib.contextmanager
    def reading(self, target: str, *, forces: bool, stress: bool) -> Iterator[None]:
        """Return another target, or other derivatives, as ``properties`` within a block."""
        kept = self.readout
        modules = None if kept is None else kept.modules
        self.use_readout(target, forces=forces, stress=stress, modules=modules)
        try:
            yield
        finally:
            self.readout = kept

    def serve(self, heads: Sequence[Any]) -> None:
        """Choose the energy that the own head reads, and note whether other labels are directed.

        Labels of 3, 6 or 9 numbers may be vectors or tensors.
        """
        sizes = {math.prod(getattr(part.task, "shape", ()) or (0,)) for part in heads}
        self.directed = bool(sizes & set(DIRECTED))
        for part in heads:
            if part.head.in_backbone:
                self.use_readout(**part.head.readout(self.targets, part.task))

    # --- input -----------------------------------------------------------------------------------

    @abstractmethod
    def neighbours(self, atoms: Any) -> Features:
        """Find the neighbour pairs of a structure.

        Returns ``pairs`` (pairs, 5) int32 (both atoms, three cell shifts), ``vectors`` (pairs, 3)
        in angstrom, ``cell`` (1, 3, 3) and ``pbc`` (1, 3).
        """

    def fit_inputs(self, samples: Iterable[Sample], run: Run) -> None:
        """Compare labels with predictions, and fit the baseline if the energy has none yet.

        Warns of labels that are probably in another unit or of another level of theory.
        """
        if self.readout is None:
            if self.directed:
                logger.warning(
                    "Labels of 3, 6 or 9 numbers have directions, and this head is not "
                    "equivariant: structures are not turned at random in training, and what is "
                    "predicted holds for orientations such as those of the training set."
                )
            return
        target, samples = self.readout.target, (s for s in samples if s.atoms is not None)
        # the rest of the data set is only read if a baseline has to be fitted
        some = list(itertools.islice(samples, LOOKED_AT))
        for doubt in doubts(self, run, target, some):
            logger.warning("%s", doubt)
        if self.baseline_of(target) is None:
            self._fit_baseline_or_scale(target, [*some, *samples], run)

    def _fit_baseline_or_scale(self, target: str, samples: Sequence[Sample], run: Run) -> None:
        """Fit the baseline to energies; if there are none, take the scale from forces."""
        labelled = [s for s in samples if energy_of(s) is not None]
        if labelled:
            self.fit_baseline(target, labelled, run)
            logger.info("Baseline of %s", describe_baseline(self, target))
            mixed = indistinct(labelled)
            if mixed is not None:
                logger.warning("The energies of %r are of %s", target, mixed)
            return
        logger.warning("Baseline of %s", describe_baseline(self, target))
        # forces are the derivative of scale * network, so their root mean square is the scale at
        # which the network's own forces are about 1
        squares = [f.ravel() ** 2 for s in samples if (f := forces_of(s)) is not None]
        scale = float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else 0.0
        if scale > LEAST_SCALE:
            self.set_scale(target, scale)

    def predicted(
        self,
        samples: Sequence[Sample],
        run: Run,
        target: str,
        *,
        forces: bool = False,
        stress: bool = False,
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Predict energies, forces and stress with `run`, in the unit of the target.

        Returns
        -------
        energies, forces, stress
            (samples,); and, if asked for, (atoms, 3) and (3, 3) per structure. The stress of a
            structure without a volume is infinite or NaN.
        """
        energies: list[float] = []
        found: list[np.ndarray] = []
        tensors: list[np.ndarray] = []
        with self.reading(target, forces=forces, stress=stress):
            for batch in in_batches(samples, lambda sample: len(sample.atoms), AT_ONCE):
                given = dict(run(batch, ("properties",)).properties or {})
                # in float64: a baseline of 40,000 eV leaves float32 a resolution of 4 meV
                energies += (given["energy"].double() * given["scale"] + given["baseline"]).tolist()
                if forces:
                    scaled = given["forces"].double() * given["scale"][:, None, None]
                    rows = zip(scaled.cpu().numpy(), given["n_atoms"].tolist(), strict=True)
                    found += [row[:n] for row, n in rows]
                if stress:
                    per_volume = given["scale"] / given["volume"]
                    tensors += [
                        *(given["virial"].double() * per_volume[:, None, None]).cpu().numpy()
                    ]
        return np.array(energies), found, tensors

    def check(self, sample: Sample) -> None:
        """Refuse a sample without a structure, an empty one, or one with unknown elements.

        Raises
        ------
        DataError
            If there is such a problem; the text names the sample and the elements.
        """
        self._check_form(sample)
        unknown = self._unknown(sample)
        if unknown:
            raise DataError(f"{sample.shown} has {_symbols(unknown)}, {self._of_elements(unknown)}")

    def problems(self, samples: Iterable[Sample]) -> tuple[int, list[str]]:
        """Count and list samples that the model cannot take, each unknown element once."""
        n = 0
        found: list[str] = []
        places: dict[int, list[str]] = {}
        # a missing element often concerns thousands of structures: one line, not one per structure
        for sample in samples:
            try:
                self._check_form(sample)
            except DataError as error:
                n, found = n + 1, [*found, str(error)]
                continue
            unknown = self._unknown(sample)
            n += bool(unknown)
            for number in unknown:
                places.setdefault(number, []).append(sample.shown)
        if places:
            texts = [
                f"{_symbols([number])} in {len(names)} structure{'s' * (len(names) > 1)} "
                f"({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
                for number, names in sorted(places.items())
            ]
            found.insert(0, f"{'; '.join(texts)}, {self._of_elements(sorted(places))}")
        return n, found

    def _unknown(self, sample: Sample) -> list[int]:
        return sorted(set(sample.atoms.numbers.tolist()) - set(self.atomic_types))

    def _of_elements(self, unknown: Sequence[int]) -> str:
        """Return the end of an error: what to do about elements that the model does not know."""
        every = sorted({*self.atomic_types, *unknown})
        numbers = ", ".join(map(str, every))
        return (
            f"which this model does not know (it knows {_symbols(self.atomic_types)}). No element "
            f"can be added to a trained {self.display_name}. A new one, without weights, knows "
            f"those of its training set on the command line (leave out --weights), or the ones you "
            f"name: backbone_config={{'atomic_types': [{numbers}]}} "
            f"(backbone_config.atomic_types=[{numbers.replace(' ', '')}])."
        )

    def _check_form(self, sample: Sample) -> None:
        atoms = _atoms_of(sample)
        if len(atoms) == 0:
            raise DataError(f"{sample.shown} has no atoms.")
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise DataError(f"{sample.shown} {NOT_NUMBERS}.")
        if atoms.pbc.any() and atoms.cell.rank < int(atoms.pbc.sum()):
            raise DataError(f"{sample.shown} is periodic, but its cell has no volume.")
        label = sample.target
        forces = label.get("forces") if isinstance(label, Mapping) else None
        if forces is not None and np.shape(forces) != (len(atoms), 3):
            raise DataError(
                f"{sample.shown} has {len(atoms)} atoms, and forces of shape {np.shape(forces)}."
            )

    def positions(self, sample: Sample) -> int:
        """Return the number of atoms and of their pairs."""
        return int(self.featurize(sample)["shape"].sum())

    def block_flops(self, sample: Sample) -> float:
        """Return those of the energy, and of the forces, which are its gradient."""
        return 3 * super().block_flops(sample)

    def featurize(self, sample: Sample) -> Features:
        """Return the atoms and neighbour pairs of one structure.

        ``types`` (atoms,), ``positions`` (atoms, 3) in angstrom, ``cell`` (1, 3, 3), ``pbc``
        (1, 3), ``pairs``, ``vectors`` and ``shape`` (1, 2).

        Raises
        ------
        DataError
            As in `check`.
        """
        self.check(sample)
        # by content: the same structure may be in several data sets, under several names
        key = sample.content_key()
        if key in self._kept:
            return self._kept[key]
        atoms = sample.atoms
        features = self.neighbours(atoms)
        self._warn_of_overlap(sample, features["vectors"])
        features |= {
            "types": torch.as_tensor(atoms.numbers, dtype=torch.int32),
            # float64, and cast in the forward pass: the type of the weights may change after this
            "positions": torch.tensor(atoms.positions, dtype=torch.float64),
            "shape": torch.tensor([[len(atoms), len(features["pairs"])]]),
        }
        size = sum(t.numel() * t.element_size() for t in features.values())
        # the first structures are kept and none is dropped: with an order that changes per epoch,
        # replacing entries would find no more of them
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[key] = features
            self._kept_bytes += size
        return features

    def _warn_of_overlap(self, sample: Sample, vectors: torch.Tensor) -> None:
        closest = float(vectors.norm(dim=-1).min()) if len(vectors) else OVERLAP
        if closest < OVERLAP and self._overlaps < WARNINGS:
            self._overlaps += 1
            logger.warning("%s has atoms %.2f angstrom apart.", sample.shown, closest)

    def collate(self, features: Sequence[Features]) -> Features:
        """Pack structures: concatenate all atoms, and all pairs."""
        return {name: torch.cat([f[name] for f in features]) for name in features[0]}

    def split(self, batch: Features) -> list[Features]:
        """Return the structures of a packed batch: the inverse of `collate`."""
        atoms, pairs = batch["shape"].T.tolist()
        per_pair = ("pairs", "vectors")
        parts = {
            name: tensor.split(pairs if name in per_pair else atoms)
            if name in (*per_pair, "types", "positions")
            else tensor.split(1)
            for name, tensor in batch.items()
        }
        return [{n: p[i] for n, p in parts.items()} for i in range(len(atoms))]


def _atoms_of(sample: Sample) -> Any:
    if sample.atoms is None:
        raise DataError(
            f"{sample.shown} has neither atoms nor features of them. Read a file with "
            f"AtomsDataset.from_files(path), or pass ase.Atoms."
        )
    return sample.atoms


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(map(symbol_of, numbers))

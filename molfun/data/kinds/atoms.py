"""Structures of atoms with energies, forces, stress or another label."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from molfun.config import Settings, option
from molfun.data.kinds.base import CLASSES, DataKind, Labels
from molfun.errors import DataError

if TYPE_CHECKING:
    from molfun.data.atoms import AtomsDataset
    from molfun.data.base import SampleDataset

logger = logging.getLogger(__name__)

PANEL, MODEL = "Atoms", "Energies"
LABEL_KEYS = ("energy_key", "forces_key", "stress_key", "virial_key", "target_key")
WEIGHTS = ("energy_weight", "forces_weight", "stress_weight")


class AtomsSettings(Settings):
    """Names of labels in files of structures, and which energy of a model learns them."""

    energy_key: str | None = option(
        None, "Name of the energies.", panel=PANEL, shown="energy", again=True
    )
    forces_key: str | None = option(
        None, "Name of the forces.", panel=PANEL, shown="forces", again=True
    )
    stress_key: str | None = option(
        None, "Name of the stress.", panel=PANEL, shown="stress", hidden=True, again=True
    )
    virial_key: str | None = option(
        None, "Name of virials (eV), read as stress = -virial / volume.", panel=PANEL,
        shown="none", hidden=True, again=True,
    )  # fmt: skip
    target_key: str | None = option(
        None, "Name of another label, of a structure or of each atom.", panel=PANEL, hidden=True,
        again=True, of_head=True,
    )  # fmt: skip
    forces: bool = option(True, "Read forces.", yaml_only=True)
    stress: bool = option(True, "Read the stress.", yaml_only=True)
    energy_unit: str | None = option(None, "Unit of the energies.", yaml_only=True)
    new_target: str | None = option(
        None, "Energy to train, made if the model lacks it: energy/pbe0.", panel=MODEL, hidden=True,
        of_model=True,
    )  # fmt: skip
    inherit: str | None = option(
        None, "Energy whose heads a new one starts from.", panel=MODEL, shown="random",
        hidden=True,
    )  # fmt: skip
    keep_targets: bool = option(True, "Keep the older energies of the model.", yaml_only=True)
    old_data: str | None = option(
        None, "Structures with an older energy: its errors before and after.", panel=MODEL,
        hidden=True, path=True,
    )  # fmt: skip
    old_energy_key: str | None = option(
        None, "Name of the energies in --old-data.", panel=MODEL, shown="energy", hidden=True
    )
    energy_weight: float = option(
        1.0, "Weight of energies in the loss.", panel=MODEL, hidden=True, ge=0
    )
    forces_weight: float = option(
        1.0, "Weight of forces in the loss.", panel=MODEL, hidden=True, ge=0
    )
    stress_weight: float = option(
        1.0, "Weight of stress in the loss.", panel=MODEL, hidden=True, ge=0
    )

    @model_validator(mode="after")
    def _begins_from_the_old(self) -> Self:
        if self.inherit is not None and self.new_target is None:
            raise ValueError("inherit is what a new_target begins with: name that as well")
        if self.old_energy_key is not None and self.old_data is None:
            raise ValueError("old_energy_key is a name in old_data: give that file as well")
        if self.old_data is not None and not self.keep_targets:
            raise ValueError("old_data is for an energy that is kept: leave out keep_targets=false")
        return self


class Atoms(DataKind):
    """Structures of atoms in extended-xyz files, or any other that ASE reads."""

    name = "atoms"
    title = "structures of atoms"
    unit = "atoms"
    backbone = "pet"
    beside = "Structures with predicted forces"
    settings = AtomsSettings
    default_batch_size = 16  # metatrain's default
    suffixes = (".xyz", ".extxyz")
    takes_several_files = True
    readers = dict.fromkeys(suffixes, "AtomsDataset.from_files")

    def missing(self, settings: Any) -> str | None:
        """Ask for the files."""
        if settings.data:
            return None
        return "give --data FILE of structures (extended xyz), to train on"

    def problems(self, settings: Any, labels: Labels) -> list[str]:
        """Refuse what the model or the task does not look at."""
        problems, task = [], labels.task
        weights = [name for name in WEIGHTS if getattr(settings, name) != 1.0]
        if weights and task != "energy":
            problems.append(f"{', '.join(weights)}: of the task 'energy'; the task is {task!r}.")
        if settings.old_data is not None and task != "energy":
            problems.append(f"old_data: for the task 'energy'; the task is {task!r}.")
        if settings.split == "identity":
            problems.append("split='identity' is for sequences.")
        if task != "energy" and settings.target_key is None:
            problems.append(
                f"the task {task!r} has one label per structure: name it with --target-key KEY."
            )
        return problems

    def label_of_head(self, labels: Labels) -> str | None:
        """The name of a label, which energies have already."""
        return None if labels.task == "energy" else "target_key"

    def problems_of_heads(self, settings: Any) -> list[str]:
        """Refuse what is for a model with one energy and nothing else."""
        given = [name for name in ("new_target", "old_data") if getattr(settings, name) is not None]
        return [f"{', '.join(given)}: for a model with one head."] if given else []

    def open(
        self,
        settings: Any,
        labels: Labels,
        *,
        like: SampleDataset | None = None,
    ) -> AtomsDataset:
        """Read one file or several."""
        from molfun.data.atoms import AtomsDataset

        keys = {name: getattr(settings, name) for name in LABEL_KEYS}
        dropped = [name for name in ("forces", "stress") if not getattr(settings, name)]
        dataset = AtomsDataset.from_files(
            settings.data or [], **keys, leave_out=dropped, require_target=labels.required
        )
        if settings.target_key is not None:
            _check_label(settings.target_key, dataset, labels)
        return dataset

    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> AtomsDataset:
        """Read structures with the labels of the training set, as far as there are any."""
        from molfun.data.atoms import AtomsDataset

        keys: dict[str, Any] = {k: given.get(k) or trained.get(k) for k in LABEL_KEYS}
        asked = [name for name in LABEL_KEYS if given.get(name) is not None]
        if {"stress_key", "virial_key"} & set(asked):  # one of them takes the place of the other
            keys |= dict.fromkeys({"stress_key", "virial_key"} - set(asked))
        required = labels and trained.get("require_target", True)
        # structures to predict need no labels
        absent = [] if labels else [k.removesuffix("_key") for k in LABEL_KEYS if k not in asked]
        return AtomsDataset.from_files(
            given["data"], **keys, require_target=required, optional=absent
        )

    def holds(self, item: Any) -> bool:
        """Return whether this is an ``ase.Atoms``."""
        return hasattr(item, "get_atomic_numbers")

    def from_items(self, items: Sequence[Any]) -> AtomsDataset:
        """Take structures with the labels that they carry."""
        from molfun.data.atoms import AtomsDataset

        return AtomsDataset.from_atoms(items)

    def backbone_arguments(
        self, settings: Any, parts: Sequence[AtomsDataset | None]
    ) -> dict[str, Any]:
        """Return elements and unit of a new model; a pretrained one has its own."""
        elements = [_elements(part) for part in parts]
        _warn_of_unseen(elements[0], set().union(*elements[1:]))
        if settings.weights is not None:
            return {}
        arguments: dict[str, Any] = {"atomic_types": sorted(set().union(*elements))}
        if settings.energy_unit is not None:
            arguments["unit"] = settings.energy_unit
        return arguments

    def task_arguments(
        self, settings: Any, labels: Labels, dataset: AtomsDataset
    ) -> dict[str, Any]:
        """Return weights of energies, forces and stress, or the shape of another label."""
        if labels.task == "energy":
            return {"loss": settings.loss, **{name: getattr(settings, name) for name in WEIGHTS}}
        if labels.task == "regression" and dataset.label_shape is not None:
            return {"shape": dataset.label_shape.shape}
        return {}

    def files_beside(self, table: Path) -> list[Path]:
        """Return the path of the structures with predicted forces or stress."""
        return [structures_path(table)]

    def write_beside(
        self,
        table: Path,
        result: Mapping[str, Any],
        dataset: AtomsDataset,
        maker: Callable[[], Any],
    ) -> Path | None:
        """Write structures with predicted energy, forces and stress, where there are any."""
        if "forces" not in result and "stress" not in result:
            return None
        from molfun.data.atoms_files import write_predicted

        return write_predicted(structures_path(table), result, dataset.ids, dataset.atoms)


def structures_path(table: Path) -> Path:
    """Return the path of predicted structures next to a table of predictions.

    Examples
    --------
    >>> structures_path(Path("out/q.csv")).name
    'q_structures.xyz'
    """
    return table.with_name(f"{table.stem}_structures.xyz")


def _check_label(key: str, dataset: AtomsDataset, labels: Labels) -> None:
    """Refuse a label whose shape is not that of the task and its level."""
    task, shape = labels.task, dataset.label_shape
    if task in CLASSES:
        return
    label = f"{_first_labelled(dataset)}: {key!r}"
    if shape is None:
        raise DataError(
            f"{label} is no number. Train on classes with --head binary or --head multiclass."
        )
    if task == "energy" and (shape.shape or shape.per_atom):
        raise DataError(
            f"{label} has {shape}, and an energy is one number per structure. Train it with a head "
            f"of its own: --head mlp{' --level residue' * shape.per_atom}."
        )
    if task == "regression" and shape.per_atom != (labels.level == "residue"):
        advice = "add" if shape.per_atom else "leave out"
        raise DataError(
            f"{label} has {shape}: {advice} --level residue (the level of single atoms is called "
            f"after proteins)."
        )


def _first_labelled(dataset: AtomsDataset) -> str:
    """Place of the first structure with a label."""
    samples = map(dataset.__getitem__, range(len(dataset)))
    return next(sample.origin for sample in samples if sample.target is not None)


def _elements(part: AtomsDataset | None) -> set[int]:
    return set() if part is None else {int(n) for atoms in part.atoms for n in atoms.numbers}


def _warn_of_unseen(train: set[int], others: set[int]) -> None:
    """Name elements of validation and test set that the training set does not have."""
    unseen = sorted(others - train)
    if unseen:
        from ase.data import chemical_symbols

        logger.warning(
            "No training structure has %s, which validation or test structures have: what is "
            "predicted for them was not learned from this data.",
            " or ".join(str(chemical_symbols[n]) for n in unseen),
        )

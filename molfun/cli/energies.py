"""Energies of PET in a run: the one that trains, and the report on an older one."""

from __future__ import annotations

from typing import Any

from molfun.cli.console import say
from molfun.data.atoms import AtomsDataset
from molfun.errors import ConfigError
from molfun.models.energies import Forgetting
from molfun.models.structure import MolfunStructureModel

HEAD = "energy"


def use_target(model: MolfunStructureModel, settings: Any) -> None:
    """Choose the energy that the settings name, and add it if the backbone does not have it."""
    if model.head_name != HEAD:
        return
    backbone: Any = model.backbone
    name, inherit = settings.new_target, settings.inherit
    if name is not None and name in backbone.targets and inherit is None:
        model.use_target(name)
    elif name is not None:
        unit, keep_old = settings.energy_unit, settings.keep_targets
        model.add_target(name, inherit=inherit, keep_old=keep_old, unit=unit)
        start = "random weights" if inherit is None else f"those of {inherit}"
        say(f"Target: {name}, whose heads start from {start}")
    target = model.heads[0].head.config_dict["target"]
    ours = backbone.targets[target]
    if settings.energy_unit not in (None, ours):
        raise ConfigError(
            f"The energies are in {settings.energy_unit}, and the target {target!r} of the "
            f"model in {ours}. Convert the labels (forces, too), or add a new_target."
        )


def old_structures(settings: Any) -> AtomsDataset | None:
    """Read structures with an older energy, whose error is measured before and after training."""
    if settings.old_data is None:
        return None
    key = settings.old_energy_key
    return AtomsDataset.from_files(settings.old_data, energy_key=key, require_target=True)


def forgetting(
    settings: Any, model: MolfunStructureModel, old: AtomsDataset | None
) -> list[Forgetting]:
    """Return a report on the older energy, if there are structures with it."""
    return [] if old is None else [Forgetting(model, old, target=settings.inherit)]


def say_units(model: MolfunStructureModel) -> None:
    """Print the unit of energies, unless it is eV, which the documents assume."""
    if model.head_name != HEAD:
        return
    backbone: Any = model.backbone
    unit = backbone.targets[backbone.readout.target]
    if unit != "eV":
        say(f"Energies are in {unit}, forces in {unit}/angstrom, errors in thousandths of these.")

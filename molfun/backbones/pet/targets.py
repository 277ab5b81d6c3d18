"""The targets (energies) of a PET model: their description, baseline and scale."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System, systems_to_torch
from metatrain.composition import Trainer as CompositionTrainer
from metatrain.pet.modules.finetuning import copy_head_weights
from metatrain.scaler import train_or_load_scaler
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import Dataset, DatasetInfo
from metatrain.utils.data.target_info import TargetInfo, get_energy_target_info

from molfun.backbones.pet.baselines import LEAST_SCALE
from molfun.errors import ConfigError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(energy(/[\w-]+)?|mtt::[\w-]+(/[\w-]+)?)")
FIT_BATCH = 256
"""Structures per batch in metatrain's fits."""


@dataclass(frozen=True)
class Baseline:
    """Constants of an energy: ``scale * network + sum of element energies``.

    Parameters
    ----------
    energies
        Energy of each atomic number, float64, in the unit of the target.
    scale
        Factor on the output of the network.
    """

    energies: torch.Tensor
    scale: float


def energy_info(
    unit: str, *, forces: bool = False, stress: bool = False, description: str = ""
) -> TargetInfo:
    """Return metatrain's description of an energy with the wanted derivatives."""
    try:
        return get_energy_target_info(
            "energy",
            {"quantity": "energy", "unit": unit, "description": description},
            add_position_gradients=forces,
            add_strain_gradients=stress,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{unit!r} is no unit of energy that metatrain knows: {error}") from error


def is_energy(info: TargetInfo) -> bool:
    """Return whether a target is an energy with one value per system."""
    return bool(info.quantity == "energy" and info.is_scalar and info.sample_kind == "system")


def describe(info: DatasetInfo) -> dict[str, Any]:
    """Convert a `DatasetInfo` to plain values, which a checkpoint can hold without pickling."""
    return {
        "length_unit": info.length_unit,
        "atomic_types": list(info.atomic_types),
        "targets": {name: _describe(target) for name, target in info.targets.items()},
    }


def _describe(info: TargetInfo) -> dict[str, str]:
    layout = mts.save_buffer(mts.make_contiguous(info.layout.to("cpu")))
    return {
        "quantity": info.quantity,
        "unit": info.unit,
        "description": info.description,
        # shapes and names of blocks; metatensor has a binary form only
        "layout": base64.b64encode(bytes(layout.numpy())).decode("ascii"),
    }


def dataset_info(description: Mapping[str, Any]) -> DatasetInfo:
    """Convert the result of `describe` back to a `DatasetInfo`."""
    return DatasetInfo(
        length_unit=str(description["length_unit"]),
        atomic_types=[int(n) for n in description["atomic_types"]],
        targets={name: _target(t) for name, t in description["targets"].items()},
    )


def _target(description: Mapping[str, str]) -> TargetInfo:
    raw = torch.frombuffer(bytearray(base64.b64decode(description["layout"])), dtype=torch.uint8)
    return TargetInfo(
        layout=mts.load_buffer(raw),
        quantity=description["quantity"],
        unit=description["unit"],
        description=description["description"],
    )


def baseline(model: Any, target: str) -> Baseline:
    """Read baseline and scale of a target from the buffers that are saved with the weights."""
    # not from metatrain's own maps, which are only in step after `sync_tensor_maps`
    composition, scaler = model.additive_models[0], model.scaler
    block = mts.load_buffer(getattr(composition, f"{target}_composition_buffer").cpu()).block()
    energies = torch.zeros(max(model.atomic_types) + 1, dtype=torch.float64)
    energies[block.samples.column("center_type").long()] = block.values.reshape(-1).double()
    scales = mts.load_buffer(getattr(scaler, f"{target}_scaler_buffer").cpu()).block().values
    return Baseline(energies, float(scales.reshape(-1)[0]))


def fit_baseline(model: Any, target: str, atoms: Sequence[Any], energies: Sequence[float]) -> None:
    """Fit the baseline and the scale of a new target to labels, by metatrain's own fits."""
    # the baseline first: the scale is that of labels less their baseline
    data = Dataset.from_dict({"system": [system_of(a) for a in atoms], target: _labels(energies)})
    with _fitting(model, target):
        _fit_composition(model, data, {})
        _fit_scale(model, data, {})
        if not baseline(model, target).scale > LEAST_SCALE:
            logger.warning(
                "The energies of %r are no more than a sum over their elements "
                "(%d structures): there is nothing to take a scale from, so it is 1.",
                target,
                len(atoms),
            )
            _fit_scale(model, data, {target: 1.0})


def set_baseline(model: Any, target: str, energies: Mapping[int, float], scale: float) -> None:
    """Set the energy of each element, and the scale, of a target."""
    # metatrain's fits also take fixed values, but not without data: one atom serves as such
    atom = System(
        types=torch.tensor([model.atomic_types[0]]),
        positions=torch.zeros(1, 3, dtype=torch.float64),
        cell=torch.zeros(3, 3, dtype=torch.float64),
        pbc=torch.zeros(3, dtype=torch.bool),
    )
    data = Dataset.from_dict({"system": [atom], target: _labels([0.0])})
    with _fitting(model, target):
        _fit_composition(model, data, {target: dict(energies)})
        _fit_scale(model, data, {target: scale})


@contextlib.contextmanager
def _fitting(model: Any, target: str) -> Iterator[None]:
    """Restrict metatrain's fits to this target within a block, and silence their progress log.

    On its own, metatrain (2026.4) fits every target that it finds new.
    """
    composition, scaler = model.additive_models[0], model.scaler
    composition._new_outputs, scaler.new_outputs = [target], [target]
    composition.target_infos = {target: model.dataset_info.targets[target]}
    scaler.target_infos = dict(composition.target_infos)
    # the fits change no other target, but they read their names here and look for their labels
    kept = composition.dataset_info, scaler.dataset_info
    composition.dataset_info = scaler.dataset_info = DatasetInfo(
        length_unit=model.dataset_info.length_unit,
        atomic_types=model.atomic_types,
        targets=dict(composition.target_infos),
    )
    try:
        with _quiet():
            yield
    finally:
        composition.dataset_info, scaler.dataset_info = kept


def _fit_composition(model: Any, data: Dataset, fixed: Mapping[str, Any]) -> None:
    hypers = {
        **get_default_hypers("composition")["training"],
        "batch_size": min(len(data), FIT_BATCH),
        "num_workers": 0,
        "distributed": False,
        "atomic_baseline": dict(fixed),
    }
    trainer = CompositionTrainer(hypers)
    place = [torch.device("cpu")]
    trainer.train(model.additive_models[0], torch.float64, place, [data], [data], "")


def _fit_scale(model: Any, data: Dataset, fixed: dict[str, float]) -> None:
    train_or_load_scaler(
        model.scaler,
        [data],
        [model.additive_models[0]],
        min(len(data), FIT_BATCH),
        is_distributed=False,
        fixed_weights=fixed,
        trainer_hypers={"num_workers": 0},
    )


def _labels(energies: Sequence[float]) -> list[TensorMap]:
    return [
        TensorMap(
            Labels.single(),
            [
                TensorBlock(
                    values=torch.tensor([[float(energy)]], dtype=torch.float64),
                    samples=Labels(["system"], torch.tensor([[i]])),
                    components=[],
                    properties=Labels.range("energy", 1),
                )
            ],
        )
        for i, energy in enumerate(energies)
    ]


def system_of(atoms: Any) -> System:
    """Convert a structure to metatomic's system; only periodic cell vectors are kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about cell vectors that are not periodic
        return systems_to_torch(atoms, dtype=torch.float64)


class _quiet:  # noqa: N801  (a context, used as a verb)
    """Keep metatrain's progress messages out of the run's log."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.INFO)
        # metatrain calls logging.info, which adds a handler to a root logger without one for good
        self._handler = logging.NullHandler()
        logging.root.addHandler(self._handler)

    def __exit__(self, *exc: object) -> None:
        logging.root.removeHandler(self._handler)
        logging.disable(self._level)


def add_target(model: Any, name: str, *, unit: str, inherit: str | None, keep_old: bool) -> None:
    """Add another energy with a head of its own to a model.

    Parameters
    ----------
    model
        metatrain's model; changed in place.
    name
        Name of the new target: ``energy/<variant>``, or ``mtt::<name>``.
    unit
        Unit of its labels.
    inherit
        Target whose head is copied; None starts from a random head.
    keep_old
        Whether to keep the other targets and their heads.

    Raises
    ------
    ConfigError
        If the model has a target of that name, has no target `inherit`, or metatrain refuses the
        name.
    """
    present = list(model.dataset_info.targets)
    if name in present:
        raise ConfigError(
            f"The model has a target {name!r} already. model.use_target({name!r}) trains it as it "
            f"is (on the command line: --new-target without --inherit)."
        )
    if inherit is not None and inherit not in present:
        raise ConfigError(
            f"inherit={inherit!r} is no target of this model; it has {', '.join(present)}."
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of an energy. Use energy/<variant>, such as "
            f"'energy/pbe0', or mtt::<name>, of letters, digits, - and _."
        )
    info = DatasetInfo(
        length_unit=model.dataset_info.length_unit,
        atomic_types=list(model.atomic_types),
        targets={name: energy_info(unit, description=name)},
    )
    try:
        model.restart(info)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"metatrain refuses the target {name!r}: {error}") from error
    if inherit is not None:
        copy_head_weights(model, inherit, name)
    # metatrain would drop these old targets at the end of its own training; here `keep_old` decides
    model._stale_finetune_targets = []
    if not keep_old:
        for old in present:
            _remove(model, old)


def _remove(model: Any, name: str) -> None:
    model.remove_output(name)
    model.target_names.remove(name)
    model.dataset_info.targets.pop(name, None)
    for part in (*model.additive_models, model.scaler):
        if name in part.outputs:
            part.remove_output(name)


def as_systems(
    batch: Mapping[str, torch.Tensor], options: Any, dtype: torch.dtype, turn: bool
) -> tuple[list[System], torch.Tensor | None]:
    """Convert the structures of a packed batch to metatomic's systems, rotated at random if asked.

    Parameters
    ----------
    batch
        Result of `AtomisticBackbone.collate`.
    options
        The neighbour list that the model asks for.
    dtype
        Type of the model's weights.
    turn
        Whether each structure is rotated, and half of them mirrored, at random (O(3)).

    Returns
    -------
    systems, turns
        The systems, and the (batch, 3, 3) matrices that multiplied their vectors from the right.
    """
    sizes = batch["shape"].tolist()
    turns = random_turns(len(sizes)).to(batch["positions"]) if turn else None
    atoms, pairs = 0, 0
    systems = []
    names = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]
    device = batch["positions"].device
    components, properties = [Labels.range("xyz", 3).to(device)], Labels.range("distance", 1)
    properties = properties.to(device)
    for i, (n_atoms, n_pairs) in enumerate(sizes):
        inside, between = slice(atoms, atoms + n_atoms), slice(pairs, pairs + n_pairs)
        atoms, pairs = atoms + n_atoms, pairs + n_pairs
        positions, cell = batch["positions"][inside], batch["cell"][i]
        vectors = batch["vectors"][between]
        if turns is not None:
            # after the neighbour search, whose lists are kept: a rotation changes no distance
            positions, cell, vectors = positions @ turns[i], cell @ turns[i], vectors @ turns[i]
        system = System(
            positions=positions.to(dtype),
            types=batch["types"][inside],
            cell=cell.to(dtype),
            pbc=batch["pbc"][i],
        )
        block = TensorBlock(
            values=vectors.to(dtype).unsqueeze(-1),
            samples=Labels(names, batch["pairs"][between], assume_unique=True),
            components=components,
            properties=properties,
        )
        system.add_neighbor_list(options, block)
        systems.append(system)
    return systems, turns


def random_turns(n: int) -> torch.Tensor:
    """Draw rotations, half of them with a reflection, uniform over O(3): (n, 3, 3) float64.

    They come from torch's generator on the CPU, so that a resumed run draws the same ones.

    References
    ----------
    Mezzadri 2007, "How to generate random matrices from the classical compact groups".
    """
    # QR alone is not uniform, since LAPACK fixes the signs; those of r's diagonal undo that
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64))
    return q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)

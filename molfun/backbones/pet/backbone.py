"""PET, as metatrain builds it, behind the `Backbone` interface.

metatrain's own LoRA is not used: its adapters do not start at zero (``pet/modules/finetuning.py``
of metatrain 2026.4), which shifts predictions before the first step.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metatomic.torch import ModelMetadata, ModelOutput, unit_conversion_factor
from metatrain.pet import PET
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.metadata import merge_metadata
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from torch import nn

from molfun.backbones.base import Features, Layer, Run
from molfun.backbones.pet import targets
from molfun.backbones.pet import weights as files
from molfun.backbones.pet.atoms import AtomisticBackbone, Readout
from molfun.backbones.pet.baselines import energy_of, shifts_by_element
from molfun.errors import CheckpointError, ConfigError
from molfun.nn.process import seeded
from molfun.sample import Sample
from molfun.strict import check_choice, refuse_unknown
from molfun.trunk import TrunkOutput

HEAD_MODULES = ("node_heads", "edge_heads", "node_last_layers", "edge_last_layers")
DTYPES = ("float32", "float64")
DEFAULT_TYPES = (1, 6, 7, 8)
UNFITTED = "molfun_unfitted"
"""Key in the metadata of a checkpoint: energies whose baseline has not been fitted yet."""
PREFIX = "model.backend."
"""Start of the names of PET's parameters, since metatrain #1180 (July 2026)."""


class PETBackbone(AtomisticBackbone):
    """PET, a transformer on the edges around each atom, as metatrain builds it.

    The model is metatrain's own module, and metatrain reads checkpoints written here. PET is not
    equivariant by construction: in training every structure is rotated at random, and its forces
    are rotated back.

    Parameters
    ----------
    config
        Hyperparameters of a model without `weights` that differ from metatrain's defaults:
        ``{"d_pet": 32, "num_gnn_layers": 2}``.
    weights
        A ``.ckpt`` of metatrain; None starts from random weights.
    seed
        Seed of the random weights.
    trust
        Whether the user trusts `weights`, which is a pickle; see
        `molfun.backbones.pet.weights.read_checkpoint`.
    atomic_types
        Atomic numbers that a model without `weights` knows; by default H, C, N, O.
    unit
        Unit of the target ``"energy"`` of a model without `weights`.
    augment
        Whether structures are rotated at random in training.
    dtype
        Type of the weights, ``"float32"`` or ``"float64"``; by default that of `weights`, or
        float32 without.
    description
        Elements and targets of a model without `weights`, as `config_dict` has them; used when a
        checkpoint of Molfun is loaded.

    References
    ----------
    Pozdnyakov and Ceriotti 2023, "Smooth, exact rotational symmetrization for deep learning on
    point clouds".

    Examples
    --------
    >>> backbone = PETBackbone({"d_pet": 16, "d_node": 16, "d_head": 16, "num_heads": 2})
    >>> backbone.single_dim, list(backbone.targets)
    (32, ['energy'])
    """

    name = "pet"
    display_name = "PET"
    block_prefix = "model.backend.gnn_layers"
    lora_targets = ("attention.input_linear", "attention.output_linear")

    baselines_fitted: torch.Tensor

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        weights: str | Path | None = None,
        seed: int = 0,
        trust: bool = False,
        atomic_types: Sequence[int] | None = None,
        unit: str = "eV",
        augment: bool = True,
        dtype: str | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None:
            check_choice("dtype", dtype, DTYPES)
        if weights is None:
            hypers = complete_hypers(config)
            if description is None:
                info = _new_info(unit, atomic_types or DEFAULT_TYPES)
            else:
                info = targets.dataset_info(description)
            self.model, dtype = _build(hypers, info, seed), dtype or DTYPES[0]
        else:
            _refuse_chosen(config=config, atomic_types=atomic_types)
            self.model = files.model_of(files.read_checkpoint(weights, trust=trust), weights)
        if dtype is not None:
            # the network alone: baseline and scale stay in float64, see `_keep_double`
            self.model.backend.to(getattr(torch, dtype))
        if len(self.model.additive_models) > 1:
            raise ConfigError(
                "This checkpoint adds a ZBL repulsion to the energy, which Molfun does not train "
                "yet. Use metatrain for it."
            )
        self.augment = augment
        self.atomic_types = tuple(self.model.atomic_types)
        self.single_dim = self.model.num_readout_layers * (self.model.d_node + self.model.d_pet)
        self._baselines: dict[str, Any] = {}
        unfitted = json.loads(self.model.metadata.extra.get(UNFITTED, "[]"))
        energies = set(self.targets) - set(unfitted)
        # a buffer, so that it is saved and loaded with the weights that it describes
        fitted = [name in energies and self._is_fitted(name) for name in self._all_targets()]
        self.register_buffer("baselines_fitted", torch.tensor(fitted))

    # --- input ---------------------------------------------------------------------------------

    def neighbours(self, atoms: Any) -> Features:
        """Find the pairs within the cutoff with metatrain's own neighbour search (vesin)."""
        options = self.model.requested_nl
        system = get_system_with_neighbor_lists(targets.system_of(atoms), [options])
        block = system.get_neighbor_list(options)
        return {
            "pairs": block.samples.values.to(torch.int32),
            "vectors": block.values.detach().squeeze(-1),
            "cell": system.cell[None],
            "pbc": system.pbc[None],
        }

    def featurize_key(self) -> str:
        """Return the cutoff, which alone decides the neighbours."""
        return f"{self.name} {self.model.cutoff}"

    def fit_baseline(self, target: str, samples: Sequence[Sample], run: Run) -> None:
        """Fit the energy of each element, and the scale of the remainder, by least squares."""
        labels = np.array([energy_of(sample) for sample in samples])
        differences = np.full(len(samples), np.nan)
        # An inherited head already predicts most of the energy. A fit to the labels alone would
        # take the scale from their spread, which says nothing of that network.
        if self._is_fitted(target):
            differences = labels - self.predicted(samples, run, target)[0]
        usable = np.isfinite(differences)
        if usable.any():
            kept = [sample for sample, use in zip(samples, usable, strict=True) if use]
            shifts = shifts_by_element(kept, differences[usable])
            known = self._baseline(target)
            energies = {n: float(known.energies[n]) + shifts.get(n, 0.0) for n in self.atomic_types}
            self._set_baseline(target, energies, known.scale)
        else:
            with self._on_cpu():
                targets.fit_baseline(
                    self.model, target, [sample.atoms for sample in samples], labels.tolist()
                )
            self._baselines.clear()
        self.baselines_fitted[self._all_targets().index(target)] = True

    def per_ev(self, unit: str) -> float:
        """Return the value of one eV in a unit, by metatomic's conversion factors."""
        return float(unit_conversion_factor("eV", unit))

    def unready(self) -> str | None:
        """Return a warning if the energy in use was neither fitted to labels nor inherited."""
        if self.readout is None:
            return None
        target = self.readout.target
        if self.baseline_of(target) is not None or self._is_fitted(target):
            return None
        return (
            f"The energy {target!r} was not fitted to any label: its predictions mean nothing yet."
        )

    def set_scale(self, target: str, scale: float) -> None:
        """Set the scale of an energy that has no baseline yet."""
        if not self._is_fitted(target):
            self._set_baseline(target, dict.fromkeys(self.atomic_types, 0.0), scale)

    def _set_baseline(self, target: str, energies: dict[int, float], scale: float) -> None:
        with self._on_cpu():
            targets.set_baseline(self.model, target, energies, scale)
        self._baselines.clear()

    @contextlib.contextmanager
    def _on_cpu(self) -> Iterator[None]:
        """Move the model to the CPU within a block, as metatrain's fits need it."""
        device = self.baselines_fitted.device
        self.model.to("cpu")
        try:
            yield
        finally:
            self.model.to(device)

    # --- targets of its own ----------------------------------------------------------------------

    @property
    def targets(self) -> dict[str, str]:
        """Energies that the model predicts, and their units."""
        info = self.model.dataset_info.targets
        return {name: target.unit for name, target in info.items() if targets.is_energy(target)}

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Node and edge heads, and their last layers."""
        return HEAD_MODULES

    def add_target(
        self, name: str, *, unit: str | None = None, inherit: str | None = None, keep_old: bool
    ) -> None:
        """Add another energy to the model; see `molfun.backbones.pet.targets.add_target`."""
        before = dict(zip(self._all_targets(), self.baselines_fitted.tolist(), strict=True))
        known = inherit is not None and inherit in self.targets and self._is_fitted(inherit)
        old = self._baseline(str(inherit)) if known else None
        theirs = self.targets.get(inherit or "", "eV")
        unit, dtype = unit or theirs, next(self.model.parameters()).dtype
        with self._on_cpu(), seeded(0):
            targets.add_target(self.model, name, unit=unit, inherit=inherit, keep_old=keep_old)
        self.model.backend.to(dtype)
        kept = [before.get(target, False) for target in self._all_targets()]
        self.baselines_fitted = torch.tensor(kept, device=self.baselines_fitted.device)
        self._baselines.clear()
        if old is not None:  # until it is fitted, the new energy predicts what the old one does
            factor = self.per_ev(unit) / self.per_ev(theirs)
            energies = {n: factor * float(old.energies[n]) for n in self.atomic_types}
            self._set_baseline(name, energies, factor * old.scale)

    @property
    def why_whole(self) -> str:
        """Forces and stress differentiate through the blocks before the loss does."""
        twice = self.readout is not None and (self.readout.forces or self.readout.stress)
        return "forces and stress need all weights again for a second derivative" if twice else ""

    def baseline_of(self, target: str) -> tuple[dict[int, float], float] | None:
        """Return the energy of each element and the scale, in the target's unit."""
        if not self.baselines_fitted[self._all_targets().index(target)]:
            return None
        found = self._baseline(target)
        return {n: float(found.energies[n]) for n in self.atomic_types}, found.scale

    def _all_targets(self) -> list[str]:
        """List all targets that the model was trained on, in the order of `baselines_fitted`."""
        return list(self.model.dataset_info.targets)

    def _is_fitted(self, target: str) -> bool:
        """Return whether baseline or scale differ from metatrain's initial 0 and 1."""
        found = self._baseline(target)
        return bool(found.energies.any()) or found.scale != 1.0

    def _baseline(self, target: str) -> Any:
        if target not in self._baselines:
            self._baselines[target] = targets.baseline(self.model, target)
        return self._baselines[target]

    def weights_changed(self) -> None:
        """Update metatrain's copies of baselines and scales from the tensors that were loaded."""
        self.model.additive_models[0].sync_tensor_maps()
        self.model.scaler.sync_tensor_maps()
        self._baselines.clear()

    # --- forward -------------------------------------------------------------------------------

    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        """Return the features of each atom, their mean, and the energy with its derivatives.

        ``single`` (batch, atoms, c) holds node and summed edge features, metatrain's ``feature``.
        Mixed precision is off: metatrain supports float32 and float64 only, and PET runs in the
        type of its weights.
        """
        sizes = batch["shape"][:, 0]
        turns = self.augment and not self.directed
        turn = turns and self.training and torch.is_grad_enabled()
        with torch.autocast(batch["positions"].device.type, enabled=False), self._raw():
            systems, turns = self._systems(batch, turn=turn)
            result = TrunkOutput(mask=_mask(sizes))
            if {"single", "mean"} & set(outputs):
                result = self._features(systems, sizes, result.mask)
            properties = None
            if "properties" in outputs:
                properties = self._properties(batch, systems, turns)
        return replace(result, properties=properties).select(outputs)

    @contextlib.contextmanager
    def _raw(self) -> Iterator[None]:
        """Return energies in the scale of the network, not of the labels, within a block.

        metatrain multiplies by the scale and adds the baseline in eval mode only. The flag is set
        on the outermost module alone, so that dropout and the like stay as they are.
        """
        kept = self.model.training
        self.model.training = True
        try:
            yield
        finally:
            self.model.training = kept

    def _systems(self, batch: Features, *, turn: bool) -> Any:
        dtype = next(self.model.parameters()).dtype
        return targets.as_systems(batch, self.model.requested_nl, dtype, turn)

    def _features(self, systems: Any, sizes: torch.Tensor, mask: torch.Tensor) -> TrunkOutput:
        wanted = {"feature": ModelOutput(sample_kind="atom")}
        flat = self.model(systems, wanted)["feature"].block().values
        single = _padded(flat, sizes)
        return TrunkOutput(mask=mask, single=single, mean=single.sum(1) / sizes[:, None])

    def _properties(
        self, batch: Features, systems: Any, turns: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        if self.readout is None:
            raise ConfigError("The backbone was not told which of its targets to give.")
        block = self._evaluated(systems, self.readout)
        sizes = batch["shape"][:, 0]
        known = self._baseline(self.readout.target)
        energies = known.energies.to(sizes.device)[batch["types"].long()]
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        result = {
            "energy": block.values[:, 0],
            "baseline": energies.new_zeros(len(sizes)).index_add_(0, owner, energies),
            "scale": energies.new_full((len(sizes),), known.scale),
            "n_atoms": sizes,
        }
        if self.readout.forces:
            forces = -block.gradient("positions").values[..., 0]
            if turns is not None:
                # positions x became x R, so a force f of the rotated structure is f R^T in the
                # original frame
                forces = (forces[:, None] @ turns.to(forces)[owner].mT)[:, 0]
            result["forces"] = _padded(forces, sizes)
        if self.readout.stress:
            strain = block.gradient("strain").values[..., 0]
            if turns is not None:
                # a tensor of the rotated structure is R S R^T in the original frame
                around = turns.to(strain)
                strain = around @ strain @ around.mT
            result["virial"] = strain
            result["volume"] = torch.linalg.det(batch["cell"]).abs()
        return result if torch.is_grad_enabled() else {k: v.detach() for k, v in result.items()}

    def _evaluated(self, systems: Any, readout: Readout) -> Any:
        """Return the energy of each system with its gradients, as a block of metatensor."""
        name, forces, stress = readout.target, readout.forces, readout.stress
        info = targets.energy_info(self.targets[name], forces=forces, stress=stress)
        # Training on forces needs a second derivative, which fused attention does not have; the
        # backend avoids fused attention in training mode.
        train = torch.is_grad_enabled() and self.model.backend.training
        with torch.enable_grad() if forces or stress else contextlib.nullcontext():
            found = evaluate_model(self.model, systems, {name: info}, is_training=train)
        return found[name].block()

    # --- parts ---------------------------------------------------------------------------------

    def blocks(self) -> Sequence[nn.Module]:
        """Message-passing layers, first to last."""
        layers: Sequence[nn.Module] = self.model.backend.gnn_layers
        return layers

    def layer_of(self, parameter: str) -> Layer:
        """Return the layer of a parameter; modules that combine a layer's messages belong to it."""
        name = parameter.removeprefix(PREFIX)
        first, _, rest = name.partition(".")
        if first == "gnn_layers" or first.startswith("combination_"):
            return Layer("block", int(rest.partition(".")[0]))
        if first in HEAD_MODULES:
            used = self.readout is not None and first in self.readout.modules
            target = "" if self.readout is None else self.readout.target
            return Layer("head" if used and rest.startswith(f"{target}.") else "output")
        if first in ("node_embedders", "edge_embedder"):
            return Layer("embedder")
        if first == "system_conditioning":
            return Layer("early")
        return Layer("output")

    @property
    def config_dict(self) -> dict[str, Any]:
        """Hyperparameters, and metatrain's description of elements and targets."""
        return {
            "config": dict(self.model.hypers),
            "augment": self.augment,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "description": targets.describe(self.model.dataset_info),
        }

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return `config` itself: `config_dict` holds constructor arguments."""
        return dict(config)

    # --- export --------------------------------------------------------------------------------

    def stock_model(self) -> Any:
        """Return a copy as metatrain builds it: without adapters, in eval mode, on the CPU.

        Adapters are part of its weights if they were merged, and left out otherwise.
        """
        info = targets.dataset_info(targets.describe(self.model.dataset_info))
        for name, target in info.targets.items():
            # metatrain's export wants a description for each of several targets
            target.description = target.description or name
        copy = _build(dict(self.model.hypers), info, seed=0)
        # not `base_state_dict`: modules that are registered twice need both of their names here
        state = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.model.state_dict().items()
            if ".lora_" not in name
        }
        copy.to(next(self.model.parameters()).dtype)
        _keep_double(copy)
        copy.load_state_dict(state)
        copy.additive_models[0].sync_tensor_maps()
        copy.scaler.sync_tensor_maps()
        fitted = zip(self._all_targets(), self.baselines_fitted.tolist(), strict=True)
        unfitted = json.dumps([name for name, done in fitted if name in self.targets and not done])
        copy.metadata = merge_metadata(
            self.model.metadata, ModelMetadata(extra={UNFITTED: unfitted})
        )
        return copy.eval()


def _refuse_chosen(**given: Any) -> None:
    """Refuse arguments that the weight file decides."""
    useless = [key for key, value in given.items() if value is not None]
    if useless:
        raise ConfigError(
            f"{' and '.join(useless)} cannot be chosen with weights: the checkpoint says what they "
            f"are."
        )


def complete_hypers(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the hyperparameters of metatrain's default architecture, with changes applied.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    hypers = get_default_hypers("pet")["model"]
    config = dict(config or {})
    refuse_unknown("hyperparameter of PET", config, hypers)
    return {**hypers, **config}


def _new_info(unit: str, atomic_types: Sequence[int]) -> Any:
    """Return metatrain's description of a new model: one energy, these elements."""
    energy = targets.energy_info(unit)
    return targets.DatasetInfo("angstrom", list(atomic_types), {"energy": energy})


def _build(hypers: dict[str, Any], info: Any, seed: int) -> Any:
    with seeded(seed):
        try:
            model = PET(hypers, info)
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            raise CheckpointError(f"metatrain refuses to build this PET: {error}") from error
    _keep_double(model)
    return model


def _keep_double(model: Any) -> None:
    """Convert baselines and scales to float64: float32 resolves 40,000 eV to no more than 4 meV."""
    model.additive_models.to(torch.float64)
    model.scaler.to(torch.float64)
    for part in (model.additive_models[0], model.scaler):
        # metatrain leaves the entries of absent elements uninitialised, so that two equal models
        # would have different fingerprints
        index = part.model.type_to_index
        index[~torch.isin(torch.arange(len(index)), torch.tensor(model.atomic_types))] = 0


def _mask(sizes: torch.Tensor) -> torch.Tensor:
    longest = int(sizes.max())
    return (torch.arange(longest, device=sizes.device) < sizes[:, None]).float()


def _padded(flat: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Pad (all atoms, c) to (batch, longest, c)."""
    return nn.utils.rnn.pad_sequence(list(flat.split(sizes.tolist())), batch_first=True)

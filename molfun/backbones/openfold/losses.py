"""AlphaFold's losses on coordinates, computed by openfold's own functions for one structure.

`ground_truth` makes of coordinates what openfold's training pipeline makes of them, and `terms`
calls the functions of ``openfold.utils.loss``; FAPE alone has a faster form of its own, with the
same values. Three habits of ``AlphaFoldLoss`` are not taken
over: a term that is NaN does not become 0, a structure is weighed by its own length and not by the
mean of its batch, and a structure without a resolution is not taken for one of 0 angstrom in
silence (`molfun.tasks.structure.StructureTask` counts these).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from molfun._shapes import Float
from molfun.backbones.openfold import chains, fape
from molfun.errors import DataError

Tensors = Mapping[str, torch.Tensor]

FRAMES = "sm."
"""Prefix of the outputs of the structure module among those of the whole model."""
OF_STRUCTURE_MODULE = ("frames", "sidechain_frames", "unnormalized_angles", "angles", "positions")
"""Outputs of the structure module that losses read; the first dimension is that of its layers."""
OF_RESIDUES = ("lddt_logits", "experimentally_resolved_logits", "final_affine_tensor")
OF_PAIRS = ("distogram_logits", "tm_logits")
OF_ALIGNMENT = ("masked_msa_logits", "true_msa", "bert_mask")


def training_outputs(raw: Mapping[str, Any], features: Tensors) -> dict[str, torch.Tensor]:
    """Return those outputs of openfold's model that losses read, by one name each.

    Parameters
    ----------
    raw
        Outputs of openfold's model with those of the auxiliary heads.
    features
        Features of the last pass. ``true_msa`` and ``bert_mask`` are among them where part of the
        alignment is masked.
    """
    found = {f"{FRAMES}{name}": raw["sm"][name].movedim(0, 1) for name in OF_STRUCTURE_MODULE}
    found |= {name: raw[name] for name in (*OF_RESIDUES, *OF_PAIRS) if name in raw}
    if "bert_mask" in features:
        found["masked_msa_logits"] = raw["masked_msa_logits"]
        found |= {name: features[name] for name in ("true_msa", "bert_mask")}
    return found


def one_structure(outputs: Tensors, row: int, n: int) -> dict[str, Any]:
    """Return the outputs of one structure of a padded batch, as openfold names and shapes them.

    Parameters
    ----------
    outputs
        `molfun.trunk.TrunkOutput.structure`, with those of `training_outputs`.
    row
        Place of the structure in the batch.
    n
        Its number of residues.
    """
    own = {name: value[row : row + 1] for name, value in outputs.items()}
    found: dict[str, Any] = {
        # (layers, 1, residues, ...), where the batch came first
        "sm": {
            name: own[f"{FRAMES}{name}"][:, :, :n].movedim(1, 0) for name in OF_STRUCTURE_MODULE
        },
        "final_atom_positions": own["positions"][:, :n],
    }
    found |= {name: own[name][:, :n] for name in OF_RESIDUES}
    found |= {name: own[name][:, :n, :n] for name in OF_PAIRS if name in own}
    found |= {name: own[name][:, :, :n] for name in OF_ALIGNMENT if name in own}
    return _floats(found)


def _floats(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with half-precision tensors in float32, in which the losses are computed."""
    return {
        name: _floats(value)
        if isinstance(value, Mapping)
        else (value.float() if value.is_floating_point() else value)
        for name, value in tree.items()
    }


def ground_truth(
    *,
    aatype: torch.Tensor,
    positions: Float[torch.Tensor, "batch residues 37 3"],
    mask: Float[torch.Tensor, "batch residues 37"],
    residue_index: torch.Tensor,
    resolution: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return everything that AlphaFold's losses read of known coordinates.

    The keys and values are those of openfold's training pipeline for the same structure: atoms in
    14 places with their alternative names, frames of the rigid groups, torsion angles, C-beta
    atoms.

    Parameters
    ----------
    aatype, residue_index
        (batch, residues) types and numbers.
    positions
        (batch, residues, 37, 3) in angstrom; those of absent atoms count nowhere.
    mask
        (batch, residues, 37) 1 where an atom has coordinates.
    resolution
        (batch,) in angstrom.
    """
    from openfold.data import data_transforms

    labels = {
        "aatype": aatype,
        "residue_index": residue_index,
        "seq_mask": torch.ones_like(aatype, dtype=mask.dtype),
        "seq_length": torch.full_like(resolution, aatype.shape[-1], dtype=torch.int64),
        "all_atom_positions": positions,
        "all_atom_mask": mask,
        "resolution": resolution,
    }
    for transform in (
        data_transforms.make_atom14_masks,
        data_transforms.make_atom14_positions,
        data_transforms.atom37_to_frames,
        data_transforms.atom37_to_torsion_angles(""),
        data_transforms.make_pseudo_beta(""),
        data_transforms.get_backbone_frames,
        data_transforms.get_chi_angles,
    ):
        labels = transform(labels)
    return labels


class AlphaFoldTerms:
    """AlphaFold's losses with the settings of one preset, for `molfun.tasks.structure`.

    Parameters
    ----------
    config
        Section ``loss`` of openfold's config; its weights are not used.
    with_tm
        Whether the preset has a TM head.
    with_masked_msa
        Whether the features mask part of the alignment.
    """

    def __init__(self, config: Any, *, with_tm: bool, with_masked_msa: bool) -> None:
        self._config = config
        absent = {"tm": not with_tm, "masked_msa": not with_masked_msa}
        self.names = tuple(name for name in _TERMS if not absent.get(name))

    def __call__(
        self,
        outputs: Tensors,
        row: int,
        label: Tensors,
        wanted: Sequence[str],
        *,
        clamped: float,
    ) -> dict[str, torch.Tensor]:
        """Return terms of one structure of a batch, see `molfun.tasks.structure.StructureTerms`."""
        n = len(label["aatype"])
        own = one_structure(outputs, row, n)
        label = chains.renamed(label, own["final_atom_positions"][0])
        truth = ground_truth(
            aatype=label["aatype"][None],
            positions=label["positions"][None],
            mask=label["mask"][None],
            residue_index=label["residue_index"][None],
            resolution=label["resolution"],
        )
        truth["use_clamped_fape"] = torch.full_like(label["resolution"], clamped)
        return terms(own, truth, self._config, [name for name in self.names if name in wanted])


def terms(
    outputs: Mapping[str, Any], labels: Tensors, config: Any, wanted: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return terms of AlphaFold's loss for one structure, not weighted.

    Parameters
    ----------
    outputs
        From `one_structure`.
    labels
        From `ground_truth`, with ``use_clamped_fape``, the share of the backbone's FAPE that is
        clamped.
    config
        Section ``loss`` of openfold's config.
    wanted
        Names of the terms, those of `AlphaFoldTerms.names`.
    """
    batch = dict(labels)
    if "fape" in wanted:
        batch |= fape.renamed(batch, outputs["sm"]["positions"][-1])
    return {name: _TERMS[name](outputs, batch, config) for name in wanted}


def _fape(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    structure, settings = out["sm"], config.fape
    backbone = fape.backbone_loss(structure["frames"], batch, settings.backbone)
    sidechain = fape.sidechain_loss(structure, batch, settings.sidechain)
    loss: torch.Tensor = settings.backbone.weight * backbone + settings.sidechain.weight * sidechain
    return loss


def _supervised_chi(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import supervised_chi_loss

    loss: torch.Tensor = supervised_chi_loss(
        out["sm"]["angles"],
        out["sm"]["unnormalized_angles"],
        **{**batch, **config.supervised_chi},
    )
    return loss


def _distogram(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import distogram_loss

    loss: torch.Tensor = distogram_loss(out["distogram_logits"], **{**batch, **config.distogram})
    return loss


def _masked_msa(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import masked_msa_loss

    del batch
    if "bert_mask" not in out:
        raise DataError(
            "The loss masked_msa needs a masked alignment, and a sample of pre-computed features "
            "has none (true_msa, bert_mask). Make its features with mask_msa, or set masked_msa to "
            "0."
        )
    loss: torch.Tensor = masked_msa_loss(
        out["masked_msa_logits"], out["true_msa"].long(), out["bert_mask"], **config.masked_msa
    )
    return loss


def _plddt(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import lddt_loss

    loss: torch.Tensor = lddt_loss(
        out["lddt_logits"], out["final_atom_positions"], **{**batch, **config.plddt_loss}
    )
    return loss


def _experimentally_resolved(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import experimentally_resolved_loss

    loss: torch.Tensor = experimentally_resolved_loss(
        out["experimentally_resolved_logits"], **{**batch, **config.experimentally_resolved}
    )
    return loss


def _tm(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import tm_loss

    settings = {**batch, "final_affine_tensor": out["final_affine_tensor"], **config.tm}
    loss: torch.Tensor = tm_loss(out["tm_logits"], **settings)
    return loss


def _violation(out: Mapping[str, Any], batch: Tensors, config: Any) -> torch.Tensor:
    from openfold.utils.loss import find_structural_violations, violation_loss

    found = find_structural_violations(batch, out["sm"]["positions"][-1], **config.violation)
    loss: torch.Tensor = violation_loss(found, **batch)
    return loss


_TERMS: Mapping[str, Callable[[Mapping[str, Any], Tensors, Any], torch.Tensor]] = {
    "fape": _fape,
    "supervised_chi": _supervised_chi,
    "distogram": _distogram,
    "masked_msa": _masked_msa,
    "plddt": _plddt,
    "experimentally_resolved": _experimentally_resolved,
    "tm": _tm,
    "violation": _violation,
}

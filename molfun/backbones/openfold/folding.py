"""Predict structures with openfold's model, pass by pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from molfun.backbones.base import Features
from molfun.backbones.folding import Fold
from molfun.backbones.openfold import confidence
from molfun.protein import CA, CHAIN_GAP, Protein, chain_name


def run_passes(
    model: Any, batch: Features, tolerance: float | None = None
) -> tuple[dict[str, torch.Tensor], int]:
    """Run openfold's model, and stop recycling once the structure no longer changes.

    Without `tolerance` the result is that of ``AlphaFold.forward``, bit for bit.

    Parameters
    ----------
    model
        openfold's ``AlphaFold``.
    batch
        Features of one or more samples, the recycling dimension last.
    tolerance
        See `Folding.fold`. Of several samples, the one that changes most decides.

    Returns
    -------
    dict, int
        Outputs with those of the auxiliary heads, and recycling passes before the last pass.
    """
    previous: list[Any] = [None, None, None]
    mask = batch["seq_mask"][..., 0]
    passes = batch["aatype"].shape[-1]
    for number in range(passes):
        features = {key: value[..., number] for key, value in batch.items()}
        before = previous[2]
        # openfold 2.x returns a fifth value
        outputs, *state = model.iteration(features, previous, _recycle=passes > 1)
        if tolerance is not None and before is not None:
            change = ca_change(before, state[2], mask)
            if change < tolerance:
                break
        if number < passes - 1:
            previous = list(state[:3])
    outputs.update(model.aux_heads(outputs))
    return outputs, number


def ca_change(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the root mean square change of CA distances between two structures, in angstrom.

    The largest of a batch; it is the criterion of AlphaFold-Multimer (Evans et al. 2021, 2.5).
    """
    distances = [torch.cdist(s[..., CA, :].float(), s[..., CA, :].float()) for s in (one, other)]
    pairs = mask[..., :, None] * mask[..., None, :]
    square = ((distances[0] - distances[1]) ** 2 * pairs).sum((-1, -2)) / pairs.sum((-1, -2))
    return float(square.sqrt().max())


def structure_of(
    outputs: Mapping[str, torch.Tensor],
    features: Mapping[str, torch.Tensor],
    tm_settings: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """Return what `molfun.trunk.TrunkOutput.structure` holds, from openfold's outputs.

    Parameters
    ----------
    outputs
        Outputs of openfold's model with those of the auxiliary heads.
    features
        Features of the last pass.
    tm_settings
        Settings of the TM head.
    """
    mask = features["seq_mask"]
    found = {
        "positions": outputs["final_atom_positions"],
        "atom_mask": outputs["final_atom_mask"],
        "plddt": outputs["plddt"],
        "aatype": features["aatype"],
        "residue_index": features["residue_index"],
    }
    if "msa_mask" in features:
        found["alignment_rows"] = features["msa_mask"].bool().any(-1).sum(-1)
    if "tm_logits" in outputs:
        found["tm_logits"] = outputs["tm_logits"]
        found["ptm"] = confidence.predicted_tm(outputs["tm_logits"], mask, tm_settings)
        found["pae"] = confidence.predicted_aligned_error(outputs["tm_logits"], tm_settings)[0]
    return found


def of_structure(
    structure: Mapping[str, torch.Tensor],
    protein: Protein,
    tm_settings: Mapping[str, Any],
    *,
    recycles: int,
    alignment_rows: int,
    row: int = 0,
) -> Fold:
    """Return the fold of one sample of a batch.

    Parameters
    ----------
    structure
        As in `molfun.trunk.TrunkOutput`.
    protein
        The residues and chains of the sample.
    tm_settings
        Settings of the TM head.
    recycles, alignment_rows
        See `Fold`.
    row
        Place of the sample in the batch.
    """
    n = len(protein)
    predicted = replace(
        protein,
        atom_positions=_array(structure["positions"][row, :n]),
        atom_mask=_array(structure["atom_mask"][row, :n]),
        b_factors=np.zeros((n, 37), np.float32),
    )
    known: dict[str, Any] = {}
    if "tm_logits" in structure:
        logits = structure["tm_logits"][row, :n, :n]
        pae, largest = confidence.predicted_aligned_error(logits, tm_settings)
        ones = torch.ones(1, n, device=logits.device)
        known = {
            "pae": _array(pae),
            "max_pae": largest,
            "ptm": float(confidence.predicted_tm(logits[None], ones, tm_settings)[0]),
        }
        if len(protein.chain_ids) > 1:
            chains = torch.from_numpy(protein.chain_index).to(logits.device)
            known["iptm"] = confidence.interface_tm(logits, chains, **tm_settings)
    return Fold(
        protein=predicted,
        plddt=_array(structure["plddt"][row, :n]),
        recycles=recycles,
        alignment_rows=alignment_rows,
        **known,
    )


def residues_of(features: Features) -> Protein:
    """Return the residues of ready features, which come without a protein.

    A jump of the residue index by `CHAIN_GAP` or more starts a chain, as Molfun's own features
    write it.
    """
    index = features["residue_index"][..., 0].long().cpu().numpy()
    aatype = features["aatype"][..., 0].long().cpu().numpy()
    chain = np.concatenate([[0], np.cumsum(np.diff(index) >= CHAIN_GAP)]).astype(np.int64)
    n = len(index)
    return Protein(
        name="features",
        aatype=aatype,
        atom_positions=np.zeros((n, 37, 3), np.float32),
        atom_mask=np.zeros((n, 37), np.float32),
        b_factors=np.zeros((n, 37), np.float32),
        residue_index=index,
        chain_index=chain,
        chain_ids=tuple(chain_name(number) for number in range(int(chain[-1]) + 1)),
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    return array

"""Names of identical chains in a label, chosen as they fit a prediction.

AlphaFold-Multimer renames them before its losses (Evans et al. 2021, 2.1), openfold 0.0.1 does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from molfun.protein import CA
from molfun.structures.scoring.identical import best_order


@torch.no_grad()
def renamed(label: Mapping[str, torch.Tensor], predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a label whose identical chains have the names that fit a prediction best.

    Parameters
    ----------
    label
        As in `molfun.tasks.structure.StructureTerms`.
    predicted
        (residues, 37, 3) predicted atoms in angstrom.
    """
    residues = {
        name: label[name].cpu().numpy() for name in ("aatype", "residue_index", "chain_index")
    }
    order = best_order(
        **residues,
        places=label["positions"][:, CA].float().cpu().numpy(),
        known=(label["mask"][:, CA] > 0).cpu().numpy(),
        predicted=predicted[:, CA].float().cpu().numpy(),
    )
    if order is None:
        return dict(label)
    rows = torch.from_numpy(order).to(label["positions"].device)
    return {**label, "positions": label["positions"][rows], "mask": label["mask"][rows]}

"""Names of identical chains in a label, chosen as they fit a prediction.

AlphaFold-Multimer renames them before its losses (Evans et al. 2021, 2.1), openfold 0.0.1 does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from molfun.protein import CA
from molfun.structures.scoring.identical import ABSENT, best_order


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
    residues = {name: label[f"all_{name}"].cpu().numpy() for name in ("kind", "place", "chain")}
    positions, mask = label["all_positions"], label["all_mask"]
    order = best_order(
        **residues,
        places=positions[:, CA].float().cpu().numpy(),
        known=(mask[:, CA] > 0).cpu().numpy(),
        kept=label["kept"].cpu().numpy(),
        predicted=predicted[:, CA].float().cpu().numpy(),
    )
    if order is None:
        return dict(label)
    rows = torch.from_numpy(order).to(positions.device)
    there = (rows != ABSENT).to(positions.dtype)
    return {
        **label,
        "positions": positions[rows] * there[:, None, None],
        "mask": mask[rows] * there[:, None],
    }

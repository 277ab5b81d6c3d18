"""The predicted structure of a backbone, as a head."""

from __future__ import annotations

import torch

from molfun.heads.base import Head
from molfun.strict import Configured
from molfun.trunk import TrunkOutput


class StructureHead(Configured, Head):
    """A view on the structure that a backbone predicts, with its confidence.

    It has no weights of its own: what trains as the head are the backbone's heads of confidence
    and distances (pLDDT, TM, distogram, resolved atoms, masked alignment). The structure module
    trains where the strategy unfreezes it.

    Examples
    --------
    >>> StructureHead().config_dict
    {}
    """

    needs = ("structure",)
    default_task = "structure"
    in_backbone = True
    part_of = "models that predict structures"

    def __init__(self) -> None:
        super().__init__()
        self.keep_arguments({})

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Return ``prediction``, (batch, residues, 37, 3) in angstrom, and all of the structure."""
        structure = dict(trunk.structure or {})
        return {"prediction": structure["positions"], "mask": trunk.mask, **structure}

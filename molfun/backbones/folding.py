"""Ability of a backbone to predict the structure of a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from molfun._shapes import Float32
from molfun.protein import Protein
from molfun.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Prediction of a backbone for one sample.

    Parameters
    ----------
    protein
        Residues with the predicted coordinates in angstrom, B-factors zero.
    plddt
        (length,) pLDDT of each residue, 0 to 100.
    pae, max_pae
        (length, length) predicted aligned error in angstrom, and the largest value it can take;
        None without a TM head.
    ptm, iptm
        Predicted TM-score, and that between chains; None without a TM head, or for one chain.
    recycles
        Recycling passes that ran before the last pass.
    alignment_rows
        Sequences of the alignment, the sample's own one included; of a batch, 2 stands for any
        number from 2 on.
    """

    protein: Protein
    plddt: Float32[np.ndarray, "length"]
    pae: Float32[np.ndarray, "length length"] | None = None
    max_pae: float | None = None
    ptm: float | None = None
    iptm: float | None = None
    recycles: int
    alignment_rows: int


class Folding(ABC):
    """Mix-in for a `Backbone` that predicts structures."""

    @abstractmethod
    def fold(self, sample: Sample, *, recycles: int, tolerance: float | None, seed: int) -> Fold:
        """Predict the structure of one sample; the caller turns gradients and dropout off.

        Parameters
        ----------
        sample
            A protein, with or without coordinates (which are not read), or features.
        recycles
            Recycling passes before the last pass.
        tolerance
            Change of the CA distances between two passes, in angstrom, below which no further
            pass runs; None runs all.
        seed
            Seed of the features' random choices, such as the rows of a deep alignment.

        Raises
        ------
        DataError
            If the sample cannot be folded.
        """

    @abstractmethod
    def fold_of(self, structure: Mapping[str, torch.Tensor], row: int, sample: Sample) -> Fold:
        """Return the structure of one sample of a batch that went through the forward pass.

        Parameters
        ----------
        structure
            That of the batch, as in `molfun.trunk.TrunkOutput`.
        row
            Place of the sample in it.
        sample
            The sample.
        """

"""Scores of variants by a table: what each exchange of a residue of the wild type adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from molfun._shapes import Float64
from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS
from molfun.text import counted, listing

_CODES = np.full(256, -1, np.int64)
_CODES[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = range(len(AMINO_ACIDS))
"""Place of each letter in `AMINO_ACIDS`; -1 for what is no amino acid."""


@dataclass(frozen=True, eq=False)
class SubstitutionTable:
    r"""Table of the scores that exchanges of single residues add to that of a variant.

    With the values :math:`t` and the wild type :math:`w`, the score of a variant :math:`m` is
    :math:`\sum_{i: m_i \ne w_i} t_{i, m_i}`.

    Parameters
    ----------
    wild_type
        Its letters, in upper case.
    values
        (residues, 20), amino acids in the order of `AMINO_ACIDS`; NaN has no score.

    Examples
    --------
    >>> values = np.zeros((2, 20))
    >>> values[1, AMINO_ACIDS.index("G")] = -3.0
    >>> SubstitutionTable("AK", values).scores(["AK", "AG", "GG"])
    array([ 0., -3., -3.])
    """

    wild_type: str
    values: Float64[np.ndarray, "residues 20"]

    def scores(
        self, sequences: Sequence[str], names: Sequence[str] | None = None
    ) -> Float64[np.ndarray, "variants"]:
        """Return the score of each sequence.

        Raises
        ------
        DataError
            Listing the sequences that are no variants of the wild type, by their names.
        """
        found = [self._score(text.upper()) for text in sequences]
        shown = sequences if names is None else names
        problems = [f"{n}: {v}" for n, v in zip(shown, found, strict=True) if isinstance(v, str)]
        if problems:
            raise DataError(
                f"{counted(len(problems), 'sequence')} without a zero-shot score, which is that of "
                f"substitutions in the wild type:\n{listing(problems)}"
            )
        return np.array(found, np.float64)

    def _score(self, text: str) -> float | str:
        """Return the score of one sequence, or what is wrong with it."""
        if len(text) != len(self.wild_type):
            return f"{counted(len(text), 'residue')}, and the wild type has {len(self.wild_type)}"
        letters, wild = (
            np.frombuffer(one.encode("ascii", "replace"), np.uint8)
            for one in (text, self.wild_type)
        )
        places = np.flatnonzero(letters != wild)
        codes = _CODES[letters[places]]
        values = np.where(codes < 0, np.nan, self.values[places, codes])
        if np.isnan(values).any():
            first = places[np.isnan(values)][0]
            return f"residue {first + 1}, {self.wild_type[first]} to {text[first]}, has no score"
        return float(values.sum())


class SubstitutionScores(nn.Module):
    """Scores of variants, standardised over a training set.

    Wild type and table are buffers, empty until `learn`, so that a checkpoint has all that a new
    variant needs: the model that gave the table may train.
    """

    wild_type: torch.Tensor
    table: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wild_type", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(0, len(AMINO_ACIDS), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))

    @property
    def known(self) -> SubstitutionTable | None:
        """The table; None before `learn`."""
        letters = bytes(self.wild_type.cpu().tolist()).decode("ascii", "replace")
        return SubstitutionTable(letters, self.table.cpu().numpy()) if letters else None

    @torch.no_grad()
    def learn(self, table: SubstitutionTable, sequences: Sequence[str]) -> None:
        """Take a table, and the mean and deviation of the scores of a training set."""
        device = self.table.device
        found = table.scores(sequences)
        self.wild_type = torch.tensor(list(table.wild_type.encode("ascii")), dtype=torch.uint8)
        self.wild_type = self.wild_type.to(device)
        self.table = torch.tensor(table.values, dtype=torch.float64, device=device)
        mean, std = float(found.mean()), float(found.std())
        self.mean.fill_(mean)
        # scores that are all the same tell nothing and get no say
        self.std.fill_(std if std > 1e-6 * max(1.0, abs(mean)) else np.inf)

    def forward(self, sequences: Sequence[str], names: Sequence[str] | None = None) -> torch.Tensor:
        """Return the standardised score of each sequence, (variants,) in float32."""
        table = self.known
        assert table is not None  # the head asks for no scores before
        found = (table.scores(sequences, names) - float(self.mean)) / float(self.std)
        return torch.tensor(found, dtype=torch.float32, device=self.table.device)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *others: Any
    ) -> None:
        """Take the length of the wild type from the tensors, where they fit together."""
        letters, table = (state_dict.get(f"{prefix}{name}") for name in ("wild_type", "table"))
        # other shapes are refused below
        if letters is not None and table is not None and _fit_together(letters, table):
            self.wild_type = self.wild_type.new_empty(letters.shape)
            self.table = self.table.new_empty(table.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _fit_together(letters: torch.Tensor, table: torch.Tensor) -> bool:
    return letters.ndim == 1 and table.shape == (len(letters), len(AMINO_ACIDS))

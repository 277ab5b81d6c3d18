"""The base of heads: from representations of a batch to raw outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.sample import Sample
from molfun.trunk import ChainCheck, Level, TrunkOutput


class Head(nn.Module, ABC):
    """Maps representations to a dict with at least ``"prediction"``, in the task's own scale.

    The facade fills in what a subclass takes of ``single_dim`` and ``pair_dim`` (from the
    backbone), ``n_outputs`` and ``level`` (from the task). A head without ``n_outputs`` gives one
    number, one without ``level`` a label for each sequence.
    """

    needs: tuple[str, ...] = ("single",)
    """Representations the head reads; no others are computed or cached."""
    default_task: ClassVar[str] = "regression"
    """Registered name of the task the head is made for."""
    default_level: ClassVar[Level] = "sequence"
    """Level of that task where nothing else is asked for."""
    reads_chains: ClassVar[bool] = False
    """True if the head reads each chain of a sample by itself: `TrunkOutput.chains` says which rows
    of the representations are those of a sample."""
    in_backbone: ClassVar[bool] = False
    """True for a view on modules inside the backbone, which chooses them in `Backbone.serve`."""
    part_of: ClassVar[str] = "some backbones"
    """Models that such a view is a part of, for messages."""

    @property
    def chains_read(self) -> ChainCheck:
        """Check of the number of chains, for a head that reads them; any number by default."""
        return _any_number

    @abstractmethod
    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Compute ``{"prediction": (batch,) ...}``."""

    def with_samples(
        self,
        trunk: TrunkOutput,
        samples: Sequence[Sample],  # noqa: ARG002
    ) -> TrunkOutput:
        """Add what the head reads of the samples themselves; by default nothing.

        Parameters
        ----------
        trunk
            Representations of the batch.
        samples
            Its samples; empty for a batch of tensors.
        """
        return trunk

    def fit_inputs(self, trunks: Iterable[TrunkOutput]) -> None:
        """Learn the scale of the inputs; called once, where the backbone stays as it is.

        Parameters
        ----------
        trunks
            Outputs of the backbone for the samples of the training set, one by one. Not looking
            at them costs nothing.
        """

    @property
    @abstractmethod
    def config_dict(self) -> Mapping[str, Any]:
        """Arguments that build the same head again, as plain values."""

    @staticmethod
    def as_outputs(raw: torch.Tensor, n_outputs: int) -> dict[str, torch.Tensor]:
        """Name raw outputs (..., n_outputs): logits where a label has several."""
        if n_outputs == 1:
            return {"prediction": raw.squeeze(-1)}
        return {"prediction": raw, "logits": raw}

    @staticmethod
    def check_dim(name: str, given: int | None, backbone: int | None) -> int:
        """Settle a dimension: the backbone's, unless the user insists on another.

        Raises
        ------
        ConfigError
            If `given` differs from what the backbone gives, or the backbone gives none.
        """
        if backbone is None:
            raise ConfigError(f"This head needs {name}, which the backbone does not give.")
        if given is not None and given != backbone:
            raise ConfigError(
                f"head_config has {name}={given}, but the backbone gives {backbone}. Leave {name} "
                f"out, or choose the backbone config with that width."
            )
        return backbone


def _any_number(name: str, n: int) -> None:
    """Refuse no sample."""

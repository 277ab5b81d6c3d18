"""Hide values of a time series and reconstruct them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.objectives.base import ObjectiveOutput, Reconstruction
from molfun.objectives.series import SeriesObjective, check_share, random_blocks, two_layers
from molfun.strict import check_choice

MaskUnit = Literal["value", "step", "block"]


class MAEObjective(SeriesObjective):
    """Masked autoencoding: predict hidden values from those that are left.

    Hidden values are to the encoder what missing ones are. The loss is the mean squared error, in
    standardised units, over values that were observed and hidden; what was never observed counts
    nowhere.

    Parameters
    ----------
    mask_ratio
        Share of the observed values (of the time steps, for the other units) that is hidden.
    mask_unit
        ``"value"`` hides single values, ``"step"`` all of a time step, ``"block"`` `n_blocks`
        pieces of time.
    n_blocks
        Pieces, for ``"block"``.

    References
    ----------
    He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"; Zerveas et al. 2021 for
    multivariate time series.

    Examples
    --------
    >>> MAEObjective(mask_ratio=0.3).config_dict["mask_ratio"]
    0.3
    """

    name = "mae"
    metric_names = ("mse", "mae", "r2")
    higher_is_better = frozenset({"r2"})

    def __init__(
        self, *, mask_ratio: float = 0.15, mask_unit: MaskUnit = "value", n_blocks: int = 4
    ) -> None:
        super().__init__()
        check_share("mask_ratio", mask_ratio)
        check_choice("mask unit", mask_unit, get_args(MaskUnit))
        if n_blocks < 1:
            raise ConfigError(f"n_blocks must be at least 1, got {n_blocks}.")
        self.keep_arguments(locals())
        self.decoder: nn.Module = nn.Identity()

    def build(self, backbone: Any) -> None:
        """Make the decoder: from the channels of a time step to its values."""
        self.decoder = two_layers(backbone.single_dim, backbone.d_input)

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Hide values: ``mask`` is what is left, ``hidden`` what is asked for."""
        mask = features["mask"]
        hidden = mask & self._chosen(mask, generator)
        if not bool(hidden.any()) and bool(mask.any()):
            places = mask.nonzero()
            one = places[torch.randint(len(places), (), generator=generator)]
            hidden[one[0], one[1]] = True
        return {**features, "mask": mask & ~hidden, "hidden": hidden}

    def _chosen(self, mask: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        ratio, unit = self._config["mask_ratio"], self._config["mask_unit"]
        if unit == "value":
            return torch.rand(mask.shape, generator=generator) < ratio
        if unit == "step":
            return (torch.rand(len(mask), generator=generator) < ratio).unsqueeze(-1)
        blocks = random_blocks(len(mask), ratio, self._config["n_blocks"], generator)
        return blocks.unsqueeze(-1)

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the squared error over the hidden values."""
        tokens = backbone.encode(batch)
        hidden = batch["hidden"]
        predicted = self.decoder(tokens).float()[hidden]
        target = backbone.scaled(batch["timeseries"])[hidden]
        error = predicted - target
        total = error.square().sum()
        with torch.no_grad():
            moments = torch.stack([error.abs().sum(), target.sum(), target.square().sum()])
        absolute, first, second = moments.tolist()
        sums = {"absolute": absolute, "target": first, "squares": second}
        return ObjectiveOutput(total, int(hidden.sum()), sums)

    @torch.no_grad()
    def reconstruct(self, backbone: Any, batch: dict[str, torch.Tensor]) -> list[Reconstruction]:
        """Return each series with its hidden values and the decoder's output, in data units."""
        predicted = self.decoder(backbone.encode(batch)).float()
        predicted = predicted * backbone.input_std + backbone.input_mean
        # what was not observed may hold anything
        observed = batch["mask"] | batch["hidden"]
        values = torch.where(observed, batch["timeseries"], torch.nan)
        rows = zip(values, batch["hidden"], predicted, batch["padding_mask"].sum(1), strict=True)
        return [
            Reconstruction(*(part[: int(n)].cpu().numpy() for part in parts)) for *parts, n in rows
        ]

    def metrics(self, loss: float, sums: Mapping[str, float], n_labels: int) -> dict[str, float]:
        """Return errors in standardised units, and the share of the variance that is explained."""
        if n_labels == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        variance = sums.get("squares", 0.0) / n_labels - (sums.get("target", 0.0) / n_labels) ** 2
        r2 = 1 - loss / variance if variance > 0 else math.nan
        return {"mse": loss, "mae": sums.get("absolute", 0.0) / n_labels, "r2": r2}

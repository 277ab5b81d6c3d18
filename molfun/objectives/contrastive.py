"""Tell two views of one series from views of others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from molfun.errors import ConfigError
from molfun.objectives.base import ObjectiveOutput
from molfun.objectives.series import SeriesObjective, check_share, two_layers
from molfun.strict import check_choice

logger = logging.getLogger(__name__)

ContrastiveMode = Literal["instance", "temporal"]


class ContrastiveObjective(SeriesObjective):
    """NT-Xent on two views: random pieces of a series, with some values hidden and some noise.

    ``"instance"`` draws the means of both views together and those of different series apart;
    ``"temporal"`` does so with the same time step in both views, against other steps of the series.

    Parameters
    ----------
    mode
        ``"instance"`` or ``"temporal"``.
    temperature
        Divides the cosine similarities.
    projection_dim
        Channels in which similarity is measured.
    mask_ratio
        Share of the observed values that each view hides.
    min_crop
        Smallest share of the time steps that a view keeps.
    jitter
        Deviation of the noise on each value, in deviations of the feature.
    max_steps
        Time steps of a series that are compared, for ``"temporal"``.

    References
    ----------
    Chen et al. 2020 (SimCLR), equation 1; Yue et al. 2022 (TS2Vec) for contrast over time.

    Examples
    --------
    >>> ContrastiveObjective(mode="temporal").config_dict["mode"]
    'temporal'
    """

    name = "contrastive"
    metric_names = ("accuracy",)
    higher_is_better = frozenset({"accuracy"})

    def __init__(
        self,
        *,
        mode: ContrastiveMode = "instance",
        temperature: float = 0.1,
        projection_dim: int = 64,
        mask_ratio: float = 0.2,
        min_crop: float = 0.5,
        jitter: float = 0.1,
        max_steps: int = 64,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, get_args(ContrastiveMode))
        if mask_ratio:
            check_share("mask_ratio", mask_ratio)
        if min_crop != 1:
            check_share("min_crop", min_crop)
        positive = {"temperature": temperature, "projection_dim": projection_dim}
        for key, value in {**positive, "max_steps": max_steps}.items():
            if not value > 0:
                raise ConfigError(f"{key} must be above 0, got {value}.")
        if not jitter >= 0:
            raise ConfigError(f"jitter must be 0 or more, got {jitter}.")
        self.keep_arguments(locals())
        self._said_single = False
        self.projection: nn.Module = nn.Identity()

    def build(self, backbone: Any) -> None:
        """Make the projection in which views are compared."""
        self.projection = two_layers(backbone.single_dim, self._config["projection_dim"])

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Add the two views, each with its own beginning and end.

        ``timeseries_1`` and ``mask_1`` are a piece of the series, ``keep_1`` is True in all of it
        (and False in padding), ``noise_1`` is in standard deviations of the features, and
        ``both_1`` marks the time steps that the other view has as well.
        """
        values, mask = features["timeseries"], features["mask"]
        length = len(mask)
        shortest = max(1, math.ceil(self._config["min_crop"] * length))
        spans = []
        for _ in range(2):
            size = int(torch.randint(shortest, length + 1, (), generator=generator))
            start = int(torch.randint(0, length - size + 1, (), generator=generator))
            spans.append((start, start + size))
        first, last = max(a for a, _ in spans), min(b for _, b in spans)
        views: dict[str, torch.Tensor] = {}
        for view, (start, stop) in zip(("1", "2"), spans, strict=True):
            shape = (stop - start, *mask.shape[1:])
            seen = torch.rand(shape, generator=generator) >= self._config["mask_ratio"]
            steps = torch.arange(start, stop)
            views |= {
                f"timeseries_{view}": values[start:stop],
                f"mask_{view}": mask[start:stop] & seen,
                f"keep_{view}": torch.ones(stop - start, dtype=torch.bool),
                f"noise_{view}": torch.randn(shape, generator=generator) * self._config["jitter"],
                f"both_{view}": (steps >= first) & (steps < last),
            }
        return {**features, **views}

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the cross entropy of finding the other view among all candidates."""
        steps = [self._encode(backbone, batch, view) for view in ("1", "2")]
        keeps = [batch["keep_1"], batch["keep_2"]]
        both = [batch["both_1"], batch["both_2"]]
        if self._config["mode"] == "instance":
            pooled = [
                (x * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)
                for x, keep in zip(steps, keeps, strict=True)
            ]
            pairs = [tuple(self.projection(x) for x in pooled)]
        else:
            pairs = self._same_steps(steps, both)
        total, count, right = nt_xent(pairs, self._config["temperature"])
        if count == 0:
            self._say_single()
            total = (steps[0].sum() + steps[1].sum()) * 0.0
        return ObjectiveOutput(total, count, {"right": float(right)})

    def _say_single(self) -> None:
        if not self._said_single:
            self._said_single = True
            logger.warning(
                "A batch has nothing to tell apart (one series, or one time step), so it teaches "
                "nothing. Use a batch size of 2 or more."
            )

    def _encode(self, backbone: Any, batch: dict[str, torch.Tensor], view: str) -> torch.Tensor:
        noise = batch[f"noise_{view}"] * backbone.input_std
        tokens: torch.Tensor = backbone.encode(
            {
                "timeseries": batch[f"timeseries_{view}"] + noise,
                "mask": batch[f"mask_{view}"],
                "padding_mask": batch[f"keep_{view}"],
            }
        )
        return tokens

    def _same_steps(
        self, steps: list[torch.Tensor], both: list[torch.Tensor]
    ) -> list[tuple[torch.Tensor, ...]]:
        """Project the steps that both views of a series have, thinned evenly: (steps, channels)."""
        pairs = []
        for row in range(len(both[0])):
            places = [marked[row].nonzero().flatten() for marked in both]
            n = len(places[0])
            if n > self._config["max_steps"]:
                spread = torch.linspace(0, n - 1, self._config["max_steps"]).long()
                places = [p[spread.to(p.device)] for p in places]
            if n > 1:
                tables = [x[row, p] for x, p in zip(steps, places, strict=True)]
                pairs.append(tuple(self.projection(table) for table in tables))
        return pairs

    def metrics(self, loss: float, sums: Mapping[str, float], n_labels: int) -> dict[str, float]:
        """Return the share of views whose nearest neighbour is the other view."""
        del loss
        return {"accuracy": sums.get("right", 0.0) / n_labels if n_labels else math.nan}


def nt_xent(
    pairs: list[tuple[torch.Tensor, ...]], temperature: float
) -> tuple[torch.Tensor, int, int]:
    """Return the summed NT-Xent over tables of pairs, its number of terms, and how many are right.

    Row ``i`` of both tables of a pair belongs together; all other rows of both are negatives. A
    table of one row has no negatives and is left out.

    Examples
    --------
    >>> a = torch.eye(3)
    >>> total, count, right = nt_xent([(a, a)], temperature=0.1)
    >>> count, right, round(float(total) / count, 4)
    (6, 6, 0.0002)
    """
    total, count, right = torch.zeros(()), 0, 0
    for first, second in pairs:
        n = len(first)
        if n < 2:
            continue
        both = functional.normalize(torch.cat([first, second]).float(), dim=-1)
        similarity = both @ both.T / temperature
        itself = torch.eye(2 * n, dtype=torch.bool, device=both.device)
        similarity = similarity.masked_fill(itself, -torch.inf)
        other = torch.arange(2 * n, device=both.device).roll(n)
        total = total.to(both.device) + functional.cross_entropy(similarity, other, reduction="sum")
        right += int((similarity.detach().argmax(-1) == other).sum())
        count += 2 * n
    return total, count, right

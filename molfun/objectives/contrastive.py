"""Tell two views of one series from views of others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from molfun.errors import ConfigError, unknown_name
from molfun.objectives.base import Objective, ObjectiveOutput
from molfun.objectives.series import check_share, need_series, two_layers

logger = logging.getLogger(__name__)

ContrastiveMode = Literal["instance", "temporal"]


class ContrastiveObjective(Objective):
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
        if mode not in get_args(ContrastiveMode):
            raise ConfigError(unknown_name("mode", mode, get_args(ContrastiveMode)))
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
        self._config: dict[str, Any] = {
            "mode": mode,
            "temperature": temperature,
            "projection_dim": projection_dim,
            "mask_ratio": mask_ratio,
            "min_crop": min_crop,
            "jitter": jitter,
            "max_steps": max_steps,
        }
        self._said_single = False
        self.projection: nn.Module = nn.Identity()

    def check(self, backbone: nn.Module) -> None:
        """Need a backbone of time series."""
        need_series(self.name, backbone)

    def build(self, backbone: Any) -> None:
        """The projection in which views are compared."""
        self.projection = two_layers(backbone.single_dim, self._config["projection_dim"])

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Add the two views: ``noise``, ``mask`` and ``keep`` (time steps) of each."""
        views: dict[str, torch.Tensor] = {}
        mask = features["mask"]
        length = len(mask)
        shortest = max(1, math.ceil(self._config["min_crop"] * length))
        for view in ("1", "2"):
            size = int(torch.randint(shortest, length + 1, (), generator=generator))
            start = int(torch.randint(0, length - size + 1, (), generator=generator))
            keep = torch.zeros(length, dtype=torch.bool)
            keep[start : start + size] = True
            seen = torch.rand(mask.shape, generator=generator) >= self._config["mask_ratio"]
            noise = torch.randn(mask.shape, generator=generator) * self._config["jitter"]
            views |= {
                f"keep_{view}": keep,
                f"mask_{view}": mask & seen & keep[:, None],
                f"noise_{view}": noise,
            }
        return {**features, **views}

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Cross entropy of finding the other view among all candidates."""
        steps = [self._encode(backbone, batch, view) for view in ("1", "2")]
        keeps = [batch["keep_1"], batch["keep_2"]]
        if self._config["mode"] == "instance":
            pooled = [
                (x * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)
                for x, keep in zip(steps, keeps, strict=True)
            ]
            pairs = [tuple(self.projection(x) for x in pooled)]
        else:
            pairs = self._same_steps(steps, keeps[0] & keeps[1])
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
                "timeseries": batch["timeseries"] + noise,
                "mask": batch[f"mask_{view}"],
                "padding_mask": batch[f"keep_{view}"],
            }
        )
        return tokens

    def _same_steps(
        self, steps: list[torch.Tensor], both: torch.Tensor
    ) -> list[tuple[torch.Tensor, ...]]:
        """Steps that both views of a series have, thinned evenly: one pair of tables a series."""
        pairs = []
        for row in range(len(both)):
            places = both[row].nonzero().flatten()
            if len(places) > self._config["max_steps"]:
                spread = torch.linspace(0, len(places) - 1, self._config["max_steps"])
                places = places[spread.long().to(places.device)]
            if len(places) > 1:
                pairs.append(tuple(self.projection(x[row, places]) for x in steps))
        return pairs

    def metrics(self, loss: float, sums: Mapping[str, float], n_labels: int) -> dict[str, float]:
        """Share of views whose nearest neighbour is the other view."""
        del loss
        return {"accuracy": sums.get("right", 0.0) / n_labels if n_labels else math.nan}

    @property
    def config_dict(self) -> dict[str, Any]:
        """Constructor arguments."""
        return dict(self._config)


def nt_xent(
    pairs: list[tuple[torch.Tensor, ...]], temperature: float
) -> tuple[torch.Tensor, int, int]:
    """Summed NT-Xent over tables of pairs, its number of terms, and how many are right.

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

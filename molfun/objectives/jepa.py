"""Predict the representation, not the values, of what is hidden."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from molfun.errors import ConfigError
from molfun.objectives.base import ObjectiveOutput
from molfun.objectives.series import SeriesObjective, check_share, random_blocks, two_layers


class JEPAObjective(SeriesObjective):
    """Joint-embedding prediction: from a series with pieces hidden, predict what a teacher sees.

    The teacher is an exponential moving average of the encoder, steps once per optimizer step and
    sees the whole series; its representation of each hidden time step, normalised, is the target.

    Parameters
    ----------
    mask_ratio
        Share of the time steps that is hidden.
    n_blocks
        Pieces in which it is hidden.
    momentum
        Decay of the teacher at the start; it rises linearly to `final_momentum`.
    final_momentum
        Decay at the end of training.

    References
    ----------
    Assran et al. 2023 (I-JEPA); Grill et al. 2020 (BYOL) for the teacher.

    Examples
    --------
    >>> JEPAObjective(momentum=0.99).momentum_at(0.5)
    0.995
    """

    name = "jepa"
    metric_names = ("cosine", "target_std")
    higher_is_better = frozenset({"cosine"})
    ranks_epochs = False  # the teacher's representations change, and a collapse has the least loss

    def __init__(
        self,
        *,
        mask_ratio: float = 0.5,
        n_blocks: int = 2,
        momentum: float = 0.99,
        final_momentum: float = 1.0,
    ) -> None:
        super().__init__()
        check_share("mask_ratio", mask_ratio)
        if n_blocks < 1:
            raise ConfigError(f"n_blocks must be at least 1, got {n_blocks}.")
        if not 0 <= momentum <= final_momentum <= 1:
            raise ConfigError(
                f"0 <= momentum <= final_momentum <= 1 must hold, got {momentum} and "
                f"{final_momentum}."
            )
        self.keep_arguments(locals())
        self.predictor: nn.Module = nn.Identity()
        # in a list, so that they are no submodules: neither trains as a part of the objective
        self._teacher: list[Any] = []
        self._student: list[Any] = []

    def build(self, backbone: Any) -> None:
        """Make the predictor, and a teacher that starts as a copy of the encoder."""
        self.predictor = two_layers(backbone.single_dim, backbone.single_dim)
        self._student = [backbone]
        self._teacher = [copy.deepcopy(backbone).requires_grad_(False).eval()]

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Hide pieces of time: ``mask`` is what is left, ``hidden`` the time steps asked for."""
        mask = features["mask"]
        hidden = random_blocks(
            len(mask), self._config["mask_ratio"], self._config["n_blocks"], generator
        )
        return {**features, "seen": mask, "mask": mask & ~hidden[:, None], "hidden": hidden}

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the squared distance to the teacher's outputs, averaged over channels."""
        teacher = self._teacher[0].to(batch["hidden"].device)
        with torch.no_grad():
            seen = teacher.encode({**batch, "mask": batch["seen"]})[batch["hidden"]].float()
            target = functional.layer_norm(seen, seen.shape[-1:])
        predicted = self.predictor(backbone.encode(batch)).float()[batch["hidden"]]
        total = (predicted - target).square().mean(-1).sum()
        with torch.no_grad():
            n = len(target)
            cosine = functional.cosine_similarity(predicted, target, dim=-1).sum()
            sums: dict[str, Any] = {"cosine": float(cosine), "target": target.sum(0).cpu().numpy()}
        return ObjectiveOutput(total, n, sums)

    def momentum_at(self, progress: float) -> float:
        """Return the decay of the teacher when that share of all steps is done."""
        start, end = self._config["momentum"], self._config["final_momentum"]
        now: float = start + (end - start) * progress
        return now

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the encoder by its moving average."""
        teacher, student = self._teacher[0], self._student[0]
        torch._foreach_lerp_(
            list(teacher.parameters()), list(student.parameters()), 1 - self.momentum_at(progress)
        )
        for kept, own in zip(teacher.buffers(), student.buffers(), strict=True):
            kept.copy_(own)  # the scale of the input, statistics of batch norms

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return the weights and buffers of the teacher."""
        return {name: t.detach() for name, t in self._teacher[0].state_dict().items()}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put them back."""
        self._teacher[0].load_state_dict(dict(state))

    def metrics(self, loss: float, sums: Mapping[str, Any], n_labels: int) -> dict[str, float]:
        """Return the cosine of prediction and target, and the deviation of targets (0: collapsed).

        Each target has mean 0 and variance 1 over its channels, so their variance over the time
        steps is 1 less the mean square of their mean.
        """
        del loss
        if n_labels == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        mean = np.asarray(sums["target"]) / n_labels
        return {
            "cosine": sums.get("cosine", 0.0) / n_labels,
            "target_std": math.sqrt(max(0.0, 1 - float(np.square(mean).mean()))),
        }

"""Muon for the hidden matrices of a model, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from molfun.errors import ConfigError


class MuonWithAdamW(torch.optim.Optimizer):
    """Torch's Muon and AdamW as one optimizer, over groups that are divided between the two.

    Muon replaces the momentum of a matrix by the nearest orthogonal one, so that it moves as far in
    all directions. It is made for the hidden layers: what has another number of dimensions than
    two, embeddings, heads and output layers go to AdamW, as its authors do it. A step is scaled
    to the size of AdamW's (``match_rms_adamw``), so that learning rates and weight decay mean the
    same for both.

    Parameters
    ----------
    params
        Parameters or groups of them. A group with ``hidden=False`` goes to AdamW as a whole
        (`molfun.nn.param_groups.for_optimizer`).
    lr
        Learning rate of groups without one.
    weight_decay
        Decoupled weight decay of groups without one.

    Raises
    ------
    ConfigError
        If there is no matrix for Muon.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025,
    "Muon is Scalable for LLM Training" (the scale of a step).

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimizer = MuonWithAdamW(layer.parameters(), lr=0.1)
    >>> [(group["by_muon"], len(group["params"])) for group in optimizer.param_groups]
    [(True, 1), (False, 1)]
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        groups = [part for group in _as_groups(params) for part in _divided(group)]
        if not any(group["by_muon"] for group in groups):
            raise ConfigError(
                "muon trains matrices of hidden layers, and none trains here. Use adamw, or a "
                "strategy that trains blocks or adapters."
            )
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        # each sets its own defaults in its groups, which are the same objects as here
        self._parts: list[tuple[torch.optim.Optimizer, bool]] = [
            (torch.optim.Muon(self._of(True), adjust_lr_fn="match_rms_adamw", **shared), True)
        ]
        rest = self._of(False)
        if rest:
            on_cpu = all(p.device.type == "cpu" for group in rest for p in group["params"])
            self._parts.append((torch.optim.AdamW(rest, fused=on_cpu or None, **shared), False))

    def _of(self, by_muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["by_muon"] is by_muon]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has an overload per kind of closure
        """Take one step with both."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part, by_muon in self._parts:
            # every time, since loading a state replaces both
            part.state, part.param_groups = self.state, self._of(by_muon)
            part.step()
        return loss


def _as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    entries = list(params)
    if all(isinstance(entry, dict) for entry in entries):
        return [{**entry, "params": list(entry["params"])} for entry in entries]
    return [{"params": entries}]


def _divided(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the part of a group for Muon and the part for AdamW, where they are not empty."""
    may = group.get("hidden", True)
    parameters: Sequence[torch.Tensor] = group["params"]
    names = group.get("param_names", [""] * len(parameters))
    for by_muon in (True, False):
        chosen = [
            one
            for one in zip(parameters, names, strict=True)
            if (may and one[0].ndim == 2) is by_muon
        ]
        if chosen:
            params, its_names = map(list, zip(*chosen, strict=True))
            part = {**group, "params": params, "by_muon": by_muon}
            yield part | {"param_names": its_names} if "param_names" in group else part

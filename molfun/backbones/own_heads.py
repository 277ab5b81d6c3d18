"""Ability of a backbone to bring heads along: trained weights, or parts of itself."""

from __future__ import annotations

import torch


class OwnHeads:
    """Mix-in for a `Backbone` whose weight files hold more than the trunk."""

    @property
    def own_head(self) -> str | None:
        """Name of the registered head that a model gets if none is chosen; None without one."""
        return None

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the registered heads that are views on modules of this backbone."""
        return () if self.own_head is None else (self.own_head,)

    def pretrained_head(self, name: str) -> dict[str, torch.Tensor] | None:  # noqa: ARG002
        """Return published weights for the registered head `name`; None if there are none."""
        return None

    def unready(self) -> str | None:
        """Return the reason why predictions of the own head are meaningless so far, or None."""
        return None

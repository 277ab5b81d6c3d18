"""Ability of a backbone to bring heads along: trained weights, or parts of itself."""

from __future__ import annotations

import torch


class OwnHeads:
    """Mix-in for a `Backbone` whose weight files hold more than the trunk."""

    @property
    def own_head(self) -> str | None:
        """Registered head that a model has where none is named; None without any."""
        return None

    def pretrained_head(self, name: str) -> dict[str, torch.Tensor] | None:  # noqa: ARG002
        """Weights of the registered head `name`, as its ``state_dict``; None without any."""
        return None

    def unready(self) -> str | None:
        """Say why predictions of the own head mean nothing yet; None if they do."""
        return None

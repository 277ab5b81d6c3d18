"""A model without weights, to find out what would fit and train before anything is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from molfun.models.build import (
    HeadSettings,
    as_settings,
    augmented,
    build_backbone,
    build_task_head,
    named_heads,
)
from molfun.nn.process import settled
from molfun.strategies.base import FinetuneStrategy
from molfun.training.task_head import TaskHead, as_module

logger = logging.getLogger(__name__)


class Skeleton(nn.Module):
    """Backbone and heads on torch's meta device: shapes and names, but no numbers.

    `FinetuneStrategy.setup` takes it as it takes a model. What it costs does not depend on the
    size: the 650 million weights of ESM-2 take 3 s and no memory.

    Parameters
    ----------
    backbone, config, backbone_config, head, head_config, task, task_config, heads, trust, augment
        As for `MolfunStructureModel`.

    Raises
    ------
    ConfigError
        If a name or setting is unknown, or parts do not go together.

    Examples
    --------
    >>> model = Skeleton("esm2_t6_8M_UR50D", head="regression")
    >>> sum(p.numel() for p in model.backbone.parameters()), next(model.parameters()).device.type
    (7512474, 'meta')
    """

    def __init__(
        self,
        backbone: str,
        *,
        config: Any = None,
        backbone_config: Mapping[str, Any] | None = None,
        head: str | None = None,
        head_config: Mapping[str, Any] | None = None,
        task: str | None = None,
        task_config: Mapping[str, Any] | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        trust: bool = False,
        augment: str | None = None,
    ) -> None:
        super().__init__()
        settings = as_settings("backbone_config", backbone_config)
        with settled(), torch.device("meta"):
            self.backbone = build_backbone(
                backbone, settings, config=config, weights=None, seed=0, trust=trust
            )
            only = HeadSettings(head, head_config, task, task_config)
            wanted = named_heads(only, heads, self.backbone)
            self.heads: tuple[TaskHead, ...] = tuple(
                build_task_head(name, one, backbone=self.backbone, seed=0)
                for name, one in augmented(wanted, augment).items()
            )
            # what a backbone trains may depend on the heads that it serves
            self.backbone.serve(self.heads)
        self.head: nn.Module | None = as_module(self.heads)
        self.strategy: FinetuneStrategy | None = None

"""The run that is checked: its data, its model and its choices, before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind, Labels
from molfun.strategies.base import FinetuneStrategy
from molfun.training.task_head import TaskHead

PARTS = ("train", "val", "test")


@dataclass(kw_only=True)
class Subject:
    """Data, settings and model of a run that is checked.

    Parameters
    ----------
    parts
        Those of "train", "val" and "test" that have samples.
    kind
        Kind of the data.
    backbone_name
        Name that the user gave.
    labels
        Task and level of the labels of each head; one head has the empty name.
    used
        Further columns that the run reads.
    split
        Name of the split, and of the column that it reads if it reads one.
    model
        Model, or `molfun.models.skeleton.Skeleton`, with ``backbone`` and ``heads``; None if it
        cannot be built.
    has_weights
        Whether the run starts from weights of its own: a file, or a checkpoint.
    strategy, why
        What trains, and the reason if it was chosen by the number of samples.
    device
        Device of the run.
    batch_size, epochs
        Settings of the run.
    """

    parts: Mapping[str, SampleDataset]
    kind: DataKind
    backbone_name: str
    labels: Mapping[str, Labels]
    used: frozenset[str] = frozenset()
    split: str = "random"
    model: Any = None
    has_weights: bool = False
    strategy: FinetuneStrategy | None = None
    why: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 1
    epochs: int = 1

    @property
    def heads(self) -> tuple[TaskHead, ...]:
        """Heads of the model; empty without a model."""
        return () if self.model is None else tuple(self.model.heads)

    def targets(self, part: str, head: str) -> Sequence[Any]:
        """Return the labels of one head in a part."""
        targets = self.parts[part].targets
        return [target.get(head) for target in targets] if head else targets

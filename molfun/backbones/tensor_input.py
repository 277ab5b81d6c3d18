"""Ability of a backbone to learn from batches of tensors given in place of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

from molfun.backbones.base import Backbone, Features
from molfun.errors import DataError


class TensorInput(ABC):
    """Mix-in for a `Backbone` that learns from batches of tensors as well as from samples."""

    def check_batch(self, batch: Features) -> None:  # noqa: B027  (most tensors hold some)
        """Raise a `DataError` if the tensors of a sample hold no observed value."""

    @abstractmethod
    def split(self, batch: Features) -> list[Features]:
        """Return the features of each sample of a batch: the inverse of ``collate``."""


def split_batch(backbone: Backbone, batch: Features) -> list[Features]:
    """Return the features of each sample of a batch.

    Raises
    ------
    DataError
        If the backbone is no `TensorInput`.
    """
    # an objective masks samples one by one, so a batch has to be taken apart first
    if not isinstance(backbone, TensorInput):
        raise DataError(
            f"Pre-training of {backbone.display_name} needs samples, not tensors: pass a dataset "
            f"or a loader of samples."
        )
    return backbone.split(batch)

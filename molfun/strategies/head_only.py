"""Train the head on a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from molfun.backbones.base import Backbone
from molfun.strategies.base import Entry, FinetuneStrategy


@dataclass(frozen=True, kw_only=True)
class HeadOnlyFinetune(FinetuneStrategy):
    """Freeze the whole backbone; for fewer than 100 samples, baselines and sanity checks.

    The frozen backbone runs once per sample, not once per epoch: its output is cached.

    Parameters
    ----------
    lr
        Learning rate of the head.

    Examples
    --------
    >>> HeadOnlyFinetune(lr=1e-3, ema_decay=0.999).main_lr
    0.001
    """

    name: ClassVar[str] = "head_only"

    lr: float = 1e-3

    def _problems(self) -> Iterable[str]:
        return self._positive("lr")

    @property
    def head_lr(self) -> float:
        """Learning rate of the head."""
        return self.lr

    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:  # noqa: ARG002
        """Return nothing: no parameter of the backbone trains."""
        return iter(())

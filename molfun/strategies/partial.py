"""Train the last blocks, the structure module and the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.nn import lora
from molfun.strategies.base import Entry, FinetuneStrategy


@dataclass(frozen=True, kw_only=True)
class PartialFinetune(FinetuneStrategy):
    """Freeze the early blocks, train the last ones; for 1,000 to 10,000 samples.

    Parameters
    ----------
    unfreeze_last_n
        Number of blocks that train, counted from the end.
    unfreeze_structure_module
        Whether the structure module trains too. It receives gradients only from tasks that read
        the predicted structure.
    lr_trunk
        Learning rate of the unfrozen part of the backbone.
    lr_head
        Learning rate of the head; None means ten times `lr_trunk`.

    Examples
    --------
    >>> PartialFinetune(unfreeze_last_n=8, lr_trunk=1e-5).main_lr
    1e-05
    """

    name: ClassVar[str] = "partial"
    lr_name: ClassVar[str] = "lr_trunk"

    unfreeze_last_n: int = 4
    unfreeze_structure_module: bool = True
    lr_trunk: float = 1e-5
    lr_head: float | None = None

    def _problems(self) -> Iterable[str]:
        yield from self._positive("lr_trunk", "lr_head")
        if self.unfreeze_last_n < 1:
            yield f"unfreeze_last_n must be at least 1, got {self.unfreeze_last_n}."

    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:
        """Return the last blocks and, if asked for, the structure module.

        Raises
        ------
        ConfigError
            If the backbone has fewer blocks.
        """
        n_blocks = len(backbone.blocks())
        if self.unfreeze_last_n > n_blocks:
            raise ConfigError(
                f"unfreeze_last_n={self.unfreeze_last_n}, but {backbone.display_name} has "
                f"{n_blocks} blocks. Use at most {n_blocks}, or FullFinetune."
            )
        for name, parameter in backbone.named_parameters():
            layer = backbone.layer_of(name)
            late = layer.kind == "block" and layer.index >= n_blocks - self.unfreeze_last_n
            structure = layer.kind == "structure_module" and self.unfreeze_structure_module
            if (late or structure) and not lora.is_adapter(name):
                yield layer.kind, self.lr_trunk, name, parameter

"""Train everything, early layers slowly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from molfun.backbones.base import Backbone, Layer
from molfun.nn import lora
from molfun.strategies.base import Entry, FinetuneStrategy

EMBEDDER_LR_RATIO = 0.01


@dataclass(frozen=True, kw_only=True)
class FullFinetune(FinetuneStrategy):
    """Train the whole model with layer-wise learning-rate decay; for more than 10,000 samples.

    Block ``i`` of ``n`` trains at ``lr * layer_lr_decay ** (n - 1 - i)``. What feeds the first
    block (templates, extra MSA, recycling) comes before it in depth and gets one factor more.

    Parameters
    ----------
    lr
        Learning rate of the last block.
    lr_head
        Learning rate of the head; None means ten times `lr`.
    layer_lr_decay
        Factor from one block to the one before; 1 turns the decay off.
    lr_embedder
        Learning rate of the input embedder; None means a hundredth of `lr`.
    lr_structure_module
        Learning rate of the structure module; None means `lr`.

    References
    ----------
    Howard and Ruder 2018 (ULMFiT), section 3.2, "discriminative fine-tuning".

    Examples
    --------
    >>> FullFinetune(lr=1e-5, layer_lr_decay=0.95).lr_of_block(0, 48)
    8.97...e-07
    """

    name: ClassVar[str] = "full"

    lr: float = 1e-5
    lr_head: float | None = None
    layer_lr_decay: float = 0.95
    lr_embedder: float | None = None
    lr_structure_module: float | None = None

    def _problems(self) -> Iterable[str]:
        yield from self._positive("lr", "lr_head", "lr_embedder", "lr_structure_module")
        if not 0 < self.layer_lr_decay <= 1:
            yield f"layer_lr_decay must be above 0 and at most 1, got {self.layer_lr_decay}."

    def lr_of_block(self, index: int, n_blocks: int) -> float:
        """Return the learning rate of block `index`; -1 is the layer before the first block."""
        return self.lr * self.layer_lr_decay ** (n_blocks - 1 - index)

    def backbone_entries(self, backbone: Backbone) -> Iterator[Entry]:
        """Return every parameter of the backbone, grouped by depth."""
        n_blocks = len(backbone.blocks())
        for name, parameter in backbone.named_parameters():
            if not lora.is_adapter(name):
                layer = backbone.layer_of(name)
                label = f"block.{layer.index}" if layer.kind == "block" else layer.kind
                yield label, self._lr_of(layer, n_blocks), name, parameter

    def _lr_of(self, layer: Layer, n_blocks: int) -> float:
        if layer.kind == "embedder":
            return self.lr * EMBEDDER_LR_RATIO if self.lr_embedder is None else self.lr_embedder
        if layer.kind == "early":
            return self.lr_of_block(-1, n_blocks)
        if layer.kind == "block":
            return self.lr_of_block(layer.index, n_blocks)
        if layer.kind == "structure_module" and self.lr_structure_module is not None:
            return self.lr_structure_module
        return self.lr

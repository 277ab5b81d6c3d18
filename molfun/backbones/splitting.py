"""Ability of a backbone to run in two parts: the frozen blocks, then the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from molfun.backbones.base import Backbone, Features
from molfun.fingerprint import combine_digests, tensor_digests
from molfun.trunk import TrunkOutput, padded_batches


class PrefixSplitting(ABC):
    """Mix-in for a `Backbone` whose forward pass can stop before a block and go on from there.

    What the frozen blocks give is then computed once for each sample and kept.
    """

    @abstractmethod
    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:
        """Return whether the forward pass for these outputs can stop before `block`."""

    @abstractmethod
    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run all before `block`, without a graph.

        The result of a batch of one sample is what a cache keeps.
        """

    def join_states(self, states: Sequence[Features]) -> Features:
        """Make one batch of what `run_prefix` gave for samples one by one, padded with zeros."""
        return padded_batches(states)

    @abstractmethod
    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Go on from `run_prefix`: the same output as ``forward``."""


def frozen_blocks(backbone: Backbone) -> int:
    """Count the leading blocks that are frozen along with all that comes before them."""
    trains = [backbone.layer_of(n) for n, p in backbone.named_parameters() if p.requires_grad]
    if any(layer.kind in ("embedder", "early") for layer in trains):
        return 0
    indices = [layer.index for layer in trains if layer.kind == "block"]
    return min(indices, default=len(backbone.blocks()))


def prefix_fingerprint(backbone: Backbone, block: int) -> str:
    """Sha256 over architecture and all weights that run before `block`."""
    tensors = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if (layer := backbone.layer_of(name)).kind in ("embedder", "early")
        or (layer.kind == "block" and layer.index < block)
    }
    return combine_digests({**backbone.config_dict, "block": block}, tensor_digests(tensors))

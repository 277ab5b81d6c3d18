"""Ability of a backbone to run in two parts: the frozen blocks, then the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from molfun.backbones.base import Backbone, Features
from molfun.fingerprint import combine_digests, tensor_digests
from molfun.trunk import TrunkOutput, padded_batches


class PrefixSplitting(ABC):
    """Mix-in for a `Backbone` whose forward pass can stop before a block and resume from there.

    The output of the frozen blocks is then computed once per sample and kept for later epochs.
    """

    @abstractmethod
    def splits_before(self, block: int, outputs: Sequence[str]) -> bool:
        """Return whether the forward pass for these outputs can stop before `block`."""

    @abstractmethod
    def run_prefix(self, batch: Features, block: int) -> Features:
        """Run everything before `block`, without a graph.

        A cache stores the result of a batch with one sample.
        """

    def join_states(self, states: Sequence[Features]) -> Features:
        """Join results of `run_prefix` for single samples into one batch, padded with zeros."""
        return padded_batches(states)

    @abstractmethod
    def run_suffix(self, state: Features, block: int, *, outputs: Sequence[str]) -> TrunkOutput:
        """Run the blocks from `block` on; returns the same as ``forward`` on the whole."""


def frozen_blocks(backbone: Backbone) -> int:
    """Count the leading blocks that are frozen along with everything before them."""
    # Adapters are parameters of their block, so a block with LoRA counts as one that trains.
    trains = [backbone.layer_of(n) for n, p in backbone.named_parameters() if p.requires_grad]
    if any(layer.kind in ("embedder", "early") for layer in trains):
        return 0
    indices = [layer.index for layer in trains if layer.kind == "block"]
    return min(indices, default=len(backbone.blocks()))


def prefix_fingerprint(backbone: Backbone, block: int) -> str:
    """Return the sha256 over architecture and all weights that run before `block`."""
    # later weights are left out: they train, and a cache of the prefix has to survive that
    # recycling feeds the structure back, so that the prefix of all blocks depends on its module
    early = ("embedder", "early") + ("structure_module",) * (block == len(backbone.blocks()))
    tensors = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if (layer := backbone.layer_of(name)).kind in early
        or (layer.kind == "block" and layer.index < block)
    }
    return combine_digests({**backbone.config_dict, "block": block}, tensor_digests(tensors))

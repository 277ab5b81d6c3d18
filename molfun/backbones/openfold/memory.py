"""Predict the memory of a training step of OpenFold, and choose what to keep for the backward pass.

`peak_bytes` is a linear model in the sizes of the pair and the MSA representation of a batch. Its
coefficients were estimated from peaks of resident memory that ``benchmarks/memory_model.py``
measures (tables in docs/performance.md). About 50 MB per step, whatever its size, are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from molfun.backbones.openfold import features, fold_memory
from molfun.backbones.openfold.fast import set_recomputed
from molfun.backbones.planning import BlockCosts, FoldMemory, MemoryPlan, MemoryPlanning
from molfun.sample import Sample
from molfun.text import counted

Plan = Literal["keep", "checkpoint", "compact", "lean"]
"""Activations that a step keeps for the backward pass, from most memory to least.

``keep``: all activations. ``checkpoint``: the inputs of each block; with the fast kernels, the last
blocks keep their activations as far as these fit. ``compact``: the inputs of each block, and large
buffers are returned to the system when they are freed (`molfun.nn.allocator`), which takes time.
``lean``: in addition, while a block is recomputed, only the inputs of its parts are kept.
"""
PLANS: tuple[Plan, ...] = get_args(Plan)
WORDS: Mapping[Plan, str] = {
    "keep": "activations are kept",
    "checkpoint": "activations of a block are computed again in the backward pass",
    "compact": "activations of a block are computed again in the backward pass, and buffers are "
    "given back at once",
    "lean": "activations are computed again in the backward pass, twice inside of blocks",
}


@dataclass(frozen=True)
class Costs:
    """Coefficients of a plan: copies of the pair and of the MSA representation that it holds.

    ``block_*`` counts for every block from the first that trains on, ``once_*`` once per step.
    """

    block_pair: float
    block_msa: float
    once_pair: float
    once_msa: float


# estimated from steps through several blocks with adapters
FAST: Mapping[Plan, Costs] = {
    "keep": Costs(39.0, 19.0, 4.0, 9.0),
    "checkpoint": Costs(9.0, 1.0, 48.0, 36.0),
    "compact": Costs(1.3, 0.7, 41.0, 27.0),
    "lean": Costs(1.4, 0.7, 21.0, 12.0),
}
STOCK: Mapping[Plan, Costs] = {
    "keep": Costs(83.0, 13.0, 5.0, 37.0),
    "checkpoint": Costs(24.0, 2.0, 89.0, 35.0),
    "compact": Costs(1.6, 0.4, 48.0, 25.0),
}
"""Coefficients of openfold's own code. `peak_bytes` adds its attention logits, which grow with the
cube of the length and which the fast kernels never hold. Openfold cannot checkpoint parts of
blocks, so there is no ``lean``."""
STRUCTURE_PAIR = 12.0
"""Copies of the pair representation that the structure module and its losses hold: 4 to 7 measured
at 96 and 192 residues, and 8 more with the violation."""
HEADS = 4
"""Attention heads of the pair stack in every published preset."""


@dataclass(frozen=True)
class Shape:
    """Sizes that decide the memory of a step.

    Parameters
    ----------
    batch, length, rows
        Number of samples, residues of the longest one, rows of its alignment and templates.
    c_m, c_z
        Channels of the MSA and of the pair representation.
    blocks
        Number of blocks from the first that trains on.
    structure
        Whether the structure module and AlphaFold's losses on coordinates run.
    """

    batch: int
    length: int
    rows: int
    c_m: int
    c_z: int
    blocks: int
    structure: bool = False

    @property
    def pair_bytes(self) -> int:
        """Bytes of a pair representation in float32."""
        return 4 * self.batch * self.length**2 * self.c_z

    @property
    def msa_bytes(self) -> int:
        """Bytes of an MSA representation in float32."""
        return 4 * self.batch * self.rows * self.length * self.c_m


def plans(*, fast: bool) -> tuple[Plan, ...]:
    """Return the plans that the kernels offer, most memory first."""
    return tuple(FAST if fast else STOCK)


def peak_bytes(shape: Shape, plan: Plan, *, fast: bool, kept: int = 0) -> int:
    """Return the peak of a training step in bytes, in addition to what the process holds before.

    Parameters
    ----------
    shape
        Sizes of the step.
    plan, kept
        What is kept; with ``checkpoint`` the last `kept` blocks keep their activations.
    fast
        Whether the fast kernels run.
    """
    costs = (FAST if fast else STOCK)[plan]
    pair = shape.blocks * costs.block_pair + costs.once_pair
    msa = shape.blocks * costs.block_msa + costs.once_msa
    pair += STRUCTURE_PAIR * shape.structure
    total = pair * shape.pair_bytes + msa * shape.msa_bytes
    if not fast:
        # logits and weights of two triangle attentions: four tensors per block. With checkpointing
        # only those of the block that is recomputed exist.
        logits = 4 * shape.batch * HEADS * shape.length**3
        total += 4 * logits * (shape.blocks if plan == "keep" else 1)
    return int(total) + kept * _block_bytes(shape)


def _block_bytes(shape: Shape) -> int:
    """Return what a block takes more if it keeps its activations next to blocks that do not."""
    whole, less = FAST["keep"], FAST["checkpoint"]
    pair, msa = whole.block_pair - less.block_pair, whole.block_msa - less.block_msa
    return int(pair * shape.pair_bytes + msa * shape.msa_bytes)


@dataclass(frozen=True)
class Choice:
    """Activations that a step keeps, and the peak of its memory.

    Parameters
    ----------
    plan
        Name of the plan.
    peak
        Predicted peak of a step in bytes.
    kept
        Number of the last blocks that keep their activations where the plan is ``checkpoint``.
    """

    plan: Plan
    peak: int
    kept: int = 0

    def __str__(self) -> str:
        """Return what is kept, in words."""
        if not self.kept:
            return WORDS[self.plan]
        return (
            f"activations of the last {counted(self.kept, 'block')} are kept, those of the others "
            f"are computed again in the backward pass"
        )


def choose(shape: Shape, available: int, *, fast: bool) -> Choice:
    """Return the fastest plan that fits `available` bytes, else the smallest one.

    Examples
    --------
    >>> shape = Shape(batch=1, length=64, rows=2, c_m=256, c_z=128, blocks=48)
    >>> choose(shape, 16 * 2**30, fast=True).plan
    'keep'
    >>> found = choose(shape, 3 * 2**30, fast=True)
    >>> found.plan, 0 < found.kept < 48
    ('checkpoint', True)
    """
    # All plans run the same operations, so a run that is resumed on a machine with other memory
    # goes on with the same bits.
    for plan in plans(fast=fast):
        peak = peak_bytes(shape, plan, fast=fast)
        if peak <= available:
            break
    if plan != "checkpoint" or not fast or peak > available:
        return Choice(plan, peak)
    # the last ones: what they keep is freed before the first block is recomputed
    kept = min(shape.blocks - 1, (available - peak) // max(_block_bytes(shape), 1))
    return Choice(plan, peak_bytes(shape, plan, fast=fast, kept=kept), kept)


def longest_that_fits(shape: Shape, available: int, *, fast: bool) -> int:
    """Return the largest length for which a step fits, in steps of 8; 0 if there is none."""
    plan = plans(fast=fast)[-1]
    for length in range(shape.length - shape.length % 8, 0, -8):
        smaller = Shape(**{**shape.__dict__, "length": length})
        if peak_bytes(smaller, plan, fast=fast) <= available:
            return length
    return 0


def shape_of(
    config: Any, *, batch: int, length: int, msa_rows: int, blocks: int, structure: bool = False
) -> Shape:
    """Return the sizes of a step; `blocks` keep a graph, templates add rows to the alignment."""
    template = config.model.template
    templates = template.enabled and template.embed_angles
    return Shape(
        batch=batch,
        length=length,
        rows=msa_rows + (int(config.data.predict.max_templates or 0) if templates else 0),
        c_m=int(config.globals.c_m),
        c_z=int(config.globals.c_z),
        blocks=blocks,
        structure=structure,
    )


def checkpoint_blocks(model: Any, on: bool, *, kept: int = 0) -> None:
    """Turn recomputation of every stack of blocks of openfold's model on or off.

    With the fast kernels, the last `kept` blocks of the Evoformer keep their activations.
    """
    per_checkpoint = 1 if on else None
    some = on and kept > 0
    model.evoformer.blocks_per_ckpt = None if some else per_checkpoint
    blocks = model.evoformer.blocks
    set_recomputed(blocks, len(blocks) - kept if some else 0)
    for module in model.modules():
        if type(module).__name__ == "TemplatePairStack":
            module.blocks_per_ckpt = per_checkpoint
        elif type(module).__name__ == "ExtraMSABlock":
            module.ckpt = on


class EvoformerCosts(MemoryPlanning, BlockCosts, FoldMemory):
    """Memory and costs of blocks that work on pairs of residues and on the rows of an alignment."""

    config: Any
    data_config: Any
    kernels: Any
    _precision: str
    step_seconds = 0.2
    """Measured 0.2 to 0.4 s with two small blocks: eight passes through the structure module."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the trunk, first to last."""

    @abstractmethod
    def _shape_of_step(self, longest: Sample, batch_size: int) -> Shape:
        """Return the sizes that decide the memory of a step."""

    @abstractmethod
    def _raw_features(self, sample: Sample) -> dict[str, Any]:
        """Return openfold's raw features of a sample."""

    def fold_memory(self, sample: Sample, available: int) -> MemoryPlan:
        """Return the predicted peak of a fold on the kernels in use."""
        fast_runs = self.kernels == "fast" and self._precision == "32-true"
        predict = self.data_config.predict
        alone = sample.features is None and sample.alignment_dir is None
        most = int(predict.max_msa_clusters) + int(predict.max_extra_msa)

        def peak_of(depth: int) -> tuple[fold_memory.FoldShape, int]:
            shape = fold_memory.shape_of(self.config, predict, self._length_of(sample), depth)
            return shape, fold_memory.peak_bytes(shape, fast=fast_runs)

        shape, peak = peak_of(1 if alone else most)
        if peak > available and not alone:  # to count the rows takes as long as to read them
            shape, peak = peak_of(self._depth_of(sample))
        if peak <= available:
            return MemoryPlan(peak, "")
        fits = fold_memory.longest_that_fits(shape, available, fast=fast_runs)
        return MemoryPlan(peak, "", fits)

    def _length_of(self, sample: Sample) -> int:
        if sample.protein is not None:
            return len(sample.protein)
        given = sample.features or {}
        if features.is_processed(given):
            return len(given["aatype"])
        length = features.raw_length(given)
        return length if sample.max_length is None else min(length, sample.max_length)

    def _depth_of(self, sample: Sample) -> int:
        """Return the number of sequences of the alignment."""
        given = sample.features
        if given is not None and features.is_processed(given):
            return len(given["msa_feat"]) + len(given["extra_msa"])
        return len(self._raw_features(sample)["msa"])

    def block_flops(self, sample: Sample) -> float:
        """Return the products with the weights, and those of residues with each other.

        Two triangle updates multiply a third residue into each pair, and two triangle attentions
        do so twice (AlphaFold 2, supplement, algorithms 11 to 14); rows of the alignment attend to
        their residues (algorithm 7).
        """
        shape = self._shape_of_step(sample, 1)
        of_msa, of_pairs = 0, 0
        for name, weight in self.blocks()[0].named_parameters():
            if weight.ndim == 2:
                of_msa += weight.numel() * ("msa" in name)
                of_pairs += weight.numel() * ("msa" not in name)
        n, rows = shape.length, shape.rows
        products = 2.0 * (of_pairs * n**2 + of_msa * rows * n)
        return products + 12.0 * n**3 * shape.c_z + 4.0 * rows * n**2 * shape.c_m

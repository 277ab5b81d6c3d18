"""Predict the peak memory of a fold, before it starts.

Without a graph no block keeps anything, so the peak is that of the largest step in between and does
not depend on the number of blocks. The coefficients were estimated from peaks of resident memory
that ``benchmarks/fold_memory.py`` measures (table in docs/performance.md), rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

FIXED = 48 * 2**20
"""Bytes of buffers that do not grow with the sample."""
TOKENS = 2**16
"""Tokens in the rows that attend at a time on the fast kernels, as in `fast.TOKENS`."""
HEAPED = 512
"""Length up to which the heap keeps more than is in use: 17 pair representations, 8 at 768."""
CHUNK_ABOVE = 384
"""Length above which openfold's own code runs in chunks of 4 rows."""
CHUNK = 4
TRIANGLE_HEADS = 4
"""Attention heads of the pair stack in every published preset."""


@dataclass(frozen=True)
class FoldShape:
    """Sizes that decide the memory of a fold.

    Parameters
    ----------
    length
        Residues.
    rows, extra
        Rows of the MSA, templates among them, and of the extra MSA.
    c_m, c_e, c_z
        Channels of the MSA, the extra MSA and the pair representation.
    heads
        Attention heads of the MSA stack.
    """

    length: int
    rows: int
    extra: int
    c_m: int
    c_e: int
    c_z: int
    heads: int

    @property
    def pair_bytes(self) -> int:
        """Bytes of the pair representation in float32."""
        return 4 * self.length**2 * self.c_z

    @property
    def msa_bytes(self) -> int:
        """Bytes of the MSA representation in float32."""
        return 4 * self.rows * self.length * self.c_m

    @property
    def extra_bytes(self) -> int:
        """Bytes of the extra-MSA representation in float32."""
        return 4 * self.extra * self.length * self.c_e

    def column_bytes(self, columns: int) -> int:
        """Bytes of the attention weights between the rows of so many columns of the MSA."""
        return 4 * min(columns, self.length) * self.rows**2 * self.heads

    def triangle_bytes(self, rows: int) -> int:
        """Bytes of the attention weights of so many rows of the pair representation."""
        return 4 * min(rows, self.length) * self.length**2 * TRIANGLE_HEADS


def peak_bytes(shape: FoldShape, *, fast: bool) -> int:
    """Return the peak of a fold in bytes, in addition to what the process holds before.

    Examples
    --------
    >>> shape = FoldShape(length=256, rows=2, extra=1, c_m=256, c_e=64, c_z=128, heads=8)
    >>> round(peak_bytes(shape, fast=True) / 2**20)
    593
    """
    if fast:
        columns = max(1, TOKENS // shape.rows)
        heaped = replace(shape, length=min(shape.length, HEAPED)).pair_bytes
        parts = (
            max(17 * heaped, 11 * shape.pair_bytes),
            2 * shape.msa_bytes,
            2.4 * shape.column_bytes(columns),
        )
    else:
        at_a_time = shape.length if shape.length <= CHUNK_ABOVE else CHUNK
        parts = (
            28 * shape.pair_bytes + 3 * shape.triangle_bytes(at_a_time),
            2 * shape.msa_bytes,
            3.4 * shape.column_bytes(at_a_time),
        )
    # the extra MSA is gone when the MSA is at work
    pair, msa, columns_of_msa = parts
    return int(FIXED + pair + max(msa + columns_of_msa, 8 * shape.extra_bytes))


def longest_that_fits(shape: FoldShape, available: int, *, fast: bool) -> int:
    """Return the largest length found, up to that of `shape`, for which a fold fits; 0 if none."""
    low, high = 0, shape.length
    while low < high:
        middle = (low + high + 1) // 2
        if peak_bytes(replace(shape, length=middle), fast=fast) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def shape_of(config: Any, predict: Any, length: int, depth: int) -> FoldShape:
    """Return the sizes of a fold with `depth` sequences in the alignment.

    `predict` are the settings of features for predictions, with the backbone's own choices.
    """
    model = config.model
    rows = min(int(predict.max_msa_clusters), depth)
    template = model.template
    templates = int(predict.max_templates or 0) if template.enabled and template.embed_angles else 0
    return FoldShape(
        length=length,
        rows=rows + templates,
        extra=min(int(predict.max_extra_msa), max(depth - rows, 1)),
        c_m=int(config.globals.c_m),
        c_e=int(config.globals.c_e),
        c_z=int(config.globals.c_z),
        heads=int(model.evoformer_stack.no_heads_msa),
    )

"""Arrays of different shapes as two tensors, for files of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch


def packed(name: str, rows: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the numbers of all rows as the tensor `name`, and their shapes as ``name/shapes``.

    Examples
    --------
    >>> tensors = packed("x", [np.zeros((2, 3)), np.ones((1, 3))])
    >>> [row.shape for row in unpacked(tensors, "x")]
    [(2, 3), (1, 3)]
    """
    flat = np.concatenate([np.zeros(0), *(np.asarray(row, np.float64).reshape(-1) for row in rows)])
    shapes = np.array([np.shape(row) for row in rows], np.int64).reshape(len(rows), -1)
    return {name: torch.from_numpy(flat), f"{name}/shapes": torch.from_numpy(shapes)}


def unpacked(tensors: Mapping[str, torch.Tensor], name: str) -> list[np.ndarray]:
    """Return the rows that `packed` took apart."""
    flat, shapes = tensors[name].numpy(), tensors[f"{name}/shapes"].tolist()
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    # split gives what is after the last end as well, which is empty
    parts = np.split(flat, ends)[: len(shapes)]
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

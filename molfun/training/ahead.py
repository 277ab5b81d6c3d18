"""Featurise samples in the workers of a loader, ahead of the step that needs them."""

from __future__ import annotations

import copy
import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from molfun.backbones.base import Features
from molfun.errors import DataError
from molfun.sample import Sample
from molfun.training.inputs import as_inputs

Featurize = Callable[[Sample], Features | None]
"""Function from a sample to its features, or to None if they are not needed."""
ALIGNMENT = 64
"""Tensors in a buffer start at multiples of this many bytes, as torch's own allocations do.

MKL gives equal results for equal inputs only if these have equal alignment (64 bytes; oneMKL's
chapter on numerical reproducibility), and features from a worker must give the same bits as fresh
ones.
"""


class PackedRows(Sequence[Features | None]):
    """Features of several samples in one buffer.

    Torch passes each tensor from a worker to the main process as an open file. A sample has about
    thirty tensors, so a few batches would reach the limit of open files (often 1024).

    Parameters
    ----------
    rows
        Features of each sample; None for a sample without them.

    Examples
    --------
    >>> rows = PackedRows([{"x": torch.tensor([1.5, 2.0]), "n": torch.tensor(3)}, None])
    >>> rows[0]["x"], rows[0]["n"], rows[1]
    (tensor([1.5000, 2.0000]), tensor(3), None)
    """

    def __init__(self, rows: Sequence[Features | None]) -> None:
        self._places: list[dict[str, tuple[int, torch.dtype, torch.Size]] | None] = []
        pieces, end = [], 0
        for row in rows:
            places = {}
            for name, tensor in (row or {}).items():
                # as bytes, so that tensors of all types share the buffer
                piece = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                places[name] = (end, tensor.dtype, tensor.shape)
                pieces.append((end, piece))
                end += -(-len(piece) // ALIGNMENT) * ALIGNMENT
            self._places.append(None if row is None else places)
        self._buffer = torch.zeros(end, dtype=torch.uint8)
        for start, piece in pieces:
            self._buffer[start : start + len(piece)] = piece

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        places = self._places[index]
        return None if places is None else {name: self._tensor(*p) for name, p in places.items()}

    def _tensor(self, start: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        size = dtype.itemsize * math.prod(shape)
        return self._buffer[start : start + size].view(dtype).view(shape)


class FeaturizingCollate:
    """Wrap the ``collate_fn`` of a loader so that each batch carries the features of its samples.

    Batches that are not made of samples are passed on unchanged.

    Parameters
    ----------
    collate
        The original ``collate_fn``.
    featurize
        Function that computes the features, in the worker.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], featurize: Featurize) -> None:
        self._collate, self._featurize = collate, featurize

    def __call__(self, items: Sequence[Any]) -> Any:
        """Return a batch as `Inputs` with ``rows``."""
        batch = self._collate(list(items))
        try:
            inputs = as_inputs(batch)
        except DataError:
            return batch  # the training loop refuses it, with the same text as without workers
        if not inputs.samples:
            return batch
        rows = [self._featurize(sample) for sample in inputs.samples]
        return replace(inputs, rows=PackedRows(rows))


def collate_ahead(loader: DataLoader[Any], featurize: Featurize | None) -> Any:
    """Return a ``collate_fn`` for `loader` that featurises if its workers can; else its own.

    Workers must be forks of this process: they then share the memory of the model. A spawned worker
    would have to unpickle a copy of it.
    """
    context = loader.multiprocessing_context or multiprocessing
    if featurize is None or not loader.num_workers or context.get_start_method() != "fork":
        return loader.collate_fn
    return FeaturizingCollate(loader.collate_fn, featurize)


def loaded_ahead(loader: Any, featurize: Featurize | None) -> Any:
    """Return a loader of the same batches that featurises in its workers, if it has any."""
    if not isinstance(loader, DataLoader):
        return loader
    collate = collate_ahead(loader, featurize)
    if collate is loader.collate_fn:
        return loader
    # a copy, since the user's loader must keep its own collate_fn for other uses
    ahead = copy.copy(loader)
    ahead.collate_fn = collate
    ahead._iterator = None  # persistent workers of the original have another collate_fn
    return ahead

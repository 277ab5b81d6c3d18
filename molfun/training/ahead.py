"""Features made in the workers of a loader, ahead of the step that needs them."""

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
"""Gives the features of a sample; None where they are not needed."""
ALIGNMENT = 64
"""Bytes that tensors in a buffer begin at multiples of, as those that torch allocates do."""


class PackedRows(Sequence[Features | None]):
    """Features of several samples in one buffer.

    Torch hands each tensor of a worker over as an open file; thirty for each sample would soon be
    more than a process may have.

    Parameters
    ----------
    rows
        Features of each sample, or None.

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
    """The ``collate_fn`` of a loader, with features beside each sample of the batch.

    Batches that are no samples stay as they are.

    Parameters
    ----------
    collate
        What the loader had.
    featurize
        Runs in the worker.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], featurize: Featurize) -> None:
        self._collate, self._featurize = collate, featurize

    def __call__(self, items: Sequence[Any]) -> Any:
        """A batch as `Inputs` with ``rows``."""
        batch = self._collate(list(items))
        try:
            inputs = as_inputs(batch)
        except DataError:
            return batch  # refused where it is used, as without workers
        if not inputs.samples:
            return batch
        rows = [self._featurize(sample) for sample in inputs.samples]
        return replace(inputs, rows=PackedRows(rows))


def collate_ahead(loader: DataLoader[Any], featurize: Featurize | None) -> Any:
    """The ``collate_fn`` of a copy of `loader`, which featurises where that is done in workers.

    A worker has to be a fork of this process: it then holds the model without a copy of it.
    """
    context = loader.multiprocessing_context or multiprocessing
    if featurize is None or not loader.num_workers or context.get_start_method() != "fork":
        return loader.collate_fn
    return FeaturizingCollate(loader.collate_fn, featurize)


def loaded_ahead(loader: Any, featurize: Featurize | None) -> Any:
    """The same batches, featurised in the workers of the loader where it has some."""
    if not isinstance(loader, DataLoader):
        return loader
    collate = collate_ahead(loader, featurize)
    if collate is loader.collate_fn:
        return loader
    ahead = copy.copy(loader)
    ahead.collate_fn = collate
    ahead._iterator = None  # persistent workers of the original have another collate_fn
    return ahead

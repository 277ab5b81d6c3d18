"""Bring batches of any loader into one form, `Inputs`: samples, or the backbone's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from molfun.backbones.base import Features
from molfun.errors import DataError
from molfun.sample import Sample, SampleBatch

TARGET_KEYS = ("target", "targets", "affinity", "label")


@dataclass(frozen=True)
class Inputs:
    """One batch: either `samples`, or the backbone's tensors in `features` (batch dimension first).

    Parameters
    ----------
    ids, targets
        Name and label of each sample; None for a label that is missing.
    samples
        The samples; empty where `features` are given.
    features
        Tensors by name, as the backbone's ``collate`` gives them.
    rows
        Features of each sample that a loader worker computed, None for a sample without; empty if
        workers computed none.
    """

    ids: list[str]
    targets: list[Any]
    samples: Sequence[Sample] = ()
    features: Features | None = None
    rows: Sequence[Features | None] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """Return a batch of these samples."""
        batch = SampleBatch(samples)
        return cls(ids=batch.ids, targets=batch.targets, samples=samples)

    def single(self) -> Iterator[Self]:
        """Yield each sample as a batch of size one."""
        for i, sample in enumerate(self.samples):
            yield replace(type(self).of([sample]), rows=self.rows[i : i + 1])

    def featurized(self, featurize: Callable[[Sample], Features]) -> list[Features]:
        """Return the features of each sample: those from a worker, else by `featurize`."""
        rows = self.rows or [None] * len(self.samples)
        return [
            featurize(sample) if row is None else row
            for sample, row in zip(self.samples, rows, strict=True)
        ]


def as_inputs(batch: Any) -> Inputs:
    """Return a batch of samples, or a dict of the backbone's tensors, as `Inputs`.

    Raises
    ------
    DataError
        If the batch is neither.
    """
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, Sample):
        return Inputs.of([batch])
    if isinstance(batch, SampleBatch):
        return Inputs.of(batch.samples)
    if isinstance(batch, Mapping):
        return _from_mapping(batch)
    found = _from_list(batch) if isinstance(batch, list | tuple) else None
    if found is not None:
        return found
    raise DataError(
        f"Cannot use a batch of type {type(batch).__name__}. Give samples (a data set such as "
        f"SequenceDataset or AtomsDataset, or a DataLoader with the collate_fn of one), or a dict "
        f"of the backbone's tensors."
    )


def _from_list(batch: Sequence[Any]) -> Inputs | None:
    """Return a list of samples, or a pair of tensors and labels, as `Inputs`; None for others."""
    if not batch:
        raise DataError("There is nothing in this batch: the list is empty.")
    if all(isinstance(sample, Sample) for sample in batch):
        return Inputs.of(batch)
    if len(batch) == 2 and isinstance(batch[0], Mapping):
        return _from_mapping({**batch[0], "target": batch[1]})
    return None


def _from_mapping(batch: Mapping[str, Any]) -> Inputs:
    features = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    # the label leaves the features: a backbone must never see it
    target = next((features.pop(k) for k in TARGET_KEYS if k in features), None)
    if not features:
        raise DataError(f"The batch is a dict without input tensors (keys: {sorted(batch)}).")
    # packed features have no batch dimension; their shape table has one
    size = features.get("shape", next(iter(features.values()))).shape[0]
    targets = [None] * size if target is None else _rows(target, size)
    ids = list(batch.get("ids", batch.get("pdb_id", [f"sample_{i}" for i in range(size)])))
    return Inputs(ids=[str(i) for i in ids], targets=targets, features=features)


def _rows(target: torch.Tensor, size: int) -> list[Any]:
    """Return one label per sample: a number, or an array if a sample has several."""
    flat = target.ndim <= 1 or target.numel() == size
    return target.reshape(-1).tolist() if flat else list(target.cpu().numpy())

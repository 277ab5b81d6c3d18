"""What `fit`, `predict` and `evaluate` take: loaders, data sets, batches, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from molfun.data.words import counted
from molfun.errors import ConfigError, DataError, listing
from molfun.sample import Sample, SampleBatch, is_missing, n_residues
from molfun.tasks.base import Task
from molfun.training.runner import as_inputs


def is_many(data: Any) -> bool:
    """Whether data is a loader, a dataset or an iterator of batches rather than one batch."""
    data = from_structures(data)
    batches = isinstance(data, list) and data and isinstance(data[0], SampleBatch | Mapping)
    if batches or isinstance(data, DataLoader | Iterator) or collate_of(data) is not None:
        return True
    return getattr(data, "dataset", None) is not None  # something around a loader


def as_loader(data: Any, *, shuffle: bool = False) -> Any:
    """A loader as it is; a dataset as a loader of single samples; one sample or batch as a list."""
    if isinstance(data, Sample | SampleBatch):
        return [data]
    data = from_structures(data)
    collate = collate_of(data)
    if isinstance(data, DataLoader) and data.collate_fn is default_collate and collates(data):
        raise ConfigError(
            f"The DataLoader has no collate_fn for samples. Pass "
            f"collate_fn={type(dataset_of(data)).__name__}.collate_fn to it."
        )
    if isinstance(data, DataLoader) or collate is None:
        return data
    size = getattr(dataset_of(data) or data, "default_batch_size", 1)
    return DataLoader(data, batch_size=size, shuffle=shuffle, collate_fn=collate)


def from_structures(data: Any) -> Any:
    """A list of ``ase.Atoms`` as a data set of samples; anything else as it is."""
    if hasattr(data, "get_atomic_numbers"):
        data = [data]
    is_list = isinstance(data, list | tuple) and len(data) > 0
    if not (is_list and all(hasattr(a, "get_atomic_numbers") for a in data)):
        return data
    from molfun.data.atoms import AtomsDataset

    return AtomsDataset.from_atoms(data)


def collates(loader: DataLoader[Any]) -> bool:
    """Whether the data set of a loader knows how to make batches."""
    return collate_of(loader.dataset) is not None


def collate_of(data: Any) -> Any:
    """How a dataset, or the one inside torch's Subset, makes batches; None for anything else."""
    return getattr(data.dataset if isinstance(data, Subset) else data, "collate_fn", None)


def targets_of(loader: Any) -> list[Any]:
    """Labels of a training set, in the order of the data set (not of the shuffled loader)."""
    dataset = getattr(loader, "dataset", None)
    targets = getattr(dataset_of(loader), "targets", None)
    if targets is not None:
        values = targets.tolist() if isinstance(targets, np.ndarray) else list(targets)
        return [values[i] for i in dataset.indices] if isinstance(dataset, Subset) else values
    batches: Iterable[Any] = loader
    if isinstance(loader, DataLoader) and not isinstance(dataset, IterableDataset):
        batches = DataLoader(
            loader.dataset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn
        )
    return [t for batch in batches for t in as_inputs(batch).targets]


def check_labels(task: Task, val: Any) -> None:
    """Find a label of the validation set that the task cannot use before the first epoch."""
    for target in [] if val is None else targets_of(val):
        if not is_missing(target):
            task.numbers(target)


def check_sizes(task: Task, *data: Any) -> None:
    """Refuse labels of residues or pairs that are more or fewer than the residues of a sequence.

    Raises
    ------
    DataError
        Naming the samples.
    """
    if task.level == "sequence":
        return
    dims = 2 if task.level == "pair" else 1
    problems = []
    for sample in samples_of(data):
        if is_missing(sample.target) or sample.sequence is None:
            continue
        n = n_residues(sample.sequence)
        size = task.numbers(sample.target).shape[:dims] if dims == 2 else (len(sample.target),)
        if size != (n,) * dims:
            what = " x ".join(map(str, size))
            problems.append(f"{sample.id}: {what} labels for {counted(n, 'residue')}")
    if problems:
        raise DataError(
            f"{counted(len(problems), 'sample')} whose labels do not fit the sequence:\n"
            f"{listing(problems)}\nGive a label for each residue{' pair' * (dims - 1)}, None where "
            f"there is none."
        )


def label_texts(targets: Sequence[Any]) -> list[str]:
    """Labels as text that is the same for equal labels."""
    return [repr(float("nan") if t is None else _plain(t)) for t in targets]


def _plain(target: Any) -> Any:
    if isinstance(target, Mapping):
        return {key: _plain(target[key]) for key in sorted(target)}
    return target.tolist() if isinstance(target, np.ndarray) else target


def samples_of(data: Iterable[Any]) -> Iterator[Sample]:
    """Samples of data sets, of parts of them, of loaders over these, and of lists of batches.

    A data set whose first item is no sample is not read any further.
    """
    for part in data:
        # a loader is asked for its data set; torch's Subset, which has one too, for its items
        dataset: Any = part.dataset if isinstance(part, DataLoader) else part
        if isinstance(dataset, Mapping) or not hasattr(dataset, "__getitem__"):
            continue
        for i in range(len(dataset)):
            item = dataset[i]
            group = item if isinstance(item, SampleBatch | list | tuple) else [item]
            found = [sample for sample in group if isinstance(sample, Sample)]
            if i == 0 and not found:
                break
            yield from found


def data_identity(train: Any, targets: Sequence[Any], val: Any) -> dict[str, Any]:
    """What a run was trained and validated on, as plain values."""
    validation = None
    if val is not None:
        validation = digest([*ids_of(val), *label_texts(targets_of(val))])
    grouping = getattr(getattr(train, "batch_sampler", None), "settings", None)
    return {
        "batches": len(train),
        "batches by length": grouping,
        "batch size": grouping["batch_size"] if grouping else getattr(train, "batch_size", None),
        "training set": digest(ids_of(train)),
        "labels": digest(label_texts(targets)),
        "validation set": validation,
        "inputs": dict(getattr(dataset_of(train), "input_settings", {})),
    }


def ids_of(loader: Any) -> list[str]:
    """Ids of the samples behind a loader, as far as it has any."""
    dataset = getattr(loader, "dataset", None)
    ids = list(map(str, getattr(dataset_of(loader), "ids", [])))
    return [ids[i] for i in dataset.indices] if ids and isinstance(dataset, Subset) else ids


def dataset_of(loader: Any) -> Any:
    """The data set behind a loader, without torch's Subset around it; None for other iterables."""
    dataset = getattr(loader, "dataset", None)
    return dataset.dataset if isinstance(dataset, Subset) else dataset


def digest(parts: Iterable[str]) -> str:
    """Short sha256 over texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

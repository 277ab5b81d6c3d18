"""What `fit`, `predict` and `evaluate` take: loaders, data sets, batches, and what is in them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    default_collate,
)

from molfun.backbones.base import Backbone
from molfun.backbones.own_heads import OwnHeads
from molfun.backbones.tensor_input import split_batch
from molfun.data.kinds.base import DataKind
from molfun.errors import ConfigError, DataError
from molfun.fingerprint import digest
from molfun.models import given
from molfun.registry import DATASETS
from molfun.sample import Sample, SampleBatch, is_missing, n_residues
from molfun.text import counted, listing
from molfun.training.forward import run_now
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.task_head import TaskHead

logger = logging.getLogger(__name__)


def is_many(data: Any) -> bool:
    """Return whether data is a loader, a data set or a list of batches rather than one batch."""
    if _items_of_a_kind(data):
        return True
    if isinstance(data, list | tuple):
        return not given.is_batch(data)
    return not isinstance(data, Sample | SampleBatch | Mapping | Inputs)


def as_loader(data: Any, *, shuffle: bool = False) -> Any:
    """A loader as it is; a dataset as a loader of single samples; one sample or batch as a list.

    Raises
    ------
    ConfigError
        If a ``DataLoader`` puts samples together by PyTorch's own function.
    DataError
        If the data is of another kind, has no length, or none of its items is a sample or a batch.
    """
    if isinstance(data, Sample | SampleBatch | Mapping | Inputs):
        return [data]
    data = from_items(data)
    if isinstance(data, DataLoader) or (hasattr(data, "dataset") and not isinstance(data, Dataset)):
        return _checked_loader(data)
    collate = collate_of(data)
    if collate is None:
        data = _as_samples(data)
        collate = collate_of(data)
    if collate is None:
        return data
    size = getattr(parts_of(data)[0], "default_batch_size", 1)
    return DataLoader(data, batch_size=size, shuffle=shuffle, collate_fn=collate)


def refuse_nothing(loader: Any) -> None:
    """Refuse data without a sample, which is rather a filter or a path that is wrong.

    Raises
    ------
    DataError
        If there is no sample or batch in it.
    """
    if given.length_of(loader) == 0:
        raise DataError("The data is empty: there are no samples in it.")


def _checked_loader(loader: Any) -> Any:
    """A loader that has a length and gives what can be used; one over a stream ends with it."""
    if given.length_of(loader) is None:
        raise given.no_end(loader)
    if not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        return given.Bounded(loader, spare=loader.num_workers)
    if loader.collate_fn is default_collate and len(loader):
        _check_collate(loader.dataset)
    return loader


def _check_collate(dataset: Any) -> None:
    """Refuse samples in a loader that puts things together by PyTorch's own function."""
    known = collate_of(dataset) is not None
    if not known and not given.is_map_style(dataset):
        return
    first = None if known else given.item_of(dataset, 0)
    if not known and not given.is_sample_like(first):
        return
    owner = type(parts_of(dataset)[0]).__name__ if known else "SequenceDataset"
    pass_one = f"Pass collate_fn={owner}.collate_fn to it, or give"
    raise ConfigError(
        f"The DataLoader has no collate_fn for samples. "
        f"{pass_one if known or isinstance(first, Sample) else 'Give'} the data set without a "
        f"loader."
    )


def _as_samples(data: Any) -> Any:
    """Data that makes no batches itself, as a data set that does, or as batches."""
    if isinstance(data, str):
        return given.GivenSamples([data])
    if isinstance(data, IterableDataset):
        data = given.read_stream(data)
    if isinstance(data, list | tuple) and given.is_batch(data) and not isinstance(data[0], Sample):
        return [data]
    return _of_items(data) if given.is_map_style(data) else _of_stream(data)


def _of_stream(data: Any) -> Any:
    """Batches that can only be iterated over."""
    is_stream = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not is_stream or isinstance(data, given.NO_DATA) or hasattr(data, "iloc"):
        raise given.refused(data)
    if given.length_of(data) is None:
        raise given.no_end(data)
    return given.Bounded(data)


def _of_items(data: Any) -> Any:
    """A list or map-style data set whose items are samples or batches."""
    if not given.length_of(data):
        return data if isinstance(data, list) else []
    first = given.item_of(data, 0)
    if _items_of_a_kind(first):
        return from_items([given.item_of(data, i) for i in range(len(data))])
    listed = data if isinstance(data, list | tuple) else [first]
    if any(given.is_batch(item) for item in listed):
        return data if isinstance(data, list) else given.GivenBatches(data)
    samples = given.GivenSamples(data)
    samples[0]  # refused before anything else is looked at
    return samples


def from_items(data: Any) -> Any:
    """Items of a kind of data, such as ``ase.Atoms``, as its data set; anything else as it is."""
    found = _items_of_a_kind(data)
    if found is None:
        return data
    kind, items = found
    return kind.from_items(items)


def _items_of_a_kind(data: Any) -> tuple[DataKind, Sequence[Any]] | None:
    """The kind of data whose items are in a list, or of which this is one; None for others."""
    for kind in (DATASETS[name]() for name in DATASETS):
        items = [data] if kind.holds(data) else data
        if isinstance(items, list | tuple) and items and all(map(kind.holds, items)):
            return kind, items
    return None


def collate_of(data: Any) -> Any:
    """How a data set, or those in torch's Subset and ConcatDataset, make batches; else None."""
    parts = [getattr(part, "collate_fn", None) for part in parts_of(data)]
    return None if None in parts else parts[0]


def parts_of(data: Any) -> list[Any]:
    """The data sets that torch's Subset and ConcatDataset are around, however deep."""
    if isinstance(data, Subset):
        return parts_of(data.dataset)
    if isinstance(data, ConcatDataset):
        return [part for one in data.datasets for part in parts_of(one)]
    return [data]


def column_of(data: Any, name: str) -> list[Any] | None:
    """Return what a data set says of all its samples, as ``ids``; None where it says nothing."""
    if isinstance(data, Subset):
        values = column_of(data.dataset, name)
        return None if values is None else [given.item_of(values, int(i)) for i in data.indices]
    if isinstance(data, ConcatDataset):
        columns = [column_of(part, name) for part in data.datasets]
        return None if None in columns else [v for column in columns for v in column or ()]
    return given.listed(data, name)


def targets_of(loader: Any) -> list[Any]:
    """Labels of a training set, in the order of the data set (not of the shuffled loader)."""
    dataset = getattr(loader, "dataset", None)
    targets = column_of(dataset, "targets")
    if targets is not None:
        return targets
    with given.same_draws():
        return [t for batch in _in_order(loader) for t in as_inputs(batch).targets]


def _in_order(loader: Any) -> Iterable[Any]:
    """Batches of a loader that may shuffle, in the order of its data set."""
    if not isinstance(loader, DataLoader):
        return loader
    size, collate = loader.batch_size or 1, loader.collate_fn
    return given.Bounded(DataLoader(loader.dataset, batch_size=size, collate_fn=collate))


def all_samples(data: Any) -> list[Sample]:
    """Samples of all that `as_loader` takes, in input order.

    Raises
    ------
    DataError
        If it holds tensors of a backbone in place of samples.
    """
    loader = as_loader(data)
    found = list(samples_of([loader]))
    for batch in () if found else _in_order(loader):
        inputs = as_inputs(batch)
        if inputs.features is not None:
            raise DataError(
                "Cannot embed a dict of tensors. Give samples, or call predict with it, whose "
                "'trunk' holds the representations."
            )
        found += inputs.samples
    return found


def check_labels(head: TaskHead, data: Any, targets: Sequence[Any] | None = None) -> None:
    """Find labels that the task of a head cannot use before the first epoch.

    Parameters
    ----------
    head
        Its task has seen the training labels, or needs not to.
    data
        A loader, or a list of batches; None has no labels.
    targets
        Its labels, where they are at hand.

    Raises
    ------
    DataError
        Naming the samples, and the label where samples have several.
    """
    if data is None:
        return
    problems = []
    names = _names_of(data)
    for i, target in enumerate(targets_of(data) if targets is None else targets):
        try:
            label = head.label(target)
            if not is_missing(label):
                head.task.numbers(label)
        except DataError as error:
            problems.append(f"{names[i] if i < len(names) else f'sample {i + 1}'}: {error}")
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        task = head.key(head.task.name)
        raise DataError(
            f"{counted(len(problems), 'sample')} with a label that the task {task!r} cannot "
            f"use:\n{listing(problems, 3)}"
        )


def _names_of(data: Any) -> list[str]:
    """Ids, places and the name of the label, as far as a data set knows them."""
    dataset = getattr(data, "dataset", None)
    ids, places = column_of(dataset, "ids") or [], column_of(dataset, "origins")
    key = input_settings_of(data).get("target_key")
    named = [
        f"{name} ({place})" if place else str(name)
        for name, place in zip(ids, places or [""] * len(ids), strict=True)
    ]
    return [f"{name}, {key!r}" for name in named] if key else named


def check_sizes(head: TaskHead, *data: Any) -> None:
    """Refuse labels of residues, atoms or pairs that are more or fewer than the sample has.

    Raises
    ------
    DataError
        Naming the samples.
    """
    task = head.task
    if task.level == "sequence":
        return
    samples = [sample for sample in samples_of(data) if _has_parts(sample)]
    problems = [text for sample in samples if (text := _wrong_size(head, sample)) is not None]
    if problems:
        of_atoms = samples[0].atoms is not None
        one, whole = ("atom", "structure") if of_atoms else ("residue", "sequence")
        raise DataError(
            f"{counted(len(problems), 'sample')} whose labels do not fit the {whole}:\n"
            f"{listing(problems)}\nGive a label for each {one}{' pair' * (task.level == 'pair')}, "
            f"None where there is none."
        )


def _has_parts(sample: Sample) -> bool:
    return sample.sequence is not None or sample.atoms is not None


def _wrong_size(head: TaskHead, sample: Sample) -> str | None:
    """How many labels a sample has for how many residues or atoms; None where it fits."""
    task, label = head.task, head.label(sample.target)
    if is_missing(label):
        return None
    dims = 2 if task.level == "pair" else 1
    in_atoms = sample.atoms is not None
    n = len(sample.atoms) if in_atoms else n_residues(sample.sequence or "")
    size = task.numbers(label).shape[:dims] if dims == 2 else _length(label)
    if size == (n,) * dims:
        return None
    what = " x ".join(map(str, size)) + " labels" if size else "one label"
    noun = counted(n, "atom" if in_atoms else "residue")
    return f"{sample.shown if in_atoms else sample.id}: {what} for {noun}"


def _length(target: Any) -> tuple[int, ...]:
    """Labels in a list or text of them; () for a single one, or for labels by name."""
    many = hasattr(target, "__len__") and not isinstance(target, Mapping)
    return (len(target),) if many and getattr(target, "ndim", None) != 0 else ()


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
        if not given.is_map_style(dataset):
            continue
        for i in range(len(dataset)):
            item = given.item_of(dataset, i)
            group = item if isinstance(item, SampleBatch | list | tuple) else [item]
            found = [sample for sample in group if isinstance(sample, Sample)]
            if i == 0 and not found:
                break
            yield from found


def fit_inputs(backbone: Backbone, heads: Sequence[TaskHead], loader: Any) -> None:
    """Let the backbone learn the scale of its inputs from a training set.

    Labels are those of the head that is a part of the backbone, if there is one.
    """
    own = backbone.own_head if isinstance(backbone, OwnHeads) else None
    label = next((part.label for part in heads if part.head_name == own), None)
    samples = _training_samples(backbone, loader)
    if label is not None:
        samples = (replace(sample, target=label(sample.target)) for sample in samples)
    backbone.fit_inputs(samples, functools.partial(run_now, backbone))


def _training_samples(backbone: Backbone, loader: Any) -> Iterator[Sample]:
    """Samples of a loader, also of one that gives dicts of the backbone's tensors."""
    found = False
    for sample in samples_of([loader]):
        found = True
        yield sample
    for batch in () if found else loader:
        inputs = as_inputs(batch)
        rows = split_batch(backbone, inputs.features or {})
        for name, row in zip(inputs.ids, rows, strict=True):
            yield Sample(id=name, features={k: v.cpu().numpy() for k, v in row.items()})


def data_identity(train: Any, targets: Sequence[Any], val: Any) -> dict[str, Any]:
    """Return what a run was trained and validated on, as plain values."""
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
        "inputs": input_settings_of(train),
    }


def ids_of(loader: Any) -> list[str]:
    """Ids of the samples behind a loader, as far as it has any."""
    return list(map(str, column_of(getattr(loader, "dataset", None), "ids") or []))


def input_settings_of(loader: Any) -> dict[str, Any]:
    """How the data behind a loader prepares its inputs; of several data sets, the first's."""
    parts = parts_of(getattr(loader, "dataset", None))
    found = [dict(getattr(part, "input_settings", {})) for part in parts]
    names = sorted({name for part in found for name in part})
    differ = [n for n in names if any(part.get(n) != found[0].get(n) for part in found)]
    if differ:
        logger.warning(
            "The data sets that were put together differ in %s; what the checkpoint remembers is "
            "that of the first.", ", ".join(differ),
        )  # fmt: skip
    return found[0]

"""Turn the data arguments of `fit`, `predict` and `evaluate` into loaders, and read these."""

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
from molfun.data.base import SampleDataset, settings_with_kind
from molfun.data.kinds.base import DataKind
from molfun.errors import ConfigError, DataError
from molfun.fingerprint import digest
from molfun.models import given
from molfun.nn.process import seeded
from molfun.parallel.dealing import Share
from molfun.protein import Protein
from molfun.registry import DATASETS
from molfun.sample import Sample, SampleBatch, is_missing, n_residues
from molfun.text import counted, listing
from molfun.training.forward import run_now
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.task_head import TaskHead
from molfun.training.weights import SampleWeights

logger = logging.getLogger(__name__)


def is_many(data: Any) -> bool:
    """Return whether data is a loader, a data set or a list of batches rather than one batch."""
    if _items_of_a_kind(data):
        return True
    if isinstance(data, list | tuple):
        return not given.is_batch(data)
    return not isinstance(data, Sample | SampleBatch | Mapping | Inputs)


def as_loader(data: Any, *, shuffle: bool = False, batch_size: int | None = None) -> Any:
    """Return data as an iterable of batches with a length.

    A loader stays as it is, a data set becomes a ``DataLoader`` with `batch_size` or its default
    one, and a single sample or batch a list.

    Raises
    ------
    ConfigError
        If a ``DataLoader`` of samples has PyTorch's default ``collate_fn``.
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
    # the kind of data knows a usual size: 1 for structures, 8 for sequences
    size = batch_size or getattr(parts_of(data)[0], "default_batch_size", 1)
    return DataLoader(data, batch_size=size, shuffle=shuffle, collate_fn=collate)


def refuse_nothing(loader: Any) -> None:
    """Refuse empty data: most often a filter or a path is wrong.

    Raises
    ------
    DataError
        If it holds no sample or batch.
    """
    if given.length_of(loader) == 0:
        raise DataError("The data is empty: there are no samples in it.")


def share_of(data: Any) -> Share | None:
    """Return how a loader is dealt to the processes of a command; None if all is for this one."""
    found = getattr(data, "share", None)
    return found if isinstance(found, Share) else None


def _checked_loader(loader: Any) -> Any:
    """Return a loader whose length and ``collate_fn`` are usable; over a stream, a bounded one."""
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
    """Refuse a loader of samples with PyTorch's default ``collate_fn``, which cannot batch them."""
    known = collate_of(dataset) is not None
    if not known and not given.is_map_style(dataset):
        return
    # the first item decides, as reading all of them may take as long as an epoch
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
    """Return data without a ``collate_fn`` as a data set of samples, or as batches."""
    # a text is one sequence; as an iterable it would be one sample per letter
    if isinstance(data, str):
        return given.GivenSamples([data])
    if isinstance(data, IterableDataset):
        data = given.read_stream(data)
    if isinstance(data, list | tuple) and given.is_batch(data) and not isinstance(data[0], Sample):
        return [data]
    return _of_items(data) if given.is_map_style(data) else _of_stream(data)


def _of_stream(data: Any) -> Any:
    """Return an iterable of batches that has no items by index."""
    is_stream = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not is_stream or isinstance(data, given.NO_DATA) or hasattr(data, "iloc"):
        raise given.refused(data)
    if given.length_of(data) is None:
        raise given.no_end(data)
    return given.Bounded(data)


def _of_items(data: Any) -> Any:
    """Return a list or map-style data set as a data set of samples, or as batches."""
    if not given.length_of(data):
        return data if isinstance(data, list) else []
    first = given.item_of(data, 0)
    if _items_of_a_kind(first):
        return from_items([given.item_of(data, i) for i in range(len(data))])
    listed = data if isinstance(data, list | tuple) else [first]
    if any(given.is_batch(item) for item in listed):
        return data if isinstance(data, list) else given.GivenBatches(data)
    samples = given.GivenSamples(data)
    samples[0]  # raises for an item that is no sample, before anything else is computed
    return samples


def from_items(data: Any) -> Any:
    """Return items of a registered kind of data (``ase.Atoms``) as a data set; others unchanged."""
    found = _items_of_a_kind(data)
    if found is None:
        return data
    kind, items = found
    return kind.from_items(items)


def _items_of_a_kind(data: Any) -> tuple[DataKind, Sequence[Any]] | None:
    """Return a kind of data and its items, for one such item or a list of them; else None."""
    for kind in (cls() for cls in DATASETS.classes()):
        items = [data] if kind.holds(data) else data
        if isinstance(items, list | tuple) and items and all(map(kind.holds, items)):
            return kind, items
    return None


def collate_of(data: Any) -> Any:
    """Return the ``collate_fn`` of a data set, also inside torch's Subset and ConcatDataset."""
    parts = [getattr(part, "collate_fn", None) for part in parts_of(data)]
    return None if None in parts else parts[0]


def parts_of(data: Any) -> list[Any]:
    """Return the data sets inside torch's Subset and ConcatDataset, at any depth."""
    if isinstance(data, Subset):
        return parts_of(data.dataset)
    if isinstance(data, ConcatDataset):
        return [part for one in data.datasets for part in parts_of(one)]
    return [data]


def column_of(data: Any, name: str) -> list[Any] | None:
    """Return an attribute with one value per sample, also through Subset and ConcatDataset."""
    if isinstance(data, Subset):
        values = column_of(data.dataset, name)
        return None if values is None else [given.item_of(values, int(i)) for i in data.indices]
    if isinstance(data, ConcatDataset):
        columns = [column_of(part, name) for part in data.datasets]
        return None if None in columns else [v for column in columns for v in column or ()]
    return given.listed(data, name)


def targets_of(loader: Any) -> list[Any]:
    """Return the labels behind a loader in the order of its data set, even if it shuffles."""
    dataset = getattr(loader, "dataset", None)
    targets = column_of(dataset, "targets")
    if targets is not None:
        return targets
    with seeded(0):  # as often as a resumed run reads them, even if a data set draws them
        return [t for batch in _in_order(loader) for t in as_inputs(batch).targets]


def _in_order(loader: Any) -> Iterable[Any]:
    """Return the batches of a loader in the order of its data set, without shuffling."""
    if not isinstance(loader, DataLoader):
        return loader
    size, collate = loader.batch_size or 1, loader.collate_fn
    return given.Bounded(DataLoader(loader.dataset, batch_size=size, collate_fn=collate))


def all_samples(data: Any) -> list[Sample]:
    """Return the samples of any data that `as_loader` takes, in input order.

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
    """Check that the task of a head can use all labels, before the first epoch.

    Parameters
    ----------
    head
        Head whose task has learned the training labels, or need not learn them.
    data
        A loader, or a list of batches; None has no labels.
    targets
        Labels of `data`, if they were read already.

    Raises
    ------
    DataError
        Naming the samples, and the label where samples have several.
    """
    if data is None:
        return
    problems = []
    # all bad labels are collected, so that a user corrects a table once
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
    """Return names of the samples for messages: id, file and label column if they are known."""
    dataset = getattr(data, "dataset", None)
    ids, places = column_of(dataset, "ids") or [], column_of(dataset, "origins")
    key = input_settings_of(data).get("target_key")
    named = [
        f"{name} ({place})" if place else str(name)
        for name, place in zip(ids, places or [""] * len(ids), strict=True)
    ]
    return [f"{name}, {key!r}" for name in named] if key else named


def check_sizes(head: TaskHead, *data: Any) -> None:
    """Check that labels per residue, atom or pair are as many as the sample has of these.

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
    """Return a message with the numbers of labels and residues or atoms; None if they agree."""
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
    """Return the number of labels in a list or text as a shape; () for a single label or a dict."""
    many = hasattr(target, "__len__") and not isinstance(target, Mapping)
    return (len(target),) if many and getattr(target, "ndim", None) != 0 else ()


def label_texts(targets: Sequence[Any]) -> list[str]:
    """Return each label as text; equal labels give equal texts, whatever their type."""
    # None and NaN both mean "missing"
    return [repr(float("nan") if t is None else _plain(t)) for t in targets]


def _plain(target: Any) -> Any:
    if isinstance(target, Mapping):
        return {key: _plain(target[key]) for key in sorted(target)}
    if isinstance(target, Protein):  # its text leaves out most of its coordinates
        return f"{target.content_key()} at {target.resolution} angstrom"
    return target.tolist() if isinstance(target, np.ndarray) else target


def samples_of(data: Iterable[Any]) -> Iterator[Sample]:
    """Yield the samples of data sets, subsets, loaders over these, and lists of batches.

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
            # a list of batches holds samples one level deeper
            found = [sample for sample in group if isinstance(sample, Sample)]
            if i == 0 and not found:
                break
            yield from found


def doubtful_in(data: Iterable[Any], backbone: Backbone) -> Iterator[Sample]:
    """Yield the samples that the backbone's `check` has to look at; see `Backbone.doubtful`."""
    for part in data:
        dataset = part.dataset if isinstance(part, DataLoader) else part
        places = backbone.doubtful(dataset) if isinstance(dataset, SampleDataset) else None
        if places is None:
            yield from samples_of([part])
        else:
            yield from (dataset[i] for i in places)


def fit_inputs(backbone: Backbone, heads: Sequence[TaskHead], loader: Any) -> None:
    """Estimate the scale of the inputs, which the backbone keeps, from a training set.

    If one of the heads is a part of the backbone (PET's energies), the samples carry its labels.
    """
    own = backbone.own_head if isinstance(backbone, OwnHeads) else None
    label = next((part.label for part in heads if part.head_name == own), None)
    samples = _training_samples(backbone, loader)
    if label is not None:
        samples = (replace(sample, target=label(sample.target)) for sample in samples)
    backbone.fit_inputs(samples, functools.partial(run_now, backbone))


def _training_samples(backbone: Backbone, loader: Any) -> Iterator[Sample]:
    """Yield the samples of a loader; dicts of the backbone's tensors are split into samples."""
    found = False
    for sample in samples_of([loader]):
        found = True
        yield sample
    for batch in () if found else loader:
        inputs = as_inputs(batch)
        rows = split_batch(backbone, inputs.features or {})
        for name, row in zip(inputs.ids, rows, strict=True):
            yield Sample(id=name, features={k: v.cpu().numpy() for k, v in row.items()})


def values_of(loader: Any, column: str) -> list[Any]:
    """Return a column of the metadata behind a loader, in the order of its data set."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, SampleDataset):
        return list(dataset.metadata[column])
    return [sample.metadata[column] for sample in samples_of([loader])]


def sample_weights(
    loader: Any, heads: Sequence[TaskHead], targets: Sequence[Any]
) -> SampleWeights | None:
    """Return the weights that a training set asks for, see `TableDataset.weighted_by`."""
    values = functools.partial(values_of, loader)
    return SampleWeights.of(input_settings_of(loader), values, heads, targets)


def data_identity(train: Any, targets: Sequence[Any], val: Any) -> dict[str, Any]:
    """Describe training and validation data in plain values, to be compared when a run resumes."""
    validation = None
    if val is not None:
        validation = digest([*_contents_of(val), *label_texts(targets_of(val))])
    # batches by length come from a sampler with its own batch size and bucket width
    grouping = getattr(getattr(train, "batch_sampler", None), "settings", None)
    settings = input_settings_of(train)
    columns = SampleWeights.columns_in(settings)
    weights = {name: digest(map(repr, values_of(train, name))) for name in columns}
    return {
        "batches": len(train),
        "batches by length": grouping,
        "batch size": grouping["batch_size"] if grouping else getattr(train, "batch_size", None),
        "training set": digest(_contents_of(train)),
        "labels": digest(label_texts(targets)),
        "validation set": validation,
        "inputs": settings,
        **({"sample weights": weights} if weights else {}),
    }


def _contents_of(loader: Any) -> list[str]:
    """Return the ids behind a loader, or the digest of data whose ids are too many for a list."""
    fingerprint = getattr(getattr(loader, "dataset", None), "fingerprint", None)
    return ids_of(loader) if fingerprint is None else [fingerprint()]


def ids_of(loader: Any) -> list[str]:
    """Return the ids of the samples behind a loader; empty if its data set has none."""
    return list(map(str, column_of(getattr(loader, "dataset", None), "ids") or []))


def input_settings_of(loader: Any) -> dict[str, Any]:
    """Return the settings with which the data prepares its inputs; of several sets, the first's."""
    parts = parts_of(getattr(loader, "dataset", None))
    found = [settings_with_kind(part) for part in parts]
    names = sorted({name for part in found for name in part})
    differ = [n for n in names if any(part.get(n) != found[0].get(n) for part in found)]
    if differ:
        logger.warning(
            "The data sets that were put together differ in %s; what the checkpoint remembers is "
            "that of the first.", ", ".join(differ),
        )  # fmt: skip
    return found[0]

"""Turn batches of loaders into samples, and read the training data of a Trainer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from molfun.errors import DataError
from molfun.sample import Sample


def rows(batch: Any) -> list[Sample]:
    """Return one sample per series of a batch, without its padding.

    Raises
    ------
    DataError
        If the batch is not a dict with ``timeseries``, or padding does not come last.

    Examples
    --------
    >>> batch = {
    ...     "timeseries": torch.zeros(2, 3, 1),
    ...     "padding_mask": torch.tensor([[True, True, False], [True, True, True]]),
    ... }
    >>> [len(sample.features["timeseries"]) for sample in rows(batch)]
    [2, 3]
    """
    # taken apart to samples: Molfun's objectives draw their masks per sample
    values = series_of(batch).detach().cpu()
    mask, padding = (_given(batch, name) for name in ("mask", "padding_mask"))
    samples = []
    for i, series in enumerate(values):
        length = len(series)
        if padding is not None:
            length = int(padding[i].sum())
            if not bool(padding[i, :length].all()):
                raise DataError(
                    f"padding_mask of series {i} of a batch must be True first and False behind."
                )
        features = {"timeseries": series[:length]}
        if mask is not None:
            features["mask"] = mask[i, :length]
        samples.append(Sample(id=f"series {i} of a batch", features=features))
    return samples


def _given(batch: Mapping[str, Any], name: str) -> torch.Tensor | None:
    value = batch.get(name)
    return None if value is None else value.detach().cpu().bool()


def series_of(batch: Any) -> torch.Tensor:
    """Return the series of a batch: (batch, time, features).

    Raises
    ------
    DataError
        If the batch holds none.
    """
    if not isinstance(batch, Mapping) or "timeseries" not in batch:
        found = f"the keys {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise DataError(f"A batch must be a dict with 'timeseries'; found {found}.")
    values: torch.Tensor = batch["timeseries"]
    if values.ndim != 3:
        raise DataError(f"timeseries must be (batch, time, features), got {tuple(values.shape)}.")
    return values


def label_of(batch: Any) -> torch.Tensor:
    """Return the labels of a batch.

    Raises
    ------
    DataError
        If the batch holds none.
    """
    series_of(batch)
    if batch.get("label") is None:
        raise DataError(f"A batch has no 'label'; its keys are {', '.join(sorted(batch))}.")
    label: torch.Tensor = batch["label"]
    return label


def label_list(labels: torch.Tensor, n_samples: int, n_classes: int | None) -> list[Any]:
    """Return labels as a task takes them, None for a missing one.

    Parameters
    ----------
    labels
        (samples,); or (samples, classes) zeros and ones.
    n_samples
        Expected number of samples.
    n_classes
        Number of classes if a sample may belong to several; None if it has one label.

    Raises
    ------
    DataError
        If there are more or fewer labels than expected, or one of several classes is neither 0
        nor 1.

    Examples
    --------
    >>> label_list(torch.tensor([2.0, torch.nan]), 2, None)
    [2.0, None]
    >>> label_list(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2, 3)
    [[1, 2], []]
    """
    shape = (n_samples,) if n_classes is None else (n_samples, n_classes)
    if labels.numel() != math.prod(shape):
        raise DataError(f"label must be {shape}, got {tuple(labels.shape)}.")
    values = labels.detach().cpu().reshape(shape)
    if n_classes is None:
        return [None if math.isnan(value) else value for value in values.tolist()]
    return [_classes_in(row) for row in values.tolist()]


def _classes_in(row: list[float]) -> list[int] | None:
    if any(math.isnan(value) for value in row):
        return None
    if any(value not in (0, 1) for value in row):
        raise DataError(f"Labels of several classes are 0 or 1 each, got {row}.")
    return [i for i, value in enumerate(row) if value]


def n_features(trainer: Any) -> int:
    """Count the features: ``n_features`` of the data module, or those of the first batch."""
    # asked first, since a batch may be expensive to load
    stated = getattr(trainer.datamodule, "n_features", None)
    if stated is not None:
        return int(stated)
    with training_batches(trainer) as batches:
        return int(series_of(next(iter(batches))).shape[-1])


@contextlib.contextmanager
def training_batches(trainer: Any) -> Iterator[Iterable[Any]]:
    """Open all training data, in order, in every process; torch's generator is not advanced."""
    with torch.random.fork_rng(devices=[]):
        if trainer.datamodule is not None:
            loader = trainer.datamodule.train_dataloader()
        else:
            # In the hook `setup` Lightning has not yet attached the loader that `fit` was given.
            trainer.fit_loop.setup_data()
            loader = trainer.train_dataloader
        yield _in_order(loader)


def _in_order(loader: Any) -> Iterable[Any]:
    """Return a loader of the same data without its sampler, which gives each process a part."""
    if not isinstance(loader, DataLoader):
        return loader  # an iterable of the user's own has no sampler to leave out
    batched = loader.batch_sampler is not None
    return DataLoader(
        loader.dataset,
        batch_size=(loader.batch_size or 1) if batched else None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )

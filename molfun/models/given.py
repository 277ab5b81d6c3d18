"""Turn a user's own data (PyTorch data sets, sequences, pairs, streams) into samples.

Data without a length is never iterated, and no data beyond its stated length: it may not end.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, default_collate

from molfun.data.base import SampleDataset
from molfun.data.kinds.sequences import Sequences
from molfun.errors import DataError, MolfunError
from molfun.nn.process import seeded
from molfun.registry import DATASETS
from molfun.sample import Sample, SampleBatch
from molfun.text import first_line
from molfun.training.loading import watched

logger = logging.getLogger(__name__)

TAKEN = (
    "Give a data set (SequenceDataset, AffinityDataset, TimeSeriesDataset, AtomsDataset, or one of "
    "your own with __len__ and a __getitem__ that gives molfun.sample.Sample), a DataLoader over "
    "one, a list of Sample, of sequences, of (sequence, number) pairs or of ase.Atoms, or batches: "
    "dicts of the backbone's tensors."
)
"""Advice for errors: the data that `fit`, `predict`, `evaluate` and `embed` accept."""
NO_DATA = (bytes, Mapping, Set, torch.Tensor, np.ndarray)
"""Types with a length and items that are no data set."""
# an upper-case text may be an aligned sequence with gaps; no name of a file looks like that
_MAY_HAVE_GAPS = re.compile(r"[A-Z.*-]+")
LONGEST_PATH = 4096
"""Longer texts are no paths (``PATH_MAX`` of Linux), and ``os.path.isfile`` need not be asked."""


class GivenSamples:
    """Samples from the items of a list or map-style data set, for a ``DataLoader``.

    Parameters
    ----------
    items
        Anything with ``__len__`` and ``__getitem__`` whose items are samples, sequences, or pairs
        of a sequence and its label.
    """

    collate_fn = staticmethod(SampleDataset.collate_fn)

    def __init__(self, items: Any) -> None:
        self._items = items
        self._length = length_of(items) or 0
        # items of a list are fixed; a user's data set may draw at random and is seeded per item
        self.draws_nothing = isinstance(items, list | tuple)

    def __len__(self) -> int:
        return self._length

    @property
    def default_batch_size(self) -> int:
        """Samples per batch without a loader; for sequences that of `SequenceDataset`."""
        return 1 if self[0].sequence is None else Sequences.default_batch_size

    def __getitem__(self, index: int) -> Sample:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} samples")
        index = int(index) % self._length
        return as_sample(item_of(self._items, index), index, self._items)

    @cached_property
    def _known(self) -> list[tuple[str, Any]]:
        # labels of random data sets must be the same whenever they are read
        with seeded(0):
            samples = map(self.__getitem__, range(len(self)))
            return [(sample.id, sample.target) for sample in samples]

    @property
    def ids(self) -> list[str]:
        """Ids in order: the data set's attribute ``ids`` if it has one, else those of its items."""
        found = listed(self._items, "ids")
        return [name for name, _ in self._known] if found is None else list(map(str, found))

    @property
    def targets(self) -> list[Any]:
        """Labels in order, None for a missing one: attribute ``targets``, else from the items."""
        found = listed(self._items, "targets")
        return [target for _, target in self._known] if found is None else found


def listed(data: Any, name: str) -> list[Any] | None:
    """Return an attribute with one value per sample, such as ``ids``; None if there is none.

    An attribute of another length (of the classes, say) means something else and is not used.
    """
    values = getattr(data, name, None)
    if not isinstance(values, list | tuple | np.ndarray | torch.Tensor):
        return None
    if len(values) != length_of(data):
        return None
    return list(values) if isinstance(values, list | tuple) else values.tolist()


class GivenBatches(Sequence[Any]):
    """Sequence of batches over a map-style data set whose items are batches.

    Parameters
    ----------
    items
        The data set.
    """

    def __init__(self, items: Any) -> None:
        self._items = items
        self._length = length_of(items) or 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} batches")
        return item_of(self._items, int(index) % self._length)


class Bounded:
    """Iterable over the batches of a loader that refuses more or fewer than its ``len``.

    Errors of the loader name the number of the batch.

    Parameters
    ----------
    loader
        An iterable of batches with a length.
    spare
        Number of further batches to accept: over a stream, each worker of a loader may end with an
        incomplete batch.
    """

    def __init__(self, loader: Any, spare: int = 0) -> None:
        self._loader, self._spare = loader, spare

    def __len__(self) -> int:
        return length_of(self._loader) or 0

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # copy and pickle ask before __init__ ran; without this, endlessly
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        n, found = len(self), 0
        batches = watched(self._loader)
        while (batch := _next(batches, self._loader, found)) is not _END:
            if found >= n + self._spare:
                raise DataError(f"{_name(self._loader)} gives more batches than its length of {n}.")
            found += 1
            yield batch
        if found < n:
            raise DataError(
                f"{_name(self._loader)} has a length of {n} batches, but gave {found}. It is read "
                f"once per epoch, so it must be possible to iterate over it again."
            )


# not None, which a loader may give as a batch
_END = object()


def _next(batches: Iterator[Any], loader: Any, number: int) -> Any:
    try:
        return next(batches, _END)
    except MolfunError:
        raise
    except Exception as error:  # a user's code may raise anything; the number leads to the cause
        advice = ""
        # PyTorch's own error does not say what to pass instead
        if getattr(loader, "collate_fn", None) is default_collate:
            advice = (
                " If it holds samples, give it collate_fn=SequenceDataset.collate_fn, or give the "
                "data set without a loader."
            )
        said = _with_type(error).removesuffix(".")
        raise DataError(f"{_name(loader)} gives no batch {number}: {said}.{advice}") from error


def length_of(data: Any) -> int | None:
    """Return the length of data; None if it has none.

    Raises
    ------
    DataError
        If ``len`` fails or returns no valid length.
    """
    # on the type, where len() looks it up
    if not hasattr(type(data), "__len__"):
        return None
    try:
        return len(data)
    except MolfunError:
        raise
    except Exception as error:
        # DataLoader and torch's Dataset define __len__ and raise this over data without a length
        if isinstance(error, NotImplementedError) or "has no len" in str(error):
            return None
        raise DataError(f"{_name(data)} has no usable length: {_with_type(error)}") from error


def is_map_style(data: Any) -> bool:
    """Return whether data has a length and items by index (a frame of pandas has not)."""
    # `iloc` tells frames and series of pandas without an import of it; data[0] would be a column
    if isinstance(data, (*NO_DATA, str, IterableDataset)) or hasattr(data, "iloc"):
        return False
    return hasattr(type(data), "__getitem__") and length_of(data) is not None


def item_of(data: Any, index: int) -> Any:
    """Return one item of a map-style data set.

    Raises
    ------
    DataError
        Naming the item, for any error of the data set.
    """
    try:
        return data[index]
    except MolfunError:
        raise
    except IndexError as error:
        n = length_of(data)
        raise DataError(
            f"{_name(data)} has a length of {n}, but no item {index} "
            f"({_with_type(error)}). Let __len__ give the number of items."
        ) from error
    except Exception as error:
        raise DataError(
            f"{_name(data)}: item {index} cannot be read: {_with_type(error)}"
        ) from error


def as_sample(item: Any, index: int, source: Any) -> Sample:
    """Return the item of a user's data set as a `Sample`.

    Raises
    ------
    DataError
        If no sample can be made of it; the text lists what is accepted.
    """
    if isinstance(item, Sample):
        return item
    if isinstance(item, str):
        refuse_path(item)
        return Sample(id=f"seq_{index + 1}", sequence=item)
    if is_pair(item):
        refuse_path(item[0])
        target = item[1]
        if isinstance(target, np.generic | torch.Tensor):
            # plain numbers: labels go into JSON and into digests that compare runs
            target = target.tolist()
        return Sample(id=f"seq_{index + 1}", sequence=item[0], target=target)
    where = f"Item {index} of the {type(source).__name__}"
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(x, str) for x in item):
        raise DataError(
            f"{where} is a pair of texts, which may be a name and a sequence, or a sequence and a "
            f"class. Give Sample(id=..., sequence=..., target=...)."
        )
    raise DataError(f"{where} is no sample: {_lower(_described(item))}. {TAKEN}")


def refuse_path(text: str | os.PathLike[str]) -> None:
    """Refuse the path of a file in place of a sequence, and name the reader for it.

    Raises
    ------
    DataError
        If the text ends like a data file, or is the path of an existing file.
    """
    path = os.fspath(text)
    if isinstance(text, str) and (text.isalpha() or len(text) > LONGEST_PATH):
        return
    name = path.lower().removesuffix(".gz")
    reader = "" if _MAY_HAVE_GAPS.fullmatch(path) else _reader_of(name)
    # Path.is_file raises where the text is too long for a name
    if reader or not isinstance(text, str) or os.path.isfile(text):  # noqa: PTH113
        reader = _reader_of(name) or "a data set, such as SequenceDataset.from_csv"
        raise DataError(f"{path[:200]!r} is a path, not data. Read the file with {reader}(...).")


def _reader_of(name: str) -> str:
    """Return the name of the function that reads such files; empty if there is none."""
    readers = {end: how for kind in DATASETS.classes() for end, how in kind.readers.items()}
    return next((how for end, how in readers.items() if name.endswith(end)), "")


def is_pair(item: Any) -> bool:
    """Return whether an item is a sequence and its label."""
    if not (isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)):
        return False
    label = int | float | np.number | np.ndarray | torch.Tensor | list | tuple | None
    return isinstance(item[1], label)


def is_sample_like(item: Any) -> bool:
    """Return whether an item is a sample, or is meant as one and will be refused with a reason."""
    texts = isinstance(item, list | tuple) and len(item) == 2
    texts = texts and all(isinstance(x, str) for x in item)  # `as_sample` refuses these pairs
    return isinstance(item, Sample | str) or is_pair(item) or texts


def is_batch(item: Any) -> bool:
    """Return whether an item is a whole batch."""
    if isinstance(item, SampleBatch | Mapping):
        return True
    if not (isinstance(item, list | tuple) and item):
        return False
    with_labels = len(item) == 2 and isinstance(item[0], Mapping)
    return with_labels or all(isinstance(x, Sample) for x in item)


def read_stream(data: Any) -> list[Any]:
    """Return the items of an ``IterableDataset`` that has a length.

    Raises
    ------
    DataError
        If it has no length, or ends before it.
    """
    n = length_of(data)
    if n is None:
        raise no_end(data)
    try:
        # not one item further: the next one may never come
        items = list(islice(iter(data), n))
    except MolfunError:
        raise
    except Exception as error:
        raise DataError(f"{_name(data)} cannot be read: {_with_type(error)}") from error
    if len(items) < n:
        raise DataError(f"{_name(data)} has a length of {n}, but gave only {len(items)}.")
    logger.info("The %s items of the %s were read once and are kept.", n, type(data).__name__)
    return items


def no_end(data: Any) -> DataError:
    """Return the error for data that has no length and may not end."""
    return DataError(
        f"{_name(data)} has no length and may have no end. Give a list of its items, if they end, "
        f"or a data set with __len__ and __getitem__."
    )


def refused(data: Any) -> DataError:
    """Return the error for data of a type that is not accepted."""
    if isinstance(data, os.PathLike):
        refuse_path(data)
    if hasattr(data, "iloc"):
        names = ", ".join(map(repr, list(getattr(data, "columns", []))[:6]))
        if not names:
            return DataError(
                f"A {type(data).__name__} of pandas is not taken. Give a list of its items: "
                f"list(...)."
            )
        return DataError(
            f"A {type(data).__name__} of pandas is not taken (columns {names}). Give "
            f"list(frame[SEQUENCES]) to predict, list(zip(frame[SEQUENCES], frame[LABELS])) to "
            f"train, or write it to a file that from_csv of a data set reads."
        )
    if isinstance(data, np.ndarray | torch.Tensor):
        return DataError(
            f"{_described(data)} is not taken by itself. For series give "
            f"TimeSeriesDataset.from_arrays(array). {TAKEN}"
        )
    return DataError(f"{_described(data)} is not taken. {TAKEN}")


def _described(item: Any) -> str:
    if isinstance(item, np.ndarray | torch.Tensor):
        return f"An array of the shape {tuple(item.shape)}"
    if isinstance(item, list | tuple):
        kinds = ", ".join(type(x).__name__ for x in item[:3])
        return f"A {type(item).__name__} of {len(item)} ({kinds}{', ...' * (len(item) > 3)})"
    return "None" if item is None else f"An object of the type {type(item).__name__}"


def _lower(text: str) -> str:
    return text if text == "None" else text[0].lower() + text[1:]


def _name(data: Any) -> str:
    return f"The {type(data).__name__}"


def _with_type(error: BaseException) -> str:
    text = first_line(error)
    name = type(error).__name__
    return text if text == name else f"{name}: {text}"

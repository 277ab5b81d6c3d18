"""Iterate over the batches of an epoch, in an order that only depends on (seed, epoch)."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from molfun.data.batching import Batches, LengthBatchSampler
from molfun.errors import DataError
from molfun.parallel.ranks import Ranks
from molfun.training.ahead import Featurize, collate_ahead
from molfun.training.loading import loaded, watched

T = TypeVar("T")


def epoch_seed(seed: int, epoch: int) -> int:
    """Mix the run's seed and the epoch into one 63-bit seed (torch takes no larger one)."""
    # SplitMix64's finaliser: neighbouring epochs give unrelated streams (Steele et al. 2014)
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1


class EpochBatches:
    """Reproducible batches of any epoch, starting at any batch.

    For a map-style ``DataLoader`` the order of sample indices is drawn first, under the epoch's own
    seed; batches that a resumed run has seen are then skipped without being loaded. Random choices
    of the data set (augmentation) depend on (seed, epoch, index), so neither the order of samples
    nor the number of workers changes them. Other iterables (a list of batches, a streaming loader)
    are iterated from the start and the seen batches dropped, with generators of their own.

    Parameters
    ----------
    loader
        ``DataLoader`` or another sized iterable of batches.
    seed
        Seed of the run.
    ranks
        The processes among which the batches of an epoch are dealt out in turn.
    featurize
        Function that computes the features of a sample in the workers; None computes none there.
    even
        Whether the first batches come again at the end, so that each process gets as many.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        ranks: Ranks | None = None,
        featurize: Featurize | None = None,
        *,
        even: bool = False,
    ) -> None:
        self.loader = loader
        self.seed = seed
        self._featurize = featurize
        self._ranks = ranks or Ranks()
        try:
            self.n_total = len(loader)  # type: ignore[arg-type]  # sized or refused
        except TypeError:
            raise DataError(
                "The training loader has no length, so the learning-rate schedule cannot be "
                "planned. Pass a DataLoader over a map-style dataset, or a list of batches."
            ) from None
        # its share of the data would be divided among the processes a second time
        if self._ranks.size > 1 and isinstance(
            getattr(loader, "sampler", None), DistributedSampler
        ):
            raise DataError(
                "The loader has a DistributedSampler, and Molfun deals out the batches itself. "
                "Leave the sampler out."
            )
        if self.n_total == 0:
            raise DataError("The training set is empty: its loader gives no batch.")
        self._n_again = -self.n_total % self._ranks.size if even else 0

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return self.own(0, self.n_total)

    def own(self, start: int, stop: int) -> int:
        """Return how many of the batches from `start` to `stop` of an epoch this process gets."""
        first = start + (self._ranks.index - start) % self._ranks.size
        return len(range(first, stop, self._ranks.size))

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        """Yield the batches of this process in `epoch` (from 0), without the first `start` of all.

        Batch ``i`` of an epoch goes to process ``i % size``, so the batches of an optimizer step
        are the same for any number of processes that divides them.
        """
        start = self.own(0, start)
        seed, loader = epoch_seed(self.seed, epoch), self.loader
        _tell_epoch(loader, epoch)
        if not (isinstance(loader, DataLoader) and _has_index_batches(loader)):
            dealt = self._ranks.share(self._evened(seeded_batches(loader, seed)))
            return itertools.islice(dealt, start, None)
        order = _order(loader, seed)
        again = [order[i % len(order)] for i in range(self._n_again)]
        own = (order + again)[self._ranks.index :: self._ranks.size][start:]
        return watched(_with_batches(loader, own, seed, self._featurize), own)

    def _evened(self, batches: Iterable[T]) -> Iterator[T]:
        first: list[T] = []
        for batch in batches:
            if len(first) < self._n_again:
                first.append(batch)
            yield batch
        yield from itertools.islice(itertools.cycle(first), self._n_again)


def seeded_batches(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """Yield the batches of a loader; everything random in it is drawn under `seed`."""
    if isinstance(loader, list | tuple):
        yield from loader  # nothing is random here
        return
    # generators are swapped around each `next` alone, so that dropout in the training step between
    # two batches goes on with the run's own
    streams, end = _Streams(seed), object()
    with streams:
        iterator = iter(loader)
    while True:
        with streams:
            batch = next(iterator, end)
        if batch is end:
            return
        yield batch


def _order(loader: DataLoader[Any], seed: int) -> Any:
    # samplers with a generator of their own do not follow the global seed
    for part in (loader, loader.sampler, loader.batch_sampler):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    batches: Any = loader.batch_sampler  # batches are made here
    with _Streams(seed):
        if isinstance(batches, LengthBatchSampler):
            return batches.draw()
        indices = _indices(batches.sampler) if type(batches) is BatchSampler else None
        if indices is None:
            return [list(batch) for batch in batches]
        return Batches.of(indices, batches.batch_size, drop_last=batches.drop_last)


def _indices(sampler: Any) -> np.ndarray | None:
    """Return the order of torch's own samplers as an array of 4 bytes each; None for others.

    Their iterators make a list of Python's numbers: 0.4 GB for ten million samples.
    """
    if type(sampler) is SequentialSampler:
        return np.arange(len(sampler.data_source), dtype=np.int32)
    whole = type(sampler) is RandomSampler and not sampler.replacement
    if not whole or sampler.num_samples != len(sampler.data_source):
        return None
    generator = sampler.generator
    if generator is None:  # drawn as `RandomSampler` draws it
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return torch.randperm(sampler.num_samples, generator=generator, dtype=torch.int32).numpy()


def _has_index_batches(loader: DataLoader[Any]) -> bool:
    streams = isinstance(loader.dataset, IterableDataset)
    return not streams and loader.batch_sampler is not None


def _tell_epoch(loader: Any, epoch: int) -> None:
    for name in ("dataset", "sampler", "batch_sampler"):
        part: Any = getattr(loader, name, None)
        if hasattr(part, "set_epoch"):
            # what torch's DistributedSampler established: data and samplers may depend on the epoch
            part.set_epoch(epoch)


def _with_batches(
    loader: DataLoader[Any],
    batches: Sequence[list[int]],
    seed: int,
    featurize: Featurize | None,
) -> DataLoader[Any]:
    """Return a loader with the same settings over fixed batches of indices."""
    # persistent_workers is left out: the loader lives for one epoch only
    return DataLoader(
        _SeededSamples(loader.dataset, seed),
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=collate_ahead(loader, featurize),
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=torch.Generator().manual_seed(seed),
    )


class _SeededSamples(Dataset[Any]):
    """Data set that seeds all generators before each sample, from the seed and the index."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    @property
    def ids(self) -> Any:
        """Ids of the wrapped data set, for messages."""
        return getattr(self._dataset, "ids", ())

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """Return the samples of a batch.

        The generators of the run are saved once per batch: saving them takes longer than seeding.
        """
        if draws_nothing(self._dataset):
            return [loaded(self._dataset, index) for index in indices]
        outside = _generators()
        try:
            return [self._seeded(index) for index in indices]
        finally:
            _set_generators(outside)

    def _seeded(self, index: Any) -> Any:
        # crc32 and not hash(), which differs between processes (PYTHONHASHSEED)
        number = index if isinstance(index, int) else zlib.crc32(repr(index).encode())
        _seed_generators(epoch_seed(self._seed, number))
        return loaded(self._dataset, index)


class _Streams:
    """Context with its own random state of Python, NumPy and torch (CPU).

    Entered again, the state continues where it was left.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        self._outside = _generators()
        if self._state is not None:
            _set_generators(self._state)
            return
        _seed_generators(self._seed)

    def __exit__(self, *exc: object) -> None:
        self._state = _generators()
        _set_generators(self._outside)


def draws_nothing(dataset: Any) -> bool:
    """Return whether a data set declares that an index always gives the same sample."""
    inside = dataset.dataset if isinstance(dataset, Subset) else dataset
    return bool(getattr(inside, "draws_nothing", False))


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would reset the GPU's generator, and with it dropout, as well
    torch.default_generator.manual_seed(seed)


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_generators(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])

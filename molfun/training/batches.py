"""Iterate over the batches of an epoch, in an order that only depends on (seed, epoch)."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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
    per_step
        Batches of an optimizer step, over all processes, if each process must get as many of them
        as the others: one that has fewer gets the first batch of the epoch again at the step's end.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        ranks: Ranks | None = None,
        featurize: Featurize | None = None,
        *,
        per_step: int | None = None,
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
        self._per_step = per_step

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
        seed, loader = epoch_seed(self.seed, epoch), self.loader
        _tell_epoch(loader, epoch)
        if not (isinstance(loader, DataLoader) and _has_index_batches(loader)):
            return self._dealt(seeded_batches(loader, seed), start)
        order = _order(loader, seed)
        places = np.arange(len(order))[self._ranks.index :: self._ranks.size]
        places = np.insert(places[self.own(0, start) :], self._short(start), 0)
        own = order.pick(places) if isinstance(order, Batches) else [order[i] for i in places]
        return watched(_with_batches(loader, own, seed, self._featurize), own)

    def _dealt(self, batches: Iterable[Any], start: int) -> Iterator[Any]:
        short, n_own = self._short(start), 0
        first: Any = None
        for i, batch in enumerate(batches):
            if i == 0 and short:
                first = batch
            if i >= start and i % self._ranks.size == self._ranks.index:
                yield batch
                n_own += 1
            while short and short[0] == n_own:
                yield first
                short = short[1:]

    def _short(self, start: int) -> list[int]:
        """Return after how many of its own batches this process has fewer than others in a step.

        Equal shares are missing in the last step of an epoch, and in one that another number of
        processes began.
        """
        if self._per_step is None:
            return []
        open_step = start // self._per_step * self._per_step
        last_step = (self.n_total - 1) // self._per_step * self._per_step
        steps = {  # where they end, and begin
            min(open_step + self._per_step, self.n_total): start,
            self.n_total: max(start, last_step),
        }
        return [
            self.own(start, stop)
            for stop, begin in steps.items()
            if self.own(begin, stop) < math.ceil((stop - begin) / self._ranks.size)
        ]


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

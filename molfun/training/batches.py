"""Batches of an epoch in an order that depends on (seed, epoch) alone, from any position."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from molfun.errors import DataError


def epoch_seed(seed: int, epoch: int) -> int:
    """Mix the run's seed and the epoch into one 63-bit seed."""
    # SplitMix64's finaliser: neighbouring epochs give unrelated streams (Steele et al. 2014)
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1


class EpochBatches:
    """Give the batches of any epoch, from any batch on, always the same ones.

    For a map-style ``DataLoader`` the order of sample indices is drawn first, under the epoch's own
    seed; batches that a resumed run has seen are then skipped without being loaded. Other
    iterables (a list of batches, a streaming loader) are iterated and skipped through.

    Parameters
    ----------
    loader
        ``DataLoader`` or another sized iterable of batches.
    seed
        Seed of the run.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader = loader
        self.seed = seed
        try:
            self.n_batches = len(loader)  # type: ignore[arg-type]
        except TypeError:
            raise DataError(
                "The training loader has no length, so the learning-rate schedule cannot be "
                "planned. Pass a DataLoader over a map-style dataset, or a list of batches."
            ) from None
        if self.n_batches == 0:
            raise DataError("The training set is empty: its loader gives no batch.")

    def __len__(self) -> int:
        return self.n_batches

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        """Batches of `epoch` (from 0), the first `start` left out."""
        _tell_epoch(self.loader, epoch)
        loader = self.loader
        if not (isinstance(loader, DataLoader) and _has_index_batches(loader)):
            with _seeded(epoch_seed(self.seed, epoch)):
                iterator = iter(loader)
            return itertools.islice(iterator, start, None)
        order = self._order(loader, epoch)
        return iter(_with_batches(loader, order[start:], epoch_seed(self.seed, epoch)))

    def _order(self, loader: DataLoader[Any], epoch: int) -> list[list[int]]:
        seed = epoch_seed(self.seed, epoch)
        for generator in (loader.generator, getattr(loader.sampler, "generator", None)):
            if generator is not None:
                generator.manual_seed(seed)
        with _seeded(seed):
            return [list(batch) for batch in loader.batch_sampler]  # type: ignore[union-attr]


def _has_index_batches(loader: DataLoader[Any]) -> bool:
    streams = isinstance(loader.dataset, IterableDataset)
    return not streams and loader.batch_sampler is not None


def _tell_epoch(loader: Any, epoch: int) -> None:
    for part in (getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if part is not None and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _with_batches(
    loader: DataLoader[Any], batches: Sequence[list[int]], seed: int
) -> DataLoader[Any]:
    """The same loader over a fixed list of batches of indices."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=torch.Generator().manual_seed(seed),
    )


class _seeded:  # noqa: N801  (a context manager)
    """Seed torch's global generator for the time of the block, then put it back."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        torch.manual_seed(self._seed)

    def __exit__(self, *exc: object) -> None:
        torch.set_rng_state(self._state)

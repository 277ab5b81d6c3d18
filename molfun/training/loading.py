"""Turn errors of loader workers into one line that names the samples."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler, Subset

from molfun.errors import DataError, MolfunError, RunError

# torch's errors about workers have no class of their own and are told by their texts
_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process")
_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_UNKNOWN = "0"
"""Process id in the error when a worker died without torch saying which one."""
_SIGNAL = re.compile(r"killed by signal: ([\w ]+)")


def name_of(dataset: Any, index: Any) -> str:
    """Return the id of a sample, or its number if the data set has no ids."""
    if isinstance(dataset, Subset):
        return name_of(dataset.dataset, dataset.indices[index])
    try:
        return repr(str(dataset.ids[index]))
    except (AttributeError, LookupError, TypeError):
        return f"number {index}"


_reading: list[tuple[Any, Sequence[Sequence[Any]] | None, int]] = []
"""Loader, batch order and number of finished batches of the reading in progress.

For error messages only. A module variable, since torch reports a dead worker by a signal, from
which the loop that waits for the batch cannot be reached.
"""


def watched(loader: Iterable[Any], order: Sequence[Sequence[Any]] | None = None) -> Iterator[Any]:
    """Yield the batches of a loader; an error in a worker names the samples that were awaited.

    Parameters
    ----------
    loader
        Any iterable of batches.
    order
        Indices of the samples of each batch, where they are known.

    Raises
    ------
    DataError
        If a sample cannot be loaded.
    RunError
        If a worker died.
    """
    iterator, done = iter(loader), 0
    while True:
        _reading[:] = [(loader, order, done)]
        with worker_errors():
            try:
                batch = next(iterator)
            except StopIteration:
                _reading.clear()
                return
            except (ConnectionError, EOFError) as error:
                # the pipe of a dead worker may break before torch notices that the worker is dead
                _wait_for_the_dead(iterator)
                raise RuntimeError(f"DataLoader worker (pid(s) {_UNKNOWN}) {error}") from error
            except Exception as error:
                if (clear := _of_one_sample(error)) is not None:
                    raise clear from error
                raise
        yield batch
        done += 1


def _wait_for_the_dead(iterator: Any) -> None:
    """Join workers that have ended, and raise how they ended.

    Torch's own error may arrive meanwhile, and says more. A worker that is not joined here would
    raise it from a signal later, at any place of the program.
    """
    for worker in getattr(iterator, "_workers", ()):
        # a killed worker ends at once; one that hangs must not hang this process as well
        worker.join(timeout=5)
        if worker.exitcode:
            killed = signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else None
            how = f"killed by signal: {killed}" if killed else "gone"
            raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is {how}")


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Turn an error of a loader's worker inside the block into one line that names its samples.

    Torch reports a dead worker by a signal, so the error may interrupt the step on another batch.
    """
    try:
        yield
    except Exception as error:
        clear = _clear(error)
        if clear is None:
            raise
        raise clear from error


def _clear(error: Exception) -> MolfunError | None:
    """Return the clear form of a worker's error; None for any other error."""
    text = str(error)
    if (caught := _CAUGHT.search(text)) is not None:
        return _of_a_failed_worker(error, text, caught[1])
    if not isinstance(error, RuntimeError) or (died := _DIED.search(text)) is None:
        return None
    found = _SIGNAL.search(f"{text} {error.__cause__ or error.__context__ or ''}")
    how = f"was killed by signal {found[1].strip()}" if found else "ended without a message"
    which = "" if died[1] == _UNKNOWN else f" ({died[1]})"
    return RunError(
        f"A process that loads samples{which} {how}, while it loaded some of {_awaited()}. Memory "
        f"may have run out, or a library crashed on one of them: use fewer workers, or none to see "
        f"which it is."
    )


def _of_a_failed_worker(error: Exception, text: str, kind: str) -> MolfunError:
    # torch puts the worker's whole traceback into the text; its last line is the error itself
    said = re.split(rf"^(?:[\w.]+\.)?{kind}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, MolfunError):
        return type(error)(said)
    awaited = _awaited(1)
    what = f"Samples {awaited}" if _reading and _indices(1) else awaited.capitalize()
    return DataError(f"{what} cannot be loaded: {kind}: {said}")


def _awaited(batches: int | None = None) -> str:
    """Return the names of the samples in the next batches; by default in all being prefetched."""
    if not _reading:
        return "its samples"
    loader, _, done = _reading[0]
    indices = _indices(batches)
    if not indices:
        return f"batch {done + 1}"
    names = [name_of(getattr(loader, "dataset", None), index) for index in indices]
    return ", ".join(names[:16]) + (" and more" if len(names) > 16 else "")


def _indices(batches: int | None = None) -> list[Any]:
    """Return the sample indices of the next batches, as in `_awaited`; empty if unknown."""
    loader, order, done = _reading[0]
    if isinstance(loader, DataLoader):
        batches = batches or loader.num_workers * (loader.prefetch_factor or 1)
        if order is None and isinstance(loader.sampler, SequentialSampler):
            order = list(loader.batch_sampler or [])
    coming = order[done : done + (batches or 1)] if order is not None else []
    return list(chain.from_iterable(coming))


def _of_one_sample(error: Exception) -> DataError | None:
    """Load the samples of the failed batch one by one, and return the error of the bad one.

    Returns None if a worker died or timed out: loading again could end this process as well.
    """
    loader = _reading[0][0] if _reading else None
    if isinstance(error, MolfunError) or not isinstance(loader, DataLoader):
        return None
    if loader.num_workers and not _CAUGHT.search(str(error)):
        return None
    if not hasattr(loader.dataset, "__getitem__"):
        return None
    for index in _indices(1):
        try:
            loaded(loader.dataset, index)
        except DataError as found:
            return found
    return None


def loaded(dataset: Any, index: Any) -> Any:
    """Return a sample of a data set.

    Raises
    ------
    DataError
        Naming the sample, if the data set raises any error that is not Molfun's.
    """
    try:
        return dataset[index]
    except MolfunError:
        raise
    except Exception as error:
        raise DataError(
            f"Sample {name_of(dataset, index)} cannot be loaded: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error

"""Errors of loader workers in one line that names the samples."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler, Subset

from molfun.errors import DataError, MolfunError, RunError

_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process")
_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_UNKNOWN = "0"
"""Stands for the process id of a worker that nothing is known of."""
_SIGNAL = re.compile(r"killed by signal: ([\w ]+)")


def name_of(dataset: Any, index: Any) -> str:
    """Id of a sample, or its number where a data set has no ids."""
    if isinstance(dataset, Subset):
        return name_of(dataset.dataset, dataset.indices[index])
    try:
        return repr(str(dataset.ids[index]))
    except (AttributeError, LookupError, TypeError):
        return f"number {index}"


_reading: list[tuple[Any, Sequence[Sequence[Any]] | None, int]] = []
"""Loader, order and batches done of what is being read; for messages alone."""


def watched(loader: Iterable[Any], order: Sequence[Sequence[Any]] | None = None) -> Iterator[Any]:
    """Batches of a loader; what goes wrong in a worker names the samples that were waited for.

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
                # what a dead worker leaves behind can be read before torch tells of its death
                _wait_for_the_dead(iterator)
                raise RuntimeError(f"DataLoader worker (pid(s) {_UNKNOWN}) {error}") from error
            except Exception as error:
                if (clear := _of_one_sample(error)) is not None:
                    raise clear from error
                raise
        yield batch
        done += 1


def _wait_for_the_dead(iterator: Any) -> None:
    """Reap workers that have ended; torch's own error may come meanwhile, which says more.

    What is left unreaped would be told by a signal later, wherever the program is by then.
    """
    for worker in getattr(iterator, "_workers", ()):
        worker.join(timeout=5)
        if worker.exitcode:
            killed = signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else None
            how = f"killed by signal: {killed}" if killed else "gone"
            raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is {how}")


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Say what went wrong in a loader's worker in one line, wherever the news of it arrives.

    That a worker died is told by a signal, so it may interrupt the work on an earlier batch.
    """
    try:
        yield
    except Exception as error:
        clear = _clear(error)
        if clear is None:
            raise
        raise clear from error


def _clear(error: Exception) -> MolfunError | None:
    """The error of a worker in our words; None for any other."""
    text = str(error)
    if (caught := _CAUGHT.search(text)) is not None:
        return _of_a_failed_worker(error, text, caught[1])
    if not isinstance(error, RuntimeError) or (died := _DIED.search(text)) is None:
        return None
    found = _SIGNAL.search(f"{text} {error.__cause__ or error.__context__ or ''}")
    how = f"was killed by signal {found[1].strip()}" if found else "ended without a word"
    which = "" if died[1] == _UNKNOWN else f" ({died[1]})"
    return RunError(
        f"A process that loads samples{which} {how}, at work on some of {_awaited()}. Memory "
        f"may have run out, or a library crashed on one of them: use fewer workers, or none to see "
        f"which it is."
    )


def _of_a_failed_worker(error: Exception, text: str, kind: str) -> MolfunError:
    # torch repeats the traceback as text; the last line of it says what happened
    said = re.split(rf"^(?:[\w.]+\.)?{kind}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, MolfunError):
        return type(error)(said)
    awaited = _awaited(1)
    what = f"Samples {awaited}" if _reading and _indices(1) else awaited.capitalize()
    return DataError(f"{what} cannot be loaded: {kind}: {said}")


def _awaited(batches: int | None = None) -> str:
    """Names of the samples in the next batches: so many, or all that workers prepare at once."""
    if not _reading:
        return "its samples"
    loader, _, done = _reading[0]
    indices = _indices(batches)
    if not indices:
        return f"batch {done + 1}"
    names = [name_of(getattr(loader, "dataset", None), index) for index in indices]
    return ", ".join(names[:16]) + (" and more" if len(names) > 16 else "")


def _indices(batches: int | None = None) -> list[Any]:
    """Indices of the samples in the next batches, as in `_awaited`; none where unknown."""
    loader, order, done = _reading[0]
    if isinstance(loader, DataLoader):
        batches = batches or loader.num_workers * (loader.prefetch_factor or 1)
        if order is None and isinstance(loader.sampler, SequentialSampler):
            order = list(loader.batch_sampler or [])
    coming = (order or [])[done : done + (batches or 1)]
    return list(chain.from_iterable(coming))


def _of_one_sample(error: Exception) -> DataError | None:
    """The error of the one sample of a batch that cannot be loaded, found by loading them again.

    Not where a worker died or timed out, as this process would share its fate.
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
    """A sample of a data set; an error that is not ours names it.

    Raises
    ------
    DataError
        If the data set raises anything but an error of ours.
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

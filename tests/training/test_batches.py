"""The order of batches: from (seed, epoch) alone, from any position, for any loader."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.feather
import pytest
import torch
import warm
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

from molfun import SequenceDataset
from molfun.data.batching import Batches, LengthBatchSampler
from molfun.errors import ConfigError, DataError, MolfunError, RunError
from molfun.parallel.ranks import Ranks
from molfun.training.batches import EpochBatches, _order, _Streams, epoch_seed
from molfun.training.loading import watched, worker_errors

N = 11


class Numbers(Dataset[float]):
    """Numbers with noise from all three generators."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> float:
        self.reads.append(index)
        noise = (
            random.random() + float(np.random.rand()) + float(torch.rand((), dtype=torch.double))
        )
        return 10 * index + noise


class Stream(IterableDataset[float]):
    """A stream that shuffles with the global generators."""

    def __iter__(self) -> Iterator[float]:
        order = [float(i) for i in torch.randperm(N)]
        random.shuffle(order)
        yield from order

    def __len__(self) -> int:
        return N


class Lazy:
    """A loader that draws while it is iterated."""

    def __iter__(self) -> Iterator[float]:
        for _ in range(N):
            yield float(torch.rand(())) + float(np.random.rand())

    def __len__(self) -> int:
        return N


class OwnOrder:
    """A batch sampler that is told the epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(self.epoch).permutation(N)
        return iter(order.reshape(-1, 1).tolist())

    def __len__(self) -> int:
        return N


class NumpySampler:
    """A sampler that draws from NumPy's global generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(N).tolist())

    def __len__(self) -> int:
        return N


LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(Numbers(), batch_size=3),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "drop last": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True),
    "own generator": lambda: DataLoader(
        Numbers(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "with replacement": lambda: DataLoader(
        Numbers(), batch_size=2, sampler=RandomSampler(range(N), replacement=True)
    ),
    "weighted": lambda: DataLoader(
        Numbers(), sampler=WeightedRandomSampler([1.0] * N, N, generator=torch.Generator())
    ),
    "numpy sampler": lambda: DataLoader(Numbers(), batch_size=2, sampler=NumpySampler()),
    "batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(N)), 4, False)
    ),
    "by length": lambda: DataLoader(
        Numbers(),
        batch_sampler=LengthBatchSampler(
            lengths=[5, 9, 5, 7, 20, 6, 5, 8, 19, 6, 7], batch_size=3, max_cost=2 * 10**3
        ),
    ),
    "told the epoch": lambda: DataLoader(Numbers(), batch_sampler=OwnOrder()),
    "subset": lambda: DataLoader(Subset(Numbers(), [5, 1, 8]), shuffle=True),
    "single samples": lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "list": lambda: [[float(i)] for i in range(N)],
    "lazy": Lazy,
}


def plain(batches: Any) -> list[Any]:
    """Batches as numbers."""
    return [b.tolist() if isinstance(b, torch.Tensor) else b for b in batches]


def scramble() -> None:
    """Leave the global generators in a state that no test relies on."""
    seed = int.from_bytes(random.SystemRandom().randbytes(4), "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators() -> tuple[Any, ...]:
    """States of the global generators, comparable."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", LOADERS)
def test_skipping_gives_the_tail_of_the_epoch(name: str) -> None:
    for epoch in range(3):
        scramble()
        whole = plain(EpochBatches(LOADERS[name](), seed=4).epoch(epoch))
        assert len(whole) == len(LOADERS[name]())
        for start in (0, 1, 2, len(whole) - 1, len(whole)):
            scramble()
            rest = plain(EpochBatches(LOADERS[name](), seed=4).epoch(epoch, start=start))
            assert rest == whole[start:], (epoch, start)


@pytest.mark.parametrize("name", LOADERS)
def test_what_others_draw_between_batches_changes_nothing(name: str) -> None:
    expected = plain(EpochBatches(LOADERS[name](), seed=4).epoch(1))
    found = []
    for batch in EpochBatches(LOADERS[name](), seed=4).epoch(1):
        found.append(batch)
        scramble()
    assert plain(found) == expected


@pytest.mark.parametrize("name", LOADERS)
def test_the_generators_of_the_run_are_left_alone(name: str) -> None:
    scramble()
    before = generators()
    batches = EpochBatches(LOADERS[name](), seed=4).epoch(0)
    assert generators() == before
    for _ in batches:
        assert generators() == before
    assert generators() == before


@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"list", "in order", "told the epoch"}))
def test_epochs_and_seeds_differ(name: str) -> None:
    orders = [
        plain(EpochBatches(LOADERS[name](), seed=seed).epoch(epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_sample_is_the_same_wherever_it_comes_in_the_epoch() -> None:
    in_order = {v for b in plain(EpochBatches(LOADERS["in order"](), 4).epoch(2)) for v in b}
    shuffled = {v for b in plain(EpochBatches(LOADERS["shuffled"](), 4).epoch(2)) for v in b}
    next_epoch = {v for b in plain(EpochBatches(LOADERS["shuffled"](), 4).epoch(3)) for v in b}
    assert in_order == shuffled
    assert not in_order & next_epoch


def test_a_sampler_is_told_the_epoch() -> None:
    batches = EpochBatches(LOADERS["told the epoch"](), seed=0)
    for epoch in (0, 3):
        order = np.random.default_rng(epoch).permutation(N)
        assert [int(b[0] // 10) for b in plain(batches.epoch(epoch))] == order.tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers: int) -> None:
    def loader(workers: int) -> DataLoader[float]:
        return DataLoader(Numbers(), batch_size=2, shuffle=True, num_workers=workers)

    expected = plain(EpochBatches(loader(0), seed=4).epoch(1))
    assert plain(EpochBatches(loader(num_workers), seed=4).epoch(1)) == expected
    assert plain(EpochBatches(loader(num_workers), seed=4).epoch(1, start=2)) == expected[2:]


def test_skipped_samples_are_not_read() -> None:
    data = Numbers()
    loader = DataLoader(data, batch_size=2, shuffle=True)
    rest = plain(EpochBatches(loader, seed=0).epoch(0, start=4))
    assert len(data.reads) == sum(map(len, rest)) == 3


def test_other_settings_of_the_loader_are_kept() -> None:
    loader = DataLoader(Numbers(), batch_size=2, collate_fn=lambda numbers: sorted(numbers))
    assert all(b == sorted(b) for b in EpochBatches(loader, seed=0).epoch(0))


@pytest.mark.parametrize("empty", [[], DataLoader([]), DataLoader(Numbers(), 20, drop_last=True)])
def test_an_empty_training_set_is_an_error(empty: Any) -> None:
    with pytest.raises(DataError) as caught:
        EpochBatches(empty, seed=0)
    assert str(caught.value) == "The training set is empty: its loader gives no batch."


def test_a_loader_without_a_length_is_an_error() -> None:
    class Endless(IterableDataset[float]):
        def __iter__(self) -> Iterator[float]:
            return iter([1.0])

    for loader in (iter([1, 2]), (i for i in range(3)), DataLoader(Endless())):
        with pytest.raises(DataError) as caught:
            EpochBatches(loader, seed=0)
        assert str(caught.value) == (
            "The training loader has no length, so the learning-rate schedule cannot be planned. "
            "Pass a DataLoader over a map-style dataset, or a list of batches."
        )


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(-20, 20) for epoch in range(50)}
    assert len(seeds) == 40 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = [bin(epoch_seed(0, e) ^ epoch_seed(0, e + 1)).count("1") for e in range(200)]
    assert 25 < np.mean(bits) < 38, "half of 63 bits change"


# --- what goes wrong in a worker -----------------------------------------------------------------


class Faulty(Dataset[int]):
    """Numbers; one of them raises, or ends its process."""

    def __init__(self, fault: str) -> None:
        self.fault, self.ids = fault, [f"s{i}" for i in range(8)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> int:
        if index == 5 and self.fault == "key":
            raise KeyError("no such column")
        if index == 5 and self.fault == "ours":
            raise DataError("a.pdb: no atoms. Repair it.")
        if index == 5 and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 5 and self.fault == "exit":
            os._exit(3)
        return index


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize(
    ("fault", "workers", "text"),
    [
        ("key", 0, r"^Sample 's5' cannot be loaded: KeyError: 'no such column'$"),
        ("key", 1, r"^Sample 's5' cannot be loaded: KeyError: 'no such column'$"),
        ("ours", 0, r"^a\.pdb: no atoms\. Repair it\.$"),
        ("ours", 1, r"^a\.pdb: no atoms\. Repair it\.$"),
    ],
)
def test_a_sample_that_cannot_be_loaded_is_named(fault: str, workers: int, text: str) -> None:
    loader = DataLoader(Faulty(fault), batch_size=2, num_workers=workers)
    with pytest.raises(MolfunError, match=text), worker_errors():
        list(EpochBatches(loader, seed=0).epoch(0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # as above
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("key", r"^Sample 's5' cannot be loaded: KeyError: 'no such column'$"),
        ("ours", r"^a\.pdb: no atoms\. Repair it\.$"),
    ],
)
def test_so_it_is_in_a_loader_that_is_only_read(fault: str, text: str) -> None:
    loader = DataLoader(Faulty(fault), batch_size=2, num_workers=1)
    with pytest.raises(MolfunError, match=text), worker_errors():
        list(watched(loader))


DIES = """
import sys, warnings
warnings.simplefilter("ignore")
from test_batches import *

if __name__ == "__main__":
    fault, how = sys.argv[1:]
    loader = DataLoader(Faulty(fault), batch_size=2, num_workers=1)
    try:
        with worker_errors():
            list(EpochBatches(loader, seed=0).epoch(0) if how == "fit" else watched(loader))
    except MolfunError as error:
        print(error)
"""


@pytest.mark.parametrize("how", ["fit", "predict"])
@pytest.mark.parametrize("fault", ["kill", "exit"])
def test_a_worker_that_dies_is_told_with_its_samples(fault: str, how: str, tmp_path: Path) -> None:
    """In a process of its own: torch tells of a death by a signal, wherever the program is."""
    (tmp_path / "dies.py").write_text(DIES)
    result = warm.run(tmp_path / "dies.py", fault, how)
    ended = r"was killed by signal Killed" if fault == "kill" else r"ended without a message"
    text = rf"^A process that loads samples \(\d+\) {ended}, while it loaded some of .*'s4', 's5'"
    assert re.search(text, result.stdout), result.stdout + result.stderr


def test_a_broken_connection_to_a_worker_is_its_death() -> None:
    class Broken:
        def __iter__(self) -> Broken:
            return self

        def __next__(self) -> int:
            raise ConnectionResetError("reset by peer")

    with pytest.raises(RunError, match="A process that loads samples ended without a message"):
        list(watched(Broken()))


# --- data sets that do not fit into memory -------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_of_torch_as_an_array(workers: int) -> None:
    """The samplers of torch are not iterated over, and their order is the same."""
    for options in ({}, {"shuffle": True}, {"shuffle": True, "drop_last": True}):
        loader = DataLoader(range(23), batch_size=4, num_workers=workers, **options)
        for seed in range(3):
            with _Streams(epoch_seed(seed, 0)):
                expected = [list(batch) for batch in loader.batch_sampler]
            order = _order(loader, epoch_seed(seed, 0))
            assert isinstance(order, Batches)
            assert list(order) == expected
            assert list(order[1::2][1:]) == expected[1::2][1:]
            found = [b.tolist() for b in EpochBatches(loader, seed).epoch(0, start=2)]
            assert found == expected[2:]


def stored(path: Path, n: int) -> SequenceDataset:
    """Write sequences of 5 to 60 residues to an Arrow file, and open it."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKL"), rng.integers(5, 60))) for _ in range(n)]
    pyarrow.feather.write_feather(
        pyarrow.table({"sequence": texts}), path, compression="uncompressed", chunksize=17
    )
    return SequenceDataset.from_arrow(path)


@pytest.mark.parametrize("max_tokens", [None, 200])
def test_processes_see_each_stored_sequence_once_per_epoch(
    tmp_path: Path, max_tokens: int | None
) -> None:
    """Also when they begin in the middle: at a batch of all, whatever number of processes."""
    data = stored(tmp_path / "a.arrow", 203)
    options: dict[str, Any] = {"batch_size": 8, "shuffle": True}
    if max_tokens is not None:
        options = {"batch_sampler": LengthBatchSampler.by_tokens(data, max_tokens)}
    loader = DataLoader(data, collate_fn=data.collate_fn, **options)
    orders = []
    for epoch in range(2):
        alone = [batch.ids for batch in EpochBatches(loader, 1).epoch(epoch)]
        orders.append(alone)
        assert sorted(itertools.chain(*alone)) == sorted(data.ids)
        for size in (2, 3):
            parts = [EpochBatches(loader, 1, Ranks(i, size)) for i in range(size)]
            dealt = [[batch.ids for batch in part.epoch(epoch)] for part in parts]
            assert [dealt[i % size][i // size] for i in range(len(alone))] == alone
            later = [[batch.ids for batch in part.epoch(epoch, start=7)] for part in parts]
            assert sorted(itertools.chain(*later)) == sorted(alone[7:])
    assert orders[0] != orders[1]


def test_batches_of_a_number_of_tokens(tmp_path: Path) -> None:
    data = stored(tmp_path / "a.arrow", 500)
    sampler = LengthBatchSampler.by_tokens(data, 300)
    lengths, batches = data.lengths, list(sampler)
    assert len(sampler) == len(batches) == len(list(sampler))
    costs = [len(batch) * int(lengths[batch].max()) for batch in batches]
    assert max(costs) <= 300
    assert sum(lengths) / sum(costs) > 0.9, "a tenth is padding"
    assert sum(cost > 240 for cost in costs) > 0.9 * len(batches)
    with pytest.raises(ConfigError) as caught:
        LengthBatchSampler.by_tokens(data, 0)
    assert str(caught.value) == "max_tokens must be at least 1, got 0."


def test_an_error_names_samples_of_an_order_that_is_an_array(tmp_path: Path) -> None:
    data = stored(tmp_path / "a.arrow", 40)
    with (tmp_path / "a.arrow").open("r+b") as file:
        file.truncate(600)
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=data.collate_fn)
    with pytest.raises(DataError, match=r"a\.arrow was cut off while it was used"):
        list(EpochBatches(loader, seed=0).epoch(0))

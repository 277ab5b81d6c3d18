"""Two processes give the result of one, and stay alike bit by bit."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from parallel_fit import run

from molfun.errors import RunError
from molfun.parallel.ranks import Ranks
from molfun.training.batches import EpochBatches
from molfun.training.saved_state import PER_STEP, batches_per_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no distributed package"
    ),
]
SCRIPT = Path(__file__).with_name("parallel_fit.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PATHS = [str(SCRIPT.parent), str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(place: Path, *, expect: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """Return the result of each of two processes that torchrun starts."""
    place.mkdir(exist_ok=True)
    done = warm.run(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={free_port()}", SCRIPT, place, json.dumps(settings),
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(PATHS)},
    )  # fmt: skip
    assert (done.returncode == 0) == (expect == 0), done.stderr[-4000:]
    return [] if expect else results(place)


def two_processes(place: Path, **settings: Any) -> list[dict[str, Any]]:
    """Return the result of each of two processes that are started here, as torchrun would."""
    return processes(2, place, **settings)


def processes(size: int, place: Path, *, expect: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """Return the result of each process."""
    return started(size, place, settings, expect=expect)


def started(size: int, place: Path, settings: Any, *, expect: int = 0) -> list[Any]:
    """Return what each process wrote, for the settings of one fit or for a list of these."""
    place.mkdir(exist_ok=True)
    with begun(size, place, settings) as ranks:
        codes = [rank.wait(240) for rank in ranks]
        said = "".join(rank.stderr() for rank in ranks)
        assert all((code == 0) == (expect == 0) for code in codes), said
    return [] if expect else results(place, size)


@contextlib.contextmanager
def begun(size: int, place: Path, settings: Any) -> Iterator[list[warm.Process]]:
    """Start the processes, and end those that are left at the end of the block."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    shared |= {**os.environ, **ONE_THREAD, "MASTER_PORT": str(free_port())}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                warm.Process(
                    SCRIPT, place, json.dumps(settings),
                    env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)}, output=place / f"said{i}",
                )
            )
            for i in range(size)
        ]  # fmt: skip


def results(place: Path, size: int = 2) -> list[dict[str, Any]]:
    return [torch.load(place / f"rank{i}.pt", weights_only=True) for i in range(size)]


def assert_alike(ranks: list[dict[str, Any]]) -> None:
    first, *others = ranks
    for other in others:
        assert repr(first["history"]) == repr(other["history"])
        for name, weight in first["weights"].items():
            assert torch.equal(weight, other["weights"][name]), name


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, weight in one["weights"].items():
        difference = (weight - other["weights"][name]).abs().max()
        assert float(difference) <= 1e-6, name
    for a, b in zip(one["history"], other["history"], strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-5, nan_ok=True) for k in a), (a, b)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"strategy": "gradual"}, marks=pytest.mark.proof),
        {"strategy": "blocks", "n": 9},
        {"strategy": "gradual", "backbone": "esm2", "accumulation": 2},
        pytest.param({"strategy": "lora", "n": 10}, marks=pytest.mark.proof),
        pytest.param(
            {"strategy": "full", "backbone": "pet", "augment": False}, marks=pytest.mark.proof
        ),
        {"strategy": "lora", "backbone": "pet", "augment": False},
    ],
    ids=["gradual", "block by block", "esm2", "lora", "pet", "pet lora"],
)
def test_two_processes_are_one_with_twice_the_window(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    ranks = two_processes(tmp_path, **settings)
    assert_alike(ranks)
    doubled = {**settings, "accumulation": 2 * settings.get("accumulation", 1)}
    assert_close(run(**doubled), ranks[0])


def test_an_objective_with_a_teacher(tmp_path: Path) -> None:
    """Chance is drawn by sample in validation and by process in training: no equal to compare."""
    ranks = two_processes(tmp_path, objective="jepa", strategy="full")
    assert_alike(ranks)


def test_structures_are_turned_in_each_process(tmp_path: Path) -> None:
    assert_alike(two_processes(tmp_path, backbone="pet", strategy="full"))


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole = two_processes(tmp_path / "whole", strategy="blocks")
    folder = str(tmp_path / "run")
    torchrun(tmp_path / "stopped", expect=1, strategy="blocks", folder=folder, kill_at=5)
    resumed = torchrun(tmp_path / "resumed", strategy="blocks", folder=folder, resume=True)
    assert_alike(resumed)
    assert repr(resumed[0]["history"]) == repr(whole[0]["history"])
    for name, weight in whole[0]["weights"].items():
        assert torch.equal(weight, resumed[0]["weights"][name]), name


def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    """Four batches per step, on 2, 1 and 4 processes; the weights are those of one alone."""
    settings: dict[str, Any] = {"strategy": "blocks", "n": 19, "epochs": 4}
    whole = run(**settings, accumulation=4)
    settings["folder"] = str(tmp_path / "run")
    processes(2, tmp_path / "two", expect=1, accumulation=2, kill_at=6, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(**settings, accumulation=2, kill_at=7, resume=True)
    ranks = processes(4, tmp_path / "four", accumulation=2, resume=True, **settings)
    assert_alike(ranks)
    assert_close(whole, ranks[0])
    with pytest.raises(RunError, match="4 batches per optimizer step, which 3 processes cannot"):
        batches_per_step({"identity": {PER_STEP: 4}, "random": [{}, {}]}, 2, Ranks(0, 3))


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_names_it(tmp_path: Path, dies: int) -> None:
    processes(2, tmp_path, expect=1, strategy="full", dies=str(dies))
    said = (tmp_path / f"said{1 - dies}" / "err").read_text()
    assert f"RunError: Process {dies} of 2 (from 0) ended, and the others end with it" in said


def test_a_loss_that_is_not_finite_in_one_process_skips_the_window_in_both(tmp_path: Path) -> None:
    ranks = two_processes(tmp_path, strategy="full", bad=True)
    assert_alike(ranks)
    assert ranks[0]["history"][-1]["skipped"] >= 1


def test_batches_are_dealt_out_one_by_one() -> None:
    batches = [[i] for i in range(7)]
    shares = [EpochBatches(batches, seed=0, ranks=Ranks(i, 3)) for i in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert [list(share.epoch(0)) for share in shares] == [
        [[0], [3], [6]], [[1], [4]], [[2], [5]],
    ]  # fmt: skip
    # a resumed run has seen batches of all processes
    assert list(shares[0].epoch(0, start=4)) == [[6]]
    assert [share.own(4, 6) for share in shares] == [0, 1, 1]

"""Commands in several processes write the files that one process writes, byte by byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from together import started, together

Command = Callable[..., Result]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no distributed package"
    ),
]
FOLD = ("fold", "--preset", "tiny", "--device", "cpu", "--no-plots", "--sequences", "x.fasta")
EMBED = ("embed", "--backbone", "esm2_tiny", "--device", "cpu", "--sequences", "x.fasta")


@pytest.fixture(autouse=True)
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``x.fasta`` and ``t.csv`` with seven sequences of 6 to 40 residues."""
    monkeypatch.chdir(tmp_path)
    # as processes have it that share a machine: threads change the last bits of a sum
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_samples(7)


def write_samples(n: int, shortest: int = 6) -> None:
    draw = random.Random(0)
    letters = "ACDEFGHIKLMNPQRSTVWY"
    rows = {f"s{i}": "".join(draw.choices(letters, k=draw.randint(shortest, 40))) for i in range(n)}
    Path("x.fasta").write_text("".join(f">{name}\n{one}\n" for name, one in rows.items()))
    table = "".join(f"{name},{one},{len(one) / 7}\n" for name, one in rows.items())
    Path("t.csv").write_text(f"name,sequence,target\n{table}")


def files(folder: str) -> dict[str, bytes]:
    found = Path(folder).rglob("*")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.is_file() and path.name not in (".lock", ".writers")
    }


def done(result: Result) -> None:
    assert result.exit_code == 0, result.output


@pytest.fixture
def checkpoint(molfun: Command) -> str:
    done(
        molfun(
            "fine-tune",
            "--backbone",
            "esm2_tiny",
            "--data",
            "t.csv",
            "--id-column",
            "name",
            "--epochs",
            1,
            "--strategy",
            "head_only",
            "--device",
            "cpu",
            "--no-report",
            "--output",
            "run",
        )
    )
    return "run/checkpoint"


@pytest.mark.parametrize(("size", "per_batch"), [(2, 2), (3, 4)])
def test_predictions_and_metrics(
    molfun: Command, checkpoint: str, size: int, per_batch: int
) -> None:
    """Seven rows in batches of two, and in fewer batches than processes."""
    flags = (checkpoint, "--data", "t.csv", "--batch-size", per_batch, "--device", "cpu")
    alone = molfun("predict", *flags, "--output", "one.csv")
    done(alone)
    said = together(size, "predict", *flags, "--output", "two.csv")
    assert said == alone.stdout.replace("one.csv", "two.csv")
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()

    flags = (*flags, "--bootstrap", 5)
    alone = molfun("evaluate", *flags, "--output", "one.json")
    done(alone)
    assert together(size, "evaluate", *flags, "--output", "two.json") == alone.stdout
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    # sums of losses are rounded in another order
    assert two.pop("loss") == pytest.approx(one.pop("loss"), abs=1e-6)
    assert two == one


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_embeddings(molfun: Command, pooling: str) -> None:
    for shard_size in (100, 3):
        flags = (*EMBED, "--pooling", pooling, "--shard-size", shard_size)
        done(molfun(*flags, "--output", f"one{shard_size}/e.npz"))
        together(2, *flags, "--output", f"two{shard_size}/e.npz")
        assert files(f"two{shard_size}") == files(f"one{shard_size}")


def test_fewer_sequences_than_processes(molfun: Command) -> None:
    write_samples(2)
    done(molfun(*FOLD, "--output", "one"))
    together(3, *FOLD, "--output", "two")
    assert files("two") == files("one")
    done(molfun(*EMBED, "--output", "one/e.npz"))
    together(3, *EMBED, "--output", "two/e.npz")
    assert files("two") == files("one")


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize(
    ("command", "made"),
    [
        ((*FOLD, "--recycles", 2, "--output", "{}"), "*.cif"),
        ((*EMBED, "--shard-size", 2, "--pooling", "none", "--output", "{}/e.npz"), "e-*.npz"),
    ],
    ids=["fold", "embed"],
)
def test_a_process_that_is_killed(
    molfun: Command, command: tuple[Any, ...], made: str, killed: int
) -> None:
    """The other one names it; the same command makes the rest, and what one process makes."""
    write_samples(16 if command[0] == "fold" else 400, shortest=40)

    def into(folder: str) -> list[str]:
        return [str(part).format(folder) for part in command]

    with started(2, *into("two")) as processes:
        deadline = time.monotonic() + 300
        # a shard counts once the note has its checksum
        while len(list(Path("two").glob(made))) < 3:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.002)
        processes[killed].send_signal(signal.SIGKILL)
        other = processes[1 - killed]
        assert other.wait() == 1, other.stderr()
        said = other.stderr()
    assert (
        f": Process {killed} of 2 (from 0) ended, and the others end with it; its own output "
        f"says why, unless it was killed. The same command again makes what is missing." in said
    )
    done(molfun(*into("one")))
    before = {path: path.stat().st_mtime_ns for path in Path("two").glob(made)}
    assert len(before) < len(list(Path("one").glob(made)))
    again = together(2, *into("two"))
    assert "are there" in again
    assert files("two") == files("one")


def test_a_command_starts_its_own_processes(molfun: Command) -> None:
    """Killed in the middle, its lock ends at once; the next one waits for those it started."""
    write_samples(12, shortest=40)
    command = [sys.executable, "-m", "molfun", *FOLD, "--output", "two", "--devices", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as parent:
        while len(list(Path("two").glob("*.cif"))) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        parent.kill()
    done(molfun(*FOLD, "--output", "two"))
    done(molfun(*FOLD, "--output", "one"))
    assert files("two") == files("one")
    # all of it by itself, and nothing left to do
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "12 of 12 structures are there" in finished.stdout
    assert files("two") == files("one")


def test_another_number_of_processes_than_was_started() -> None:
    with started(2, *EMBED, "--output", "e.npz", "--devices", "3") as processes:
        assert [process.wait() for process in processes] == [1, 1]
        said = processes[0].stderr()
    assert "Error: devices=3 on 1 machines are 3 processes, and 2 were started." in said
    assert not Path("e.npz").exists()


CV = (
    "cv", "--backbone", "esm2_tiny", "--data", "t.csv", "--id-column", "name", "--folds", "3",
    "--val-frac", "0.2", "--epochs", "2", "--device", "cpu", "--no-report", "--strategy",
)  # fmt: skip


def folds(run: str) -> pd.DataFrame:
    return pd.read_csv(f"{run}/folds.csv").drop(columns="seconds")


@pytest.mark.parametrize("strategy", ["partial", "lora"])
def test_folds_are_dealt(strategy: str) -> None:
    """Each process trains whole folds: even the draws of dropout are those of one process."""
    write_samples(20)
    alone = together(1, *CV, strategy, "--output", "alone")
    said = together(2, *CV, strategy, "--output", "two")
    table = alone[alone.index("fold ") : alone.index("Everything")]
    assert table in said
    one, two = files("alone"), files("two")
    assert one.keys() == two.keys()
    for name in ("out_of_fold.csv", "fold_2/history.csv"):
        assert name in one
        assert one[name] == two[name], name
    assert folds("alone").equals(folds("two"))
    for name in one:
        if name.endswith(".safetensors"):
            first, other = load_file(f"alone/{name}"), load_file(f"two/{name}")
            assert all(torch.equal(tensor, other[key]) for key, tensor in first.items()), name


def test_a_process_of_folds_that_is_killed() -> None:
    write_samples(20)
    together(1, *CV, "partial", "--output", "alone")
    with started(2, *CV, "partial", "--output", "two") as processes:
        end = time.monotonic() + 120
        while not Path("two/fold_2/history.csv").exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[0].wait(120)
        assert "Process 1 of 2 (from 0) ended" in processes[0].stderr()
        assert "A run that had begun goes on with --resume." in processes[0].stderr()
    together(2, "cv", "--resume", "--output", "two")
    name = "out_of_fold.csv"
    assert Path("alone", name).read_bytes() == Path("two", name).read_bytes()
    assert folds("alone").equals(folds("two"))


PRETRAIN = (
    "pretrain", "--backbone", "esm2_tiny", "--sequences", "x.fasta", "--batch-size", "2",
    "--val-frac", "0", "--device", "cpu", "--epochs", "3", "--no-report",
)  # fmt: skip


def test_processes_pretrain_together() -> None:
    write_samples(12)
    way = "fsdp2"
    said = together(2, *PRETRAIN, "--parallel", way, "--output", "two")
    assert said.count("Weights of epoch") == 1
    together(1, *PRETRAIN, "--accum", "2", "--output", "one")
    one, two = (Path(run, "history.csv").read_text().splitlines() for run in ("one", "two"))
    steps = one[0].split(",").index("steps")
    assert [row.split(",")[steps] for row in one] == [row.split(",")[steps] for row in two]
    # the masks are drawn by each process
    (first, other) = (load_file(f"{run}/weights.safetensors") for run in ("one", "two"))
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in other.items()}
    with started(2, *PRETRAIN, "--parallel", way, "--output", "again") as processes:
        end = time.monotonic() + 120
        while not Path("again/resume").exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(processes[0].pid, signal.SIGTERM)
        [process.wait(120) for process in processes]
    together(2, "pretrain", "--resume", "--output", "again")
    again = load_file("again/weights.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in other.items())

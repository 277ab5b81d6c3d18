"""``pretrain`` and ``embed`` on sequences that stay in Arrow and Parquet files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from click.testing import Result

from molfun import SequenceDataset
from molfun._io import load_safetensors

Molfun = Callable[..., Result]
TINY = ("--backbone", "esm2", "--preset", "esm2_t1_d16_h2", "--device", "cpu")
PRETRAIN = ("pretrain", *TINY, "--no-report", "--val-frac", "0.05", "--max-tokens", "400")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sequences in ``a.arrow``, and in two files of the folder ``parts``."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKL"), rng.integers(5, 60))) for _ in range(300)]
    table = pyarrow.table({"name": [f"p{i:03d}" for i in range(300)], "sequence": texts})
    pyarrow.feather.write_feather(
        table, tmp_path / "a.arrow", compression="uncompressed", chunksize=64
    )
    (tmp_path / "parts").mkdir()
    pyarrow.parquet.write_table(table.slice(0, 180), tmp_path / "parts" / "1.parquet")
    pyarrow.parquet.write_table(table.slice(180), tmp_path / "parts" / "2.parquet")
    monkeypatch.chdir(tmp_path)
    return texts


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_safetensors(Path(run) / "weights.safetensors")


def test_files_and_folders_train_the_same(molfun: Molfun, texts: list[str]) -> None:
    for source, output in (("a.arrow", "one"), ("parts", "two")):
        done = molfun(
            *PRETRAIN, "--sequences", source, "--epochs", 1, "--output", output, "--id-column",
            "name", "--max-length", 40,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        residues = sum(min(len(text), 40) for text in texts)
        train = int(done.output.split("Data: ")[1].split(" train")[0])
        assert train == 285
        assert f"{train} train (" in done.output
        shown = int(done.output.split("train (")[1].split(" residues")[0].replace(",", ""))
        assert 0.9 * residues < shown < residues
    one, two = weights("one"), weights("two")
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name


@pytest.mark.slow
def test_a_run_that_is_killed_within_an_epoch_goes_on_bit_by_bit(
    molfun: Molfun, texts: list[str]
) -> None:
    assert texts
    settings = [*PRETRAIN, "--sequences", "a.arrow", "--epochs", "30", "--save-every-steps", "7"]
    done = molfun(*settings, "--output", "whole")
    assert done.exit_code == 0, done.output
    command = [sys.executable, "-m", "molfun", *settings, "--output", "killed"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums of as many
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    history = Path("killed/history.csv")
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        if history.exists() and len(history.read_text().splitlines()) > 4:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = Path("killed/history.csv").read_text()
    done = molfun("pretrain", "--resume", "--output", "killed")
    assert done.exit_code == 0, done.output
    assert Path("whole/history.csv").read_text() == Path("killed/history.csv").read_text() != before
    for name, weight in weights("whole").items():
        assert torch.equal(weight, weights("killed")[name]), name


def test_a_changed_file_is_not_resumed(molfun: Molfun, texts: list[str]) -> None:
    settings = (*PRETRAIN, "--sequences", "a.arrow", "--max-steps", 2, "--output", "run")
    assert molfun(*settings).exit_code == 0
    table = pyarrow.table({"sequence": [*texts[:-1], texts[-1][::-1]]})
    pyarrow.feather.write_feather(table, "a.arrow", compression="uncompressed")
    done = molfun("pretrain", "--resume", "--output", "run")
    assert done.exit_code == 1
    assert "training set" in done.output


def test_embedding_in_shards_is_that_of_a_table(molfun: Molfun, texts: list[str]) -> None:
    table = pyarrow.table({"name": [f"p{i:03d}" for i in range(300)], "sequence": texts})
    pyarrow.parquet.write_table(table, "all.parquet")
    Path("all.csv").write_text(
        "name,sequence\n" + "".join(f"p{i:03d},{text}\n" for i, text in enumerate(texts))
    )
    for source in ("all.csv", "a.arrow", "parts"):
        folder = source.partition(".")[0] + "_" + source[-3:]
        done = molfun(
            "embed", *TINY, "--sequences", source, "--id-column", "name", "--shard-size", 128,
            "--output", f"{folder}/e.npz",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    expected: Any = [arrays(path) for path in sorted(Path("all_csv").glob("*.npz"))]
    assert [len(one["ids"]) for one in expected] == [128, 128, 44]
    for folder in ("a_row", "parts_rts"):
        found: Any = [arrays(path) for path in sorted(Path(folder).glob("*.npz"))]
        for one, other in zip(expected, found, strict=True):
            for name in ("ids", "embeddings", "sequences", "model"):
                assert np.array_equal(one[name], other[name]), name
    note = Path("all_csv/e.json").read_text()
    assert (
        note.split('"sequences"')[1][:80]
        == (Path("a_row/e.json").read_text().split('"sequences"')[1][:80])
    )
    data = SequenceDataset.from_csv("all.csv", id_column="name", require_target=False)
    assert data.with_representations("a_row/e.npz")[7].features is not None


def test_letters_are_refused_before_training(molfun: Molfun, texts: list[str]) -> None:
    table = pyarrow.table({"sequence": [*texts, "MKJ"]})
    pyarrow.feather.write_feather(table, "bad.arrow", compression="uncompressed")
    done = molfun(*PRETRAIN, "--sequences", "bad.arrow", "--max-steps", 1, "--output", "run")
    assert done.exit_code == 1
    assert "1 sample cannot be used with ESM-2" in done.output
    said = "seq_301 (bad.arrow, row 301): 'J' at position 3 is no amino acid"
    assert said in " ".join(done.output.split())
    pyarrow.feather.write_feather(table, "parts/bad.arrow", compression="uncompressed")
    done = molfun(*PRETRAIN, "--sequences", "parts", "--max-steps", 1, "--output", "run")
    assert done.exit_code == 1
    assert " ".join(done.output.split()).endswith(
        "parts holds Arrow and Parquet files. Give a folder with one copy of each sequence."
    )

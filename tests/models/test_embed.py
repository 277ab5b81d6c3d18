"""Representations in input order, from Python and the command line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from molfun import MolfunStructureModel, SequenceDataset
from molfun.cli import embed as command
from molfun.cli.main import app
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample

SEQUENCES = ["MKVLAAGIVGAAPP", "GG", "ACDEFGHIKLMNPQRSTVWY", "M", "PQRSTVW", "GG"]


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", device="cpu")


@pytest.fixture
def run() -> Iterator[Any]:
    """``run("--output", ...)`` embeds the FASTA file of the tests."""
    runner = CliRunner()
    yield lambda *arguments: runner.invoke(
        app, ["embed", "--backbone", "esm2_tiny", *map(str, arguments)]
    )
    logger = logging.getLogger("molfun")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">p{i} text\n{s}\n" for i, s in enumerate(SEQUENCES)))
    return path


@pytest.mark.parametrize("batch_tokens", [1, 15, 10_000])
def test_each_is_what_it_is_alone(model: MolfunStructureModel, batch_tokens: int) -> None:
    arrays = model.embed(SEQUENCES, batch_tokens=batch_tokens)
    means = model.embed(SEQUENCES, pooling="mean", batch_tokens=batch_tokens)
    firsts = model.embed(SEQUENCES, pooling="cls", batch_tokens=batch_tokens)
    assert means.shape == firsts.shape == (6, 32)
    for i, (sequence, array) in enumerate(zip(SEQUENCES, arrays, strict=True)):
        output = model.predict([Sample(id="s", sequence=sequence)], outputs=("single", "cls"))
        alone = output["trunk"]
        assert array.shape == (len(sequence), 32)
        assert np.allclose(array, alone.single[0].numpy(), rtol=0, atol=1e-5)
        assert np.allclose(means[i], alone.single[0].numpy().mean(0), rtol=0, atol=1e-5)
        assert np.allclose(firsts[i], alone.cls[0].numpy(), rtol=0, atol=1e-5)


def test_layers_are_those_of_the_backbone(model: MolfunStructureModel) -> None:
    first, last = (model.embed(SEQUENCES, layer=k) for k in (1, -1))
    assert np.array_equal(model.embed(SEQUENCES, layer=2)[0], last[0])
    assert not np.allclose(first[0], last[0])
    with pytest.raises(ConfigError, match="layer must be from -3 to 2 for 2 blocks, got 9"):
        model.embed("MK", layer=9)


def test_other_backbones_embed_too() -> None:
    model = MolfunStructureModel("openfold", config="tiny", device="cpu")
    from molfun import AffinityDataset

    data = AffinityDataset.synthetic(2, length=5)
    arrays = model.embed(data)
    assert [a.shape for a in arrays] == [(5, 32)] * 2
    assert np.allclose(model.embed(data, pooling="mean")[1], arrays[1].mean(0), atol=1e-5)
    with pytest.raises(ConfigError, match="OpenFold gives the last layer only"):
        model.embed(data, layer=1)


def test_what_cannot_be_embedded(model: MolfunStructureModel) -> None:
    with pytest.raises(DataError) as caught:
        model.embed(["MK", "M*", "", "J"])
    for text in ("seq_2: '*' at position 2", "seq_3: the sequence is empty", "seq_4: 'J'"):
        assert text in str(caught.value)
    with pytest.raises(ConfigError, match="Unknown pooling 'max'"):
        model.embed("MK", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_tokens must be at least 1, got 0"):
        model.embed("MK", batch_tokens=0)
    with pytest.raises(
        DataError, match="Item 0 of the list is no sample: an object of the type int"
    ):
        model.embed([1])
    with pytest.raises(DataError, match="The data is empty: there are no samples in it"):
        model.embed([], pooling="mean")


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_npz_and_parquet(
    model: MolfunStructureModel, run: Any, fasta: Path, tmp_path: Path, pooling: str
) -> None:
    expected = model.embed(SEQUENCES, pooling=None if pooling == "none" else "mean")
    for suffix in (".npz", ".parquet"):
        path = tmp_path / f"e{suffix}"
        result = run("--sequences", fasta, "--pooling", pooling, "--output", path)
        assert result.exit_code == 0, result.stderr
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                ids, values = file["ids"].tolist(), file["embeddings"]
                if pooling == "none":
                    values = np.split(values, file["offsets"][1:-1])
        else:
            table = pd.read_parquet(path)
            ids = table["id"].tolist()
            values = [np.array(list(v), dtype=np.float32) for v in table["embedding"]]
        assert ids == [f"p{i}" for i in range(6)]
        for found, wanted in zip(values, expected, strict=True):
            assert np.allclose(found, wanted, rtol=0, atol=1e-6)


def test_h5(model: MolfunStructureModel, run: Any, fasta: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    run("--sequences", fasta, "--pooling", "none", "--output", tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5") as file:
        assert list(file) == [f"p{i}" for i in range(6)]
        assert np.allclose(file["p2"][()], model.embed(SEQUENCES)[2], rtol=0, atol=1e-6)


def test_ids_that_an_h5_file_cannot_tell_apart(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "x.csv").write_text("name,sequence\na/b,MK\na|b,GG\n")
    result = run("--sequences", tmp_path / "x.csv", "--id-column", "name",
                 "--output", tmp_path / "e.h5")  # fmt: skip
    assert result.exit_code == 1
    assert "In an .h5 file a|b would stand for two ids" in result.stderr
    path = tmp_path / "e.parquet"
    run("--sequences", tmp_path / "x.csv", "--id-column", "name", "--output", path)
    assert pd.read_parquet(path)["id"].tolist() == ["a/b", "a|b"]


def test_parquet_holds_single_precision(run: Any, fasta: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    for pooling, kind in (("mean", "fixed_size_list"), ("none", "list<")):
        path = tmp_path / f"{pooling}.parquet"
        assert run("--sequences", fasta, "--pooling", pooling, "--output", path).exit_code == 0
        text = str(pyarrow.parquet.read_schema(path).field("embedding").type)
        assert text.startswith(kind)
        assert "float>" in text


def test_long_sequences_are_cropped_or_windowed(run: Any, tmp_path: Path) -> None:
    (tmp_path / "long.fasta").write_text(">a\n" + "MKVLAAGG" * 150 + "\n")
    rows = {}
    for policy in ("full", "crop", "window"):
        path = tmp_path / f"{policy}.npz"
        result = run("--sequences", tmp_path / "long.fasta", "--pooling", "none", "--long", policy,
                     "--output", path)  # fmt: skip
        assert result.exit_code == 0, result.stderr
        rows[policy] = len(arrays(path)["embeddings"])
    assert rows == {"full": 1200, "crop": 1022, "window": 1200}


def test_shards_go_on_where_they_stopped(
    run: Any, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--sequences", fasta, "--output", tmp_path / "s" / "e.npz", "--shard-size", 2)
    calls: list[int] = []
    write = command._write

    def stop_after_one(path: Path, *arguments: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        write(path, *arguments)

    monkeypatch.setattr(command, "_write", stop_after_one)
    assert run(*options).exit_code == 130
    monkeypatch.setattr(command, "_write", write)
    first = tmp_path / "s" / "e-00000-of-00003.npz"
    written = first.stat().st_mtime_ns
    result = run(*options)
    assert result.exit_code == 0
    assert "1 of 3 shards are there already" in result.stdout
    assert first.stat().st_mtime_ns == written
    ids = [i for p in sorted((tmp_path / "s").glob("*.npz")) for i in arrays(p)["ids"].tolist()]
    assert ids == [f"p{i}" for i in range(6)]
    other = run(*options, "--pooling", "cls")
    assert other.exit_code == 1
    assert "made with another pooling. Replace them with --overwrite" in other.stderr
    other = run(*options, "--precision", "bf16")
    assert other.exit_code == 1
    assert "made with another precision. Replace them with --overwrite" in other.stderr
    assert run(*options[:-1], 3).exit_code == 1, "shards of another size are no less in the way"
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:300], bytes(flipped)):
        first.write_bytes(damaged)
        result = run(*options)
        assert result.exit_code == 0
        assert "e-00000-of-00003.npz is damaged (checksum) and is made again." in result.stderr
        assert "2 of 3 shards are there already" in result.stdout
        assert len(arrays(first)["embeddings"]) == 2
    assert run(*options, "--pooling", "cls", "--overwrite").exit_code == 0


def test_a_precision(run: Any, fasta: Path, tmp_path: Path) -> None:
    """It is written beside the arrays, which are float32 in any case."""
    files = {}
    for name in ("fp32", "bf16"):
        path = tmp_path / f"{name}.npz"
        result = run("--sequences", fasta, "--output", path, "--precision", name)
        assert result.exit_code == 0, result.output
        files[name] = arrays(path)
    exact, found = (files[name]["embeddings"] for name in ("fp32", "bf16"))
    assert found.dtype == np.float32
    assert 1e-6 < np.linalg.norm(found - exact) < 1e-2 * np.linalg.norm(exact)
    assert str(files["bf16"]["precision"]) == "bf16"
    assert str(files["bf16"]["model"]) == str(files["fp32"]["model"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--output", "e.txt"), "Error: --output must end in .npz, .h5, .parquet, got 'e.txt'."),
        (("--shard-size", "0"), "Error: --shard-size must be at least 1, got 0."),
        (("--backbone", "esm3"), "Error: Unknown backbone 'esm3'"),
    ],
)
def test_wrong_arguments(run: Any, fasta: Path, arguments: tuple[str, ...], text: str) -> None:
    result = run("--sequences", fasta, *arguments)
    assert result.exit_code == 1
    assert text in result.stderr


def test_a_file_is_replaced_only_if_asked_for(run: Any, fasta: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    assert run("--sequences", fasta, "--output", path).exit_code == 0
    assert "exists. Replace with --overwrite" in run(
        "--sequences", fasta, "--output", path
    ).stderr  # fmt: skip
    assert run("--sequences", fasta, "--output", path, "--overwrite").exit_code == 0


def test_a_fine_tuned_model_embeds(run: Any, fasta: Path, tmp_path: Path) -> None:
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    data = SequenceDataset.from_list([(s, float(len(s))) for s in SEQUENCES[:4]])
    model.fit(data, strategy="full", epochs=1, output_dir=tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint"
    result = run("--sequences", fasta, "--checkpoint", checkpoint, "--output", tmp_path / "e.npz")
    assert result.exit_code == 0, result.stderr
    found = torch.from_numpy(arrays(tmp_path / "e.npz")["embeddings"])
    expected = torch.from_numpy(model.embed(SEQUENCES, pooling="mean"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)

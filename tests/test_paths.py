"""Paths that the system cannot have, or that are no paths, given to whatever reads or writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from molfun.backbones.openfold.alignments import read_alignment
from molfun.cli.main import app
from molfun.config import read_yaml
from molfun.data.affinity import AffinityDataset
from molfun.data.atoms import AtomsDataset
from molfun.data.atoms_files import read_frames
from molfun.data.fasta import read_fasta
from molfun.data.feature_files import read_features, write_features
from molfun.data.sequences import SequenceDataset
from molfun.data.series.dataset import TimeSeriesDataset
from molfun.data.structures import read_structure
from molfun.errors import ConfigError, MolfunError
from molfun.models.export import export
from molfun.models.structure import MolfunStructureModel
from molfun.nn import lora
from molfun.runs.checkpoint import read_meta
from molfun.training.callbacks import CSVLog

LONG = "a" * 300
TABLE = "sequence,target\nMKVA,1\nMKAC,2\nMKCD,3\nMKDE,4\n"
READERS: dict[str, Callable[[Any], Any]] = {
    "structure": read_structure,
    "fasta": lambda path: list(read_fasta(path)),
    "frames": read_frames,
    "alignment": read_alignment,
    "features": read_features,
    "yaml": read_yaml,
    "meta": read_meta,
    "adapter": lora.read_spec,
    "sequences csv": SequenceDataset.from_csv,
    "sequences fasta": SequenceDataset.from_fasta,
    "affinity csv": lambda path: AffinityDataset.from_csv(path, pdb_dir="."),
    "affinity pdb_dir": lambda path: AffinityDataset.from_csv("a.csv", pdb_dir=path),
    "affinity features_dir": lambda path: AffinityDataset.from_csv("a.csv", features_dir=path),
    "series csv": TimeSeriesDataset.from_csv,
    "series parquet": TimeSeriesDataset.from_parquet,
    "series ts": TimeSeriesDataset.from_ts,
    "series numpy": TimeSeriesDataset.from_numpy,
    "trajectories": TimeSeriesDataset.from_trajectories,
    "atoms": AtomsDataset.from_files,
    "from_checkpoint": MolfunStructureModel.from_checkpoint,
    "esm2 weights": lambda path: MolfunStructureModel("esm2_tiny", weights=path),
    "openfold weights": lambda path: MolfunStructureModel("openfold", config="tiny", weights=path),
    "timeseries weights": lambda path: MolfunStructureModel("timeseries", weights=path),
    "pet weights": lambda path: MolfunStructureModel("pet", weights=path),
}
WRITERS: dict[str, Callable[[MolfunStructureModel, Any], Any]] = {
    "write_features": lambda _, path: write_features(path, {"a": [1]}),
    "save": lambda model, path: model.save(path),
    "load": lambda model, path: model.load(path),
    "export": export,
    "output_dir": lambda model, path: model.fit(_data(), epochs=1, output_dir=path),
    "cache_dir": lambda model, path: model.fit(
        _data(), epochs=1, strategy="head_only", cache="disk", cache_dir=path
    ),
    "pretrain": lambda model, path: model.pretrain(_data(), epochs=1, output_dir=path),
    "history": lambda _, path: CSVLog(path),
    "representations": lambda _, path: _data().with_representations(path),
}
MAKES_A_FOLDER = {"save", "output_dir", "cache_dir", "pretrain", "history"}
"""What may be given an empty folder, or looks at its path only when a fit starts."""

BAD = {
    LONG: "File name too long. Choose a shorter name.",
    "~nosuchuser/x": "there is no user or home folder of that name",
    "nul\0.csv": "holds a character that no file name can have",
    "loop": "A symbolic link leads back to itself",
    "loop/x": "A symbolic link leads back to itself",
    "": "A path is empty",
    5: "A path must be a text or a pathlib.Path, got 5",
}


def _data() -> SequenceDataset:
    return SequenceDataset.from_list([("MKVA", 1.0), ("MKAC", 2.0), ("MKCD", 3.0)])


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "d.csv").write_text(TABLE)
    (tmp_path / "a.csv").write_text("pdb_id,affinity\n1abc,2.0\n")


def _refused(call: Callable[[], Any], path: Any, message: str) -> None:
    with pytest.raises(MolfunError) as caught:
        call()
    assert message in str(caught.value), path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_paths_that_cannot_be(name: str) -> None:
    for path, message in BAD.items():
        if path == "" and name.startswith("affinity "):
            continue  # leaves the folder out
        _refused(lambda path=path: READERS[name](path), path, message)
    _refused(lambda: READERS[name]("folder"), "folder", "")


@pytest.mark.parametrize("name", WRITERS)
def test_writers_refuse_paths_that_cannot_be(name: str, model: MolfunStructureModel) -> None:
    for path, message in BAD.items():
        _refused(lambda path=path: WRITERS[name](model, path), path, message)
    if name not in MAKES_A_FOLDER:
        _refused(lambda: WRITERS[name](model, "folder"), "folder", "")


def test_a_missing_trajectory_of_a_user_not_known_here_is_listed() -> None:
    for path in (LONG, "~nosuchuser/x", "nul\0", "loop"):
        with pytest.raises(MolfunError, match=r"1 file not found:\n  one: "):
            TimeSeriesDataset.from_trajectories([("one", path)])


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "model", "--data", "@"],
        ["predict", "@", "--data", "d.csv"],
        ["predict", "model", "--data", "d.csv", "--output", "@"],
        ["evaluate", "@", "--data", "d.csv"],
        ["evaluate", "model", "--data", "d.csv", "--output", "@"],
        ["fine-tune", "--config", "@"],
        *(
            ["fine-tune", "--backbone", "esm2_tiny", "--epochs", "1", *rest]
            for rest in (
                ["--data", "@"],
                *(["--data", "d.csv", flag, "@"] for flag in (
                    "--val", "--test", "--output", "--weights", "--init-from", "--cache-dir",
                )),
            )
        ),
        ["pretrain", "--sequences", "@"],
        ["pretrain", "--sequences", "d.csv", "--output", "@"],
    ],
    ids=lambda command: " ".join(command),
)  # fmt: skip
def test_flags_refuse_paths_that_cannot_be(command: list[str], model: MolfunStructureModel) -> None:
    model.save("model")
    for path in (LONG, "~nosuchuser/x", "loop"):
        done = CliRunner().invoke(app, [path if word == "@" else word for word in command])
        assert done.exit_code == 1, (path, done.output, done.exception)
        last = " ".join(done.output.split())
        assert "Error: Cannot use the path" in last
        assert "Traceback" not in last
        assert BAD[path] in last


def test_a_path_object_and_home_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    for path in (Path("d.csv"), "d.csv", "~/d.csv"):
        assert len(SequenceDataset.from_csv(path)) == 4


def test_a_folder_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(self: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigError, match=r"Permission denied\. Choose a path in a folder"):
        list(read_fasta("closed/a.fasta"))

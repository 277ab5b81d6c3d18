"""A run is set up once: one lock, one look at the folder, one check of the samples."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from molfun.backbones.esm2 import ESM2Backbone
from molfun.cli.main import app
from molfun.errors import ConfigError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.runs.folder import DirectoryLock, RunFolder

PAIRS = [(f"MKV{letter}AC", float(i)) for i, letter in enumerate("ACDEFGHIKL")]
FIT: dict[str, Any] = {"strategy": "head_only", "epochs": 1}


def small_model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression")


def fine_tune(folder: Path, *arguments: str) -> Any:
    table = folder / "data.csv"
    if not table.exists():
        table.write_text("\n".join(["sequence,target", *(f"{s},{y}" for s, y in PAIRS), ""]))
    options = "fine-tune --backbone esm2 --preset tiny --device cpu --epochs 1 --strategy head_only"
    given = [*options.split(), "--data", str(table), "--output", str(folder / "run"), *arguments]
    return CliRunner().invoke(app, given)


def test_a_command_takes_the_lock_once_and_checks_each_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: Counter[str] = Counter()
    locks: list[Path] = []
    doubtful, enter = ESM2Backbone.doubtful, DirectoryLock.__enter__

    def counting(self: Any, dataset: Any) -> Any:
        checked.update(sequence for (sequence,) in dataset.sequences())
        return doubtful(self, dataset)

    def noting(self: Any) -> Any:
        locks.append(self.path)
        return enter(self)

    monkeypatch.setattr(ESM2Backbone, "doubtful", counting)
    monkeypatch.setattr(DirectoryLock, "__enter__", noting)
    # before the samples of validation and test set are predicted, which looks at them as any use
    monkeypatch.setattr("molfun.cli.fine_tune._report", lambda *_, **__: None)
    result = fine_tune(tmp_path)
    assert result.exit_code == 0, result.output
    assert len(checked) == len(PAIRS)
    assert set(checked.values()) == {1}
    assert locks == [tmp_path / "run" / ".lock"]


def test_bad_samples_of_all_parts_are_listed_together(tmp_path: Path) -> None:
    rows = [f"{s},{y},{'test' if i > 6 else 'train'}" for i, (s, y) in enumerate(PAIRS)]
    rows[1], rows[8] = "MK1VAC,1.0,train", "MK2VAC,8.0,test"
    (tmp_path / "data.csv").write_text("\n".join(["sequence,target,split", *rows, ""]))
    result = fine_tune(tmp_path, "--split", "column")
    assert result.exit_code == 1
    assert "2 samples cannot be used" in result.stderr


def test_a_run_folder_stays_with_its_opener(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).check(overwrite=False)
    with folder.held():
        small_model().fit(PAIRS, output_dir=folder, **FIT)
        with pytest.raises(RunError, match="is in use by process"), RunFolder(tmp_path).held():
            pass
    assert folder.checkpoint.is_dir()
    with pytest.raises(RunError, match=r"already holds a run \(checkpoint, resume, history.csv\)"):
        RunFolder(tmp_path).check(overwrite=False)
    assert RunFolder(tmp_path).check(overwrite=True).replaced == [
        "checkpoint", "resume", "history.csv",
    ]  # fmt: skip


def test_a_run_without_a_folder_cannot_be_resumed() -> None:
    with pytest.raises(ConfigError, match="resume=True needs output_dir"):
        small_model().fit(PAIRS, resume=True, **FIT)


def test_what_a_new_run_replaces_is_removed_except_its_state(tmp_path: Path) -> None:
    for name in ("config.yaml", "splits.csv", "history.csv"):
        (tmp_path / name).write_text("epoch,x\n1,2\n")
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "state.pt").write_text("x")
    folder = RunFolder(tmp_path).check(overwrite=True)
    folder.remove_replaced()
    assert [path.name for path in tmp_path.iterdir()] == ["resume"]


def test_a_checkpoint_is_loaded_without_a_word_on_random_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_model().save(tmp_path / "c")
    assert "starts from random weights" in caplog.text
    caplog.clear()
    level = logging.getLogger("molfun.models.assembly").level
    model = MolfunStructureModel.from_checkpoint(tmp_path / "c")
    assert "starts from random weights" not in caplog.text
    assert "ESM-2" not in caplog.text
    assert model.random_base
    assert logging.getLogger("molfun.models.assembly").level == level

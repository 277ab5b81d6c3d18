"""Saving never takes the place of a user's other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molfun.errors import CheckpointError
from molfun.models.structure import MolfunStructureModel


def test_save_refuses_a_folder_with_other_files(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious.csv").write_text("a")
    with pytest.raises(CheckpointError, match=r"holds other files \(precious.csv\)"):
        tiny_model().save(tmp_path / "run")
    assert (tmp_path / "run/precious.csv").read_text() == "a"


def test_save_replaces_a_checkpoint_and_fills_an_empty_folder(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    tiny_model().save(tmp_path / "c").save(tmp_path / "c")
    assert (tmp_path / "c/manifest.json").is_file()


def test_a_file_that_is_not_in_the_manifest_is_refused(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path
) -> None:
    model = tiny_model().save(tmp_path / "c")
    (tmp_path / "c/trunk2.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"trunk2.safetensors: not in the manifest"):
        model.load(tmp_path / "c")

"""Saving never takes the place of a user's other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molfun.errors import CheckpointError, RunError
from molfun.models.structure import MolfunStructureModel


def test_save_refuses_a_folder_with_other_files(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious.csv").write_text("a")
    with pytest.raises(CheckpointError, match=r"holds other files \(precious.csv\)"):
        tiny_model().save(tmp_path / "run")
    assert (tmp_path / "run/precious.csv").read_text() == "a"


@pytest.mark.parametrize("link", [False, True])
def test_save_refuses_a_file(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path, link: bool
) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    path = tmp_path / "data.csv"
    if link:
        path = tmp_path / "link.csv"
        path.symlink_to("data.csv")
    with pytest.raises(CheckpointError, match=rf"{path.name} is a file, which a checkpoint folder"):
        tiny_model().save(path)
    assert path.read_text() == "a,b"


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


@pytest.mark.parametrize("beside", ["meta.json", "manifest.json", "meta.pt"])
def test_a_file_of_the_user_beside_files_of_a_checkpoint_is_kept(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path, beside: str
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / beside).write_text("{}")
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(
        CheckpointError, match=r"holds other files \(thesis.txt\) that do not belong"
    ):
        tiny_model().save(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    tiny_model().save(folder)  # what is left of a damaged checkpoint is replaced
    assert (folder / "head.pt").is_file()


def test_a_run_keeps_a_file_of_the_user_in_its_checkpoint_folder(
    tiny_model: Callable[..., MolfunStructureModel], tmp_path: Path
) -> None:
    from tiny import build_samples

    model, samples = tiny_model(), build_samples(2)
    model.fit(samples, strategy="head_only", epochs=1, output_dir=tmp_path / "run")
    (tmp_path / "run/checkpoint/notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"under the names of a run \(checkpoint/notes.txt\)"):
        model.fit(
            samples, strategy="head_only", epochs=1, output_dir=tmp_path / "run", overwrite=True
        )
    assert (tmp_path / "run/checkpoint/notes.txt").read_text() == "mine"

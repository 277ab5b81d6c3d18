"""Base weights behind links, in folders that were moved, under other names: found by content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from molfun.errors import CheckpointError
from molfun.models.pretraining import save_weights
from molfun.models.structure import MolfunStructureModel

SEQUENCES = ["MKV", "ACDEFGH"]


def build(weights: Path | str | None = None, seed: int = 0) -> MolfunStructureModel:
    return MolfunStructureModel(
        "esm2_tiny", weights=weights, head="regression", device="cpu", seed=seed
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``project/w.safetensors`` of seed 3, the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save_weights(build(seed=3).backbone, folder / "w.safetensors")
    return folder


def save_and_check(model: MolfunStructureModel, path: Path) -> torch.Tensor:
    model.save(path)
    expected = torch.from_numpy(model.embed(SEQUENCES, pooling="mean"))
    assert torch.equal(embedded(path), expected)
    return expected


def embedded(path: Path, **options: object) -> torch.Tensor:
    model = MolfunStructureModel.from_checkpoint(path, device="cpu", **options)  # type: ignore[arg-type]
    return torch.from_numpy(model.embed(SEQUENCES, pooling="mean"))


def note_of(path: Path) -> dict[str, object]:
    return dict(json.loads((path / "meta.json").read_text())["backbone"])


def blob(path: Path, name: str) -> None:
    """Move a file to ``blobs/NAME`` and leave a link, as Hugging Face, DVC and git-annex do."""
    target = path.parent / "blobs" / name
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    path.symlink_to(os.path.relpath(target, path.parent))


@pytest.mark.parametrize("name", ["ab12", "ab12.bin", "SHA256-s1--ab"])
def test_weights_behind_a_link(project: Path, name: str) -> None:
    blob(project / "w.safetensors", name)
    save_and_check(build("w.safetensors"), project / "out")
    assert note_of(project / "out")["weights"] == str(project / "w.safetensors")


def test_weights_without_a_suffix(project: Path) -> None:
    (project / "w.safetensors").rename(project / "plain")
    save_and_check(build("plain"), project / "out")
    torch.save({"model": build(seed=3).backbone.model.state_dict()}, project / "zipped")
    save_and_check(build("zipped"), project / "other")


def test_a_chain_of_links_and_a_link_that_leads_elsewhere_later(project: Path) -> None:
    blob(project / "w.safetensors", "ab12")
    (project / "x.safetensors").symlink_to("w.safetensors")
    expected = save_and_check(build("x.safetensors"), project / "out")
    (project / "blobs/ab12").rename(project / "blobs/cd34")
    (project / "w.safetensors").unlink()
    (project / "w.safetensors").symlink_to("blobs/cd34")
    assert torch.equal(embedded(project / "out"), expected)


def test_a_link_that_is_gone(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    blob(project / "w.safetensors", "ab12")
    expected = save_and_check(build("w.safetensors"), project / "out")
    (project / "w.safetensors").unlink()
    assert torch.equal(embedded(project / "out"), expected)
    assert (
        f"The base weights of {project / 'out'} are no longer {project / 'w.safetensors'}; the "
        f"same ones were found as {project / 'blobs/ab12'}."
    ) in caplog.messages


def test_a_project_that_was_moved(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = save_and_check(build("w.safetensors"), project / "runs/a/checkpoint")
    moved = project.with_name("moved")
    monkeypatch.chdir(project.parent)
    project.rename(moved)
    assert torch.equal(embedded(moved / "runs/a/checkpoint"), expected)
    assert torch.equal(embedded(Path("moved/runs/a/checkpoint")), expected)


@pytest.mark.parametrize("name", ["w.safetensors", "another.name"])
def test_weights_that_were_put_beside_the_checkpoint(project: Path, name: str) -> None:
    expected = save_and_check(build("w.safetensors"), project / "checkpoint")
    other = project.with_name("other")
    other.mkdir()
    shutil.move(project / "checkpoint", other / "checkpoint")
    shutil.move(project / "w.safetensors", other / name)
    save_weights(build(seed=4).backbone, other / "a_of_the_same_size.safetensors")
    assert torch.equal(embedded(other / "checkpoint"), expected)


def test_the_fingerprint_decides_not_the_name(project: Path) -> None:
    expected = save_and_check(build("w.safetensors"), project / "checkpoint")
    shutil.move(project / "w.safetensors", project / "kept")
    save_weights(build(seed=4).backbone, project / "w.safetensors")
    assert torch.equal(embedded(project / "checkpoint"), expected)
    (project / "kept").unlink()
    with pytest.raises(CheckpointError, match=r"does not fit this model:\n  base weights: "):
        embedded(project / "checkpoint")
    (project / "w.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"w\.safetensors, which are not there\. Pass wei"):
        embedded(project / "checkpoint")


def test_a_folder_of_hugging_face_with_shards_behind_links(project: Path) -> None:
    from safetensors.torch import save_file

    folder = project / "snapshots" / "abc"
    folder.mkdir(parents=True)
    tensors = build(seed=3).backbone.model.state_dict()
    tensors = {n: t.clone() for n, t in tensors.items() if n != "lm_head.weight"}
    names = sorted(tensors)
    parts = {"m-1.safetensors": names[::2], "m-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
        blob(folder / file, file.replace(".", ""))
    index = {n: file for file, part in parts.items() for n in part}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    expected = save_and_check(build("snapshots/abc"), project / "out")
    (project / "hub").symlink_to(folder)
    assert torch.equal(embedded(project / "out", weights="hub"), expected)
    for bad in ("../m-1.safetensors", "/etc/passwd", 7):
        path.write_text(json.dumps({"weight_map": {**index, "x": bad}}))
        with pytest.raises(CheckpointError):
            build("snapshots/abc")


def test_a_path_with_dots_through_a_link_is_not_shortened(project: Path) -> None:
    deep = project / "deep" / "er"
    deep.mkdir(parents=True)
    shutil.move(project / "w.safetensors", project / "deep" / "w.safetensors")
    (project / "link").symlink_to(deep)
    save_and_check(build("link/../w.safetensors"), project / "out")  # deep/w.safetensors

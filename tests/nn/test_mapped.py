"""Weights in a mapped file: the same numbers, in no memory of the process, and never written to."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError, RunError
from molfun.models.skeleton import Skeleton
from molfun.nn.mapped import is_mapped, to_file

DATA = SequenceDataset.from_list(
    [("MKVLAAGIV", 1.0), ("ACDEFG", 2.0), ("GGSAYWKL", 3.0), ("MKAAE", 4.0)]
)


def model(mmap: bool = True, **options: Any) -> MolfunStructureModel:
    return MolfunStructureModel(
        "esm2_tiny", head="regression", device="cpu", backbone_config={"mmap": mmap}, **options
    )


def weights_of(made: MolfunStructureModel) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in made.backbone.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def in_file(made: MolfunStructureModel) -> set[str]:
    return {n for n, p in made.backbone.model.named_parameters() if is_mapped(p)}


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Path]:
    """One set of weights in several formats; the model starts from another seed."""
    plain = weights_of(model(mmap=False, seed=7))
    plain.pop("lm_head.weight")
    files = {name: tmp_path / name for name in ("f32.safetensors", "bf16.safetensors")}
    save_file(plain, files["f32.safetensors"])
    half = {n: t.bfloat16() for n, t in plain.items()}
    save_file(half, files["bf16.safetensors"])
    for name, new in (("new.pt", True), ("old.pt", False)):
        files[name] = tmp_path / name
        torch.save({"model": plain}, files[name], _use_new_zipfile_serialization=new)
    files["folder"] = tmp_path / "folder"
    files["folder"].mkdir()
    save_file(plain, files["folder"] / "model.safetensors")
    return files


def test_random_weights_are_the_same(tmp_path: Path) -> None:
    mapped = model()
    assert_equal(weights_of(model(mmap=False)), weights_of(mapped))
    assert len(in_file(mapped)) == 2 * 16
    assert not in_file(model(mmap=False))


@pytest.mark.parametrize(
    "name", ["f32.safetensors", "bf16.safetensors", "new.pt", "old.pt", "folder"]
)
def test_weights_of_files_are_the_same(written: dict[str, Path], name: str) -> None:
    path = written[name]
    mapped, plain = (model(mmap, weights=path) for mmap in (True, False))
    assert_equal(weights_of(plain), weights_of(mapped))
    assert mapped.base_fingerprint == plain.base_fingerprint
    assert len(in_file(mapped)) == 2 * 16


def test_a_file_is_never_written_to(written: dict[str, Path], tmp_path: Path) -> None:
    path = written["f32.safetensors"]
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    histories = []
    for mmap in (True, False):
        trained = model(mmap, weights=path)
        history = trained.fit(DATA, DATA, strategy=FullFinetune(), epochs=2)
        trained.save(tmp_path / str(mmap))
        histories.append((repr(list(history)), weights_of(trained)))
    assert histories[0][0] == histories[1][0]
    assert_equal(histories[0][1], histories[1][1])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    again = MolfunStructureModel.from_checkpoint(tmp_path / "True", device="cpu")
    assert_equal(weights_of(again), histories[1][1])


def test_adapters_are_merged_and_unmerged(written: dict[str, Path]) -> None:
    made = model(weights=written["f32.safetensors"])
    made.fit(DATA, DATA, strategy=LoRAFinetune(rank=2), epochs=1)
    before = {n: p.clone() for n, p in made.named_parameters()}
    predicted = made.predict(DATA)["prediction"]
    merged = made.merge().predict(DATA)["prediction"]
    assert torch.allclose(predicted, merged, atol=1e-5)
    made.unmerge()
    assert_equal(before, dict(made.named_parameters()))


_GROWTH = """
import sys
from molfun import MolfunStructureModel

def own():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

settings = {"device": "cpu", "backbone_config": {"mmap": sys.argv[1] == "True"}}
kept = MolfunStructureModel("esm2_tiny", **settings)
before = own()
model = MolfunStructureModel("esm2_t12_35M_UR50D", **settings)
print((own() - before) * 1024, sum(p.numel() * 4 for p in model.backbone.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_weights_in_a_file_take_no_memory() -> None:
    for mmap in (True, False):
        command = [sys.executable, "-c", _GROWTH, str(mmap)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        grown, size = map(int, said.split())
        assert (grown < 0.2 * size) is mmap, said


def test_a_model_without_numbers_has_none_in_a_file() -> None:
    made = Skeleton("esm2_tiny", head="regression", backbone_config={"mmap": True})
    assert {p.device.type for p in made.parameters()} == {"meta"}


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(RunError, match=r"Disk full while writing .*molfun-weights .* Free some"):
        to_file(torch.ones(3))


def test_types_and_shapes_stay_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else None
    for shape in ((0, 3), (2, 3), ()):
        for dtype in (torch.float32, torch.bfloat16):
            tensor = torch.randn(shape).to(dtype).mT if len(shape) == 2 else torch.ones(shape)
            kept = to_file(tensor)
            assert kept.shape == tensor.shape
            assert kept.dtype == tensor.dtype
            assert torch.equal(kept, tensor)
    assert not list(tmp_path.iterdir())
    # a model has hundreds of weights, and a process may open a thousand files
    assert opened is None or len(list(Path("/proc/self/fd").iterdir())) <= opened


def test_int8_and_a_mapped_file_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="mmap keeps weights as floats in a file, and base is 'i"):
        model(base="int8")

"""Checkpoints and states that somebody changed on purpose: one error of ours, and no memory taken.

Checksums are made to fit again, as whoever changes a file on purpose does.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun._io import load_torch, save_safetensors, save_torch
from molfun.errors import CheckpointError, MolfunError, UnsafeFileError
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import read_meta
from molfun.runs.resume import read_state, write_state
from molfun.sample import Sample
from molfun.training import LoRAFinetune

SAMPLES = [Sample(id=f"s{i}", sequence="MKVACD"[i:], target=float(i)) for i in range(4)]
FUZZ = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 10**9, 2**63, 10**30, -(10**9)]),
    st.sampled_from([math.nan, math.inf, -1.5, 1e30]),
    st.sampled_from(["", "x", "../x", "\0", "lora", "esm2", "ü" * 300, "1"]),
    st.sampled_from([[], [1], ["a", None], {}, {"name": 1}, {"": {}}]),
    st.just(torch.zeros(2)),
)
"""What a hostile or broken file may hold in the place of any value."""


def build() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu")


def fit(model: MolfunStructureModel, folder: Path, **options: Any) -> None:
    batches = [SAMPLES[:2], SAMPLES[2:]]
    model.fit(batches, batches, strategy=LoRAFinetune(rank=2), epochs=1, output_dir=folder,
              cache="off", **options)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with adapters; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    fit(build(), folder)
    return folder


def sign_again(folder: Path) -> None:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    entries = {
        p.relative_to(folder).as_posix(): {
            "size": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in files
    }
    (folder / "manifest.json").write_text(json.dumps(entries))


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every value in nested containers."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))[:3]
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value changed, or left out where `value` is an ellipsis."""
    if not path:
        return value
    changed = list(content) if isinstance(content, list | tuple) else dict(content)
    new = replaced(changed[path[0]], path[1:], value)
    if new is ...:
        del changed[path[0]]
    else:
        changed[path[0]] = new
    return changed


def refused_or_taken(read: Callable[[], Any]) -> bool:
    """Whether a reader refused; anything but an error of ours fails the test."""
    try:
        read()
    except MolfunError:
        return True
    return False


@pytest.mark.slow
@given(data=st.data())
@FUZZ
def test_any_value_of_the_description(
    run: Path, tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(run / "checkpoint", folder)
    meta = load_torch(folder / "meta.pt")
    where = data.draw(st.sampled_from(list(places(meta))))
    save_torch(folder / "meta.pt", replaced(meta, where, data.draw(VALUES | st.just(...))))
    sign_again(folder)
    refused_or_taken(lambda: MolfunStructureModel.from_checkpoint(folder, device="cpu"))


@pytest.mark.parametrize("found", [torch.zeros(2), "1", None, True, [1]])
def test_a_format_that_is_no_number_is_named(run: Path, tmp_path: Path, found: Any) -> None:
    shutil.copytree(run / "checkpoint", tmp_path / "c")
    meta = load_torch(tmp_path / "c" / "meta.pt")
    save_torch(tmp_path / "c" / "meta.pt", {**meta, "format": found})
    sign_again(tmp_path / "c")
    with pytest.raises(CheckpointError, match=f"has checkpoint format {type(found).__name__};"):
        read_meta(tmp_path / "c")


@pytest.mark.slow
@given(data=st.data())
@FUZZ
def test_any_value_of_the_head_and_the_adapters(
    run: Path, tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(run / "checkpoint", folder)
    name = data.draw(
        st.sampled_from(
            ["head.pt", "peft_adapter/molfun_spec.json", "peft_adapter/adapter_config.json"]
        )
    )
    file, value = folder / name, data.draw(VALUES | st.just(...))
    if name == "head.pt":
        content = load_torch(file)
        where = data.draw(st.sampled_from([(), *places(content)]))
        save_torch(file, None if value is ... and not where else replaced(content, where, value))
    else:
        content = json.loads(file.read_text())
        where = data.draw(st.sampled_from(list(places(content))))
        value = "tensor" if isinstance(value, torch.Tensor) else value
        file.write_text(json.dumps(replaced(content, where, value)))
    sign_again(folder)
    refused_or_taken(lambda: MolfunStructureModel.from_checkpoint(folder, device="cpu"))


@pytest.mark.slow
@given(data=st.data())
@FUZZ
def test_any_manifest(run: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(run / "checkpoint", folder)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    where = data.draw(st.sampled_from([(), *places(content)]))
    value = data.draw(VALUES | st.just(...))
    value = "tensor" if isinstance(value, torch.Tensor) else value
    text = "" if value is ... and not where else json.dumps(replaced(content, where, value))
    manifest.write_text(text)
    assert refused_or_taken(lambda: read_meta(folder)) or json.loads(text) == content


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "meta.pt",
        pytest.param("head.pt", marks=pytest.mark.proof),  # read by the same reader
        "peft_adapter/adapter_model.safetensors",
    ],
)
@given(data=st.data())
@FUZZ
def test_any_bytes_under_a_new_manifest(
    run: Path, tmp_path_factory: Any, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(run / "checkpoint", folder)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    sign_again(folder)
    refused_or_taken(lambda: MolfunStructureModel.from_checkpoint(folder, device="cpu"))


@pytest.mark.slow
@given(data=st.data())
@settings(parent=FUZZ, max_examples=40)
def test_any_value_of_the_state(run: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(run, folder)
    state = read_state(folder / "resume")
    where = data.draw(st.sampled_from([p for p in places(state) if p[0] != "identity"]))
    changed = replaced(state, where, data.draw(VALUES | st.just(...)))
    save_torch(folder / "resume" / "state.pt", changed)
    refused_or_taken(lambda: fit(build(), folder, resume=True))


# Claims that would take the machine's memory


CLAIMS = [
    ({"embed_dim": 10**9}, "backbone"),
    ({"num_layers": 10**9}, "backbone"),
    ({"embed_dim": 10**6, "attention_heads": 1}, "backbone"),
]


@pytest.mark.parametrize(("claim", "part"), CLAIMS, ids=[str(claim) for claim, _ in CLAIMS])
def test_a_description_of_a_huge_model_is_refused_before_memory_is_taken(
    run: Path, tmp_path: Path, claim: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a gigabyte of small layers takes a minute to build
    monkeypatch.setattr("molfun.nn.allocation_cap._FREE", 2**25)
    shutil.copytree(run / "checkpoint", tmp_path / "c")
    meta = load_torch(tmp_path / "c" / "meta.pt")
    config = meta[part]["config"]
    inner = next((v for v in config.values() if isinstance(v, dict) and "embed_dim" in v), config)
    assert claim.keys() <= inner.keys()
    inner.update(claim)
    save_torch(tmp_path / "c" / "meta.pt", meta)
    sign_again(tmp_path / "c")
    with pytest.raises(MolfunError) as caught:
        MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")
    assert "MOLFUN_MAX_MODEL_RATIO=" in str(caught.value)


def test_a_huge_rank_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoint", tmp_path / "c")
    spec = tmp_path / "c" / "peft_adapter" / "molfun_spec.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "rank": 10**9}))
    sign_again(tmp_path / "c")
    with pytest.raises(CheckpointError, match="asks for rank 1000000000; allowed: 1 to 4096"):
        MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")
    shutil.rmtree(tmp_path / "c" / "peft_adapter")
    meta = load_torch(tmp_path / "c" / "meta.pt")
    meta["strategy"]["rank"] = 10**9
    save_torch(tmp_path / "c" / "meta.pt", meta)
    sign_again(tmp_path / "c")
    with pytest.raises(MolfunError):
        MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")


def test_the_cap_on_models_can_be_raised(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from molfun.nn.allocation_cap import AllocationCap

    (tmp_path / "w").write_bytes(bytes(2**20))
    with AllocationCap(tmp_path, [tmp_path / "w"]):
        torch.empty(2**27)  # 0.5 GB are free
        with pytest.raises(UnsafeFileError, match=r"MOLFUN_MAX_MODEL_RATIO=\d+"):
            torch.empty((2**30, 2**30))
    monkeypatch.setenv("MOLFUN_MAX_MODEL_RATIO", "4G")
    with AllocationCap(tmp_path, [tmp_path / "w"]):
        torch.empty(2**27)


BEYOND = b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'


@pytest.mark.parametrize(
    ("size", "header"),
    [(2**60, b"{}"), (90 * 2**20, b"{}"), (len(BEYOND), BEYOND + bytes(64))],
    ids=["huge header", "header beyond the file", "tensor beyond the file"],
)
def test_claims_of_a_safetensors_file_are_held_against_its_size(
    tmp_path: Path, size: int, header: bytes
) -> None:
    from molfun._io import load_safetensors

    (tmp_path / "x.safetensors").write_bytes(size.to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load_safetensors(tmp_path / "x.safetensors")


def test_a_state_with_weights_of_other_shapes_is_not_stretched(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "resume"
    state = copy.deepcopy(read_state(folder))
    name = next(n for n, t in state["weights"].items() if t.ndim == 2)
    state["weights"][name] = torch.ones(1)
    write_state(folder, state)
    with pytest.raises(CheckpointError, match="the weights stored there do not fit the model"):
        fit(build(), tmp_path / "run", resume=True)
    assert save_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})

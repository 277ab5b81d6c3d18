"""Weight files in every layout, and the errors for those that do not fit."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from molfun.backbones.openfold import OpenFoldBackbone
from molfun.backbones.openfold._versions import canonical_key
from molfun.backbones.state_dicts import KeyReport, match_keys
from molfun.errors import CheckpointError, UnsafeFileError


def build(weights: Path | str | None = None, seed: int = 0) -> OpenFoldBackbone:
    return OpenFoldBackbone("tiny", weights=weights, seed=seed, fill_zero_init=0.1)


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    """Weights that no other model here starts from."""
    return build(seed=5).model.state_dict()


def assert_loads(path: Path, source: dict[str, torch.Tensor]) -> None:
    loaded = build(path).model.state_dict()
    assert loaded.keys() == source.keys()
    assert all(torch.equal(loaded[key], source[key]) for key in source)


# Layouts


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: {"ema": {"params": d, "decay": 0.999}},
        lambda d: {"ema": d},
        lambda d: {"state_dict": d, "epoch": 3},
        lambda d: {"model": d},
        lambda d: {"module": d},
        lambda d: {"state_dict": {k: torch.zeros(1) for k in d}, "ema": {"params": d}},
    ],
    ids=["plain", "ema.params", "ema", "state_dict", "model", "module", "ema before state_dict"],
)
def test_every_wrapping_loads(source, tmp_path, wrap):
    torch.save(wrap(dict(source)), tmp_path / "weights.pt")
    assert_loads(tmp_path / "weights.pt", source)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_forward_module.model."])
def test_prefixes_of_training_frameworks_are_dropped(source, tmp_path, prefix):
    torch.save({prefix + key: value for key, value in source.items()}, tmp_path / "weights.ckpt")
    assert_loads(tmp_path / "weights.ckpt", source)


def test_the_names_of_openfold_2_load(source, tmp_path):
    renamed = {canonical_key(key): value for key, value in source.items()}
    assert sum(key not in source for key in renamed) > len(source) / 2
    torch.save(renamed, tmp_path / "weights.pt")
    assert_loads(tmp_path / "weights.pt", source)


def test_safetensors_load(source, tmp_path):
    save_file({k: v.contiguous() for k, v in source.items()}, tmp_path / "weights.safetensors")
    assert_loads(tmp_path / "weights.safetensors", source)


@pytest.mark.parametrize("pointer", ["global_step10", None])
def test_a_deepspeed_folder_loads(source, tmp_path, pointer):
    inner = tmp_path / (pointer or "")
    inner.mkdir(exist_ok=True)
    if pointer:
        (tmp_path / "latest").write_text(f"{pointer}\n")
    torch.save({"module": dict(source)}, inner / "mp_rank_00_model_states.pt")
    assert_loads(tmp_path, source)


def test_a_deepspeed_folder_of_shards_says_what_to_do(tmp_path):
    for rank in range(2):
        torch.save({}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    with pytest.raises(
        CheckpointError, match=r"holds 2 files named \*model_states\.pt.*zero_to_fp32"
    ):
        build(tmp_path)


def test_a_deepspeed_folder_cannot_point_outside(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text("../../elsewhere")
    with pytest.raises(CheckpointError, match="latest points outside of"):
        build(tmp_path / "run")


def test_half_precision_weights_load_as_float32(source, tmp_path):
    torch.save({k: v.to(torch.bfloat16) for k, v in source.items()}, tmp_path / "weights.pt")
    loaded = build(tmp_path / "weights.pt").model.state_dict()
    assert all(torch.equal(loaded[k], source[k].to(torch.bfloat16).float()) for k in source)


# Files that do not fit


def test_keys_are_matched_across_layouts_and_reported():
    target = {"evoformer.blocks.0.core.tri_mul_in.x": torch.zeros(1), "a.weight": torch.zeros(1)}
    given = {
        "model.evoformer.blocks.0.pair_stack.tri_mul_in.x": torch.ones(1),
        "b.bias": torch.ones(1),
    }
    fitted, report = match_keys(given, target, canonical_key)
    assert fitted == {"evoformer.blocks.0.core.tri_mul_in.x": torch.ones(1)}
    assert report == KeyReport(missing=("a.weight",), unexpected=("b.bias",))
    assert report
    assert str(report) == "1 weights missing:\n  a.weight\n1 unexpected:\n  b.bias"
    assert not match_keys(target, target, canonical_key)[1]


def test_missing_and_unexpected_weights_are_listed(source, tmp_path):
    changed = dict(source)
    first = next(iter(changed))
    changed["not.there"] = changed.pop(first)
    torch.save(changed, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        build(tmp_path / "weights.pt")
    text = str(caught.value)
    assert f"({len(source) - 1} of {len(source)} weights match)" in text
    assert f"1 weights missing:\n  {first}\n1 unexpected:\n  not.there" in text
    assert text.endswith("Choose the preset the file was trained with.")


def test_other_shapes_are_listed(source, tmp_path):
    name = "evoformer.linear.weight"
    torch.save({**source, name: torch.zeros(2, 3)}, tmp_path / "weights.pt")
    shape = tuple(source[name].shape)
    with pytest.raises(CheckpointError) as caught:
        build(tmp_path / "weights.pt")
    text = str(caught.value)
    assert f"holds weights of other shapes:\n  {name}: file (2, 3), model {shape}" in text


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], "text", {"state_dict": {}}])
def test_a_file_without_weights_says_so(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no state dict of tensors"):
        build(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"No such file: .*{name}"):
        build(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4nothing", b"just some text" * 20])
def test_a_file_of_something_else_is_damaged(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        build(tmp_path / name)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_nothing_in_a_weight_file_is_run(source, tmp_path):
    canary = tmp_path / "canary"
    torch.save({"state_dict": dict(source), "x": Canary(canary)}, tmp_path / "weights.pt")
    with pytest.raises(UnsafeFileError, match="it holds more than tensors and plain values"):
        build(tmp_path / "weights.pt")
    assert not canary.exists()


# AlphaFold's npz


def jax_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The model's weights under AlphaFold's names and in its shapes: the importer backwards."""
    from openfold.utils import import_weights

    table = import_weights.process_translation_dict(
        import_weights.generate_translation_dict(model, "model_1_ptm")
    )
    arrays = {}
    for name, entry in table.items():
        parts = entry.param if entry.stacked else [entry.param]
        made = [_to_jax(part.detach(), entry.param_type.name) for part in parts]
        arrays[name] = np.stack(made) if entry.stacked else made[0]
    return arrays


def _to_jax(weight: torch.Tensor, kind: str) -> np.ndarray:
    """Two heads, or two halves: the importer joins them again whatever their number."""
    if kind == "LinearWeight":
        return weight.T.numpy()
    if kind == "LinearWeightMHA":
        return weight.T.reshape(weight.shape[1], 2, -1).numpy()
    if kind in ("LinearMHAOutputWeight", "LinearWeightOPM"):
        return weight.T.reshape(2, -1, weight.shape[0]).numpy()
    if kind == "LinearBiasMHA":
        return weight.reshape(2, -1).numpy()
    return weight.numpy()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return jax_arrays(build(seed=5).model)


def test_alphafolds_npz_loads_bit_by_bit(arrays, source, tmp_path):
    np.savez(tmp_path / "params_model_1_ptm.npz", **arrays)
    assert_loads(tmp_path / "params_model_1_ptm.npz", source)


def test_an_npz_that_lacks_an_array_is_refused(arrays, tmp_path):
    name = "alphafold/alphafold_iteration/evoformer/preprocess_1d//weights"
    np.savez(tmp_path / "params.npz", **{k: v for k, v in arrays.items() if k != name})
    with pytest.raises(CheckpointError) as caught:
        build(tmp_path / "params.npz")
    assert f"does not fit model_1_ptm. 1 weights missing:\n  {name}" in str(caught.value)


def test_an_npz_with_an_array_too_many_is_announced(arrays, source, tmp_path, caplog):
    np.savez(tmp_path / "params.npz", **arrays, extra=np.zeros(1))
    with caplog.at_level(logging.WARNING):
        assert_loads(tmp_path / "params.npz", source)
    assert "1 arrays have no place in model_1_ptm: ['extra']" in caplog.text


@pytest.mark.parametrize("array", [np.zeros((3, 5)), np.zeros(3), np.array(["text"])])
def test_an_npz_with_another_shape_is_refused(arrays, tmp_path, array):
    name = "alphafold/alphafold_iteration/evoformer/preprocess_1d//weights"
    np.savez(tmp_path / "params.npz", **{**arrays, name: array})
    with pytest.raises(CheckpointError, match=f"does not fit model_1_ptm: ({name}|.*numpy.str_)"):
        build(tmp_path / "params.npz")


def test_a_cut_npz_is_damaged(arrays, tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, **arrays)
    content = path.read_bytes()
    for size in (1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"params\.npz is damaged"):
            build(path)


def test_a_flipped_bit_in_an_npz_is_noticed(arrays, tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"params\.npz (is damaged|does not fit)"):
        build(path)


def test_an_npz_runs_nothing(arrays, tmp_path):
    canary = tmp_path / "canary"
    name = "alphafold/alphafold_iteration/evoformer/preprocess_1d//weights"
    forged = np.array([Canary(canary)], dtype=object)
    np.savez(tmp_path / "params.npz", **{**arrays, name: forged}, allow_pickle=True)
    with pytest.raises(CheckpointError):
        build(tmp_path / "params.npz")
    assert not canary.exists()


# Names


def test_names_of_both_layouts_meet_one_to_one(source):
    canonical = [canonical_key(key) for key in source]
    assert len(set(canonical)) == len(source)
    assert [canonical_key(key) for key in canonical] == canonical
    assert not [key for key in canonical if ".core." in key]

"""The cache of frozen outputs: the same bits with fewer forward passes, whatever happens to it."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm

from molfun.errors import ConfigError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.protein import Protein
from molfun.sample import Sample, SampleBatch
from molfun.training import FullFinetune, HeadOnlyFinetune, History
from molfun.training.cache import CacheConfig, PrefixCache, make_cache

ModelFactory = Callable[..., MolfunStructureModel]
BatchFactory = Callable[..., list[SampleBatch]]
TESTS = Path(__file__).parents[1]


class Run:
    """A head-only fit that counts how often the trunk ran."""

    def __init__(self, model: MolfunStructureModel, train: Any, val: Any = None, **options: Any):
        self.model = model
        self.forwards = 0
        handle = model.backbone.register_forward_hook(self._count)
        strategy = HeadOnlyFinetune(lr=1e-2, ema_decay=0.9)
        self.history: History = model.fit(
            train, val, strategy=strategy, **{"epochs": 2, "seed": 3, **options}
        )
        handle.remove()

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def equals(self, other: Run) -> bool:
        """Whether two runs gave the same losses, metrics and weights, bit for bit."""
        weights = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return list(self.history) == list(other.history) and all(
            torch.equal(a, b) for a, b in weights
        )


def entries(folder: Path) -> list[Path]:
    """Files of the cache, temporary ones included."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- the same results with fewer passes ----------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_mode_gives_the_same_bits(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path, batch_size: int
) -> None:
    def run(mode: str, **options: Any) -> Run:
        train = batches(4, batch_size=batch_size)
        val = batches(2, batch_size=batch_size, seed=1, prefix="v")
        return Run(tiny_model(), train, val, cache=mode, **options)

    expected = run("off")
    assert expected.forwards == 2 * 6, "one pass a sample and epoch"
    for cached in (
        run("auto"),
        run("disk", cache_dir=tmp_path / "a"),
        run("auto", cache_dir=tmp_path / "b"),
        run("disk", output_dir=tmp_path / "run"),
    ):
        assert cached.equals(expected)
        assert cached.forwards == 6, "one pass a sample"
    assert len(entries(tmp_path / "a")) == 6
    assert not (tmp_path / "b").exists(), "auto fills the memory first"
    assert len(entries(tmp_path / "run" / "cache")) == 6


def test_equal_samples_share_an_entry(
    tiny_model: ModelFactory, samples: Callable[..., list[Sample]]
) -> None:
    one = samples(1)[0]
    twins = [SampleBatch([dataclasses.replace(one, id=f"t{i}", target=float(i))]) for i in range(4)]
    assert Run(tiny_model(), twins).forwards == 1


def test_a_trunk_that_trains_is_not_cached(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    from molfun.training import LoRAFinetune

    model, count = tiny_model(), []
    model.backbone.register_forward_hook(lambda *_: count.append(1))
    model.fit(batches(3), strategy=LoRAFinetune(), epochs=2, cache="auto")
    assert len(count) == 6


def test_evaluating_after_the_fit_agrees_with_the_history(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    val = batches(3, seed=1, prefix="v")
    run = Run(tiny_model(), batches(4), val)
    assert run.model.evaluate(val)["loss"] == run.history.best["val_loss"]


# --- entries on disk -----------------------------------------------------------------------------


def test_a_second_fit_reads_what_the_first_wrote(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    first = Run(tiny_model(), batches(4), cache="disk", cache_dir=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in entries(tmp_path)}
    second = Run(tiny_model(), batches(4), cache="disk", cache_dir=tmp_path)
    assert (first.forwards, second.forwards) == (4, 0)
    assert second.equals(first)
    assert {path: path.stat().st_mtime_ns for path in entries(tmp_path)} == times


def test_a_second_process_reads_what_the_first_wrote(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom test_cache import Run\n"
        "from tiny import build_batches, build_tiny_model\n"
        "model, folder = build_tiny_model(), Path(sys.argv[1])\n"
        "run = Run(model, build_batches(2), cache='disk', cache_dir=folder)\n"
        "print(run.forwards, run.history[-1]['train_loss'].hex())\n"
    )
    done = warm.run("-c", script, tmp_path, check=True)
    here = Run(tiny_model(), batches(2), cache="disk", cache_dir=tmp_path)
    assert done.stdout.split() == ["2", here.history[-1]["train_loss"].hex()]
    assert here.forwards == 0


def test_a_trunk_that_trains_is_not_cached_and_that_is_said(
    tiny_model: ModelFactory, batches: BatchFactory, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model().fit(batches(1), strategy=FullFinetune(), epochs=1, cache="memory")
    assert (
        "cache='memory' keeps nothing in this run: parts of the backbone train, so its outputs "
        "change at every step."
    ) in caplog.messages


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _drop_checksum(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_bit,
        _drop_checksum,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(os.urandom(500)),
    ],
    ids=["bit flip", "no checksum", "empty", "short", "header only", "noise"],
)
def test_a_damaged_entry_is_computed_again(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], Any],
) -> None:
    first = Run(tiny_model(), batches(3), cache="disk", cache_dir=tmp_path)
    victim = entries(tmp_path)[1]
    intact = victim.read_bytes()
    damage(victim)
    with caplog.at_level(logging.WARNING, logger="molfun.training.cache"):
        second = Run(tiny_model(), batches(3), cache="disk", cache_dir=tmp_path)
    assert second.forwards == 1
    assert second.equals(first)
    assert victim.read_bytes() == intact
    assert f"Cache entry {victim} is damaged; it is computed again." in caplog.messages


def test_hits_and_misses_are_counted(tmp_path: Path) -> None:
    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    cache.put(cache.key("a"), {"single": torch.ones(1, 2, 3), "mask": torch.ones(1, 2)})
    assert cache.get(cache.key("a")) is not None
    assert cache.get(cache.key("b")) is None
    assert (cache.hits, cache.misses) == (1, 1)


# --- keys ----------------------------------------------------------------------------------------


def test_changed_inputs_never_hit(
    tiny_model: ModelFactory, samples: Callable[..., list[Sample]], tmp_path: Path
) -> None:
    plain = samples(1, lengths=(12,))[0]
    assert plain.protein is not None

    def forwards(
        sample: Sample = plain, model: dict[str, Any] | None = None, **options: Any
    ) -> int:
        options = {"epochs": 1, "cache": "disk", "cache_dir": tmp_path, **options}
        return Run(tiny_model(**(model or {})), [SampleBatch([sample])], **options).forwards

    assert forwards() == 1
    assert forwards() == 0
    letters = plain.protein.sequence
    other = ("W" if letters[0] != "W" else "A") + letters[1:]
    changed = dataclasses.replace(plain, protein=Protein.from_sequence(other, name=plain.id))
    assert forwards(changed) == 1, "another residue under the same id"
    cropped = dataclasses.replace(plain, protein=plain.protein.crop(8))
    assert forwards(cropped) == 1, "another crop"
    gapped = plain.protein.take(plain.protein.positions[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]])
    assert forwards(dataclasses.replace(plain, protein=gapped)) == 1, "a residue left out"
    moved = dataclasses.replace(
        plain.protein, residue_index=plain.protein.residue_index + np.repeat([0, 50], 6)
    )
    assert forwards(dataclasses.replace(plain, protein=moved)) == 1, "another numbering"
    assert forwards(model={"seed": 1}) == 1, "other weights"
    zero = {"fill_zero_init": 0.1}
    assert forwards(model={"backbone_config": {**zero, "recycling": 1}}) == 1
    assert forwards(model={"backbone_config": {**zero, "max_msa_clusters": 4}}) == 1
    assert forwards(precision="bf16-mixed") == 1, "another precision"
    assert forwards() == 0, "the first entry is still there"


def test_weights_changed_in_place_never_hit(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 1, "cache": "disk", "cache_dir": tmp_path}
    model = tiny_model()
    assert Run(model, batches(1), **options).forwards == 1
    assert Run(model, batches(1), **options).forwards == 0, "the head is not part of the key"
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1e-6)
    assert Run(model, batches(1), **options).forwards == 1


def test_adapters_are_part_of_the_key(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    from molfun.training import LoRAFinetune

    options: dict[str, Any] = {"epochs": 1, "cache": "disk", "cache_dir": tmp_path}
    model = tiny_model()
    assert Run(model, batches(1), **options).forwards == 1
    model.fit(batches(1), strategy=LoRAFinetune(lr_lora=1e-2), epochs=1)
    assert Run(model, batches(1), **options).forwards == 1


# --- budget and full disks -----------------------------------------------------------------------


def _output(length: int) -> dict[str, torch.Tensor]:
    values = torch.arange(float(length * 4)).reshape(1, length, 4)
    return {"single": values, "mask": torch.ones(1, length)}


def test_memory_first_then_disk(tmp_path: Path) -> None:
    size = (8 * 4 + 8) * 4  # float32 single (8, 4) and mask (8,)
    cache = PrefixCache("p", directory=tmp_path, memory_budget=2 * size)
    for i in range(4):
        cache.put(cache.key(str(i)), _output(8))
    assert len(entries(tmp_path)) == 2
    for i in range(4):
        found = cache.get(cache.key(str(i)))
        assert found is not None
        assert torch.equal(found["single"], _output(8)["single"])
    assert (cache.hits, cache.misses) == (4, 0)


def test_memory_only_forgets_what_is_over_budget() -> None:
    cache = PrefixCache("p", memory_budget=200)
    for i in range(3):
        cache.put(cache.key(str(i)), _output(8))
    assert [cache.get(cache.key(str(i))) is not None for i in range(3)] == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_keep_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    output = {
        "single": torch.randn(1, 3, 4).to(dtype),
        "mask": torch.ones(1, 3),
        "pair": torch.randn(1, 3, 3, 2),
    }
    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    cache.put(cache.key("x"), output)
    found = cache.get(cache.key("x"))
    assert found is not None
    assert found["single"].dtype == dtype
    assert torch.equal(found["single"], output["single"])
    assert torch.equal(found["mask"], output["mask"])
    assert torch.equal(found["pair"], output["pair"])


@pytest.mark.parametrize(
    ("code", "text"),
    [(errno.ENOSPC, "Disk full while writing"), (errno.EIO, "Input/output error")],
)
def test_training_goes_on_when_the_cache_cannot_be_written(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    text: str,
) -> None:
    written: list[str] = []

    def save_file(tensors: Any, path: Any, **_: Any) -> None:
        written.append(str(path))
        Path(path).write_bytes(b"half an entry")
        raise OSError(code, os.strerror(code), str(path))

    expected = Run(tiny_model(), batches(3), cache="off")
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    run = Run(tiny_model(), batches(3), cache="disk", cache_dir=tmp_path)
    assert run.equals(expected)
    assert len(written) == 1, "no second try on a disk that is full"
    assert entries(tmp_path) == [], "no half-written entry, no temporary file"
    warnings = [m for m in caplog.messages if m.startswith("The cache stops writing to disk:")]
    assert len(warnings) == 1
    assert text in warnings[0]


def test_an_interrupted_write_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: Any, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half an entry")
        raise KeyboardInterrupt

    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", save_file)
        with pytest.raises(KeyboardInterrupt):
            cache.put(cache.key("x"), _output(3))
    assert entries(tmp_path) == []
    assert cache.get(cache.key("x")) is None
    cache.put(cache.key("x"), _output(3))
    assert cache.get(cache.key("x")) is not None


def test_disk_mode_needs_a_folder() -> None:
    with pytest.raises(RunError) as caught:
        make_cache(CacheConfig(mode="disk"), ["p"])
    assert str(caught.value) == (
        "cache='disk' needs a folder: pass cache_dir=... or output_dir=...."
    )


def test_an_unknown_mode_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        CacheConfig(mode="dsk")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "Unknown cache mode 'dsk'; known: auto, disk, memory, off. Did you mean 'disk'?"
    )


def test_memory_mode_writes_nothing(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    Run(tiny_model(), batches(2), cache="memory", cache_dir=tmp_path)
    assert entries(tmp_path) == []

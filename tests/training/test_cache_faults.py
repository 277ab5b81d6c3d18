"""The cache under kill -9, a full disk, two runs at once: rebuilt or left out, never wrong."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

from molfun import MolfunStructureModel, PartialFinetune
from molfun.errors import ConfigError
from molfun.sample import SampleBatch
from molfun.training import CacheConfig
from molfun.training.cache import PrefixCache, make_cache

TESTS = Path(__file__).parents[1]
ModelFactory = Callable[..., MolfunStructureModel]
BatchFactory = Callable[..., list[SampleBatch]]

FILL = """
import os, signal, sys
from pathlib import Path
import torch
from molfun import _io
from molfun.training.cache import PrefixCache

torch.set_num_threads(1)
folder, moment, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = PrefixCache("p", directory=folder, memory_budget=0)
calls = 0

def at(function):
    def killed(*args, **kwargs):
        global calls
        calls += 1
        if calls > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return killed

if moment == "sync":
    _io._sync = at(_io._sync)
elif moment == "rename":
    Path.replace = at(Path.replace)
elif moment == "half":
    import safetensors.torch
    write = safetensors.torch.save_file
    def half(tensors, path, **options):
        write(tensors, path, **options)
        os.truncate(path, os.path.getsize(path) // 2)
        at(lambda: None)()
    safetensors.torch.save_file = half
for i in range(4):
    cache.put(cache.key(str(i)), {"m": torch.full((50, 20), float(i)), "mask": torch.ones(50)})
    print(i, flush=True)
"""


def fill(folder: Path, moment: str, count: int = 99) -> int:
    """Write four entries in another process; how many it wrote before it was killed."""
    done = warm.run("-c", FILL, folder, moment, count)
    killed = count < 99
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
    return len(done.stdout.split())


def entry(i: int) -> dict[str, torch.Tensor]:
    return {"m": torch.full((50, 20), float(i)), "mask": torch.ones(50)}


@pytest.mark.parametrize(
    ("moment", "count"), [("half", 0), ("half", 2), ("sync", 0), ("sync", 3), ("rename", 1)]
)
def test_a_process_killed_in_the_middle_of_a_write_leaves_whole_entries_or_none(
    tmp_path: Path, moment: str, count: int
) -> None:
    assert fill(tmp_path, moment, count) < 4
    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    for i in range(4):
        found = cache.get(cache.key(str(i)))
        if found is not None:
            assert torch.equal(found["m"], entry(i)["m"])
    # the next run fills what is missing
    assert fill(tmp_path, "never") == 4
    assert all(cache.get(cache.key(str(i))) is not None for i in range(4))


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    fill(tmp_path, "half", 0)
    (left,) = tmp_path.rglob("*.tmp")
    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    cache.put(cache.key("0"), entry(0))
    assert not left.exists()


def test_processes_that_write_the_same_entries_at_once_agree(tmp_path: Path) -> None:
    writers = [warm.Process("-c", FILL, tmp_path, "never", 99) for _ in range(3)]
    reader = PrefixCache("p", directory=tmp_path, memory_budget=0)
    while any(w.poll() is None for w in writers):
        for i in range(4):
            found = reader.get(reader.key(str(i)))
            assert found is None or torch.equal(found["m"], entry(i)["m"])
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_entry_has_one_writer(tmp_path: Path) -> None:
    """Who comes second leaves the entry of the first as it is."""
    first, second = (PrefixCache("p", directory=tmp_path, memory_budget=0) for _ in range(2))
    key = first.key("1")
    assert first.get(key) is None
    assert second.get(key) is None
    first.put(key, entry(1))
    (path,) = tmp_path.rglob("*.safetensors")
    before = path.stat()
    found = second.put(key, entry(1))
    assert torch.equal(found["m"], entry(1)["m"])
    assert path.stat().st_ino == before.st_ino
    assert second.written == 0


def test_a_run_goes_on_when_its_entries_vanish_or_rot(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    from molfun.training import Callback

    class Vandal(Callback):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            files = sorted(tmp_path.rglob("*.safetensors"))
            files[0].unlink()
            content = bytearray(files[1].read_bytes())
            content[len(content) // 2] ^= 4
            files[1].write_bytes(content)
            os.truncate(files[2], 11)

    strategy = PartialFinetune(unfreeze_last_n=1)
    options: dict[str, Any] = {"strategy": strategy, "epochs": 3}
    plain, attacked = tiny_model(), tiny_model()
    reference = plain.fit(batches(4), cache="off", **options)
    history = attacked.fit(
        batches(4), cache="disk", cache_dir=tmp_path, callbacks=[Vandal()], **options
    )
    assert list(history) == list(reference)
    assert "ran 10 times instead of 12" in history.cache_report


def test_an_entry_under_another_name_is_not_believed(tmp_path: Path) -> None:
    fill(tmp_path, "never")
    cache = PrefixCache("p", directory=tmp_path, memory_budget=0)
    first, second = (cache._path(cache.key(i)) for i in "01")
    second.write_bytes(first.read_bytes())
    assert cache.get(cache.key("1")) is None
    assert cache.get(cache.key("0")) is not None


def test_what_was_read_stays_in_memory_where_it_fits(tmp_path: Path) -> None:
    fill(tmp_path, "never")
    cache = PrefixCache("p", directory=tmp_path, memory_budget=SIZE)
    for i in "01":
        assert cache.get(cache.key(i)) is not None
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert cache.get(cache.key("0")) is not None
    assert cache.get(cache.key("1")) is None


# --- budgets -------------------------------------------------------------------------------------

SIZE = (50 * 20 + 50) * 4


def test_the_disk_budget_counts_what_is_there_already(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "never")
    cache = PrefixCache("q", directory=tmp_path, memory_budget=0, disk_budget=7 * SIZE)
    with caplog.at_level(logging.WARNING):
        for i in range(6):
            cache.put(cache.key(str(i)), entry(i))
    kept = [cache.get(cache.key(str(i))) is not None for i in range(6)]
    # files are a little larger than what they hold, so that one less fits
    assert kept == [True, True, False, False, False, False]
    (message,) = caplog.messages
    assert message == (
        "The frozen-prefix cache is full (0 kB in memory, 9 kB written): what does not fit is "
        "computed again in every epoch. Raise its budgets, or keep entries in bfloat16."
    )


def test_memory_that_is_full_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache("p", memory_budget=2 * SIZE)
    with caplog.at_level(logging.WARNING):
        for i in range(4):
            cache.put(cache.key(str(i)), entry(i))
    assert len(caplog.messages) == 1
    assert [cache.get(cache.key(str(i))) is not None for i in range(4)] == [True] * 2 + [False] * 2


def test_without_a_budget_some_of_the_disk_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30 + SIZE // 2))
    cache = PrefixCache("p", directory=tmp_path / "new" / "folder", memory_budget=0)
    cache.put(cache.key("0"), entry(0))
    assert not (tmp_path / "new").exists()


def test_the_config_sets_the_budgets(tmp_path: Path) -> None:
    config = CacheConfig(directory=tmp_path, memory_gb=SIZE / 2**30, disk_gb=0)
    cache = make_cache(config, ["p"])
    assert cache is not None
    for i in range(2):
        cache.put(cache.key(str(i)), entry(i))
    assert cache.get(cache.key("0")) is not None
    assert cache.get(cache.key("1")) is None
    assert make_cache(CacheConfig(mode="off"), ["p"]) is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"memory_gb": -1}, "memory_gb must be 0 or more, got -1."),
        ({"disk_gb": float("nan")}, "disk_gb must be 0 or more, got nan."),
        (
            {"precision": "bf16"},
            "Unknown cache precision 'bf16'; known: bfloat16, float32. Did you mean 'bfloat16'?",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CacheConfig(**settings)
    assert str(caught.value) == text


def test_the_first_epoch_sees_what_later_ones_do() -> None:
    cache = PrefixCache("p", dtype=torch.bfloat16)
    fresh = torch.tensor([1.0, 1.001, 3.14159])
    given = cache.put(cache.key("a"), {"m": fresh, "n": torch.tensor([3])})
    found = cache.get(cache.key("a"))
    assert found is not None
    assert torch.equal(given["m"], found["m"])
    assert given["m"].dtype == torch.float32
    assert not torch.equal(found["m"], fresh)
    assert torch.equal(found["n"], torch.tensor([3]))

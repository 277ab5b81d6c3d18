"""Blocks divided among processes give the result of one, are resumed by any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_fit import BACKBONES, FAMILIES, run
from test_parallel import assert_alike, assert_close, pytestmark, started  # noqa: F401  (marks)
from tiny import build_samples
from torch.utils.data import DataLoader

from molfun import LoRAFinetune, MolfunStructureModel
from molfun.errors import CheckpointError, ConfigError
from molfun.parallel import parts
from molfun.parallel.ranks import Ranks
from molfun.training.batches import EpochBatches
from molfun.training.job import Job

STRATEGIES = ("lora", "partial", "full", "gradual")
# four batches of two: each of two processes fills up nothing, each of four has one
FIT: dict[str, Any] = {"n": 7, "epochs": 3, "augment": False, "forces": False}
UNEVEN = {**FIT, "n": 9, "epochs": 2, "optimizer": "sgd"}
"""Five batches: one process runs one that counts nothing."""


def fits(backbone: str, way: str, size: int) -> list[dict[str, Any]]:
    shared = {**FIT, "backbone": backbone, "parallel": way, "accumulation": 4 // size}
    # Adam makes steps of full size from what is left of gradients that are zero, as those of biases
    # that a softmax takes away: rounding errors, which differ
    shared["optimizer"] = "sgd"
    return [{**shared, "strategy": strategy} for strategy in STRATEGIES]


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in FAMILIES])
@pytest.mark.parametrize(
    "size", [2, pytest.param(4, marks=pytest.mark.proof)], ids="{} processes".format
)
def test_processes_with_copies_or_parts_give_what_one_gives(
    tmp_path: Path, backbone: str, size: int
) -> None:
    both = [*fits(backbone, "fsdp2", size), *fits(backbone, "ddp", size)]
    found = started(size, tmp_path, both)
    for number, settings in enumerate(both):
        ranks = [each[number] for each in found]
        assert_alike(ranks)
        assert_close(run(**{**settings, "parallel": "auto", "accumulation": 4}), ranks[0])


def test_families_of_transformers_in_parts_give_what_one_process_gives(tmp_path: Path) -> None:
    """Also where their weights stay in a mapped file until they are divided."""
    both = [
        {**one, "mmap": mmap}
        for family in FAMILIES
        for one in fits(family, "fsdp2", 2)
        for mmap in ((False, True) if one["strategy"] == "lora" else (False,))
    ]
    found = started(2, tmp_path, both)
    for number, settings in enumerate(both):
        ranks = [each[number] for each in found]
        assert_alike(ranks)
        one = {**settings, "parallel": "auto", "accumulation": 4, "mmap": False}
        assert_close(run(**one), ranks[0])


@pytest.mark.parametrize("family", ["prott5", "prostt5", "ankh"])
def test_families_whose_blocks_share_weights_are_refused(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "divides", property(lambda _: True))
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    model = MolfunStructureModel(family, config=sizes, head="regression", device="cpu")
    with pytest.raises(ConfigError) as caught:
        model.fit(build_samples(4), strategy=LoRAFinetune(rank=2), epochs=1)
    assert str(caught.value) == (
        "parallel='auto' cannot divide this model: its blocks share the weights of the position "
        "bias. Train it with parallel='ddp', a copy in each process."
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "esm2", "strategy": "full"},
        {"backbone": "timeseries", "strategy": "blocks"},
        {"backbone": "esm2", "strategy": "lora", "parallel": "fsdp2_offload"},
        {"backbone": "esm2", "objective": "masked_lm", "strategy": "full", "seeded": True},
    ],
    ids=["uneven", "block by block", "offload", "masked_lm"],
)
def test_shares_that_are_not_equal(tmp_path: Path, settings: dict[str, Any]) -> None:
    drawn = settings.pop("seeded", False)
    settings = {**UNEVEN, "parallel": "fsdp2", **settings}
    ranks = started(2, tmp_path, settings)
    assert_alike(ranks)
    if not drawn:  # chance is drawn by process
        assert_close(run(**{**settings, "parallel": "auto", "accumulation": 2}), ranks[0])


def test_a_loss_that_is_not_finite_skips_the_window_in_all(tmp_path: Path) -> None:
    settings = {**UNEVEN, "backbone": "esm2", "strategy": "full", "bad": True}
    ranks = started(2, tmp_path, {**settings, "parallel": "fsdp2"})
    assert_alike(ranks)
    assert ranks[0]["history"][-1]["skipped"] >= 1
    # one process counts the loss of the batches before the bad one, and history differs
    for name, weight in run(**settings, accumulation=2)["weights"].items():
        assert float((weight - ranks[0]["weights"][name]).abs().max()) <= 1e-6, name


def test_weights_travel_in_bfloat16_in_that_precision(tmp_path: Path) -> None:
    settings = {**FIT, "backbone": "esm2", "strategy": "full", "precision": "bf16"}
    ranks = started(2, tmp_path, {**settings, "parallel": "fsdp2"})
    assert_alike(ranks)
    one = run(**settings, accumulation=2)
    for a, b in zip(one["history"], ranks[0]["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)


def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    """Two with parts, one, four with parts, two with copies: the weights are those of one."""
    settings: dict[str, Any] = {"strategy": "blocks", "backbone": "esm2", "n": 19, "epochs": 4}
    whole = run(**settings, accumulation=4)
    settings["folder"] = str(tmp_path / "run")
    again = {**settings, "accumulation": 2, "resume": True}
    started(
        2, tmp_path / "two", {**settings, "accumulation": 2, "parallel": "fsdp2", "kill_at": 6},
        expect=1,
    )  # fmt: skip
    assert list((tmp_path / "run" / "resume").glob("parts-*/*.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        run(**again, kill_at=7)
    assert not list((tmp_path / "run" / "resume").glob("parts-*"))
    started(4, tmp_path / "four", {**again, "parallel": "fsdp2", "kill_at": 1}, expect=1)
    ranks = started(2, tmp_path / "copies", {**again, "parallel": "ddp"})
    assert_alike(ranks)
    assert_close(whole, ranks[0])


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": "lora", "backbone": "esm2", "parallel": "fsdp2"}
    (whole, _) = started(2, tmp_path / "whole", settings)
    settings["folder"] = str(tmp_path / "run")
    started(2, tmp_path / "stopped", {**settings, "kill_at": 5}, expect=1)
    resumed = started(2, tmp_path / "resumed", {**settings, "resume": True})
    assert_alike(resumed)
    assert repr(resumed[0]["history"]) == repr(whole["history"])
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed[0]["weights"][name]), name


@pytest.mark.parametrize("strategy", ["lora", "blocks"])
def test_weights_may_stay_in_their_file_until_they_are_divided(
    tmp_path: Path, strategy: str
) -> None:
    """As with weights in memory bit by bit, and those that never trained are in the file again."""
    both = [
        {**FIT, "backbone": "esm2", "parallel": "fsdp2", "strategy": strategy, "mmap": mmap,
         "folder": str(tmp_path / f"run{mmap}")}
        for mmap in (False, True)
    ]  # fmt: skip
    first, second = started(2, tmp_path, both)
    (plain, mapped) = first
    assert repr(plain["history"]) == repr(mapped["history"])
    for name, weight in plain["weights"].items():
        assert torch.equal(weight, mapped["weights"][name]), name
        assert torch.equal(weight, second[1]["weights"][name]), name
    assert not plain["in_file"]
    matrices = {n for n, w in mapped["weights"].items() if "model.layers" in n and w.ndim > 1}
    assert set(mapped["in_file"]) >= {n for n in matrices if ".lora_" not in n}
    files = [(tmp_path / f"run{mmap}/checkpoint").rglob("*.safetensors") for mmap in (False, True)]
    names = [{path.name: path.read_bytes() for path in each} for each in files]
    assert names[0]
    assert names[0] == names[1]


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    settings = {**FIT, "strategy": "full", "backbone": "esm2", "folder": str(tmp_path / "run")}
    started(2, tmp_path / "two", {**settings, "parallel": "fsdp2", "kill_at": 2}, expect=1)
    (first, second) = sorted((tmp_path / "run" / "resume").glob("parts-*/*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(CheckpointError, match=rf"{first.name} is damaged \(checksum\)"):
        run(**settings, accumulation=2, resume=True)
    first.write_bytes(content)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name} is missing, a part of the state"):
        run(**settings, accumulation=2, resume=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"backbone": "pet", "strategy": "full", "forces": True},
            "cannot divide this model: forces and stress need all weights again for a second "
            "derivative. Train it with parallel='ddp', a copy in each process.",
        ),
        (
            {"backbone": "timeseries", "objective": "jepa", "strategy": "full"},
            "divides the weights that 'jepa' copies after each step.",
        ),
        (
            {"backbone": "esm2", "strategy": "full", "precision": "fp16"},
            "has no loss scaling for float16. Train in bf16 or fp32",
        ),
        (
            {"backbone": "esm2", "strategy": "full", "runs_model": "on_epoch_end"},
            "A callback ran the model while its blocks are divided among processes",
        ),
    ],
    ids=["forces", "jepa", "fp16", "callback"],
)
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    started(2, tmp_path, {**FIT, "parallel": "fsdp2", **settings}, expect=1)
    assert text in (tmp_path / "said0" / "err").read_text()


def test_a_callback_may_run_the_model_at_the_end(tmp_path: Path) -> None:
    settings = {**FIT, "backbone": "esm2", "strategy": "full", "runs_model": "on_fit_end"}
    assert_alike(started(2, tmp_path, {**settings, "parallel": "fsdp2"}))


def test_the_first_batch_comes_again_for_equal_shares() -> None:
    def shares(n: int, size: int, per_step: int, start: int = 0) -> list[list[int]]:
        given: list[Any] = [range(n), DataLoader(range(n), collate_fn=lambda batch: batch[0])]
        ranks = [Ranks(i, size) for i in range(size)]
        (listed, loaded) = (
            [
                list(EpochBatches(data, 0, each, per_step=per_step).epoch(0, start=start))
                for each in ranks
            ]
            for data in given
        )
        assert listed == loaded
        return listed

    assert shares(5, 3, 3) == [[0, 3], [1, 4], [2, 0]]
    assert shares(1, 3, 3) == [[0], [0], [0]]
    # a step that one process began, and had 3 of 4 batches of
    assert shares(10, 4, 4, start=3) == [[0, 4, 8], [0, 5, 9], [0, 6, 0], [3, 7, 0]]
    assert shares(10, 2, 4, start=3) == [[0, 4, 6, 8], [3, 5, 7, 9]]
    assert shares(10, 4, 4, start=9) == [[0], [9], [0], [0]]
    assert shares(10, 4, 4, start=10) == [[], [], [], []]
    assert shares(6, 4, 8, start=1) == [[4, 0], [1, 5], [2, 0], [3, 0]]


def test_a_state_without_parts_is_read_as_it_is(tmp_path: Path) -> None:
    content = {"weights": {"a": torch.ones(2)}}
    assert parts.read_whole(content, tmp_path) is content

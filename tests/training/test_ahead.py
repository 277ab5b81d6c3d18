"""Features made in the workers of a loader: the same bits, in other processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_samples, build_tiny_model
from torch.utils.data import DataLoader

from molfun import FullFinetune, HeadOnlyFinetune, PartialFinetune
from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.openfold import OpenFoldBackbone
from molfun.data.base import SampleDataset
from molfun.sample import Sample
from molfun.training.ahead import PackedRows, loaded_ahead
from molfun.training.batches import EpochBatches
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs

CPU = torch.device("cpu")


class Calls:
    """Which process featurised what; written to a file, as workers are others."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def taken(self) -> list[tuple[int, str]]:
        """Process and sample of each call since the last look."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.write_text("")
        return [(int(pid), name) for pid, name in map(str.split, lines)]

    def here(self) -> list[bool]:
        """Whether each was in this process."""
        return [pid == os.getpid() for pid, _ in self.taken()]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls(tmp_path / "calls")
    for cls in (OpenFoldBackbone, ESM2Backbone):
        original = cls.featurize

        def featurize(self: Any, sample: Sample, original: Any = original) -> Any:
            with found.path.open("a") as file:
                file.write(f"{os.getpid()} {sample.id}\n")
            return original(self, sample)

        monkeypatch.setattr(cls, "featurize", featurize)
    return found


def with_alignments(samples: list[Sample], folder: Path) -> list[Sample]:
    found = []
    for sample in samples:
        place = folder / sample.id
        place.mkdir(parents=True)
        sequence = sample.protein.sequence  # type: ignore[union-attr]
        rows = [sequence, sequence[1:] + "A", "G" + sequence[:-1]]
        text = "".join(f">r{i}\n{row}\n" for i, row in enumerate(rows))
        (place / "hits.a3m").write_text(text)
        found.append(replace(sample, alignment_dir=place))
    return found


def loader(samples: list[Sample], workers: int, **options: Any) -> DataLoader[Any]:
    collate = options.pop("collate_fn", SampleDataset.collate_fn)
    return DataLoader(samples, 2, collate_fn=collate, num_workers=workers, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("aligned", [False, True])
def test_features_of_workers_are_the_same_bits(calls: Calls, tmp_path: Path, aligned: bool) -> None:
    samples = build_samples(4)
    if aligned:
        samples = with_alignments(samples, tmp_path / "alignments")
    backbone = OpenFoldBackbone("tiny")
    forward = ForwardPass(backbone, ("single",), device=CPU)
    batches = list(loaded_ahead(loader(samples, 2), forward.ahead))
    assert calls.here() == [False] * 4
    rows = [row for batch in batches for row in batch.rows]
    for sample, row in zip(samples, rows, strict=True):
        expected = backbone.featurize(sample)
        assert row.keys() == expected.keys()
        for name, tensor in expected.items():
            assert row[name].dtype == tensor.dtype
            assert torch.equal(row[name], tensor)


@pytest.mark.parametrize(
    ("strategy", "cache", "n_calls"),
    [
        (FullFinetune(), "auto", 8),
        (PartialFinetune(unfreeze_last_n=1), "off", 8),
        (PartialFinetune(unfreeze_last_n=1), "memory", 4),
        (HeadOnlyFinetune(), "memory", 4),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_fit_is_the_same_and_featurises_in_the_workers(
    calls: Calls, strategy: Any, cache: Any, n_calls: int
) -> None:
    samples = build_samples(4)
    losses: list[list[float]] = []
    predictions = []
    for workers in (0, 2):
        model = build_tiny_model(seed=1)
        calls.taken()
        run = {"strategy": strategy, "epochs": 2, "cache": cache}
        history = model.fit(loader(samples, workers, shuffle=True), **run)
        losses.append([row["train_loss"] for row in history])
        here = calls.here()
        plans_memory = strategy.name != "head_only"  # with the features of the longest sample
        assert here[:plans_memory] == [True] * plans_memory
        assert here[plans_memory:] == [workers == 0] * n_calls
        predictions.append(model.predict(loader(samples, workers))["prediction"])
        assert calls.here() == [workers == 0] * 4
    assert losses[0] == losses[1]
    assert torch.equal(*predictions)


def test_a_resumed_epoch_goes_on_with_the_same_features() -> None:
    samples = build_samples(6)
    forward = ForwardPass(OpenFoldBackbone("tiny"), ("single",), device=CPU)
    given = loader(samples, 2, shuffle=True)
    whole = list(EpochBatches(given, 3, featurize=forward.ahead).epoch(1))
    rest = list(EpochBatches(given, 3, featurize=forward.ahead).epoch(1, start=1))
    assert [batch.ids for batch in rest] == [batch.ids for batch in whole[1:]]
    for batch, other in zip(rest, whole[1:], strict=True):
        for row, expected in zip(batch.rows, other.rows, strict=True):
            assert all(torch.equal(row[name], expected[name]) for name in expected)


def test_validation_and_evaluation_featurise_in_the_workers(calls: Calls) -> None:
    samples = build_samples(4)
    model = build_tiny_model()
    losses = [model.evaluate(loader(samples, workers))["loss"] for workers in (0, 2)]
    assert losses[0] == losses[1]
    assert calls.here() == [True] * 4 + [False] * 4
    strategy = FullFinetune()
    model.fit(loader(samples, 0), loader(samples, 2), strategy=strategy, epochs=1)
    # one of those here is the memory plan's
    assert sorted(calls.here()) == [False] * 4 + [True] * 5


def test_no_features_of_what_is_known_already(calls: Calls) -> None:
    samples = build_samples(2)
    backbone = OpenFoldBackbone("tiny").requires_grad_(False)
    width = np.zeros((1, backbone.single_dim), np.float32)
    brings = [replace(sample, features={"single": width}) for sample in samples]
    forward = ForwardPass(backbone, ("single",), device=CPU)
    (batch,) = loaded_ahead(loader(brings, 1), forward.ahead)
    assert list(batch.rows) == [None, None]
    assert calls.taken() == []
    assert forward(batch).need("single").shape == (2, 1, backbone.single_dim)


@pytest.mark.parametrize("case", ["quick features", "spawned workers", "no workers", "tensors"])
def test_other_loaders_stay_as_they_are(case: str) -> None:
    samples = build_samples(2)
    backbone = ESM2Backbone("esm2_tiny") if case == "quick features" else OpenFoldBackbone("tiny")
    options = {"multiprocessing_context": "spawn"} if case == "spawned workers" else {}
    if case == "tensors":
        options = {"collate_fn": lambda items: {"x": torch.ones(len(items), 3)}}
    given = loader(samples, 0 if case == "no workers" else 1, **options)
    ahead = loaded_ahead(given, ForwardPass(backbone, ("single",), device=CPU).ahead)
    if case == "tensors":
        (batch,) = ahead
        assert torch.equal(batch["x"], torch.ones(2, 3))
    else:
        assert ahead is given


def test_rows_of_a_batch_are_one_tensor() -> None:
    """Each tensor that a worker hands over is an open file here."""
    odd = {"a": torch.rand(3, 2)[:, 1], "b": torch.tensor([True]), "c": torch.zeros(0, 4)}
    rows = PackedRows([odd, None, {"d": torch.arange(5)}])
    assert sum(isinstance(value, torch.Tensor) for value in vars(rows).values()) == 1
    for name, tensor in odd.items():
        assert rows[0][name].dtype == tensor.dtype
        assert torch.equal(rows[0][name], tensor)
    assert rows[1] is None
    assert rows[-1]["d"].tolist() == [0, 1, 2, 3, 4]
    assert len(rows[1:]) == 2
    inputs = Inputs.of(build_samples(3))
    singles = list(replace(inputs, rows=rows).single())
    assert [len(one.rows) for one in singles] == [1, 1, 1]

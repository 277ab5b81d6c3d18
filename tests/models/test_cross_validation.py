"""Cross-validation: one trunk for all folds, folds that resume, and honest summaries."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import warm
from torch.utils.data import DataLoader

from molfun import (
    DataSplitter,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    Sample,
    SequenceDataset,
)
from molfun.backbones.esm2 import ESM2Backbone
from molfun.data.folds import Fold
from molfun.errors import ConfigError, RunError
from molfun.models import CrossValidation, cross_validate
from molfun.models.fold_results import _estimate
from molfun.training.callbacks import Callback
from molfun.training.forward import ForwardPass

TEXTS = [a + b + c for a in "ACD" for b in "FGHI" for c in "KL"]
N = len(TEXTS)
HEAD_ONLY = HeadOnlyFinetune(lr=1e-2)


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return SequenceDataset.from_list([(t, t.count("A") + 0.1 * ord(t[1])) for t in TEXTS])


@pytest.fixture(scope="module")
def make_model() -> Callable[[], MolfunStructureModel]:
    built = MolfunStructureModel("esm2", config="esm2_t3_d16_h2", head="regression", device="cpu")
    return lambda: copy.deepcopy(built)


@pytest.fixture(scope="module")
def folds(data: SequenceDataset) -> list[Fold]:
    return DataSplitter.k_fold(data, 4)


@pytest.fixture(scope="module")
def result(
    make_model: Any, data: SequenceDataset, folds: list[Fold], tmp_path_factory: Any
) -> CrossValidation:
    place = tmp_path_factory.mktemp("cv")
    return cross_validate(
        make_model, data, folds, strategy=HEAD_ONLY, epochs=3, output_dir=place / "cv"
    )


def count(monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> list[int]:
    """Samples per call of a method, from now on."""
    ran: list[int] = []
    run = getattr(cls, name)

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        ran.append(1)
        return run(self, *args, **options)

    monkeypatch.setattr(cls, name, counted)
    return ran


@pytest.mark.parametrize(
    ("strategy", "cls", "method"),
    [
        (HEAD_ONLY, ForwardPass, "whole"),
        (PartialFinetune(unfreeze_last_n=1), ESM2Backbone, "run_prefix"),
        (LoRAFinetune(rank=2, adapt_last_n=1), ESM2Backbone, "run_prefix"),
    ],
    ids=["head_only", "partial", "lora"],
)
def test_what_is_frozen_runs_once_per_row_for_all_folds(
    strategy: Any, cls: type, method: str, make_model: Any, data: Any, folds: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ran = count(monkeypatch, cls, method)
    found = cross_validate(make_model, data, folds, strategy=strategy, epochs=2)
    assert len(ran) == N
    assert "fold_4: Frozen-prefix cache: the frozen part of the backbone ran 0 times" in (
        found.cache_report
    )


def test_features_of_slow_samples_are_computed_once_for_all_folds(
    make_model: Any, folds: list[Fold], data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(SequenceDataset):
        def __getitem__(self, index: int) -> Sample:
            # what comes with features counts as slow to featurise
            return replace(super().__getitem__(index), features={"given": np.zeros(1)})

    slow = Slow.from_list([(t, float(len(set(t)))) for t in TEXTS])
    ran = count(monkeypatch, ESM2Backbone, "featurize")
    cross_validate(make_model, slow, folds, strategy=LoRAFinetune(rank=2), epochs=2)
    # and the longest sample of each fold, whose step is what the memory is planned for
    assert len(ran) == N + len(folds)


@pytest.mark.parametrize("strategy", [HEAD_ONLY, PartialFinetune(unfreeze_last_n=1)])
def test_a_fold_is_a_run_of_its_own(
    strategy: Any, make_model: Any, data: SequenceDataset, folds: list[Fold]
) -> None:
    found = cross_validate(make_model, data, folds, strategy=strategy, epochs=2, seed=3)
    for fold, own in list(zip(folds, found.folds, strict=True))[::2]:
        model = make_model()
        train, val, test = (data.subset(p) for p in (fold.train, fold.val, fold.test))
        model.fit(train, val, strategy=strategy, epochs=2, seed=3)
        expected = model.predict(test)["prediction"].numpy()
        assert np.array_equal(np.stack(own.predictions[""]), expected)
        assert own.metrics["rmse"] == model.evaluate(test)["rmse"]


def test_every_row_has_a_prediction_in_its_place(
    result: CrossValidation, data: SequenceDataset, folds: list[Fold]
) -> None:
    found = result.out_of_fold()
    assert found["ids"] == data.ids
    for fold, own in zip(folds, result.folds, strict=True):
        assert own.ids == [data.ids[i] for i in fold.test]
        assert torch.equal(
            found["prediction"][fold.test], torch.tensor(np.stack(own.predictions[""]))
        )
        assert {result.fold_of_each()[i] for i in fold.test} == {str(fold.number)}
    error = found["prediction"].numpy() - np.asarray(data.targets)
    assert result.pooled()["rmse"] == pytest.approx(math.sqrt((error**2).mean()))
    table = result.table()
    assert table["fold"].tolist() == [fold.name for fold in folds]
    assert table["n_test"].sum() == N
    assert result.summary()["rmse"].value == pytest.approx(table["rmse"].mean())
    assert all((path / "manifest.json").is_file() for path in result.checkpoints)


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    # three folds, 1/4 of the rows tested: t(0.975, 2) = 4.3027, variance 1
    found = _estimate([1.0, 2.0, math.nan, 3.0], 1 / 3, 0.95)
    half = 4.302653 * math.sqrt(1 / 3 + 1 / 3)
    assert astuple(found) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-5)
    # two values say nothing of their spread
    for few in ([1.0], [1.0, 2.0], [1.0, math.nan, 2.0]):
        found = _estimate(few, 0.1, 0.95)
        assert math.isfinite(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    assert math.isnan(_estimate([], 0.1, 0.95).value)


def test_repeats_are_averaged(make_model: Any, data: SequenceDataset) -> None:
    folds = DataSplitter.k_fold(data, 2, repeats=2)
    found = cross_validate(make_model, data, folds, strategy=HEAD_ONLY, epochs=1)
    row = 5
    own = [
        r.predictions[""][r.fold.test.tolist().index(row)]
        for r in found.folds
        if row in r.fold.test
    ]
    assert len(own) == 2
    assert found.out_of_fold()["prediction"][row].item() == pytest.approx(np.mean(own))
    assert found.fold_of_each()[row].count(";") == 1


def test_baselines_predict_rows_that_their_fold_held_out(
    result: CrossValidation, data: SequenceDataset, folds: list[Fold]
) -> None:
    (found,) = result.judge(data, draws=20).values()
    part = found.parts["out_of_fold"]
    labels, expected = np.asarray(data.targets), np.zeros(N)
    for fold in folds:
        expected[fold.test] = labels[fold.train].mean()
    rmse = math.sqrt(((expected - labels) ** 2).mean())
    assert part.baselines["mean"].metrics["rmse"].value == pytest.approx(rmse)
    assert part.metrics["rmse"].value == result.pooled()["rmse"]
    assert "on 24 out-of-fold rows of 4 folds (random backbone weights); " in found.verdict
    (few,) = result.judge(data, draws=20, groups=[t[0] for t in TEXTS]).values()
    assert few.outcome == "too few"
    assert few.verdict.endswith("nothing can be concluded from 3 independent groups.")


def test_a_class_may_be_missing_from_a_fold(make_model: Any) -> None:
    data = SequenceDataset.from_list(
        [(t, "rare" if i == 3 else "ab"[i % 2]) for i, t in enumerate(TEXTS)]
    )
    made = MolfunStructureModel(
        "esm2_tiny", head="multiclass", task_config={"n_classes": 3}, device="cpu"
    )
    folds = DataSplitter.k_fold(data, 3)
    found = cross_validate(lambda: made, data, folds, strategy=HEAD_ONLY, epochs=1).out_of_fold()
    assert found["classes"] == ["a", "b", "rare"]
    assert found["probs"].shape == (N, 3)


SCRIPT = """
    import os, signal, sys
    from molfun import DataSplitter, HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
    from molfun.models import cross_validate
    from molfun.training.callbacks import Callback

    texts, place = sys.argv[1].split(), sys.argv[2]
    data = SequenceDataset.from_list([(t, t.count("A") + 0.1 * ord(t[1])) for t in texts])

    class Kill(Callback):
        def on_epoch_end(self, row, history):
            if row["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    cross_validate(
        lambda: MolfunStructureModel(
            "esm2", config="esm2_t3_d16_h2", head="regression", device="cpu"
        ),
        data, DataSplitter.k_fold(data, 4), strategy=HeadOnlyFinetune(lr=1e-2), epochs=3,
        output_dir=place,
        on_fold=lambda fold, model, folder: [Kill()] if fold.number == 2 else [],
    )
"""


def test_folds_go_on_after_kill_9(
    result: CrossValidation, make_model: Any, data: Any, folds: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = tmp_path / "cv"
    done = warm.run("-c", dedent(SCRIPT), " ".join(TEXTS), place)
    assert done.returncode == -signal.SIGKILL, done.stderr
    options = {"strategy": HEAD_ONLY, "epochs": 3, "output_dir": place}
    with pytest.raises(RunError, match=r"already holds a cross-validation\. Continue it with"):
        cross_validate(make_model, data, folds, **options)
    ran = count(monkeypatch, ForwardPass, "whole")
    epochs: list[tuple[str, int]] = []

    class Note(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_epoch_end(self, row: Any, history: Any) -> None:
            epochs.append((self.name, row["epoch"]))

    found = cross_validate(
        make_model, data, folds, resume=True, **options,
        on_fold=lambda fold, model, folder: [Note(fold.name)],
    )  # fmt: skip
    # fold 1 was finished; fold 2 was killed in its second epoch and repeats that one alone
    assert [name for name, _ in epochs].count("fold_1") == 0
    assert [epoch for name, epoch in epochs if name == "fold_2"] in ([2, 3], [3])
    # the parts of fold 1 are all rows: their entries are on disk
    assert not ran
    for one, other in zip(found.folds, result.folds, strict=True):
        assert np.array_equal(np.stack(one.predictions[""]), np.stack(other.predictions[""]))
        assert one.metrics == pytest.approx(other.metrics, nan_ok=True)
    # baselines that a killed process kept are those that one without a stop fits
    expected = result.judge(data, draws=30)
    assert repr(found.judge(data, draws=30, keep=place / "cache")) == repr(expected)
    assert repr(found.judge(data, draws=30, keep=place / "cache")) == repr(expected)
    assert len(list((place / "cache").glob("baselines_fold_*"))) == 4
    with pytest.raises(RunError, match=r"with other settings or data:\n  options\n"):
        cross_validate(make_model, data, folds, resume=True, **{**options, "epochs": 4})
    pairs = [(sample.sequence, sample.target) for sample in data]
    edited = SequenceDataset.from_list([("WWWW", pairs[0][1]), *pairs[1:]])
    with pytest.raises(RunError, match=r"other settings or data:\n  contents\nRepeat"):
        cross_validate(make_model, edited, folds, resume=True, **options)
    huber = MolfunStructureModel(
        "esm2", config="esm2_t3_d16_h2", head="regression", device="cpu",
        task_config={"loss": "huber"},
    )  # fmt: skip
    with pytest.raises(RunError, match=r"other settings or data:\n  tasks\nRepeat"):
        cross_validate(lambda: huber, data, folds, resume=True, **options)
    loader = partial(DataLoader, batch_size=2, collate_fn=data.collate_fn)
    with pytest.raises(RunError, match=r"other settings or data:\n  batch size\nRepeat"):
        cross_validate(
            make_model, data, folds, resume=True, **options,
            make_loader=lambda part, shuffle: loader(part, shuffle=shuffle),
        )  # fmt: skip
    again = cross_validate(make_model, data, folds[:], overwrite=True, **{**options, "epochs": 1})
    assert again.folds[0].epoch == 1


def test_a_model_that_has_seen_the_rows_is_named(
    make_model: Any, data: SequenceDataset, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    model.fit(data.subset(range(10)), strategy="head_only", epochs=1)
    folds = DataSplitter.k_fold(data, 2)
    cross_validate(lambda: model, data, folds, strategy=HEAD_ONLY, epochs=1)
    assert "10 of 24 test samples are also in the training set" in caplog.text


def test_wrong_folds_are_refused(make_model: Any, data: SequenceDataset, folds: Any) -> None:
    with pytest.raises(ConfigError, match="needs folds, for example"):
        cross_validate(make_model, data, [])
    with pytest.raises(ConfigError, match="do not test each of 24 samples once"):
        cross_validate(make_model, data, folds[1:])
    nothing = np.array([], np.int64)
    with pytest.raises(ConfigError, match="do not test each of 24 samples once"):
        cross_validate(make_model, data, [replace(fold, test=nothing) for fold in folds])
    outside = [replace(fold, name=f"../{fold.name}") for fold in folds]
    with pytest.raises(ConfigError, match=r"name folders, each its own; got '\.\./fold_1'"):
        cross_validate(make_model, data, outside)
    with pytest.raises(ConfigError, match="resume=True needs output_dir"):
        cross_validate(make_model, data, folds, resume=True)

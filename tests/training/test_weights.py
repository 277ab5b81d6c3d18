"""Weights of samples change which labels count, and by how much."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from molfun import (
    DataSplitter,
    FullFinetune,
    HeadOnlyFinetune,
    MolfunStructureModel,
    SequenceDataset,
)
from molfun.data import NamedTargets
from molfun.errors import ConfigError, DataError
from molfun.models.cross_validation import cross_validate
from molfun.models.loaders import as_loader, data_identity
from molfun.registry import LOSSES
from molfun.tasks.losses import ranks_a_batch

ROWS = "sequence,target,other,n,zero\n" + "".join(
    f"{'MKVLA'[: 2 + i % 4]}{'ACDEFGHIK'[i]},{i % 3 - 1.5},{i % 2},{[1, 2, 0][i % 3]},0\n"
    for i in range(9)
)


@pytest.fixture
def data(tmp_path: Path) -> SequenceDataset:
    (tmp_path / "data.csv").write_text(ROWS)
    return SequenceDataset.from_csv(tmp_path / "data.csv")


def trained(data: object, **settings: object) -> MolfunStructureModel:
    model = MolfunStructureModel("esm2_tiny", head="linear", device="cpu", **settings)
    model.fit(data, strategy=FullFinetune(ema_decay=0), epochs=2, seed=3)
    return model


def weights(model: MolfunStructureModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_weight_of_two_is_a_row_that_is_there_twice(data: SequenceDataset) -> None:
    rows = np.repeat(np.arange(9), [1, 2, 0] * 3)
    # the scale of the labels is that of the rows that are there; both keep it out
    settings = {"task_config": {"standardize": False}, "head_config": {"standardize": False}}
    weighted = MolfunStructureModel("esm2_tiny", head="linear", device="cpu", **settings)
    repeated = MolfunStructureModel("esm2_tiny", head="linear", device="cpu", **settings)
    strategy = FullFinetune(ema_decay=0)
    for model, samples in (
        (weighted, data.weighted_by("n")),
        (repeated, data.subset(rows)),
    ):
        one_batch = DataLoader(samples, batch_size=9, collate_fn=samples.collate_fn)
        model.fit(one_batch, strategy=strategy, max_steps=3)
    torch.testing.assert_close(weights(weighted), weights(repeated), rtol=0, atol=2e-5)


def test_equal_weights_change_nothing(data: SequenceDataset, tmp_path: Path) -> None:
    (tmp_path / "even.csv").write_text(ROWS.replace(",1,0\n", ",5,0\n").replace(",2,0", ",5,0")
                                       .replace(",0,0\n", ",5,0\n"))  # fmt: skip
    even = SequenceDataset.from_csv(tmp_path / "even.csv")
    assert set(even.metadata["n"]) == {5}
    assert torch.equal(weights(trained(even.weighted_by("n"))), weights(trained(even)))
    assert not torch.equal(weights(trained(data.weighted_by("n"))), weights(trained(data)))


def test_validation_and_metrics_know_no_weights(data: SequenceDataset) -> None:
    model = trained(data)
    assert model.evaluate(data) == model.evaluate(data.weighted_by("n"))


def test_each_head_has_weights_of_its_own(data: SequenceDataset, tmp_path: Path) -> None:
    other = SequenceDataset.from_csv(tmp_path / "data.csv", target_column="other")
    heads = {"a": {"head": "linear"}, "b": {"head": "linear"}}

    def fitted(both: NamedTargets) -> torch.Tensor:
        model = MolfunStructureModel("esm2_tiny", heads=heads, device="cpu")
        model.fit(both, strategy=HeadOnlyFinetune(lr=1e-2, grad_clip=1e6), epochs=2)
        return torch.cat([p.detach().flatten() for p in model.heads[0].head.parameters()])

    plain = fitted(NamedTargets({"a": data, "b": other}))
    assert torch.equal(fitted(NamedTargets({"a": data, "b": other.weighted_by("n")})), plain)
    assert not torch.equal(fitted(NamedTargets({"a": data.weighted_by("n"), "b": other})), plain)


def test_weights_of_another_table_are_refused(data: SequenceDataset, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(ROWS.replace(",2,0\n", ",3,0\n").replace(",n,", ",m,"))
    more = SequenceDataset.from_csv(tmp_path / "more.csv")
    with pytest.raises(DataError, match=r"its column 'm', which the first one lacks. Read both"):
        NamedTargets({"a": data, "b": more.weighted_by("m")})
    (tmp_path / "more.csv").write_text(ROWS.replace(",2,0\n", ",3,0\n"))
    more = SequenceDataset.from_csv(tmp_path / "more.csv")
    with pytest.raises(DataError, match="which the first one has with other values"):
        NamedTargets({"a": data, "b": more.weighted_by("n")})


@pytest.fixture
def losses() -> Iterator[None]:
    """Forget the losses that a test registers."""
    before = set(LOSSES)
    yield
    for name in set(LOSSES) - before:
        del LOSSES._entries[name]


def test_a_loss_of_a_user_that_compares_samples_takes_no_weights(
    data: SequenceDataset, losses: None
) -> None:
    @LOSSES.register("of_pairs_here")
    def of_pairs(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction[:, None] - target[None]).square().sum()

    @LOSSES.register("of_each_here")
    def of_each(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).abs().pow(1.5).sum()

    assert [ranks_a_batch(n) for n in ("of_pairs_here", "of_each_here")] == [True, False]
    trained(data.weighted_by("n"), task_config={"loss": "of_each_here"})
    with pytest.raises(ConfigError, match="the loss 'of_pairs_here' compares them"):
        trained(data.weighted_by("n"), task_config={"loss": "of_pairs_here"})


def test_a_subset_keeps_its_weights(data: SequenceDataset) -> None:
    whole = data.weighted_by("n")
    part = trained(whole.subset([0, 1, 2, 3]))
    assert torch.equal(weights(trained(Subset(whole, [0, 1, 2, 3]))), weights(part))
    assert not torch.equal(weights(trained(data.subset([0, 1, 2, 3]))), weights(part))


def test_a_run_with_other_weights_is_not_resumed(data: SequenceDataset, tmp_path: Path) -> None:
    model = MolfunStructureModel("esm2_tiny", head="linear", device="cpu")
    options = {"strategy": HeadOnlyFinetune(), "output_dir": tmp_path / "run"}
    model.fit(data.weighted_by("n"), epochs=1, **options)
    (tmp_path / "data.csv").write_text(ROWS.replace(",2,0\n", ",3,0\n"))
    changed = SequenceDataset.from_csv(tmp_path / "data.csv").weighted_by("n")
    again = MolfunStructureModel("esm2_tiny", head="linear", device="cpu")
    with pytest.raises(Exception, match="weights"):
        again.fit(changed, epochs=2, resume=True, **options)


def test_weights_of_one_mean_in_another_order_are_others(
    data: SequenceDataset, tmp_path: Path
) -> None:
    """Also for the folds of a cross-validation that went on."""
    rows = [row.split(",") for row in ROWS.splitlines()]
    place = rows[0].index("n")
    pairs = zip(rows[1:], rows[:0:-1], strict=True)
    turned = [[*row[:place], other[place], *row[place + 1 :]] for row, other in pairs]
    (tmp_path / "turned.csv").write_text("\n".join(map(",".join, [rows[0], *turned])) + "\n")
    changed = SequenceDataset.from_csv(tmp_path / "turned.csv").weighted_by("n")
    assert sorted(changed.metadata["n"]) == sorted(data.metadata["n"])
    both = (data.weighted_by("n"), changed)
    one, other = (data_identity(as_loader(part), [], None) for part in both)
    assert one["sample weights"] != other["sample weights"]
    assert "sample weights" not in data_identity(as_loader(data), [], None)

    def make() -> MolfunStructureModel:
        return MolfunStructureModel("esm2_tiny", head="linear", device="cpu")

    folds = DataSplitter.k_fold(data, 2)
    options = {"strategy": HeadOnlyFinetune(), "output_dir": tmp_path / "cv", "epochs": 1}
    cross_validate(make, data.weighted_by("n"), folds, **options)
    shutil.rmtree(tmp_path / "cv" / "fold_2")
    with pytest.raises(Exception, match="sample weights"):
        cross_validate(make, changed, folds, resume=True, **options)


def test_columns_that_weigh_nothing(data: SequenceDataset, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no column 'm' of weights; its other columns are: oth"
    ):
        data.weighted_by("m")
    with pytest.raises(DataError, match="All weights in column 'zero' are 0"):
        data.weighted_by("zero")
    (tmp_path / "bad.csv").write_text("sequence,target,n\nMKV,1,\nACD,2,-1\nGGG,3,x\nGGS,3,1\n")
    with pytest.raises(DataError, match=r"(?s)3 samples whose weight.*seq_1.*seq_2: -1.*seq_3: x"):
        SequenceDataset.from_csv(tmp_path / "bad.csv").weighted_by("n")
    with pytest.raises(ConfigError, match="the loss 'listmle' compares them with each other"):
        trained(data.weighted_by("n"), task_config={"loss": "listmle"})


def test_missing_labels_keep_out_of_the_mean_weight(
    data: SequenceDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (tmp_path / "gaps.csv").write_text("sequence,target,n\nMKV,1,1\nACD,,9\nGGG,3,3\n")
    gaps = SequenceDataset.from_csv(tmp_path / "gaps.csv", require_target="column")
    fitted = trained(gaps.weighted_by("n"))
    assert np.isfinite(fitted.predict(["MKV"])["prediction"].numpy()).all()
    (tmp_path / "gaps.csv").write_text("sequence,target,n\nMKV,1,0\nACD,,9\nGGG,3,0\n")
    gaps = SequenceDataset.from_csv(tmp_path / "gaps.csv", require_target="column")
    with pytest.raises(DataError, match="All weights in column 'n' of samples with a label are 0"):
        trained(gaps.weighted_by("n"))

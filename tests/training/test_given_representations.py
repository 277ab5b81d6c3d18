"""Heads on representations that come with the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molfun import HeadOnlyFinetune, LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.backbones.esm2 import ESM2Backbone
from molfun.errors import DataError
from molfun.parallel.ranks import Ranks

ITEMS = [("MKVLAAG", 1.0), ("GG", 2.0), ("ACDEFGHIKL", 0.5), ("PQRST", 3.0)]


def model(head: str = "regression", **settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head=head, device="cpu", **settings)


@pytest.fixture
def data() -> SequenceDataset:
    return SequenceDataset.from_list(ITEMS)


@pytest.mark.parametrize(
    ("pooling", "settings"),
    [("mean", {}), (None, {"head_config": {"pooling": "attention"}})],
)
def test_training_is_that_on_the_sequences(
    data: SequenceDataset, monkeypatch: pytest.MonkeyPatch, pooling: Any, settings: dict[str, Any]
) -> None:
    first, second = model(**settings), model(**settings)
    given = data.with_representations(first.embed(data, pooling=pooling, batch_tokens=1))
    run: dict[str, Any] = {"strategy": HeadOnlyFinetune(lr=0.1), "epochs": 3}
    expected = first.fit(data, data, **run)
    monkeypatch.setattr(ESM2Backbone, "forward", None)
    history = second.fit(given, given.subset(range(4)), **run)
    for row, other in zip(history, expected, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)
    monkeypatch.undo()
    assert torch.allclose(
        second.predict(given)["prediction"], first.predict(data)["prediction"], atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_files_of_molfun_embed(data: SequenceDataset, tmp_path: Path, pooling: str) -> None:
    from molfun.cli import embed as command

    start = model()
    path = tmp_path / "e.npz"
    chosen = None if pooling == "none" else pooling
    command.run(
        start,
        data,
        str(path),
        pooling=chosen,
        layer=-1,
        shard_size=10,
        overwrite=False,
        ranks=Ranks(),
    )
    shuffled = data.subset([2, 0, 3])
    found = shuffled.with_representations(path)
    for i, expected in enumerate(start.embed(shuffled, pooling=chosen)):  # type: ignore[arg-type]
        (values,) = (found[i].features or {}).values()
        assert np.array_equal(values, expected)


def test_refusals(data: SequenceDataset, tmp_path: Path) -> None:
    means = data.with_representations(np.zeros((4, 32)))
    with pytest.raises(DataError, match=r"seq_. comes with representations, but parts of the back"):
        model().fit(means, strategy=LoRAFinetune(), epochs=1)
    with pytest.raises(DataError, match="comes with the representation mean, but the head reads"):
        model(head_config={"pooling": "attention"}).fit(means, strategy="head_only", epochs=1)
    with pytest.raises(DataError, match=r"has 7 channels, the backbone 32\. Choose the backbone"):
        model().fit(data.with_representations(np.zeros((4, 7))), strategy="head_only", epochs=1)
    with pytest.raises(DataError, match="3 representations for 4 samples"):
        data.with_representations(np.zeros((3, 32)))
    with pytest.raises(DataError, match="seq_2: 3 vectors for 2 residues"):
        data.with_representations([np.zeros((n, 32)) for n in (7, 3, 10, 5)])
    with pytest.raises(DataError, match="No such file"):
        data.with_representations(tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(
        DataError, match=r"damaged or not npz: File is not a zip file\. Write it with molfun embed"
    ):
        data.with_representations(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", ids=np.array(["seq_1"]), embeddings=np.zeros((1, 32)))
    with pytest.raises(DataError, match=r"has no representation of 3 of 4 samples:\n  seq_2"):
        data.with_representations(tmp_path / "other.npz")


def embedded(start: MolfunStructureModel, data: SequenceDataset, path: Path, **how: Any) -> Path:
    from molfun.cli import embed as command

    options: dict[str, Any] = {"pooling": "mean", "layer": -1, "shard_size": 10, "overwrite": False}
    command.run(start, data, str(path), ranks=Ranks(), **{**options, **how})
    return path


def test_a_file_of_other_sequences_is_refused(data: SequenceDataset, tmp_path: Path) -> None:
    """Ids are numbered where a table has none, so those of another table fit."""
    path = embedded(model(), data, tmp_path / "e.npz")
    other = SequenceDataset.from_list([("WWWWWWW", 1.0), *ITEMS[1:]])
    with pytest.raises(DataError, match=r"was made from other sequences: 1 of 4 .*\n  seq_1\n"):
        other.with_representations(path)
    lower = SequenceDataset.from_list([(s.lower(), y) for s, y in ITEMS])
    assert len(lower.with_representations(path)) == 4


def test_shards_are_read_as_one_file(data: SequenceDataset, tmp_path: Path) -> None:
    path = embedded(model(), data, tmp_path / "e.npz", shard_size=3)
    assert not path.exists()
    found = data.with_representations(path)
    for i, expected in enumerate(model().embed(data, pooling="mean")):
        assert np.array_equal((found[i].features or {})["mean"], expected)


def test_vectors_of_cls_are_not_taken_for_means(data: SequenceDataset, tmp_path: Path) -> None:
    given = data.with_representations(embedded(model(), data, tmp_path / "e.npz", pooling="cls"))
    assert set(given[0].features or {}) == {"cls"}
    with pytest.raises(DataError, match="comes with the representation cls, but the head reads"):
        model().fit(given, strategy="head_only", epochs=1)
    model(head_config={"pooling": "cls"}).fit(given, strategy="head_only", epochs=1)


def test_a_head_says_when_its_representations_come_from_elsewhere(
    data: SequenceDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = model(), model(seed=5)
    given = data.with_representations(embedded(other, data, tmp_path / "e.npz"))
    mine.fit(given, strategy="head_only", epochs=1)
    caplog.clear()
    mine.predict(given)
    assert not [m for m in caplog.messages if "training set" not in m]
    caplog.clear()
    mine.predict(data)
    message, _ = caplog.messages  # and that these were trained on
    assert message.startswith("The head was trained on representations of the model ")
    assert message.endswith("the numbers may mean nothing.")
    caplog.clear()
    other.fit(given, strategy="head_only", epochs=1)
    other.predict(data)
    assert not [m for m in caplog.messages if "training set" not in m]


def test_a_part_of_a_data_set_by_torch_is_as_good_as_one_of_ours(data: SequenceDataset) -> None:
    """Heads learn the scale of their inputs, and bad samples are found, in ``Subset`` too."""
    from torch.utils.data import DataLoader, Subset

    rows = [3, 0, 2]
    ours, torchs = model(), model()
    ours.fit(DataLoader(data.subset(rows), 2, collate_fn=data.collate_fn), strategy="head_only",
             epochs=2)  # fmt: skip
    torchs.fit(DataLoader(Subset(data, rows), 2, collate_fn=data.collate_fn), strategy="head_only",
               epochs=2)  # fmt: skip
    for name, tensor in ours.head.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, torchs.head.state_dict()[name]), name  # type: ignore[union-attr]
    assert bool(torchs.head.inputs_fitted)  # type: ignore[union-attr]
    bad = SequenceDataset.from_list([("MKV", 1.0), ("M*", 2.0), ("GG", 3.0)])
    with pytest.raises(DataError, match=r"1 sample cannot be used .*\n  seq_2: '\*' at position"):
        model().fit(DataLoader(Subset(bad, [0, 1]), 2, collate_fn=bad.collate_fn),
                    strategy="head_only", epochs=1)  # fmt: skip

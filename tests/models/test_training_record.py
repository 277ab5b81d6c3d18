"""What a checkpoint tells of its training rows, without holding any of their sequences."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_atoms, build_samples, build_series

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import CheckpointError
from molfun.evaluation.space import FEWEST_VECTORS, Space
from molfun.models import training_record
from molfun.models.training_record import TrainingRecord
from molfun.runs import checkpoint as portable

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def family(n: int, seed: int = 0) -> list[tuple[str, float]]:
    rng = random.Random(seed)
    parent = "".join(random.Random(9).choices(LETTERS, k=40))
    found = []
    for i in range(n):
        at = rng.randrange(40)
        found.append((parent[:at] + rng.choice(LETTERS) + parent[at + 1 :], float(i % 5)))
    return found


def esm() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu")


def data(n: int, seed: int = 0) -> SequenceDataset:
    return SequenceDataset.from_list(family(n, seed))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[MolfunStructureModel, Path]:
    """A model that trained on thirty rows, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    model = esm()
    model.fit(data(30), data(12, 1), strategy="head_only", epochs=2, output_dir=folder)
    return model, folder / "checkpoint"


def test_no_piece_of_a_sequence_is_in_any_file(run: tuple[Any, Path]) -> None:
    pieces = {text[i : i + 8] for text, _ in family(30) for i in range(len(text) - 7)}
    files = [path for path in run[1].rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert not [piece for piece in pieces if piece.encode() in content], path


def test_the_record_survives_the_checkpoint(run: tuple[MolfunStructureModel, Path]) -> None:
    model, folder = run
    again = MolfunStructureModel.from_checkpoint(folder, device="cpu")
    ours, theirs = model.training_record, again.training_record
    assert ours is not None
    assert theirs is not None
    mine, read = ours.to_tensors(), theirs.to_tensors()
    assert mine.keys() == read.keys()
    assert "space.vectors" in mine
    assert all(torch.equal(mine[name], read[name]) for name in mine)
    new = [text for text, _ in family(8, 2)]
    one, other = model.predict(new).distances, again.predict(new).distances
    assert one is not None
    assert other is not None
    assert np.array_equal(one, other)
    # equal runs write equal checkpoints, also in what they keep of the training rows
    twin = esm()
    twin.fit(data(30), data(12, 1), strategy="head_only", epochs=2)
    assert twin.training_record is not None
    assert all(torch.equal(mine[n], t) for n, t in twin.training_record.to_tensors().items())


def test_distances_know_rows_of_training_and_validation(
    run: tuple[MolfunStructureModel, Path],
) -> None:
    model, _ = run
    record = model.training_record
    assert record is not None
    assert record.space is not None
    for own in (data(30), data(12, 1)):
        found = model.predict(own).distances
        assert found is not None
        assert record.space.n_beyond(found) == 0
    trained = model.predict(data(30)).distances
    far = model.predict(["W" * 40, "GP" * 20]).distances
    assert trained is not None
    assert trained.max() < 0.05
    assert far is not None
    assert record.space.n_beyond(far) == 2
    assert np.array_equal(model.evaluate(data(30)).distances, trained)
    single = model.predict(data(30)[0])
    assert single.distances is not None
    assert single.distances.shape == (1,)


def test_an_older_checkpoint_without_a_record_says_nothing(
    run: tuple[MolfunStructureModel, Path], tmp_path: Path
) -> None:
    _model, folder = run
    old = MolfunStructureModel.from_checkpoint(folder, device="cpu")
    old.training_record = None
    old.save(tmp_path / "old")
    assert not (tmp_path / "old" / portable.RECORD).exists()
    again = MolfunStructureModel.from_checkpoint(tmp_path / "old", device="cpu")
    assert again.training_record is None
    assert again.predict(["MKV"]).distances is None


@pytest.mark.parametrize("kind", ["openfold", "timeseries", "pet", "energy"])
def test_every_backbone_with_a_mean_has_distances(kind: str) -> None:
    made: dict[str, Any] = {
        "openfold": lambda: (build_samples(14), {"config": "tiny", "head": "affinity"}),
        "timeseries": lambda: (
            build_series(14),
            {"config": {"name": "linear", "d_input": 3, "d_model": 8}, "head": "regression"},
        ),
        "pet": lambda: (build_atoms(14), {"head": "regression"}),
        "energy": lambda: (build_atoms(14), {"head": "energy"}),
    }
    samples, settings = made[kind]()
    if kind in ("pet", "energy"):
        small = {"d_pet": 8, "d_head": 8, "d_feedforward": 8, "num_heads": 1}
        small |= {"num_gnn_layers": 1, "num_attention_layers": 1}
        settings["backbone_config"] = {"config": small, "atomic_types": [1, 6, 7, 8]}
    name = "pet" if kind == "energy" else kind
    model = MolfunStructureModel(name, device="cpu", **settings)
    model.fit(samples[:11], samples[11:], strategy="head_only", epochs=1)
    found = model.predict(samples).distances
    # energies of PET are computed inside the backbone, and no head reads a mean
    assert (found is None) == (kind == "energy")


def test_a_trunk_that_trains_runs_few_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = training_record._vectors

    def counted(runner: Any, samples: Any, size: int) -> Any:
        rows.append(len(samples))
        return plain(runner, samples, size)

    monkeypatch.setattr(training_record, "_vectors", counted)
    for epochs in (1, 4):
        esm().fit(data(30), data(12, 1), strategy="lora", epochs=epochs)
    # 5 % of 3 passes for each of 30 rows and 4 epochs; one epoch would leave too few rows
    assert rows == [12, 5]
    assert FEWEST_VECTORS <= 12


def test_rows_shorter_than_a_word_are_kept_as_a_whole(tmp_path: Path) -> None:
    texts = [a + b for a in "ACDEF" for b in "GHIK"]
    model = esm()
    model.fit([(text, 1.0) for text in texts], strategy="head_only", epochs=1)
    model.save(tmp_path / "short")
    record = MolfunStructureModel.from_checkpoint(tmp_path / "short").training_record
    assert record is not None
    assert record.sketch is not None
    found = record.sketch.nearest([["AG"], ["WW"]])
    assert (found.places.tolist(), found.identities.tolist()) == ([0, -1], [1.0, 0.0])
    assert record.space is not None
    assert record.space.n_beyond(np.ones(3, np.float32)) == 0


def test_a_second_fit_keeps_the_rows_of_the_first() -> None:
    model, first, second = esm(), data(12), data(12, 5)
    for part in (first, second):
        model.fit(part, strategy="head_only", epochs=1)
    record = model.training_record
    assert record is not None
    assert record.sketch is not None
    found = record.sketch.nearest([*first.sequences(), *second.sequences()])
    assert found.same.all()
    assert record.sketch.n_rows == 24
    assert np.isnan(record.least_identity)


def test_the_vectors_are_bounded_and_damage_is_named() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(40, 6)) @ rng.normal(size=(6, 300))).astype(np.float32)
    space = Space.of(vectors[:30], vectors[30:])
    tensors = TrainingRecord(space=space).to_tensors()
    assert tensors["space.axes"].dtype == tensors["space.vectors"].dtype == torch.float16
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < 30_000
    assert np.allclose(space.distances(vectors[:30]), 0, atol=0.02)
    # outside of all components, and back at scale
    away = space.mean + 2 * space.scale * np.linalg.svd(space.axes)[2][-1:]
    nearest = np.sqrt(4 + np.square(space.vectors).sum(1).min())
    assert space.distances(away.astype(np.float32))[0] == pytest.approx(nearest, rel=0.01)
    same = np.ones((12, 4), np.float32)
    assert Space.of(same, same).distances(same).max() == 0
    with pytest.raises(CheckpointError, match="training vectors are damaged"):
        TrainingRecord.from_tensors(tensors | {"space.axes": tensors["space.axes"][:, :9]})

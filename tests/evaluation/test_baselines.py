"""Baselines: each gives the value that a calculation by hand gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from molfun.evaluation.baselines import Labelled, estimators, one_hot, predictions_of
from molfun.evaluation.baselines.base import Baseline
from molfun.evaluation.baselines.interface import counts
from molfun.evaluation.baselines.series_summary import summary
from molfun.fingerprint import digest
from molfun.nn.substitutions import SubstitutionTable
from molfun.protein import CA, Protein
from molfun.registry import BASELINES
from molfun.sample import Sample
from molfun.tasks import (
    BinaryTask,
    ContactTask,
    EnergyTask,
    MulticlassTask,
    MultilabelTask,
    RegressionTask,
)
from molfun.tasks.base import Task
from molfun.tasks.energy import ENERGY, FORCES, N_ATOMS


def sequences(pairs: Sequence[tuple[str, Any]]) -> list[Sample]:
    return [Sample(id=str(i), sequence=text, target=label) for i, (text, label) in enumerate(pairs)]


def labelled(samples: list[Sample], task: Task, most: int | None = None) -> Labelled:
    return Labelled.of(samples, [task.numbers(s.target) for s in samples], most=most)


def found(train: list[Sample], test: list[Sample], task: Task) -> dict[str, list[np.ndarray]]:
    task.fit_targets([s.target for s in train])
    parts = [labelled(part, task) for part in (train, test)]
    return {name: parts[0] for name, parts in predictions_of(parts[0], parts[1:], task).items()}


def additive(n: int, seed: int) -> list[Sample]:
    """Draw sequences whose label is a sum over positions."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACDE"))
    weights = np.random.default_rng(7).normal(size=(6, 4))
    codes = rng.integers(4, size=(n, 6))
    labels = weights[np.arange(6), codes].sum(1)
    return sequences([("".join(letters[c]), float(y)) for c, y in zip(codes, labels, strict=True)])


def test_zero_shot_scores_of_variants() -> None:
    """Alone they are brought to the labels by a line; with one-hot they reach new positions."""
    rng = np.random.default_rng(0)
    table = SubstitutionTable("ACDEACDE", rng.normal(size=(8, 20)))
    names = [(i, a) for i in range(8) for a in "GHKLMNPQ"]
    texts = ["ACDEACDE"[:i] + a + "ACDEACDE"[i + 1 :] for i, a in names]
    pairs = [(t, 3 + 2 * float(s)) for t, s in zip(texts, table.scores(texts), strict=True)]
    train, test = sequences(pairs[:48]), sequences(pairs[48:])  # the last two positions are new
    task = RegressionTask()
    task.fit_targets([s.target for s in train])
    parts = [labelled(part, task).scored(table) for part in (train, test)]
    predicted = predictions_of(parts[0], parts[1:], task)
    truth = np.array([s.target for s in test])
    np.testing.assert_allclose(np.array(predicted["zero_shot"][0]), truth, atol=0.01)
    # labels that fall with the score do not turn its order round
    falling = [replace(sample, target=-sample.target) for sample in train]
    turned = predictions_of(labelled(falling, task).scored(table), parts[1:], task)["zero_shot"][0]
    assert stats.spearmanr(turned, truth).statistic == pytest.approx(1)
    both = np.array(predicted["one_hot_zero_shot"][0])
    assert np.corrcoef(both, truth)[0, 1] > 0.99
    assert np.std(predicted["one_hot"][0]) < 1e-9  # knows nothing of positions that it never saw
    words = [BASELINES[name]().described(task) for name in ("zero_shot", "one_hot_zero_shot")]
    assert words == ["zero-shot score", "ridge on one-hot and zero-shot score"]


class Embedding:
    """Stands for the base model: eight numbers per sequence."""

    def key_of(self, samples: Iterable[Sample]) -> str:
        return digest(sample.content_key() for sample in samples)

    def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
        texts = [sample.sequence or "" for sample in samples]
        rows = [np.random.default_rng(list(t.encode())).normal(5, 2, 8) for t in texts]
        return np.stack(rows)


def closed_form(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Ridge with the penalty of the least leave-one-out error, by normal equations."""
    scale = x.std(0)
    x, other = x / scale, other / scale
    best = (np.inf, 0.0)
    for penalty in np.logspace(-3, 5, 17):
        centred = x - x.mean(0)
        gram = centred.T @ centred + penalty * np.eye(x.shape[1])
        hat = centred @ np.linalg.solve(gram, centred.T) + 1 / len(x)
        left = (y - y.mean()) - (hat - 1 / len(x)) @ (y - y.mean())
        best = min(best, (float(np.mean((left / (1 - np.diag(hat))) ** 2)), penalty))
    from sklearn.linear_model import Ridge

    return Ridge(alpha=best[1], solver="cholesky").fit(x, y).predict(other)


def test_embedding_and_score_are_a_ridge_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    table = SubstitutionTable("ACDEACDE", rng.normal(size=(8, 20)))
    texts = ["ACDEACDE"[:i] + a + "ACDEACDE"[i + 1 :] for i in range(8) for a in "GHKLMNPQ"]
    columns = np.hstack(
        [Embedding()([Sample(id=t, sequence=t) for t in texts]), table.scores(texts)[:, None]]
    )
    labels = columns @ rng.normal(size=9) + rng.normal(size=64)
    samples = sequences(list(zip(texts, labels.tolist(), strict=True)))
    task = RegressionTask()
    task.fit_targets(list(labels[:48]))
    train, test = (labelled(p, task).scored(table) for p in (samples[:48], samples[48:]))
    name = "embedding_zero_shot"
    assert name not in predictions_of(train, [test], task)  # without a model
    train = replace(train, embedder=Embedding())
    found = np.array(predictions_of(train, [test], task)[name][0])
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found, closed_form(columns[:48], labels[:48], columns[48:]), rtol=1e-8
    )
    assert np.corrcoef(found, labels[48:])[0, 1] > 0.8
    assert BASELINES[name]().described(task) == "ridge on embedding and zero-shot score"
    bare = [replace(part, scores=None) for part in (train, test)]
    assert name not in predictions_of(bare[0], bare[1:], task)


def test_samples_without_a_zero_shot_score() -> None:
    table = SubstitutionTable("ACD", np.zeros((3, 20)))
    part = labelled(additive(30, 0), RegressionTask())
    assert part.scored(None).scores is None
    assert part.scored(table).scores is None  # of another length
    assert labelled(sequences([("ACA", 1.0)]), RegressionTask()).scored(table).scores is not None


def test_those_of_numbers_of_sequences() -> None:
    train, test = additive(300, 0), additive(50, 1)
    predicted = found(train, test, RegressionTask())
    assert set(predicted) == {"mean", "composition", "one_hot", "neighbour"}
    truth = np.array([s.target for s in test])
    mean = np.mean([s.target for s in train])
    assert np.array(predicted["mean"]) == pytest.approx(np.full(50, mean))
    # the labels are linear in one-hot columns and not in the composition
    assert np.array(predicted["one_hot"]) == pytest.approx(truth, abs=0.05)
    assert np.corrcoef(predicted["composition"], truth)[0, 1] < 0.9


def test_labels_with_gaps_are_learnt_where_they_are_known() -> None:
    """Each row lacks one of two targets: every baseline still predicts both."""
    train = [
        replace(s, target=[s.target, math.nan] if i % 2 else [math.nan, -s.target])
        for i, s in enumerate(additive(300, 0))
    ]
    test = additive(50, 1)
    truth = np.array([s.target for s in test])
    pairs = [replace(s, target=[s.target, -s.target]) for s in test]
    predicted = found(train, pairs, RegressionTask(shape=(2,)))
    assert set(predicted) == {"mean", "composition", "one_hot", "neighbour"}
    assert np.stack(predicted["one_hot"]) == pytest.approx(np.stack([truth, -truth], 1), abs=0.1)
    assert all(np.isfinite(np.stack(rows)).all() for rows in predicted.values())
    # the gaps of one target do not change the other
    odd = found(
        [replace(s, target=s.target[0]) for s in train[1::2]], test, RegressionTask()
    )  # fmt: skip
    for name, rows in predicted.items():
        assert np.stack(rows)[:, 0] == pytest.approx(np.array(odd[name])), name


def test_a_target_without_labels_is_undefined() -> None:
    train = [replace(s, target=[s.target, math.nan]) for s in additive(30, 0)]
    predicted = found(train, train, RegressionTask(shape=(2,)))
    for name, rows in predicted.items():
        assert np.isfinite(np.stack(rows)).all(0).tolist() == [True, False], name


def test_wide_one_hot_features_take_seconds_and_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows and columns above a limit are never made dense, and predict as well."""
    train, test = additive(300, 0), additive(50, 1)
    exact = found(train, test, RegressionTask())["one_hot"]
    monkeypatch.setattr(estimators, "MOST_EXACT", 10)
    monkeypatch.setattr(one_hot, "MOST_DENSE", 0)
    monkeypatch.setattr("scipy.sparse.csr_matrix.toarray", None)
    quick = found(train, test, RegressionTask())["one_hot"]
    assert np.array(quick) == pytest.approx(np.array(exact), abs=0.05)


def test_a_duplicate_decides_alone_and_lengths_may_differ() -> None:
    train = sequences([("MKVLAA", 1.0), ("ACDEFG", 5.0), ("WWWW", 9.0)])
    predicted = found(train, sequences([("ACDEFG", 0.0), ("wwww", 0.0)]), RegressionTask())
    assert np.array(predicted["neighbour"]) == pytest.approx([5.0, 9.0])
    assert "one_hot" not in predicted


def test_those_of_classes_give_probabilities_of_all_classes() -> None:
    train = sequences([("AAAA", "x"), ("AAAC", "x"), ("DDDD", "y"), ("DDDE", "y"), ("AACC", "x")])
    predicted = found(train, train, MulticlassTask(classes=["w", "x", "y"]))
    assert predicted["mean"][0] == pytest.approx([0, 0.6, 0.4])
    for name, rows in predicted.items():
        assert np.stack(rows).shape == (5, 3), name
        assert np.stack(rows).sum(1) == pytest.approx(1), name
    assert [row.argmax() for row in predicted["one_hot"]] == [1, 1, 2, 2, 1]


def test_any_number_of_classes_at_once() -> None:
    train = sequences([("AAAA", "x"), ("AADD", "x;y"), ("DDDD", "y"), ("CCCC", [])])
    predicted = found(train, train, MultilabelTask(classes=["x", "y"]))
    assert predicted["mean"][0] == pytest.approx([0.5, 0.5])
    rows = np.stack(predicted["one_hot"])
    assert rows.shape == (4, 2)
    assert (rows[:, 0] > 0.5).tolist() == [True, True, False, False]


def test_one_class_alone_is_predicted_as_such() -> None:
    train = sequences([("AAAA", "no"), ("AAAC", "no")])
    predicted = found(train, train, BinaryTask(classes=["no", "yes"]))
    assert predicted["composition"][0].tolist() == [1, 0]


def test_labels_of_residues() -> None:
    """A residue is H after an A, E elsewhere: the window sees it, the majority does not."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDE"), 30)) for _ in range(60)]
    pairs = [(t, "".join("H" if i and t[i - 1] == "A" else "E" for i in range(30))) for t in texts]
    task = MulticlassTask(classes=["E", "H"], level="residue")
    predicted = found(sequences(pairs[:50]), sequences(pairs[50:]), task)
    assert set(predicted) == {"mean", "window"}
    said = ["".join("EH"[i] for i in np.asarray(row).argmax(1)) for row in predicted["window"]]
    assert said == [label for _, label in pairs[50:]]
    assert np.asarray(predicted["mean"][0]).shape == (30, 2)


def test_contacts_by_distance_along_the_chain() -> None:
    near = np.abs(np.subtract.outer(range(8), range(8))) == 2
    train = [Sample(id="a", sequence="A" * 8, target=near.astype(float))]
    test = [Sample(id="b", sequence="A" * 12, target=np.zeros((12, 12)))]
    predicted = found(train, test, ContactTask(min_separation=1))
    assert set(predicted) == {"separation"}
    (shares,) = predicted["separation"]
    assert shares.shape == (12, 12)
    assert (shares[0, 2], shares[0, 3], shares[5, 3]) == (1, 0, 1)


def test_energies_of_elements() -> None:
    atoms = pytest.importorskip("ase").Atoms
    energies = {"H": -1.0, "C": -7.0, "O": -4.0}

    def sample(formula: str) -> Sample:
        molecule = atoms(formula, positions=np.zeros((len(atoms(formula)), 3)))
        energy = sum(energies[s] for s in molecule.get_chemical_symbols())
        return Sample(id=formula, atoms=molecule, target={"energy": energy})

    train, test = [sample(f) for f in ("CH4", "H2O", "CO2", "C2H6")], [sample("CH4O")]
    predicted = found(train, test, EnergyTask())
    (row,) = predicted["elements"]
    assert (row[N_ATOMS], row[ENERGY]) == pytest.approx((6, -15))
    assert row[FORCES:].tolist() == [0.0] * 18
    numbers = found(train, test, RegressionTask())
    assert numbers["elements"] == pytest.approx([-15])


def test_counts_at_an_interface() -> None:
    """Four residues, two per chain: K1 of A touches D1 of B, and nothing else touches."""
    protein = Protein.from_sequence("KADL")
    positions, mask = np.zeros((4, 37, 3), np.float32), np.zeros((4, 37), np.float32)
    mask[:, CA] = 1
    positions[:, CA, 0] = [0, 50, 5, 100]
    two = Protein(
        name="x", aatype=protein.aatype, atom_positions=positions, atom_mask=mask,
        b_factors=mask, residue_index=protein.residue_index,
        chain_index=np.array([0, 0, 1, 1]), chain_ids=("A", "B"),
    )  # fmt: skip
    found = np.expm1(counts(two))
    assert found.tolist() == pytest.approx([2, 0, 0, 0, 0, 0, 2, 2, 0, 4, 2])


def test_statistics_of_series() -> None:
    values = np.array([[1.0, 5.0], [2.0, 0.0], [3.0, 7.0]], np.float32)
    mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
    sample = Sample(id="a", features={"timeseries": values, "mask": mask}, target=0.0)
    first, second, length = np.split(summary(sample), [8, 16])
    assert first == pytest.approx([2, np.sqrt(2 / 3), 1, 3, 1, 3, 1, 1])
    assert second == pytest.approx([6, 1, 5, 7, 5, 7, 1, 2 / 3])
    assert length == pytest.approx([np.log(4)])


def test_rows_are_limited_and_those_without_labels_left_out() -> None:
    task = RegressionTask()
    samples = sequences([("MKV", float(i)) for i in range(20)] + [("MKV", None)])
    assert len(labelled(samples, task)) == 20
    few = labelled(samples, task, most=5)
    assert len(few) == 5
    assert [s.id for s in few.samples] == [s.id for s in labelled(samples, task, most=5).samples]


def test_one_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Baseline):
        name = "failing"
        title = "failing"

        def predict(self, train: Any, others: Any, task: Any) -> Any:
            raise ValueError("no luck")

    BASELINES["failing"] = Failing
    try:
        predicted = found(additive(30, 0), additive(5, 1), RegressionTask())
    finally:
        del BASELINES._entries["failing"]
    assert "one_hot" in predicted
    assert "failing" not in predicted
    assert "The baseline 'failing' failed and is left out: no luck" in caplog.text

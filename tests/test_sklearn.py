"""Estimators of scikit-learn: its own checks on series, and its tools on every other input."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from pdb_text import pdb_chain
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from tiny import PET_TINY, build_atoms
from torch.utils.data import DataLoader

from molfun import LoRAFinetune, MolfunStructureModel, Sample, SequenceDataset
from molfun.data import SampleDataset
from molfun.errors import ConfigError, DataError
from molfun.sklearn import MolfunClassifier, MolfunRegressor

ENCODER = {"name": "transformer", "d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.0}
FULL = {"name": "full", "lr": 1e-2, "lr_head": 1e-2}
NOT_APPLICABLE = {
    # of the checks that a table of numbers can ask; one epoch and one layer keep them quick
    "check_methods_subset_invariance": "float32 products depend on the batch in their last bits",
    "check_regressors_train": "one epoch does not fit; it is run with twelve below",
    "check_classifiers_train": "one epoch does not fit; it is run with twelve below",
    "check_sample_weight_equivalence_on_dense_data": "repeated rows make other batches and steps",
}


def series_model(cls: type, **settings: Any) -> Any:
    return cls("timeseries", config=ENCODER, strategy=FULL, device="cpu", **settings)


def sequences_model(cls: type = MolfunRegressor, **settings: Any) -> Any:
    return cls("esm2_tiny", **{"strategy": "head_only", "epochs": 2, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 4 + i % 4)) for i in range(16)]


@pytest.fixture(scope="module")
def numbers(texts: list[str]) -> np.ndarray:
    return np.array([text.count("A") + 0.1 * len(text) for text in texts])


@pytest.mark.slow
@pytest.mark.parametrize("cls", [MolfunRegressor, MolfunClassifier])
@pytest.mark.filterwarnings("ignore:y has infrequent unique values:UserWarning")
def test_what_scikit_learn_checks(cls: type) -> None:
    found = estimator_checks.check_estimator(
        series_model(cls, epochs=1, batch_size=64),
        expected_failed_checks=NOT_APPLICABLE,
        on_fail=None,
        on_skip=None,
    )
    by_status: dict[str, set[str]] = {}
    for one in found:
        by_status.setdefault(one["status"], set()).add(one["check_name"])
    assert not by_status.get("failed"), by_status["failed"]
    # data in arrays of other libraries, for estimators that declare that they take them
    assert by_status["skipped"] == {"check_array_api_input"}
    assert len(by_status["passed"]) >= 45


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore")  # of the checks themselves, on labels in a column
def test_it_learns_what_scikit_learn_asks() -> None:
    for cls, check in (
        (MolfunRegressor, estimator_checks.check_regressors_train),
        (MolfunClassifier, estimator_checks.check_classifiers_train),
    ):
        check(cls.__name__, series_model(cls, epochs=12, batch_size=16))


def test_parameters_reach_into_the_strategy() -> None:
    model = sequences_model(strategy=LoRAFinetune(rank=2))
    assert model.get_params()["strategy__rank"] == 2
    same = clone(model).set_params(strategy__rank=4, epochs=3)
    assert same.strategy == LoRAFinetune(rank=4)
    assert (same.epochs, model.strategy.rank) == (3, 2)
    both = model.set_params(strategy="head_only", strategy__lr=0.5)
    assert both.get_params()["strategy__lr"] == 0.5
    with pytest.raises(ConfigError, match=r"rate.*lr"):
        model.set_params(strategy__rate=1.0)
    with pytest.raises(ConfigError, match=r"strategy__lr: the strategy 'auto' is chosen in fit"):
        MolfunRegressor().set_params(strategy__lr=1.0)
    with pytest.raises(ValueError, match="Invalid parameter 'epoch'"):
        model.set_params(epoch=1)
    with pytest.raises(ConfigError, match="strategy must be a name, a strategy or its settings"):
        sequences_model(strategy=3).fit(["MKV", "ACD"], [1.0, 2.0])


def test_tools_of_scikit_learn_on_sequences(texts: list[str], numbers: np.ndarray) -> None:
    for data in (texts, np.array(texts), pd.Series(texts, index=range(5, 21))):
        scores = cross_val_score(sequences_model(), data, numbers, cv=2, error_score="raise")
        assert scores.shape == (2,)
        assert np.isfinite(scores).all()
    upper = FunctionTransformer(lambda rows: [row.upper() for row in rows])
    search = GridSearchCV(
        make_pipeline(upper, sequences_model()),
        {"molfunregressor__strategy__lr": [1e-9, 3e-2], "molfunregressor__epochs": [4]},
        cv=2,
        error_score="raise",
    )
    search.fit([text.lower() for text in texts], numbers)
    assert search.best_params_["molfunregressor__strategy__lr"] == 3e-2
    best = search.best_estimator_[-1]
    assert best.model_.strategy.lr == 3e-2
    assert len(best.history_) == best.n_iter_ == 4
    assert not hasattr(best, "n_features_in_")


def test_folds_share_the_outputs_of_a_frozen_backbone(
    texts: list[str], numbers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from molfun.backbones.esm2 import ESM2Backbone

    computed: list[str] = []
    forward = ESM2Backbone.forward

    def counted(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        computed.extend(["sample"] * len(batch["tokens"]))
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(ESM2Backbone, "forward", counted)
    model = sequences_model(cache_dir=tmp_path, cache="disk")
    model.fit(texts, numbers)
    first = len(computed)
    assert first >= len(texts)
    computed.clear()
    clone(model).set_params(strategy__lr=1e-2).fit(texts[::2], numbers[::2])
    assert not computed


def test_a_pickle_holds_a_checkpoint_and_no_module(
    texts: list[str], numbers: np.ndarray, tmp_path: Path
) -> None:
    model = sequences_model(strategy="lora").fit(texts, numbers)
    expected = model.predict(texts)
    assert expected.shape == (16,)
    content = pickle.dumps(model)
    names = {arg for op, arg, _ in pickletools.genops(content) if isinstance(arg, str)}
    assert "molfun.sklearn.estimators" in names
    assert not any(name.startswith(("torch", "molfun.backbones")) for name in names)
    again = pickle.loads(content)
    assert np.array_equal(again.predict(texts), expected)
    assert repr(again.history_) == repr(model.history_)  # with NaN
    joblib.dump(model, tmp_path / "model.joblib")
    assert np.array_equal(joblib.load(tmp_path / "model.joblib").predict(texts), expected)
    # what a fitted estimator holds is a model like any other
    model.model_.save(tmp_path / "checkpoint")
    plain = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert np.array_equal(plain.predict(texts)["prediction"].numpy(), expected)
    unfitted = pickle.loads(pickle.dumps(sequences_model()))
    assert not hasattr(unfitted, "model_")


def test_classes_keep_their_type(texts: list[str]) -> None:
    labels = np.array([3, 7, 11, 7] * 4)
    model = sequences_model(MolfunClassifier).fit(texts, labels)
    assert model.classes_.tolist() == [3, 7, 11]
    probabilities = model.predict_proba(texts)
    assert np.allclose(probabilities.sum(1), 1)
    assert np.array_equal(model.predict(texts), model.classes_[probabilities.argmax(1)])
    assert model.model_.heads[0].task.classes == ["3", "7", "11"]
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(texts).dtype == labels.dtype
    weighed = sequences_model(MolfunClassifier, task_config={"class_weight": "balanced"})
    assert not np.array_equal(weighed.fit(texts, labels).predict_proba(texts), probabilities)
    with pytest.raises(DataError, match=r"y has only one class, 3; two are needed"):
        sequences_model(MolfunClassifier).fit(texts[:2], [3, 3])


def test_validation_keeps_equal_sequences_together(texts: list[str], numbers: np.ndarray) -> None:
    model = sequences_model(val_fraction=0.25).fit([*texts, *texts], [*numbers, *numbers])
    assert np.isfinite(model.history_[0]["val_loss"])
    train, val = model._parts(model._dataset([*texts, *texts], [0.0] * 32, reset=False), None)
    seen = [{part.dataset[i].sequence for i in part.indices} for part in (train, val)]
    assert len(val) == 8
    assert not seen[0] & seen[1]
    one = r"^val_fraction=0.25 leaves nothing to train on: X has 1 distinct input, and equal ones"
    with pytest.raises(DataError, match=one):
        sequences_model(val_fraction=0.25).fit([texts[0]] * 4, numbers[:4])


def test_structures_by_id_samples_and_atoms(tmp_path: Path) -> None:
    for i, name in enumerate(["1abc", "2abc", "3abc"]):
        lines = [*pdb_chain(["ALA", "GLY", "LEU", "LYS"] * (i + 1)), "END", ""]
        (tmp_path / f"{name}.pdb").write_text("\n".join(lines))
    options = {"strategy": "head_only", "epochs": 1, "device": "cpu"}
    model = MolfunRegressor(
        "openfold", config="tiny", head="affinity", folder=tmp_path, max_length=6, **options
    )
    ids = ["1abc", "2abc", "3abc", "1abc"]
    predicted = model.fit(ids, [1.0, 2.0, 3.0, 1.5]).predict(ids)
    assert predicted[0] == predicted[3]
    with pytest.raises(DataError, match=r"1 of 2 structures are missing in .*\n  9abc"):
        model.predict(["1abc", "9abc"])

    # the label is y, whatever the samples hold
    samples = [Sample(id=t, sequence=t, target="x") for t in ("MKVL", "ACDE", "GGSA", "MKAA")]
    by_sample = sequences_model().fit(samples, [1.0, 2.0, 3.0, 4.0])
    by_text = sequences_model().fit([s.sequence for s in samples], [1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(
        by_sample.predict(samples), by_text.predict(["MKVL", "ACDE", "GGSA", "MKAA"])
    )
    assert cross_val_score(sequences_model(), samples, [1.0, 2.0, 3.0, 4.0], cv=2).shape == (2,)

    atoms = build_atoms(4)
    energies = [sample.target["energy"] for sample in atoms]
    pet = MolfunRegressor("pet", config=PET_TINY, **options).fit(atoms, energies)
    assert pet.predict(atoms).shape == (4,)


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.model_.parameters()])


def test_weights_are_those_of_a_weighted_column(
    texts: list[str], numbers: np.ndarray, tmp_path: Path
) -> None:
    weights = np.arange(16) % 3
    table = pd.DataFrame({"sequence": texts, "target": numbers, "n": weights})
    table.to_csv(tmp_path / "rows.csv", index=False)
    data = SequenceDataset.from_csv(tmp_path / "rows.csv").weighted_by("n")
    known = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=data.collate_fn)
    known.fit(loader, strategy="head_only", epochs=2)
    model = sequences_model(batch_size=8).fit(texts, numbers, sample_weight=weights)
    expected = torch.cat([p.detach().flatten() for p in known.parameters()])
    assert torch.equal(weights_of(model), expected)
    plain = sequences_model(batch_size=8).fit(texts, numbers)
    even = sequences_model(batch_size=8).fit(texts, numbers, np.full(16, 3.0))
    assert torch.equal(weights_of(even), weights_of(plain))
    assert not torch.equal(weights_of(model), weights_of(plain))
    # the fit's own column is none that tables must have, and samples may bring one of that name
    model.model_.save(tmp_path / "model")
    assert "sample_weight" not in (tmp_path / "model" / "meta.json").read_text()
    rows = [Sample(id=t, sequence=t, metadata={"sample_weight": 9}) for t in texts]
    again = sequences_model(batch_size=8).fit(rows, numbers, weights)
    assert torch.equal(weights_of(again), weights_of(model))


def test_weights_go_with_their_rows(texts: list[str], numbers: np.ndarray) -> None:
    """Into the training part, and through the tools of scikit-learn."""
    weights = np.where(numbers > np.median(numbers), 1.0, 0.01)
    high, low = (
        sequences_model(epochs=30, strategy=dict(FULL), val_fraction=fraction)
        .fit(texts, numbers, sample_weight=own)
        .predict(texts)
        .mean()
        for own in (weights, 1.01 - weights)
        for fraction in (0.25,)
    )
    assert high > low
    found = cross_val_score(
        sequences_model(), texts, numbers, cv=2, params={"sample_weight": weights}
    )
    assert found.tolist() != cross_val_score(sequences_model(), texts, numbers, cv=2).tolist()
    series = np.random.default_rng(0).normal(size=(16, 5, 2))
    fitted = [
        weights_of(series_model(MolfunRegressor, epochs=2).fit(series, numbers, own))
        for own in (None, np.ones(16), weights)
    ]
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])
    kinds = np.where(numbers > 1, "a", "b")
    fitted = [
        weights_of(sequences_model(MolfunClassifier).fit(texts, kinds, own))
        for own in (None, np.ones(16), weights)
    ]
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1.0], r"inconsistent numbers of samples|sample_weight.shape == \(1,\)"),
        ([1.0, -1.0], "Negative values in data passed to `sample_weight`"),
        ([1.0, float("nan")], "sample_weight contains NaN"),
        ([[1.0], [2.0]], "Sample weights must be 1D array"),
        ([0.0, 0.0], "must contain at least one non-zero number|All weights in column"),
    ],
)
def test_what_cannot_be_weights(weights: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sequences_model().fit(["MKV", "ACD"], [1.0, 2.0], weights)


def test_a_loss_that_ranks_takes_no_weights() -> None:
    model = sequences_model(task_config={"loss": "spearman"})
    with pytest.raises(ConfigError, match="the loss 'spearman' compares them with each other"):
        model.fit(["MKV", "ACD"], [1.0, 2.0], [1.0, 2.0])


def test_several_columns_are_learned_by_one_head(
    texts: list[str], numbers: np.ndarray, tmp_path: Path
) -> None:
    y = np.stack([numbers, 100 - 3 * numbers, np.arange(16.0)], axis=1)
    y[::5, 1] = np.nan
    model = sequences_model(epochs=3).fit(texts, y)
    found = model.predict(texts)
    assert (found.shape, found.dtype) == ((16, 3), np.float64)
    assert model.target_names_ == ["y0", "y1", "y2"]
    # that of a multitarget task on the same labels
    known = MolfunStructureModel(
        "esm2_tiny", task="multitarget", task_config={"targets": ["a", "b", "c"]}, device="cpu"
    )
    rows = [Sample(id=t, sequence=t, target=one.tolist()) for t, one in zip(texts, y, strict=True)]
    loader = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=SampleDataset.collate_fn)
    model = sequences_model(epochs=3, batch_size=16).fit(texts, y)
    known.fit(loader, strategy="head_only", epochs=3)
    assert np.array_equal(model.predict(texts), known.predict(rows)["prediction"].numpy())
    # each column is in units of its own
    assert abs(model.predict(texts).mean(0) - np.nanmean(y, 0)).max() < 20
    # a score of the labels that are there
    there = ~np.isnan(y[:, 1])
    found = model.predict(texts)
    each = [
        r2_score(y[:, 0], found[:, 0]),
        r2_score(y[there, 1], found[there, 1]),
        r2_score(y[:, 2], found[:, 2]),
    ]
    assert model.score(texts, y) == pytest.approx(np.mean(each))
    few = y[:3].copy()
    few[:, 1] = [np.nan, np.nan, 1.0]  # one label alone has no R2
    each = [r2_score(few[:, i], found[:3, i]) for i in (0, 2)]
    assert model.score(texts[:3], few) == pytest.approx(np.mean(each))
    with pytest.raises(DataError, match="No column of y has two labels or more in these 3 rows"):
        model.score(texts[:3], np.full((3, 3), np.nan))
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(texts), found)
    assert again.target_names_ == model.target_names_
    named = sequences_model().fit(texts, pd.DataFrame(y, columns=["kd", "tm", "n"]))
    assert named.model_.task.targets == named.target_names_ == ["kd", "tm", "n"]
    assert sequences_model().fit(texts, y[:, 0]).predict(texts).shape == (16,)
    assert clone(model).fit(texts, numbers).target_names_ == []


def test_several_columns_with_weights_folds_and_series(
    texts: list[str], numbers: np.ndarray
) -> None:
    y = np.stack([numbers, -numbers], axis=1)
    weights = np.arange(16) % 2
    model = sequences_model().fit(texts, y, weights)
    assert not torch.equal(weights_of(model), weights_of(sequences_model().fit(texts, y)))
    assert cross_val_score(sequences_model(), texts, y, cv=2).shape == (2,)
    series = np.random.default_rng(0).normal(size=(16, 5, 2))
    y[3, 1] = np.nan
    fitted = series_model(MolfunRegressor, epochs=1, val_fraction=0.25).fit(series, y)
    assert fitted.predict(series).shape == (16, 2)


@pytest.mark.parametrize(
    ("y", "text"),
    [
        ([[1.0, np.nan], [2.0, np.nan]], r"no label \(NaN\) in any row of y1. Leave the column"),
        ([[1.0, 2.0], [np.nan, np.nan]], r"in any column in 1 of 2 rows: 1. Leave these samples"),
        ([[1.0, np.inf], [2.0, 3.0]], "y contains infinity"),
        ([["a", "b"], ["c", "d"]], "could not convert string"),
        (np.zeros((0, 2)), "y is empty"),
        ([[[1.0], [2.0]], [[1.0], [2.0]]], "Found array with dim 3|should be a 1d array"),
    ],
)
def test_columns_that_cannot_be_learned(y: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sequences_model().fit(["MKV", "ACD"], y)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"y has several columns of one name: a\. Rename them"):
        sequences_model().fit(["MKV", "ACD"], pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))


@pytest.mark.parametrize(
    ("X", "y", "text"),
    [
        ([], [1.0], r"^X is empty"),
        (["MKV"], [], r"^y is empty"),
        ("MKV", [1.0], r"^X is 'MKV', not a list of samples"),
        (3, [1.0], r"^X is '3', not a list of samples"),
        (["MKV", float("nan")], [1.0, 2.0], r"row 1: missing \(NaN\)"),
        (["MKV", 7], [1.0, 2.0], r"row 1: int"),
        (np.zeros((2, 3)), [1.0, 2.0], r"^X is an array of shape \(2, 3\)"),
        (["MKV", "ACD"], [1.0, float("nan")], r"^y has no label \(NaN\) in 1 of 2 rows: 1"),
        (["MKV", "ACD"], [1.0, float("inf")], r"y contains infinity"),
        (["MKV", "ACD"], ["a", "b"], r"could not convert string"),
        (["MKV", "ACD"], [1.0], r"inconsistent numbers of samples"),
        (["MKV", "ACD"], None, r"requires y to be passed"),
    ],
)
def test_what_cannot_be_used_is_named(X: Any, y: Any, text: str) -> None:  # noqa: N803
    with pytest.raises(ValueError, match=text):
        sequences_model().fit(X, y)


def test_before_fit_and_with_other_columns() -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        sequences_model().predict(["MKV"])
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(6, 4)), columns=list("abcd"))
    model = series_model(MolfunRegressor, epochs=1).fit(frame, range(6))
    assert model.n_features_in_ == 4
    assert model.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match=r"feature names should match.*\n.*\n- d"):
        model.predict(frame.iloc[:, :3].set_axis(list("abc"), axis=1))
    cube = rng.normal(size=(6, 5, 2))
    assert series_model(MolfunRegressor, epochs=1).fit(cube, range(6)).predict(cube).shape == (6,)

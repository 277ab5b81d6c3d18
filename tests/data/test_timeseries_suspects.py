"""Columns that are no measurements become features only where the user names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from molfun.data import TimeSeriesDataset
from molfun.errors import ConfigError, TableError

N, T = 12, 6


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    series, times = np.repeat(np.arange(N), T), np.tile(np.arange(T), N)
    return pd.DataFrame(
        {"id": [f"s{i}" for i in series], "time": times, "hr": rng.normal(size=N * T),
         "SpO2": rng.integers(90, 100, N * T), "target": series % 2}
    )  # fmt: skip


COLUMNS: dict[str, tuple[str, Callable[[pd.DataFrame], object], str]] = {
    "no name": ("", lambda f: range(len(f)), "'column_1' is named like a row number or id"),
    "Unnamed: 0": ("Unnamed: 0", lambda f: f.hr, "is named like a row number or id"),
    "fold": ("fold", lambda f: f.hr, "is named like a split"),
    "second outcome": ("outcome_28d", lambda f: f.hr, ""),
    "outcome": ("Outcome 2", lambda f: f.hr, "is named like a label"),
    "y": ("y", lambda f: f.hr, "is named like a label"),
    "group": ("patient_id", lambda f: f.hr, "is named like a row number or id"),
    "counter": ("m", lambda f: range(len(f)), "counts rows"),
    "shuffled": ("m", lambda f: np.random.default_rng(1).permutation(len(f)), "counts rows"),
    "filtered": ("m", lambda f: np.arange(len(f)) ** 2, "counts rows"),
    "time": ("m", lambda f: f.time / 3600, "follows the time column"),
    "step": ("m", lambda f: f.groupby("id").cumcount() + 1, "follows the time column"),
    "label": ("m", lambda f: f.target, "holds one value per series"),
    "negated": ("m", lambda f: 1 - f.target, "holds one value per series"),
    "static": ("m", lambda f: f.id.str[1:].astype(int) // 3, "holds one value per series"),
    "shifted": ("m", lambda f: f.target.shift(1).fillna(0), "tells the label"),
    "at the end": ("m", lambda f: f.target * (f.time == T - 1), "tells the label"),
    "an event": ("m", lambda f: 3 * f.target * (f.time == 2), "tells the label"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_may_be_no_measurement(tmp_path: Path, frame: pd.DataFrame, kind: str) -> None:
    name, make, reason = COLUMNS[kind]
    path = tmp_path / "a.csv"
    values = list(make(frame))  # type: ignore[call-overload]  # a column
    frame.insert(0, name, values)
    frame.to_csv(path, index=False)
    if not reason:
        assert TimeSeriesDataset.from_csv(path).feature_names == [name, "hr", "SpO2"]
        return
    with pytest.raises(TableError) as caught:
        TimeSeriesDataset.from_csv(path)
    text = str(caught.value)
    assert "has 1 column that may be no measurement:\n" in text
    assert reason in text
    assert "Name the features: --feature-columns hr,SpO2, or feature_columns=['hr', 'SpO2']" in text
    data = TimeSeriesDataset.from_csv(path, feature_columns=["hr", "SpO2"])
    assert data.feature_names == ["hr", "SpO2"]
    column = name or "column_1"
    assert TimeSeriesDataset.from_csv(path, feature_columns=[column]).feature_names == [column]


def test_regression_labels_on_a_line(tmp_path: Path, frame: pd.DataFrame) -> None:
    labels = np.repeat(np.random.default_rng(2).normal(size=N), T)
    frame = frame.assign(target=labels, m=np.where(frame.time == 3, -2 * labels, np.nan))
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(TableError, match="'m' tells the label"):
        TimeSeriesDataset.from_csv(tmp_path / "a.csv")


def test_measurements_are_none_of_that(tmp_path: Path, frame: pd.DataFrame) -> None:
    rng = np.random.default_rng(3)
    n = len(frame)
    frame = frame.assign(
        NO2=rng.normal(size=n), cv1=rng.normal(size=n), flag=rng.integers(0, 2, n),
        drift=frame.groupby("id").hr.cumsum(), lab=np.where(frame.time % 3, np.nan, frame.hr),
        nothing=0, weight=np.where(frame.time, np.nan, rng.normal(size=n)),
        x=rng.normal(size=n), y=rng.normal(size=n), z=rng.normal(size=n),
    )  # fmt: skip
    frame.to_csv(tmp_path / "a.csv", index=False)
    names = TimeSeriesDataset.from_csv(tmp_path / "a.csv").feature_names
    assert names == ["hr", "SpO2", "NO2", "cv1", "flag", "drift", "lab", "nothing", "weight",
                     "x", "y", "z"]  # fmt: skip


def test_the_index_of_a_parquet_file(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.set_index(pd.Index(np.arange(len(frame)) + 0.5)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TableError, match="'__index_level_0__' is named like a row number"):
        TimeSeriesDataset.from_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("column", "reason"),
    [("fold", "is named like a split"), ("m", "holds one value per series"), ("t", "follows the")],
)
def test_wide_tables(tmp_path: Path, frame: pd.DataFrame, column: str, reason: str) -> None:
    wide = frame.pivot(index="id", columns="time", values="hr").add_prefix("hr_")
    wide["target"] = frame.groupby("id").target.first()
    values = {"fold": lambda t: np.arange(N) * t, "m": lambda t: wide.target, "t": lambda t: t / 2}
    for t in range(T):
        wide[f"{column}_{t}"] = values[column](t)
    wide.reset_index().to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(TableError, match=f"'{column}' {reason}"):
        TimeSeriesDataset.from_csv(tmp_path / "a.csv", layout="wide")
    data = TimeSeriesDataset.from_csv(tmp_path / "a.csv", layout="wide", feature_columns=["hr"])
    assert data.feature_names == ["hr"]


def _short(tmp_path: Path, **columns: list[float]) -> list[str]:
    n = len(next(iter(columns.values())))
    frame = pd.DataFrame({"id": ["a"] * 3 + ["b"] * (n - 3), "time": [*range(3), *range(n - 3)],
                          **columns})  # fmt: skip
    frame.assign(target=[0] * 3 + [1] * (n - 3)).to_csv(tmp_path / "a.csv", index=False)
    return TimeSeriesDataset.from_csv(tmp_path / "a.csv").feature_names


@pytest.mark.parametrize(
    "names",
    ["x,y", "X,Y,Z", "x1,y1,z1,x2,y2,z2", "x_1,y_1", "body_mass_index", "bispectral_index", "steps",
     "number", "rank", "order", "rmsd,rg,n_contacts,q", "od600,rfu,response", "temperature,SpO2"],
)  # fmt: skip
def test_names_of_measurements(tmp_path: Path, names: str) -> None:
    rng = np.random.default_rng(5)
    columns = {name: rng.normal(size=7).tolist() for name in names.split(",")}
    assert _short(tmp_path, **columns) == names.split(",")


@pytest.mark.parametrize(
    "name",
    ["index", "idx", "row_index", "index_col", "sample_idx", "level_0", "__index_level_0__",
     "Unnamed: 0", "Unnamed: 0.1", "y2"],
)  # fmt: skip
def test_names_of_no_measurements(tmp_path: Path, name: str) -> None:
    values = [0.3, 0.1, 0.7, 0.2, 0.9, 0.4, 0.5]
    with pytest.raises(TableError, match="is named like a"):
        _short(tmp_path, x=values, **{name: values[::-1]})


@pytest.mark.parametrize(
    ("hr", "reason"),
    [([70, 72, 71, 74, 69], ""), ([60, 61, 63, 64, 66, 70], ""), ([68, 66, 64, 62, 60, 58], ""),
     ([70, 71, 72, 73, 74], ""), ([0, 1, 2, 3, 4, 5], "counts rows"),
     ([0, 1, 2, 0, 1, 2], "follows the time column"),
     ([1, 2, 3, 1, 2, 3], "follows the time column")],
)  # fmt: skip
def test_short_tables(tmp_path: Path, hr: list[float], reason: str) -> None:
    if reason:
        with pytest.raises(TableError, match=f"'hr' {reason}"):
            _short(tmp_path, hr=hr)
    else:
        assert _short(tmp_path, hr=hr) == ["hr"]


def test_one_series_that_rises(tmp_path: Path) -> None:
    n_steps = np.cumsum(np.random.default_rng(6).integers(1, 90, 30))
    frame = pd.DataFrame({"id": "a", "time": range(30), "walked": n_steps, "target": 1})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert TimeSeriesDataset.from_csv(tmp_path / "a.csv").feature_names == ["walked"]


def test_the_advice_can_be_pasted(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.rename(columns={"hr": "heart rate"}).assign(fold=frame.hr).to_csv(tmp_path / "a.csv")
    with pytest.raises(TableError) as caught:
        TimeSeriesDataset.from_csv(tmp_path / "a.csv")
    assert (
        "Name the features: --feature-columns 'heart rate,SpO2', or feature_columns=['heart rate', "
        "'SpO2'] in Python; add those of the above that are measurements."
    ) in str(caught.value)


REFUSED: dict[str, tuple[object, str]] = {
    "none": ([], "feature_columns is empty"),
    "no text": (" ", "feature_columns is empty"),
    "twice": (["hr", "SpO2", "hr"], "feature_columns names 'hr' more than once"),
    "label": (["hr", "target"], "names 'target', which is the column of the label"),
    "label alone": ("target", "names 'target', which is the column of the label"),
    "id": ("hr,id", "names 'id', which is the column of the id"),
    "a blank": ("hr,", "feature_columns holds '', which is no column's name"),
    "a number": ([3], "feature_columns holds 3, which is no column's name"),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", REFUSED)
def test_features_that_cannot_be_named(
    tmp_path: Path, frame: pd.DataFrame, kind: str, suffix: str
) -> None:
    names, message = REFUSED[kind]
    path = tmp_path / f"a{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    with pytest.raises(ConfigError, match=message):
        TimeSeriesDataset.from_csv(path, feature_columns=names)  # type: ignore[arg-type]
    if kind in ("none", "twice"):
        with pytest.raises(ConfigError, match=message):
            TimeSeriesDataset.from_csv(path, layout="wide", feature_columns=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [("fold", "is named like a split"), ("time", "is the column of the time"),
     ("subject", "is the column of the group"), ("hr", "")],
)  # fmt: skip
def test_named_features_with_another_meaning_are_said(
    tmp_path: Path, frame: pd.DataFrame, caplog: pytest.LogCaptureFixture, name: str, said: str
) -> None:
    frame.assign(fold=1, subject=frame.target).to_csv(tmp_path / "a.csv", index=False)
    data = TimeSeriesDataset.from_csv(
        tmp_path / "a.csv", feature_columns=f"SpO2, {name}", group_column="subject"
    )
    assert data.feature_names == ["SpO2", name]
    found = [r.getMessage() for r in caplog.records if "named in feature_columns" in r.getMessage()]
    assert len(found) == bool(said)
    assert not said or f"the feature {name!r}, named in feature_columns, {said}" in found[0]

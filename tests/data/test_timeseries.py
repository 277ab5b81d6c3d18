"""Time series: what is in the file is what the model gets, and no split parts a group."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch.utils.data import DataLoader

from molfun.data import (
    DataSplitter,
    LengthBatchSampler,
    TimeSeriesDataset,
    check_groups,
    double_well,
    open_timeseries,
)
from molfun.errors import ConfigError, DataError, MolfunError, TableError
from molfun.models.loaders import as_loader, data_identity, ids_of, samples_of, targets_of
from molfun.sample import SampleBatch
from molfun.tasks import MulticlassTask, MultilabelTask, RegressionTask

NAN = math.nan
ONE_FOLDER = [HealthCheck.function_scoped_fixture]
LONG = "id,time,x,z,target\n"
TS = "@problemName demo\n@univariate false\n@classLabel true a b\n@data\n"


def values_of(dataset: TimeSeriesDataset) -> list[np.ndarray]:
    """Series with NaN where nothing was observed."""
    return [
        np.where(sample.features["mask"], sample.features["timeseries"], np.nan)
        for sample in (dataset[i] for i in range(len(dataset)))
    ]


def assert_series(dataset: TimeSeriesDataset, expected) -> None:
    """The data set holds these series, as float32."""
    found = values_of(dataset)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other, np.float32))


def refused(make, *args, error=DataError, **options) -> str:
    with pytest.raises(error) as caught:
        make(*args, **options)
    return str(caught.value)


# Arrays


def test_the_smallest_data_set():
    data = TimeSeriesDataset.from_arrays([[[1, 2], [3, NAN]], [[5.0, 6.0]]], [0.5, None])
    sample = data[0]
    assert sample.features["timeseries"].dtype == np.float32
    assert sample.features["timeseries"].tolist() == [[1, 2], [3, 0]]
    assert sample.features["mask"].dtype == np.bool_
    assert sample.features["mask"].tolist() == [[True, True], [True, False]]
    assert (sample.id, sample.target, data[1].target) == ("series_1", 0.5, None)
    assert sample.metadata == {"group": "series_1", "start": 0}
    assert data.lengths.tolist() == [2, 1]
    assert (data.n_features, data.feature_names) == (2, ["feature_0", "feature_1"])
    assert np.isnan(data.targets).tolist() == [False, True]
    assert repr(data) == "TimeSeriesDataset(2 samples of 2 features from list)"


def test_an_array_of_all_series():
    values = np.arange(24.0).reshape(2, 4, 3)
    data = TimeSeriesDataset.from_arrays(
        values, ids=["p", "q"], groups=[7, 7], feature_names=["x", "y", "z"],
        metadata={"age": [40, 50], "site": ["a", "b"]},
    )  # fmt: skip
    assert_series(data, values)
    assert data.groups == ["7", "7"]
    assert data[1].metadata == {"age": 50, "site": "b", "group": "7", "start": 0}
    assert data.filter(min_age=45).ids == ["q"]
    assert data.feature_names == ["x", "y", "z"]


def test_one_feature_in_a_list():
    data = TimeSeriesDataset.from_arrays([[1.0, NAN, 3.0], [4.0]])
    assert_series(data, [[[1.0], [NAN], [3.0]], [[4.0]]])


def test_a_mask_hides_whatever_is_below_it():
    values = np.array([[[1.0, np.inf], [-999.0, 2.0]]])
    data = TimeSeriesDataset.from_arrays(values, mask=np.array([[[1, 0], [0, 1]]]))
    assert_series(data, [[[1.0, NAN], [NAN, 2.0]]])
    assert values[0, 0, 1] == np.inf


def test_float32_arrays_are_not_copied():
    values = np.zeros((100_000, 2), np.float32)
    data = TimeSeriesDataset.from_arrays([values], ids=["long"])
    windows = data.windows(50, stride=10)
    assert len(windows) == 9996
    assert all(np.shares_memory(windows._values(i), values) for i in (0, 5000, 9995))
    assert np.shares_memory(windows.subset([3, 4])._values(1), values)


def test_bad_arrays_come_in_one_error():
    bad = [
        np.zeros((4, 2)),
        np.zeros((0, 2)),
        np.full((3, 2), NAN),
        np.array([[0, 1], [1, -np.inf]]),
        np.zeros((3, 3)),
        np.array([["a", "b"]]),
        np.zeros((2, 2, 2)),
        np.array([[1e300, 1.0]]),
    ]
    text = refused(TimeSeriesDataset.from_arrays, bad, ids=[f"s{i}" for i in range(8)])
    assert "list has 7 bad samples:" in text
    assert "s1 has the shape (0, 2); expected (time, features), neither of them 0" in text
    assert "s2 has no observed value" in text
    assert "s3 has 1 value that float32 cannot hold, the first in frame 1, feature 1: -inf" in text
    assert "s4 has 3 features where the first series has 2" in text
    assert "s5 holds <U1, not numbers" in text
    assert "s6 has the shape (2, 2, 2)" in text
    assert "s7 has 1 value that float32 cannot hold, the first in" in text
    assert "frame 0, feature 0: 1e+300; write NaN where nothing was observed" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": [1]}, "2 samples, but 1 in labels"),
        ({"ids": ["a"], "groups": list("abc")}, "1 in ids, 3 in groups"),
        ({"mask": np.ones((1, 3, 2))}, "1 in mask"),
        ({"metadata": {"age": [1]}}, "1 in age"),
        ({"feature_names": ["x"]}, "1 feature names for 2 features"),
        ({"feature_names": ["x", "x"]}, "the feature 'x' comes more than once"),
    ],
)
def test_what_does_not_fit_the_series(options, reason):
    text = refused(TimeSeriesDataset.from_arrays, np.ones((2, 3, 2)), error=ConfigError, **options)
    assert reason in text


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (np.ones((3, 2)), {}, "timeseries has the shape (3, 2); expected (series, time, features)"),
        (np.ones((0, 3, 2)), {}, "there are no series"),
        (np.ones((1, 3, 2)), {"mask": np.ones((1, 3, 1))}, "a mask of the shape (3, 1) for values"),
        (np.ones((1, 3, 2)), {"mask": np.full((1, 3, 2), 2)}, "other values than True and False"),
        (np.ones((2, 3, 2)), {"ids": ["a", "a"]}, "the id 'a' comes more than once"),
        (np.ones((1, 3, 2)), {"ids": ["../a"]}, "the id '../a' is a path, not an id"),
        (np.ones((1, 3, 2)), {"metadata": {"start": [1]}}, "has a column 'start', a name that"),
    ],
)
def test_arrays_that_are_refused(values, options, reason):
    assert reason in refused(TimeSeriesDataset.from_arrays, values, **options)


# .ts


def test_a_ts_file(write):
    text = "# words\n\n" + TS + "1,2,3:0,?,-1e2:a\n# more\n4.5, nan :?,6:b\n"
    path = write("a.ts", text)
    data = TimeSeriesDataset.from_ts(path)
    assert_series(data, [[[1, 0], [2, NAN], [3, -100]], [[4.5, NAN], [NAN, 6]]])
    assert data.targets.tolist() == ["a", "b"]
    assert data[1].origin == "a.ts, line 9"
    packed = write("a.ts.gz", gzip.compress(text.encode()))
    assert_series(open_timeseries(packed), values_of(data))


@pytest.mark.parametrize(
    ("tags", "line", "target"),
    [
        ("@targetLabel true", "1,2:0.25", 0.25),
        ("@targetlabel true\n@classlabel false", "1,2:?", None),
        ("@classLabel false", "1,2", None),
        ("", "1,2", None),
        ("@classLabel true", "1,2:any name", "any name"),
    ],
)
def test_labels_of_ts_files(write, tags, line, target):
    path = write("a.ts", f"@univariate true\n{tags}\n@data\n{line}\n")
    data = TimeSeriesDataset.from_ts(path)
    assert_series(data, [[[1], [2]]])
    assert data[0].target == target


def test_time_stamps_put_the_dimensions_together(write, caplog):
    text = "@timeStamps true\n@dimension 2\n@classLabel true a\n@data\n"
    line = "(0,1),(2,3),(1,2):(2,30),(0,?),(4,50):a\n"
    data = TimeSeriesDataset.from_ts(write("a.ts", text + line))
    assert_series(data, [[[1, NAN], [2, NAN], [3, 30], [NAN, 50]]])
    assert "time steps are uneven in 1 series" in caplog.text


def test_dates_as_time_stamps(write):
    text = "@timeStamps true\n@dimension 2\n@classLabel true a\n@data\n"
    line = "(2024-05-01 12:00:00,1),(2024-05-01 12:00:30,2):(2024-05-01 12:00:30,5):a\n"
    data = TimeSeriesDataset.from_ts(write("a.ts", text + line))
    assert_series(data, [[[1, NAN], [2, 5]]])


def test_all_bad_lines_of_a_ts_file(write):
    lines = ["1,2:3,4:a", "1,2:a", "1,x:3,4:b", "1,2:3:a", "1,2:3,4:c", "1,inf:3,1_0:a", "?:?:a"]
    path = write("a.ts", TS + "\n".join(lines))
    text = refused(TimeSeriesDataset.from_ts, path)
    assert f"{path} has 7 faults:" in text
    assert "line 6: 1 dimension, expected 2" in text
    assert "line 7: dimension 1: 'x' is not a number" in text
    assert "line 8: dimensions of 1 and 2 values; pad them with ?" in text
    assert "line 9: the label 'c' is not in the header (a, b)" in text
    assert "line 10: dimension 1: 'inf' is not a finite number" in text
    assert "line 10: dimension 2: '1_0' is not a number" in text
    assert "line 11: no observed value" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@problemName x\n", "has no @data"),
        (TS, "has no series after @data"),
        ("id,time\n", "line 1: expected a line that begins with @ or # before @data, found 'id,t"),
        ("@clasLabel true a\n@data\n1:a", "line 1: Unknown tag '@clasLabel'"),
        ("@classLabel yes\n@data\n1:a", "line 1: expected true or false after @classLabel"),
        ("@dimension two\n@data\n1:a", "line 1: expected a number after @dimension"),
        ("@classLabel true a\n@targetLabel true\n@data\n1:a", "has both @classLabel true and"),
        ("@equalLength true\n@seriesLength 2\n@data\n1,2\n1,2,3", "line 5: 3 values per dimension"),
        ("@equalLength true\n@data\n1,2\n1", "line 4: 1 value per dimension, expected 2"),
        ("@timeStamps true\n@data\n1,2", "line 3: dimension 1: expected (time,value)"),
        (
            "@timeStamps true\n@data\n(1,2),(1,3)",
            "dimension 1: a time comes more than once",
        ),
        ("@timeStamps true\n@data\n(1,2),(noon,3)", "'noon' is no time: a number, or a date"),
        ("@targetLabel true\n@data\n1,2:high", "line 3: the label 'high' is not a number"),
    ],
)
def test_ts_files_that_are_refused(write, text, reason):
    path = write("a.ts", text)
    message = refused(TimeSeriesDataset.from_ts, path)
    assert str(path) in message
    assert reason in message


def test_a_ts_file_that_is_not_there(tmp_path):
    assert "No such file" in refused(TimeSeriesDataset.from_ts, tmp_path / "a.ts")


@pytest.fixture(scope="module")
def vowels(real_data) -> tuple[TimeSeriesDataset, TimeSeriesDataset]:
    """Train and test of JapaneseVowels."""
    paths = [real_data / "timeseries" / f"JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"needs {paths[0]}; set MOLFUN_DATA to the folder of the development data")
    train, test = map(TimeSeriesDataset.from_ts, paths)
    return train, test


def test_japanese_vowels(vowels):
    train, test = vowels
    assert (len(train), len(test), train.n_features) == (270, 370, 12)
    assert sorted(set(train.targets)) == sorted(set(test.targets)) == list("123456789")
    lengths = np.concatenate([train.lengths, test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29)
    assert train[0].features["timeseries"][:2, 0].tolist() == pytest.approx([1.860936, 1.891651])
    assert all(sample.features["mask"].all() for sample in samples_of([train]))
    check_groups(train=train, test=test)


def test_japanese_vowels_are_told_apart_by_a_ridge(vowels):
    from sklearn.linear_model import RidgeClassifier

    def summary(data: TimeSeriesDataset) -> np.ndarray:
        return np.array([
            np.concatenate([v.mean(0), v.std(0), v.min(0), v.max(0), v[0], v[-1]])
            for v in values_of(data)
        ])  # fmt: skip

    train, test = vowels
    ridge = RidgeClassifier().fit(summary(train), train.targets.tolist())
    assert ridge.score(summary(test), test.targets.tolist()) > 0.95


# Long tables


def test_a_long_table(write):
    text = LONG + "b,1,20,,1.5\na,0,1,2,0.5\nb,0,10,30,1.5\na,2,5,6,0.5\na,1,3,4,0.5\n"
    data = TimeSeriesDataset.from_csv(write("a.csv", text))
    assert data.ids == ["b", "a"]
    assert_series(data, [[[10, 30], [20, NAN]], [[1, 2], [3, 4], [5, 6]]])
    assert data.targets.tolist() == [1.5, 0.5]
    assert data.feature_names == ["x", "z"]
    assert (data[0].origin, data.groups) == ("a.csv, line 2", ["b", "a"])


def test_roles_of_columns(write, caplog):
    text = (
        "subject;series;hour;hr;note;sex;state\ns1;a;0;60;x;f;up\ns1;a;1;;y;f;up\ns2;b;0;70;;m;?\n"
    )
    data = TimeSeriesDataset.from_csv(
        write("a.csv", text), id_column="series", time_column="hour", feature_columns=["hr"],
        target_column="state", labels="class", group_column="subject",
    )  # fmt: skip
    assert data.groups == ["s1", "s2"]
    assert data.targets.tolist() == ["up", "?"]
    assert data[0].metadata == {"sex": "f", "group": "s1", "start": 0}
    assert "1 column not used, as the cells differ within a series: note." in caplog.text
    assert (data.id_name, data.target_name) == ("series", "state")


def test_labels_of_several_classes(write):
    text = "id,time,x,target\na,0,1,p;q\na,1,2,p;q\nb,0,1,\n"
    data = TimeSeriesDataset.from_csv(write("a.csv", text), labels="classes")
    assert data.targets.tolist() == ["p;q", ""]


def test_dates_as_times(write):
    rows = "a,2024-05-02 00:00,2,1\na,2024-05-01T00:00,1,1\na,2024-05-03,3,1\n"
    data = TimeSeriesDataset.from_csv(write("a.csv", "id,time,x,target\n" + rows))
    assert_series(data, [[[1], [2], [3]]])


def test_uneven_times_are_told(write, caplog):
    rows = "a,0,1,1\na,1,2,1\na,2,1,1\nb,0,1,1\nb,1,1,1\nb,5,1,1\n"
    TimeSeriesDataset.from_csv(write("a.csv", "id,time,x,target\n" + rows))
    assert "time steps are uneven in 1 series" in caplog.text


def test_tables_without_labels(write):
    path = write("a.csv", "id,time,x\na,0,1\n")
    assert "no column 'target'" in refused(TimeSeriesDataset.from_csv, path)
    assert TimeSeriesDataset.from_csv(path, target_column=None)[0].target is None
    assert TimeSeriesDataset.from_csv(path, require_target=False)[0].target is None


def test_all_bad_rows_of_a_long_table(write):
    rows = [
        "a,0,1,2,0.5", "a,0,3,4,0.5", "a,1,5,6,0.7", "b,0,?,NA,1", "c,0,1,2,high", ",0,1,2,1",
    ]  # fmt: skip
    path = write("a.csv", LONG + "\n".join(rows[:5]))
    text = refused(TimeSeriesDataset.from_csv, path, error=TableError)
    assert f"{path} has 4 bad rows:" in text
    assert "line 3, column time: 'a' has the time 0 already on line 2" in text
    assert "line 4, column target: '0.7' is not the '0.5' of the same series on line 2" in text
    assert "line 5: 'b' has no observed value" in text
    assert "line 6, column target: 'high' is not a number" in text


def test_all_bad_cells_of_a_long_table(write):
    rows = ["a,0,1e60,2,1", "a,noon,1,inf,1", 'a,2,"1,5",2,1', ",3,1,2,1", "a,4,1,2", "a,,1,2,1"]
    text = refused(TimeSeriesDataset.from_csv, write("a.csv", LONG + "\n".join(rows)))
    assert "line 2, column x: '1e60' is beyond 3.40282e+38" in text
    assert "line 3, column time: 'noon' is no time" in text
    assert "line 3, column z: 'inf' is not a finite number" in text
    assert "line 4, column x: '1,5' has a decimal comma; write 1.5" in text
    assert "line 5, column id: '' is blank" in text
    assert "line 6: 4 cells where the header has 5" in text
    assert "line 7, column time: '' is no time" in text


def test_a_group_that_changes_is_refused(write):
    path = write("a.csv", "id,time,x,target,group\na,0,1,1,g\na,1,1,1.0,h\n")
    text = refused(TimeSeriesDataset.from_csv, path)
    assert "has 1 bad row:" in text
    assert "line 3, column group: 'h' is not the 'g' of the same series on line 2" in text


def test_text_among_the_features(write):
    path = write("a.csv", "id,time,x,note,target\na,0,1,good,1\na,1,1,bad,1\n")
    text = refused(TimeSeriesDataset.from_csv, path)
    assert "column note holds no numbers; name the features (--feature-columns)" in text
    data = TimeSeriesDataset.from_csv(path, feature_columns=["x"])
    assert data.feature_names == ["x"]


def test_missing_columns_name_the_nearest(write):
    path = write("a.csv", "id,Time,x,targt\na,0,1,1\n")
    text = refused(TimeSeriesDataset.from_csv, path)
    assert "has no column 'time' and 'target'" in text
    assert "Did you mean 'Time' for 'time'?" in text
    assert "no column 'z'" in refused(
        TimeSeriesDataset.from_csv, path, time_column="Time", target_column="targt",
        feature_columns=["z"],
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["long", "wide"])
def test_the_settings_read_the_same_table_again(write, layout):
    texts = {
        "long": "name,t,x,y,who,ddg\na,0,1,2,p,1\na,1,3,4,p,1\nb,0,5,6,q,2\n",
        "wide": "name,y_0,y_1,x_0,x_1,who,ddg\na,2,4,1,3,p,1\nb,6,,5,,q,2\n",
    }
    path = write("a.csv", texts[layout])
    data = TimeSeriesDataset.from_csv(
        path, layout=layout, id_column="name", time_column="t", feature_columns=["y", "x"],
        target_column="ddg", group_column="who", max_length=1,
    )  # fmt: skip
    stored = dict(data.input_settings)
    assert stored.pop("kind") == "timeseries"
    again = TimeSeriesDataset.from_csv(path, **stored)
    assert_series(again, [[[2, 1]], [[6, 5]]])
    assert again.digests() == data.digests()
    assert again.groups == data.groups == ["p", "q"]
    assert again.input_settings == data.input_settings


def test_a_hundred_thousand_rows_in_seconds(tmp_path):
    n = 100_000
    frame = pd.DataFrame({
        "id": np.repeat(np.arange(100), n // 100), "time": np.tile(np.arange(n // 100), 100),
        "x": np.sin(np.arange(n)), "target": np.repeat(np.arange(100), n // 100),
    })  # fmt: skip
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = TimeSeriesDataset.from_csv(tmp_path / "a.csv")
    assert data.lengths.tolist() == [1000] * 100
    np.testing.assert_array_equal(np.concatenate(values_of(data))[:, 0], frame.x.astype("f4"))


# Wide tables


def test_a_wide_table(write):
    text = (
        "id,x_0,x_1,x_2,z_0,z_1,z_2,age,target,group\na,1,,3,4,5,6,70,up,s\nb,1,2,,,3,,80,down,s\n"
    )
    data = TimeSeriesDataset.from_csv(write("a.csv", text), layout="wide", labels="class")
    assert_series(data, [[[1, 4], [NAN, 5], [3, 6]], [[1, NAN], [2, 3]]])
    assert data[1].metadata == {"age": 80, "group": "s", "start": 0}
    assert data.targets.tolist() == ["up", "down"]


@pytest.mark.parametrize(
    ("columns", "pattern", "names"),
    [
        (["10", "2", "0"], "{time}", ["value"]),
        (["t10", "t2", "t0"], "t{time}", ["value"]),
        (["10h:x y", "2h:x y", "0h:x y"], "{time}h:{feature}", ["x y"]),
        (["a_b_10", "a_b_2", "a_b_0"], "{feature}_{time}", ["a_b"]),
    ],
)
def test_patterns_of_wide_columns(write, columns, pattern, names):
    path = write("a.csv", ",".join(["id", *columns, "target"]) + "\na,3,2,1,0.5\n")
    data = TimeSeriesDataset.from_csv(path, layout="wide", pattern=pattern)
    assert_series(data, [[[1], [2], [3]]])
    assert data.feature_names == names


def test_a_wide_table_without_ids(write):
    path = write("a.csv", "x_0,x_1\n1,2\n3,4\n")
    data = TimeSeriesDataset.from_csv(path, layout="wide", id_column=None, target_column=None)
    assert data.ids == ["series_1", "series_2"]


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("id,x,target\na,1,1\n", {}, "has no columns of values, named as {feature}_{time}"),
        ("id,x_0,target\na,1,1\n", {"feature_columns": ["z"]}, "has no columns of 'z'"),
        ("id,x_0,x_1,y_0,target\na,1,2,3,1\n", {}, "y has no column for the time 1"),
        ("id,x_1,x_01,target\na,1,2,1\n", {}, "has the time 1 of 'x' twice"),
        ("id,x_0,target\na,1,1\na,2,1\n", {}, "the id 'a' comes more than once"),
        ("id,x_0,x_1,target\na,,?,1\n", {}, "line 2: 'a' has no observed value"),
        ("id,x_0,x_1,target\na,1,b,1\na2,1,2,1\n", {}, "line 2, column x_1: 'b' is not a number"),
    ],
)
def test_wide_tables_that_are_refused(write, text, options, reason):
    path = write("a.csv", text)
    assert reason in refused(TimeSeriesDataset.from_csv, path, layout="wide", **options)


def test_arguments_of_tables(write):
    path = write("a.csv", "id,x_0,target\na,1,1\n")
    make = TimeSeriesDataset.from_csv
    assert "Did you mean 'wide'?" in refused(make, path, error=ConfigError, layout="wid")
    assert "Unknown labels" in refused(make, path, error=ConfigError, labels="clas")
    text = refused(make, path, error=ConfigError, layout="wide", pattern="{feature}")
    assert "pattern must hold {time} once" in text
    assert "needs id_column" in refused(make, path, error=ConfigError, id_column=None)
    assert "max_length must be at least 1" in refused(
        make, path, error=ConfigError, layout="wide", max_length=0
    )


# numpy


def test_npz_with_everything(tmp_path):
    path = tmp_path / "a.npz"
    values = np.arange(12.0).reshape(2, 3, 2)
    mask = np.ones((2, 3, 2), bool)
    mask[0, 1, 1] = False
    np.savez(
        path, timeseries=values, mask=mask, label=["up", "down"], id=["p", "q"], group=[1, 1],
        length=[3, 2], feature_names=["x", "y"],
    )  # fmt: skip
    data = TimeSeriesDataset.from_numpy(path)
    assert_series(data, [[[0, 1], [2, NAN], [4, 5]], [[6, 7], [8, 9]]])
    assert (data.ids, data.groups, data.feature_names) == (["p", "q"], ["1", "1"], ["x", "y"])
    assert [type(target) for target in data.targets] == [str, str]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"timeserie": np.ones((1, 2, 1))}, "Did you mean 'timeseries'?"),
        ({"mask": np.ones((1, 2, 1))}, "has no array 'timeseries'"),
        ({"timeseries": np.array([{}], object)}, "timeseries.npy holds Python objects"),
        ({"timeseries": np.ones((1, 2, 1)), "length": [3]}, "length must hold 1 whole numbers"),
        ({"timeseries": np.ones((1, 2, 1)), "length": [0]}, "from 1 to 2, one per series"),
        ({"timeseries": np.ones((2, 1))}, "expected (series, time, features)"),
    ],
)
def test_npz_that_is_refused(tmp_path, arrays, reason):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert reason in refused(TimeSeriesDataset.from_numpy, path)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_numpy_files(write, content, suffix):
    path = write(f"a.{suffix}", content)
    assert f"{path} is damaged or not np" in refused(TimeSeriesDataset.from_numpy, path)


# Any file


def test_every_kind_of_file_by_its_name(tmp_path, write):
    values = np.arange(6.0).reshape(1, 3, 2)
    long = pd.DataFrame({"id": "a", "time": range(3), "x": values[0, :, 0], "z": values[0, :, 1]})
    long.to_csv(tmp_path / "a.csv", index=False)
    long.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    long.to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", timeseries=values)
    write("a.ts", "@dimension 2\n@data\n0,2,4:1,3,5\n")
    for name in ("a.csv", "a.tsv", "a.parquet", "a.npy", "a.npz", "a.ts"):
        options = {"target_column": None} if name[2:] in ("csv", "tsv", "parquet") else {}
        assert_series(open_timeseries(tmp_path / name, **options), values)
    assert_series(
        TimeSeriesDataset.from_parquet(tmp_path / "a.parquet", target_column=None), values
    )
    assert "rename the file" in refused(TimeSeriesDataset.from_parquet, tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.npz.gz", "a.gz"])
def test_other_files_are_refused(tmp_path, name):
    assert "time series are read from .csv, .npy, .npz" in refused(open_timeseries, tmp_path / name)


def test_an_option_of_another_kind_of_file(tmp_path):
    text = refused(open_timeseries, tmp_path / "a.ts", error=ConfigError, max_lenght=3)
    assert "Unknown option of a .ts file 'max_lenght'" in text
    assert "Did you mean 'max_length'?" in text
    assert "'layout'" in refused(open_timeseries, tmp_path / "a.npz", error=ConfigError, layout="x")


# Round trips


@st.composite
def series_lists(draw) -> list[np.ndarray]:
    """Series of one number of features and any lengths, whose last frame has a value."""
    n_features = draw(st.integers(1, 3))
    numbers = st.floats(-1e6, 1e6, width=32) | st.just(NAN)
    found = []
    for n in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        values = draw(arrays_of.arrays(np.float32, (n, n_features), elements=numbers))
        values[-1, 0] = draw(st.floats(-1e3, 1e3, width=32))
        found.append(values)
    return found


def write_ts(path: Path, series: list[np.ndarray]) -> None:
    lines = [f"@univariate false\n@dimension {series[0].shape[1]}\n@targetLabel true\n@data"]
    for i, values in enumerate(series):
        channels = [",".join("?" if np.isnan(v) else repr(float(v)) for v in c) for c in values.T]
        lines.append(":".join([*channels, str(float(i))]))
    path.write_text("\n".join(lines))


def write_long(path: Path, series: list[np.ndarray]) -> None:
    frames = [
        pd.DataFrame(values, columns=[f"f{j}" for j in range(values.shape[1])]).assign(
            id=f"s{i}", time=range(len(values)), target=i
        )
        for i, values in enumerate(series)
    ]
    # rows in no order
    pd.concat(frames).sample(frac=1, random_state=0).to_csv(path, index=False)


def write_wide(path: Path, series: list[np.ndarray]) -> None:
    rows = [
        {f"f{j}_{t}": v for t, row in enumerate(values) for j, v in enumerate(row)}
        | {"id": f"s{i}", "target": i}
        for i, values in enumerate(series)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def write_npz(path: Path, series: list[np.ndarray]) -> None:
    longest = max(map(len, series))
    padded = np.zeros((len(series), longest, series[0].shape[1]), np.float32)
    for row, values in zip(padded, series, strict=True):
        row[: len(values)] = values
    np.savez(path, timeseries=padded, length=[len(v) for v in series], label=range(len(series)))


@pytest.mark.parametrize(
    ("name", "write_file", "options"),
    [
        ("a.ts", write_ts, {}),
        ("a.csv", write_long, {}),
        ("a.csv", write_wide, {"layout": "wide"}),
        ("a.npz", write_npz, {}),
    ],
)
@settings(max_examples=40, suppress_health_check=ONE_FOLDER, deadline=None)
@given(series=series_lists())
def test_what_is_written_is_read_back(tmp_path, name, write_file, options, series):
    write_file(tmp_path / name, series)
    if name == "a.csv":  # arbitrary numbers may be those of a counter
        options = {**options, "feature_columns": [f"f{i}" for i in range(series[0].shape[1])]}
    data = open_timeseries(tmp_path / name, **options)
    order = np.argsort(data.targets)
    assert_series(data.subset(order), series)
    assert data.targets[order].tolist() == list(range(len(series)))


@settings(max_examples=150, suppress_health_check=ONE_FOLDER, deadline=None)
@given(
    content=st.text("@#abt,:?()\n 01.-e", max_size=60) | st.binary(max_size=40),
    name=st.sampled_from(["a.ts", "a.csv", "a.npy", "a.npz", "a.parquet"]),
    header=st.sampled_from(["", "@data\n", "@timestamps true\n@data\n", "id,time,x,target\n"]),
)
def test_any_content_is_read_or_refused_by_a_molfun_error(tmp_path, content, name, header):
    body = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(header.encode() + body)
    try:
        data = open_timeseries(tmp_path / name)
    except MolfunError as error:
        text = str(error)
    else:
        assert all(sample.features["mask"].any() for sample in samples_of([data]))
        return
    assert name in text


# Windows


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    length=st.integers(1, 20),
    stride=st.integers(1, 20),
)
def test_windows_cover_every_frame(lengths, length, stride):
    series = [np.arange(n, dtype=np.float32)[:, None] for n in lengths]
    data = TimeSeriesDataset.from_arrays(series, labels=range(len(series)), groups=lengths)
    windows = data.windows(length, stride=min(stride, length))
    assert len(set(windows.ids)) == len(windows)
    assert set(windows.lengths.tolist()) <= {length, *(n for n in lengths if n < length)}
    for place, (name, n) in enumerate(zip(data.ids, lengths, strict=True)):
        own = [windows[i] for i in range(len(windows)) if windows.metadata["series"][i] == name]
        frames = np.concatenate([sample.features["timeseries"][:, 0] for sample in own])
        assert set(frames.tolist()) == set(range(n))
        starts = [sample.features["timeseries"][0, 0] for sample in own]
        assert [sample.metadata["start"] for sample in own] == starts
        assert [sample.id for sample in own] == [f"{name}@{int(s)}" for s in starts]
        assert {sample.target for sample in own} == {float(place)}
        assert {sample.metadata["group"] for sample in own} == {str(n)}


def test_short_series_and_labels_of_windows():
    data = TimeSeriesDataset.from_arrays([np.ones((3, 1)), np.ones((9, 1))], ["a", "b"])
    assert data.windows(4).lengths.tolist() == [3, 4, 4, 4]
    assert data.windows(4, drop_short=True).ids == ["series_2@0", "series_2@4", "series_2@5"]
    assert data.windows(4, label="none").targets.tolist() == [None] * 4
    text = refused(data.windows, 10, drop_short=True)
    assert "No sample of list has 10 frames; the longest has 9." in text


def test_windows_of_windows_know_their_place():
    data = TimeSeriesDataset.from_arrays(np.arange(10.0)[None, :, None], ids=["a"])
    inner = data.windows(5).windows(2)
    assert inner.ids[-1] == "a@5@8"
    assert inner[len(inner) - 1].metadata == {"group": "a", "start": 8, "series": "a@5"}
    assert inner[len(inner) - 1].features["timeseries"][:, 0].tolist() == [8, 9]


def test_windows_are_cut_from_what_max_length_leaves():
    data = TimeSeriesDataset.from_arrays(np.arange(10.0)[None, :, None], max_length=5)
    assert data.lengths.tolist() == [5]
    assert data.windows(4).metadata["start"].tolist() == [0, 1]
    assert data.windows(4).input_settings["windows"] == {
        "length": 4, "stride": 4, "drop_short": False, "label": "keep",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"length": 0}, "length must be a whole number of at least 1, got 0."),
        ({"length": 4, "stride": 5}, "stride must be at most the length 4, got 5"),
        ({"length": 4.0, "stride": -1}, "got 4.0. stride must be"),
        ({"length": 4, "label": "kep"}, "Did you mean 'keep'?"),
    ],
)
def test_windows_that_cannot_be(arguments, reason):
    data = TimeSeriesDataset.from_arrays(np.ones((1, 10, 1)))
    assert reason in refused(data.windows, error=ConfigError, **arguments)


# Splits


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=12, max_size=30).filter(lambda g: len(set(g)) > 3),
    seed=st.integers(0, 5),
    windowed=st.booleans(),
    how=st.sampled_from(["split", "random", "by_group"]),
)
def test_no_group_is_on_two_sides(groups, seed, windowed, how):
    values = np.random.default_rng(0).normal(size=(len(groups), 6, 1))
    data = TimeSeriesDataset.from_arrays(values, groups=groups)
    data = data.windows(3) if windowed else data
    fractions = {"val_frac": 0.2, "test_frac": 0.2, "seed": seed}
    parts = {
        "split": lambda: data.split(**fractions),
        "random": lambda: DataSplitter.random(data, **fractions),
        "by_group": lambda: DataSplitter.by_group(data, "group", **fractions),
    }[how]()
    assert sorted(i for part in parts for i in part.ids) == sorted(data.ids)
    assert all(len(part) for part in parts)
    for one, other in itertools.combinations(parts, 2):
        assert not set(one.groups) & set(other.groups)
    check_groups(train=parts[0], validation=parts[1], test=parts[2])


def test_equal_series_stay_together():
    values = np.random.default_rng(0).normal(size=(10, 5, 2))
    values[7] = values[2]
    data = TimeSeriesDataset.from_arrays(values, ids=[f"s{i}" for i in range(10)])
    for seed in range(10):
        sides = [set(part.ids) & {"s2", "s7"} for part in data.split(0.2, 0.2, seed)]
        assert sorted(map(len, sides)) == [0, 0, 2]


def test_a_leak_is_refused_by_name():
    values = np.random.default_rng(0).normal(size=(4, 6, 1))
    data = TimeSeriesDataset.from_arrays(values, groups=["p", "p", "q", "r"])
    text = refused(check_groups, train=data.subset([0, 2]), validation=None, test=data.subset([1]))
    assert "train and test share 1 group:\n  'p'\n" in text
    check_groups(train=data.subset([0, 1]), test=data.subset([2, 3]))


def test_the_same_series_under_another_name_is_a_leak():
    values = np.random.default_rng(0).normal(size=(4, 6, 1))
    one = TimeSeriesDataset.from_arrays(values[:2])
    check_groups(train=one, test=TimeSeriesDataset.from_arrays(values[2:]))
    other = TimeSeriesDataset.from_arrays(values[1:], ids=["a", "b", "c"]).windows(2)
    text = refused(check_groups, train=one, test=other)
    assert "train and test share 1 pair of equal series:\n  series_2 and a@0\n" in text


def test_too_few_groups():
    data = TimeSeriesDataset.from_arrays(np.ones((1, 50, 1))).windows(5)
    assert "Cannot split 1 groups of 'group'" in refused(data.split)


def test_an_empty_part():
    data = TimeSeriesDataset.from_arrays(np.arange(40.0).reshape(5, 8, 1))
    train, val, test = data.split(0.2, 0)
    assert (len(train), len(val), len(test)) == (4, 1, 0)
    assert len(test.windows(3)) == 0
    assert test.lengths.tolist() == test.ids == []


# With the rest


def test_loaders_samplers_and_workers():
    data = double_well(12, (20, 40), replicas=3)
    sampler = LengthBatchSampler.from_dataset(data, batch_size=4, power=1)
    loader = DataLoader(
        data, batch_sampler=sampler, collate_fn=TimeSeriesDataset.collate_fn, num_workers=2
    )
    batches = list(loader)
    assert all(isinstance(batch, SampleBatch) for batch in batches)
    assert sorted(i for batch in batches for i in batch.ids) == sorted(data.ids)
    first = {sample.id: sample for batch in batches for sample in batch}[data.ids[0]]
    assert first.content_key() == data[0].content_key()
    assert first.content_key() != data[1].content_key()
    assert targets_of(loader) == data.targets.tolist()
    assert ids_of(loader) == data.ids
    assert len(as_loader(data)) == 1
    assert len(as_loader(double_well(33, (20, 40), replicas=1))) == 2
    assert data_identity(loader, data.targets, None)["inputs"]["kind"] == "timeseries"


def test_a_data_set_can_be_pickled():
    data = double_well(4, 30).windows(10, stride=5)
    again = pickle.loads(pickle.dumps(data))
    assert again.ids == data.ids
    assert again.digests() == data.digests()
    assert again.sequences() == data.sequences()


def test_indices_from_the_end_and_beyond():
    data = double_well(4, 10)
    assert data[-1].id == data.ids[3]
    assert len(list(data)) == 4
    with pytest.raises(IndexError, match="index 4 is out of range for 4 samples"):
        data[4]
    assert "meets min_barrier=99" in refused(data.filter, min_barrier=99)


def test_tasks_take_the_labels():
    classes = MulticlassTask(n_classes=2)
    classes.fit_targets(double_well(20, 20).targets.tolist())
    assert classes.classes == ["left", "right"]
    several = TimeSeriesDataset.from_arrays(np.ones((3, 2, 1)), [["a"], ["a", "b"], []])
    task = MultilabelTask(n_classes=2)
    task.fit_targets(several.targets.tolist())
    assert task.numbers(several[1].target).tolist() == [1, 1]
    number = RegressionTask()
    number.fit_targets(double_well(5, 20, target="barrier").targets.tolist())
    assert number.n_outputs == 1


# The double well


def test_the_double_well_is_at_equilibrium():
    height, heat = 1.5, 1.0
    data = double_well(400, 200, seed=3, barrier=height, temperature=heat, noise=0, missing=0)
    x = np.concatenate(values_of(data))[:, 0]
    grid = np.linspace(-4, 4, 4001)
    weight = np.exp(-height * (grid**2 - 1) ** 2 / heat)
    for power in (2, 4):
        expected = (weight * grid**power).sum() / weight.sum()
        assert np.mean(x**power) == pytest.approx(expected, rel=0.03)
    middle = weight[np.abs(grid) < 0.5].sum() / weight.sum()
    assert np.mean(np.abs(x) < 0.5) == pytest.approx(middle, rel=0.05)


def test_a_higher_barrier_is_crossed_more_rarely():
    def crossings(barrier: float) -> float:
        data = double_well(100, 200, barrier=barrier, noise=0, missing=0)
        return float(np.mean([np.sum(np.diff(np.sign(v[:, 0])) != 0) for v in values_of(data)]))

    low, high = crossings(2.0), crossings(5.0)
    assert high > 0
    # exp(-3) with the ratio of the curvatures, 2.5
    assert low / high == pytest.approx(math.exp(3) / 2.5, rel=0.6)


def test_observables_noise_and_gaps_of_the_double_well():
    clean = np.concatenate(values_of(double_well(20, 100, noise=0, missing=0)))
    x = clean[:, 0].astype(np.float64)
    expected = np.stack([x, x**2, np.tanh(2 * x), np.cos(np.pi * x)], axis=1)
    np.testing.assert_allclose(clean, expected, atol=1e-5)
    seen = np.concatenate(values_of(double_well(20, 100, noise=0.2, missing=0.3)))
    assert np.isnan(seen).mean() == pytest.approx(0.3, abs=0.02)
    assert np.nanstd(seen - clean) == pytest.approx(0.2, rel=0.05)


def test_labels_of_the_double_well():
    data = double_well(40, 100, noise=0, missing=0)
    share = [np.mean(v[:, 0] > 0) for v in values_of(data)]
    assert data.targets.tolist() == ["right" if s > 0.5 else "left" for s in share]
    assert set(data.targets) == {"left", "right"}
    data = double_well(40, 10, target="barrier_class", barrier=(1.0, 2.0))
    assert data.targets.tolist() == ["high" if b > 1.5 else "low" for b in data.metadata["barrier"]]
    data = double_well(9, 10, target="temperature", replicas=3)
    assert data.targets.tolist() == data.metadata["temperature"].tolist()
    assert len(set(data.targets)) == len(set(data.groups)) == 3
    assert 0.5 <= data.targets.min() < data.targets.max() <= 2


def test_the_seed_decides():
    one, same, other = (double_well(5, (10, 30), seed=seed) for seed in (1, 1, 2))
    assert one.digests() == same.digests()
    assert set(one.digests()).isdisjoint(other.digests())
    assert len(set(double_well(30, (10, 30)).lengths.tolist())) > 5


def test_a_series_of_gaps_keeps_a_value():
    data = double_well(50, 2, missing=0.999)
    assert all(sample.features["mask"].any() for sample in samples_of([data]))


def test_arguments_of_the_double_well():
    text = refused(
        double_well, 0, (5, 2), error=ConfigError, target="wel", noise=-1, missing=1.0,
        barrier=(3.0, 1.0), replicas=0,
    )  # fmt: skip
    for part in (
        "n_series must be", "n_frames must not decrease, got (5, 2)", "Did you mean 'well'?",
        "noise must be at least 0", "missing must be at least 0 and below 1", "barrier must be",
        "replicas must be",
    ):  # fmt: skip
        assert part in text


def test_nothing_is_logged_without_a_reason(write, caplog):
    caplog.set_level(logging.INFO)
    TimeSeriesDataset.from_csv(write("a.csv", LONG + "a,0,1,2,1\na,1,1,2,1\na,2,1,2,1\n"))
    assert not caplog.messages


def test_metadata_may_be_arrays() -> None:
    data = TimeSeriesDataset.from_arrays(
        np.zeros((2, 5, 1)), metadata={"x": [np.arange(2), np.arange(3)]}
    )
    assert data[1].metadata["x"].tolist() == [0, 1, 2]

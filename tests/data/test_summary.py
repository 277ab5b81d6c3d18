"""Counts, lengths and labels of the parts of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from molfun.data import NamedTargets, SequenceDataset, TimeSeriesDataset
from molfun.data.summary import summarise


def test_repeated_and_shared_inputs_are_counted() -> None:
    train = SequenceDataset.from_list([("MKV", 1.0), ("mkv", 2.0), ("ACD", 3.0)])
    test = SequenceDataset.from_list([("ACD", 3.5), ("GGG", None)])
    found = summarise({"train": train, "val": None, "test": test})
    assert found["n"] == {"train": 3, "test": 2}
    assert found["repeated"] == {"train": 1, "test": 0}
    assert found["shared"] == {"train, test": 1}
    labels = found["labels"][""]
    assert labels["missing"] == {"train": 0, "test": 1}
    assert {name: sum(counts) for name, counts in labels["counts"].items()} == {
        "train": 3, "test": 1,
    }  # fmt: skip
    assert labels["numbers"]["train"]["mean"] == 2
    json.dumps(found, allow_nan=False)


def test_series_are_compared_by_their_values() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 1))
    one = TimeSeriesDataset.from_arrays(values[:3], labels=["a", "b", "a"])
    other = TimeSeriesDataset.from_arrays(values[2:], labels=["a", "a"])
    found = summarise({"train": one, "test": other})
    # both data sets call their first series series_1
    assert found["shared"] == {"train, test": 1}
    assert found["labels"][""]["counts"] == {"train": {"a": 2, "b": 1}, "test": {"a": 2}}


def test_labels_of_residues_count_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sequence,label\nMKV,HH?\nAC,EC\n")
    data = SequenceDataset.from_csv(path, target_column="label", labels="class", level="residue")
    found = summarise({"train": data})["labels"][""]
    assert found["counts"]["train"] == {"C": 1, "E": 1, "H": 2}


def test_several_heads_and_energies() -> None:
    pytest.importorskip("ase", reason="pip install 'molfun[pet]'")
    from tiny import build_atoms

    from molfun.data import AtomsDataset

    samples = build_atoms(3)
    atoms = [sample.atoms for sample in samples]
    data = NamedTargets(
        {
            "energy": AtomsDataset(atoms, [sample.target for sample in samples]),
            "gap": AtomsDataset(atoms, [1.0, None, 2.0]),
        }
    )
    found = summarise({"train": data})
    assert sum(found["labels"]["energy"]["counts"]["train"]) == 3
    assert found["labels"]["gap"]["missing"] == {"train": 1}

"""Several labels per sample: the same samples read once per label."""

from __future__ import annotations

import pickle

import pytest

from molfun.data import DataSplitter, SequenceDataset
from molfun.data.named_targets import NamedTargets
from molfun.errors import ConfigError, DataError


def two(n: int = 10) -> NamedTargets:
    chains = [f"MKV{letter}" for letter in "ACDEFGHIKL"[:n]]
    ddg = [(c, None if i == 2 else i / 2) for i, c in enumerate(chains)]
    state = [(c, "folded" if i % 2 else "open") for i, c in enumerate(chains)]
    return NamedTargets(
        {"ddg": SequenceDataset.from_list(ddg), "state": SequenceDataset.from_list(state)}
    )


def test_samples_carry_a_label_of_each_name() -> None:
    data = two()
    assert len(data) == 10
    assert data[1].target == {"ddg": 0.5, "state": "folded"}
    assert data[2].target == {"state": "open"}
    assert data[-1].target == data.targets[9]
    assert data[1].sequence == "MKVC"
    assert data.default_batch_size == 8
    assert list(data.lengths) == [4] * 10
    assert data.input_settings["heads"].keys() == {"ddg", "state"}


def test_parts_of_it_keep_labels_and_samples_together() -> None:
    data = two()
    part = data.subset([4, 1])
    assert part.ids == ["seq_5", "seq_2"]
    assert part.targets == [{"ddg": 2.0, "state": "open"}, {"ddg": 0.5, "state": "folded"}]
    train, val, test = DataSplitter.random(data, val_frac=0.2, test_frac=0.2, seed=0)
    by_id = dict(zip(data.ids, data.targets, strict=True))
    for one in (train, val, test):
        assert isinstance(one, NamedTargets)
        assert one.targets == [by_id[name] for name in one.ids]
    assert pickle.loads(pickle.dumps(part)).targets == part.targets
    assert data.filter(id=["seq_3"]).targets == [{"state": "open"}]


def test_other_samples_are_refused() -> None:
    parts = {"a": two().parts["ddg"], "b": two(9).parts["ddg"]}
    with pytest.raises(DataError, match=r"data set for 'b' has other samples.*9 against 10"):
        NamedTargets(parts)
    with pytest.raises(ConfigError, match="needs a data set for each name, and got none"):
        NamedTargets({})

"""The contracts of a data set and of a kind of data."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold
from torch.utils.data import DataLoader, Subset

from molfun.cli.settings import FineTuneSettings
from molfun.data.base import SampleDataset, settings_with_kind
from molfun.data.kinds.base import DataKind, Labels
from molfun.data.splits import DataSplitter
from molfun.errors import ConfigError, DataError
from molfun.registry import BACKBONES, DATASETS, DEFAULT_KIND
from molfun.sample import Sample, SampleBatch


class DatasetContract:
    """Tests of a data set.

    A data set returns the same sample for the same index, keeps ids, labels and columns in one
    order, and can be subset, filtered, split and sent to loader workers.
    """

    column: ClassVar[str]
    """Numeric column of its metadata, with different values for the first and second sample."""

    def make(self) -> SampleDataset:
        """Make six different samples with labels."""
        raise NotImplementedError

    @pytest.fixture
    def dataset(self) -> SampleDataset:
        """Return the data set of `make`."""
        return self.make()

    @staticmethod
    def keys(dataset: SampleDataset) -> list[str]:
        """Return the content key of every sample."""
        return [dataset[i].content_key() for i in range(len(dataset))]

    def test_all_that_is_known_of_a_sample_is_in_one_order(self, dataset: Any) -> None:
        assert len(dataset) == 6
        for part in (dataset.ids, dataset.targets, dataset.metadata, dataset.lengths):
            assert len(part) == 6
        assert len(dataset.sequences()) == len(set(dataset.sequences())) == 6
        for i, sample in enumerate(dataset):
            assert isinstance(sample, Sample)
            assert sample.id == dataset.ids[i]
            assert repr(sample.target) == repr(dataset.targets[i]) or (
                float(sample.target) == float(dataset.targets[i])
            )
            assert sample.metadata[self.column] == dataset.metadata[self.column][i]
            # plain values, which JSON and CSV can hold
            assert not any(isinstance(v, np.generic) for v in sample.metadata.values())

    def test_an_index_counts_from_either_end(self, dataset: Any) -> None:
        assert dataset[-1].id == dataset[np.int64(5)].id == dataset.ids[5]
        for index in (6, -7):
            with pytest.raises(IndexError, match=rf"index {index} is out of range for 6 samples"):
                dataset[index]

    def test_the_same_index_gives_the_same_sample(self, dataset: SampleDataset) -> None:
        assert self.keys(dataset) == self.keys(dataset) == self.keys(self.make())

    def test_a_subset_has_its_own_order(self, dataset: SampleDataset) -> None:
        part = dataset.subset(np.array([4, 0, 2]))
        assert type(part) is type(dataset)
        assert part.ids == [dataset.ids[i] for i in (4, 0, 2)]
        assert self.keys(part) == [self.keys(dataset)[i] for i in (4, 0, 2)]
        assert part.lengths.tolist() == dataset.lengths[[4, 0, 2]].tolist()
        values = dataset.metadata[self.column]
        assert part.metadata[self.column].tolist() == [values[i] for i in (4, 0, 2)]
        assert part.input_settings == dataset.input_settings
        assert part.id_name == dataset.id_name
        assert len(dataset.subset([])) == 0

    def test_a_filter_is_a_subset(self, dataset: SampleDataset) -> None:
        values = dataset.metadata[self.column]
        first = values[0]
        expected = [i for i, v in zip(dataset.ids, values, strict=True) if v == first]
        assert dataset.filter(**{self.column: first}).ids == expected
        two = [dataset.ids[i] for i in (1, 3)]
        assert dataset.filter(**{dataset.id_name: two}).ids == two
        largest = dataset.filter(**{f"min_{self.column}": values.max()})
        assert set(largest.metadata[self.column]) == {values.max()}
        with pytest.raises(DataError, match=rf"No sample of .* meets min_{self.column}=1000000"):
            dataset.filter(**{f"min_{self.column}": 1_000_000})
        with pytest.raises(ConfigError, match="Unknown filter 'no_such'"):
            dataset.filter(no_such=1)

    def test_loaders_batch_it(self, dataset: Any) -> None:
        part = Subset(dataset, [5, 1])
        for data, ids in ((dataset, dataset.ids), (part, [dataset.ids[i] for i in (5, 1)])):
            loader = DataLoader(data, batch_size=4, collate_fn=dataset.collate_fn)
            batches = list(loader)
            assert all(isinstance(batch, SampleBatch) for batch in batches)
            assert [i for batch in batches for i in batch.ids] == ids

    def test_it_is_sent_to_workers(self, dataset: SampleDataset) -> None:
        # what a DataLoader does for a worker that is spawned (macOS, Windows)
        again = pickle.loads(pickle.dumps(dataset))
        assert again.ids == dataset.ids
        assert self.keys(again) == self.keys(dataset)

    def test_splits_leave_nothing_out(self, dataset: SampleDataset) -> None:
        parts = DataSplitter.random(dataset, val_frac=0.2, test_frac=0.2, seed=1)
        assert sorted(i for part in parts for i in part.ids) == sorted(dataset.ids)

    def test_what_it_says_of_itself(self, dataset: SampleDataset) -> None:
        assert isinstance(dataset.metadata, pd.DataFrame)
        assert dataset.id_name not in dataset.metadata
        assert repr(dataset).startswith(f"{type(dataset).__name__}(6 ")
        assert json.loads(json.dumps(dataset.input_settings)) == dataset.input_settings
        assert dataset.default_batch_size >= 1

    def test_indices_of_scikit_learn_and_masks_choose_samples(self, dataset: SampleDataset) -> None:
        # splitters of scikit-learn give positions, for cross-validation
        train, test = next(iter(KFold(3, shuffle=True, random_state=0).split(dataset.ids)))
        assert list(dataset.subset(test).ids) == [dataset.ids[i] for i in test]
        mask = np.isin(np.arange(6), train)
        assert list(dataset.subset(mask).ids) == list(dataset.subset(train).ids)
        assert list(dataset.subset([-1]).ids) == [dataset.ids[5]]
        assert len(dataset.subset([])) == 0

    def test_what_chooses_no_samples_is_refused(self, dataset: SampleDataset) -> None:
        for indices, text in [
            ([True, False], "The mask has 2 values for 6 samples"),
            ([6], "There is no position 6 among 6 samples"),
            (["s1"], r"choose by ids or columns use filter\(...\)"),
            ([0.5], r"positions \(whole numbers\) or a mask"),
        ]:
            with pytest.raises(ConfigError, match=text):
                dataset.subset(indices)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"One index gives one sample, got ndarray"):
            dataset[np.array([0, 1])]  # type: ignore[index]


class DataKindContract:
    """Tests of a registered kind of data.

    A kind opens data from the settings of a run. From a checkpoint it opens other data with the
    settings that were used in training. Its own settings must be readable without torch, since the
    command line builds its help from them.
    """

    name: ClassVar[str]
    """Registered name of the kind."""
    labels: ClassVar[Labels] = Labels("regression")

    def write(self, folder: Path) -> dict[str, Any]:
        """Write two or more samples with labels into `folder`; return the settings to open them."""
        raise NotImplementedError

    def make(self) -> DataKind:
        """Build the kind."""
        kind: DataKind = DATASETS[self.name]()
        return kind

    def settings(self, folder: Path) -> Any:
        """Build the settings of a run on the samples of `write`."""
        given = self.write(folder)
        return FineTuneSettings.build({"backbone": self.make().backbone, **given})

    def test_is_registered_under_its_name(self) -> None:
        kind = self.make()
        assert kind.name == self.name
        assert kind.backbone.partition("_t")[0] in BACKBONES
        assert kind.default_batch_size >= 1

    def test_settings_are_known_before_torch_is_loaded(self) -> None:
        module = type(self.make()).__module__
        # a fresh process: this one has imported torch already
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == 0, f"{module} imports torch: import it in open and reopen"

    def test_what_is_missing_is_said(self) -> None:
        text = self.make().missing(FineTuneSettings.build({"demo": True}))
        assert text is not None
        assert "--data" in text

    def test_it_opens_samples_with_labels(self, tmp_path: Path) -> None:
        dataset = self.make().open(self.settings(tmp_path), self.labels)
        assert isinstance(dataset, SampleDataset)
        assert len(dataset) >= 2
        assert all(dataset[i].target is not None for i in range(len(dataset)))
        assert all(n >= 1 for n in dataset.lengths)
        assert dataset.subset([0]).input_settings == dataset.input_settings

    def test_a_checkpoint_opens_the_same_samples(self, tmp_path: Path) -> None:
        kind, settings = self.make(), self.settings(tmp_path)
        dataset = kind.open(settings, self.labels)
        trained = json.loads(json.dumps(settings_with_kind(dataset)))
        found = DATASETS[trained.get("kind", DEFAULT_KIND)]
        assert found is type(kind), (
            f"a checkpoint would open new samples as {found.name}: set kind = {kind.name!r} on the "
            f"class of the data set"
        )
        keys = [dataset[i].content_key() for i in range(len(dataset))]
        given = {"data": settings.data, **self.given(settings)}
        # predict opens data without labels, evaluate with them
        for labels in (True, False):
            again = kind.reopen(trained, given, labels=labels)
            assert [again[i].content_key() for i in range(len(again))] == keys
            assert again.ids == dataset.ids
            assert again.input_settings == dataset.input_settings or not labels

    def given(self, settings: Any) -> dict[str, Any]:
        """Return the settings besides ``data`` that a user gives again for a trained model."""
        return {}

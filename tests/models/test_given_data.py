"""What a user's own data may be, for every verb of the facade."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError, DataError, RunError
from molfun.models.given import Bounded
from molfun.sample import Sample, SampleBatch

PAIRS = [("MKVA", 0.0), ("MKVC", 1.0), ("MKVD", 2.0), ("MKVE", 3.0)]


def sample(i: int) -> Sample:
    return Sample(id=f"seq_{i + 1}", sequence=PAIRS[i][0], target=PAIRS[i][1])


class Plain(Dataset[Any]):
    """An index beyond its end gives the first samples again, as in many examples on the web."""

    def __init__(self, n: Any = 4) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n  # type: ignore[no-any-return]

    def __getitem__(self, i: int) -> Any:
        return sample(i % 4)


class Ends(Plain):
    def __getitem__(self, i: int) -> Any:
        if i >= 4:
            raise IndexError(i)
        return sample(i)


class NoLength(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return Ends()[i]


class Fails(Plain):
    def __getitem__(self, i: int) -> Any:
        return {}["x"] if i == 2 else sample(i)


class Texts(Plain):
    def __getitem__(self, i: int) -> Any:
        return ("MKVA", "helix")


class Pairs(Plain):
    def __getitem__(self, i: int) -> Any:
        return PAIRS[i % 4]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (sample(i % 4) for i in itertools.count())


class Sized(Stream):
    def __len__(self) -> int:
        return 4


class Short(Sized):
    def __iter__(self) -> Iterator[Any]:
        return iter([sample(0)])


OURS = SequenceDataset.from_list(PAIRS)
LIST = [sample(i) for i in range(4)]
TAKEN: dict[str, Callable[[], Any]] = {
    "plain": Plain,
    "pairs of a data set": Pairs,
    "a stream with a length": Sized,
    "concatenated": lambda: ConcatDataset([Subset(Plain(), [0, 1]), OURS.subset([2, 3])]),
    "subset of a subset": lambda: Subset(Subset(OURS, [3, 2, 1, 0]), [3, 2, 1, 0]),
    "split at random": lambda: Subset(random_split(Plain(), [4, 0])[0], [0, 1, 2, 3]),
    "pairs": lambda: PAIRS,
    "pairs of NumPy and torch": lambda: (
        [(s, np.float32(y)) for s, y in PAIRS[:2]] + [(s, torch.tensor(y)) for s, y in PAIRS[2:]]
    ),
    "samples": lambda: tuple(LIST),
    "batches": lambda: [SampleBatch(LIST[:2]), SampleBatch(LIST[2:])],
    "a loader": lambda: DataLoader(Plain(), 2, collate_fn=SampleBatch),
    "a loader that lists": lambda: DataLoader(Plain(), 2, collate_fn=list),
    "a loader without batches": lambda: DataLoader(Plain(), batch_size=None),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no length": (NoLength, "The NoLength has no length and may have no end. Give a list of its"),
    "no end": (Stream, "The Stream has no length and may have no end"),
    "a loader without end": (
        lambda: DataLoader(Stream(), 2, collate_fn=list), "DataLoader has no length and may have"
    ),
    "a loader that does not end": (
        lambda: DataLoader(Sized(), 2, collate_fn=list), "more batches than its length of 2"
    ),
    "a short stream": (Short, "The Short has a length of 4, but gave only 1"),
    "a generator": (lambda: (s for s in LIST), "The generator has no length"),
    "counting": (itertools.count, "The count has no length"),
    "too few": (lambda: Ends(9), "The Ends has a length of 9, but no item 4"),
    "negative": (lambda: Plain(-1), "The Plain has no usable length: ValueError"),
    "no number": (lambda: Plain("4"), "The Plain has no usable length: TypeError"),
    "an item that fails": (Fails, "The Fails: item 2 cannot be read: KeyError: 'x'"),
    "two texts": (Texts, "Item 0 of the Texts is a pair of texts, which may be a name and a"),
    "tensors": (
        lambda: TensorDataset(torch.zeros(4, 3), torch.zeros(4)),
        "Item 0 of the TensorDataset is no sample: a tuple of 2",
    ),
    "a frame": (
        lambda: pd.DataFrame({"sequence": ["MKV"], "y": [1.0]}),
        "A DataFrame of pandas is not taken (columns 'sequence', 'y'). Give list(frame[SEQUENCES])",
    ),
    "an array": (lambda: np.zeros((3, 4, 5)), "An array of the shape (3, 4, 5) is not taken"),
    "numbers": (lambda: [1, 2], "Item 0 of the list is no sample: an object of the type int"),
    "one that is none": (lambda: [LIST[0], 3], "Item 1 of the list is no sample"),
    "a set": (lambda: {"MKV"}, "An object of the type set is not taken. Give a data set"),
    "nothing": (lambda: None, "None is not taken. Give a data set"),
}  # fmt: skip
VERBS: dict[str, Callable[[MolfunStructureModel, Any], Any]] = {
    "fit": lambda model, data: model.fit(data, strategy="head_only", epochs=1),
    "pretrain": lambda model, data: model.pretrain(data, epochs=1),
    "predict": lambda model, data: model.predict(data),
    "evaluate": lambda model, data: model.evaluate(data),
    "embed": lambda model, data: model.embed(data, pooling="mean"),
}


@pytest.fixture
def model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu")


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken(model: MolfunStructureModel, kind: str) -> None:
    expected = model.predict(OURS)
    made = TAKEN[kind]()
    found = model.predict(made)
    assert found["ids"] == expected["ids"] or "conc" in kind or "split" in kind
    if "split" not in kind:
        assert torch.allclose(found["prediction"], expected["prediction"], atol=1e-6)
        assert model.evaluate(TAKEN[kind]()) == pytest.approx(model.evaluate(OURS), rel=1e-4)
        assert model.embed(TAKEN[kind](), pooling="mean") == pytest.approx(
            model.embed(OURS, pooling="mean")
        )
    assert len(model.fit(TAKEN[kind](), TAKEN[kind](), strategy="head_only", epochs=1)) == 1
    assert len(model.pretrain(TAKEN[kind](), epochs=1)) == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(model: MolfunStructureModel, kind: str, verb: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises((DataError, ConfigError)) as caught:
        VERBS[verb](model, make())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loaders_that_need_a_collate_fn(model: MolfunStructureModel) -> None:
    with pytest.raises(ConfigError, match=r"Pass collate_fn=SequenceDataset.collate_fn to it, or"):
        model.predict(DataLoader(Plain(), 2))
    with pytest.raises(ConfigError, match=r"for samples. Give the data set without a loader"):
        model.predict(DataLoader(Pairs(), 2))
    with pytest.raises(DataError, match=r"Sample number 2 cannot be loaded: KeyError: 'x'"):
        model.predict(DataLoader(Fails(), 2, collate_fn=list))


class Broken(Dataset[Sample]):
    """Samples of which one cannot be loaded, in a worker alone or anywhere."""

    def __init__(self, how: str) -> None:
        self._how, self._process = how, os.getpid()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        in_worker = os.getpid() != self._process
        if index == 2 and (self._how == "error" or (self._how == "error there" and in_worker)):
            raise OSError("the disk went away")
        return LIST[index]


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_worker_that_ends_is_no_matter_of_collate_fn(
    model: MolfunStructureModel, verb: str
) -> None:
    def collate(samples: list[Sample]) -> list[Sample]:
        # as torch says it; a real death is tested where batches are
        raise RuntimeError("DataLoader worker (pid(s) 7343) exited unexpectedly")

    with pytest.raises(RunError) as caught:
        VERBS[verb](model, DataLoader(Plain(), 2, collate_fn=collate))
    text = str(caught.value)
    assert "A process that loads samples (7343) ended" in text
    assert "while it loaded some of number 0, number 1." in text
    assert "collate_fn" not in text


@pytest.mark.parametrize("workers", [0, 1])
def test_the_sample_that_cannot_be_loaded_is_named(workers: int) -> None:
    data = DataLoader(Broken("error"), 4, num_workers=workers, collate_fn=list)
    with pytest.raises(DataError) as caught:
        list(Bounded(data))
    text = "Sample number 2 cannot be loaded: OSError: the disk went away"
    assert str(caught.value) == text


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_errors_in_a_worker_alone_name_the_samples_of_the_batch(
    model: MolfunStructureModel, verb: str
) -> None:
    data = DataLoader(Broken("error there"), 2, num_workers=1, collate_fn=list)
    with pytest.raises(DataError) as caught:
        VERBS[verb](model, data)
    text = "Samples number 2, number 3 cannot be loaded: OSError: the disk went away"
    assert str(caught.value) == text


def test_default_collate_is_what_collate_fn_is_advised_for() -> None:
    with pytest.raises(DataError, match=r"gives no batch 0: TypeError.*give it collate_fn=Seq"):
        list(Bounded(DataLoader([object()], 1)))  # type: ignore[arg-type]  # no data set


@pytest.mark.parametrize("verb", ["predict", "evaluate", "embed"])
def test_empty_data_is_refused(model: MolfunStructureModel, verb: str) -> None:
    for data in ([], (), Plain(0), DataLoader(Plain(0), 2, collate_fn=list)):
        with pytest.raises(DataError) as caught:
            VERBS[verb](model, data)
        assert str(caught.value) == "The data is empty: there are no samples in it."


@pytest.mark.parametrize("verb", VERBS)
def test_a_path_is_no_sequence(model: MolfunStructureModel, verb: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("MKV")
    for data, reader in (
        ("train.csv", "SequenceDataset.from_csv"), (["a/B.FASTA.gz"], "SequenceDataset.from_fasta"),
        ([("1abc.pdb", 1.0)], "molfun.data.read_structure"),
        (str(tmp_path / "notes"), "a data set, such as SequenceDataset.from_csv"),
        (Path("train.parquet"), "SequenceDataset.from_csv"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"is a path, not data. Read the file with {reader}"):
            VERBS[verb](model, data)


def test_sequences_without_labels(model: MolfunStructureModel) -> None:
    sequences = [sequence for sequence, _ in PAIRS]
    assert torch.equal(model.predict(sequences)["prediction"], model.predict(OURS)["prediction"])
    assert model.predict("MKVA")["ids"] == ["seq_1"]
    with pytest.raises(DataError, match="The training set has no labels"):
        model.fit(sequences, strategy="head_only", epochs=1)
    with pytest.raises(DataError, match="The data is empty: there are no samples"):
        model.evaluate(Plain(0))
    with pytest.raises(DataError, match="training set has no length or no batch"):
        model.fit(Plain(0), strategy="head_only", epochs=1)


def test_the_same_run_as_with_our_own_data_set() -> None:
    def run(data: Any) -> Any:
        model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
        return model.fit(data, strategy="head_only", epochs=2)[-1]["train_loss"]

    size = OURS.default_batch_size
    own = DataLoader(OURS, size, shuffle=True, collate_fn=OURS.collate_fn)
    assert run(Plain()) == run(PAIRS) == run(own)

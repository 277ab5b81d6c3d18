"""Record the inputs a model was trained on, and warn of flaws in training and test data.

A checkpoint keeps eight bytes per training sample, a digest of its input: enough to notice training
samples in a test set without holding them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from molfun._shapes import Int64
from molfun.data.base import SampleDataset
from molfun.data.named_targets import NamedTargets
from molfun.data.splits import PART_WORDS
from molfun.models.loaders import label_texts, samples_of, share_of
from molfun.protein import Protein
from molfun.sample import CHAIN_SEPARATOR, Sample, is_missing
from molfun.text import counted
from molfun.training.inputs import Inputs, as_inputs

logger = logging.getLogger(__name__)

NOTHING: Int64[np.ndarray, "inputs"] = np.zeros(0, np.int64)
# names of columns of 0 and 1 that mark one part of a split
_FLAGS = {"is_train", "is_test", "is_val", "is_validation", "in_train", "in_test"}


def input_digest(sample: Sample) -> int:
    """Return a 64-bit digest of a sample's input; its id and label do not count.

    Structures count as equal if their sequences are, as in `DataSplitter`.

    Examples
    --------
    >>> one, same = Sample(id="a", sequence="MKV", target=1.0), Sample(id="b", sequence="mkv")
    >>> input_digest(one) == input_digest(same) != input_digest(Sample(id="a", sequence="MKA"))
    True
    """
    if sample.protein is not None:
        text = f"protein {sample.protein.full_sequence}"
    elif sample.sequence is not None:
        # lower case marks masked regions in FASTA files, and partners have no order: splits by
        # identity see neither
        chains = sorted(sample.sequence.upper().split(CHAIN_SEPARATOR))
        text = f"sequence {CHAIN_SEPARATOR.join(chains)}"
    else:
        text = sample.content_key()
    # 64 bits: among a million samples, two differ with equal digests with a chance of 3e-8
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


class TrainingSet:
    """Holder of the training and validation set of a model, which copies of the model share.

    A checkpoint does not keep it.
    """

    def __init__(self, data: Any = None, validation: Any = None) -> None:
        self.data, self.validation = data, validation

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingSet:
        return self

    def __reduce__(self) -> tuple[type[TrainingSet], tuple[()]]:
        return TrainingSet, ()


class TrainingRows:
    """Ids, chains, input digests, conflicting labels and unused split columns of a training set.

    Parameters
    ----------
    loader
        Result of `as_loader`; batches that are not made of samples are left out.
    """

    def __init__(self, loader: Any) -> None:
        digests: list[int] = []
        targets: list[Any] = []
        self.ids: list[str] = []
        chains: list[tuple[str, ...]] = []
        self._columns: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples_of([loader]):
            digests.append(input_digest(sample))
            targets.append(sample.target)
            self.ids.append(sample.id)
            chains.append(chains_of(sample))
            for name, value in sample.metadata.items():
                if isinstance(value, str | bool | int):
                    self._columns[str(name)][str(value).strip().lower()] += 1
        # sorted and unique, as np.isin and np.union1d want them
        self.inputs: Int64[np.ndarray, "inputs"] = np.unique(np.array(digests, np.int64))
        self.n_conflicts = conflicts(digests, targets)
        self.chains = _whole_chains(loader) or chains
        self._n = len(digests)

    def warn(self) -> None:
        """Warn of inputs with several labels, and of a column that looks like an unused split."""
        warn_of_conflicts(self.n_conflicts, "training samples")
        for name, values in self._columns.items():
            held = held_out(name, values, self._n)
            if held:
                logger.warning(
                    "The column %r assigns %d of %s to another part of the data, and is not used: "
                    "--split column (DataSplitter.by_column) splits by it.",
                    name, held, counted(self._n, "training sample"),
                )  # fmt: skip


def chains_of(sample: Sample) -> tuple[str, ...]:
    """Return the sequences of a sample before any crop; () for series and atoms.

    Chains of a cropped complex are one sequence, since their ends are not known.

    Examples
    --------
    >>> chains_of(Sample(id="a", sequence="MKV:AC")), chains_of(Sample(id="b"))
    (('MKV', 'AC'), ())
    """
    protein = sample.protein
    if protein is None:
        return sample.chains
    whole = protein.full_sequence
    if len(protein) != len(whole):
        return (whole,)
    ends = (np.flatnonzero(np.diff(protein.chain_index)) + 1).tolist()
    return tuple(whole[a:b] for a, b in pairwise([0, *ends, len(whole)]))


def _whole_chains(loader: Any) -> list[tuple[str, ...]] | None:
    """Return the chains that a data set of structures knows before any crop; None of others."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, NamedTargets):  # inputs are those of the first
        dataset = next(iter(dataset.parts.values()))
    if isinstance(dataset, SampleDataset) and dataset.kind == "structures":
        return dataset.sequences()
    return None


def held_out(name: str, values: Mapping[str, int], n: int) -> int:
    """Return how many of `n` samples a column assigns to another part; 0 if it is no split.

    Parameters
    ----------
    name
        Name of the column.
    values
        Its values in lower case, with their counts.
    n
        Samples of the training set.

    Examples
    --------
    >>> held_out("fold", {"train": 8, "test": 2}, 10), held_out("is_train", {"1": 8, "0": 2}, 10)
    (2, 2)
    """
    present = {value: count for value, count in values.items() if value}
    # only a column whose every value is the name of a part is taken for a split
    if set(present) <= set(PART_WORDS):
        return sum(count for value, count in present.items() if PART_WORDS[value])
    flag = name.casefold()
    if flag not in _FLAGS or not set(present) <= {"0", "1", "true", "false"}:
        return 0
    yes = values.get("1", 0) + values.get("true", 0)
    return n - yes if flag.endswith("train") else yes


def conflicts(digests: Iterable[int], targets: Iterable[Any]) -> int:
    """Return the number of samples that share their input, but not their label, with another."""
    texts: dict[tuple[int, str], set[str]] = defaultdict(set)
    places = []
    for digest, target in zip(digests, targets, strict=True):
        named = target if isinstance(target, Mapping) else {"": target}
        known = {
            (digest, name): label
            for name, label in named.items()
            # two structures of one sequence are measurements of a molecule that moves
            if not (is_missing(label) or isinstance(label, Protein))
        }
        for place, text in zip(known, label_texts(list(known.values())), strict=True):
            texts[place].add(text)
        places.append(list(known))
    return sum(any(len(texts[place]) > 1 for place in own) for own in places)


def warn_of_conflicts(n: int, what: str) -> None:
    """Warn if samples contradict each other."""
    if n:
        logger.warning(
            "%d %s have the same input as another one, but a different label: no model can be "
            "right on both. Average repeated measurements, or check the table.", n, what,
        )  # fmt: skip


def warn_of_overlap(
    loader: Any, inputs: Int64[np.ndarray, "inputs"], what: str = "validation sample"
) -> None:
    """Warn if samples that are to judge a model are in its training set."""
    digests = [input_digest(sample) for sample in samples_of([loader])]
    twins = int(np.isin(digests, inputs).sum()) if digests else 0
    if twins:
        logger.warning(
            "%d of %s are also in the training set: metrics on them say nothing about new ones.",
            twins, counted(len(digests), what),
        )  # fmt: skip


class Watch:
    """Iterable over batches that counts samples which the model was trained on.

    Parameters
    ----------
    batches
        A loader or list.
    inputs
        Digests of the training set, sorted.
    labels
        Whether to look for contradicting labels as well.
    passed
        List to which every sample is added.
    """

    def __init__(
        self,
        batches: Any,
        inputs: Int64[np.ndarray, "inputs"],
        *,
        labels: bool = False,
        passed: list[Sample] | None = None,
    ) -> None:
        self._batches, self._inputs, self._with_labels = batches, inputs, labels
        self._passed = passed
        self._digests: list[int] = []
        self._targets: list[Any] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Inputs]:
        for batch in self._batches:
            inputs = as_inputs(batch)
            self._digests += [input_digest(sample) for sample in inputs.samples]
            self._targets += [sample.target for sample in inputs.samples]
            if self._passed is not None:
                self._passed += inputs.samples
            yield inputs

    def warn(self) -> None:
        """Warn of samples from the training set, and of contradicting labels."""
        share = share_of(self._batches)
        if share is not None:
            self._digests = share.gathered(self._digests)
            if self._with_labels:
                self._targets = share.gathered(self._targets)
            if self._passed is not None:
                self._passed[:] = share.gathered(self._passed)
        known = int(np.isin(self._digests, self._inputs).sum()) if self._digests else 0
        if known:
            logger.warning(
                "%d of %s were in the training set of the model: results on them say nothing about "
                "new ones.", known, counted(len(self._digests), "sample"),
            )  # fmt: skip
        if self._with_labels:
            warn_of_conflicts(conflicts(self._digests, self._targets), "samples")

"""Batches of samples of similar length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Sampler, Subset

from molfun._shapes import Float64, Int64
from molfun.errors import ConfigError
from molfun.strict import wrong_counts
from molfun.text import counted

COST_SLACK = 0.15
"""Samples change places at random where their costs differ by less than about twice this share.

More mixes the samples better and pads more: with this much, batches cost less than a tenth more
than those of the sorted data set, and most of the others in a batch are new in each epoch.
"""
LARGEST_POWER = 10.0
"""A larger exponent is a mistake: no model here grows faster than the third power."""


class Batches(Sequence[list[int]]):
    """Batches of one epoch as one array, which takes a tenth of the memory of lists of numbers.

    Parameters
    ----------
    indices
        Samples of all batches, one behind the other.
    ends
        Where each batch ends.
    order
        Batches in order; by default as they lie there.

    Examples
    --------
    >>> batches = Batches(np.array([3, 0, 2, 1, 4]), np.array([2, 4, 5]))
    >>> len(batches), batches[1], list(batches[::2])
    (3, [2, 1], [[3, 0], [4]])
    >>> list(batches.pick(np.array([2, 0, 0])))
    [[4], [3, 0], [3, 0]]
    """

    def __init__(
        self,
        indices: np.ndarray,
        ends: np.ndarray,
        order: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self._indices, self._ends = indices, ends
        self._order = range(len(ends)) if order is None else order

    @classmethod
    def of(cls, indices: np.ndarray, size: int, *, drop_last: bool = False) -> Batches:
        """Cut samples into batches of `size`, and one with the rest."""
        n = len(indices) // size if drop_last else math.ceil(len(indices) / size)
        return cls(indices, np.minimum(np.arange(1, n + 1) * size, len(indices)))

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return Batches(self._indices, self._ends, self._order[index])
        batch = int(self._order[index])
        start = int(self._ends[batch - 1]) if batch else 0
        found: list[int] = self._indices[start : int(self._ends[batch])].tolist()
        return found

    def pick(self, places: np.ndarray) -> Batches:
        """Return the batches at some places, which may occur again."""
        return Batches(self._indices, self._ends, np.asarray(self._order)[places])


class LengthBatchSampler(Sampler[list[int]]):
    r"""Batches of samples of similar length, so that short samples are not padded to long ones.

    A model that pads a batch to its longest sample pays
    :math:`n \cdot \max_i(\mathrm{length}_i)^p` for :math:`n` samples. In each epoch the samples are
    sorted by their cost :math:`\mathrm{length}_i^p` times a random factor near 1, cut into batches,
    and the batches are shuffled: every sample occurs once, and with other samples in every epoch.

    The sizes of the batches are fixed by the lengths alone, so all epochs have ``len(sampler)``
    batches. The order is a function of the generator's seed; `MolfunStructureModel.fit` seeds it
    from its own seed and the epoch, so runs are reproduced and resumed as with any other loader.

    Parameters
    ----------
    lengths
        Residues of each sample; see `from_dataset`.
    batch_size
        Most samples in a batch.
    power
        How the cost of a sample grows with its length: 3 for OpenFold, whose triangle updates are
        cubic, 1 for models that take packed tokens.
    max_cost
        Largest cost of a batch, ``len(batch) * max(length) ** power``: long samples come in smaller
        batches, and one that is above it alone has a batch to itself. ``4 * 256**3`` is as much
        as 4 proteins of 256 residues, or 8 of 203. None bounds nothing but `batch_size`.
    shuffle
        False gives the same batches each time, the most costly first.
    seed
        First seed of the generator, for use outside `fit`.

    Raises
    ------
    ConfigError
        Naming all arguments that are not allowed.

    Examples
    --------
    >>> sampler = LengthBatchSampler(lengths=[50, 400, 52, 410], batch_size=2)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2], [1, 3]]
    >>> len(LengthBatchSampler(lengths=[50, 400, 52, 410], batch_size=2, max_cost=400**3))
    3
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        power: float = 3.0,
        max_cost: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        given = np.asarray(lengths)
        _check(given, batch_size, power, max_cost)
        self._lengths = given.astype(np.min_scalar_type(int(given.max())))
        self.batch_size, self.power, self.max_cost = batch_size, power, max_cost
        self.shuffle = shuffle
        self.generator = torch.Generator().manual_seed(seed)
        self._sections = _sections(self._lengths, power, batch_size, max_cost)

    @classmethod
    def from_dataset(cls, dataset: Any, **options: Any) -> LengthBatchSampler:
        """Make one for a data set, or for torch's ``Subset`` of one.

        Parameters
        ----------
        dataset
            `AffinityDataset` (structures that have not been read yet are read now, and kept),
            `SequenceDataset`, or any other with ``lengths``. Crops to ``max_length`` count.
        **options
            All other arguments of the class.

        Raises
        ------
        ConfigError
            If the data set does not give lengths, or an argument is not allowed.
        DataError
            If structures cannot be read; all of them are listed.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> data = AffinityDataset.synthetic(6, length=12)
        >>> [len(batch) for batch in LengthBatchSampler.from_dataset(data, batch_size=3)]
        [3, 3]
        """
        return cls(lengths=lengths_of(dataset), **options)

    @classmethod
    def by_tokens(cls, dataset: Any, max_tokens: int, **options: Any) -> LengthBatchSampler:
        """Make one whose batches hold at most so many residues, and as many samples as fit.

        Parameters
        ----------
        dataset
            As in `from_dataset`.
        max_tokens
            Most residues in a batch, counted as if it were padded to its longest sample, which has
            a batch to itself if it is longer.
        **options
            ``shuffle`` and ``seed``.

        Raises
        ------
        ConfigError
            If `max_tokens` is not above 0, or the data set does not give lengths.

        Examples
        --------
        >>> from molfun.data import SequenceDataset
        >>> data = SequenceDataset.from_list(["M" * n for n in (3, 3, 3, 8, 9, 20)])
        >>> sampler = LengthBatchSampler.by_tokens(data, 18, shuffle=False)
        >>> list(sampler)
        [[5], [4, 3], [0, 1, 2]]
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {max_tokens}.")
        return cls.from_dataset(
            dataset, batch_size=max_tokens, power=1.0, max_cost=float(max_tokens), **options
        )

    def __len__(self) -> int:
        return sum(math.ceil(len(members) / size) for members, size in self._sections)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.draw())

    def draw(self) -> Batches:
        """Return the batches of the next epoch without making lists of them."""
        cut = [self._cut(*section) for section in self._sections]
        ends = np.cumsum(np.concatenate([sizes for _, sizes in cut]))
        order = None
        if self.shuffle:
            order = torch.randperm(len(ends), generator=self.generator).numpy()
        return Batches(np.concatenate([members for members, _ in cut]), ends, order)

    def heaviest(self) -> tuple[int, int]:
        """Return the index of a sample and a batch size: the batch with the most residue pairs.

        Examples
        --------
        >>> LengthBatchSampler(lengths=[10, 40, 10, 10], batch_size=3, max_cost=40**3).heaviest()
        (1, 1)
        """
        batches = [(int(members[0]), min(size, len(members))) for members, size in self._sections]
        return max(batches, key=lambda batch: batch[1] * int(self._lengths[batch[0]]) ** 2)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the batches together with lengths and seed, as plain values."""
        names = ("batch_size", "power", "max_cost", "shuffle")
        return {name: getattr(self, name) for name in names}

    def _cut(self, members: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the members in order, and the sizes of the batches: one has what is left over."""
        whole, rest = divmod(len(members), size)
        sizes, place = [size] * whole, whole
        if self.shuffle:
            costs = self._lengths[members].astype(np.float64) ** self.power
            members = members[np.argsort(self._near(costs), kind="stable")]
            # at a random place: a small batch may be an optimizer step of its own, and at a fixed
            # end that step would always see the shortest or the longest samples
            place = int(torch.randint(whole + 1, (), generator=self.generator))
        if rest:
            sizes.insert(place, rest)
        return members, np.asarray(sizes)

    def _near(self, costs: Float64[np.ndarray, "members"]) -> Float64[np.ndarray, "members"]:
        """Return the costs times a random factor near 1."""
        draws = torch.rand(len(costs), generator=self.generator, dtype=torch.float64)
        return costs * (1 + COST_SLACK * (2 * draws.numpy() - 1))


def lengths_of(dataset: Any) -> Int64[np.ndarray, "samples"]:
    """Return the number of residues of each sample that the model sees at most.

    Parameters
    ----------
    dataset
        A data set with ``lengths``, or torch's ``Subset`` of one.

    Raises
    ------
    ConfigError
        If there are none.

    Examples
    --------
    >>> from molfun.data import SequenceDataset
    >>> lengths_of(SequenceDataset.from_list(["MKV", "ACDEF"], max_length=4)).tolist()
    [3, 4]
    """
    if isinstance(dataset, Subset):
        whole: Any = dataset.dataset
        if hasattr(whole, "subset"):  # which reads the structures of no other sample
            return lengths_of(whole.subset(dataset.indices))
        return lengths_of(whole)[list(dataset.indices)]
    lengths = getattr(dataset, "lengths", None)
    if lengths is None:
        raise ConfigError(
            f"{type(dataset).__name__} does not tell the lengths of its samples. Pass them: "
            f"LengthBatchSampler(lengths=[...], ...)."
        )
    return np.asarray(lengths)


def _check(lengths: np.ndarray, batch_size: int, power: float, max_cost: float | None) -> None:
    problems = [_problem_of(lengths), *wrong_counts(batch_size=batch_size)]
    if not 0 < power <= LARGEST_POWER:
        problems.append(f"power must be above 0 and at most {LARGEST_POWER:g}, got {power!r}.")
    if max_cost is not None and not max_cost > 0:
        problems.append(f"max_cost must be above 0, got {max_cost!r}. None sets no bound.")
    if any(problems):
        raise ConfigError(" ".join(filter(None, problems)))


def _problem_of(lengths: np.ndarray) -> str:
    if lengths.size == 0:
        return "There are no lengths, so there is nothing to make batches of."
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        return f"lengths must be whole numbers, one per sample, got {lengths.dtype}{lengths.shape}."
    wrong = np.flatnonzero(lengths < 1)
    if len(wrong):
        first = int(wrong[0])
        return (
            f"lengths must be at least 1; {counted(len(wrong), 'sample')} below that, the first "
            f"at index {first} with {lengths[first]}."
        )
    return ""


def _batch_sizes(
    costs: Float64[np.ndarray, "distinct"], batch_size: int, max_cost: float | None
) -> Int64[np.ndarray, "distinct"]:
    """Return the largest batch in which a sample of each cost may be the most costly one."""
    if max_cost is None:
        return np.full(len(costs), batch_size)
    sizes = np.clip(np.floor(max_cost / costs), 1, batch_size)
    # a quotient may be rounded up to the next whole number
    sizes -= (sizes > 1) & (sizes * costs > max_cost)
    return sizes.astype(np.int64)


def _sections(
    lengths: np.ndarray, power: float, batch_size: int, max_cost: float | None
) -> list[tuple[np.ndarray, int]]:
    """Return samples from the most to the least costly, in sections of one batch size each.

    Any `size` members of a section together are within the bound of the cost, as each of them is
    allowed in a batch of that size. A section is filled up with the next, less costly samples to
    whole batches, so only the last section of all leaves a smaller batch.
    """
    shortest_first, counts = np.unique(lengths, return_counts=True)
    distinct = shortest_first[::-1].astype(np.float64) ** power
    sizes = _batch_sizes(distinct, batch_size, max_cost)
    ends = np.cumsum(counts[::-1])
    # of small whole numbers, numpy sorts ten million in a second
    down = (shortest_first[-1] - lengths).astype(np.min_scalar_type(shortest_first[-1]))
    order = np.argsort(down, kind="stable")
    order = order.astype(np.min_scalar_type(len(order)), copy=False)
    sections, start = [], 0
    while start < len(order):
        size = int(sizes[np.searchsorted(ends, start, side="right")])
        end = int(ends[np.searchsorted(sizes, size, side="right") - 1])
        end = start + size * math.ceil((end - start) / size)
        sections.append((order[start:end], size))
        start = end
    return sections

"""Base of the data sets whose samples are files: of structures, or of features made of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from datetime import date
from typing import Any, Self

import numpy as np
import torch

from molfun._shapes import Bool, Int64
from molfun.data.affinity_files import Source
from molfun.data.base import TableDataset
from molfun.data.faults import kind_of, report
from molfun.data.structure_labels import label_fault
from molfun.data.tables import Table
from molfun.errors import ConfigError, DataError
from molfun.protein import DrawPolicy, check_draw
from molfun.sample import Sample
from molfun.text import counted, few, listing

logger = logging.getLogger(__name__)
_DATED = ("date of release", "PDB files have it in REVDAT records")


class StructureFiles(TableDataset):
    """Samples that are structures or pre-computed features, each a file of its own.

    Parsed structures stay in memory, so that only the first epoch reads files; call `check` before
    training to parse all of them and to see every fault at once.

    Parameters
    ----------
    table
        Ids, labels and other columns.
    source
        Where the samples come from.
    """

    kind = "structures"
    draw: DrawPolicy | None = None
    """Policy of the crops that are drawn (`random_crops`); None where the same ones come again."""
    _verb, _rows_of = "read", "their rows from"

    def __init__(self, table: Table, source: Source) -> None:
        super().__init__(table, max_length=source.max_length, columns=source.columns)
        self._source = source

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        name = self.ids[index]
        sample = Sample(
            id=name,
            protein=self._source.protein(name),
            features=self._source.read_features(name),
            alignment_dir=self._source.alignments.get(name),
            target=self._label(index),
            metadata=self.row(index),
            max_length=self.max_length,
            origin=str(self._source.features.get(name, "")),
        )
        return sample if self.draw is None else self._drawn(sample)

    def _drawn(self, sample: Sample) -> Sample:
        """Return a sample with another part of its structure, where it is longer than a crop."""
        whole = self._source.whole(sample.id)
        if self.draw is None or self.max_length is None or whole is None:
            return sample
        if len(whole) <= self.max_length:
            return sample
        # one number of the global generator, which the engine seeds for each sample of an epoch
        seed = int(torch.randint(2**63 - 1, ()))
        part = whole.random_crop(self.max_length, self.draw, np.random.default_rng(seed))
        label = sample.target
        if self.labels_from_structure and label is not None:
            label = None if label_fault(part) else part
        return replace(sample, protein=part, target=label, drawn=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples from {self._table.path})"

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Residues of each sample that the model sees at most; files not read yet are read."""
        return self._cropped(sum(map(len, chains)) for chains in self.sequences())

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""
        aligned = any(name in self._source.alignments for name in self.ids)
        return {
            "max_length": self.max_length,
            "crop": self._source.crop,
            "alignments": aligned,
            **({} if self.draw is None else {"draw": self.draw}),
            **self._columns,
        }

    def sequences(self) -> list[tuple[str, ...]]:
        """Return the sequence of each chain, before any crop.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> [len(chain) for chain in AffinityDataset.synthetic(1, length=7).sequences()[0]]
        [7]
        """
        return self._collect(self._source.sequences)

    def check(self, *, workers: int = 0) -> Self:
        """Parse every file now, and keep the parsed structures for training.

        Call it before a DataLoader with workers starts: the workers then inherit the structures
        and read nothing again.

        Parameters
        ----------
        workers
            Processes that parse structures, if these are many (200 or more).

        Returns
        -------
        StructureFiles
            This data set.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.
        """
        self._source.parse_all(self.ids, workers)
        self._collect(self._examined)
        self._collect(self._source.read_features, keep=False)
        bad = self._source.unreadable
        if not bad:  # where faults are collected, files that cannot be read are left out
            return self
        return self.subset([i for i, name in enumerate(self.ids) if name not in bad])

    def _examined(self, name: str) -> Any:
        """Read one sample, and raise a `DataError` if it cannot be used."""
        return self._source.protein(name)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return what reading changed or chose, for each structure where it did."""
        proteins = dict(zip(self.ids, self._collect(self._source.protein), strict=True))
        return {name: p.notes for name, p in proteins.items() if p is not None and p.notes}

    def notes_in_brief(self) -> str:
        """Say in one line what reading changed: each kind of note, and in how many structures.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> AffinityDataset.synthetic(3).notes_in_brief()
        ''
        """
        kinds = Counter(
            kind
            for notes in self.notes().values()
            for kind in dict.fromkeys(getattr(note, "kind", "other") for note in notes)
        )
        return ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())

    def random_crops(self, policy: DrawPolicy = "auto") -> Self:
        """Return the same samples with a crop that is drawn whenever a sample is read.

        For training: `fit` draws it from (seed, epoch, sample), so that a resumed run sees the same
        crops. Validate on the data set itself, whose crops are always the same. `targets` and
        `lengths` are those of the data set itself.

        Parameters
        ----------
        policy
            Which residues may be drawn, as in `molfun.protein.Protein.random_crop`.

        Raises
        ------
        ConfigError
            If the data set has no `max_length`, or the policy is unknown.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> AffinityDataset.synthetic(2).random_crops()
        Traceback (most recent call last):
        ...
        molfun.errors.ConfigError: random_crops needs max_length, the residues of a crop.
        """
        if self.max_length is None:
            raise ConfigError("random_crops needs max_length, the residues of a crop.")
        check_draw(self.max_length, policy)
        view = copy(self)
        view.draw = policy
        n = view._n_longer()
        view.draws_nothing = n == 0
        if n:
            logger.info(
                "%d of %s: longer than %d residues, so another part (%s) is drawn in each epoch, "
                "and caches keep nothing of them.",
                n, counted(len(self), "structure"), self.max_length, policy,
            )  # fmt: skip
        return view

    def _n_longer(self) -> int:
        """Count the structures that are longer than a crop, and read all of each."""
        wholes = map(self._source.whole, self.ids)
        return sum(one is not None and len(one) > (self.max_length or 0) for one in wholes)

    def filter_experiments(
        self,
        *,
        max_resolution: float | None = None,
        released_before: str | date | None = None,
        released_after: str | date | None = None,
    ) -> Self:
        """Return the structures that pass filters on what their files state; say which do not.

        A structure whose file lacks the value does not pass, which is said in a line of its own.

        Parameters
        ----------
        max_resolution
            Largest resolution in angstrom.
        released_before, released_after
            Dates as ``"2018-05-01"``: kept is what was released earlier than the first, and on the
            second or later.

        Raises
        ------
        ConfigError
            If a bound is not allowed.
        DataError
            If no structure is left.
        """
        check_resolutions(max_resolution=max_resolution)
        before, after = _as_date(released_before), _as_date(released_after)
        kept = self._sharp(max_resolution)
        released = [self._source.experiment(name).released for name in self.ids]
        if before is not None:
            late = [None if d is None else d >= before for d in released]
            kept &= self._tested(late, f"released_before={before}", *_DATED)
        if after is not None:
            early = [None if d is None else d < after for d in released]
            kept &= self._tested(early, f"released_after={after}", *_DATED)
        if not kept.any():
            raise DataError(f"No structure of {self._table.path} is left after the filters.")
        return self if kept.all() else self.subset(kept)

    def _sharp(self, max_resolution: float | None) -> Bool[np.ndarray, "samples"]:
        """Return which structures have a resolution that is good enough."""
        if max_resolution is None:
            return np.ones(len(self), bool)
        values = [self._source.resolution_of(name) for name in self.ids]
        bad = [None if v is None else v > max_resolution for v in values]
        advice = "give resolution=VALUE (--resolution) to keep them"
        return self._tested(bad, f"max_resolution={max_resolution:g}", "resolution", advice)

    def _tested(
        self, bad: Sequence[bool | None], rule: str, noun: str, advice: str
    ) -> Bool[np.ndarray, "samples"]:
        """Return which structures pass a filter; those without a value do not, and are named."""
        unknown = [name for name, one in zip(self.ids, bad, strict=True) if one is None]
        removed, n = sum(one is True for one in bad), counted(len(self), "structure")
        if removed:
            logger.warning("%s leaves out %d of %s.", rule, removed, n)
        if unknown:
            logger.warning(
                "%s leaves out %d of %s without a %s (%s): %s.",
                rule, len(unknown), n, noun, few(unknown, limit=5), advice,
            )  # fmt: skip
        return np.array([one is False for one in bad])

    def _collect(self, read: Callable[[str], Any], *, keep: bool = True) -> list[Any]:
        """Read every sample, and report all bad ones in one error."""
        results, problems = [], {}
        for name in self.ids:
            try:
                result = read(name)
            except DataError as error:
                problems[name] = str(error)
            else:
                results.append(result if keep else None)
        if problems:
            texts = list(problems.values())
            failure = DataError(
                f"{len(texts)} of {len(self)} samples cannot be {self._verb}:\n{listing(texts)}\n"
                f"Repair these files, or remove {self._rows_of} {self._table.path}."
            )
            for name, text in problems.items():
                report(self._table.path, [text], failure, kind_of(text, self._source.file(name)))
            self._source.unreadable |= problems.keys()
        return results


# Settings


def _as_date(given: str | date | None) -> str | None:
    try:
        return None if given is None else date.fromisoformat(str(given)).isoformat()
    except ValueError:
        raise ConfigError(f"{given!r} is no date; write it as 2018-05-01.") from None


def check_resolutions(**given: float | None) -> None:
    """Refuse resolutions that are none.

    Raises
    ------
    ConfigError
        Naming the setting.
    """
    for name, value in given.items():
        if value is not None and not 0 < value < np.inf:
            raise ConfigError(f"{name} must be a positive number of angstrom, got {value}.")

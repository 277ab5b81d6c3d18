"""One data set with several labels per sample, by name, for a model with several heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from molfun._shapes import Int64
from molfun.data.base import SampleDataset
from molfun.data.structure_files import StructureFiles
from molfun.data.structure_labels import label_fault
from molfun.errors import ConfigError, DataError
from molfun.protein import DrawPolicy, Protein
from molfun.sample import Sample, is_missing
from molfun.text import counted

if TYPE_CHECKING:
    import pandas as pd


class NamedTargets(SampleDataset):
    """The same samples with a label of each of several data sets.

    A label that is a structure (`AffinityDataset.structures`) is that of the sample itself, in the
    crop that the model sees.

    Parameters
    ----------
    parts
        Data sets of the same samples, each with the labels of one head, by the names of the heads.
        Inputs, ids and columns are those of the first.

    Raises
    ------
    ConfigError
        If there is none.
    DataError
        If their samples differ.

    Examples
    --------
    >>> from molfun.data import NamedTargets, SequenceDataset
    >>> ddg = SequenceDataset.from_list([("MKV", 0.5), ("ACD", None)])
    >>> tm = SequenceDataset.from_list([("MKV", 60.0), ("ACD", 55.0)])
    >>> NamedTargets({"ddg": ddg, "tm": tm}).targets
    [{'ddg': 0.5, 'tm': 60.0}, {'tm': 55.0}]
    """

    @property
    def wild_type(self) -> str | None:
        """Sequence of which the samples are variants, if it is known."""
        return getattr(self._first, "wild_type", None)

    def __init__(self, parts: Mapping[str, SampleDataset]) -> None:
        if not parts:
            raise ConfigError("NamedTargets needs a data set for each name, and got none.")
        self.parts = dict(parts)
        self._first = next(iter(self.parts.values()))
        for name, part in self.parts.items():
            if part.ids != self._first.ids:
                raise DataError(
                    f"The data set for {name!r} has other samples than the first one: "
                    f"{len(part)} against {len(self._first)}, or in another order."
                )
        _check_weights(self.parts, self._first)
        structures = {n: part for n, part in self.parts.items() if part.labels_from_structure}
        columns = {n: _plain(part.targets) for n, part in self.parts.items() if n not in structures}
        self._targets = [_named(columns, row) for row in range(len(self._first))]
        self._structures = {n: list(part.targets) for n, part in structures.items()}
        self.draws_nothing = self._first.draws_nothing

    @property
    def ids(self) -> list[str]:
        """Ids in order."""
        return self._first.ids

    @property
    def targets(self) -> list[dict[str, Any]]:
        """Labels by name, in order; a name without a label is left out."""
        if not self._structures:
            return self._targets
        return [own | _named(self._structures, row) for row, own in enumerate(self._targets)]

    @property
    def metadata(self) -> pd.DataFrame:
        """The other columns, one row per sample."""
        return self._first.metadata

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Residues, frames or atoms of each sample that the model sees at most."""
        return self._first.lengths

    @property
    def default_batch_size(self) -> int:
        """Samples per batch where no loader says otherwise."""
        return self._first.default_batch_size

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings that prepare inputs, and under ``heads`` those that read each name's labels."""
        each = {name: part.input_settings for name, part in self.parts.items()}
        return {**self._first.input_settings, "heads": each}

    @property
    def id_name(self) -> str:
        """Column of the ids."""
        return self._first.id_name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(len(self), 'sample')}; {', '.join(self.parts)})"

    def __getitem__(self, index: int) -> Sample:
        """Return one sample with its labels by name."""
        place = self.place(index)
        sample = self._first[place]
        # the crop of the sample may be drawn, so its label is made of it
        structure = {
            name: _as_label(sample.protein, labels[place])
            for name, labels in self._structures.items()
            if not is_missing(labels[place])
            and not (sample.protein is not None and label_fault(sample.protein))
        }
        return replace(sample, target=self._targets[place] | structure)

    def random_crops(self, policy: DrawPolicy = "auto") -> Self:
        """Return the same samples with crops that are drawn, as `StructureFiles.random_crops`.

        Raises
        ------
        ConfigError
            If the samples are no structures, or have no `max_length`.
        """
        if not isinstance(self._first, StructureFiles):
            raise ConfigError(
                f"random_crops is for structures, not for {type(self._first).__name__}."
            )
        first, *_ = self.parts
        return type(self)({**self.parts, first: self._first.random_crops(policy)})

    def sequences(self) -> list[tuple[str, ...]]:
        """Return the sequences of each sample, or a text in their place."""
        return self._first.sequences()

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the samples at `indices`, in that order."""
        return type(self)({name: part.subset(indices) for name, part in self.parts.items()})


def _named(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    """Return the labels of one sample by name, without those that are missing."""
    labels = {name: column[row] for name, column in columns.items()}
    return {name: label for name, label in labels.items() if not is_missing(label)}


def _as_label(protein: Protein | None, label: Protein) -> Protein | None:
    """Return the protein of a sample as a label, with the resolution that its data set gives it."""
    if protein is None or protein.resolution == label.resolution:
        return protein
    return replace(protein, resolution=label.resolution)


def _plain(targets: Any) -> list[Any]:
    return targets.tolist() if isinstance(targets, np.ndarray) else list(targets)


def _check_weights(parts: Mapping[str, SampleDataset], first: SampleDataset) -> None:
    """Refuse weights that the first data set, whose columns samples have, does not hold."""
    for name, part in parts.items():
        column = part.input_settings.get("weight_column")
        if column is None or part is first:
            continue
        there = column in first.metadata
        if not there or list(first.metadata[column]) != list(part.metadata[column]):
            raise DataError(
                f"The data set for {name!r} is weighted by its column {column!r}, which the first "
                f"one {'has with other values' if there else 'lacks'}. Read both from one table."
            )

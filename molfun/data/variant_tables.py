"""Read tables of mutations, and compare sequences with a wild type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from molfun._paths import as_path
from molfun.data.base import TableDataset
from molfun.data.cells import Cells, Required, noted, read_cells
from molfun.data.fasta import read_fasta
from molfun.data.labels import LabelForm, read_labels
from molfun.data.tables import Table
from molfun.data.variants import Variant, parse_variant
from molfun.errors import DataError
from molfun.text import counted, listing, shown

Dataset = TypeVar("Dataset", bound=TableDataset)


def read_wild_type(given: str) -> tuple[str, str]:
    """Return name and sequence of a wild type, from its letters or from a FASTA file.

    Raises
    ------
    DataError
        If there is no such file, or it has several records.

    Examples
    --------
    >>> read_wild_type("mkv")
    ('wild type', 'MKV')
    """
    if not names_file(given):
        if "." in given or "/" in given:
            raise DataError(f"No such file: {given}.")
        return "wild type", given.upper()
    records = list(read_fasta(as_path(given)))
    if len(records) != 1:
        names = ", ".join(name for name, _ in records[:5])
        raise DataError(
            f"{given} has {counted(len(records), 'record')} ({names}): give a file with the wild "
            f"type alone."
        )
    ((name, sequence),) = records
    return name, sequence.upper()


def names_file(text: str | None) -> bool:
    """Return whether a text names a file; letters of a protein may be longer than a name."""
    return text is not None and len(text) < 256 and as_path(text).is_file()


def read_variant_table(
    dataset_class: type[Dataset],
    csv: str | Path,
    wild_type: str,
    *,
    mutant_column: str = "mutant",
    target_column: str = "target",
    id_column: str | None = None,
    offset: int = 0,
    labels: LabelForm = "number",
    max_length: int | None = None,
    require_target: Required = True,
) -> Dataset:
    """Read a table of variants; see `SequenceDataset.from_variants`."""
    _, protein = read_wild_type(wild_type)
    cells = read_cells(as_path(csv), mutant_column)
    label = {target_column: "target_column"} if require_target else {}
    named = {id_column: "id_column"} if id_column else {}
    cells.require({mutant_column: "mutant_column", **named, **label})
    # all that is wrong with variants, labels and ids is noted, and reported together
    variants = _variants(cells, mutant_column, protein, offset)
    targets = read_labels(cells, target_column, labels, "sequence", required=require_target)
    given = _distinct_ids(cells, id_column) if id_column else None
    cells.raise_problems(goes_on=True)
    names = [variant.name(offset=offset) for variant in variants]
    # replicates have one name, and ids have to differ
    own = names if len(set(names)) == len(names) else [f"seq_{i + 1}" for i in range(len(names))]
    ids = own if given is None else given
    # the column of mutations stays among the others: predictions are written beside it
    table = Table.of(cells, ids, targets, used={target_column, id_column})
    columns: dict[str, Any] = {
        "wild_type": protein,
        "mutant_column": mutant_column,
        "target_column": target_column,
        "id_column": id_column,
        "offset": offset,
        "labels": labels,
        "level": "sequence",
    } | noted(require_target)
    sequences = [variant.apply(protein) for variant in variants]
    make: Any = dataset_class
    dataset: Dataset = make(table, sequences, max_length=max_length, columns=columns)
    return dataset.subset(cells.good()) if cells.bad else dataset


def _variants(cells: Cells, column: str, protein: str, offset: int) -> list[Variant]:
    """Return the variant of each row; note those that cannot be read."""
    found = []
    for row, text in enumerate(cells.column(column)):
        try:
            found.append(parse_variant(text, protein, offset=offset))
        except DataError as error:
            cells.note(row, column, str(error))
            found.append(Variant(()))  # of a row that is left out
    return found


def _distinct_ids(cells: Cells, column: str) -> Sequence[str]:
    """Return the ids of all rows; note those that name no sample, or one of before."""
    ids = cells.ids(column)
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        earlier = first.setdefault(name, row)
        if name and earlier != row:
            cells.note(row, column, f"{shown(name)} stands on {cells.where(earlier)} already")
    return ids


def mutated_places(dataset: Any, wild_type: str | None = None) -> list[frozenset[int]]:
    """Return the places, from 0, at which each sample differs from the wild type.

    Parameters
    ----------
    dataset
        Sequences of the length of the wild type.
    wild_type
        Its letters, or a FASTA file; None takes that of a data set made by `from_variants`.

    Raises
    ------
    DataError
        If there is no wild type, or sequences have other lengths; these are listed.
    """
    given = wild_type or getattr(dataset, "wild_type", None)
    if given is None:
        raise DataError(
            "This split compares sequences with the wild type: give wild_type (--wild-type), or "
            "read the variants with SequenceDataset.from_variants."
        )
    _, protein = read_wild_type(given)
    texts = [chain for (chain,) in dataset.sequences()]
    wrong = [
        f"{name}: {counted(len(text), 'residue')}"
        for name, text in zip(dataset.ids, texts, strict=True)
        if len(text) != len(protein)
    ]
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'sequence')} of another length than the wild type's "
            f"{len(protein)} residues, so that no position can be compared:\n{listing(wrong)}"
        )
    letters = np.frombuffer(protein.encode("ascii", "replace"), np.uint8)
    found = []
    for text in texts:
        own = np.frombuffer(text.upper().encode("ascii", "replace"), np.uint8)
        found.append(frozenset(np.flatnonzero(own != letters).tolist()))
    return found

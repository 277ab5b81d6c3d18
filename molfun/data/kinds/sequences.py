"""Protein sequences with labels: a table, or a FASTA file where labels are not needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from molfun._paths import as_path
from molfun.config import Settings, option
from molfun.data.kinds.base import TABLES, DataKind, Labels, TableSettings
from molfun.errors import ConfigError

if TYPE_CHECKING:
    from molfun.data.base import SampleDataset
    from molfun.data.sequences import SequenceDataset

logger = logging.getLogger(__name__)

PANEL = "Sequences"
FASTA = (".fasta", ".fa", ".faa", ".fas")
WITHOUT_COLUMN = {
    "id_column": "its rows are called seq_1, seq_2 ...",
    "mask_column": "labels count on every residue where they are not '?'",
}
"""Consequence of a column of the training set that a later table lacks."""


MOST_VALIDATED = 10_000
"""Sequences that validate pre-training where no fraction is given."""


class SequenceInputs(Settings):
    """Column of the sequences in a table, and the crop of long ones."""

    sequence_column: str = option("sequence", "Sequences; of chains A,B.", panel="Data", again=True)
    structure_column: str | None = option(
        None, "Column of structure letters (3Di), for SaProt and ProstT5.", panel=PANEL,
        hidden=True, again=True,
    )  # fmt: skip
    long: Literal["full", "crop", "window"] | None = option(
        None, "Sequences above 1,022 residues: {choices}.", panel=PANEL, shown="full",
        hidden=True, of_model=True,
    )  # fmt: skip


class SequenceSettings(SequenceInputs, TableSettings):
    """Settings of a table of sequences with labels."""

    mutant_column: str | None = option(
        None, "Column of mutations (A24G:K31E) in place of sequences; needs --wild-type.",
        panel=PANEL, hidden=True, again=True,
    )  # fmt: skip
    wild_type: str | None = option(
        None, "The wild type: a FASTA file, or its letters.", panel=PANEL, hidden=True, again=True
    )
    offset: int = option(
        0, "Number of the first residue in mutations, minus 1.", panel=PANEL, hidden=True,
        again=True,
    )  # fmt: skip
    augment: Literal["zero_shot"] | None = option(
        None, "zero_shot: the head reads the model's score of each variant as well.",
        panel=PANEL, hidden=True, of_model=True,
    )  # fmt: skip
    mask_column: str | None = option(
        None, "Column of 0 and 1 per residue: 1 where the label counts.", panel=PANEL, hidden=True,
        of_head=True,
    )  # fmt: skip


class Sequences(DataKind):
    """One-letter sequences in a column of a table."""

    name = "sequences"
    title = "sequences"
    backbone = "esm2_t6_8M_UR50D"
    settings = SequenceSettings
    columns = {"target_column": "target"}  # noqa: RUF012
    default_batch_size = 8
    suffixes = FASTA
    readers = {  # noqa: RUF012
        **dict.fromkeys(TABLES, "SequenceDataset.from_csv"),
        **dict.fromkeys((*FASTA, ".a3m"), "SequenceDataset.from_fasta"),
    }
    objective = "masked_lm"
    takes_several_targets = True

    def problems(self, settings: Any, labels: Labels) -> list[str]:
        """Refuse a mask of residues for labels of whole sequences, and mutations of nothing."""
        if settings.mutant_column is not None and labels.task == "multitarget":
            return ["multitarget reads sequences, and mutant_column a table of mutations: give a "
                    "head to each target column (--target-column A,B without --task)."]  # fmt: skip
        if settings.mutant_column is not None and settings.wild_type is None:
            return [
                f"mutant_column={settings.mutant_column!r} needs the protein that is mutated: "
                f"wild_type (--wild-type)."
            ]
        if settings.augment is not None and (problem := _no_scores(settings, labels)):
            return [problem]
        if settings.mask_column is None or labels.level == "residue":
            return []
        return [
            f"mask_column={settings.mask_column!r} is for labels of residues (--level residue); "
            f"these are of the level {labels.level!r}."
        ]

    def open(
        self,
        settings: Any,
        labels: Labels,
        *,
        like: SampleDataset | None = None,
    ) -> SequenceDataset:
        """Read a table."""
        from molfun.data.sequences import SequenceDataset

        if settings.mutant_column is not None:
            return SequenceDataset.from_variants(
                settings.data,
                settings.wild_type,
                mutant_column=settings.mutant_column,
                target_column=self.column(settings, "target_column"),
                id_column=settings.id_column,
                offset=settings.offset,
                labels=labels.form,
                max_length=settings.max_length,
                require_target=labels.required,
            )
        target = self.column(settings, "target_column")
        return SequenceDataset.from_csv(
            settings.data,
            sequence_column=settings.sequence_column,
            target_column=split_names(target) if labels.task == "multitarget" else target,
            id_column=settings.id_column,
            mask_column=settings.mask_column,
            structure_column=settings.structure_column,
            labels=labels.form,
            level="residue" if labels.level == "residue" else "sequence",
            max_length=settings.max_length,
            require_target=labels.required,
        )

    def task_arguments(self, settings: Any, labels: Labels, dataset: Any) -> dict[str, Any]:
        """Return the names of the columns of several labels."""
        return {"targets": dataset.target_names} if labels.task == "multitarget" else {}

    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> SequenceDataset:
        """Read a table, or without labels also a FASTA file."""
        from molfun.data.sequences import SequenceDataset

        merged = {**trained, **given}
        data, max_length = merged["data"], merged.get("max_length")
        if is_fasta(data):
            if labels:
                raise ConfigError(f"{data} has no labels to evaluate against; give a table.")
            return SequenceDataset.from_fasta(data, max_length=max_length)
        names = (
            "sequence_column", "target_column", "id_column", "mask_column", "structure_column",
            "labels", "level",
        )  # fmt: skip
        if _has_mutations(merged):
            return _reopen_variants(merged, labels=labels)
        columns = {name: merged[name] for name in names if merged.get(name) is not None}
        _separate_targets(columns, trained)
        # a table to predict has neither labels nor, often, ids; one of predictions has no masks
        if not labels:
            columns.pop("mask_column", None)
        _drop_absent(columns, data, "mask_column" if labels else "id_column")
        return SequenceDataset.from_csv(
            data,
            **columns,
            max_length=max_length,
            require_target=labels and merged.get("require_target", True),
        )

    def validation_fraction(self, n: int) -> float:
        """Return 0.01, or less where 10,000 sequences are enough to tell epochs apart."""
        return min(0.01, MOST_VALIDATED / n)

    def open_unlabelled(
        self,
        path: str,
        settings: Any,
        *,
        like: SampleDataset | None = None,
    ) -> SampleDataset:
        """Read sequences alone: a FASTA file, a column of a table, Arrow or Parquet files."""
        from molfun.data.sequences import SequenceDataset

        if is_fasta(path):
            return SequenceDataset.from_fasta(path, max_length=settings.max_length)
        if (stored := stored_format(path)) is not None:
            read = SequenceDataset.from_arrow if stored == "arrow" else SequenceDataset.from_parquet
            return read(
                path,
                sequence_column=settings.sequence_column,
                id_column=settings.id_column,
                max_length=settings.max_length,
                cache_dir=settings.cache_dir,
            )
        return SequenceDataset.from_csv(
            path,
            sequence_column=settings.sequence_column,
            structure_column=getattr(settings, "structure_column", None),
            id_column=settings.id_column,
            max_length=settings.max_length,
            require_target=False,
        )


def _no_scores(settings: Any, labels: Labels) -> str:
    """Return why there are no zero-shot scores for these settings; empty where there are."""
    what = f"augment={settings.augment!r} is a score of variants"
    if settings.mutant_column is None:
        return f"{what}: give the column of their mutations (--mutant-column) and --wild-type."
    if labels.level == "residue":
        return f"{what}, and these are labels of residues: leave it out."
    cut = [n for n in ("layer", "sweep") if getattr(settings, n, None) is not None]
    if cut:
        return f"{what} by all blocks of the language model: leave out {cut[0]}."
    return ""


def split_names(columns: str) -> list[str]:
    """Return the names of several columns, with commas between them on the command line.

    Examples
    --------
    >>> split_names("kd, kon")
    ['kd', 'kon']
    """
    return [name.strip() for name in columns.split(",")]


def is_fasta(path: str) -> bool:
    """Return whether a name is that of a FASTA file rather than of a table."""
    return Path(path.removesuffix(".gz")).suffix.lower() in FASTA


def stored_format(path: str) -> Literal["arrow", "parquet"] | None:
    """Return the format of a file, or of a folder of files, that is opened without being read.

    Raises
    ------
    ConfigError
        If a folder holds both.
    """
    from molfun.data.arrow_files import ARROW, PARQUET

    source = as_path(path)
    ends = {file.suffix.lower() for file in (source.iterdir() if source.is_dir() else [source])}
    if ends.isdisjoint(ARROW):
        return None if ends.isdisjoint(PARQUET) else "parquet"
    if not ends.isdisjoint(PARQUET):
        raise ConfigError(
            f"{path} holds Arrow and Parquet files. Give a folder with one copy of each sequence."
        )
    return "arrow"


def _separate_targets(columns: dict[str, Any], trained: Mapping[str, Any]) -> None:
    """Make a list of several target columns, which the command line and its file name as a text."""
    target = columns.get("target_column")
    if isinstance(trained.get("target_column"), list) and isinstance(target, str):
        columns["target_column"] = split_names(target)


def _has_mutations(merged: Mapping[str, Any]) -> bool:
    """Return whether the table has the column of mutations; one of sequences does as well."""
    from molfun.data.cells import read_cells

    name = merged.get("mutant_column")
    return name is not None and name in read_cells(as_path(merged["data"]), name).header


def _reopen_variants(merged: Mapping[str, Any], *, labels: bool) -> SequenceDataset:
    from molfun.data.sequences import SequenceDataset

    names = ("mutant_column", "target_column", "id_column", "offset", "labels")
    columns = {name: merged[name] for name in names if merged.get(name) is not None}
    if not labels:
        _drop_absent(columns, merged["data"], "id_column")
    return SequenceDataset.from_variants(
        merged["data"],
        merged["wild_type"],
        **columns,
        max_length=merged.get("max_length"),
        require_target=labels and merged.get("require_target", True),
    )


def _drop_absent(columns: dict[str, Any], data: str, argument: str) -> None:
    """Drop a column of the training set that the table lacks, and say what that means."""
    from molfun.data.cells import read_cells

    name = columns.get(argument)
    if name is None:
        return
    sequences = columns.get("sequence_column", "sequence")
    cells = read_cells(as_path(data), sequences if isinstance(sequences, str) else sequences[0])
    if name not in cells.header:
        del columns[argument]
        logger.warning("%s has no column %r: %s.", data, name, WITHOUT_COLUMN[argument])

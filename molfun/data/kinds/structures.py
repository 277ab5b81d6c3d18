"""Structures of proteins with one affinity each: a table, and folders of files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from molfun.config import option
from molfun.data.kinds.base import DataKind, Labels, TableSettings
from molfun.errors import ConfigError, MolfunError

if TYPE_CHECKING:
    from molfun.data.affinity import AffinityDataset
    from molfun.data.base import SampleDataset

logger = logging.getLogger(__name__)

PANEL = "Structures"


class StructureSettings(TableSettings):
    """Settings of tables and folders of protein structures."""

    pdbs: str | None = option(
        None, "Folder of structures {pdb_id}.cif or .pdb (.gz).", panel=PANEL, path=True, again=True
    )
    features: str | None = option(
        None, "Folder of pre-computed features {pdb_id}.pkl.", panel=PANEL, hidden=True, path=True,
        again=True,
    )  # fmt: skip
    alignments: str | None = option(
        None, "Folder of alignments {pdb_id}/*.a3m.", panel=PANEL, hidden=True, path=True,
        again=True,
    )  # fmt: skip
    skip_missing: bool = option(
        False, "Leave out rows without a structure.", panel=PANEL, hidden=True, again=True
    )


class Structures(DataKind):
    """PDB or mmCIF files, or pre-computed features, named by the rows of a table."""

    name = "structures"
    title = "structures of proteins"
    backbone = "openfold"
    settings = StructureSettings
    columns = {"id_column": "pdb_id", "target_column": "affinity"}  # noqa: RUF012
    # memory of a step grows with the square of the length, so that one sample is a batch
    batches_per_step = 8
    readers = dict.fromkeys((".pdb", ".ent", ".cif", ".mmcif"), "molfun.data.read_structure")
    chosen_by = ("pdbs", "features")
    has_demo = True

    def missing(self, settings: StructureSettings) -> str | None:
        """Ask for the folder of files; a table of sequences alone is for another backbone."""
        data = getattr(settings, "data", None)
        if data and (settings.pdbs or settings.features):
            return None
        return _for_sequences(data, self.column(settings, "id_column")) or (
            "give --data TABLE and --pdbs FOLDER (or --features FOLDER), or --demo for a run on "
            "synthetic data"
        )

    def open(
        self,
        settings: Any,
        labels: Labels,
        *,
        like: SampleDataset | None = None,
    ) -> AffinityDataset:
        """Read all files of a table."""
        from molfun.data.affinity import AffinityDataset

        return AffinityDataset.from_csv(
            settings.data,
            settings.pdbs,
            features_dir=settings.features,
            alignments_dir=settings.alignments,
            max_length=settings.max_length,
            skip_missing=settings.skip_missing,
            id_column=self.column(settings, "id_column"),
            target_column=self.column(settings, "target_column"),
            require_target=labels.required,
        ).check(workers=getattr(settings, "workers", 0))

    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> AffinityDataset:
        """Read all files of a table, cropped as in training."""
        from molfun.data.affinity import AffinityDataset

        if given.get("pdbs") is None and given.get("features") is None:
            raise ConfigError("This model takes structures: give --pdbs DIR, or --features DIR.")
        merged = {**trained, **given}
        dataset = AffinityDataset.from_csv(
            merged["data"],
            given.get("pdbs"),
            features_dir=given.get("features"),
            alignments_dir=given.get("alignments"),
            max_length=merged.get("max_length"),
            crop=trained.get("crop", "auto"),
            skip_missing=given.get("skip_missing", False),
            require_target=labels and trained.get("require_target", True),
            **{k: merged[k] for k in ("id_column", "target_column") if k in merged},
        ).check()
        aligned = bool(dataset.input_settings["alignments"])
        if aligned != bool(trained.get("alignments")):
            with_or_without = "without" if aligned else "with"
            logger.warning(
                "The model was trained %s alignments; these samples are the other way round, so "
                "predictions will differ (--alignments FOLDER).",
                with_or_without,
            )
        return dataset

    def notes(self, dataset: AffinityDataset, where: str) -> list[str]:
        """Say what was changed in how many structures; the log tells in which."""
        notes = dataset.notes()
        if not notes:
            return []
        kinds = dataset.notes_in_brief()
        return [f"Structures: {len(notes)} of {len(dataset)} with notes ({where}): {kinds}"]

    def demo(self, n: int, length: int) -> AffinityDataset:
        """Make random proteins whose label follows from their composition."""
        from molfun.data.affinity import AffinityDataset

        return AffinityDataset.synthetic(n, length)


def _for_sequences(data: Any, id_column: str) -> str | None:
    """Advise on a table that has sequences and no ids of structures."""
    from molfun._paths import as_path
    from molfun.data.cells import read_cells

    if not isinstance(data, str):
        return None
    try:
        header = read_cells(as_path(data), "sequence").header
    except MolfunError:  # missing or bad: said when it is opened
        return None
    if "sequence" not in header or id_column in header:
        return None
    return (
        f"{data} has a column 'sequence' and no {id_column!r}: for a model of sequences add "
        f"--backbone esm2_t6_8M_UR50D (its labels: --target-column NAME); for structures give "
        f"--pdbs FOLDER and name the column of ids with --id-column"
    )

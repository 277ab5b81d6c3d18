"""Structures of proteins, with one affinity each or as labels themselves: tables and folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from molfun.config import option
from molfun.data.kinds.base import DataKind, Labels, TableSettings
from molfun.errors import ConfigError, MolfunError
from molfun.registry import TASKS

if TYPE_CHECKING:
    from molfun.data.base import SampleDataset
    from molfun.data.structure_files import StructureFiles
    from molfun.sample import Sample

logger = logging.getLogger(__name__)

PANEL = "Structures"
FILTERS = ("max_resolution", "released_before", "released_after")
PLDDT_HELP = "SaProt: leave structure letters out at a lower pLDDT; auto: below 70 in predictions."
Crop = Literal["fixed", "auto", "contiguous", "spatial", "interface"]


def _as_plddt(given: Any) -> Any:
    try:
        value = None if given in (None, "auto") else float(given)
    except (TypeError, ValueError):
        value = -1.0
    if value is not None and not 0 <= value <= 100:
        raise ValueError("should be a number from 0 to 100, or auto")
    return given if value is None else value


PlddtBelow = Annotated[float | Literal["auto"] | None, BeforeValidator(_as_plddt)]
"""pLDDT below which SaProt leaves structure letters out."""


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
    max_resolution: float | None = option(
        None, "Leave out structures above this resolution (angstrom).", panel=PANEL, hidden=True,
        again=True, gt=0, allow_inf_nan=False,
    )  # fmt: skip
    released_before: str | None = option(
        None, "Leave out structures released on this date (2018-05-01) or later.", panel=PANEL,
        hidden=True, again=True,
    )  # fmt: skip
    released_after: str | None = option(
        None, "Leave out structures released before this date.", panel=PANEL, hidden=True,
        again=True,
    )  # fmt: skip
    plddt_below: PlddtBelow = option(
        None, PLDDT_HELP, panel=PANEL, hidden=True, of_model=True
    )  # fmt: skip
    resolution: float | None = option(
        None, "Resolution of structures that state none (angstrom), for losses of confidence.",
        panel=PANEL, hidden=True, again=True, gt=0, allow_inf_nan=False,
    )  # fmt: skip
    crop: Crop | None = option(
        None, "Crops in training: {choices}; all but fixed are drawn in each epoch.",
        panel=PANEL, hidden=True, shown="auto with --task structure, else fixed",
    )  # fmt: skip


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
    beside = "Predicted structures and their scores"

    def missing(self, settings: StructureSettings) -> str | None:
        """Ask for the folder of files; a table of sequences alone is for another backbone."""
        if _unknown_task(settings):
            return None  # which is told first
        data = getattr(settings, "data", None)
        if data and (settings.pdbs or settings.features):
            return _unread(settings)
        if _learns_structures(settings):
            if data or settings.pdbs:
                return None
            return (
                "give --pdbs FOLDER of structures to learn from (--data TABLE chooses some of "
                "them by id), or --data TABLE with a column of paths"
            )
        return _for_sequences(data, self.column(settings, "id_column")) or (
            "give --data TABLE and --pdbs FOLDER (or --features FOLDER), or --demo for a run on "
            "synthetic data"
        )

    def data_of(self, settings: Any) -> str | None:
        """Return the folder of structures, which needs no table where they are the labels."""
        return settings.pdbs if settings.pdbs and _learns_structures(settings) else None

    def problems(self, settings: Any, labels: Labels) -> list[str]:
        """Return a sentence for each pair of settings that do not go together."""
        found = []
        learned = is_structure(labels)
        if learned and settings.features:
            found.append("features hold no coordinates to learn from: give --pdbs FOLDER.")
        if learned and settings.pdbs not in (None, settings.data) and _is_folder(dict(settings)):
            found.append(f"data={settings.data!r} is a folder of structures: leave out pdbs.")
        if learned and settings.demo:
            found.append("the demo makes proteins without coordinates to learn from: give --pdbs.")
        if settings.crop not in (None, "fixed") and settings.max_length is None:
            found.append(f"crop={settings.crop!r} needs max_length, the residues of a crop.")
        return found

    def label_of_head(self, labels: Labels) -> str | None:
        """Setting that names the labels of one of several heads; structures have no column."""
        return None if is_structure(labels) else super().label_of_head(labels)

    def open(
        self,
        settings: Any,
        labels: Labels,
        *,
        like: SampleDataset | None = None,
    ) -> StructureFiles:
        """Read all files of a table, or of a folder where structures are the labels."""
        given = {name: getattr(settings, name) for name in type(settings).model_fields}
        given["id_column"] = self.column(settings, "id_column")
        if is_structure(labels):
            return _structures(given, crop="auto", require_labels=True)
        given["target_column"] = self.column(settings, "target_column")
        return _affinities(given, crop="auto", require_target=labels.required)

    def derive(self, dataset: SampleDataset, settings: Any, labels: Labels) -> SampleDataset | None:
        """Return samples of another head with their structures as labels, without a second look."""
        from molfun.data.affinity import AffinityDataset

        if not is_structure(labels) or not isinstance(dataset, AffinityDataset):
            return None
        return dataset.structures(resolution=settings.resolution)

    def prepare_training(self, train: Any, settings: Any) -> Any:
        """Return the training set with crops that are drawn, if it has crops and draws them."""
        policy = settings.crop or ("auto" if _learns_structures(settings) else "fixed")
        if policy == "fixed" or settings.max_length is None:
            return train
        return train.random_crops(policy)

    def reopen(
        self, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
    ) -> StructureFiles:
        """Read all files of a table or a folder, cropped as in training."""
        merged = {**trained, **given}
        crop = trained.get("crop", "auto")
        if trained.get("labels") == STRUCTURE or (not labels and _is_folder(merged)):
            dataset: StructureFiles = _structures(merged, crop=crop, require_labels=labels)
        else:
            if given.get("pdbs") is None and given.get("features") is None:
                raise ConfigError(
                    "This model takes structures: give --pdbs DIR, or --features DIR."
                )
            required = labels and trained.get("require_target", True)
            dataset = _affinities(merged, crop=crop, require_target=required)
        aligned = bool(dataset.input_settings["alignments"])
        if aligned != bool(trained.get("alignments")):
            with_or_without = "without" if aligned else "with"
            logger.warning(
                "The model was trained %s alignments; these samples are the other way round, so "
                "predictions will differ (--alignments FOLDER).",
                with_or_without,
            )
        return dataset

    def files_beside(self, table: Path) -> list[Path]:
        """Return the paths of predicted structures and their scores."""
        from molfun.structures import predicted

        return [
            predicted.structures_folder(table),
            predicted.scores_table(table),
            predicted.residues_table(table),
        ]

    def write_beside(
        self,
        table: Path,
        result: Mapping[str, Any],
        dataset: SampleDataset,
        maker: Callable[[], Any],
    ) -> Path | None:
        """Write predicted structures and their scores, where the model predicts structures."""
        heads = [result, *(part for part in result.values() if isinstance(part, Mapping))]
        found = next((part for part in heads if "positions" in part), None)
        if found is None:
            return None
        from molfun.structures.predicted import write_predicted

        samples = [dataset[i] for i in range(len(dataset))]
        return write_predicted(
            table,
            {**found, "ids": result["ids"]},
            {one.id: one.protein for one in samples if one.protein is not None},
            maker(),
            aligned=[one.id for one in filter(_has_alignment, samples)],
        )

    def notes(self, dataset: StructureFiles, where: str) -> list[str]:
        """Say what was changed in how many structures; the log tells in which."""
        notes = dataset.notes()
        if not notes:
            return []
        kinds = dataset.notes_in_brief()
        return [f"Structures: {len(notes)} of {len(dataset)} with notes ({where}): {kinds}"]

    def demo(self, n: int, length: int) -> StructureFiles:
        """Make random proteins whose label follows from their composition."""
        from molfun.data.affinity import AffinityDataset

        return AffinityDataset.synthetic(n, length)


STRUCTURE = "structure"
"""Value of ``labels`` in the settings of inputs whose labels are structures."""


def is_structure(labels: Labels) -> bool:
    """Return True for a task whose labels are the structures of the samples."""
    return labels.task in TASKS and bool(TASKS.about(labels.task, "labels_from_structure"))


def _has_alignment(sample: Sample) -> bool:
    """Return whether a sample came with other sequences; features are taken to hold some."""
    return bool(sample.alignment_dir or sample.features)


def _unknown_task(settings: Any) -> bool:
    """Return True where a head has the name of no task."""
    heads = getattr(settings, "by_head", None) or {}
    return any(one.labels.task not in TASKS for one in heads.values())


def _learns_structures(settings: Any) -> bool:
    """Return True where the structures of the samples are all the labels of a run."""
    heads = getattr(settings, "by_head", None) or {}
    return bool(heads) and all(is_structure(one.labels) for one in heads.values())


def _unread(settings: Any) -> str | None:
    """Name a setting that no head reads."""
    heads = getattr(settings, "by_head", None) or {}
    if settings.resolution is None or any(is_structure(one.labels) for one in heads.values()):
        return None
    return "resolution is for the task 'structure': leave it out"


def _is_folder(given: Mapping[str, Any]) -> bool:
    from molfun._paths import as_path

    return isinstance(given.get("data"), str) and as_path(given["data"]).is_dir()


def _structures(given: Mapping[str, Any], **how: Any) -> Any:
    from molfun.data.structure_dataset import StructureDataset

    names = ("max_length", "skip_missing", "id_column", "resolution", "workers", *FILTERS)
    return StructureDataset.from_folder(
        given["data"],
        # a folder is all that is read; where it is the data, --pdbs may be of other samples
        pdb_dir=None if _is_folder(given) else given.get("pdbs"),
        alignments_dir=_folder_of_alignments(given),
        **{name: given[name] for name in names if given.get(name) is not None},
        **how,
    )


def _affinities(given: Mapping[str, Any], **how: Any) -> Any:
    from molfun.data.affinity import AffinityDataset

    names = ("max_length", "skip_missing", "id_column", "target_column")
    dataset = AffinityDataset.from_csv(
        given["data"],
        given.get("pdbs"),
        features_dir=given.get("features"),
        alignments_dir=_folder_of_alignments(given),
        **{name: given[name] for name in names if given.get(name) is not None},
        **how,
    ).check(workers=given.get("workers") or 0)
    filters = {name: given[name] for name in FILTERS if given.get(name) is not None}
    return dataset.filter_experiments(**filters) if filters else dataset


def _folder_of_alignments(given: Mapping[str, Any]) -> str | None:
    """Return the folder that the user names; a checkpoint holds whether there was one."""
    found = given.get("alignments")
    return found if isinstance(found, str) else None


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

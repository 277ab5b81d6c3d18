"""Open data sets as settings or a checkpoint describe them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from molfun._paths import as_path
from molfun.cli.console import say
from molfun.cli.settings import DEMO_VALIDATION, FineTuneSettings
from molfun.data.affinity import AffinityDataset
from molfun.data.atoms import AtomsDataset
from molfun.data.batching import LengthBatchSampler
from molfun.data.sequences import SequenceDataset
from molfun.data.splits import DataSplitter
from molfun.data.tables import read_cells
from molfun.data.timeseries import TimeSeriesDataset, open_timeseries
from molfun.errors import ConfigError, DataError
from molfun.models import trained_on
from molfun.registry import BACKBONES, HEADS, TASKS

logger = logging.getLogger(__name__)

Dataset = AffinityDataset | SequenceDataset | TimeSeriesDataset | AtomsDataset
ATOMS = (".xyz", ".extxyz")
LABEL_KEYS = ("energy_key", "forces_key", "stress_key", "virial_key", "target_key")
FASTA = (".fasta", ".fa", ".faa", ".fas")
SERIES_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
DEFAULT_COLUMNS = ("group", "split")
"""Of --group-column and --split-column, where neither is given."""
LABELS = {"binary": "class", "multiclass": "class", "multilabel": "classes"}
"""What labels in a table are, by task; numbers for all others."""
ENERGY_WEIGHTS = ("energy_weight", "forces_weight", "stress_weight")


def open_training(
    settings: FineTuneSettings,
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Train, validation and test set of a run."""
    _check_names(settings)
    _check_flags(settings)
    if settings.demo:
        return _demo(settings)
    dataset = _open(settings)
    train, val, test = _split(dataset, settings)
    same: dict[str, Any] = {}
    if isinstance(dataset, TimeSeriesDataset):
        same["feature_columns"] = dataset.feature_names  # by name, whatever else the files hold
        say_features(dataset)
    if settings.val:
        val = _open(settings.model_copy(update={"data": settings.val, **same}))
    if settings.test:
        test = _open(settings.model_copy(update={"data": settings.test, **same}))
    say(
        f"Data: {len(train)} train / {len(val or ())} val / {len(test or ())} test "
        f"({_origin(settings)})"
    )
    if settings.test:  # that of validation is for `fit` to say
        trained_on.warn_of_overlap(test, trained_on.TrainingRows(train).inputs, "test sample")
    named = (dataset, val if settings.val else None, test if settings.test else None)
    for part in named:
        if isinstance(part, AffinityDataset):
            _say_notes(part, "see run.log")
    return train, val, test


def _open(settings: FineTuneSettings) -> Any:
    """The data set of the file named ``data``."""
    if settings.on_atoms:
        return _atoms(settings)
    if settings.on_series:
        return _series(settings)
    return _sequences(settings) if settings.on_sequences else _structures(settings)


def _origin(settings: FineTuneSettings) -> str:
    """Where train, validation and test set come from."""
    files = [
        ", ".join([paths] if isinstance(paths, str) else paths)
        for paths in (settings.data, settings.val, settings.test)
        if paths
    ]
    split = f"{settings.split} split of {files[0]}"
    return "; ".join([files[0] if settings.val and settings.test else split, *files[1:]])


def _check_names(settings: FineTuneSettings) -> None:
    """Refuse an unknown task or head before the table is read as another one would need it."""
    if settings.task is not None:
        TASKS.resolve(settings.task)
    if settings.head is not None and settings.head not in TASKS:
        HEADS.resolve(settings.head)


def _check_flags(settings: FineTuneSettings) -> None:
    """Refuse settings that the task does not look at."""
    name = task_name(settings)
    problems = []
    if settings.class_weight is not None and name not in LABELS:
        problems.append(f"class_weight is for {', '.join(LABELS)}; the task is {name!r}.")
    smoothed = ("multiclass", "binary")
    if settings.label_smoothing and name not in smoothed:
        problems.append(f"label_smoothing is for {', '.join(smoothed)}; the task is {name!r}.")
    if settings.loss != "mse" and name not in ("regression", "energy"):
        problems.append(f"loss={settings.loss!r} is for regression; the task is {name!r}.")
    if settings.feature_columns is not None and not (
        settings.on_series and is_series_table(_table(settings))
    ):
        problems.append("feature_columns is for tables of time series.")
    if settings.group_column != "group" and settings.split != "group" and not settings.on_series:
        problems.append(
            f"group_column={settings.group_column!r} is for split='group', and the split is "
            f"{settings.split!r}."
        )
    if settings.split_column != "split" and settings.split not in ("column", "group"):
        problems.append(
            f"split_column={settings.split_column!r} is for split='column', and the split is "
            f"{settings.split!r}."
        )
    problems += _problems_of_atoms(settings, name)
    if settings.mask_column is not None and level(settings) != "residue":
        problems.append(
            f"mask_column={settings.mask_column!r} is for labels of residues (--level residue); "
            f"these are of the level {level(settings)!r}."
        )
    if problems:
        raise ConfigError(
            f"{' '.join(problems)} Leave out what does not fit, or choose another task or level."
        )


def _problems_of_atoms(settings: FineTuneSettings, task: str) -> list[str]:
    """What does not go with structures of atoms, or only with them."""
    problems = []
    given = settings.model_fields_set
    weights = [name for name in ENERGY_WEIGHTS if getattr(settings, name) != 1.0]
    if weights and task != "energy":
        problems.append(f"{', '.join(weights)}: of the task 'energy'; the task is {task!r}.")
    if settings.old_data is not None and settings.on_atoms and task != "energy":
        problems.append(f"old_data: for the task 'energy'; the task is {task!r}.")
    own = [*LABEL_KEYS, "energy_unit", "new_target", "inherit", "old_data"]
    if not settings.on_atoms:
        named = [name for name in own if getattr(settings, name) is not None]
        if named:
            problems.append(
                f"{', '.join(named)}: for models of atoms such as pet; the backbone is "
                f"{settings.backbone!r}."
            )
        return problems
    useless = ("pdbs", "features", "alignments", "max_length", "mask_column", "target_column",
               "id_column", "window", "stride")  # fmt: skip
    named = [name for name in useless if name in given and getattr(settings, name) is not None]
    if named:
        problems.append(f"{', '.join(named)}: not for structures of atoms.")
    if settings.preset is not None:
        problems.append(
            f"preset={settings.preset!r}: {settings.backbone} has none; give what differs from its "
            f"defaults as backbone_config.config.d_pet=64."
        )
    if settings.split == "identity":
        problems.append("split='identity' is for sequences.")
    if task != "energy" and settings.target_key is None:
        problems.append(
            f"the task {task!r} has one label a structure: name it with --target-key KEY."
        )
    return problems


def loader(dataset: Dataset, batch_size: int, **options: Any) -> DataLoader[Any]:
    """Batches of a data set."""
    return _loader(dataset, batch_size=batch_size, **options)


def loader_by_length(
    dataset: Dataset, batch_size: int, *, power: float, num_workers: int
) -> DataLoader[Any]:
    """Shuffled batches of samples of similar length."""
    sampler = LengthBatchSampler.from_dataset(dataset, batch_size=batch_size, power=power)
    return _loader(dataset, batch_sampler=sampler, num_workers=num_workers)


def _loader(dataset: Dataset, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # map-style by its methods, not by its class
        collate_fn=dataset.collate_fn,
        **options,
    )


def is_fasta(path: str) -> bool:
    """Whether a name is that of a FASTA file rather than of a table."""
    return Path(path.removesuffix(".gz")).suffix.lower() in FASTA


def open_sequences(
    path: str, column: str, max_length: int | None, *, id_column: str | None = None
) -> SequenceDataset:
    """Sequences without labels, from a FASTA file or a column of a table."""
    if is_fasta(path):
        return SequenceDataset.from_fasta(path, max_length=max_length)
    return SequenceDataset.from_csv(
        path,
        sequence_column=column,
        id_column=id_column,
        max_length=max_length,
        require_target=False,
    )


def _demo(settings: FineTuneSettings) -> tuple[Dataset, Dataset, None]:
    dataset = AffinityDataset.synthetic(settings.demo_samples, settings.demo_seq_len)
    border = len(dataset) - DEMO_VALIDATION
    train, val = dataset.subset(range(border)), dataset.subset(range(border, len(dataset)))
    say(
        f"Demo mode: {len(train)} train / {len(val)} val "
        f"(synthetic, seq_len={settings.demo_seq_len})"
    )
    return train, val, None


def _table(settings: FineTuneSettings) -> str:
    """The one file of a data set that is read from one."""
    return settings.data if isinstance(settings.data, str) else ""


def _atoms(settings: FineTuneSettings) -> AtomsDataset:
    keys = {name: getattr(settings, name) for name in LABEL_KEYS}
    dropped = [name for name in ("forces", "stress") if not getattr(settings, name)]
    dataset = AtomsDataset.from_files(
        settings.data or [], **keys, leave_out=dropped, require_target=True
    )
    if settings.target_key is not None:
        _check_label(settings, dataset)
    return dataset


def _check_label(settings: FineTuneSettings, dataset: AtomsDataset) -> None:
    """Refuse a label whose shape is not that of the task and its level."""
    task, shape = task_name(settings), dataset.label_shape
    place = next(
        s.origin for s in map(dataset.__getitem__, range(len(dataset))) if s.target is not None
    )
    label = f"{place}: {settings.target_key!r}"
    if task in LABELS:
        return
    if shape is None:
        raise DataError(
            f"{label} is no number. Train on classes with --head binary or --head multiclass."
        )
    if task == "energy" and (shape.shape or shape.per_atom):
        raise DataError(
            f"{label} has {shape}, and an energy is one number per structure. Train it with a head "
            f"of its own: --head mlp{' --level residue' * shape.per_atom}."
        )
    if task == "regression" and shape.per_atom != (level(settings) == "residue"):
        advice = "add" if shape.per_atom else "leave out"
        raise DataError(
            f"{label} has {shape}: {advice} --level residue (the level of single atoms is called "
            f"after proteins)."
        )


def _structures(settings: FineTuneSettings) -> AffinityDataset:
    return AffinityDataset.from_csv(
        _table(settings),
        settings.pdbs,
        features_dir=settings.features,
        alignments_dir=settings.alignments,
        max_length=settings.max_length,
        skip_missing=settings.skip_missing,
        id_column=settings.id_column or "pdb_id",
        target_column=settings.target_column or "affinity",
    ).check()


def _sequences(settings: FineTuneSettings) -> SequenceDataset:
    return SequenceDataset.from_csv(
        _table(settings),
        sequence_column=settings.sequence_column,
        target_column=settings.target_column or "target",
        id_column=settings.id_column,
        mask_column=settings.mask_column,
        labels=LABELS.get(task_name(settings), "number"),  # type: ignore[arg-type]  # a literal
        level="residue" if level(settings) == "residue" else "sequence",
        max_length=settings.max_length,
    )


def _series(settings: FineTuneSettings) -> TimeSeriesDataset:
    path = _table(settings)
    options: dict[str, Any] = {"max_length": settings.max_length}
    if is_series_table(path):
        options |= {
            "layout": settings.layout,
            "id_column": settings.id_column or ("id" if settings.layout == "long" else None),
            "time_column": settings.time_column,
            "feature_columns": settings.feature_columns,
            "target_column": settings.target_column or "target",
            "group_column": settings.group_column,
            "labels": LABELS.get(task_name(settings), "number"),
        }
    return in_windows(open_timeseries(path, **options), settings.window, settings.stride)


def say_features(dataset: TimeSeriesDataset) -> None:
    """What a model of series learns from, and which columns are not part of it."""
    beside = [str(name) for name in dataset.metadata.columns if name not in ("group", "start")]
    left = f"; kept beside them: {', '.join(beside)}" if beside else ""
    say(f"Features ({dataset.n_features}): {', '.join(dataset.feature_names)}{left}")


def is_series_table(path: str) -> bool:
    """Whether a file of time series is a table, with columns to name."""
    return Path(path.removesuffix(".gz")).suffix.lower() in SERIES_TABLES


def in_windows(
    dataset: TimeSeriesDataset, window: int | None, stride: int | None
) -> TimeSeriesDataset:
    """The data set, cut into windows where a length is given."""
    return dataset if window is None else dataset.windows(window, stride=stride)


def task_name(settings: FineTuneSettings) -> str:
    """The task: named, or the head's own."""
    if settings.task is not None:
        return settings.task
    head = settings.head or str(BACKBONES[settings.backbone].default_head)
    return head if head in TASKS and head not in HEADS else str(HEADS[head].default_task)


def level(settings: FineTuneSettings) -> str:
    """Level of the labels: named, or the head's own."""
    if settings.level is not None:
        return settings.level
    head = settings.head
    return str(HEADS[head].default_level) if head is not None and head in HEADS else "sequence"


def task_config(settings: FineTuneSettings, *parts: Dataset | None) -> dict[str, Any]:
    """Arguments of the task; class names from all parts, so that no label is met too late."""
    name = task_name(settings)
    config: dict[str, Any] = {}
    if name == "regression":
        config |= {"loss": settings.loss, "standardize": settings.standardize_labels}
        shape = getattr(parts[0], "label_shape", None)
        if shape is not None:
            config["shape"] = shape.shape
    if name == "energy":
        weights = {key: getattr(settings, key) for key in ENERGY_WEIGHTS}
        return {"loss": settings.loss, **weights}
    if name in LABELS:
        config["classes"] = _classes(TASKS[name], level(settings), parts)
        if settings.n_classes not in (None, len(config["classes"])):
            raise ConfigError(
                f"n_classes={settings.n_classes}, but the labels name {len(config['classes'])}: "
                f"{', '.join(config['classes'])}."
            )
        if name == "binary" and len(config["classes"]) == 2:
            config["classes"] = _positive_last(config["classes"], settings.positive_class)
        config["class_weight"] = settings.class_weight
    if name in ("multiclass", "binary"):
        config["label_smoothing"] = settings.label_smoothing
    if settings.level is not None:
        config["level"] = settings.level
    return config


def _positive_last(classes: list[str], positive: str | None) -> list[str]:
    """The two classes with the positive one, which F1, AUROC and AUPRC are of, second."""
    if positive is not None and positive not in classes:
        raise ConfigError(f"--positive-class {positive}: the classes are {', '.join(classes)}.")
    ordered = sorted(classes, key=lambda name: name == positive) if positive else classes
    say(f"Classes: {ordered[0]} (negative), {ordered[1]} (positive)")
    return ordered


def _classes(task: Any, level: str, parts: Sequence[Dataset | None]) -> list[str]:
    """Names of the classes; those that no training sample has are named in a warning."""
    labels = [label for part in parts if part is not None for label in part.targets]
    names: list[str] = task.classes_in(labels, level=level)
    assert parts[0] is not None
    known = set(task.classes_in(parts[0].targets, level=level))
    if len(names) > 20 and len(names) > len(parts[0]) / 2:
        logger.warning(
            "%d classes for %d training samples: are these numbers, for --task regression?",
            len(names),
            len(parts[0]),
        )
    unseen = [name for name in names if name not in known]
    if unseen:
        logger.warning(
            "No training sample has the class %s; the model learns nothing about it.",
            " or ".join(map(repr, unseen)),
        )
    return names


def _split(dataset: Any, settings: FineTuneSettings) -> tuple[Any, Any, Any]:
    sizes: dict[str, Any] = {
        "val_frac": 0.0 if settings.val else settings.val_frac,
        "test_frac": 0.0 if settings.test else settings.test_frac,
    }
    if settings.split == "column":
        parts = DataSplitter.by_column(dataset, settings.split_column)
    elif settings.split == "temporal":
        parts = DataSplitter.temporal(dataset, **sizes)
    elif settings.split == "group":
        column = _group_column(dataset, settings)
        parts = DataSplitter.by_group(dataset, column, seed=settings.seed, **sizes)
    elif settings.split == "identity":
        parts = DataSplitter.by_identity(dataset, seed=settings.seed, **sizes)
    else:
        parts = DataSplitter.random(dataset, seed=settings.seed, **sizes)
    train, val, test = parts
    return train, (val if len(val) else None), (test if len(test) else None)


def _group_column(dataset: Any, settings: FineTuneSettings) -> str:
    """Column that ``--split group`` keeps whole, under either of its two flags."""
    named = {name for name in (settings.group_column, settings.split_column)
             if name not in DEFAULT_COLUMNS}  # fmt: skip
    if len(named) > 1:
        raise ConfigError(
            f"--split group: --group-column {settings.group_column} and --split-column "
            f"{settings.split_column} name two columns. Leave one out."
        )
    column = named.pop() if named else "group"
    if isinstance(dataset, TimeSeriesDataset) and column == settings.group_column:
        return "group"  # under this name the data set has it, whatever the table calls it
    if column not in dataset.metadata.columns and not named and column == "group":
        known = ", ".join(map(str, dataset.metadata.columns)) or "none"
        raise DataError(
            f"--split group: the table has no column 'group'. Name the one to keep whole: "
            f"--group-column NAME (columns: {known})."
        )
    return column


def _say_notes(dataset: AffinityDataset, where: str) -> None:
    """What was changed in how many structures; the log tells in which."""
    notes = dataset.notes()
    if notes:
        kinds = dataset.notes_in_brief()
        say(f"Structures: {len(notes)} of {len(dataset)} with notes ({where}): {kinds}")


# --- for a checkpoint ----------------------------------------------------------------------------


def open_for(
    trained: Mapping[str, Any],
    *,
    data: str,
    pdbs: str | None,
    features: str | None,
    alignments: str | None,
    max_length: int | None,
    skip_missing: bool,
    labels: bool,
    columns: Mapping[str, str | None] | None = None,
) -> Dataset:
    """Read what to predict, prepared as the training set was unless told otherwise.

    Parameters
    ----------
    trained
        How the training set prepared its inputs, from the checkpoint.
    data
        Table, or for sequences also a FASTA file.
    pdbs, features, alignments
        Folders, for structures.
    max_length
        Crop; None crops as in training.
    skip_missing
        Whether rows without a file are left out.
    labels
        Whether every row has to have one.
    columns
        Names of columns where they are others than in training: ``id_column``, ``energy_key`` ...
    """
    if trained.get("kind") == "atoms":
        return _atoms_for(trained, data, labels=labels, given=columns or {})
    if Path(data).suffix in ATOMS:
        raise ConfigError(f"{data} holds structures of atoms, which this model does not take.")
    trained = {**trained, **{k: v for k, v in (columns or {}).items() if v is not None}}
    if max_length is None:
        max_length = trained.get("max_length")
    if trained.get("kind") == "sequences" and pdbs is None and features is None:
        return _sequences_for(trained, data, max_length=max_length, labels=labels)
    if trained.get("kind") == "timeseries":
        return _series_for(trained, data, max_length=max_length, labels=labels)
    if pdbs is None and features is None:
        raise ConfigError("This model takes structures: give --pdbs DIR, or --features DIR.")
    dataset = AffinityDataset.from_csv(
        data,
        pdbs,
        features_dir=features,
        alignments_dir=alignments,
        max_length=max_length,
        crop=trained.get("crop", "auto"),
        skip_missing=skip_missing,
        require_target=labels,
        **{k: trained[k] for k in ("id_column", "target_column") if k in trained},
    ).check()
    _say_notes(dataset, "--debug lists them")
    aligned = bool(dataset.input_settings["alignments"])
    if aligned != bool(trained.get("alignments")):
        with_or_without = "without" if aligned else "with"
        logger.warning(
            "The model was trained %s alignments; these samples are the other way round, so "
            "predictions will differ (--alignments FOLDER).",
            with_or_without,
        )
    return dataset


def _atoms_for(
    trained: Mapping[str, Any], data: str, *, labels: bool, given: Mapping[str, str | None]
) -> AtomsDataset:
    """Structures with the labels of the training set, as far as there are any to predict."""
    keys: dict[str, Any] = {k: given.get(k) or trained.get(k) for k in LABEL_KEYS}
    asked = [name for name in LABEL_KEYS if given.get(name) is not None]
    if {"stress_key", "virial_key"} & set(asked):  # one of them takes the place of the other
        keys |= dict.fromkeys({"stress_key", "virial_key"} - set(asked))
    # structures to predict need no labels
    absent = [] if labels else [k.removesuffix("_key") for k in LABEL_KEYS if k not in asked]
    return AtomsDataset.from_files(data, **keys, require_target=labels, optional=absent)


def _series_for(
    trained: Mapping[str, Any], data: str, *, max_length: int | None, labels: bool
) -> TimeSeriesDataset:
    options: dict[str, Any] = {"max_length": max_length}
    if is_series_table(data):
        names = ("layout", "id_column", "time_column", "feature_columns", "pattern",
                 "target_column", "labels", "group_column")  # fmt: skip
        options |= {name: trained[name] for name in names if trained.get(name) is not None}
        options["require_target"] = labels
    windows = trained.get("windows") or {}
    return in_windows(
        open_timeseries(data, **options), windows.get("length"), windows.get("stride")
    )


def _sequences_for(
    trained: Mapping[str, Any], data: str, *, max_length: int | None, labels: bool
) -> SequenceDataset:
    if is_fasta(data):
        if labels:
            raise ConfigError(f"{data} has no labels to evaluate against; give a table.")
        return SequenceDataset.from_fasta(data, max_length=max_length)
    names = ("sequence_column", "target_column", "id_column", "mask_column", "labels", "level")
    columns = {name: trained[name] for name in names if trained.get(name) is not None}
    # a table to predict has neither labels nor, often, ids; one of predictions has no masks
    if not labels:
        columns.pop("mask_column", None)
    _drop_absent(columns, data, "mask_column" if labels else "id_column")
    return SequenceDataset.from_csv(data, **columns, max_length=max_length, require_target=labels)


_ABSENT = {
    "id_column": "its rows are called seq_1, seq_2 ...",
    "mask_column": "labels count on every residue where they are not '?'",
}


def _drop_absent(columns: dict[str, Any], data: str, argument: str) -> None:
    """Do without a column of the training set that the table lacks, and say what that means."""
    name = columns.get(argument)
    if name is None:
        return
    cells = read_cells(as_path(data), columns.get("sequence_column", "sequence"))
    if name not in cells.header:
        del columns[argument]
        logger.warning("%s has no column %r: %s.", data, name, _ABSENT[argument])

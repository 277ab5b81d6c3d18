"""Open the data sets that settings or a checkpoint describe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from molfun.cli.console import say
from molfun.cli.settings import DEMO_VALIDATION, FineTuneSettings
from molfun.data.base import SampleDataset
from molfun.data.batching import LengthBatchSampler, lengths_of
from molfun.data.faults import is_collecting
from molfun.data.kinds.base import CLASSES, DataKind, is_chosen, is_of, kind_of
from molfun.data.named_targets import NamedTargets
from molfun.data.pair_splits import PairSplitter
from molfun.data.splits import DataSplitter
from molfun.data.variant_splits import VariantSplitter
from molfun.errors import ConfigError, DataError
from molfun.models import trained_on
from molfun.parallel.dealing import Share
from molfun.parallel.ranks import Ranks
from molfun.registry import DATASETS, DEFAULT_KIND, TASKS
from molfun.text import unknown_name

logger = logging.getLogger(__name__)


def open_training(
    settings: FineTuneSettings,
) -> tuple[SampleDataset, SampleDataset | None, SampleDataset | None]:
    """Open training, validation and test set of a run."""
    if settings.demo:
        return _demo(settings)
    dataset = open_file(settings, settings.data)
    train, val, test = split(dataset, settings)
    # whole files, before the split: notes on a file are printed once
    read = {"data": dataset}
    if settings.val:
        val = read["val"] = open_file(settings, settings.val, like=dataset)
    if settings.test:
        test = read["test"] = open_file(settings, settings.test, like=dataset)
    check_judging(settings, read)
    say(
        f"Data: {len(train)} train / {len(val or ())} val / {len(test or ())} test "
        f"({_origin(settings)})"
    )
    if settings.test:  # `fit` warns of validation samples, and does not see the test set
        trained_on.warn_of_overlap(test, trained_on.TrainingRows(train).inputs, "test sample")
    for part in read.values():
        say_notes(settings.kind, part, "see run.log")
    return weighted(train, settings), val, test


def open_whole(settings: FineTuneSettings) -> SampleDataset:
    """Open the samples of a run without a split, for a cross-validation."""
    if settings.demo:
        return settings.kind.demo(settings.demo_samples, settings.demo_seq_len)
    dataset = open_file(settings, settings.data)
    check_judging(settings, {"data": dataset})
    return weighted(dataset, settings)


def check_judging(settings: FineTuneSettings, files: Mapping[str, SampleDataset]) -> None:
    """Check that the columns which judge a run are in each file, before the run trains.

    Parameters
    ----------
    settings
        Settings of the run.
    files
        Whole files by the setting that names each.

    Raises
    ------
    ConfigError
        If ``--metrics-by`` names a column that a file does not have.
    DataError
        If a file of its own lacks the column that ``--split group`` keeps whole.
    """
    asked = settings.metrics_by
    for name, part in files.items():
        columns = list(map(str, part.metadata.columns))
        if asked is not None and asked not in columns:
            raise ConfigError(
                f"--metrics-by for --{name}: {unknown_name('column', asked, columns)}"
            )
        if settings.split == "group" and getattr(part, "groups", None) is None:
            column = group_column(files["data"], settings)
            if column not in columns:
                raise DataError(
                    f"--{name} has no column {column!r}, which --split group keeps whole: "
                    f"intervals of its metrics need it as well. Add it; blank cells are groups of "
                    f"their own."
                )


def open_file(
    settings: FineTuneSettings, data: Any, *, like: SampleDataset | None = None
) -> SampleDataset:
    """Read a file, or several, with the labels of each head; inputs are those of `like`."""
    parts = _opened_parts(settings, data, None if like is None else inputs_of(like))
    if not settings.heads:
        return parts[""]
    if is_collecting():  # rows that are bad for one head alone were left out there
        shared = set.intersection(*(set(part.ids) for part in parts.values()))
        for name, part in parts.items():
            parts[name] = part.subset([i for i, one in enumerate(part.ids) if one in shared])
    return NamedTargets(parts)


def weighted(dataset: Any, settings: FineTuneSettings) -> Any:
    """Return a training set with the weights of its samples, for each head that names any."""
    columns = {name: getattr(one, "weight_column", None) for name, one in settings.by_head.items()}
    if not any(columns.values()):
        return dataset
    parts: Mapping[str, Any] = dataset.parts if isinstance(dataset, NamedTargets) else {"": dataset}
    found = {
        name: part if columns[name] is None else part.weighted_by(columns[name])
        for name, part in parts.items()
    }
    return NamedTargets(found) if isinstance(dataset, NamedTargets) else found[""]


def _opened_parts(
    settings: FineTuneSettings, data: Any, inputs: SampleDataset | None
) -> dict[str, SampleDataset]:
    """Return the samples with the labels of each head, in the order of the heads."""
    parts: dict[str, SampleDataset] = {}
    # those that are made of other samples last, so that no file is read twice
    for name, one in sorted(settings.by_head.items(), key=lambda head: _of_structure(head[1])):
        labels = replace(one.labels, required="column") if name else one.labels
        given = one.model_copy(update={"data": data})
        first = next(iter(parts.values()), None)
        made = None if first is None else settings.kind.derive(first, given, labels)
        parts[name] = settings.kind.open(given, labels, like=inputs) if made is None else made
    return {name: parts[name] for name in settings.by_head}


def _of_structure(settings: FineTuneSettings) -> bool:
    task = settings.labels.task
    return task in TASKS and bool(TASKS[task].labels_from_structure)


def inputs_of(dataset: SampleDataset) -> SampleDataset:
    """Return the data set that its kind opened: of several heads, the one of the first."""
    return next(iter(dataset.parts.values())) if isinstance(dataset, NamedTargets) else dataset


def say_notes(kind: DataKind, dataset: SampleDataset, where: str) -> None:
    """Print the notes of the data kind on what was read."""
    for note in kind.notes(inputs_of(dataset), where):
        say(note)


def _origin(settings: FineTuneSettings) -> str:
    """Describe the source of training, validation and test set."""
    files = [
        ", ".join([paths] if isinstance(paths, str) else paths)
        for paths in (settings.data, settings.val, settings.test)
        if paths
    ]
    parts = f"{settings.split} split of {files[0]}"
    return "; ".join([files[0] if settings.val and settings.test else parts, *files[1:]])


def loader(dataset: SampleDataset, batch_size: int, **options: Any) -> DataLoader[Any]:
    """Return a loader of batches of a data set."""
    return _loader(dataset, batch_size=batch_size, **options)


def dealt_loader(
    dataset: SampleDataset, batch_size: int, *, power: float, ranks: Ranks
) -> DataLoader[Any]:
    """Return a loader of the batches of this process: those of one process, dealt by their cost.

    Parameters
    ----------
    dataset
        All samples.
    batch_size
        Samples per batch, which follow each other.
    power
        Power of the length that a sample costs.
    ranks
        This process among the others.
    """
    if ranks.size == 1:
        return loader(dataset, batch_size)
    starts = range(0, len(dataset), batch_size)
    batches = [range(i, min(i + batch_size, len(dataset))) for i in starts]
    costs = lengths_of(dataset).astype(float) ** power
    share = Share(batches, costs.tolist(), ranks)
    found = _loader(dataset, batch_sampler=share.own)
    found.share = share  # read by `share_of`
    return found


def loader_by_length(
    dataset: SampleDataset, batch_size: int, *, power: float, num_workers: int
) -> DataLoader[Any]:
    """Return a loader of shuffled batches, each of samples of similar length."""
    sampler = LengthBatchSampler.from_dataset(dataset, batch_size=batch_size, power=power)
    return _loader(dataset, batch_sampler=sampler, num_workers=num_workers)


def loader_by_tokens(
    dataset: SampleDataset, max_tokens: int, *, num_workers: int
) -> DataLoader[Any]:
    """Return a loader of shuffled batches of at most so many residues."""
    sampler = LengthBatchSampler.by_tokens(dataset, max_tokens)
    return _loader(dataset, batch_sampler=sampler, num_workers=num_workers)


def _loader(dataset: SampleDataset, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # map-style by its methods, not by its class
        collate_fn=dataset.collate_fn,
        **options,
    )


def _demo(settings: FineTuneSettings) -> tuple[SampleDataset, SampleDataset, None]:
    dataset = settings.kind.demo(settings.demo_samples, settings.demo_seq_len)
    # in order and not at random, so that every demo has the same validation samples
    border = len(dataset) - DEMO_VALIDATION
    train, val = dataset.subset(range(border)), dataset.subset(range(border, len(dataset)))
    say(
        f"Demo mode: {len(train)} train / {len(val)} val "
        f"(synthetic, seq_len={settings.demo_seq_len})"
    )
    return train, val, None


def task_config(settings: FineTuneSettings, *parts: SampleDataset | None) -> dict[str, Any]:
    """Return the arguments of the task, with the class names of all parts.

    Parameters
    ----------
    settings
        Settings of the run, or of one of its heads.
    parts
        Training, validation and test set with the labels of the head.
    """
    labels = settings.labels
    config: dict[str, Any] = {}
    if labels.task == "regression":
        config = {"loss": settings.loss, "standardize": settings.standardize_labels}
    if labels.task in CLASSES and "classes" not in settings.task_config:
        config = _class_config(settings, parts)
    if settings.level is not None:
        config["level"] = settings.level
    config |= settings.kind.task_arguments(settings, labels, parts[0])
    return {**config, **settings.task_config}


def heads_config(
    settings: FineTuneSettings, parts: Sequence[SampleDataset | None]
) -> dict[str, dict[str, Any]]:
    """Return the argument `heads` of `MolfunStructureModel`, from settings and the data sets."""
    config = {}
    for name, one in settings.by_head.items():
        own = [part.parts[name] if isinstance(part, NamedTargets) else None for part in parts]
        config[name] = {
            "head": one.head,
            "head_config": one.head_config,
            "task": one.task,
            "task_config": task_config(one, *own),
            "weight": settings.heads[name].get("weight", 1.0),
        }
    return config


def _class_config(
    settings: FineTuneSettings, parts: Sequence[SampleDataset | None]
) -> dict[str, Any]:
    """Return the arguments of a task whose labels are class names."""
    name, level = settings.labels.task, settings.labels.level
    classes = _classes(TASKS[name], level, parts)
    if settings.n_classes not in (None, len(classes)):
        raise ConfigError(
            f"n_classes={settings.n_classes}, but the labels name {len(classes)}: "
            f"{', '.join(classes)}."
        )
    if name == "binary" and len(classes) == 2:
        classes = _positive_last(classes, settings.positive_class)
    config: dict[str, Any] = {"classes": classes, "class_weight": settings.class_weight}
    if name != "multilabel":
        config["label_smoothing"] = settings.label_smoothing
    return config


def _positive_last(classes: list[str], positive: str | None) -> list[str]:
    """Order two classes so that the positive one, to which F1, AUROC and AUPRC refer, is second."""
    if positive is not None and positive not in classes:
        raise ConfigError(f"--positive-class {positive}: the classes are {', '.join(classes)}.")
    ordered = sorted(classes, key=lambda name: name == positive) if positive else classes
    say(f"Classes: {ordered[0]} (negative), {ordered[1]} (positive)")
    return ordered


def _classes(task: Any, level: str, parts: Sequence[SampleDataset | None]) -> list[str]:
    """Return the class names, and warn of those that no training sample has."""
    labels = [label for part in parts if part is not None for label in part.targets]
    names: list[str] = task.classes_in(labels, level=level)
    assert parts[0] is not None
    known = set(task.classes_in(parts[0].targets, level=level))
    # numbers taken for classes: nearly every sample then has a class of its own
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


def split(dataset: Any, settings: FineTuneSettings) -> tuple[Any, Any, Any]:
    """Split a data set as the settings say; None for parts that are empty or files of their own."""
    sizes: dict[str, Any] = {
        "val_frac": 0.0 if settings.val else settings.val_frac,
        "test_frac": 0.0 if settings.test else settings.test_frac,
    }
    if settings.split == "column":
        parts = DataSplitter.by_column(dataset, settings.split_column)
    elif settings.split == "temporal":
        parts = DataSplitter.temporal(dataset, year_column=year_column(dataset), **sizes)
    elif settings.split == "group":
        column = group_column(dataset, settings)
        parts = DataSplitter.by_group(dataset, column, seed=settings.seed, **sizes)
    elif settings.split == "identity":
        parts = DataSplitter.by_identity(dataset, seed=settings.seed, **sizes)
    elif settings.split == "random":
        parts = DataSplitter.random(dataset, seed=settings.seed, **sizes)
    else:
        parts = _split_mutants_or_pairs(dataset, settings, sizes)
    train, val, test = parts
    return train, (val if len(val) else None), (test if len(test) else None)


def _split_mutants_or_pairs(
    dataset: Any, settings: FineTuneSettings, sizes: Mapping[str, float]
) -> tuple[Any, Any, Any]:
    """Split variants of one protein by position, number of mutations or label; pairs by class."""
    if settings.split in ("c1", "c2", "c3"):
        pairs: tuple[Any, Any, Any] = getattr(PairSplitter, settings.split)(
            dataset, seed=settings.seed, **sizes
        )
        return pairs
    about: dict[str, Any] = {"wild_type": getattr(settings, "wild_type", None), **sizes}
    if settings.split == "modulo":
        return VariantSplitter.modulo(dataset, **about)
    about["seed"] = settings.seed
    if settings.split in ("position", "contiguous"):
        how = getattr(VariantSplitter, settings.split)
        found: tuple[Any, Any, Any] = how(dataset, **about)
        return found
    del about["test_frac"]  # what is left tests
    if settings.split == "n_mutations":
        most = settings.train_mutations
        return VariantSplitter.n_mutations(dataset, train_mutations=most, **about)
    return VariantSplitter.low_to_high(dataset, threshold=settings.label_threshold, **about)


def year_column(dataset: Any) -> str:
    """Return the column that ``--split temporal`` goes by: ``year``, else a structure's release."""
    columns = dataset.metadata.columns
    return "released" if "year" not in columns and "released" in columns else "year"


def group_column(dataset: Any, settings: FineTuneSettings) -> str:
    """Return the column that ``--split group`` keeps whole, named by either of two flags."""
    # either flag may name it; both at once, with two names, is an error
    asked = (settings.group_column, settings.split_column)
    named = [name for name, default in zip(asked, ("group", "split"), strict=True)
             if name != default]  # fmt: skip
    if len(set(named)) > 1:
        raise ConfigError(
            f"--split group: --group-column {settings.group_column} and --split-column "
            f"{settings.split_column} name two columns. Leave one out."
        )
    column = named[0] if named else "group"
    if settings.kind.groups_by is not None and column == settings.group_column:
        return settings.kind.groups_by
    if not named and column not in dataset.metadata.columns:
        known = ", ".join(map(str, dataset.metadata.columns)) or "none"
        raise DataError(
            f"--split group: the table has no column 'group'. Name the one to keep whole: "
            f"--group-column NAME (columns: {known})."
        )
    return column


# --- for a checkpoint ----------------------------------------------------------------------------


def kind_for(backbone: str, trained: Mapping[str, Any], given: Mapping[str, Any]) -> DataKind:
    """Return the data kind for a trained model: that of its training set, or the one asked for.

    Parameters
    ----------
    backbone
        Name of the backbone in the checkpoint.
    trained
        Settings with which the training set prepared its inputs, from the checkpoint.
    given
        ``data``, and settings of the data kind that the user gave: ``id_column``, ``pdbs`` ...

    Raises
    ------
    ConfigError
        If the file or a setting belongs to another data kind.
    """
    kind = kind_of(backbone, given)
    # a list of samples leaves no settings, so that the backbone alone decides
    if {"kind", "max_length"} & trained.keys() and not is_chosen(kind, given):
        kind = DATASETS[trained.get("kind", DEFAULT_KIND)]()
    _refuse_other_kinds(kind, given)
    return kind


def _refuse_other_kinds(kind: DataKind, given: Mapping[str, Any]) -> None:
    """Refuse a file, or settings, of data kinds that the model does not take."""
    for other in DATASETS.classes():
        if other.name != kind.name and is_of(other, given["data"]):
            raise ConfigError(
                f"{given['data']} holds {other.title}, which this model does not take."
            )
    own = {"data", *kind.settings.model_fields}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in own]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)}: not for {kind.title}, which this model takes. Leave out what "
            f"does not fit."
        )

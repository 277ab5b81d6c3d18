"""Refuse settings of a run that contradict each other, before any data file is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from molfun.cli.head_settings import MULTITARGET
from molfun.config import Settings
from molfun.data.kinds.base import CLASSES, Labels, kinds_of
from molfun.errors import ConfigError
from molfun.registry import BACKBONES, DATASETS, TASKS, check_head
from molfun.strict import parameters_of
from molfun.text import alternatives

if TYPE_CHECKING:
    from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings


def check_flags(
    settings: PretrainSettings, given: Collection[str], *, resumed: bool = False
) -> None:
    """Refuse flags that the backbone ignores, and settings that optimizer or schedule ignore.

    Raises
    ------
    ConfigError
        If there are any; the text names all of them, and what they are for.
    """
    problems = foreign(type(settings), given, settings.backbone)
    if problems:
        problems.append("Leave out what does not fit.")
    problems += unread(settings, given, resumed=resumed)
    if problems:
        raise ConfigError(" ".join(problems))


def check_run(
    settings: FineTuneSettings, given: Collection[str] = (), *, resumed: bool = False
) -> None:
    """Refuse settings that backbone, task, data kind, strategy or schedule ignore.

    Parameters
    ----------
    settings
        Settings of the run.
    given
        Names of the flags that were given: these are checked even with their default value.
    resumed
        Whether all other settings may be those that a run stored.

    Raises
    ------
    ConfigError
        If there are any, or task or head are unknown; the text names all problems.
    """
    names = type(settings).model_fields
    # in a file a value that equals the default says nothing: config.yaml of a run holds them all
    changed = [name for name in names if name in given or settings.is_changed(name)]
    problems = [
        *foreign(type(settings), changed, settings.backbone),
        *_problems_of_columns(settings),
        *(settings.kind.problems_of_heads(settings) if settings.heads else ()),
    ]
    for name, one in settings.by_head.items():
        prefix = f"heads.{name}: " if name else ""
        problems += [f"{prefix}{text}" for text in _problems_of_head(one, settings.heads.get(name))]
    if problems:
        problems.append("Leave out what does not fit, or choose another task or level.")
    problems += unread(settings, given, resumed=resumed)
    if problems:
        raise ConfigError(" ".join(problems))


def unread(
    settings: FineTuneSettings | PretrainSettings, given: Collection[str], *, resumed: bool = False
) -> list[str]:
    """Return sentences on settings that the strategy, optimizer or schedule does not read.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> settings = FineTuneSettings.build({"demo": True, "strategy": "full", "lora_rank": 4})
    >>> unread(settings, [])
    ['lora_rank is for lora; the strategy is full. Leave it out, or choose --strategy lora.']
    """
    names = list(given)
    # config.yaml of a run holds settings that nobody gave, such as the default rank of LoRA; only
    # flags are given for certain if the settings come from there
    if not resumed and settings.started_in is None:
        fields = type(settings).model_fields
        names = [name for name in fields if name in given or settings.is_changed(name)]
    owners: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        read_with = settings.flag(name).read_with
        if read_with and getattr(settings, read_with[0]) not in ("auto", *read_with[1:]):
            owners.setdefault(read_with, []).append(name)
    return [_not_read(settings, of, *by) for by, of in owners.items()]


def _not_read(settings: Settings, names: Sequence[str], choice: str, *readers: str) -> str:
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    able = alternatives(readers)
    return (
        f"{', '.join(names)} {are} for {able}; the {choice} is {getattr(settings, choice)}. Leave "
        f"{them} out, or choose --{choice} {able}."
    )


def _problems_of_head(settings: FineTuneSettings, given: Iterable[str] | None) -> list[str]:
    """Return problems of a head with its task and labels; `given` are settings of its own."""
    if settings.task is not None:
        TASKS.resolve(settings.task)
    if settings.head is not None:
        check_head(settings.head)
    own = [name for name in given or () if name in type(settings).model_fields]
    return [
        *foreign(type(settings), own, settings.backbone),
        *_problems_of_labels(settings, settings.labels),
        *_problems_of_targets(settings),
        *settings.kind.problems(settings, settings.labels),
    ]


def _problems_of_targets(settings: FineTuneSettings) -> list[str]:
    if settings.labels.task != MULTITARGET or settings.kind.takes_several_targets:
        return []
    return [
        f"multitarget reads several columns of a table of sequences; {settings.kind.title} take a "
        f"head for each column (--target-column A,B without --task)."
    ]


def concerns(settings: type[Settings], name: str, backbone: str) -> bool:
    """Return whether a setting concerns a backbone.

    Examples
    --------
    >>> from molfun.cli.settings import FineTuneSettings
    >>> from molfun.data.kinds.base import with_kinds
    >>> [concerns(with_kinds(FineTuneSettings), "pdbs", name) for name in ("openfold", "pet")]
    [True, False]
    """
    # architectures by name are an ability of a backbone, not of a data kind
    if settings.flag(name).needs == "preset":
        return bool(BACKBONES.about(backbone, "takes_preset"))
    kinds = _kinds_with(settings, name)
    return not kinds or any(kind.name in kinds for kind in kinds_of(backbone))


def _kinds_with(settings: type[Settings], name: str) -> list[str]:
    """Return the data kinds that a setting is for; an empty list if it is for all."""
    if settings.flag(name).needs == "demo":
        return [kind.name for kind in DATASETS.classes() if kind.has_demo]
    return [kind.name for kind in DATASETS.classes() if name in kind.settings.model_fields]


def foreign(settings: type[Settings], names: Iterable[str], backbone: str) -> list[str]:
    """Return sentences on settings of data kinds that a backbone does not take.

    Examples
    --------
    >>> from molfun.cli.pretrain_settings import PretrainSettings
    >>> foreign(PretrainSettings, ["layout", "lr", "window"], "esm2")
    ["layout, window: for time series (models such as timeseries); the backbone is 'esm2'."]
    """
    owners: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if not concerns(settings, name, backbone):
            owners.setdefault(tuple(_kinds_with(settings, name)), []).append(name)
    return [
        f"{', '.join(of)}: for {what_takes(kinds)}; the backbone is {backbone!r}."
        for kinds, of in owners.items()
        if kinds
    ]


def what_takes(kinds: Sequence[str]) -> str:
    """Describe data kinds, with a backbone for each.

    Examples
    --------
    >>> what_takes(["atoms"])
    'structures of atoms (models such as pet)'
    """
    titles, backbones = zip(
        *((DATASETS[k].title, DATASETS[k].backbone) for k in kinds), strict=True
    )
    return f"{alternatives(titles)} (models such as {alternatives(backbones)})"


def _problems_of_labels(settings: FineTuneSettings, labels: Labels) -> list[str]:
    """Return sentences on settings that belong to other tasks or levels."""
    problems, name = [], labels.task
    if settings.class_weight is not None and name not in CLASSES:
        problems.append(f"class_weight is for {', '.join(CLASSES)}; the task is {name!r}.")
    smoothed = ("multiclass", "binary")
    if settings.label_smoothing and name not in smoothed:
        problems.append(f"label_smoothing is for {', '.join(smoothed)}; the task is {name!r}.")
    if settings.loss != "mse" and name not in ("regression", "energy"):
        problems.append(f"loss={settings.loss!r} is for regression; the task is {name!r}.")
    known, takes_all = parameters_of(TASKS[name])
    if settings.level is not None and "level" not in known and not takes_all:
        problems.append(f"level={settings.level!r}: the task {name!r} has no level.")
    return problems


def _problems_of_columns(settings: FineTuneSettings) -> list[str]:
    """Return sentences on columns of groups and splits that the split ignores."""
    problems = []
    grouped = settings.split == "group" or settings.kind.groups_by is not None
    if settings.group_column != "group" and not grouped:
        problems.append(
            f"group_column={settings.group_column!r} is for split='group', and the split is "
            f"{settings.split!r}."
        )
    if settings.split_column != "split" and settings.split not in ("column", "group"):
        problems.append(
            f"split_column={settings.split_column!r} is for split='column', and the split is "
            f"{settings.split!r}."
        )
    if settings.preset is not None and not BACKBONES.about(settings.backbone, "takes_preset"):
        problems.append(
            f"preset={settings.preset!r}: {settings.backbone} has none; give what differs from its "
            f"defaults as backbone_config.config.d_pet=64."
        )
    return problems

"""Build the parts of a model (backbone, tasks, heads) from names and settings."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun.backbones.base import Backbone
from molfun.backbones.own_heads import OwnHeads
from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.nn import int8
from molfun.nn.process import seeded
from molfun.parallel.started import Started
from molfun.registry import BACKBONES, HEADS, TASKS, check_head
from molfun.strict import build, parameters_of
from molfun.tasks.base import Task
from molfun.text import first_line
from molfun.training.task_head import TaskHead

logger = logging.getLogger(__name__)


def as_settings(argument: str, given: Any) -> dict[str, Any]:
    """Return a copy of the settings of a part; an empty dict for None.

    Raises
    ------
    ConfigError
        If they are not a mapping with text keys.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{argument} must map names to values, got {shown(given)}.")
    return dict(given)


def shown(value: Any) -> str:
    """Return a value as text for a message: on one line, cut after 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def build_backbone(
    name: str,
    settings: dict[str, Any],
    *,
    config: Any,
    weights: str | Path | None,
    seed: int,
    trust: bool,
    base: int8.Base = "float32",
) -> Backbone:
    """Build the backbone of that name, such as ``esm2`` or its preset ``esm2_t6_8M_UR50D``.

    Raises
    ------
    ConfigError
        If the name or a setting is unknown, or a setting is given twice.
    CheckpointError
        If the weights do not fit the architecture.
    """
    name, preset = BACKBONES.resolve(name)
    if preset and config is not None:
        raise ConfigError(
            f"config={config!r} was given with a backbone of a fixed size. Use "
            f"MolfunStructureModel({name!r}, config=...)."
        )
    settings = {**preset, **settings}
    # `config` has two places, as an argument and in backbone_config, but may stand in one only
    given = {} if config is None else {"config": config}
    twice = [key for key in ("weights", "seed", "base", *given) if key in settings]
    if twice:
        raise ConfigError(f"Give {', '.join(twice)} as an argument, not in backbone_config.")
    int8.check_base(base, BACKBONES[name])
    # only backbones whose weight files may be pickles, or are read into int8, have the argument
    some = {"base": base} | ({"trust": True} if trust else {})
    settings |= {**given, "weights": weights, "seed": seed, **_taken(BACKBONES[name], some)}
    backbone: Backbone = build(BACKBONES[name], settings, "backbone_config")
    if base == "int8":  # those that cannot read a file into int8 hold the floats until here
        int8.quantise(backbone)
    return backbone


def _taken(cls: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a class takes by name."""
    takes = inspect.signature(cls).parameters
    return {key: value for key, value in arguments.items() if key in takes}


def names_of(head: str | None, task: str | None) -> tuple[str, str]:
    """Return the names of head and task, each completed from the other where one is missing.

    A name given as the head may also be that of a task, which then gets its default head.

    Examples
    --------
    >>> names_of("regression", None), names_of("affinity", None), names_of(None, "contact")
    (('mlp', 'regression'), ('affinity', 'regression'), ('contact', 'contact'))
    """
    if head is not None:
        check_head(head)
    if head is not None and head not in HEADS:
        if task not in (None, head):
            raise ConfigError(f"head={head!r} names a task, and task={task!r} names another one.")
        head, task = None, head
    if head is None:
        assert task is not None  # one of the two is given
        return TASKS[task].default_head, task
    return head, task or HEADS[head].default_task


@dataclass(frozen=True)
class HeadSettings:
    """Names and arguments of a head and its task, and the weight of its loss."""

    head: str | None = None
    head_config: Mapping[str, Any] | None = None
    task: str | None = None
    task_config: Mapping[str, Any] | None = None
    weight: float = 1.0


_TAKEN = frozenset({"ids", "loss", "mask", "trunk"})
"""Names no head may have: outputs, predictions and history rows use them as keys already."""


def named_heads(
    only: HeadSettings, several: Mapping[str, Mapping[str, Any]] | None, backbone: Backbone
) -> dict[str, HeadSettings]:
    """Return the settings of each head by its name; a single head has the empty name.

    Parameters
    ----------
    only
        Settings of a single head; if these name none, the backbone's own head is used, if any.
    several
        Settings of several heads by their names.
    backbone
        Backbone that the heads are for.

    Raises
    ------
    ConfigError
        If both are given, or a name or setting cannot be used.
    """
    if several is not None:
        if only != HeadSettings():
            raise ConfigError("Give head and task (for one), or heads (for several), not both.")
        return _several(as_settings("heads", several), backbone)
    if only.head is None and only.task is None:
        only = replace(only, head=_own_head(backbone))
    if only.head is None and only.task is None:
        if only.head_config or only.task_config:
            raise ConfigError("head_config or task_config was given without head=....")
        return {}
    return {"": only}


def _several(heads: Mapping[str, Any], backbone: Backbone) -> dict[str, HeadSettings]:
    if not heads:
        raise ConfigError("heads names no head. Leave it out for a bare backbone.")
    result = {}
    for name, given in heads.items():
        # the names become attributes of a module and columns of tables
        if not name.isidentifier() or name in _TAKEN or hasattr(nn.ModuleDict, name):
            raise ConfigError(
                f"heads: {name!r} cannot name a head. Use letters, digits and _, and no "
                f"name that torch modules or Molfun's tables use."
            )
        result[name] = _one_of_several(f"heads[{name!r}]", given)
    _refuse_one_part_twice(result, backbone)
    return result


def _own_head(backbone: Backbone) -> str | None:
    return backbone.own_head if isinstance(backbone, OwnHeads) else None


def _views(backbone: Backbone) -> tuple[str, ...]:
    return backbone.views if isinstance(backbone, OwnHeads) else ()


def _refuse_one_part_twice(heads: Mapping[str, HeadSettings], backbone: Backbone) -> None:
    """Refuse two heads that are the same module of the backbone."""
    for own in _views(backbone):
        views = [name for name, one in heads.items() if names_of(one.head, one.task)[0] == own]
        if len(views) > 1:
            raise ConfigError(
                f"heads: {' and '.join(views)} both have the head {own!r}, which is a part of the "
                f"backbone and exists only once. Keep one of them."
            )


def _one_of_several(where: str, given: Any) -> HeadSettings:
    one: HeadSettings = build(HeadSettings, as_settings(where, given), where)
    # bool is checked first: in Python, True is an int
    weight = one.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
        raise ConfigError(f"{where}: weight must be a number above 0, got {weight!r}.")
    if one.head is None and one.task is None:
        raise ConfigError(f"{where} names neither head nor task.")
    return one


def build_task_head(name: str, given: HeadSettings, *, backbone: Backbone, seed: int) -> TaskHead:
    """Build an untrained head and its task from their registered names.

    Raises
    ------
    ConfigError
        If a name or setting is unknown, or head, task and backbone do not go together.
    """
    head_name, task_name = names_of(given.head, given.task)
    cls = TASKS[task_name]
    if cls.only_default_head and head_name != cls.default_head:
        raise ConfigError(
            f"The task {task_name!r} is that of the head {cls.default_head!r} alone, got "
            f"{head_name!r}. Use head={cls.default_head!r}."
        )
    task = build_task(task_name, as_settings("task_config", given.task_config), head=head_name)
    settings = as_settings("head_config", given.head_config)
    return TaskHead(
        name=name,
        weight=float(given.weight),
        head=build_head(head_name, settings, backbone=backbone, task=task, seed=seed),
        task=task,
        head_name=head_name,
        task_name=task_name,
    )


def build_task(name: str, settings: dict[str, Any], *, head: str) -> Task:
    """Build a task; its level is the head's default unless the settings name one."""
    cls = TASKS[name]
    if "level" in inspect.signature(cls).parameters:
        # a head per residue makes labels per residue the natural default
        settings.setdefault("level", HEADS[head].default_level)
    task: Task = build(cls, settings, "task_config")
    return task


def head_sizes(name: str, backbone: Backbone, task: Task) -> dict[str, Any]:
    """Return the sizes (widths of the backbone, outputs of the task) that this head takes.

    Raises
    ------
    ConfigError
        If the task needs several outputs or another level, and the head has no argument for it.
    """
    known, takes_all = parameters_of(HEADS[name])
    outputs = {"n_outputs": task.n_outputs, "level": task.level}
    for key, value in outputs.items():
        if value not in (1, "sequence") and key not in known and not takes_all:
            raise ConfigError(
                f"The head {name!r} gives one number per sample; the task "
                f"{task.name!r} needs {key}={value!r}. Use head='mlp' or another one."
            )
    sizes = {"single_dim": backbone.single_dim, "pair_dim": backbone.pair_dim, **outputs}
    return {
        key: value
        for key, value in sizes.items()
        if key in known or (takes_all and value is not None)
    }


def build_head(
    name: str, settings: Mapping[str, Any], *, backbone: Backbone, task: Task, seed: int
) -> Head:
    """Build the head of that name, with widths from the backbone and outputs from the task.

    Raises
    ------
    ConfigError
        If a setting is unknown, or the head does not go with backbone or task.
    """
    sizes = head_sizes(name, backbone, task)
    for key in {"single_dim", "pair_dim"} & sizes.keys():
        sizes[key] = Head.check_dim(key, settings.get(key), sizes[key])
    # initial weights depend on the seed alone, and the process keeps its own generator
    with seeded(seed):
        head: Head = build(HEADS[name], {**settings, **sizes}, "head_config")
    if head.in_backbone and name not in _views(backbone):
        raise ConfigError(
            f"The head {name!r} is a part of {head.part_of}, and {backbone.display_name} is none "
            f"of them. Use head={backbone.default_head!r}."
        )
    if getattr(head, "scores", None) is not None:
        needs_token_head(backbone)
    # ESM-2 publishes a contact head with its weights, which predicts contacts without training
    pretrained = backbone.pretrained_head(name) if isinstance(backbone, OwnHeads) else None
    if pretrained is not None:
        head.load_state_dict(pretrained)
    return head


def needs_token_head(backbone: Any) -> None:
    """Refuse a backbone that predicts no residues, and so scores no variants.

    Raises
    ------
    ConfigError
        Saying why it predicts none.
    """
    if not hasattr(backbone, "needs_token_head"):
        raise ConfigError(
            f"{backbone.display_name} predicts no residues, so it scores no variants. Use a "
            f"protein language model, such as esm2_t6_8M_UR50D."
        )
    backbone.needs_token_head()


def augmented(heads: Mapping[str, HeadSettings], augment: str | None) -> Mapping[str, HeadSettings]:
    """Return the settings of heads that read `augment` beside their representation.

    Raises
    ------
    ConfigError
        If there is no head, or one takes nothing beside its representation.
    """
    if augment is None:
        return heads
    if not heads:
        raise ConfigError(
            f"augment={augment!r} is what a head reads beside its representation, and there is no "
            f"head. Give head='linear' or head='mlp'."
        )
    found = {}
    for name, one in heads.items():
        head, _ = names_of(one.head, one.task)
        if "augment" not in parameters_of(HEADS[head])[0]:
            raise ConfigError(
                f"augment={augment!r}: the head {head!r} reads nothing beside its representation. "
                f"Use head='linear' or head='mlp'."
            )
        config = {**as_settings("head_config", one.head_config), "augment": augment}
        found[name] = replace(one, head_config=config)
    return found


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device for "auto" or a name.

    Raises
    ------
    ConfigError
        If the name is unknown, or torch sees no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {device!r}: {first_line(error)}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={str(device)!r}, but torch sees no CUDA GPU here. Use device='auto' or 'cpu'."
        )
    started = Started.found()
    if place == torch.device("cuda") and started.size > 1:
        return torch.device("cuda", started.local)  # of several processes each has its own GPU
    return place

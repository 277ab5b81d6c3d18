"""Check what trials draw, and put it into the settings of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

from molfun.cli.checks import check_run
from molfun.cli.settings import FineTuneSettings, TrainSettings
from molfun.config import read_yaml
from molfun.data.kinds.base import with_kinds
from molfun.errors import ConfigError
from molfun.registry import STRATEGIES
from molfun.strategies.base import FinetuneStrategy
from molfun.text import nearest
from molfun.tuning.space import Space

_OF_HEAD = ("head", "head_config", "task_config")
_OF_LOSS = ("loss", "class_weight", "label_smoothing", "standardize_labels")
"""Settings that change what a loss means."""
TUNABLE = (
    *(name for name in TrainSettings.model_fields if name not in ("monitor", "amp", "precision")),
    *_OF_HEAD,
    *_OF_LOSS,
    "backbone_config",
)
"""Settings that trials may draw: of the training, the head and the backbone."""
_FIELDS = TrainSettings.model_fields
_ANY_BLOCKS = 4
"""Number of blocks with which strategies are tried; how many there are is known with the model."""


def read_space(path: str, base: FineTuneSettings) -> Space:
    """Read a space, and refuse what no trial could use.

    Settings that belong to a strategy, optimizer or schedule (``lora_rank``, ``momentum``) are
    drawn with the choices of it that read them, if it is drawn as well.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a name or value in it is wrong.
    """
    content = read_yaml(path)
    space = Space.of(_within_choices(content), source=path, real=_real_numbers())
    for name in space.names():
        _check_name(name, base, path)
    for case in space.cases():
        _check_case(case, base, path)
    return space


def _check_name(name: str, base: FineTuneSettings, source: str) -> None:
    first, _, inside = name.partition(".")
    known = with_kinds(FineTuneSettings).model_fields
    if first not in known:
        raise ConfigError(f"{source}: {name}: unknown setting.{nearest(first, TUNABLE)}")
    if first not in TUNABLE:
        raise ConfigError(
            f"{source}: {first} is the same in all trials, or their values could not be compared. "
            f"Set it in the base config."
        )
    if bool(inside) != first.endswith("_config"):
        how = f"{first}.NAME" if first.endswith("_config") else first
        raise ConfigError(f"{source}: {name} is drawn as {how}.")
    if first in (*_OF_LOSS, "task_config") and base.monitor == "val/loss":
        raise ConfigError(
            f"{source}: {name} changes what val/loss means, by which trials are compared. Set "
            f"monitor in the base config to a metric, such as val/rmse."
        )


def _check_case(case: Mapping[str, Any], base: FineTuneSettings, source: str) -> None:
    """Refuse values that no run would take, before the first trial."""
    settings = with_drawn(base, case, source=source)
    try:
        check_run(settings)
        if settings.strategy in STRATEGIES:
            options = settings.strategy_options(settings.strategy, _ANY_BLOCKS)
            FinetuneStrategy.from_dict(options)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if settings.labels != base.labels:
        raise ConfigError(
            f"{source}: the head {settings.head} has the task {settings.labels.task}, and the base "
            f"config {base.labels.task}: set task in the base config."
        )


def with_drawn(
    base: FineTuneSettings, drawn: Mapping[str, Any], *, source: str = "trial"
) -> FineTuneSettings:
    """Return the settings of a run, with those that a trial drew in their places."""
    values = copy.deepcopy(base.model_dump(exclude_defaults=True))
    for name, value in drawn.items():
        first, _, inside = name.partition(".")
        if inside:
            _put(values.setdefault(first, {}), inside, value)
        else:
            values[first] = value
    return FineTuneSettings.build(values, source=source)


def _put(section: dict[str, Any], name: str, value: Any) -> None:
    first, _, inside = name.partition(".")
    if inside:
        _put(section.setdefault(first, {}), inside, value)
    else:
        section[first] = value


def _real_numbers() -> set[str]:
    """Return the settings that are real numbers, also where a range is written in whole ones."""
    return {name for name, field in _FIELDS.items() if float in _types(field.annotation)}


def _types(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


def _nested(options: Any) -> Mapping[str, Any]:
    """Return what is nested in each choice; nothing for other settings."""
    if isinstance(options, list) and all(isinstance(one, str) for one in options):
        return dict.fromkeys(options)
    return options if isinstance(options, Mapping) else {}


def _within_choices(content: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings that only some choices of another setting read to these choices.

    Examples
    --------
    >>> _within_choices({"strategy": ["lora", "head_only"], "lora_rank": [4, 8]})
    {'strategy': {'lora': {'lora_rank': [4, 8]}, 'head_only': None}}
    """
    made = dict(content)
    for name in content:
        reads = TrainSettings.flag(name).read_with if name in _FIELDS else ()
        choice, *readers = reads or ("",)
        options = _nested(made.get(choice))
        moved = {
            option: {name: content[name], **(own or {})}
            for option, own in options.items()
            if option in ("auto", *readers) and isinstance(own, Mapping | None)
        }
        if moved:  # else the setting stays, and is refused as one that nothing reads
            made[choice] = {**options, **moved}
            del made[name]
    return made

"""Configuration of time-series runs in sections (``encoder``, ``task``, ``training`` ...).

Read from YAML or a dict, with overrides, for the modules in `molfun.lightning`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from molfun._paths import as_path
from molfun.backbones.timeseries.backbone import resolve
from molfun.config import Settings, parse_yaml, read_yaml
from molfun.errors import ConfigError
from molfun.nn.optimizers import build_optimizer
from molfun.registry import HEADS, OBJECTIVES, TASKS
from molfun.strict import build, mistyped, parameters_of
from molfun.text import listing, nearest
from molfun.training.schedule import epoch_scheduler

PRETRAIN = ("encoder", "ssl", "optimizer", "scheduler", "data", "training")
FINETUNE = ("encoder", "task", "training", "optimizer", "scheduler", "data")
SECTIONS = (*dict.fromkeys((*PRETRAIN, *FINETUNE)),)
NAMED_SECTIONS = ("encoder", "ssl", "optimizer", "scheduler")
"""Sections that may be given as a single name: ``encoder: gru_d``."""
PARTS = ("backbone", "head", "task", "strategy")
"""Settings that name a part, whose own settings are in ``strategy_config`` and so on."""
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers that YAML 1.1 reads as text because they lack a point, such as 1e-3."""


class OptimizerSettings(Settings):
    """Section ``optimizer``; only sgd uses `momentum`."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9


class DataSettings(Settings):
    """Section ``data``: whether values are standardised to mean 0 and deviation 1.

    None standardises in pre-training; fine-tuning then does as the pre-training before it.
    """

    standardize: bool | None = None


class TrainerSettings(Settings):
    """Settings in section ``training`` for Lightning's Trainer and the loaders.

    The modules ignore them; `trainer_options` returns those that are arguments of ``Trainer``.
    """

    max_epochs: int | None = None
    batch_size: int | None = None
    precision: str | int | None = None
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int | None = None
    overfit_batches: float | None = None

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Arguments for ``lightning.pytorch.Trainer``.

        Examples
        --------
        >>> TrainerSettings(max_epochs=5, batch_size=8).trainer_options
        {'max_epochs': 5}
        """
        given = {name: getattr(self, name) for name in TrainerSettings.model_fields}
        return {k: v for k, v in given.items() if v is not None and k != "batch_size"}


class TrainingSettings(TrainerSettings):
    """Section ``training`` of fine-tuning.

    Parameters
    ----------
    freeze_encoder, unfreeze_epoch
        True with None trains only the head; True with a number N trains the encoder too, from
        epoch N on (the first is 0); False trains both from the start.
    class_weight
        ``"balanced"`` or one number per class.
    label_smoothing
        For binary and multiclass tasks.
    early_stopping_patience, early_stopping_monitor, early_stopping_mode
        Stop after this many epochs without a better value of the monitored metric; if patience or
        monitor is None, never stop early. The mode defaults to that of the metric.
    """

    freeze_encoder: bool = True
    unfreeze_epoch: int | None = Field(None, ge=0)
    class_weight: Literal["balanced"] | list[float] | None = None
    label_smoothing: float = 0.0
    early_stopping_patience: int | None = Field(None, ge=1)
    early_stopping_monitor: str | None = "val/loss"
    early_stopping_mode: Literal["min", "max"] | None = None


class TaskSettings(Settings):
    """Section ``task``, without the further arguments of the head.

    Parameters
    ----------
    task_type, task_name
        Registered name of the task, and a name of your choice.
    n_classes
        For multiclass and multilabel tasks.
    head_type, hidden_dims, dropout, pooling
        The head; a linear one ignores `hidden_dims` and `dropout`.
    loss, standardize_labels
        For regression: ``"mse"``, ``"mae"`` or ``"huber"``, and whether the loss is computed on
        standardised labels instead of in their units.
    """

    task_type: str
    task_name: str = ""
    n_classes: int | None = None
    head_type: str = "mlp"
    hidden_dims: list[int] = Field(default_factory=lambda: [64])
    dropout: float = 0.1
    pooling: str = "mean"
    loss: str | None = None
    standardize_labels: bool | None = None


@dataclass(frozen=True)
class PretrainConfig:
    """A validated configuration of pre-training."""

    encoder: dict[str, Any]
    ssl: dict[str, Any]
    optimizer: OptimizerSettings
    scheduler: dict[str, Any] | None
    data: DataSettings
    training: TrainerSettings
    plain: dict[str, Any]
    """The whole configuration in plain values, as it was given."""


@dataclass(frozen=True)
class FinetuneConfig:
    """A validated configuration of fine-tuning."""

    encoder: dict[str, Any]
    task: TaskSettings
    training: TrainingSettings
    optimizer: OptimizerSettings
    scheduler: dict[str, Any] | None
    data: DataSettings
    plain: dict[str, Any]
    head: dict[str, Any] = field(default_factory=dict)
    """Keys of the section ``task`` that are arguments of the head."""


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read and validate the configuration of a module.

    A section may be a single name. ``encoder: mine`` stands for the file ``encoder/mine.yaml`` next
    to `source` if there is one, else for the registered encoder of that name with its defaults.

    Parameters
    ----------
    source
        YAML file, or a mapping (a dict or an OmegaConf ``DictConfig``).
    overrides
        ``"encoder.d_model=64"`` or ``"encoder=gru_d"``; values are YAML.

    Returns
    -------
    dict
        Sections of plain values, for `SSLPretrainModule` or `FineTuneModule`.

    Raises
    ------
    ConfigError
        If the file is missing, or a key is unknown (the text gives the nearest name) or wrong.

    Examples
    --------
    >>> config = load_config({"encoder": "gru_d", "ssl": "mae"}, ["encoder.d_model=32"])
    >>> config
    {'encoder': {'name': 'gru_d', 'd_model': 32}, 'ssl': {'name': 'mae'}}
    """
    folder = None
    if isinstance(source, str | Path):
        folder = as_path(source).parent
        source = read_yaml(source)
    config = plain(source)
    # whole sections are replaced before names are expanded, single keys set afterwards, so that
    # "encoder=gru_d" and "encoder.d_model=32" work together in any order
    changes = [_parse(text) for text in overrides]
    for path, value in changes:
        if len(path) == 1:
            config[path[0]] = value
    config = expand(config, folder)
    for path, value in changes:
        if len(path) > 1:
            _set(config, path, value)
    if "ssl" in config:
        return pretrain_config(config).plain
    if "task" in config:
        return finetune_config(config).plain
    problems = [*_unknown_sections(config, [*PRETRAIN, *FINETUNE])]
    problems.append("There is no section ssl (to pre-train) and none named task (to fine-tune).")
    raise ConfigError(f"config:\n{listing(problems)}")


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return flat settings with overrides such as ``"head_config.dropout=0.2"`` applied.

    Raises
    ------
    ConfigError
        If an override has another form.

    Examples
    --------
    >>> apply_overrides({"epochs": 3}, ["epochs=5", "head_config.dropout=0"])
    {'epochs': 5, 'head_config': {'dropout': 0}}
    """
    changed: dict[str, Any] = plain(values)
    for text in overrides:
        path, value = _parse(text)
        _set(changed, path, value)
    return changed


def _parse(text: str) -> tuple[list[str], Any]:
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"Override {text!r} must look like section.key=value.")
    return path, plain(parse_yaml(value, f"The value of {text!r}"))


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    place = config
    for i, key in enumerate(path[:-1]):
        if not isinstance(place.setdefault(key, {}), dict):
            hint = f" {written_as(path[0], path[1])}" if i == 0 and path[0] in PARTS else ""
            raise ConfigError(
                f"Override {'.'.join(path)}: {'.'.join(path[: i + 1])} is no section.{hint}"
            )
        place = place[key]
    place[path[-1]] = value


def written_as(part: str, name: str) -> str:
    """Say how a setting of a part is written on the command line.

    Examples
    --------
    >>> written_as("strategy", "rank")
    'Settings of a strategy are written strategy_config.rank=VALUE.'
    """
    return f"Settings of a {part} are written {part}_config.{name}=VALUE."


def plain(value: Any) -> Any:
    """Convert nested mappings to dicts, sequences to lists, and texts such as 1e-3 to numbers.

    Examples
    --------
    >>> plain({"lr": "1e-3", "hidden": (64,)})
    {'lr': 0.001, 'hidden': [64]}
    """
    # Mapping and Sequence, since OmegaConf's containers are neither dict nor list
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def expand(config: Any, folder: Path | None = None) -> dict[str, Any]:
    """Replace sections given as a name by their content.

    Raises
    ------
    ConfigError
        If the configuration or a section is not a mapping.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"The configuration must hold sections, got {type(config).__name__}.")
    return {
        section: _expanded(section, value, folder)
        for section, value in config.items()
        if value is not None
    }


def _expanded(section: str, value: Any, folder: Path | None) -> Any:
    """Return one section, read from its file or made from its name."""
    looked = ""
    if isinstance(value, str):
        file = None if folder is None else folder / section / f"{value}.yaml"
        if file is not None and file.is_file():
            value = plain(read_yaml(file))
        elif section in NAMED_SECTIONS:
            return {"name": value}
        elif file is not None:
            looked = f", and there is no {file}"
    if section in {*PRETRAIN, *FINETUNE} and not isinstance(value, dict):
        raise ConfigError(f"{section} must hold `name: value` lines, got {value!r}{looked}.")
    return value


def pretrain_config(config: Mapping[str, Any]) -> PretrainConfig:
    """Validate a configuration of pre-training.

    Raises
    ------
    ConfigError
        Naming everything that is unknown or wrong.
    """
    sections = expand(plain(config))
    with _Problems() as problems:
        problems.extend(_unknown_sections(sections, PRETRAIN))
        if "ssl" not in sections:
            problems.append("ssl: the section is missing; it names the objective.")
        else:
            with problems.of("ssl"):
                build_objective(sections["ssl"])
        with problems.of("encoder"):
            # d_input follows from data that is not open yet; with 1 the other keys are checked
            encoder = sections.get("encoder", {})
            resolve({**encoder, "d_input": encoder.get("d_input") or 1}, None)
        common = _common(sections, problems)
        training = problems.section(TrainerSettings, "training", sections)
    return PretrainConfig(
        encoder=encoder, ssl=sections["ssl"], training=training, plain=sections, **common
    )


def finetune_config(config: Mapping[str, Any]) -> FinetuneConfig:
    """Validate a configuration of fine-tuning.

    Raises
    ------
    ConfigError
        Naming everything that is unknown or wrong.
    """
    sections = expand(plain(config))
    head: dict[str, Any] = {}
    with _Problems() as problems:
        problems.extend(_unknown_sections(sections, FINETUNE))
        encoder = sections.get("encoder", {})
        if "name" in encoder:  # otherwise the weight file names the encoder
            with problems.of("encoder"):
                resolve({**encoder, "d_input": encoder.get("d_input") or 1}, None)
        given = sections.get("task", {})
        if not given:
            problems.append("task: the section is missing; it needs task_type.")
        else:
            with problems.of("task"):
                head = _head_options(given)
            own = {k: v for k, v in given.items() if k not in head}
            task = problems.section(TaskSettings, "task", {"task": own})
        training = problems.section(TrainingSettings, "training", sections)
        late = training is not None and training.unfreeze_epoch is not None
        if late and not training.freeze_encoder:
            problems.append(
                "training: unfreeze_epoch goes with freeze_encoder=true, which is false here."
            )
        common = _common(sections, problems)
    return FinetuneConfig(
        encoder=encoder, task=task, training=training, plain=sections, head=head, **common
    )


def _common(sections: Mapping[str, Any], problems: _Problems) -> dict[str, Any]:
    """Validate the sections that pre-training and fine-tuning share.

    Optimizer and scheduler are built once on a single parameter, so that their own checks of
    arguments run now and not after the data was read.
    """
    optimizer = problems.section(OptimizerSettings, "optimizer", sections)
    scheduler = sections.get("scheduler")
    trial: torch.optim.Optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if optimizer is not None:
        with problems.of("optimizer"):
            parameter = torch.nn.Parameter(torch.zeros(1, 1))
            build_optimizer(groups=[parameter], **optimizer.model_dump())
    if scheduler is not None:
        with problems.of("scheduler"):
            build_scheduler(scheduler, trial)
    data = problems.section(DataSettings, "data", sections)
    return {"optimizer": optimizer, "scheduler": scheduler, "data": data}


def build_scheduler(section: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Any:
    """Build the scheduler of a section.

    Raises
    ------
    ConfigError
        If its name or an option is unknown or wrong.
    """
    options = dict(section)
    if "name" not in options:
        raise ConfigError("name is missing.")
    return epoch_scheduler(options.pop("name"), optimizer, **options)


def build_objective(section: Mapping[str, Any]) -> Any:
    """Build the objective of section ``ssl``.

    Raises
    ------
    ConfigError
        If its name or a setting is unknown or wrong.
    """
    settings = dict(section)
    if "name" not in settings:
        raise ConfigError(f"name is missing; known: {', '.join(sorted(OBJECTIVES))}.")
    cls = OBJECTIVES[settings.pop("name")]
    return build(cls, settings)


def _head_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of section ``task`` that belong to the head and not to `TaskSettings`.

    Raises
    ------
    ConfigError
        If the task or the head is unknown.
    """
    if "task_type" in section:
        TASKS.resolve(section["task_type"])
    own = TaskSettings.model_fields
    known, takes_all = parameters_of(HEADS[section.get("head_type", "mlp")])
    # widths and outputs follow from backbone and task; `hidden` is spelled `hidden_dims` here
    set_by_us = ("single_dim", "pair_dim", "n_outputs", "level", "hidden")
    return {
        key: value
        for key, value in section.items()
        if key not in own and (takes_all or (key in known and key not in set_by_us))
    }


def _unknown_sections(sections: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    for name in sections:
        if name not in known:
            yield f"{name}: unknown section.{nearest(name, known)}"


class _Problems(list[str]):
    """Collect the problems of all sections, and raise them together on leaving the block."""

    def __enter__(self) -> _Problems:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self and kind is None:
            raise ConfigError(f"config:\n{listing(self)}")

    @contextlib.contextmanager
    def of(self, section: str) -> Iterator[None]:
        """Collect a ConfigError of the block under the name of a section."""
        try:
            with mistyped(section):
                yield
        except ConfigError as error:
            self.append(f"{section}: {str(error).removeprefix(f'{section}: ')}")

    def section(self, cls: type[Any], name: str, sections: Mapping[str, Any]) -> Any:
        """Return the typed settings of a section; None after noting what is wrong with them."""
        try:
            return cls.build(sections.get(name, {}), source=name)
        except ConfigError as error:
            lines = str(error).splitlines()[1:]
            self.extend(f"{name}.{line.strip()}" for line in lines)
            return None

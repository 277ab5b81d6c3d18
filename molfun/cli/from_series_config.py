"""Translate a configuration in sections (``encoder``, ``task``, ``training`` ...) to settings.

The sections are those of the guide to Lightning modules for time series (`molfun.lightning`), whose
files work on the command line as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from molfun.cli.console import say
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import read_yaml
from molfun.data.kinds.base import with_kinds
from molfun.errors import ConfigError
from molfun.models.series_config import (
    NAMED_SECTIONS,
    SECTIONS,
    apply_overrides,
    finetune_config,
    load_config,
    pretrain_config,
)

PRETRAIN_EPOCHS, FINETUNE_EPOCHS = 100, 50
"""Epochs of a file in sections that names none, as in that guide."""
_FLAT = {
    "encoder": ("backbone_config.config.name", "backbone_config.config"),
    "ssl": ("objective", "objective_config"),
}
"""Flat settings that correspond to a section: for its name, and for its keys."""


def read_settings(
    config: str | None, overrides: Sequence[str], *, pretrain: bool
) -> dict[str, Any]:
    """Read settings from a file and overrides; translate a configuration in sections.

    Parameters
    ----------
    config
        YAML file, or None.
    overrides
        ``"encoder.d_model=64"``, ``"head_config.dropout=0.2"`` ...
    pretrain
        Whether the run pre-trains.

    Raises
    ------
    ConfigError
        If the file is missing, or anything in it is unknown (with the nearest name) or wrong.
    """
    values = {} if config is None else read_yaml(config)
    if not _has_sections(values, overrides):
        return apply_overrides(values, [_flat_name(text) for text in overrides])
    of_sections = [text for text in overrides if _is_of_a_section(text)]
    sections = load_config(values if config is None else config, of_sections)
    flat = flat_pretrain(sections) if pretrain else flat_fine_tune(sections)
    return apply_overrides(flat, [text for text in overrides if text not in of_sections])


def _has_sections(values: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Return whether a file, or the overrides if there is none, have sections.

    Examples
    --------
    >>> [_has_sections({}, [text]) for text in ("encoder=cnn", "task.head_type=mlp", "task=binary")]
    [True, True, False]
    """
    if values:  # `task: binary` is a flat setting
        return bool({"ssl", "encoder"} & values.keys()) or isinstance(values.get("task"), dict)
    sections = ("ssl=", "ssl.", "encoder=", "encoder.", "task.")
    return any(text.startswith(sections) for text in overrides)


def _is_of_a_section(override: str) -> bool:
    """Return whether an override changes a section; ``data=x.csv`` and ``task=binary`` are flat."""
    section, nested, _ = override.partition("=")[0].strip().partition(".")
    if section in SECTIONS:
        return bool(nested) or section in NAMED_SECTIONS
    flat = {*with_kinds(FineTuneSettings).model_fields, *PretrainSettings.model_fields}
    return section not in flat  # so that a misspelt section gets the error of sections


def _flat_name(override: str) -> str:
    """Turn an override of a section into one for a file without sections.

    Examples
    --------
    >>> [_flat_name(text) for text in ("encoder.d_model=64", "ssl=mae", "lr=1e-3")]
    ['backbone_config.config.d_model=64', 'objective=mae', 'lr=1e-3']
    """
    for name, (whole, inside) in _FLAT.items():
        if override.startswith(f"{name}="):
            return whole + override.removeprefix(name)
        if override.startswith(f"{name}."):
            return inside + override.removeprefix(name)
    return override


def flat_pretrain(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``molfun pretrain`` for a configuration in sections."""
    config = pretrain_config(sections)
    ssl = dict(config.ssl)
    epochs = config.training.max_epochs or PRETRAIN_EPOCHS
    return {
        **_common(config, epochs),
        "objective": ssl.pop("name"),
        "objective_config": ssl,
    }


def flat_fine_tune(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``molfun fine-tune`` for a configuration in sections."""
    config = finetune_config(sections)
    task, training = config.task, config.training
    if training.early_stopping_mode is not None:
        raise ConfigError(
            "training.early_stopping_mode: the direction is that of the metric here. Leave it out."
        )
    # the linear head takes no layers, and would refuse settings of them
    head = {"pooling": task.pooling, **config.head}
    if task.head_type != "linear":
        head |= {"hidden": task.hidden_dims, "dropout": task.dropout}
    flat = {
        **_common(config, training.max_epochs or FINETUNE_EPOCHS),
        **_strategy(training, config.optimizer.lr),
        "head": task.head_type,
        "head_config": head,
        "task": task.task_type,
        "class_weight": training.class_weight,
        "label_smoothing": training.label_smoothing,
        "patience": (training.early_stopping_monitor and training.early_stopping_patience) or 0,
        "monitor": training.early_stopping_monitor or "val/loss",
    }
    given = {name: getattr(task, name) for name in ("standardize_labels", "loss", "n_classes")}
    return {**flat, **{name: value for name, value in given.items() if value is not None}}


def _strategy(training: Any, rate: float) -> dict[str, Any]:
    """Return the strategy: the head, the encoder after some epochs, or all, at one rate."""
    if training.freeze_encoder and training.unfreeze_epoch is None:
        return {"strategy": "head_only"}
    return {
        "strategy": "full",
        "strategy_config": {"lr_head": rate, "lr_embedder": rate, "layer_lr_decay": 1.0},
        "unfreeze_epoch": training.unfreeze_epoch or None,
    }


def _common(config: Any, epochs: int) -> dict[str, Any]:
    """Return the settings that pre-training and fine-tuning share."""
    optimizer, training = config.optimizer, config.training
    if training.overfit_batches is not None:
        raise ConfigError("training.overfit_batches is for a Lightning Trainer. Leave it out.")
    backbone: dict[str, Any] = {"config": config.encoder} if config.encoder else {}
    if config.data.standardize is not None:
        backbone["standardize"] = config.data.standardize
    flat: dict[str, Any] = {
        "backbone": "timeseries",
        "backbone_config": backbone,
        "optimizer": optimizer.name,
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "momentum": optimizer.momentum,
        "epochs": epochs,
        "accum": training.accumulate_grad_batches or 1,
        # Lightning's defaults: no clipping, no average of weights
        "grad_clip": training.gradient_clip_val or 0.0,
        "ema": 0.0,
        **_schedule(config.scheduler, epochs),
    }
    if training.batch_size is not None:
        flat["batch_size"] = training.batch_size
    if training.precision is not None:
        flat["precision"] = str(training.precision)
    return flat


def _schedule(section: Mapping[str, Any] | None, epochs: int) -> dict[str, Any]:
    """Return the settings of the schedule, which ends with the run in Molfun's engine."""
    options = dict(section or {"name": "constant"})
    name = options.pop("name")
    flat: dict[str, Any] = {"scheduler": name, "warmup": 0}
    # three names that schedulers of torch and others have for the same number
    length = options.pop("T_max", options.pop("max_epochs", options.pop("total_iters", None)))
    if length is not None and length != epochs:
        say(
            f"WARNING: the scheduler {name} is made for {length} epochs, and the run has {epochs}: "
            f"it ends with the run."
        )
    if "eta_min" in options:
        flat["min_lr"] = options.pop("eta_min")
    if name == "warmup_cosine":
        warmup = options.pop("warmup_epochs", 10)
        flat |= {"scheduler": "cosine", "warmup": None, "warmup_ratio": min(1.0, warmup / epochs)}
    elif name == "plateau":
        flat |= {f"plateau_{key}": value for key, value in options.items()}
    else:
        flat |= options
    return flat

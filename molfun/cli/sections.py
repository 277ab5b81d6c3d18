"""The configuration of the time-series guide, in sections, as settings of a run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun.cli.console import say
from molfun.config import read_yaml
from molfun.errors import ConfigError
from molfun.models.sections import (
    apply_overrides,
    finetune_config,
    load_config,
    pretrain_config,
)

PRETRAIN_EPOCHS, FINETUNE_EPOCHS = 100, 50
"""Those of the guide."""


def read_settings(
    config: str | None, overrides: Sequence[str], *, pretrain: bool
) -> dict[str, Any]:
    """Settings from a file and overrides; a configuration in sections is translated.

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
        return apply_overrides(values, overrides)
    sections = load_config(values if config is None else config, overrides)
    return flat_pretrain(sections) if pretrain else flat_fine_tune(sections)


def _has_sections(values: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether these are the guide's sections; ``task: binary`` is a flat setting, too."""
    names = {*values, *(text.partition("=")[0].partition(".")[0] for text in overrides)}
    nested = isinstance(values.get("task"), dict) or any(o.startswith("task.") for o in overrides)
    return bool(names & {"ssl", "encoder"}) or nested


def allow_plugin(
    name: object, source: str | Path, overrides: Sequence[str], *, trust: bool
) -> None:
    """Refuse a plugin that a file names and the command line does not: it is code, and would run.

    Parameters
    ----------
    name
        Name of the module.
    source
        File that names it.
    overrides
        Settings of the command line; ``plugin=NAME`` among them allows it.
    trust
        Whether the command line has ``--trust``. What the file says of itself does not count.

    Raises
    ------
    ConfigError
        Naming the flag that allows it.
    """
    if trust or any(text.partition("=")[0] == "plugin" for text in overrides):
        return
    raise ConfigError(
        f"{source} names the plugin {name!r}: a Python module, whose code would run. If you know "
        f"what it does, name it on the command line, too: --plugin {name}"
    )


def load_plugin(name: str) -> None:
    """Import a module that registers parts, also from the working directory.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    folder = str(Path.cwd())
    # first for the plugin alone: what is imported later must not be a file that lies here by chance
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a user's module does
        raise ConfigError(
            f"--plugin {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def flat_pretrain(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``molfun pretrain``."""
    config = pretrain_config(sections)
    ssl = dict(config.ssl)
    epochs = config.training.max_epochs or PRETRAIN_EPOCHS
    return {
        **_common(config, epochs),
        "objective": ssl.pop("name"),
        "objective_config": ssl,
    }


def flat_fine_tune(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``molfun fine-tune``."""
    config = finetune_config(sections)
    task, training = config.task, config.training
    if training.early_stopping_mode is not None:
        raise ConfigError(
            "training.early_stopping_mode: the direction is that of the metric here. Leave it out."
        )
    epochs = training.max_epochs or FINETUNE_EPOCHS
    head = {"pooling": task.pooling, **config.head}
    if task.head_type != "linear":
        head |= {"hidden": task.hidden_dims, "dropout": task.dropout}
    rate = config.optimizer.lr
    trains_encoder = not training.freeze_encoder or training.unfreeze_epoch is not None
    # the guide has one rate for all
    one_rate = {"lr_head": rate, "lr_embedder": rate, "layer_lr_decay": 1.0}
    flat = {
        **_common(config, epochs),
        "head": task.head_type,
        "head_config": head,
        "task": task.task_type,
        "strategy": "full" if trains_encoder else "head_only",
        "unfreeze_epoch": training.unfreeze_epoch or None,
        "strategy_config": one_rate if trains_encoder else {},
        "class_weight": training.class_weight,
        "label_smoothing": training.label_smoothing,
        "patience": (training.early_stopping_monitor and training.early_stopping_patience) or 0,
        "monitor": training.early_stopping_monitor or "val/loss",
    }
    if task.standardize_labels is not None:
        flat["standardize_labels"] = task.standardize_labels
    if task.loss is not None:
        flat["loss"] = task.loss
    if task.n_classes is not None:
        flat["n_classes"] = task.n_classes
    return flat


def _common(config: Any, epochs: int) -> dict[str, Any]:
    """What both kinds of run share."""
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
    """Settings of the schedule; the engine's ends where the run does."""
    options = dict(section or {"name": "constant"})
    name = options.pop("name")
    flat: dict[str, Any] = {"scheduler": name, "warmup": 0}
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

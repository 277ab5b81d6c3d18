"""Build the parts of fine-tuning from the configuration: encoder settings, task and head."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.backbones.timeseries.backbone import resolve
from molfun.backbones.timeseries.weights import StoredWeights
from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.models.build import head_sizes
from molfun.models.series_config import FinetuneConfig, TaskSettings, TrainingSettings
from molfun.registry import HEADS, TASKS
from molfun.strict import parameters_of
from molfun.tasks.base import Task
from molfun.text import listing


def encoder_settings(given: Mapping[str, Any], stored: StoredWeights | None) -> dict[str, Any]:
    """Return the settings of the encoder: those in its weight file, completed by `given`.

    Raises
    ------
    ConfigError
        If settings differ from those of the file or are unknown; the text names them.
    """
    if stored is None:
        return dict(given)
    if stored.encoder is None:
        if not given.get("d_input"):
            raise ConfigError(
                f"{stored.path} does not say how its encoder was built. Give its settings in the "
                f"section encoder, d_input among them."
            )
        return dict(given)
    asked = {key: value for key, value in given.items() if value is not None}
    differing = [
        f"{key}: {stored.encoder[key]!r} in the file, {asked[key]!r} here"
        for key in asked
        if stored.encoder.get(key, asked[key]) != asked[key]
    ]
    if differing:
        raise ConfigError(
            f"The section encoder does not match {stored.path}:\n{listing(differing)}\nLeave "
            f"these settings out to take those of the file."
        )
    merged = {**stored.encoder, **asked}
    resolve(merged, None)
    return merged


def standardizes(given: bool | None, stored: StoredWeights | None) -> bool:
    """Return whether values are standardised: as in pre-training, if the encoder had one.

    Raises
    ------
    ConfigError
        If `given` contradicts the file.
    """
    if stored is None:
        return given is not False
    # checkpoints say it by the scale they hold: without one, values were taken as they are
    fitted = bool(stored.tensors.get("inputs_fitted", False))
    if given is not None and given != fitted:
        did = "were standardised" if fitted else "were taken as they are"
        raise ConfigError(
            f"data.standardize is {str(given).lower()}, but values {did} when {stored.path} was "
            f"trained. Leave it out."
        )
    return fitted


def build_task(section: TaskSettings, training: TrainingSettings) -> Task:
    """Build the task that the section ``task`` describes.

    Raises
    ------
    ConfigError
        If the number of classes is missing, or the task does not take a setting.
    """
    cls = TASKS[section.task_type]
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    if "classes" in known:
        arguments["classes"] = _classes(section, known["n_classes"].default)
    if "standardize" in known:
        arguments["standardize"] = bool(section.standardize_labels)
    arguments |= _options(section, training, known)
    task: Task = cls(**arguments)
    if isinstance(training.class_weight, list):
        # given weights are put where "balanced" would have put its own
        state = {"classes": arguments["classes"], "weight": training.class_weight, "fitted": True}
        task.load_state_dict(state)
    return task


def _options(
    section: TaskSettings, training: TrainingSettings, known: Collection[str]
) -> dict[str, Any]:
    """Return the options that were given; refuse one that the task does not take."""
    asked = {
        "class_weight": ("training.class_weight", training.class_weight),
        "label_smoothing": ("training.label_smoothing", training.label_smoothing or None),
        "loss": ("task.loss", section.loss),
        "standardize": ("task.standardize_labels", section.standardize_labels),
        "n_classes": ("task.n_classes", section.n_classes),
    }
    wrong = [shown for k, (shown, v) in asked.items() if v is not None and k not in known]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} does not go with a {section.task_type} task.")
    passed = {key: asked[key][1] for key in ("class_weight", "label_smoothing", "loss")}
    return {key: value for key, value in passed.items() if value is not None}


def _classes(section: TaskSettings, usual: int | None) -> list[str]:
    """Return the names of the classes: their numbers, as labels in a batch are numbers."""
    n = section.n_classes or usual
    if n is None:
        raise ConfigError(
            f"task.n_classes is missing: a {section.task_type} task needs the number of classes."
        )
    return [str(i) for i in range(n)]


def learns_from_labels(settings: FinetuneConfig) -> bool:
    """Return whether the task has to see the training labels before the first step."""
    return bool(settings.training.class_weight == "balanced" or settings.task.standardize_labels)


def build_head(settings: FinetuneConfig, backbone: TimeSeriesBackbone, task: Task) -> Head:
    """Build the head that the section ``task`` describes; encoder and task give its sizes.

    Raises
    ------
    ConfigError
        If the head does not match the task.
    """
    section = settings.task
    cls = HEADS[section.head_type]
    known, takes_all = parameters_of(cls)
    from_task = {
        "hidden": section.hidden_dims,
        "hidden_dims": section.hidden_dims,
        "dropout": section.dropout,
        "pooling": section.pooling,
        "task_name": section.task_name,
        "task_type": section.task_type,
        "n_classes": section.n_classes,
    }
    # Molfun's heads call it `hidden`, a `BaseTaskHead` (whose adapter takes every key)
    # `hidden_dims`
    if takes_all:
        del from_task["hidden"]
    arguments = {k: v for k, v in from_task.items() if takes_all or k in known}
    sizes = head_sizes(section.head_type, backbone, task)
    head: Head = cls(**arguments, **sizes, **settings.head)
    return head

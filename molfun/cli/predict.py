"""Predict and evaluate with a checkpoint, which holds all settings that are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from molfun._io import write_json
from molfun._paths import as_path
from molfun.cli.command_settings import EvaluateSettings, PredictSettings
from molfun.cli.console import Progress, metric_line, say, set_up_logging
from molfun.cli.data import kind_for, loader, say_notes
from molfun.cli.energies import say_units
from molfun.cli.models import open_ensemble, open_model, trained_as
from molfun.cli.nearness import compare, training_of
from molfun.cli.outputs import check_output
from molfun.cli.settings import paths_in
from molfun.cli.tables import write_predictions
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind
from molfun.data.named_targets import NamedTargets
from molfun.errors import ConfigError
from molfun.models.ensemble import Ensemble
from molfun.models.structure import MolfunStructureModel
from molfun.text import counted, three_digits

LABELS = ("target_column", "target_key")
"""Settings that name one label."""


def predict(given: Mapping[str, Any]) -> None:
    """Predict for new samples, and write a table."""
    wanted, about = PredictSettings.take(given)
    kind, dataset = _samples(wanted, about, labels=False)
    near = _compared(wanted, kind, dataset, about)
    model: Any = _ensemble(wanted) or _model(wanted)
    path = as_path(wanted.output)
    bounds = {} if wanted.coverage is None else {"coverage": wanted.coverage}
    result = model.predict(Progress(loader(dataset, wanted.batch_size), "predicting"), **bounds)
    write_predictions(path, result, dataset, about=near)
    beside = kind.write_beside(path, result, dataset)
    say(f"{counted(len(dataset), 'prediction')} written to {wanted.output}")
    if beside is not None:
        say(f"Structures with predicted forces written to {beside}")


def evaluate(given: Mapping[str, Any]) -> None:
    """Compare predictions with labels; print the metrics, and write them as JSON if asked to."""
    wanted, about = EvaluateSettings.take(given)
    kind, dataset = _samples(wanted, about, labels=True)
    _compared(wanted, kind, dataset, about)
    model = _model(wanted)
    batches = Progress(loader(dataset, wanted.batch_size), "evaluating")
    metrics = model.evaluate(batches, bootstrap=wanted.bootstrap)
    plain = {k: v for k, v in metrics.items() if not k.endswith(("_low", "_high"))}
    say(f"{counted(len(dataset), 'sample')}: {metric_line(plain)}")
    for name in plain:
        if f"{name}_low" in metrics:
            low, high = (three_digits(metrics[f"{name}_{end}"]) for end in ("low", "high"))
            say(f"  {name}: {low} to {high} (95 %)")
    if wanted.output is not None:
        # JSON has no NaN: an undefined metric is null
        written = {k: None if math.isnan(v) else v for k, v in metrics.items()}
        write_json(as_path(wanted.output), written)


def _samples(
    wanted: PredictSettings | EvaluateSettings, about: Mapping[str, Any], *, labels: bool
) -> tuple[DataKind, SampleDataset]:
    """Open samples for the model of a checkpoint, before the model itself.

    Parameters
    ----------
    wanted
        Settings of the command.
    about
        Settings of the data kind that differ from those of the training set.
    labels
        Whether every sample must have a label.
    """
    set_up_logging(None, debug=wanted.debug)
    # in this order: cheap checks of paths and data come before a model of gigabytes is read
    backbone, trained = trained_as(wanted.checkpoint)
    given = {"data": wanted.data, **about}
    kind = kind_for(backbone, trained, given)
    if wanted.output is not None:
        paths = {"data", *paths_in(kind.settings)} & given.keys()
        inputs = {f"--{name}": given[name] for name in paths}
        inputs |= {"--weights": wanted.weights, "CHECKPOINT": wanted.checkpoint}
        inputs["--training-data"] = wanted.training_data
        beside = [] if labels else kind.files_beside(as_path(wanted.output))
        check_output(wanted.output, inputs, overwrite=wanted.overwrite, beside=beside)
    dataset = _reopened(kind, trained, given, labels=labels)
    say_notes(kind, dataset, "--debug lists them")
    return kind, dataset


def _compared(
    wanted: PredictSettings | EvaluateSettings,
    kind: DataKind,
    dataset: SampleDataset,
    about: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """Compare samples with the training set that a flag names; nothing without it."""
    if wanted.training_data is None:
        return {}
    _, trained = trained_as(wanted.checkpoint)
    return compare(dataset, training_of(wanted.training_data, kind, trained, about))


def _ensemble(wanted: PredictSettings) -> Ensemble | None:
    """Open the ensemble of a folder; None if it holds a single model."""
    found = open_ensemble(
        wanted.checkpoint, weights=wanted.weights, device=wanted.device, kernels=wanted.kernels
    )
    if found is None and wanted.coverage is not None:
        raise ConfigError(
            f"--coverage needs the errors of a model on rows that it never saw, and "
            f"{wanted.checkpoint} is a single model. Run molfun cv with the settings of its run, "
            f"and predict with the folder ensemble/ of that."
        )
    if found is not None and wanted.target is not None:
        raise ConfigError("--target chooses an energy of a single model: leave it out.")
    if found is not None:
        say_units(found.first)
        say(f"Ensemble of {len(found)} models")
    return found


def _model(wanted: PredictSettings | EvaluateSettings) -> MolfunStructureModel:
    """Open the model of a checkpoint."""
    model = open_model(
        wanted.checkpoint,
        weights=wanted.weights,
        trust=wanted.trust,
        device=wanted.device,
        kernels=wanted.kernels,
    )
    if wanted.target is not None:
        model.use_target(wanted.target)
    say_units(model)
    return model


def _reopened(
    kind: DataKind, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
) -> SampleDataset:
    """Open samples prepared as in training, with the labels of each head if there are several."""
    of_heads = trained.get("heads")
    if not (labels and of_heads):
        return kind.reopen(trained, given, labels=labels)
    columns = [f"--{name.replace('_', '-')}" for name in LABELS if name in given]
    if columns:
        raise ConfigError(
            f"{', '.join(columns)}: the model has the heads {', '.join(of_heads)}, and each is "
            f"compared with the column of its training set. Leave it out."
        )
    return NamedTargets(
        {name: kind.reopen(own, given, labels=labels) for name, own in of_heads.items()}
    )

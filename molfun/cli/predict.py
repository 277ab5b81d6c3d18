"""Predict and evaluate from a checkpoint alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from molfun._io import write_json
from molfun._paths import as_path
from molfun.cli.console import Progress, metric_line, say, three_digits
from molfun.cli.data import kind_for, loader, say_notes
from molfun.cli.models import open_model, say_units, trained_as
from molfun.cli.outputs import check_output
from molfun.cli.tables import write_predictions
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind
from molfun.models.structure import MolfunStructureModel
from molfun.text import counted


def run(
    verb: Literal["predict", "evaluate"],
    checkpoint: str,
    given: Mapping[str, Any],
    *,
    output: str | None,
    overwrite: bool,
    batch_size: int,
    target: str | None,
    bootstrap: int = 0,
    **options: Any,
) -> None:
    """Open the samples and the model of a checkpoint; predict, or compare with labels.

    Parameters
    ----------
    verb
        What to do.
    checkpoint
        Folder, or a ``.ckpt`` of metatrain.
    given
        ``data``, and settings of its kind where they are others than in training.
    output
        File to write; None writes nothing.
    overwrite
        Whether an older file may be replaced.
    batch_size
        Samples per batch.
    target
        Which energy of a model of atoms that has several.
    bootstrap
        Draws for intervals of the metrics.
    **options
        Of `open_model`.
    """
    backbone, trained = trained_as(checkpoint)
    kind = kind_for(backbone, trained, given)
    if output is not None:
        inputs = {
            f"--{name}": given[name]
            for name in given
            if name == "data" or kind.settings.flag(name).path
        }
        inputs |= {"--weights": options.get("weights"), "CHECKPOINT": checkpoint}
        beside = kind.files_beside(as_path(output)) if verb == "predict" else []
        check_output(output, inputs, overwrite=overwrite, beside=beside)
    dataset = kind.reopen(trained, given, labels=verb == "evaluate")
    say_notes(kind, dataset, "--debug lists them")
    model = open_model(checkpoint, **options)
    if target is not None:
        model.use_target(target)
    say_units(model)
    if verb == "predict":
        predict(model, kind, dataset, str(output), batch_size)
    else:
        evaluate(model, dataset, output, batch_size, bootstrap=bootstrap)


def predict(
    model: MolfunStructureModel,
    kind: DataKind,
    dataset: SampleDataset,
    output: str,
    batch_size: int,
) -> None:
    """Write a prediction for every row."""
    path = as_path(output)
    result = model.predict(Progress(loader(dataset, batch_size), "predicting"))
    write_predictions(path, result, dataset)
    beside = kind.write_beside(path, result, dataset)
    say(f"{counted(len(dataset), 'prediction')} written to {output}")
    if beside is not None:
        say(f"Structures with predicted forces written to {beside}")


def evaluate(
    model: MolfunStructureModel,
    dataset: SampleDataset,
    output: str | None,
    batch_size: int,
    *,
    bootstrap: int = 0,
) -> None:
    """Print the metrics, and write them as JSON if asked to."""
    batches = Progress(loader(dataset, batch_size), "evaluating")
    metrics = model.evaluate(batches, bootstrap=bootstrap)
    plain = {k: v for k, v in metrics.items() if not k.endswith(("_low", "_high"))}
    say(f"{counted(len(dataset), 'sample')}: {metric_line(plain)}")
    for name in plain:
        if f"{name}_low" in metrics:
            low, high = (three_digits(metrics[f"{name}_{end}"]) for end in ("low", "high"))
            say(f"  {name}: {low} to {high} (95 %)")
    if output is not None:
        write_json(as_path(output), {k: None if math.isnan(v) else v for k, v in metrics.items()})

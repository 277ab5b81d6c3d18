"""Predict and evaluate from a checkpoint alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from molfun._io import write_json
from molfun._paths import as_path
from molfun.cli.console import Progress, metric_line, say, three_digits
from molfun.cli.data import Dataset, loader
from molfun.cli.models import say_units
from molfun.cli.outputs import Inputs
from molfun.cli.outputs import check_output as check_file
from molfun.cli.tables import structures_path, write_predictions, write_structures
from molfun.models.structure import MolfunStructureModel
from molfun.text import counted


def check_output(
    verb: str,
    output: str | None,
    inputs: Inputs,
    training_data: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Refuse an output that must not be written, before anything is computed.

    Parameters
    ----------
    verb
        ``"predict"`` or ``"evaluate"``.
    output
        File to write; None where nothing is written.
    inputs
        What the command reads.
    training_data
        How the training set of the checkpoint prepared its inputs.
    overwrite
        Whether an older file may be replaced.
    """
    if output is None:
        return
    on_atoms = verb == "predict" and training_data.get("kind") == "atoms"
    beside = [structures_path(as_path(output))] if on_atoms else []
    check_file(output, inputs, overwrite=overwrite, beside=beside)


def predict(model: MolfunStructureModel, dataset: Dataset, output: str, batch_size: int) -> None:
    """Write a prediction for every row."""
    say_units(model)
    path = as_path(output)
    result = model.predict(Progress(loader(dataset, batch_size), "predicting"))
    write_predictions(path, result, dataset)
    beside = write_structures(path, result, dataset)
    say(f"{counted(len(dataset), 'prediction')} written to {output}")
    if beside is not None:
        say(f"Structures with predicted forces written to {beside}")


def evaluate(
    model: MolfunStructureModel,
    dataset: Dataset,
    output: str | None,
    batch_size: int,
    *,
    bootstrap: int = 0,
) -> None:
    """Print the metrics, and write them as JSON if asked to."""
    say_units(model)
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

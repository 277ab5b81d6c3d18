"""Predict: one batch together with its representations, or any number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from molfun._paths import as_path
from molfun.errors import ConfigError
from molfun.models import evaluation, folding, trained_on
from molfun.models.assembly import AssembledModel, autocast
from molfun.models.loaders import is_many
from molfun.models.training_record import Distances
from molfun.nn.modes import evaluating
from molfun.nn.process import settled
from molfun.training.forward import ForwardPass
from molfun.training.supervised import Evaluation, HeadResult
from molfun.training.task_head import TaskHead, chains_read, joined_needs


class Prediction(dict[str, Any]):
    """Dict that `MolfunStructureModel.predict` returns.

    Keys: ``ids`` (list), ``prediction`` ((n,) float64 tensor on the CPU, in the units of the
    labels, in input order) and, for a single batch, ``trunk`` (the `TrunkOutput`). With several
    heads, the predictions of each are a dict under its name.

    Attributes
    ----------
    distances
        (samples,) distance of each sample to the training set in the mean representation, see
        `molfun.evaluation.space.Space`; None where heads read none, or the model keeps no vectors.
    """

    distances: np.ndarray | None = None

    def put(self, part: TaskHead, predictions: Sequence[np.ndarray]) -> None:
        """Add the predictions of a head, one array per sample."""
        found = part.task.present(predictions)
        self.update({part.name: found} if part.name else found)


def predict(
    model: AssembledModel,
    data: Any,
    outputs: Sequence[str] | None,
    structures: str | Path | None = None,
) -> Prediction:
    """Predict; see `MolfunStructureModel.predict`."""
    evaluation.warn_unready(model)
    if structures is not None:
        return _presented(model, folding.predicted(model, data, as_path(structures)))
    if not is_many(data):
        return _of_batch(model, data, ("single",) if outputs is None else outputs)
    if outputs is not None:
        raise ConfigError(
            "outputs is for one batch, and this is a loader, a data set or a list of structures. "
            "Give a list of Sample, or use embed, which takes as many as you like."
        )
    return _presented(model, evaluation.predicted(model, data))


class Scored(NamedTuple):
    """Predictions for a user, their metrics, and what both come from."""

    prediction: Prediction
    metrics: dict[str, float]
    heads: Sequence[TaskHead]
    results: Mapping[str, HeadResult]


@settled()
def scored(model: AssembledModel, data: Any) -> Scored:
    """Predict and measure in one pass; see `MolfunStructureModel.predict_and_score`."""
    model.need_heads("predict_and_score")
    runner, result = evaluation.measured(model, data)
    prediction = _presented(model, result)
    return Scored(prediction, runner.metrics(result), runner.heads, result.heads)


def _presented(model: AssembledModel, result: Evaluation) -> Prediction:
    prediction = Prediction(ids=result.ids)
    prediction.distances = result.distances
    for part in model.heads:
        prediction.put(part, result.heads[part.name].predictions)
    return prediction


@torch.no_grad()
def _of_batch(model: AssembledModel, data: Any, outputs: Sequence[str]) -> Prediction:
    watch = trained_on.Watch([data], model.training_inputs)
    (inputs,) = watch
    watch.warn()
    # a dict and not a set: it keeps the order
    needs = dict.fromkeys((*outputs, *joined_needs(model.heads)))
    prediction = Prediction(ids=inputs.ids)
    reader = "predict"
    if model.heads:
        reader += " with the head " + ", ".join(type(part.head).__name__ for part in model.heads)
    forward = ForwardPass(
        model.backbone,
        tuple(needs),
        device=model.device,
        reader=reader,
        by_chain=chains_read(model.heads),
    )
    with evaluating(model), autocast(model):
        trunk = forward.together(inputs)
        lengths = [int(n) for n in trunk.mask.sum(1).tolist()]
        if trunk.chains is not None:  # rows are chains, and labels those of samples
            lengths = [0] * len(inputs.ids)
        for part in model.heads:
            scores = part.task.predictions(part.outputs(trunk, inputs.samples))
            prediction.put(part, part.task.split(scores, lengths))
    record = model.training_record
    if record is not None and record.space is not None:
        distances = Distances(record.space)
        distances(inputs, trunk)
        prediction.distances = distances.found()
    # without what only the heads needed
    prediction["trunk"] = trunk.select(outputs)
    return prediction

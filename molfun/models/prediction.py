"""Predictions of a model: for one batch with its representations, or for any number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from molfun.errors import ConfigError
from molfun.models import arithmetic, evaluation, trained_on
from molfun.models.assembly import AssembledModel
from molfun.models.loaders import is_many
from molfun.nn.modes import evaluating
from molfun.training.forward import ForwardPass


class Prediction(dict[str, Any]):
    """What `MolfunStructureModel.predict` gives; a dict.

    Keys: ``ids`` (list), ``prediction`` ((n,) float64 tensor on the CPU, in the units of the
    labels, in input order) and, for a single batch, ``trunk`` (the `TrunkOutput`).
    """


def predict(model: AssembledModel, data: Any, outputs: Sequence[str] | None) -> Prediction:
    """Predict; see `MolfunStructureModel.predict`."""
    evaluation.warn_unready(model)
    if not is_many(data):
        return _of_batch(model, data, ("single",) if outputs is None else outputs)
    if outputs is not None:
        raise ConfigError(
            "outputs is for one batch, and this is a loader, a data set or a list of structures. "
            "Give a list of Sample, or use embed, which takes as many as you like."
        )
    result = evaluation.predicted(model, data)
    _, task = model.need_head("predict")
    return Prediction(ids=result.ids, **task.present(result.predictions))


def predict_and_score(model: AssembledModel, data: Any) -> tuple[Prediction, dict[str, float]]:
    """Predict and measure in one pass; see `MolfunStructureModel.predict_and_score`."""
    _, task = model.need_head("predict_and_score")
    runner, result = evaluation.measured(model, data)
    prediction = Prediction(ids=result.ids, **task.present(result.predictions))
    return prediction, runner.metrics(result)


@torch.no_grad()
def _of_batch(model: AssembledModel, data: Any, outputs: Sequence[str]) -> Prediction:
    watch = trained_on.Watch([data], model.training_inputs)
    (inputs,) = watch
    watch.warn()
    head, task = model.head, model.task
    needs = dict.fromkeys((*outputs, *(head.needs if head is not None else ())))
    prediction = Prediction(ids=inputs.ids)
    reader = "predict"
    if head is not None:
        reader += f" with the head {type(head).__name__}"
    forward = ForwardPass(model.backbone, tuple(needs), device=model.device, reader=reader)
    with evaluating(model), arithmetic.autocast(model):
        trunk = forward.whole(inputs)
        if head is not None and task is not None:
            lengths = [int(n) for n in trunk.mask.sum(1).tolist()]
            scores = task.predictions(head(trunk))
            prediction.update(task.present(task.split(scores, lengths)))
    prediction["trunk"] = trunk.select(outputs)
    return prediction

"""Run a trained model over data sets: inputs are prepared as in training, labels are measured."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from molfun.backbones.own_heads import OwnHeads
from molfun.errors import ConfigError, DataError
from molfun.evaluation.bootstrap import metric_estimates
from molfun.evaluation.results import HeadVerdict
from molfun.models import judging, trained_on
from molfun.models.assembly import AssembledModel, autocast
from molfun.models.caching import caches_of
from molfun.models.features import with_features
from molfun.models.given import Bounded
from molfun.models.loaders import (
    all_samples,
    as_loader,
    check_labels,
    column_of,
    input_settings_of,
    refuse_nothing,
    samples_of,
    share_of,
    targets_of,
)
from molfun.models.training_record import Distances
from molfun.sample import Sample
from molfun.tasks.base import Task
from molfun.training.ahead import loaded_ahead
from molfun.training.cache import CacheConfig
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs
from molfun.training.supervised import Evaluation, HeadResult, SupervisedRunner
from molfun.training.task_head import TaskHead
from molfun.trunk import TrunkOutput

logger = logging.getLogger(__name__)

Reader = Callable[[Inputs, TrunkOutput], None]
"""Reader of what the backbone gives for a batch."""


def runner_of(
    model: AssembledModel,
    verb: str = "this",
    heads: Sequence[TaskHead] = (),
    cache: CacheConfig | None = None,
    also: Sequence[str] = (),
) -> SupervisedRunner:
    """Return the runner of a model, with its own heads or with `heads`; `verb` is for errors.

    With `cache`, entries that training left there are read, and new ones are kept. With `also`, the
    backbone gives these outputs as well.
    """
    found = heads or model.need_heads(verb)
    cast = functools.partial(autocast, model)
    caches = caches_of(model, found, cache or CacheConfig(mode="off"))
    return SupervisedRunner(
        model.backbone, found, device=model.device, autocast=cast,
        make_cache=caches.outputs, features=caches.features(), also=also,
    )  # fmt: skip


@contextlib.contextmanager
def serving(
    model: AssembledModel, heads: Sequence[TaskHead], cache: CacheConfig | None = None
) -> Iterator[SupervisedRunner]:
    """Set the backbone to other heads or tasks than the model's own, for a ``with`` block."""
    model.backbone.serve(heads)
    try:
        yield runner_of(model, heads=heads, cache=cache)
    finally:
        model.backbone.serve(model.heads)


def predicted(model: AssembledModel, data: Any, reader: Reader | None = None) -> Evaluation:
    """Return the predictions for a loader or data set; labels are ignored.

    A `reader` of predicted structures is given those of each batch, from the same forward pass.
    """
    watch = trained_on.Watch(prepared(model, data), model.training_inputs)
    runner = runner_of(model, also=() if reader is None else ("structure",))
    if reader is not None:
        runner.readers.append(reader)
    result = gathered(data, _evaluated(model, runner, watch, labels=False))
    watch.warn()
    return result


def _evaluated(
    model: AssembledModel, runner: SupervisedRunner, batches: Any, *, labels: bool = True
) -> Evaluation:
    """Run over batches, and note how far each sample is from the training set if that is known."""
    record = model.training_record
    if record is None or record.space is None:
        return runner.evaluate(batches, labels=labels)
    distances = Distances(record.space)
    runner.readers.append(distances)
    result = runner.evaluate(batches, labels=labels)
    result.distances = distances.found()
    return result


def measured(
    model: AssembledModel,
    data: Any,
    cache: CacheConfig | None = None,
    *,
    passed: list[Sample] | None = None,
) -> tuple[SupervisedRunner, Evaluation]:
    """Return predictions and loss for a loader or data set, and the runner that has the metrics.

    Heads predict everything that the data has labels of, such as forces next to energies.

    Parameters
    ----------
    model
        The model.
    data
        Any data with labels.
    cache
        As in `runner_of`.
    passed
        List to which the samples are added in the order of the results.
    """
    model.need_heads("this")
    loader = prepared(model, data)
    watch = trained_on.Watch(loader, model.training_inputs, labels=True, passed=passed)
    with serving(model, measuring(model, loader), cache) as runner:
        result = gathered(data, _evaluated(model, runner, watch))
    watch.warn()
    return runner, result


def gathered(data: Any, result: Evaluation) -> Evaluation:
    """Return the evaluation of all processes, if data is dealt to several; else as it is."""
    share = share_of(data)
    return result if share is None else result.gathered(share)


def measuring(model: AssembledModel, loader: Any) -> tuple[TaskHead, ...]:
    """Return the heads of a model with tasks that measure all labels of the data."""
    known = column_of(getattr(loader, "dataset", None), "targets") is not None
    # labels of a loader over an unknown data set could only be read by running through it
    if not (isinstance(loader, list) or known):
        return model.heads
    return tuple(_measured(part, loader) for part in model.heads)


def _measured(part: TaskHead, loader: Any) -> TaskHead:
    """Return a head whose task measures all labels of the data."""
    targets = targets_of(loader)
    check_labels(part, loader, targets)
    return replace(part, task=part.task.for_labels(part.labels(targets), part.head.config_dict))


class Scores(dict[str, float]):
    """Metrics by name, as `MolfunStructureModel.evaluate` returns them.

    With baselines also ``baseline/one_hot/rmse`` and so on, by `molfun.registry.BASELINES`.

    Attributes
    ----------
    verdict
        Comparison with baselines in one sentence per head; empty without baselines.
    verdicts
        The results behind it by the name of the head (``""`` for a single one): intervals, and
        metrics by the columns of `molfun.models.judging.COLUMNS`.
    distances
        As of `molfun.models.prediction.Prediction`.
    """

    verdict: str = ""
    verdicts: Mapping[str, HeadVerdict] = MappingProxyType({})
    distances: np.ndarray | None = None


def evaluate(
    model: AssembledModel, data: Any, *, bootstrap: int, confidence: float, baselines: Any
) -> Scores:
    """Measure loss and metrics; see `MolfunStructureModel.evaluate`."""
    model.need_heads("evaluate")
    train = training_set([model], baselines)
    warn_unready(model)
    samples: list[Sample] = []
    runner, result = measured(model, data, passed=None if train is None else samples)
    found = scores_of(runner, result, bootstrap=bootstrap, confidence=confidence)
    if train is not None:
        results = judging.Measured(samples, runner.heads, result.heads)
        compare(found, [model], train, results)
    return found


def scores_of(
    runner: SupervisedRunner, result: Evaluation, *, bootstrap: int, confidence: float
) -> Scores:
    """Return loss and metrics of an evaluation, and their intervals.

    Raises
    ------
    DataError
        If the data has no labels.
    """
    if result.n_labels == 0:
        raise DataError(
            "Nothing to evaluate: the data has no labels. Use predict, or fill the target column."
        )
    for part in runner.heads:
        if not result.heads[part.name].loss_count:
            logger.warning("%s: no sample has a label, so it is not measured.", part.name)
    found = Scores({"loss": result.loss, **runner.metrics(result)})
    found.distances = result.distances
    if bootstrap:
        for part in runner.heads:
            own = result.heads[part.name]
            bounds = intervals(
                part.task, own.predictions, own.targets, n=bootstrap, confidence=confidence
            )
            found |= {part.key(name): value for name, value in bounds.items()}
    return found


def mean_of(results: Sequence[Evaluation], parts: Sequence[TaskHead]) -> Evaluation:
    """Return the mean prediction with the labels, and the mean loss; `parts` are the heads."""
    heads = {}
    tasks = {part.name: part.task for part in parts}
    for name, first in results[0].heads.items():
        every = [result.heads[name] for result in results]
        rows = zip(*(one.predictions for one in every), strict=True)
        mean = [tasks[name].combined(row) for row in rows]
        heads[name] = replace(HeadResult.joined(every), predictions=mean, targets=first.targets)
    return Evaluation(results[0].ids, heads)


def training_set(models: Sequence[AssembledModel], baselines: Any) -> list[Sample] | None:
    """Return the samples that baselines learn from; None if none are asked for.

    Raises
    ------
    ConfigError
        If those of the models are asked for, and one was not trained in this process.
    """
    if baselines is False or baselines is None:
        return None
    if baselines is not True:
        return all_samples(baselines)
    given = [model.training_set.data for model in models]
    if any(data is None for data in given):
        raise ConfigError(
            "baselines=True compares with simple models of the training set, and this model was "
            "not trained in this process. Pass the training set: baselines=DATASET."
        )
    return all_samples(given[0]) if len(given) == 1 else _distinct(given)


def _distinct(given: Sequence[Any]) -> list[Sample]:
    """Return the samples of several training sets, those that they share once."""
    every = (sample for data in given for sample in all_samples(data))
    return list({(s.id, trained_on.input_digest(s), str(s.target)): s for s in every}.values())


def compare(
    found: Scores,
    models: Sequence[AssembledModel],
    train: list[Sample],
    measured: judging.Measured,
) -> None:
    """Add metrics of baselines and the verdict on a model, or on the mean of several."""
    targets = [sample.target for sample in train]
    samples: list[Sample] = list(measured.samples)  # type: ignore[call-overload]
    trained, flaws = _seen_before(samples, models)
    verdicts = judging.judged(
        models[0],
        train,
        targets,
        # "test": data of an evaluation chose no epoch, as far as is known
        {"test": judging.as_samples_say(measured, samples)},
        rows="row" if flaws else "",
        compared=not trained,
    )
    several = len(models[0].heads) > 1
    for name, head in verdicts.items():
        start = f"{name}/" if several else ""
        for baseline, result in head.parts["test"].baselines.items():
            found |= {
                f"{start}baseline/{baseline}/{metric}": estimate.value
                for metric, estimate in result.metrics.items()
            }
    lines = [f"{name}: {v.verdict}" if several else v.verdict for name, v in verdicts.items()]
    found.verdict = "\n".join([*lines, *flaws])
    found.verdicts = verdicts


def _seen_before(
    samples: Sequence[Sample], models: Sequence[AssembledModel]
) -> tuple[bool, list[str]]:
    """Return whether any sample trained the models, and how many trained or chose the epoch."""
    digests = [trained_on.input_digest(sample) for sample in samples]
    trained = np.isin(digests, np.concatenate([model.training_inputs for model in models]))
    lines = []
    if trained.any():
        n = f"{trained.sum()} of {len(samples)}"
        lines.append(
            f"{n} rows trained the model, so this is no test of new ones and no baseline is fitted."
        )
    held = [model.training_set.validation for model in models]
    others = samples_of([part for part in held if part is not None])
    chose = np.isin(digests, [trained_on.input_digest(s) for s in others]) & ~trained
    if chose.any():
        lines.append(f"{chose.sum()} of {len(samples)} rows also chose the epoch.")
    return bool(trained.any()), lines


def intervals(
    task: Task,
    predictions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    n: int,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Return the bounds of each metric, named ``rmse_low``, ``rmse_high`` and so on.

    See `molfun.evaluation.bootstrap.metric_estimates` for the parameters.
    """
    found = metric_estimates(
        task, predictions, targets, draws=n, confidence=confidence, corrected=False, seed=seed
    )
    return {
        f"{name}_{end}": getattr(estimate, end)
        for name, estimate in found.items()
        for end in ("low", "high")
    }


def warn_unready(model: AssembledModel) -> None:
    """Warn if predictions mean nothing yet, with the reason."""
    if not all(getattr(part.task, "fitted", True) for part in model.heads):
        logger.warning("The head has not been trained: its predictions mean nothing yet.")
    backbone = model.backbone
    unready = backbone.unready() if isinstance(backbone, OwnHeads) else None
    if unready is not None:
        logger.warning("%s", unready)


def prepared(model: AssembledModel, data: Any) -> Any:
    """Return a loader with the inputs of training, and warn of representations from elsewhere."""
    loader = as_loader(data)
    # of more processes than samples, some get none
    refuse_nothing(loader if share_of(loader) is None else loader.dataset)
    trained = model.data_settings
    loader = with_features(loader, trained.get("feature_columns"), of="the model")
    # for other backbones a check opens every file, which is left to the loader as it goes
    if model.backbone.checks_quickly:
        model.check(loader)
    known, given = trained.get("representations"), input_settings_of(loader).get("representations")
    # the head was trained on an embedding file, and the data brings none: this backbone embeds it
    if given is None and known is not None:
        given = model.backbone.state_fingerprint()
    if given != known:
        logger.warning(
            "The head was trained on %s, but predicts from %s: the numbers may mean nothing.",
            _representations_of(known),
            _representations_of(given),
        )
    if isinstance(loader, list):
        return loader
    ahead = ForwardPass(model.backbone, (), device=model.device).ahead
    return Bounded(loaded_ahead(loader, ahead))


def _representations_of(model: str | None) -> str:
    if model is None:
        return "what this backbone gives"
    if model == "unknown":
        return "representations given as arrays"
    return f"representations of the model {model[:12]}"

"""Fine-tune a model: learn label statistics, build the runner, train, keep the best weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from molfun.errors import DataError
from molfun.fingerprint import digest, tensor_digests
from molfun.models import memory, persistence, trained_on, zero_shot
from molfun.models.arguments import as_strategy
from molfun.models.assembly import AssembledModel, arithmetic_of, use_precision
from molfun.models.caching import caches_of
from molfun.models.loaders import (
    check_labels,
    check_sizes,
    data_identity,
    fit_inputs,
    input_settings_of,
    sample_weights,
    samples_of,
    targets_of,
    values_of,
)
from molfun.models.training_record import record_of, space_of
from molfun.nn.modes import set_modes
from molfun.runs.checkpoint import put_record
from molfun.runs.folder import RunFolder
from molfun.sample import is_missing
from molfun.strategies.base import FinetuneStrategy
from molfun.text import counted
from molfun.training.cache import CacheConfig
from molfun.training.groups import let_train
from molfun.training.history import History, Row
from molfun.training.job import Job
from molfun.training.supervised import SupervisedRunner
from molfun.training.task_head import check_names, has_label
from molfun.training.weights import SampleWeights

logger = logging.getLogger(__name__)


def run(
    model: AssembledModel, job: Job, strategy: FinetuneStrategy | str, cache: CacheConfig
) -> History:
    """Fine-tune `model` on the data of `job`; see `MolfunStructureModel.fit`."""
    rows = _training_rows(model, job)
    # read once: labels may come from files, and are needed for scale, weights and identity
    targets = targets_of(job.train)
    # a bad label stops the run here, before the strategy changes the model
    _learn_from_data(model, job, targets)
    # before the strategy: adapters and weights that train would no longer be the base model's
    zero_shot.learn(model, job.train, job.val)
    n_labels = sum(has_label(model.heads, target) for target in targets)
    job.set_up(model, as_strategy(strategy, n_labels, len(model.backbone.blocks())))
    weights = sample_weights(job.train, model.heads, targets)
    identity = _identity(model, job, targets, cache, weights)
    use_precision(model, job.chosen_precision)
    runner = _runner(model, job, cache, targets, weights)
    model.data_settings = input_settings_of(job.train)

    def note_training() -> None:
        # noted at the start: a fit that is interrupted has changed the weights as well
        model.n_fits += 1
        # a union, since a second fit adds to what the model has seen
        model.training_inputs = np.union1d(model.training_inputs, rows.inputs)
        model.training_record = record_of(rows, job.val, before=model.training_record)
        model.training_set = trained_on.TrainingSet(
            *(getattr(part, "dataset", part) for part in (job.train, job.val))
        )

    def keep(row: Row | None, folder: RunFolder | None) -> None:
        if row is not None:
            model.result = dict(row)
        if folder is not None:
            persistence.save(model, folder.checkpoint)

    try:
        history = job.run(runner, keep, identity=identity, on_start=note_training)
    finally:
        # also after an error or Ctrl-C, since a notebook goes on with the model
        model.eval()
        memory.forget(model.backbone)
    history.cache_report = "\n".join(runner.forward.cache_reports())
    _add_vectors(model, job, runner, history)
    if history.cache_report or runner.forward.cache is not None:
        logger.info("%s", history.cache_report or "Frozen-prefix cache: no entry was used.")
    return history


def _add_vectors(
    model: AssembledModel, job: Job, runner: SupervisedRunner, history: History
) -> None:
    """Add the mean representations of training rows to the record, in the checkpoint as well."""
    if not job.ranks.is_first:
        return
    space = space_of(runner, job.train, job.val, epochs=len(history))
    if space is None or model.training_record is None:
        return
    model.training_record = replace(model.training_record, space=space)
    # a trunk that trains and is left at its last weights is not that of the checkpoint
    if job.folder is not None and (job.restore_best or runner.forward.frozen.whole):
        with job.folder.held():
            put_record(job.folder.checkpoint, model.training_record.to_tensors())


def _training_rows(model: AssembledModel, job: Job) -> trained_on.TrainingRows:
    """Return the rows of the training set, with warnings of what looks wrong in it."""
    if model.n_fits and not job.resume:
        logger.warning(
            "This model was trained by %s already and continues from its weights. To start "
            "from new ones, as each fold of a cross-validation must, build a new "
            "MolfunStructureModel.", counted(model.n_fits, "fit"),
        )  # fmt: skip
    rows = trained_on.TrainingRows(job.train)
    rows.warn()
    if job.val is not None:
        trained_on.warn_of_overlap(job.val, rows.inputs)
    return rows


def _learn_from_data(model: AssembledModel, job: Job, targets: list[Any]) -> None:
    """Estimate statistics of labels and inputs; report unusable and missing labels."""
    heads = model.need_heads("fit")
    check_names(heads, targets)
    for part in heads:
        task, own = part.task, part.labels(targets)
        if part.name and all(map(is_missing, own)):
            raise DataError(
                f"{part.name}: no training sample has a label. Fill its column, or leave the head "
                f"out."
            )
        check_sizes(part, job.train, job.val)
        # labels that can be read without the statistics are checked first, so that a bad one is
        # named by its sample and not by a failing `fit_targets`
        if task.numbers_unfitted:
            check_labels(part, job.train, targets)
        gaps = task.gaps(own)
        if gaps is not None:
            logger.warning("%s%s", f"{part.name}: " if part.name else "", gaps)
        task.fit_targets(own)
    model.backbone.serve(model.heads)
    for part in heads:
        check_labels(part, job.val)
    fit_inputs(model.backbone, heads, job.train)


def _identity(
    model: AssembledModel,
    job: Job,
    targets: list[Any],
    cache: CacheConfig,
    weights: SampleWeights | None,
) -> dict[str, Any]:
    """Return everything a resumed run must share with its first part, as plain values.

    Call it before `use_precision`, which may convert frozen weights.
    """
    parts: dict[str, Any] = {}
    for part in model.need_heads("fit"):
        parts[part.key("head")] = dict(part.head.config_dict)
        parts[part.key("task")] = {**part.task.config_dict, **part.task.state_dict()}
        if part.name:
            parts[part.key("weight")] = part.weight
    if weights is not None:
        parts["weights"] = {
            name: digest(map(str, values_of(job.train, column)))
            for name, column in weights.columns.items()
        }
    # weights that are frozen now may have been trained by an earlier fit, so the fingerprint of the
    # base does not cover them
    frozen = {n: p for n, p in model.backbone.named_parameters() if not p.requires_grad}
    return {
        "kernels": arithmetic_of(model),
        "cache precision": cache.precision,
        "base weights": model.base_fingerprint,
        "frozen weights": digest(tensor_digests(frozen).values()),
        **parts,
        **data_identity(job.train, targets, job.val),
    }


def _runner(
    model: AssembledModel,
    job: Job,
    cache: CacheConfig,
    targets: list[Any],
    weights: SampleWeights | None,
) -> SupervisedRunner:
    """Return the runner of the training run, with its caches and its memory plan."""
    heads, backbone = model.need_heads("fit"), model.backbone
    if len(heads) > 1:
        # known before the first step, so that gradients do not depend on how samples are batched
        # and 300 residue labels of a sample weigh as much as one label of the sequence
        heads = tuple(part.weighed(part.labels(targets)) for part in heads)
    in_step = job.spreading.in_step
    if in_step:  # entries would be there in one process, and computed by all in another
        cache = replace(cache, mode="off")
    caches = caches_of(model, heads, cache)
    if any(p.requires_grad for p in backbone.parameters()):
        n_trained = sum(p.numel() for p in job.parameters.values())
        reserved = caches.reserved_bytes()
        # only now is it known which weights train and what the cache will take
        memory.plan(backbone, job.train, model.device, trained=n_trained, reserved=reserved)
    # gradual unfreezing: only groups of epoch 0 may take gradients when the runner looks what is
    # frozen
    let_train(job.optimizer, epoch=0)
    runner = SupervisedRunner(
        backbone,
        heads,
        device=model.device,
        autocast=job.fabric.autocast,
        make_cache=caches.outputs,
        features=caches.features(),
        in_step=in_step,
        weights=weights,
    )
    if runner.forward.frozen.whole:
        # head inputs never change when the whole backbone is frozen, so their scale can be learned
        # once; raw ESM-2 means share nearly all of their variance (GB1: Spearman 0.5 without, 0.8
        # with standardised channels)
        set_modes(backbone, training=False)
        for part in heads:
            part.head.fit_inputs(runner.representations(samples_of([job.train])))
    return runner

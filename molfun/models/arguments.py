"""Check the arguments of `fit` and `pretrain` before anything is computed or written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any, get_args

from molfun.config import check_seed
from molfun.errors import ConfigError, DataError
from molfun.models import base_weights
from molfun.models.assembly import AssembledModel
from molfun.models.build import shown
from molfun.models.features import feature_names_of, with_features
from molfun.models.loaders import as_loader
from molfun.nn.process import refuse_inference_tensors
from molfun.parallel import launch
from molfun.parallel.started import Devices, Way
from molfun.registry import STRATEGIES
from molfun.runs.folder import RUN_FILES, RunFolder
from molfun.strategies.auto import choose_strategy
from molfun.strategies.base import FinetuneStrategy
from molfun.strict import check_choice
from molfun.training.callbacks import Callback
from molfun.training.job import Job
from molfun.training.loggers.base import Logger
from molfun.training.loggers.given import as_loggers

logger = logging.getLogger(__name__)


def open_job(
    model: AssembledModel,
    train: Any,
    val: Any,
    strategy: FinetuneStrategy | str,
    *,
    output_dir: str | Path | RunFolder | None,
    resume: bool,
    overwrite: bool,
    by_name: bool = True,
    devices: Devices,
    num_nodes: int,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger | str] | str,
    **options: Any,
) -> Job:
    """Check all arguments of a run and return its `Job`, which has written nothing yet.

    Parameters
    ----------
    model
        Model to train.
    train, val, strategy, output_dir, resume, overwrite, callbacks, loggers, devices, num_nodes
        As in `MolfunStructureModel.fit`.
    by_name
        Whether a strategy may be given by its name.
    options
        Further settings of the `Job`.

    Raises
    ------
    ConfigError, DataError
        If an argument or a sample cannot be used.
    MissingDependencyError
        If the package of a logger is not installed.
    RunError
        If the run may not begin or go on in its folder.
    """
    # what costs nothing is checked first, the samples last: they may take minutes to read
    refuse_inference_tensors(model)
    launch.check(devices, num_nodes)
    check_choice("parallel", options["parallel"], get_args(Way))
    train = as_loader(train, shuffle=True)
    val = None if val is None else as_loader(val)
    callbacks = check_arguments(train, options["seed"], callbacks, strategy, by_name=by_name)
    trackers = as_loggers(loggers)
    folder = RunFolder.of(output_dir, resume=resume)
    if folder is None and trackers:
        raise ConfigError("loggers need output_dir, the folder that keeps the ids of their runs.")
    # before the samples are read: a folder in use or full of results ends the run at once
    if folder is not None:
        # a model whose base weights lie in this folder would lose them to its own run, and a
        # checkpoint that refers to them could never be loaded again
        written = [folder.path / name for name in RUN_FILES]
        base_weights.refuse_own(model.weights, written)
        folder.check(overwrite=overwrite)
    job = Job(
        device=model.device,
        train=train,
        val=val,
        folder=folder,
        callbacks=callbacks,
        loggers=trackers,
        **options,
    )
    job.train, job.val = _same_features(model, train, val)
    model.check(job.train, job.val)
    return job


def _same_features(model: AssembledModel, train: Any, val: Any) -> tuple[Any, Any]:
    """Return both sets with the features of series that the backbone was pre-trained on."""
    train = with_features(train, model.backbone.feature_names, of="the backbone")
    # by name and not by position: fine-tuning data may have other columns, in another order
    names = feature_names_of(train)
    if names is not None:
        model.backbone.feature_names = names
        logger.info("Features (%d): %s", len(names), ", ".join(names))
    return train, None if val is None else with_features(val, names, of="the training set")


def check_arguments(
    train: Any, seed: int, callbacks: Any, strategy: Any, *, by_name: bool = True
) -> list[Callback]:
    """Return the callbacks as a list; raise ConfigError or DataError for an unusable argument.

    `strategy` may be an object or a registered name; with ``by_name=False`` only an object.
    """
    # the schedule needs the number of steps before the first one
    if not isinstance(train, Sized) or len(train) == 0:
        raise DataError(
            "The training set has no length or no batch. Pass a DataLoader over a data set that is "
            "not empty, or a list of batches."
        )
    check_seed(seed)
    _check_strategy(strategy, by_name=by_name)
    wrong = callbacks
    if isinstance(callbacks, Iterable):
        found = list(callbacks)
        others = [one for one in found if not isinstance(one, Callback)]
        if not others:
            return found
        wrong = others[0]
    # name what was found: one callback without a list, or a list item that is no callback
    raise ConfigError(
        f"callbacks must be a list of molfun.training.Callback objects, got {shown(wrong)}."
    )


def _check_strategy(strategy: Any, *, by_name: bool) -> None:
    if isinstance(strategy, type):
        raise ConfigError(
            f"strategy is the class {strategy.__name__}; pass an object: {strategy.__name__}()."
        )
    if not isinstance(strategy, FinetuneStrategy | (str if by_name else None)):
        names = f" or one of {', '.join([*STRATEGIES, 'auto'])}" if by_name else ""
        raise ConfigError(
            f"strategy must be an object such as FullFinetune(){names}, got {shown(strategy)}."
        )


def as_strategy(
    strategy: FinetuneStrategy | str, n_samples: int, n_blocks: int
) -> FinetuneStrategy:
    """Return a strategy object: the given one, the one of that name, or for "auto" by data size."""
    if not isinstance(strategy, str):
        return strategy
    if strategy == "auto":
        return choose_strategy(n_samples, n_blocks)
    check_choice("strategy", strategy, [*STRATEGIES, "auto"])
    return STRATEGIES[strategy]()

"""The objective of ``molfun tune``: fine-tune with the drawn settings, and validate."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from molfun.cli.console import say
from molfun.cli.cv import divided
from molfun.cli.cv_settings import has_one_class
from molfun.cli.data import check_judging, open_file, open_training, say_notes, split
from molfun.cli.fine_tune import model_of, plain_loader, strategy_of, training_loader
from molfun.cli.settings import FineTuneSettings, TrainSettings
from molfun.cli.tune_space import with_drawn
from molfun.data.base import SampleDataset
from molfun.errors import ConfigError
from molfun.fingerprint import digest
from molfun.models.loaders import label_texts
from molfun.models.structure import MolfunStructureModel
from molfun.text import counted
from molfun.training.callbacks import Callback
from molfun.training.history import History, monitored
from molfun.training.monitor import check_monitor
from molfun.training.supervised import metric_names
from molfun.tuning.trial import Trial

Pair = tuple[SampleDataset, SampleDataset]


class Trials:
    """Objective of a study: training and validation rows, and the model that each trial copies.

    Test rows are left out when the data is opened, so that nothing here can see them.

    Parameters
    ----------
    base
        Settings of all trials.
    n_folds
        Folds of the rows that are no test rows; None for one training and one validation part.
    """

    def __init__(self, base: FineTuneSettings, n_folds: int | None) -> None:
        self._base = base
        self._pairs = _parts(base) if n_folds is None else _folds(base, n_folds)
        self._model: MolfunStructureModel | None = None
        self._model_of: Any = None
        model = self._copy(base)
        heads = model.need_heads("tune")
        check_monitor(base.monitor, metric_names(heads))
        better = {part.key(name) for part in heads for name in part.task.higher_is_better}
        self.higher_is_better = base.monitor.removeprefix("val/") in better

    def __call__(self, trial: Trial) -> float | History:
        """Train with the settings of a trial; with folds, return the mean of their best values."""
        settings = with_drawn(self._base, trial.settings)
        if len(self._pairs) == 1:
            return self._fit(settings, self._pairs[0], trial, [trial])
        values: list[float] = []
        for pair in self._pairs:
            history = self._fit(settings, pair, trial, [])
            values.append(monitored(history.best, history.monitor))
            trial.report(statistics.fmean(values), len(values))
        return statistics.fmean(values)

    def _fit(
        self, settings: FineTuneSettings, pair: Pair, trial: Trial, callbacks: Sequence[Callback]
    ) -> History:
        train, val = pair
        model = self._copy(settings)
        place = settings.cache_dir or trial.cache.directory
        return model.fit(
            training_loader(train, settings, model.backbone.length_power),
            plain_loader(val, settings),
            strategy=strategy_of(settings, len(train), len(model.backbone.blocks())),
            epochs=settings.epochs,
            seed=settings.seed,
            precision=settings.precision,
            cache=replace(settings.cache_config, directory=place, keep_for_others=True),
            callbacks=callbacks,
        )

    def _copy(self, settings: FineTuneSettings) -> MolfunStructureModel:
        """Return an untrained model: a copy of the last one, if it is made of the same."""
        wanted = settings.model_dump(exclude={*TrainSettings.model_fields, "output"})
        if self._model is None or wanted != self._model_of:
            # names of classes are those of training and validation rows alone
            self._model = None  # first, so that two large ones are never there at once
            self._model = model_of(settings, *self._pairs[0]).check(*self._pairs[0])
            self._model_of = wanted
        return copy.deepcopy(self._model)

    def identity(self) -> str:
        """Return a digest of ids and labels of all parts."""
        parts = [part for pair in self._pairs for part in pair]
        texts = [text for p in parts for text in (*p.ids, *label_texts(list(p.targets)))]
        return digest(texts)


def _parts(base: FineTuneSettings) -> list[Pair]:
    train, val, test = open_training(base)
    if val is None:
        raise ConfigError(
            "Trials are judged on validation rows, and there are none: raise val_frac, give val, "
            "or use --folds."
        )
    if test is not None:
        say(f"{counted(len(test), 'test row')} are held out: no trial sees them.")
    return [(train, val)]


def _folds(base: FineTuneSettings, n_folds: int) -> list[Pair]:
    """Divide what is no test row: each part validates once what the others train."""
    if base.val:
        raise ConfigError("--folds takes validation rows from the data: leave out val.")
    if base.split == "temporal":
        raise ConfigError("Folds have no order in time: leave out --folds with split: temporal.")
    if base.demo:
        raise ConfigError("The demo has parts of its own: leave out --folds.")
    dataset = open_file(base, base.data)
    check_judging(base, {"data": dataset})
    say_notes(base.kind, dataset, "see run.log")
    train, val, test = split(_Places(dataset), base)
    seen = np.sort(np.concatenate([train, [] if val is None else val])).astype(int)
    rows = dataset.subset(seen)
    about = {"val_frac": 0.0, "seed": base.seed, "stratify": has_one_class(base)}
    folds = divided(rows, base, n_folds, **about)
    n_test = 0 if test is None else len(test)
    said = f"{counted(n_test, 'test row')} are held out: no trial sees them."
    say(f"Data: {len(rows)} rows in {n_folds} folds, each validated by a model of the others. "
        f"{said if n_test else ''}".strip())  # fmt: skip
    return [(rows.subset(fold.train), rows.subset(fold.test)) for fold in folds]


class _Places:
    """A data set whose parts are positions, so that they can be put together again."""

    def __init__(self, dataset: SampleDataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def subset(self, indices: Any) -> Any:
        """Return the positions themselves."""
        return np.asarray(indices)

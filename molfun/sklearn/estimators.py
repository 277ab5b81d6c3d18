"""`MolfunRegressor` and `MolfunClassifier`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import Tags, assert_all_finite, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch.utils.data import DataLoader, Subset

from molfun.errors import DataError
from molfun.models.structure import MolfunStructureModel
from molfun.models.trained_on import input_digest
from molfun.registry import BACKBONES
from molfun.sample import Sample
from molfun.sklearn.inputs import rows_of, samples_of, series_of
from molfun.sklearn.portable import packed, unpacked
from molfun.sklearn.strategy import PREFIX, Strategy, as_strategy, settings_in, with_settings
from molfun.text import counted, few

_PACKED = "_checkpoint"
"""Key of the model's files in the state of a pickle."""


class _MolfunEstimator(BaseEstimator):
    """Base of both estimators: data, strategy, training, and a pickle without modules."""

    model_: MolfunStructureModel

    def __init__(
        self,
        backbone: str = "esm2_t6_8M_UR50D",
        *,
        config: Any = None,
        weights: str | Path | None = None,
        backbone_config: dict[str, Any] | None = None,
        head: str | None = None,
        head_config: dict[str, Any] | None = None,
        task_config: dict[str, Any] | None = None,
        strategy: Strategy = "auto",
        epochs: int = 20,
        batch_size: int | None = None,
        val_fraction: float = 0.0,
        precision: str | None = None,
        cache: str = "auto",
        cache_dir: str | Path | None = None,
        folder: str | Path | None = None,
        max_length: int | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.weights = weights
        self.backbone_config = backbone_config
        self.head = head
        self.head_config = head_config
        self.task_config = task_config
        self.strategy = strategy
        self.epochs = epochs
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.precision = precision
        self.cache = cache
        self.cache_dir = cache_dir
        self.folder = folder
        self.max_length = max_length
        self.seed = seed
        self.device = device

    # --- parameters ----------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; deep adds the settings of the strategy, ``strategy__lr`` ..."""
        own: dict[str, Any] = super().get_params(deep=False)
        return {**own, **settings_in(self.strategy)} if deep else own

    def set_params(self, **params: Any) -> Self:
        """Set parameters, among them settings of the strategy: ``strategy__lr=1e-3``.

        Raises
        ------
        ConfigError
            If the strategy has no such setting, or is "auto".
        """
        nested = {k.removeprefix(PREFIX): v for k, v in params.items() if k.startswith(PREFIX)}
        super().set_params(**{k: v for k, v in params.items() if not k.startswith(PREFIX)})
        if nested:
            self.strategy = with_settings(self.strategy, nested)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        series = self._takes("series")
        tags.input_tags.two_d_array = tags.input_tags.three_d_array = series
        tags.input_tags.allow_nan = series  # a gap in a series
        tags.input_tags.one_d_array = tags.input_tags.string = not series
        tags.target_tags.required = True
        return tags

    def _takes(self, kind: str) -> bool:
        known = isinstance(self.backbone, str) and self.backbone in BACKBONES.names()
        return known and kind in BACKBONES.about(self.backbone, "inputs")

    # --- fit and predict -----------------------------------------------------------------------

    def _fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        targets: Sequence[Any],
        task_config: dict[str, Any],
        sample_weight: Any,
    ) -> Self:
        weights = None
        if sample_weight is not None:
            weights = _checked_weights(sample_weight, targets)
        data = self._dataset(X, targets, weights, reset=True)
        train, val = self._parts(data, y)
        arguments = dict(self.backbone_config or {})
        if hasattr(data, "n_features"):
            arguments.setdefault("d_input", data.n_features)
        head, task = self._head_and_task(task_config)
        self.model_ = MolfunStructureModel(
            self.backbone,
            config=self.config,
            weights=self.weights,
            device=self.device,
            backbone_config=arguments,
            head=head,
            head_config=self.head_config,
            task=task,
            task_config={**task_config, **(self.task_config or {})},
            seed=self.seed,
        )
        self.history_ = self.model_.fit(
            self._loader(train, shuffle=True),
            None if val is None else self._loader(val),
            strategy="auto" if self.strategy == "auto" else as_strategy(self.strategy),
            epochs=self.epochs,
            seed=self.seed,
            precision=self.precision,
            cache=self.cache,  # type: ignore[arg-type]  # checked there
            cache_dir=self.cache_dir,
        )
        # weights came with this fit, and are no column of tables that the model will read
        self.model_.data_settings.pop("weight_column", None)
        self.n_iter_ = len(self.history_)
        return self

    def _head_and_task(self, task_config: dict[str, Any]) -> tuple[str | None, str | None]:
        raise NotImplementedError

    def _predicted(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return self.model_.predict(self._loader(self._dataset(X, reset=False)))

    def _dataset(
        self,
        X: Any,  # noqa: N803
        targets: Sequence[Any] | None = None,
        weights: Sequence[float] | None = None,
        *,
        reset: bool,
    ) -> Any:
        """Return X as a data set; `reset` notes the number and names of its columns."""
        if not self._takes("series") or _holds_samples(X):
            rows = rows_of(X)
            if targets is not None:
                check_consistent_length(rows, targets)
            about: dict[str, Any] = {"folder": self.folder, "max_length": self.max_length}
            return samples_of(rows, targets, weights=weights, **about)
        # NaN is a gap in a series, infinity a mistake
        options = {"dtype": np.float32, "ensure_all_finite": "allow-nan"}
        if np.asarray(X).ndim == 3:
            values = check_array(X, allow_nd=True, **options)
        else:  # one feature over time: the columns of scikit-learn
            values = validate_data(self, X, reset=reset, **options)[..., None]
        if targets is not None:
            check_consistent_length(values, targets)
        return series_of(values, targets, weights)

    def _parts(self, data: Any, y: Any) -> tuple[Any, Any]:
        """Split off the validation part; equal inputs stay together."""
        if not self.val_fraction:
            return data, None
        groups = [input_digest(data[i]) for i in range(len(data))]
        n = len(set(groups))
        if self.val_fraction < 1 and math.ceil(self.val_fraction * n) >= n:
            raise DataError(
                f"val_fraction={self.val_fraction:g} leaves nothing to train on: X has "
                f"{counted(n, 'distinct input')}, and equal ones stay together. Set "
                f"val_fraction=0, or give more samples."
            )
        split = GroupShuffleSplit(1, test_size=self.val_fraction, random_state=self.seed)
        train, val = next(split.split(groups, y, groups))
        return Subset(data, train.tolist()), Subset(data, val.tolist())

    def _loader(self, data: Any, *, shuffle: bool = False) -> DataLoader[Any]:
        whole: Any = data.dataset if isinstance(data, Subset) else data
        size = whole.default_batch_size if self.batch_size is None else self.batch_size
        return DataLoader(data, batch_size=size, shuffle=shuffle, collate_fn=whole.collate_fn)

    # --- pickle --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        model = state.pop("model_", None)
        return state if model is None else {**state, _PACKED: packed(model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop(_PACKED, None)
        super().__setstate__(state)
        if files is not None:
            self.model_ = unpacked(files, weights=self.weights, device=self.device)


class MolfunRegressor(RegressorMixin, _MolfunEstimator):
    """Fine-tune a backbone for regression, as a scikit-learn estimator.

    Parameters
    ----------
    backbone
        Registered name, as for `molfun.MolfunStructureModel`.
    config, weights, backbone_config
        Architecture, file of pretrained weights, and further arguments of the backbone.
    head, head_config
        Registered name and arguments of the head; None takes the usual one of the task.
    task_config
        Further arguments of the task, such as ``{"loss": "huber"}``.
    strategy
        What trains and how fast: a name, a strategy, its settings as a dict with a ``name``, or
        "auto". Single settings have nested names, as in ``set_params(strategy__lr=1e-3)``.
    epochs
        Epochs.
    batch_size
        Samples per batch; None takes the usual size of the kind of data.
    val_fraction
        Fraction of the samples that chooses the best epoch, equal inputs kept together; with 0
        all samples train, and the weights of the last epoch are kept.
    precision
        "fp32", "bf16" or "fp16"; None takes that of the strategy.
    cache, cache_dir
        Where outputs of frozen parts are kept. Folds and candidates that share a `cache_dir`
        compute each sample once.
    folder, max_length
        Folder of structures, where X holds their ids, and residues kept of each.
    seed
        Decides initial weights, order of samples, dropout and the validation part.
    device
        ``"auto"``, or a torch device.

    Attributes
    ----------
    model_
        The fine-tuned `molfun.MolfunStructureModel`; ``model_.save`` writes a checkpoint.
    history_
        `molfun.History` of the fit, one row per epoch.
    n_iter_
        Number of epochs.
    n_features_in_, feature_names_in_
        Columns of X, for series given as a table; sequences and samples have none.
    target_names_
        Columns of y, where it has several: of a table its names, else y0, y1 ...

    Examples
    --------
    >>> model = MolfunRegressor("esm2_tiny", strategy="head_only", epochs=2, device="cpu")
    >>> model.fit(["MKVL", "ACDE", "GGSA", "MKAA"], [1.0, 2.0, 3.0, 4.0]).predict(["MKVL"]).shape
    (1,)
    >>> model.set_params(strategy__lr=0.01).get_params()["strategy__lr"]
    0.01
    """

    target_names_: list[str]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fine-tune a new model.

        Parameters
        ----------
        X
            Sequences, ids of structures in `folder`, or `molfun.Sample` (their labels are not
            used); for a backbone of series (samples, time) or (samples, time, features) numbers.
        y
            (samples,) numbers; or (samples, properties), of which one head learns each in a scale
            of its own, with NaN for what was not measured.
        sample_weight
            (samples,) numbers of at least 0: factors of the training loss over their mean. The
            scale of the labels and the validation part know no weights.

        Raises
        ------
        ConfigError, DataError
            If an argument, a sample, a label or a weight cannot be used; both are ``ValueError``.
        """
        shape = np.asarray(y).shape
        several = len(shape) == 2 and shape[1] > 1
        self.target_names_ = _names_of(y) if several else []
        if several:
            numbers = _checked_table(y, self.target_names_)
            config: dict[str, Any] = {"targets": self.target_names_}
        else:
            labels = _checked_labels(y)
            numbers = check_array(labels, ensure_2d=False, dtype=np.float64, input_name="y")
            config = {}
        return self._fit(X, numbers, numbers.tolist(), config, sample_weight)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the predictions in the units of the labels, float64, shaped as y was."""
        values: np.ndarray = self._predicted(X)["prediction"].numpy()
        return values

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return R2; of several columns the mean over those that have two labels or more.

        Parameters
        ----------
        X, y
            As in `fit`.
        sample_weight
            (samples,) weights of the errors.
        """
        truth = np.asarray(y, np.float64)
        if truth.ndim == 1 or not np.isnan(truth).any():
            return float(super().score(X, y, sample_weight))
        found = self.predict(X)
        check_consistent_length(found, truth)
        weights = None if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for column, own in zip(truth.T, found.T, strict=True):
            there = ~np.isnan(column)
            if there.sum() < 2:  # of one label R2 is undefined
                continue
            rest = None if weights is None else weights[there]
            scores.append(r2_score(column[there], own[there], sample_weight=rest))
        if not scores:
            raise DataError(
                f"No column of y has two labels or more in these {counted(len(truth), 'row')}, so "
                f"R2 is undefined."
            )
        return float(np.mean(scores))

    def _head_and_task(self, task_config: dict[str, Any]) -> tuple[str | None, str | None]:
        several = "targets" in task_config
        if not self._takes("atoms"):
            return self.head, "multitarget" if several else "regression"
        if several:
            raise DataError(
                f"y has {len(task_config['targets'])} columns, and the energy of atoms is one "
                f"number. Give one column."
            )
        return self.head, None  # energies come with a head and a task of the backbone


class MolfunClassifier(ClassifierMixin, _MolfunEstimator):
    """Fine-tune a backbone to tell two or more classes apart, as a scikit-learn estimator.

    Parameters are those of `MolfunRegressor`; ``task_config={"class_weight": "balanced"}`` weighs
    rare classes more.

    Attributes
    ----------
    classes_
        The classes, sorted; columns of `predict_proba`.
    model_, history_, n_iter_, n_features_in_, feature_names_in_
        As for `MolfunRegressor`.

    Examples
    --------
    >>> model = MolfunClassifier("esm2_tiny", strategy="head_only", epochs=2, device="cpu")
    >>> model = model.fit(["MKVL", "ACDE", "GGSA", "MKAA"], ["coil", "helix", "helix", "coil"])
    >>> model.classes_.tolist(), model.predict_proba(["MKVL", "ACDE"]).shape
    (['coil', 'helix'], (2, 2))
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fine-tune a new model.

        Parameters
        ----------
        X, sample_weight
            As for `MolfunRegressor`.
        y
            (samples,) classes: text, whole numbers or booleans.

        Raises
        ------
        ConfigError, DataError
            If an argument, a sample or a label cannot be used; both are ``ValueError``.
        """
        y = _checked_labels(y)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y has only one class, {self.classes_.tolist()[0]!r}; two are needed.")
        # checkpoints name classes by text, which `molfun predict` shows
        names = [str(name) for name in self.classes_.tolist()]
        labels = [names[i] for i in indices]
        return self._fit(X, y, labels, {"classes": names}, sample_weight)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the probabilities of `classes_`, (samples, classes) float64."""
        probabilities: np.ndarray = self._predicted(X)["probs"].numpy()
        return probabilities

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the most probable class of each sample, (samples,)."""
        best = self.predict_proba(X).argmax(axis=1)
        found: np.ndarray = self.classes_[best]
        return found

    def _head_and_task(self, task_config: dict[str, Any]) -> tuple[str | None, str | None]:
        return self.head, "binary" if len(task_config["classes"]) == 2 else "multiclass"


def _checked_labels(y: Any) -> np.ndarray:
    """Return labels as a (samples,) array; refuse those that are absent or missing."""
    if y is None:
        # the words that scikit-learn's own check of estimators asks for
        raise DataError("This estimator requires y to be passed, but the target y is None.")
    labels: np.ndarray = column_or_1d(y, warn=True)
    if not len(labels):
        raise DataError("y is empty: there are 0 label(s) in it, and 1 is needed.")
    missing = [i for i, one in enumerate(labels.tolist()) if one is None or one != one]
    if missing:
        raise DataError(
            f"y has no label (NaN) in {len(missing)} of {len(labels)} rows: "
            f"{few([str(i) for i in missing])}. Leave these samples out."
        )
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    return labels


def _names_of(y: Any) -> list[str]:
    """Return the names of the columns of a table, y0, y1 ... of an array."""
    if hasattr(y, "columns"):
        return [str(name) for name in y.columns]
    return [f"y{i}" for i in range(np.asarray(y).shape[1])]


def _checked_table(y: Any, names: list[str]) -> np.ndarray:
    """Return (samples, properties) labels; refuse rows and columns without any."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"y has several columns of one name: {few(twice)}. Rename them.")
    options = {"dtype": np.float64, "ensure_all_finite": "allow-nan", "ensure_min_samples": 0}
    table: np.ndarray = check_array(y, input_name="y", **options)
    if not len(table):
        raise DataError("y is empty: there are 0 label(s) in it, and 1 is needed.")
    missing = np.isnan(table)
    empty = [names[k] for k in np.flatnonzero(missing.all(axis=0)).tolist()]
    if empty:
        raise DataError(f"y has no label (NaN) in any row of {few(empty)}. Leave the column out.")
    rows = np.flatnonzero(missing.all(axis=1))
    if rows.size:
        raise DataError(
            f"y has no label (NaN) in any column in {len(rows)} of {len(table)} rows: "
            f"{few([str(i) for i in rows])}. Leave these samples out."
        )
    return table


def _checked_weights(sample_weight: Any, targets: Sequence[Any]) -> list[float]:
    """Return one weight per sample; scikit-learn's check names what is wrong."""
    options = {"dtype": np.float64, "ensure_non_negative": True}
    weights: np.ndarray = _check_sample_weight(sample_weight, targets, **options)
    return [float(weight) for weight in weights]


def _holds_samples(data: Any) -> bool:
    return isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], Sample)

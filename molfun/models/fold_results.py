"""Results of a cross-validation: out-of-fold predictions, metrics per fold, mean and interval."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from molfun._io import finite, load_safetensors, read_metadata, save_safetensors
from molfun.data.folds import Fold
from molfun.evaluation.baselines import Embedder
from molfun.evaluation.bootstrap import Estimate
from molfun.evaluation.conformal import Calibration, reliability
from molfun.evaluation.ragged import packed, unpacked
from molfun.evaluation.results import HeadVerdict
from molfun.models.judging import Measured, judged_folds
from molfun.models.prediction import Prediction
from molfun.nn.substitutions import SubstitutionTable
from molfun.tasks.classification import MulticlassTask
from molfun.training.supervised import Evaluation, HeadResult
from molfun.training.task_head import TaskHead

if TYPE_CHECKING:
    import pandas as pd

FOLD_FILE = "out_of_fold.safetensors"
"""File of a fold's results, written last: where it is, the fold is finished."""
FEWEST_FOLDS = 3
"""Folds whose mean has an interval."""
_KEY = "molfun fold 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """Predictions of one fold for the samples that it tests.

    Parameters
    ----------
    fold
        Positions of the samples.
    ids
        Ids of the tested samples, in the order of ``fold.test``.
    predictions, targets
        One array per tested sample and head (the only head has the empty name): numbers in the
        units of the labels, or probabilities; labels as numbers, NaN where there is none.
    metrics
        Metrics on the tested samples, ``loss`` among them.
    states
        Class names and label statistics of each head's task.
    epoch
        Epoch that validation chose; the last one without validation.
    seconds
        Time to train and test.
    checkpoint
        Folder of the trained model; None if none was written.
    """

    fold: Fold
    ids: list[str]
    predictions: Mapping[str, list[np.ndarray]]
    targets: Mapping[str, list[np.ndarray]]
    metrics: Mapping[str, float]
    states: Mapping[str, Mapping[str, Any]]
    epoch: int
    seconds: float
    checkpoint: Path | None = None

    @classmethod
    def of(
        cls, fold: Fold, result: Evaluation, heads: Sequence[TaskHead], **about: Any
    ) -> FoldResult:
        """Collect the results of an evaluation."""
        parts = {part.name: result.heads[part.name] for part in heads}
        return cls(
            fold=fold,
            ids=list(map(str, result.ids)),
            predictions={name: part.predictions for name, part in parts.items()},
            targets={name: part.targets for name, part in parts.items()},
            states={part.name: part.task.state_dict() for part in heads},
            **about,
        )

    def save(self, folder: Path) -> None:
        """Write the results into the folder of the fold."""
        tensors: dict[str, torch.Tensor] = {}
        for kind, arrays in (("predictions", self.predictions), ("targets", self.targets)):
            for name, rows in arrays.items():
                tensors |= packed(f"{kind}/{name}", rows)
        about = {
            "ids": self.ids,
            "heads": list(self.predictions),
            "metrics": self.metrics,
            "states": self.states,
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        save_safetensors(
            folder / FOLD_FILE,
            tensors,
            {"about": json.dumps(finite(about), allow_nan=False)},
            key=_KEY,
        )

    @classmethod
    def load(cls, folder: Path, fold: Fold) -> FoldResult:
        """Read the results of a finished fold.

        Raises
        ------
        CheckpointError
            If the file is damaged.
        """
        path = folder / FOLD_FILE
        tensors = load_safetensors(path, key=_KEY, sealed=True)
        about = json.loads(read_metadata(path)["about"])
        heads = about.pop("heads")
        metrics = {k: math.nan if v is None else v for k, v in about.pop("metrics").items()}
        return cls(
            fold=fold,
            predictions={name: unpacked(tensors, f"predictions/{name}") for name in heads},
            targets={name: unpacked(tensors, f"targets/{name}") for name in heads},
            metrics=metrics,
            checkpoint=folder / "checkpoint",
            **about,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidation:
    """Results of all folds; what `cross_validate` returns.

    Parameters
    ----------
    folds
        Results of each fold.
    heads
        Heads of the model, whose tasks measure and present predictions.
    higher_is_better
        Metrics of which more is better.
    cache_report
        What the shared frozen-prefix cache saved, one line per fold.
    random_weights
        Whether the backbone started from random weights where pretrained ones are usual.
    base_scores
        Zero-shot scores of the samples, if they are variants of a protein.
    embedder
        Representations by the weights that all folds started from, for baselines.
    """

    folds: list[FoldResult]
    heads: tuple[TaskHead, ...]
    higher_is_better: frozenset[str]
    cache_report: str = field(default="", repr=False)
    random_weights: bool = False
    base_scores: SubstitutionTable | None = field(default=None, repr=False)
    embedder: Embedder | None = field(default=None, repr=False, compare=False)

    @property
    def n_repeats(self) -> int:
        """Number of times that all samples were divided."""
        return max(result.fold.repeat for result in self.folds)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of the trained models, for an ensemble."""
        return [r.checkpoint for r in self.folds if r.checkpoint is not None]

    def table(self) -> pd.DataFrame:
        """Return one row per fold: sizes of its parts, its epoch, seconds and metrics."""
        import pandas as pd

        rows = []
        for result in self.folds:
            sizes = {f"n_{part}": len(getattr(result.fold, part)) for part in _PARTS}
            about = {"epoch": result.epoch, "seconds": result.seconds}
            rows.append({"fold": result.fold.name, **sizes, **about, **result.metrics})
        return pd.DataFrame(rows)

    def summary(self, confidence: float = 0.95) -> dict[str, Estimate]:
        """Return mean and interval of each metric over the folds in which it is defined.

        The interval is that of Student's t with the variance of Nadeau and Bengio: folds share
        their training samples, so the variance over `n` folds is divided not by `n` but multiplied
        by ``1/n + n_test/n_train``. Without it intervals are far too narrow. Fewer than three folds
        have no interval: its bounds are NaN.

        Parameters
        ----------
        confidence
            Probability that the interval is meant to hold.

        References
        ----------
        Nadeau and Bengio 2003, "Inference for the Generalization Error", Machine Learning 52.
        """
        ratio = float(np.mean([len(r.fold.test) / len(r.fold.train) for r in self.folds]))
        names = dict.fromkeys(name for result in self.folds for name in result.metrics)
        return {
            name: _estimate([r.metrics.get(name, math.nan) for r in self.folds], ratio, confidence)
            for name in names
        }

    def pooled(self) -> dict[str, float]:
        """Return the metrics over the out-of-fold predictions of all `tested` samples together.

        Unlike their mean over folds they are defined for folds of any size; predictions of
        different models are compared with each other.
        """
        values: dict[str, float] = {}
        for part in self._presenting():
            rows, targets = self.raw(part.name), self._targets(part.name)
            found = part.task.metrics(part.task.join(rows), part.task.join(targets))
            values |= {part.key(name): value for name, value in found.items()}
        return values

    @property
    def tested(self) -> np.ndarray:
        """Positions of the samples that a fold tests, ascending; folds of pairs test some alone."""
        return np.sort(self._order())

    def raw(self, head: str = "") -> list[np.ndarray]:
        """Return the out-of-fold prediction of each `tested` sample, the mean over repeats."""
        repeats = []
        for repeat in range(1, self.n_repeats + 1):
            own = [r for r in self.folds if r.fold.repeat == repeat]
            rows = [p for r in own for p in r.predictions[head]]
            repeats.append(_in_order(rows, self._order(repeat)))
        task = next(part.task for part in self.heads if part.name == head)
        return [task.combined(rows) for rows in zip(*repeats, strict=True)]

    def out_of_fold(self) -> Prediction:
        """Return a prediction for each `tested` sample, in order, by a model that never saw it.

        With several repeats it is the mean over them.
        """
        order = self._order()
        first = [r for r in self.folds if r.fold.repeat == 1]
        found = Prediction(ids=_in_order([i for r in first for i in r.ids], order))
        for part in self._presenting():
            found.put(part, self.raw(part.name))
        return found

    def judge(
        self,
        dataset: Any,
        *,
        groups: Sequence[Hashable] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        draws: int = 1000,
        keep: Path | None = None,
    ) -> dict[str, HeadVerdict]:
        """Compare the out-of-fold predictions with those of baselines of the same folds.

        Parameters
        ----------
        dataset
            The data set of the cross-validation.
        groups
            A cluster, patient or family per sample, which intervals draw whole; None draws samples.
        columns
            Columns by whose values metrics are reported, with one value per sample.
        draws
            Bootstrap draws.
        keep
            Folder in which the predictions of baselines are kept; None keeps nothing.

        Returns
        -------
        dict
            Verdict by head; the only head has the name ``""``.

        Examples
        --------
        >>> from molfun import DataSplitter, MolfunStructureModel, SequenceDataset
        >>> from molfun.models import cross_validate
        >>> texts = [a + b for a in "ACDE" for b in "FGHI"]
        >>> data = SequenceDataset.from_list([(t, float("A" in t)) for t in texts])
        >>> result = cross_validate(
        ...     lambda: MolfunStructureModel("esm2_tiny", head="regression", device="cpu"),
        ...     data, DataSplitter.k_fold(data, 4), strategy="head_only", epochs=1,
        ... )
        >>> (found,) = result.judge(data).values()
        >>> found.outcome, " on 16 out-of-fold rows of 4 folds " in found.verdict
        ('too few', True)
        """
        heads = self._presenting()
        results = {
            part.name: HeadResult(predictions=self.raw(part.name), targets=self._targets(part.name))
            for part in heads
        }
        places = self.tested.tolist()
        found = Measured(
            dataset if len(places) == len(dataset) else dataset.subset(places),
            heads,
            results,
            None if groups is None else [groups[i] for i in places],
            {name: [values[i] for i in places] for name, values in (columns or {}).items()},
        )
        return judged_folds(
            found,
            [result.fold for result in self.folds],
            dataset=dataset,
            random_weights=self.random_weights,
            draws=draws,
            keep=keep,
            scores=self.base_scores,
            embedder=self.embedder,
        )

    def calibrations(self) -> dict[str, Calibration]:
        """Return the out-of-fold errors of each head, for intervals and sets of classes.

        Heads that predict one number or one class per sample have them.
        """
        found = {}
        for part in self._presenting():
            if part.task.level != "sequence":
                continue
            targets = np.stack(self._targets(part.name))
            rows = part.task.point(np.stack(self.raw(part.name)))
            if rows.ndim == targets.ndim == 1:
                found[part.name] = Calibration.of_numbers(rows, targets)
            elif isinstance(part.task, MulticlassTask):
                names = part.task.classes or []
                found[part.name] = Calibration.of_classes(rows, targets, names)
        return found

    def reliability(self) -> dict[str, Any]:
        """Return reliability diagram and expected calibration error of each head of classes."""
        found = {}
        for part in self._presenting():
            if isinstance(part.task, MulticlassTask):
                probs = part.task.join(self.raw(part.name))
                labels = part.task.join(self._targets(part.name))
                known = np.isfinite(labels)
                found[part.name] = reliability(probs[known], labels[known].astype(np.int64))
        return found

    def _targets(self, head: str) -> list[np.ndarray]:
        """Return the label of each sample as numbers."""
        first = [r for r in self.folds if r.fold.repeat == 1]
        return _in_order([t for r in first for t in r.targets[head]], self._order())

    def fold_of_each(self) -> list[str]:
        """Return the fold that tested each `tested` sample; of several repeats ``"3;1"``."""
        numbers: dict[int, list[str]] = {place: [] for place in self.tested.tolist()}
        for result in self.folds:
            for place in result.fold.test.tolist():
                numbers[place].append(str(result.fold.number))
        return [";".join(own) for own in numbers.values()]

    def _order(self, repeat: int = 1) -> np.ndarray:
        """Return the positions of the tested samples of a repeat, fold after fold."""
        own = [r.fold.test for r in self.folds if r.fold.repeat == repeat]
        return np.concatenate(own)

    def _presenting(self) -> tuple[TaskHead, ...]:
        """Return the heads with the class names that the folds have in common."""
        for part in self.heads:
            part.task.load_state_dict(self.folds[0].states[part.name])
        return self.heads


_PARTS = ("train", "val", "test")


def _in_order(rows: Sequence[Any], order: np.ndarray) -> list[Any]:
    """Sort rows by their positions."""
    return [rows[i] for i in np.argsort(order, kind="stable")]


def _estimate(values: Sequence[float], ratio: float, confidence: float) -> Estimate:
    from scipy import stats

    known = np.array([value for value in values if math.isfinite(value)])
    if not known.size:
        return Estimate(math.nan, math.nan, math.nan)
    mean, n = float(known.mean()), len(known)
    if n < FEWEST_FOLDS:  # Student's t of two values is 13 deviations wide
        return Estimate(mean, math.nan, math.nan)
    spread = math.sqrt((1 / n + ratio) * float(known.var(ddof=1)))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * spread
    return Estimate(mean, mean - half, mean + half)

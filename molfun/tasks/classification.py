"""Classes: one of two, one of many, or any number at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from molfun.errors import ConfigError, DataError
from molfun.sample import is_missing
from molfun.tasks.base import Level, LossSum
from molfun.tasks.class_metrics import class_scores, label_scores
from molfun.tasks.classes import Classification, ClassWeight, text_of


class MulticlassTask(Classification):
    """One of several classes: softmax and cross entropy.

    Parameters
    ----------
    classes, n_classes, level, class_weight
        Names (or number) of the classes, what a label is for, and weights in the loss:
        ``"balanced"`` or one number per class.
    label_smoothing
        Share of the probability that the loss spreads over all classes, below 1.

    Examples
    --------
    >>> task = MulticlassTask(classes=["C", "E", "H"], level="residue")
    >>> task.numbers("CEH").tolist()
    [0.0, 1.0, 2.0]
    >>> task.present([np.array([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]])])["prediction"]
    ['EC']
    """

    name = "multiclass"
    higher_is_better = frozenset(
        {"accuracy", "balanced_accuracy", "f1", "mcc", "auroc", "auprc", "q3"}
    )
    main_metric = "accuracy"
    labels_are = "class"

    def __init__(
        self,
        *,
        classes: Sequence[Any] | None = None,
        n_classes: int | None = None,
        level: Level = "sequence",
        class_weight: ClassWeight | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            classes=classes, n_classes=n_classes, level=level, class_weight=class_weight
        )
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        self._config["label_smoothing"] = label_smoothing

    def _parts(self, label: Any) -> list[str]:
        return [text_of(label)]

    def numbers(self, target: Any) -> np.ndarray:
        """Index of the class, NaN where there is none: () or (length,)."""
        if is_missing(target):
            return np.array(math.nan)
        if self.level == "sequence":
            return np.array(self._index(text_of(target)), dtype=np.float64)
        return np.array(
            [math.nan if is_missing(t) else self._index(text_of(t)) for t in target],
            dtype=np.float64,
        )

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the summed cross entropy over the labels that are present."""
        logits = outputs["prediction"].float().reshape(-1, self._n)
        flat = targets.reshape(-1)
        present = ~torch.isnan(flat)
        weight = None if self.weight is None else logits.new_tensor(self.weight)
        total = functional.cross_entropy(
            logits[present],
            flat[present].long(),
            weight=weight,
            label_smoothing=self._config["label_smoothing"],
            reduction="sum",
        )
        return LossSum(total, int(present.sum()))

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the probabilities of the classes, float64, in the last dimension."""
        return torch.softmax(outputs["prediction"].double(), dim=-1)

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: class names; ``probs``: probabilities of the ``classes``.

        For sequences a list of names and an (samples, classes) tensor; for residues a text of
        one-letter classes (or a list of names) and a (length, classes) array a sample.
        """
        names = np.array(self._names(), dtype=object)
        found = [names[probs.argmax(-1)] for probs in predictions]
        if self.level == "residue":
            letters = all(len(name) == 1 for name in names)
            found = ["".join(row) if letters else row.tolist() for row in found]
        return {"prediction": found, **self._presented(predictions)}

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return accuracy (Q3 for three classes), balanced accuracy, F1, MCC, AUROC and AUPRC.

        F1, AUROC and AUPRC are those of the second class where there are two, else the mean over
        the classes that occur. NaN where undefined: without labels, with one class only, or where
        predictions are not finite.
        """
        present = np.isfinite(targets)
        probs, truth = predictions[present], targets[present].astype(int)
        result = class_scores(probs, truth)
        if self.level == "residue" and self._n == 3:
            result["q3"] = result["accuracy"]
        return result

    def metric(self, name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return one metric; each alone takes a fraction of the time of all."""
        present = np.isfinite(targets)
        own = "accuracy" if name == "q3" else name
        found = class_scores(predictions[present], targets[present].astype(int), only=own)
        # a class derived from this one may have metrics of its own
        return found[own] if own in found else super().metric(name, predictions, targets)


class BinaryTask(MulticlassTask):
    """One of two classes, with two logits and cross entropy; the second class is the positive one.

    Parameters
    ----------
    classes
        Names of the negative and the positive class; None takes the two labels of the training
        set, sorted.
    level, class_weight, label_smoothing
        As in `MulticlassTask`.

    Examples
    --------
    >>> task = BinaryTask(classes=["no", "yes"])
    >>> task.n_outputs, task.numbers("yes").tolist()
    (2, 1.0)
    """

    name = "binary"
    main_metric = "auroc"

    def __init__(
        self,
        *,
        classes: Sequence[Any] | None = None,
        n_classes: int = 2,
        level: Level = "sequence",
        class_weight: ClassWeight | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if classes is not None and len(classes) < 2:
            raise ConfigError(
                f"A binary task has two classes, found {', '.join(map(repr, classes)) or 'none'}. "
                f"Check the labels of the training set, or name both classes."
            )
        if classes is not None and len(classes) > 2:
            names = ", ".join(repr(name) for name in list(classes)[:5])
            raise ConfigError(
                f"A binary task has two classes, found {len(classes)} ({names}"
                f"{' ...' if len(classes) > 5 else ''}). Use 'multiclass'."
            )
        if n_classes != 2:
            raise ConfigError("A binary task has two classes; use 'multiclass' for more.")
        super().__init__(
            classes=classes,
            n_classes=2,
            level=level,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
        )


class MultilabelTask(Classification):
    """Any number of classes at once: a sigmoid and binary cross entropy each.

    Labels are lists of names, a text with ``;`` between them (an empty list means none), or arrays
    of floats with a 0 or 1 for each class in order, as batches of tensors have them.

    Parameters
    ----------
    classes, n_classes, level
        As in `MulticlassTask`.
    class_weight
        Weight of the positive labels of each class: ``"balanced"`` (negatives over positives in
        the training set) or one number per class.

    Examples
    --------
    >>> task = MultilabelTask(classes=["membrane", "nucleus"])
    >>> task.numbers("nucleus;membrane").tolist(), task.numbers([]).tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """

    name = "multilabel"
    main_metric = "f1"
    labels_are = "classes"
    higher_is_better = frozenset({"accuracy", "f1", "f1_micro", "auroc", "auprc"})

    @staticmethod
    def _fewest() -> int:
        return 1

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Take names and frequencies of classes; without names, columns are called 0, 1, ..."""
        if self.classes is None and any(_is_row(t) for t in targets):
            self.classes = [str(i) for i in range(self._n)]
        super().fit_targets(targets)

    def _parts(self, label: Any) -> list[str]:
        if _is_row(label):
            return self._named(label)
        if isinstance(label, str):
            names = [part for p in label.split(self.separator) if (part := p.strip())]
        else:
            names = [text_of(name) for name in label]
        return list(dict.fromkeys(names))

    def _named(self, row: np.ndarray) -> list[str]:
        """Return the names of the classes that a row of zeros and ones holds."""
        if row.shape != (self._n,) or not np.isin(row, (0, 1)).all():
            raise DataError(
                f"A label as an array has a 0 or 1 for each of the {self._n} classes, got "
                f"{np.array2string(row, threshold=6)}."
            )
        return [name for name, there in zip(self._names(), row, strict=True) if there]

    def _weights(self, counts: Counter[str], n_labels: int) -> list[float] | None:
        if self._config["class_weight"] != "balanced":
            return super()._weights(counts, n_labels)
        names = self.classes or []
        # a class that every label has would get the weight 0 and never train
        return [max(n_labels - counts[c], 1) / counts[c] if counts[c] else 1.0 for c in names]

    def numbers(self, target: Any) -> np.ndarray:
        """Return 1 for each class of the label, 0 for others: (classes,) or (length, classes)."""
        if is_missing(target):
            return np.full(self._n, math.nan)
        if self.level == "sequence":
            return self._indicator(target)
        return np.stack([self._indicator(t) for t in target])

    def _indicator(self, target: Any) -> np.ndarray:
        if is_missing(target):
            return np.full(self._n, math.nan)
        row = np.zeros(self._n)
        row[[self._index(name) for name in self._parts(target)]] = 1
        return row

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the binary cross entropy, summed over classes and labels that are present."""
        logits = outputs["prediction"].float().reshape(-1, self._n)
        flat = targets.reshape(-1, self._n).to(logits)
        present = ~torch.isnan(flat)
        weight = None if self.weight is None else logits.new_tensor(self.weight).expand_as(flat)
        total = functional.binary_cross_entropy_with_logits(
            logits[present],
            flat[present],
            pos_weight=None if weight is None else weight[present],
            reduction="sum",
        )
        return LossSum(total, int(present.sum()))

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the probability of each class, float64, in the last dimension."""
        raw = outputs["prediction"].double()
        # heads leave out the last dimension of one output
        return torch.sigmoid(raw if self._n > 1 else raw.unsqueeze(-1))

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: classes of probability 0.5 or more; ``probs``, ``classes``."""
        names = self._names()

        def chosen(row: np.ndarray) -> list[str]:
            return [n for n, p in zip(names, row, strict=True) if p >= 0.5]

        of_residues = self.level == "residue"
        found = [[chosen(row) for row in p] if of_residues else chosen(p) for p in predictions]
        return {"prediction": found, **self._presented(predictions)}

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return share of right labels, F1 (mean over classes, over all labels), AUROC and AUPRC.

        Means are over the classes for which the metric is defined; NaN where it is for none, and
        where predictions are not finite.
        """
        present = np.isfinite(targets).all(-1)
        return label_scores(predictions[present], targets[present].astype(int))


def _is_row(label: Any) -> bool:
    """Return whether a label is a row of zeros and ones rather than names or numbers of classes."""
    return isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind == "f"

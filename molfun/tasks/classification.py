"""Classes: one of two, one of many, or any number at once."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from molfun.errors import ConfigError, DataError
from molfun.sample import is_missing
from molfun.tasks.base import Level, LossSum, Task, check_level
from molfun.text import listing, nearest

ClassWeight = str | Sequence[float]


class _Classification(Task):
    """What tasks with named classes share.

    Parameters
    ----------
    classes
        Names of the classes, in the order of the head's outputs; None takes them from the labels
        of the training set, sorted.
    n_classes
        Number of classes where the names are not given.
    level
        One label for each ``"sequence"`` (or structure), or for each ``"residue"``.
    class_weight
        Weight of each class in the loss: ``"balanced"`` (inversely proportional to its frequency
        in the training set, 1 on average), or one number a class.
    """

    separator: ClassVar[str] = ";"

    def __init__(
        self,
        *,
        classes: Sequence[Any] | None = None,
        n_classes: int | None = None,
        level: Level = "sequence",
        class_weight: ClassWeight | None = None,
    ) -> None:
        check_level(level)
        self.level = level
        self.classes: list[str] | None = None if classes is None else [text_of(c) for c in classes]
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes names one twice: {self.classes}.")
        if self.classes is None and n_classes is None:
            raise ConfigError(
                f"The task {self.name!r} needs its classes: pass task_config={{'classes': [...]}} "
                f"or {{'n_classes': N}}."
            )
        self._n = len(self.classes) if self.classes is not None else int(n_classes or 0)
        self._check_number(n_classes)
        if not isinstance(class_weight, str | None):
            class_weight = [float(w) for w in class_weight]
        self._config: dict[str, Any] = {
            "classes": self.classes,
            "n_classes": self._n,
            "level": level,
            "class_weight": class_weight,
        }
        self._check_weight(class_weight)
        self.weight: list[float] | None = None
        self.fitted = False

    @staticmethod
    def _fewest() -> int:
        return 2

    def _check_number(self, n_classes: int | None) -> None:
        fewest = self._fewest()
        if self.classes is not None and self._n < fewest:
            raise ConfigError(
                f"The task {self.name!r} needs at least {_classes(fewest)}, found "
                f"{', '.join(map(repr, self.classes)) or 'none'}. Check the labels of the training "
                f"set, or name all classes."
            )
        if n_classes not in (None, self._n) or self._n < fewest:
            raise ConfigError(
                f"n_classes={n_classes} does not fit: expected "
                f"{self._n if self.classes else f'at least {fewest}'}."
            )

    def _check_weight(self, weight: ClassWeight | None) -> None:
        if isinstance(weight, str):
            if weight != "balanced":
                raise ConfigError(f"class_weight must be 'balanced' or numbers, got {weight!r}.")
        elif weight is not None and (
            len(weight) != self._n or not all(0 < w < math.inf for w in weight)
        ):
            raise ConfigError(
                f"class_weight must hold {self._n} finite numbers above 0, one a class, got "
                f"{weight}."
            )

    @property
    def n_outputs(self) -> int:
        """One logit a class."""
        return self._n

    # --- labels --------------------------------------------------------------------------------

    def _parts(self, label: Any) -> list[str]:
        """Class names in the label of one sequence or residue."""
        raise NotImplementedError

    def _count(self, targets: Iterable[Any]) -> tuple[Counter[str], int]:
        """How often each class occurs, and the number of labels that are present."""
        labels = [t for t in targets if not is_missing(t)]
        if self.level == "residue":
            labels = [label for t in labels for label in t if not is_missing(label)]
        return Counter(name for label in labels for name in self._parts(label)), len(labels)

    @classmethod
    def classes_in(cls, targets: Iterable[Any], level: Level = "sequence") -> list[str]:
        """Names of the classes that occur in labels, numbers by value and then names.

        Parameters
        ----------
        targets
            Labels, for example ``dataset.targets``.
        level
            Whether each is one label or one for each residue.

        Examples
        --------
        >>> MulticlassTask.classes_in(["b", None, "a"]), MulticlassTask.classes_in([10, 2.0])
        (['a', 'b'], ['2', '10'])
        """
        probe = cls(n_classes=2, level=level)
        counts, _ = probe._count(targets)
        return sorted(filter(None, counts), key=natural)

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Take class names and frequencies from the labels, the first time only.

        Raises
        ------
        DataError
            If no label is present, one is blank, or there are classes the task does not know.
        """
        counts, n_labels = self._count(targets)
        if n_labels == 0:
            raise DataError("The training set has no labels. Fill the target column.")
        if "" in counts and "" not in (self.classes or ()):
            self._refuse_blank(targets)
        if self.classes is None:
            self._learn(counts)
        self._refuse_unknown(counts)
        if not self.fitted:
            self.weight = self._weights(counts, n_labels)
        self.fitted = True

    def _refuse_blank(self, targets: Sequence[Any]) -> None:
        rows = [i for i, target in enumerate(targets, start=1) if "" in self._count([target])[0]]
        raise DataError(
            f"{len(rows)} of {len(targets)} samples have a blank label, the first of them sample "
            f"{rows[0]}. Fill it in, or give None where there is no label."
        )

    def _learn(self, counts: Counter[str]) -> None:
        found = sorted(counts, key=natural)
        if len(found) > self._n:
            raise DataError(
                f"The labels have {len(found)} classes ({', '.join(found[:8])}"
                f"{', ...' if len(found) > 8 else ''}), the task {self._n}. Set "
                f"n_classes={len(found)}, or correct the labels."
            )
        # classes without a label in the training set keep a place, so the head stays as it is
        self.classes = found + [f"unseen_{i}" for i in range(self._n - len(found))]

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        known = self.classes or []
        unknown = [n for n in names if n not in known]
        if unknown:
            lines = [f"{name!r}{nearest(name, known)}" for name in unknown]
            raise DataError(
                f"{_classes(len(unknown), 'unknown ')} in the labels; known: "
                f"{', '.join(known[:20])}:\n{listing(lines)}"
            )

    def _weights(self, counts: Counter[str], n_labels: int) -> list[float] | None:
        del n_labels
        if self._config["class_weight"] != "balanced":
            given = self._config["class_weight"]
            return None if given is None else list(given)
        total, seen = sum(counts.values()), len([c for c in self.classes or () if counts[c]])
        return [total / (seen * counts[c]) if counts[c] else 1.0 for c in self.classes or ()]

    def _index(self, name: str) -> int:
        assert self.classes is not None, "fit_targets comes before labels are used"
        try:
            return self.classes.index(name)
        except ValueError:
            self._refuse_unknown([name])
            raise

    # --- state ---------------------------------------------------------------------------------

    @property
    def config_dict(self) -> dict[str, Any]:
        """Constructor arguments."""
        return dict(self._config)

    def state_dict(self) -> dict[str, Any]:
        """Class names and weights."""
        return {"classes": self.classes, "weight": self.weight, "fitted": self.fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.classes = None if state["classes"] is None else list(state["classes"])
        self.weight = None if state["weight"] is None else [float(w) for w in state["weight"]]
        self.fitted = bool(state["fitted"])


class MulticlassTask(_Classification):
    """One of several classes: softmax and cross entropy.

    Parameters
    ----------
    classes, n_classes, level, class_weight
        Names (or number) of the classes, what a label is for, and weights in the loss:
        ``"balanced"`` or one number a class.
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
        """Summed cross entropy over the labels that are present."""
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
        """Probabilities of the classes, float64, in the last dimension."""
        return torch.softmax(outputs["prediction"].double(), dim=-1)

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """``prediction``: class names, ``probs``: probabilities of the ``classes``.

        For sequences a list of names and an (samples, classes) tensor; for residues a text of
        one-letter classes (or a list of names) and a (length, classes) array a sample.
        """
        names = np.array(self.classes or [str(i) for i in range(self._n)], dtype=object)
        if self.level == "sequence":
            probs = np.stack(predictions) if len(predictions) else np.zeros((0, self._n))
            return {
                "prediction": list(names[probs.argmax(-1)]),
                "probs": torch.from_numpy(probs),
                "classes": names.tolist(),
            }
        found = [names[p.argmax(-1)].tolist() for p in predictions]
        letters = all(len(n) == 1 for n in names)
        return {
            "prediction": ["".join(f) for f in found] if letters else found,
            "probs": list(predictions),
            "classes": names.tolist(),
        }

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy (Q3 for three classes of residues), balanced accuracy, F1, MCC, AUROC and AUPRC.

        F1, AUROC and AUPRC are those of the second class where there are two, else the mean over
        the classes that occur. NaN where undefined: without labels, with one class only, or where
        predictions are not finite.
        """
        present = np.isfinite(targets)
        probs, truth = predictions[present], targets[present].astype(int)
        result = _class_scores(probs, truth)
        if self.level == "residue" and self._n == 3:
            result["q3"] = result["accuracy"]
        return result

    @staticmethod
    def _fewest() -> int:
        return 2


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


class MultilabelTask(_Classification):
    """Any number of classes at once: a sigmoid and binary cross entropy each.

    Labels are lists of names, a text with ``;`` between them (an empty list means none), or arrays
    of floats with a 0 or 1 for each class in order, as batches of tensors have them.

    Parameters
    ----------
    classes, n_classes, level
        As in `MulticlassTask`.
    class_weight
        Weight of the positive labels of each class: ``"balanced"`` (negatives over positives in
        the training set) or one number a class.

    Examples
    --------
    >>> task = MultilabelTask(classes=["membrane", "nucleus"])
    >>> task.numbers("nucleus;membrane").tolist(), task.numbers([]).tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """

    name = "multilabel"
    higher_is_better = frozenset({"accuracy", "f1", "f1_micro", "auroc", "auprc"})

    @staticmethod
    def _fewest() -> int:
        return 1

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """As for the others; columns of arrays are called 0, 1, ... where `classes` names none."""
        if self.classes is None and any(_is_row(t) for t in targets):
            self.classes = [str(i) for i in range(self._n)]
        super().fit_targets(targets)

    def _parts(self, label: Any) -> list[str]:
        if _is_row(label):
            if label.shape != (self._n,) or not np.isin(label, (0, 1)).all():
                raise DataError(
                    f"A label as an array has a 0 or 1 for each of the {self._n} classes, got "
                    f"{np.array2string(label, threshold=6)}."
                )
            names = self.classes or [str(i) for i in range(self._n)]
            return [name for name, there in zip(names, label, strict=True) if there]
        if isinstance(label, str):
            names = [part for p in label.split(self.separator) if (part := p.strip())]
        else:
            names = [text_of(name) for name in label]
        return list(dict.fromkeys(names))

    def _weights(self, counts: Counter[str], n_labels: int) -> list[float] | None:
        if self._config["class_weight"] != "balanced":
            return super()._weights(counts, n_labels)
        names = self.classes or []
        # a class that every label has would get the weight 0 and never train
        return [max(n_labels - counts[c], 1) / counts[c] if counts[c] else 1.0 for c in names]

    def numbers(self, target: Any) -> np.ndarray:
        """1 for each class that is there, 0 for the others: (classes,) or (length, classes)."""
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
        """Summed binary cross entropy over all classes of the labels that are present."""
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
        """Probability of each class, float64, in the last dimension."""
        raw = outputs["prediction"].double()
        # heads leave out the last dimension of one output
        return torch.sigmoid(raw if self._n > 1 else raw.unsqueeze(-1))

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """``prediction``: classes of at least one half, ``probs``: those of the ``classes``."""
        names = self.classes or [str(i) for i in range(self._n)]

        def chosen(row: np.ndarray) -> list[str]:
            return [n for n, p in zip(names, row, strict=True) if p >= 0.5]

        if self.level == "sequence":
            probs = np.stack(predictions) if len(predictions) else np.zeros((0, self._n))
            return {
                "prediction": [chosen(row) for row in probs],
                "probs": torch.from_numpy(probs),
                "classes": list(names),
            }
        return {
            "prediction": [[chosen(row) for row in p] for p in predictions],
            "probs": list(predictions),
            "classes": list(names),
        }

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Share of right labels, F1 (mean over classes, and over all labels), AUROC and AUPRC.

        Means are over the classes for which the metric is defined; NaN where it is for none, and
        where predictions are not finite.
        """
        from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

        present = np.isfinite(targets).all(-1)
        probs, truth = predictions[present], targets[present].astype(int)
        names = ("accuracy", "f1", "f1_micro", "auroc", "auprc")
        if truth.size == 0 or not np.isfinite(probs).all():
            return dict.fromkeys(names, math.nan)
        hard = (probs >= 0.5).astype(int)
        both = [c for c in range(self._n) if len(np.unique(truth[:, c])) == 2]
        some = [c for c in range(self._n) if truth[:, c].any() or hard[:, c].any()]
        return {
            "accuracy": float((hard == truth).mean()),
            "f1": _mean(float(f1_score(truth[:, c], hard[:, c])) for c in some),
            "f1_micro": float(f1_score(truth.ravel(), hard.ravel())) if some else math.nan,
            "auroc": _mean(float(roc_auc_score(truth[:, c], probs[:, c])) for c in both),
            "auprc": _mean(float(average_precision_score(truth[:, c], probs[:, c])) for c in both),
        }


# --- helpers -------------------------------------------------------------------------------------


def _is_row(label: Any) -> bool:
    """Whether a label is a row of zeros and ones rather than names or numbers of classes."""
    return isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind == "f"


def text_of(label: Any) -> str:
    """Name of a class, however its label was written.

    Examples
    --------
    >>> text_of(1), text_of(1.0), text_of(True), text_of(" H ")
    ('1', '1', '1', 'H')
    """
    if isinstance(label, bool | np.bool_):
        return str(int(label))
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label).strip()


def natural(text: str) -> tuple[int, float, str]:
    """Sorting key: finite numbers by value, then names.

    Examples
    --------
    >>> sorted(["10", "2", "b", "a"], key=natural)
    ['2', '10', 'a', 'b']
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    return (0, value, text) if math.isfinite(value) else (1, 0.0, text)


def _classes(n: int, kind: str = "") -> str:
    return f"{n} {kind}class" if n == 1 else f"{n} {kind}classes"


def _class_scores(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    names = ("accuracy", "balanced_accuracy", "f1", "mcc", "auroc", "auprc")
    if truth.size == 0 or not np.isfinite(probs).all():
        return dict.fromkeys(names, math.nan)
    hard = probs.argmax(-1)
    present = np.unique(truth)
    several = len(present) > 1
    recalls = [float((hard[truth == c] == c).mean()) for c in present]
    binary = probs.shape[-1] == 2
    chosen = [1] if binary else list(present)
    ranked: dict[str, Callable[..., Any]] = {
        "auroc": metrics.roc_auc_score,
        "auprc": metrics.average_precision_score,
    }
    with warnings.catch_warnings():
        # F1 of a class nobody predicts is 0, which sklearn warns about
        warnings.simplefilter("ignore")
        f1 = metrics.f1_score(truth, hard, labels=chosen, average="macro")
        mcc = metrics.matthews_corrcoef(truth, hard)
    return {
        "accuracy": float((hard == truth).mean()),
        "balanced_accuracy": float(np.mean(recalls)) if several else math.nan,
        "f1": float(f1) if several else math.nan,
        # 0 / 0 where all predictions are alike
        "mcc": float(mcc) if several and len(np.unique(hard)) > 1 else math.nan,
        **{
            name: _mean(float(score(truth == c, probs[:, c])) for c in chosen)
            if several
            else math.nan
            for name, score in ranked.items()
        },
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan

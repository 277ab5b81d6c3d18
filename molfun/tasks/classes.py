"""Named classes: how labels name them, how often each occurs, and what each weighs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from molfun.errors import ConfigError, DataError
from molfun.sample import is_missing
from molfun.strict import Configured
from molfun.tasks.base import Level, Task, check_level
from molfun.text import listing, nearest

ClassWeight = str | Sequence[float]


class Classification(Configured, Task):
    """Base of tasks with named classes.

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
        in the training set, 1 on average), or one number per class.
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
        self._n = self._count_classes(n_classes)
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

    def _count_classes(self, n_classes: int | None) -> int:
        """Number of classes, as they are named or counted."""
        if self.classes is None and n_classes is None:
            raise ConfigError(
                f"The task {self.name!r} needs its classes: pass task_config={{'classes': [...]}} "
                f"or {{'n_classes': N}}."
            )
        fewest = self._fewest()
        if self.classes is None:
            n, expected = int(n_classes or 0), f"at least {fewest}"
        else:
            self._check_names(fewest)
            n, expected = len(self.classes), str(len(self.classes))
        if n_classes not in (None, n) or n < fewest:
            raise ConfigError(f"n_classes={n_classes} does not fit: expected {expected}.")
        return n

    def _check_names(self, fewest: int) -> None:
        names = self.classes or []
        if len(set(names)) < len(names):
            raise ConfigError(f"classes names one twice: {names}.")
        if len(names) < fewest:
            raise ConfigError(
                f"The task {self.name!r} needs at least {_classes(fewest)}, found "
                f"{', '.join(map(repr, names)) or 'none'}. Check the labels of the training "
                f"set, or name all classes."
            )

    def _check_weight(self, weight: ClassWeight | None) -> None:
        if isinstance(weight, str):
            if weight != "balanced":
                raise ConfigError(f"class_weight must be 'balanced' or numbers, got {weight!r}.")
        elif weight is not None and (
            len(weight) != self._n or not all(0 < w < math.inf for w in weight)
        ):
            raise ConfigError(
                f"class_weight must hold {self._n} finite numbers above 0, one per class, got "
                f"{weight}."
            )

    @property
    def n_outputs(self) -> int:
        """One logit per class."""
        return self._n

    # --- labels --------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        """Names of the classes, which are numbers until labels were seen."""
        return list(self.classes or map(str, range(self._n)))

    def _presented(self, probs: Sequence[np.ndarray]) -> dict[str, Any]:
        """``probs``, a tensor for one row per sample, and the ``classes`` they are of."""
        if self.level == "residue":
            return {"probs": list(probs), "classes": self._names()}
        rows = np.stack(probs) if len(probs) else np.zeros((0, self._n))
        return {"probs": torch.from_numpy(rows), "classes": self._names()}

    def _parts(self, label: Any) -> list[str]:
        """Return the class names in the label of one sequence or residue."""
        raise NotImplementedError

    def _count(self, targets: Iterable[Any]) -> tuple[Counter[str], int]:
        """Count each class, and the labels that are present."""
        labels = [t for t in targets if not is_missing(t)]
        if self.level == "residue":
            labels = [label for t in labels for label in t if not is_missing(label)]
        return Counter(name for label in labels for name in self._parts(label)), len(labels)

    @classmethod
    def classes_in(cls, targets: Iterable[Any], level: Level = "sequence") -> list[str]:
        """Return the names of the classes that occur in labels, numbers by value and then names.

        Parameters
        ----------
        targets
            Labels, for example ``dataset.targets``.
        level
            Whether each is one label or one for each residue.

        Examples
        --------
        >>> from molfun.tasks import MulticlassTask
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

    def state_dict(self) -> dict[str, Any]:
        """Return the class names and weights."""
        return {"classes": self.classes, "weight": self.weight, "fitted": self.fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.classes = None if state["classes"] is None else list(state["classes"])
        self.weight = None if state["weight"] is None else [float(w) for w in state["weight"]]
        self.fitted = bool(state["fitted"])


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
    """Return a sorting key: finite numbers by value, then names.

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

"""The base of baselines, labelled samples, and the loop over all baselines that apply."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from molfun.errors import DataError
from molfun.evaluation.baselines import estimators
from molfun.nn.substitutions import SubstitutionTable
from molfun.registry import BASELINES
from molfun.sample import Sample
from molfun.strict import must_set
from molfun.tasks.base import Task

logger = logging.getLogger(__name__)

MOST_ROWS = 5000
"""Training rows that baselines learn from, drawn at random, so that they take seconds.

A ridge on one-hot columns of 5,000 sequences takes 2 s on two cores, and 100 s of 20,000.
"""


class Indexed(Protocol):
    """Samples by index: a list or a data set."""

    def __getitem__(self, index: int, /) -> Sample:
        """Return a sample."""


class Embedder(Protocol):
    """Representations of samples by weights that no label has changed."""

    def key_of(self, samples: Iterable[Sample]) -> str:
        """Return a digest of the weights, and of all that they read of samples."""

    def __call__(self, samples: Sequence[Sample], /) -> np.ndarray | None:
        """Return (samples, channels) in float64; None where there are none."""


@dataclass(frozen=True)
class Labelled:
    """Samples that have a label.

    Parameters
    ----------
    samples
        The samples.
    labels
        Result of `Task.numbers` for each.
    scores
        Zero-shot score of each, where they are variants of a protein and the model predicts
        residues.
    embedder
        What gives their representations by the base weights, where a model is at hand. It runs only
        for a baseline that asks for it.
    """

    samples: Sequence[Sample]
    labels: Sequence[np.ndarray]
    scores: np.ndarray | None = None
    embedder: Embedder | None = None

    @classmethod
    def of(cls, samples: Indexed, labels: Sequence[np.ndarray], *, most: int | None = None) -> Self:
        """Keep the samples with a label, and at most `most` of them, drawn at random.

        Parameters
        ----------
        samples
            Samples with or without labels; only those that are kept are read.
        labels
            Result of `Task.numbers` for each.
        most
            Largest number; None keeps all.
        """
        known = np.flatnonzero([np.isfinite(label).any() for label in labels])
        if most is not None and len(known) > most:
            # the same rows for equal data, in their order
            known = np.sort(np.random.default_rng(0).permutation(known)[:most])
        kept: list[int] = known.tolist()
        return cls([samples[i] for i in kept], [labels[i] for i in kept])

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, places: Sequence[int], *, most: int | None = None) -> Self:
        """Return the samples at some places, at most `most` of them as `of` draws them."""
        return self.of(
            [self.samples[i] for i in places], [self.labels[i] for i in places], most=most
        )

    def scored(self, table: SubstitutionTable | None) -> Self:
        """Return the same samples with their zero-shot scores; without where any has none."""
        texts = [sample.sequence for sample in self.samples if sample.sequence is not None]
        if table is None or len(texts) < len(self):
            return self
        try:
            return replace(self, scores=table.scores(texts))
        except DataError as error:
            logger.debug("No baseline of zero-shot scores: %s", error)
            return self

    def sequences(self) -> list[str] | None:
        """Return the sequence of each sample in upper case, or None if one has none."""
        texts = [sequence_of(sample) for sample in self.samples]
        return None if any(text is None for text in texts) else [t for t in texts if t is not None]


def sequence_of(sample: Sample) -> str | None:
    """Return the sequence of a sample, of all its chains; None if it has none."""
    if sample.protein is not None:
        return sample.protein.full_sequence.upper() or None
    return "".join(sample.chains).upper() if sample.sequence is not None else None


class Baseline(ABC):
    """A simple model to compare with."""

    name: ClassVar[str]
    title: ClassVar[str]
    """Words of a verdict; of a `FeatureBaseline` those after "ridge on"."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "baseline", {"name": "Registered name.", "title": "Words of a verdict."})

    def described(self, task: Task) -> str:  # noqa: ARG002
        """Return the words of a verdict: "ridge on one-hot"."""
        return self.title

    @abstractmethod
    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Learn from the training rows, and predict the other parts.

        Parameters
        ----------
        train
            Rows to learn from.
        others
            Parts to predict.
        task
            Task of the labels.

        Returns
        -------
        list or None
            For each part one array per sample, as `Task.predictions` gives them; None if the
            baseline does not apply to such samples or labels.
        """


Predictions = list[list[np.ndarray]] | None


class FeatureBaseline(Baseline):
    """A linear model of a row of features per sample, for labels of whole samples."""

    def described(self, task: Task) -> str:
        """Return the kind of linear model and its features."""
        kind = "ridge" if task.labels_are == "numbers" else "logistic regression"
        return f"{kind} on {self.title}"

    @abstractmethod
    def features(self, parts: Sequence[Labelled]) -> list[Any] | None:
        """Return one (samples, features) matrix per part, or None if these samples have none."""

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Fit a ridge to numbers, and a logistic regression to classes."""
        model = estimators.linear_model(task) if task.level == "sequence" else None
        found = None if model is None else self.features([train, *others])
        if model is None or found is None:
            return None
        return model(found[0], np.stack(train.labels), found[1:])


def predictions_of(
    train: Labelled,
    others: Sequence[Labelled],
    task: Task,
    *,
    names: Iterable[str] | None = None,
) -> dict[str, list[list[np.ndarray]]]:
    """Return the predictions of all baselines that apply, by name.

    A baseline that fails is named in a warning and left out: the model was trained for hours, and
    its results are still wanted.

    Parameters
    ----------
    train
        Rows to learn from.
    others
        Parts to predict.
    task
        Task of the labels.
    names
        Baselines to fit; None fits all.
    """
    found = {}
    for cls in BASELINES.classes() if names is None else map(BASELINES.__getitem__, names):
        try:
            predicted = cls().predict(train, others, task) if len(train) else None
        except Exception as error:  # also of baselines of other packages
            logger.warning("The baseline %r failed and is left out: %s", cls.name, error)
            logger.debug("Baseline %r", cls.name, exc_info=True)
            continue
        if predicted is not None:
            found[cls.name] = predicted
    return found

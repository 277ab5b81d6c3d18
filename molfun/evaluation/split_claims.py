"""The same simple models under a random split and under one by position, of one table of variants.

A random split of variants of one protein flatters: each test variant has relatives in training that
differ at the same position. What is left of a score at positions that were never varied says how
much of it was such filling in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from molfun.data.sequences import SequenceDataset
from molfun.data.splits import DataSplitter
from molfun.data.variant_splits import VariantSplitter
from molfun.errors import MolfunError
from molfun.evaluation.baselines import Labelled, predictions_of
from molfun.evaluation.bootstrap import FEW_DRAWS, Estimate, estimates
from molfun.evaluation.results import SplitResult, SplitScore
from molfun.registry import BASELINES
from molfun.tasks.base import Task
from molfun.text import first_line

COMPARED = ("one_hot", "composition", "zero_shot", "one_hot_zero_shot")
"""Baselines that are compared, where they apply."""
TEST = 0.2
"""Share of the variants that tests."""
SEED = 42


def split_results(
    variants: Labelled, wild_type: str, task: Task, metric: str, *, draws: int = FEW_DRAWS
) -> dict[str, SplitResult]:
    """Return how well simple models do under each split, by its name: ``random``, ``position``.

    Parameters
    ----------
    variants
        All variants of a table that have a label, with their zero-shot scores where known.
    wild_type
        Letters of the protein.
    task
        Task of the labels.
    metric
        Metric of the task.
    draws
        Bootstrap draws of the intervals.

    Examples
    --------
    >>> from molfun.sample import Sample
    >>> from molfun.tasks import RegressionTask
    >>> texts = ["ACDE"[:i] + a + "ACDE"[i + 1 :] for i in range(4) for a in "FGHIK"]
    >>> samples = [Sample(id=text, sequence=text) for text in texts]
    >>> labels = [np.array(float(i)) for i in range(20)]
    >>> task = RegressionTask()
    >>> found = split_results(Labelled(samples, labels), "ACDE", task, "spearman", draws=10)
    >>> found["random"].n_test, found["position"].n_test
    (4, 5)
    """
    texts = variants.sequences()
    if texts is None:
        return {}
    # the same splits of the same variants, in whatever order a run has them
    order = sorted(range(len(texts)), key=texts.__getitem__)
    table = SequenceDataset.from_list([texts[i] for i in order])
    ways: dict[str, Callable[[], Sequence[Any]]] = {
        "random": lambda: DataSplitter.random(table, val_frac=0.0, test_frac=TEST, seed=SEED),
        "position": lambda: VariantSplitter.position(
            table, wild_type=wild_type, val_frac=0.0, test_frac=TEST, seed=SEED
        ),
    }
    place = dict(zip(table.ids, order, strict=True))
    found = {}
    for name, way in ways.items():
        try:
            train, _, test = way()
        except MolfunError as error:  # mutations everywhere at once leave no position for training
            found[name] = SplitResult(0, 0, problem=first_line(error))
            continue
        if not len(test):  # of two positions that are mutated together none is kept
            problem = "there are too few positions to keep one for testing"
            found[name] = SplitResult(len(train), 0, problem=problem)
            continue
        parts = [_part(variants, [place[i] for i in part.ids]) for part in (train, test)]
        found[name] = _result(parts[0], parts[1], task, metric, draws)
    return found


def _part(variants: Labelled, places: Sequence[int]) -> Labelled:
    scores = None if variants.scores is None else variants.scores[list(places)]
    samples, labels = variants.samples, variants.labels
    return Labelled([samples[i] for i in places], [labels[i] for i in places], scores)


def _result(train: Labelled, test: Labelled, task: Task, metric: str, draws: int) -> SplitResult:
    scores = {
        name: SplitScore(
            BASELINES[name]().described(task),
            _estimate(task, metric, predicted, test.labels, draws),
        )
        for name, (predicted,) in predictions_of(train, [test], task, names=COMPARED).items()
    }
    return SplitResult(len(train), len(test), scores)


def _estimate(
    task: Task,
    metric: str,
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    draws: int,
) -> Estimate:
    ours, truth = task.join(predictions), task.join(labels)
    # sums of the same numbers differ in the last bits, which is no order of the variants
    if ours.dtype.kind == "f" and np.ptp(ours, axis=0).max() <= 1e-9 * np.abs(ours).max():
        ours = np.broadcast_to(ours[:1], ours.shape)

    def value(drawn: np.ndarray) -> np.ndarray:
        return np.array([task.metric(metric, ours[drawn], truth[drawn])])

    if not np.isfinite(value(np.arange(len(truth)))[0]):
        return Estimate(float("nan"))
    return estimates(value, len(truth), draws=draws)[0]

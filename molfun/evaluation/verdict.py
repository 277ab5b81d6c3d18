"""The verdict on a model in one sentence, and the comparison behind it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from molfun._shapes import Bool
from molfun.evaluation.bootstrap import (
    FEW_DRAWS,
    MANY_LABELS,
    Estimate,
    drawer,
    estimates,
    metric_estimates,
)
from molfun.evaluation.results import (
    BaselineResult,
    GroupResult,
    HeadVerdict,
    Outcome,
    PartResult,
)
from molfun.evaluation.threshold import Threshold, chosen
from molfun.registry import BASELINES
from molfun.tasks.base import Task
from molfun.tasks.titles import title_of
from molfun.text import counted, three_digits

FEWEST = 20
"""Samples below which nothing can be concluded: correlations of 20 have intervals 0.8 wide."""
FEWEST_OF_CLASS = 10
"""Samples outside the most frequent class below which nothing can be concluded.

The interval of an AUROC of 0.75 from 10 of 100 is 0.36 wide (Hanley and McNeil 1982).
"""

OUT_OF_FOLD = "out_of_fold"
"""Part of all samples of a cross-validation, each predicted by a model that never saw it."""
PARTS = {"test": "test row", OUT_OF_FOLD: "out-of-fold row", "val": "validation row"}
"""Words for the rows of a part; the verdict speaks of the first that there is."""


@dataclass(frozen=True)
class Predicted:
    """Predictions of a model for a part, and those of the baselines; only samples with labels.

    Parameters
    ----------
    predictions, targets
        One array per sample.
    baselines
        Predictions of each baseline by name.
    groups
        A cluster, patient or family per sample, which is drawn whole; None draws samples.
    columns
        Columns by whose values metrics are reported, with one value per sample.
    """

    predictions: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    baselines: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    groups: Sequence[Hashable] | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def judge(
    task: Task,
    parts: Mapping[str, Predicted],
    *,
    random_weights: bool = False,
    draws: int = 1000,
    of: str = "",
    rows: str = "",
) -> HeadVerdict:
    """Compare a model with the baselines on each part, and say how it went.

    The verdict speaks of the test part or of the out-of-fold predictions; without them, of the
    validation part.

    Parameters
    ----------
    task
        Task that computes the metrics.
    parts
        Predictions by part, those of `PARTS`; at least one.
    random_weights
        Whether the backbone started from random weights where pretrained ones are usual.
    draws
        Bootstrap draws.
    of
        Words after the number of rows, such as those for its folds.
    rows
        Word for one row; by default that of the part: "test row".
    """
    part = next(name for name in PARTS if name in parts)
    metric = main_metric(task, parts[part])
    found = {name: _part(task, metric, one, draws) for name, one in parts.items()}
    best = best_baseline(found[part], metric, higher=metric in task.higher_is_better)
    few = too_few(task, parts[part])
    outcome: Outcome = "too few" if few else _outcome(best)
    sentence = f"{title_of(metric, sentence=True)} {_shown(found[part].metrics[metric])} on "
    sentence += counted(found[part].n, rows or PARTS[part]) + of + _not_finite(task, parts[part])
    if part == "val":
        sentence += ", which also chose the epoch"
    if random_weights:
        sentence += " (random backbone weights)"
    if best is not None:
        sentence += f"; {best.title} {three_digits(best.metrics[metric].value)}"
    return HeadVerdict(
        verdict=f"{sentence}: {few or _words(outcome, best)}.",
        outcome=outcome,
        metric=metric,
        higher_is_better=metric in task.higher_is_better,
        part=part,
        random_weights=random_weights,
        parts=found,
        threshold=_threshold(task, parts),
    )


def _threshold(task: Task, parts: Mapping[str, Predicted]) -> Threshold | None:
    if not {"val", "test"} <= set(parts):
        return None
    val, test = ((parts[name].predictions, parts[name].targets) for name in ("val", "test"))
    return chosen(task, val, test)


def _shown(estimate: Estimate) -> str:
    value = three_digits(estimate.value)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{three_digits(estimate.low)}, {three_digits(estimate.high)}]"


def _not_finite(task: Task, part: Predicted) -> str:
    """Return how many labelled samples have a prediction that is NaN or infinite, in words."""
    pairs = zip(part.predictions, part.targets, strict=True)
    n = sum(not task.is_finite(prediction, target) for prediction, target in pairs)
    return f" ({counted(n, 'prediction')} {'is' if n == 1 else 'are'} not finite)" if n else ""


def too_few(task: Task, part: Predicted) -> str:
    """Return why nothing can be concluded from a part; empty if something can.

    Samples of a group are not independent, so groups are counted where they are known.
    """
    what = "sample" if part.groups is None else "independent group"
    groups = range(len(part.targets)) if part.groups is None else part.groups
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    n = len(places)
    if n < FEWEST:
        return f"nothing can be concluded from {counted(n, what)}"
    if task.labels_are not in ("class", "classes"):
        return ""
    why = _too_rare(task, _held(task, part.targets, [places[group] for group in groups], n), what)
    return why and f"nothing can be concluded, since {why}"


def _too_rare(task: Task, held: Bool[np.ndarray, "n columns values"], what: str) -> str:
    """Return which class is too rare, of labels that `n` samples or groups have."""
    # groups that hold another value than this one: of two classes, those of the rarer one
    others = (held.sum(2, keepdims=True) > held).sum(0)
    fewest = int(others.min(1).max())
    if fewest >= FEWEST_OF_CLASS:
        return ""
    if task.labels_are == "classes":
        return f"no class has {FEWEST_OF_CLASS} {what}s with it and as many without"
    name = (getattr(task, "classes", None) or range(task.n_outputs))[int(others[0].argmin())]
    verb = "has" if fewest == 1 else "have"
    return f"only {fewest} of {counted(len(held), what)} {verb} another class than {name!r}"


def _held(
    task: Task, targets: Sequence[np.ndarray], places: Sequence[int], n: int
) -> Bool[np.ndarray, "n columns values"]:
    """Return which labels each of `n` groups has: one column of classes, or 0 and 1 per class."""
    columns, values = (1, task.n_outputs) if task.labels_are == "class" else (task.n_outputs, 2)
    held = np.zeros((n, columns, values), bool)
    for place, target in zip(places, targets, strict=True):
        rows = target.reshape(-1, columns)
        known = np.isfinite(rows)
        held[place, np.nonzero(known)[1], rows[known].astype(int)] = True
    return held


def _words(outcome: Outcome, best: BaselineResult | None) -> str:
    if best is None:
        return "no baseline to compare with"
    if outcome == "no baseline":
        return "undefined for the model, so that nothing is compared"
    gain = best.difference
    by = f"{three_digits(gain.value)} [{three_digits(gain.low)}, {three_digits(gain.high)}]"
    if outcome == "worse":
        return f"not better than the baseline, and worse by {three_digits(-gain.value)}"
    return f"{outcome} than the baseline" + (f" (by {by})" if outcome == "better" else "")


def _outcome(best: BaselineResult | None) -> Outcome:
    if best is None or math.isnan(best.difference.value):
        return "no baseline"
    if best.difference.low > 0:
        return "better"
    return "worse" if best.difference.high < 0 else "not better"


def main_metric(task: Task, part: Predicted) -> str:
    """Return the metric of the verdict: the task's main one, if model and a baseline have it."""
    names = dict.fromkeys([name for name in (task.main_metric,) if name] + task.metric_names)
    truth = task.join(part.targets)

    def defined(name: str, predictions: Sequence[np.ndarray]) -> bool:
        return math.isfinite(task.metric(name, task.join(predictions), truth))

    usable = [name for name in names if defined(name, part.predictions)]
    for name in usable:
        if any(defined(name, predicted) for predicted in part.baselines.values()):
            return name
    return next(iter(usable), next(iter(names)))


def best_baseline(part: PartResult, metric: str, *, higher: bool) -> BaselineResult | None:
    """Return the baseline with the best value of a metric; None if none has one."""
    known = [b for b in part.baselines.values() if math.isfinite(b.metrics[metric].value)]
    pick = max if higher else min
    return pick(known, key=lambda b: b.metrics[metric].value) if known else None


def _part(task: Task, metric: str, part: Predicted, draws: int) -> PartResult:
    n_labels = sum(int(np.isfinite(t).sum()) for t in part.targets)
    if too_few(task, part):
        draws = 0  # intervals of so few would look like knowledge
    # of whole samples a draw takes milliseconds whatever their number, of their residues not
    many = n_labels > MANY_LABELS and task.level != "sequence"
    draws = min(draws, FEW_DRAWS) if many else draws
    metrics = _all_metrics(task, part, 0 if many else draws)
    names = list(part.baselines)
    compared = _paired(task, metric, part, names, draws) if names else []
    if compared:
        metrics[metric] = compared[0]
    baselines = {
        name: BaselineResult(
            BASELINES[name]().described(task),
            {
                **_all_metrics(task, replace(part, predictions=part.baselines[name]), 0),
                metric: compared[1 + 2 * i],
            },
            compared[2 + 2 * i],
        )
        for i, name in enumerate(names)
    }
    groups = {
        column: _by_value(task, part, values, draws) for column, values in part.columns.items()
    }
    return PartResult(len(part.targets), n_labels, metrics, baselines, groups)


def _all_metrics(task: Task, part: Predicted, draws: int) -> dict[str, Estimate]:
    """Return all metrics, with intervals if there are draws."""
    if draws:
        return metric_estimates(
            task,
            part.predictions,
            part.targets,
            draws=min(draws, FEW_DRAWS),
            groups=part.groups,
            corrected=False,
        )
    found = task.metrics(task.join(part.predictions), task.join(part.targets))
    return {name: Estimate(value) for name, value in found.items()}


def _paired(
    task: Task, metric: str, part: Predicted, names: Sequence[str], draws: int
) -> list[Estimate]:
    """Return the model's metric, then each baseline's and the model's gain over it, same draws."""
    sign = 1 if metric in task.higher_is_better else -1
    everyone = [part.predictions, *(part.baselines[name] for name in names)]
    labels, *columns = (drawer(task, values) for values in (part.targets, *everyone))

    def values(drawn: np.ndarray) -> np.ndarray:
        truth = labels(drawn)
        model, *others = (task.metric(metric, column(drawn), truth) for column in columns)
        return np.array([model, *(v for other in others for v in (other, sign * (model - other)))])

    if not draws:
        return [Estimate(float(value)) for value in values(np.arange(len(part.targets)))]
    # the correction needs one more value per sample, and each of 1,000 proteins takes 50 ms
    exact = draws > FEW_DRAWS
    return estimates(values, len(part.targets), groups=part.groups, draws=draws, corrected=exact)


def _by_value(
    task: Task, part: Predicted, values: Sequence[str], draws: int
) -> dict[str, GroupResult]:
    found = {}
    for value in dict.fromkeys(values):
        own = _chosen(part, [i for i, v in enumerate(values) if v == value])
        enough = not too_few(task, own)
        found[value] = GroupResult(
            len(own.targets), _all_metrics(task, own, draws if enough else 0)
        )
    return found


def _chosen(part: Predicted, places: Sequence[int]) -> Predicted:
    """Return the model's predictions for some samples."""
    return Predicted(
        [part.predictions[i] for i in places],
        [part.targets[i] for i in places],
        groups=None if part.groups is None else [part.groups[i] for i in places],
    )

"""The verdict on a model in one sentence, and the comparison behind it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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
from molfun.text import counted, three_digits

FEWEST = 20
"""Samples below which nothing can be concluded: correlations of 20 have intervals 0.8 wide."""

OUT_OF_FOLD = "out_of_fold"
"""Part of all samples of a cross-validation, each predicted by a model that never saw it."""
PARTS = {"test": "test row", OUT_OF_FOLD: "out-of-fold row", "val": "validation row"}
"""Words for the rows of a part; the verdict speaks of the first that there is."""
TITLES = {
    "rmse": "RMSE", "mae": "MAE", "r2": "R2", "mcc": "MCC", "auroc": "AUROC", "auprc": "AUPRC",
    "f1": "F1", "q3": "Q3", "energy_mae": "Energy MAE (meV/atom)", "precision_at_n": "precision@L",
}  # fmt: skip


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
    """
    part = next(name for name in PARTS if name in parts)
    metric = main_metric(task, parts[part])
    found = {name: _part(task, metric, one, draws) for name, one in parts.items()}
    groups = parts[part].groups
    n = found[part].n if groups is None else len(set(groups))
    best = best_baseline(found[part], metric, higher=metric in task.higher_is_better)
    outcome = _outcome(n, best)
    sentence = f"{titled(metric)} {_shown(found[part].metrics[metric])} on "
    sentence += counted(found[part].n, PARTS[part]) + of
    if part == "val":
        sentence += ", which also chose the epoch"
    if random_weights:
        sentence += " (random backbone weights)"
    if best is not None:
        sentence += f"; {best.title} {three_digits(best.metrics[metric].value)}"
    return HeadVerdict(
        verdict=f"{sentence}: {_words(outcome, n, groups, best)}.",
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


def titled(metric: str) -> str:
    """Return the name of a metric in a sentence.

    Examples
    --------
    >>> titled("rmse"), titled("balanced_accuracy")
    ('RMSE', 'Balanced accuracy')
    """
    return TITLES.get(metric, metric.replace("_", " ").capitalize())


def _shown(estimate: Estimate) -> str:
    value = three_digits(estimate.value)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{three_digits(estimate.low)}, {three_digits(estimate.high)}]"


def _words(
    outcome: Outcome,
    n: int,
    groups: Sequence[Hashable] | None,
    best: BaselineResult | None,
) -> str:
    if outcome == "too few":
        what = "sample" if groups is None else "independent group"
        return f"nothing can be concluded from {counted(n, what)}"
    if best is None:
        return "no baseline to compare with"
    gain = best.difference
    by = f"{three_digits(gain.value)} [{three_digits(gain.low)}, {three_digits(gain.high)}]"
    if outcome == "worse":
        return f"not better than the baseline, and worse by {three_digits(-gain.value)}"
    return f"{outcome} than the baseline" + (f" (by {by})" if outcome == "better" else "")


def _outcome(n: int, best: BaselineResult | None) -> Outcome:
    if n < FEWEST:
        return "too few"
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
    if len(part.targets) < FEWEST:
        draws = 0  # intervals of so few would look like knowledge
    many = n_labels > MANY_LABELS
    draws = min(draws, FEW_DRAWS) if many and task.level != "sequence" else draws
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
    """Return all metrics, with intervals if there are draws and enough samples."""
    if draws and len(part.targets) >= FEWEST:
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
        chosen = [i for i, v in enumerate(values) if v == value]
        own = Predicted([part.predictions[i] for i in chosen], [part.targets[i] for i in chosen])
        found[value] = GroupResult(len(chosen), _all_metrics(task, own, draws))
    return found

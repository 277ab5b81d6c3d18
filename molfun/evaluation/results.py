"""Results of a run as plain values, and the file ``evaluation.json`` that keeps them.

::

    {"format": 1, "verdict": "...", "outcome": "not better", "metric": "spearman",
     "higher_is_better": true, "part": "test", "random_weights": false,
     "parts": {"test": {
       "n": 299, "n_labels": 299,
       "metrics": {"spearman": {"value": 0.59, "low": 0.52, "high": 0.65}, ...},
       "baselines": {"one_hot": {"title": "...", "metrics": {...}, "difference": {...}}},
       "groups": {"assay": {"A": {"n": 30, "metrics": {...}}}}}}}

Variants of one protein also have ``"splits": {"random": {"n_train": 80, "n_test": 20, "scores":
{"one_hot": {"title": "...", "value": {...}}}}, "position": ...}``: the same simple models under two
splits of the whole table. Undefined values are null. A head of two classes has a ``threshold`` as
well. ``difference`` is how much better the model is than the baseline in the metric of the verdict;
below 0 it is worse. With several heads, ``heads`` holds one object per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from molfun._io import write_json
from molfun.evaluation.bootstrap import Estimate
from molfun.evaluation.threshold import Threshold

FORMAT = 1

Outcome = Literal["better", "not better", "worse", "too few", "no baseline"]


@dataclass(frozen=True)
class BaselineResult:
    """Metrics of a baseline, and how much better the model is in the main metric."""

    title: str
    metrics: dict[str, Estimate]
    difference: Estimate


@dataclass(frozen=True)
class GroupResult:
    """Metrics of the samples with one value in a column."""

    n: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class PartResult:
    """Results on one part: validation, test, or the out-of-fold predictions."""

    n: int
    n_labels: int
    metrics: dict[str, Estimate]
    baselines: dict[str, BaselineResult] = field(default_factory=dict)
    groups: dict[str, dict[str, GroupResult]] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitScore:
    """Main metric of a baseline on the test part of a split."""

    title: str
    value: Estimate


@dataclass(frozen=True)
class SplitResult:
    """Baselines under one split of a whole table; `problem` says why it could not be made."""

    n_train: int
    n_test: int
    scores: dict[str, SplitScore] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class HeadVerdict:
    """Results of one head and the verdict on it.

    Parameters
    ----------
    verdict
        One sentence.
    outcome
        The same as a word.
    metric, higher_is_better
        Main metric, and its direction.
    part
        Part the verdict speaks of: ``"test"``, or ``"val"`` without one; ``"out_of_fold"`` of a
        cross-validation.
    random_weights
        Whether the backbone started from random weights where pretrained ones are usual.
    parts
        Results by part.
    threshold
        Threshold of two classes, chosen on the validation part, and its metrics on the test part.
    splits
        Baselines under a random split and under one by position, of variants of one protein.
    """

    verdict: str
    outcome: Outcome
    metric: str
    higher_is_better: bool
    part: str
    random_weights: bool
    parts: dict[str, PartResult]
    threshold: Threshold | None = None
    splits: dict[str, SplitResult] = field(default_factory=dict)


def write(path: Path, heads: Mapping[str, HeadVerdict]) -> None:
    """Write ``evaluation.json``; a single head has the name ``""``."""
    found = {name: asdict(head) for name, head in heads.items()}
    if list(found) == [""]:
        content = {"format": FORMAT, **found[""]}
    else:
        verdicts = [f"{name}: {head.verdict}" for name, head in heads.items()]
        content = {"format": FORMAT, "verdict": "\n".join(verdicts), "heads": found}
    write_json(path, content)

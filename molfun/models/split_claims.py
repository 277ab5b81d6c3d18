"""Add to verdicts on variants how simple models do under a random split and one by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import ConcatDataset

from molfun.evaluation.baselines import MOST_ROWS, Labelled
from molfun.evaluation.results import HeadVerdict
from molfun.evaluation.split_claims import split_results
from molfun.nn.substitutions import SubstitutionTable
from molfun.training.task_head import TaskHead


def with_splits(
    verdicts: Mapping[str, HeadVerdict],
    heads: Sequence[TaskHead],
    parts: Sequence[Any],
    scores: SubstitutionTable | None,
) -> dict[str, HeadVerdict]:
    """Return the verdicts, with `HeadVerdict.splits` where the data are variants of a protein.

    Parameters
    ----------
    verdicts
        Verdict on each head.
    heads
        The heads, with the tasks that measured them.
    parts
        Data sets that the table was divided into.
    scores
        Zero-shot scores of the variants; None where there are none.
    """
    wild_type = getattr(parts[0], "wild_type", None)
    if wild_type is None:
        return dict(verdicts)
    samples: ConcatDataset[Any] = ConcatDataset(parts)
    targets = [target for part in parts for target in part.targets]
    found = {}
    for head in heads:
        verdict = verdicts.get(head.name)
        if verdict is None:
            continue
        found[head.name] = verdict
        if head.task.level == "sequence":
            labels = [head.task.numbers(target) for target in head.labels(targets)]
            rows = Labelled.of(samples, labels, most=MOST_ROWS).scored(scores)
            splits = split_results(rows, wild_type, head.task, verdict.metric)
            found[head.name] = replace(verdict, splits=splits)
    return found

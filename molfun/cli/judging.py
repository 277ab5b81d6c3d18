"""The end of a run: what it is worth, next to simple models of the same training rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

from molfun.cli.console import say
from molfun.cli.cv_settings import CvSettings
from molfun.cli.data import group_column
from molfun.cli.settings import FineTuneSettings
from molfun.data.base import SampleDataset
from molfun.data.clusters import cluster_sequences, linked
from molfun.data.splits import IDENTITY, Splittable
from molfun.evaluation import results
from molfun.evaluation.results import HeadVerdict
from molfun.models.fold_results import CrossValidation
from molfun.models.judging import Measured, columns_of, judged
from molfun.models.prediction import Scored
from molfun.models.structure import MolfunStructureModel
from molfun.runs.folder import CACHE, RunFolder


def judge_run(
    folder: RunFolder,
    model: MolfunStructureModel,
    settings: FineTuneSettings,
    train: SampleDataset,
    parts: Mapping[str, tuple[SampleDataset, Scored]],
) -> dict[str, HeadVerdict]:
    """Write ``evaluation.json``, and print the verdict on each head.

    Parameters
    ----------
    folder
        Folder of the run.
    model, settings
        The trained model, and the settings of the run.
    train
        Training set, which baselines learn from.
    parts
        Data set and results of each part.
    """
    measured = {
        name: Measured(
            part,
            scored.heads,
            scored.results,
            groups=_groups(part, settings),
            columns=columns_of(part, settings.metrics_by),
        )
        for name, (part, scored) in parts.items()
    }
    if not measured:
        return {}
    found = judged(model, train, train.targets, measured, keep=folder.path / CACHE)
    results.write(folder.evaluation, found)
    say_verdicts(found)
    return found


def judge_folds(
    folder: RunFolder, found: CrossValidation, settings: CvSettings, dataset: SampleDataset
) -> None:
    """Write ``evaluation.json`` of a cross-validation, and print the verdict on each head."""
    verdicts = found.judge(
        dataset,
        groups=_groups(dataset, settings, settings.threshold),
        columns=columns_of(dataset, settings.metrics_by),
        keep=folder.path / CACHE,
    )
    results.write(folder.evaluation, verdicts)
    say_verdicts(verdicts)


def say_verdicts(found: Mapping[str, HeadVerdict]) -> None:
    """Print the verdict on each head."""
    for name, head in found.items():
        say(f"Verdict on {name}: {head.verdict}" if name else f"Verdict: {head.verdict}")


def _groups(
    part: SampleDataset, settings: FineTuneSettings, threshold: float = IDENTITY
) -> list[Hashable] | None:
    """Return the group of each sample that the split kept whole; None where it kept none."""
    own: Any = getattr(part, "groups", None)  # subjects or trajectories of time series
    if own is not None:
        return list(own)
    if settings.split == "group":
        return [str(value) for value in part.metadata[group_column(part, settings)]]
    if settings.split != "identity":
        return None
    chains: list[tuple[str, ...]] = cast("Splittable", part).sequences()
    clusters = cluster_sequences([c for row in chains for c in row], threshold).of
    return list(linked([[clusters[chain] for chain in row] for row in chains]))

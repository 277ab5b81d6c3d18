"""The end of a run: what it is worth, next to simple models of the same training rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from molfun.cli.console import say
from molfun.cli.cv_settings import CvSettings
from molfun.cli.data import group_column
from molfun.cli.settings import FineTuneSettings
from molfun.cli.showing import failing
from molfun.data.base import SampleDataset
from molfun.data.splits import IDENTITY
from molfun.evaluation import results
from molfun.evaluation.results import HeadVerdict
from molfun.models.fold_results import CrossValidation
from molfun.models.judging import Measured, columns_of, groups_of, judged
from molfun.models.prediction import Scored
from molfun.models.split_claims import with_splits
from molfun.models.structure import MolfunStructureModel
from molfun.models.zero_shot import scores_of
from molfun.runs.folder import CACHE, RunFolder


@failing("verdict")
def judge_run(
    folder: RunFolder,
    model: MolfunStructureModel,
    settings: FineTuneSettings,
    train: SampleDataset,
    parts: Mapping[str, tuple[SampleDataset, Scored]],
) -> None:
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
    if not parts:
        say(
            "No verdict: there is neither a validation nor a test part. --val-frac and --test-frac "
            "leave some rows out, --val and --test name files."
        )
        return
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
    found = judged(model, train, train.targets, measured, keep=folder.path / CACHE)
    every = [train, *(part for part, _ in parts.values())]
    found = with_splits(found, model.heads, every, scores_of(model))
    results.write(folder.evaluation, found)
    say_verdicts(found)


@failing("verdict")
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
    verdicts = with_splits(verdicts, found.heads, [dataset], found.base_scores)
    results.write(folder.evaluation, verdicts)
    say_verdicts(verdicts)


def say_verdicts(found: Mapping[str, HeadVerdict]) -> None:
    """Print the verdict on each head."""
    if not found:
        say("No verdict: no sample of the validation or test part has a label.")
    for name, head in found.items():
        say(f"Verdict on {name}: {head.verdict}" if name else f"Verdict: {head.verdict}")


def _groups(
    part: SampleDataset, settings: FineTuneSettings, threshold: float = IDENTITY
) -> list[Hashable] | None:
    """Return the group of each sample that the split kept whole; None where it kept none."""
    column = group_column(part, settings) if settings.split == "group" else ""
    return groups_of(part, split=settings.split, column=column, threshold=threshold)

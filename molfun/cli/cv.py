"""Cross-validation from the command line: a table per fold, and out-of-fold predictions."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from molfun._io import write_json, write_text
from molfun.cli.command_settings import RunOptions
from molfun.cli.console import ConsoleProgress, is_first_process, say, three_digits
from molfun.cli.cv_settings import PAIRS, CvSettings
from molfun.cli.data import group_column, open_whole, say_notes
from molfun.cli.fine_tune import (
    RunFiles,
    is_demo,
    model_of,
    plain_loader,
    strategy_of,
    training_loader,
)
from molfun.cli.judging import judge_folds
from molfun.cli.outputs import opened_run
from molfun.cli.places import STARTED_IN, started_in
from molfun.cli.schema import write_config
from molfun.cli.settings import FineTuneSettings
from molfun.cli.several import RESUMED, processes
from molfun.cli.showing import record_folds, show
from molfun.cli.slurm import submitted
from molfun.cli.sources import settings_of
from molfun.cli.tables import write_predictions
from molfun.data.base import SampleDataset
from molfun.data.folds import Fold
from molfun.data.pair_splits import PairSplitter
from molfun.data.splits import DataSplitter
from molfun.data.variant_splits import SCHEMES, VariantSplitter
from molfun.errors import ConfigError
from molfun.evaluation.bootstrap import Estimate
from molfun.models.cross_validation import PLAN, cross_validate
from molfun.models.ensemble import save_folds
from molfun.models.fold_results import FEWEST_FOLDS, CrossValidation
from molfun.models.structure import MolfunStructureModel
from molfun.runs.folder import (
    CACHE,
    CONFIG,
    CV_SUMMARY,
    EVALUATION,
    FOLDS,
    LOG,
    OUT_OF_FOLD,
    PROVENANCE,
    REPORT,
    SCHEMA,
    RunFolder,
)
from molfun.strategies.base import FinetuneStrategy
from molfun.training.callbacks import Callback

ENSEMBLE = "ensemble"
RESULTS = (OUT_OF_FOLD, FOLDS, CV_SUMMARY, EVALUATION, REPORT)
"""Files with what all folds gave, written at the end."""
WRITTEN = (CONFIG, SCHEMA, LOG, CACHE, PLAN, PROVENANCE, *RESULTS, ENSEMBLE)
"""Files that a cross-validation writes into its folder, next to the folders of the folds."""
FORMAT = 1
"""Of ``cv.json``."""


def cv(given: Mapping[str, Any]) -> None:
    """Cross-validate with the settings of the flags, and of the file that they name."""
    settings, options = settings_of(CvSettings, given)
    if options.slurm is None:
        run(settings, options)
    else:
        text = settings.to_yaml()
        say(submitted("cv", settings, options, text, state=PLAN))


def run(settings: CvSettings, options: RunOptions) -> CrossValidation:
    """Make folds, train and test each of them; print and write along the way."""
    folder = RunFolder(settings.output_dir, resume=options.resume)
    overwrite = options.overwrite or (settings.demo and is_demo(folder))
    names = type(settings).model_fields
    with (
        processes(settings, RESUMED) as ranks,
        opened_run(
            folder,
            WRITTEN,
            settings.inputs,
            settings=names,
            overwrite=overwrite,
            debug=options.debug,
        ),
    ):
        dataset = open_whole(settings)
        folds = folds_of(dataset, settings)
        say(f"Data: {len(dataset)} samples, {_described(folds, settings)}")
        say_notes(settings.kind, dataset, "see run.log")
        if ranks.size > 1:
            say(f"Folds are dealt to {ranks.size} processes, and those of this one are shown.")
        model = model_of(settings, dataset).check(dataset)
        strategy = strategy_of(settings, len(folds[0].train), len(model.backbone.blocks()))
        say(f"Model: {model.backbone.display_name} ({model.count_parameters():,} params)")
        say(f"Strategy: {type(strategy).__name__} (lr={strategy.main_lr:.1e})\n")
        start = _Start(folder, settings, strategy, dataset)
        with contextlib.closing(start.shown):
            found = cross_validate(
                lambda: model,
                dataset,
                folds,
                strategy=strategy,
                output_dir=folder,
                overwrite=overwrite,
                epochs=settings.epochs,
                seed=settings.seed,
                precision=settings.precision,
                cache=settings.cache_config,
                make_loader=lambda data, shuffle: (
                    training_loader(data, settings, model.backbone.length_power)
                    if shuffle
                    else plain_loader(data, settings)
                ),
                on_fold=start,
                ranks=ranks,
            )
        if not ranks.is_first:
            return found
        write_results(folder, found, dataset, settings, random_weights=model.random_base)
        save_folds(folder.path / ENSEMBLE, found.checkpoints, found.calibrations())
        _say_results(found)
        say()
        judge_folds(folder, found, settings, dataset)
        say(f"Everything is in {folder.path}: {OUT_OF_FOLD}, {FOLDS}, {CV_SUMMARY}, fold_1/ ...")
        say(f"Predict with all folds: molfun predict {folder.path / ENSEMBLE} --data FILE")
        show(folder, report=settings.report)
    return found


def folds_of(dataset: SampleDataset, settings: CvSettings) -> list[Fold]:
    """Return the folds that the settings ask for."""
    about: dict[str, Any] = {"val_frac": settings.val_frac, "seed": settings.seed}
    if settings.split == "column":
        found = DataSplitter.column_folds(dataset, settings.split_column, **about)
        if "folds" in settings.model_fields_set and settings.folds != len(found):
            raise ConfigError(
                f"--folds {settings.folds} does not go with --split column: the column "
                f"{settings.split_column!r} names {len(found)} folds. Leave one of them out."
            )
        return found
    about |= {"repeats": settings.repeats, "stratify": settings.stratifies}
    return divided(dataset, settings, settings.folds, threshold=settings.threshold, **about)


def divided(
    dataset: SampleDataset,
    settings: FineTuneSettings,
    n_folds: int,
    *,
    threshold: float = 0.4,
    **about: Any,
) -> list[Fold]:
    """Return folds of a data set, with what the split of the settings keeps together."""
    if settings.split == "group":
        column = group_column(dataset, settings)
        return DataSplitter.group_k_fold(dataset, column, n_folds, **about)
    if settings.split == "identity":
        return DataSplitter.identity_k_fold(dataset, n_folds, threshold=threshold, **about)
    if settings.split in PAIRS:  # divided by their proteins alone, once
        own = {name: about[name] for name in ("val_frac", "seed") if name in about}
        name: Any = settings.split.upper()
        return PairSplitter.folds(dataset, name, n_folds, threshold=threshold, **own)
    if settings.split not in SCHEMES:
        return DataSplitter.k_fold(dataset, n_folds, **about)
    # positions are divided once, and have no classes
    places = {name: about[name] for name in ("val_frac", "seed") if name in about}
    wild_type = getattr(settings, "wild_type", None)
    return VariantSplitter.folds(dataset, settings.split, n_folds, wild_type=wild_type, **places)


def _described(folds: Sequence[Fold], settings: CvSettings) -> str:
    repeats = max(fold.repeat for fold in folds)
    times = "" if repeats == 1 else f", {repeats} times"
    kind = "stratified folds" if settings.stratifies else "folds"
    return f"{len(folds) // repeats} {kind} by {settings.split}{times}"


class _Start:
    """Announces each fold, and gives its callbacks."""

    def __init__(
        self,
        folder: RunFolder,
        settings: CvSettings,
        strategy: FinetuneStrategy,
        dataset: SampleDataset,
    ) -> None:
        self._folder, self._settings, self._strategy = folder, settings, strategy
        self._dataset = dataset
        self._has_begun = False
        self.shown = ConsoleProgress(epochs=False)

    def __call__(
        self, fold: Fold, model: MolfunStructureModel, place: RunFolder | None
    ) -> list[Callback]:
        if not self._has_begun and is_first_process():
            self._begin()
        parts = [self._dataset.subset(part) for part in (fold.train, fold.val, fold.test)]
        sizes = " / ".join(
            f"{len(part)} {name}" for name, part in zip(_PARTS, parts, strict=True) if len(part)
        )
        say(f"{fold.name}: {sizes}")
        assert place is not None
        quiet = RunFiles(place, self._settings, self._strategy, model, parts, rates=False)
        return [quiet, self.shown]

    def _begin(self) -> None:
        """Write the settings, and remove what the folds of a former start gave."""
        self._has_begun = True
        folder, resumed = self._folder, self._folder.config.is_file() and self._folder.resume
        if not resumed:
            where = {STARTED_IN: started_in(folder.path)}
            write_config(folder, self._settings, self._settings.to_yaml(**where))
        for name in RESULTS:
            (folder.path / name).unlink(missing_ok=True)
        record_folds(folder, self._settings, self._dataset, resumed=resumed)


_PARTS = ("train", "val", "test")


def write_results(
    folder: RunFolder,
    found: CrossValidation,
    dataset: SampleDataset,
    settings: CvSettings,
    *,
    random_weights: bool,
) -> None:
    """Write ``out_of_fold.csv``, ``folds.csv`` and ``cv.json``."""
    about = {"fold": found.fold_of_each()}
    tested = found.tested
    rows = dataset if len(tested) == len(dataset) else dataset.subset(tested)
    write_predictions(folder.path / OUT_OF_FOLD, found.out_of_fold(), rows, about=about)
    table = io.StringIO()
    found.table().to_csv(table, index=False, lineterminator="\n")
    write_text(folder.path / FOLDS, table.getvalue())
    content = {
        "format": FORMAT,
        "split": settings.split,
        "n": len(tested),
        "n_untested": len(dataset) - len(tested),
        "random_weights": random_weights,
        "n_folds": len(found.folds) // found.n_repeats,
        "repeats": found.n_repeats,
        "folds": found.table().to_dict("records"),
        "metrics": {name: asdict(e) for name, e in found.summary().items()},
        "pooled": found.pooled(),
        "reliability": found.reliability(),
        "cache": found.cache_report.splitlines(),
    }
    write_json(folder.path / CV_SUMMARY, content)


def _say_results(found: CrossValidation) -> None:
    """Print a row per fold, the means with their intervals, and the metrics over all samples."""
    rows = _rows_of(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say()
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        say("  ".join([first.ljust(widths[0]), *cells]))
    if len(found.folds) < FEWEST_FOLDS:
        say(f"No interval of the mean: {len(found.folds)} folds say nothing of their spread. Take "
            f"{FEWEST_FOLDS} or more, or --repeats.")  # fmt: skip


def _rows_of(found: CrossValidation) -> list[list[str]]:
    summary, n = found.summary(), str(len(found.fold_of_each()))
    names = [name for name in summary if name != "loss"]
    rows = [["fold", "test", "epoch", *names]]
    for result in found.folds:
        about = [result.fold.name, str(len(result.fold.test)), str(result.epoch)]
        rows.append([*about, *_digits(result.metrics, names)])
    rows.append(["mean", "", "", *(three_digits(summary[name].value) for name in names)])
    if len(found.folds) >= FEWEST_FOLDS:
        rows.append(["95 %", "", "", *(_interval(summary[name]) for name in names)])
    return [*rows, ["all", n, "", *_digits(found.pooled(), names)]]


def _digits(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [three_digits(metrics.get(name, math.nan)) for name in names]


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "undefined"
    return f"[{three_digits(estimate.low)}, {three_digits(estimate.high)}]"

"""Cross-validation: train a model per fold, and predict every sample by one that never saw it.

::

    output/
      plan.json        what the folds are of; a resumed cross-validation must have the same
      cache/           outputs of the frozen part of the backbone, shared by all folds
      fold_1/          folder of a run: checkpoint/, resume/, history.csv
        out_of_fold.safetensors   predictions; written last, so a fold that has it is finished
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import write_json
from molfun.data.folds import Fold
from molfun.errors import ConfigError, RunError
from molfun.fingerprint import digest
from molfun.models import evaluation, trained_on
from molfun.models.arguments import as_strategy
from molfun.models.base_embeddings import BaseEmbeddings
from molfun.models.caching import cache_config
from molfun.models.fold_results import FOLD_FILE, CrossValidation, FoldResult
from molfun.models.loaders import as_loader, data_identity, label_texts, samples_of
from molfun.models.structure import MolfunStructureModel
from molfun.models.zero_shot import note_for_baselines
from molfun.nn.process import settled
from molfun.parallel.launch import alone
from molfun.parallel.ranks import Ranks
from molfun.runs.folder import CACHE, RESUME, RunFolder
from molfun.runs.resume import STATE_FILE
from molfun.strategies.base import FinetuneStrategy
from molfun.tasks.classes import Classification
from molfun.text import listing
from molfun.training.cache import CacheConfig, CacheMode
from molfun.training.callbacks import Callback

logger = logging.getLogger(__name__)

PLAN = "plan.json"
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
MakeLoader = Callable[[Any, bool], Any]
"""Function from a data set, and whether to shuffle it, to a loader."""
OnFold = Callable[[Fold, MolfunStructureModel, "RunFolder | None"], Sequence[Callback]]
"""Function called before a fold is trained; returns callbacks of its fit."""


@settled(training=True)
def cross_validate(
    make_model: Callable[[], MolfunStructureModel],
    dataset: Any,
    folds: Sequence[Fold],
    *,
    strategy: FinetuneStrategy | str = "auto",
    output_dir: str | Path | RunFolder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: CacheMode | CacheConfig = "auto",
    cache_dir: str | Path | None = None,
    make_loader: MakeLoader = lambda data, shuffle: data,  # noqa: ARG005
    on_fold: OnFold = lambda fold, model, folder: (),  # noqa: ARG005
    ranks: Ranks | None = None,
    **options: Any,
) -> CrossValidation:
    """Train a model per fold on the same terms, and predict what each fold did not see.

    What is frozen runs once per sample for all folds together: the whole backbone with head_only,
    the blocks before the first that trains with partial, the features of slow samples in any case.
    It is kept on disk, by default in `output_dir`, where a resumed run finds it. A backbone that
    learns the scale of its inputs from the training set (time series, atoms) differs from fold to
    fold and runs once per sample and fold.

    Parameters
    ----------
    make_model
        Returns the untrained model. It is called once, and each fold trains a copy.
    dataset
        Samples with labels: a `molfun.data.SampleDataset`.
    folds
        From `molfun.data.DataSplitter.k_fold` and its relatives.
    strategy
        As in `MolfunStructureModel.fit`; "auto" chooses once, by the size of the first fold.
    output_dir
        Folder of the cross-validation, with a folder of a run for each fold. None keeps results in
        memory, and no trained model. A `molfun.runs.folder.RunFolder` is used as it was opened.
    resume
        Continue a cross-validation that was stopped: finished folds are not run again, and one that
        was under way goes on where it was.
    overwrite
        Whether one that `output_dir` already holds may be replaced.
    cache, cache_dir
        As in `MolfunStructureModel.fit`; with ``"memory"`` each fold has a cache of its own.
    make_loader
        Returns the loader of a part, given the data set and whether to shuffle; by default batches
        of the data set's default size.
    on_fold
        Called before each fold is trained, with the fold, its model and its folder; returns
        callbacks of the fit.
    ranks
        Processes among which the folds are dealt, each of which trains whole folds: the results are
        those of one process. They share `output_dir`.
    **options
        Further arguments of `MolfunStructureModel.fit`: ``epochs``, ``max_steps``, ``seed``,
        ``precision``, ``save_every_steps``.

    Returns
    -------
    CrossValidation
        Out-of-fold predictions, metrics per fold, their mean and interval.

    Raises
    ------
    ConfigError
        If there are no folds, they are of another data set, or `ranks` have no folder.
    RunError
        If `output_dir` holds a cross-validation that is neither resumed nor replaced, or one of
        other data or settings.

    Examples
    --------
    >>> from molfun import DataSplitter, MolfunStructureModel, SequenceDataset
    >>> texts = [a + b for a in "ACDE" for b in "FGHI"]
    >>> data = SequenceDataset.from_list([(t, float(len(set(t)))) for t in texts])
    >>> result = cross_validate(
    ...     lambda: MolfunStructureModel("esm2_tiny", head="regression", device="cpu"),
    ...     data, DataSplitter.k_fold(data, 4), strategy="head_only", epochs=1,
    ... )
    >>> len(result.folds), len(result.out_of_fold()["prediction"])
    (4, 16)
    """
    _check(folds, len(dataset))
    ranks = _checked(ranks, output_dir)
    base = make_model()
    heads = base.need_heads("cross_validate")
    _name_classes(heads, dataset)
    if base.n_fits or len(base.training_inputs):
        trained_on.warn_of_overlap(make_loader(dataset, False), base.training_inputs, "test sample")
    chosen = as_strategy(strategy, len(folds[0].train), len(base.backbone.blocks()))
    note_for_baselines(base, dataset)
    folder = RunFolder.of(output_dir, resume=resume)
    root = None
    plan: dict[str, Any] = {}
    if folder is not None:
        root = folder.path
        plan = _plan(base, dataset, folds, chosen, options)
        plan |= _inputs(as_loader(make_loader(dataset, True), shuffle=True))
    with _opened(folder, plan, ranks, overwrite=overwrite), _shared(root) as place:
        config = cache_config(cache, cache_dir, None)
        if config.directory is None:
            config = replace(config, directory=place)
        config = replace(config, keep_for_others=True)
        trainer = _Trainer(base, dataset, chosen, config, make_loader, on_fold, options)
        with alone():
            own = {fold.name: trainer.result(fold, folder) for fold in ranks.share(folds)}
        reports = [line for part in ranks.gather(trainer.reports) for line in part]
    return CrossValidation(
        folds=[own.get(fold.name) or _of_another(root, fold) for fold in folds],
        heads=heads,
        higher_is_better=trainer.higher_is_better,
        cache_report="\n".join(reports),
        random_weights=base.random_base,
        base_scores=base.base_scores,
        embedder=BaseEmbeddings(base),
    )


@dataclass
class _Trainer:
    """Settings and caches that all folds share."""

    base: MolfunStructureModel
    dataset: Any
    strategy: FinetuneStrategy
    cache: CacheConfig
    make_loader: MakeLoader
    on_fold: OnFold
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.reports: list[str] = []
        heads = self.base.heads
        self.higher_is_better = frozenset(
            part.key(name) for part in heads for name in part.task.higher_is_better
        )

    def result(self, fold: Fold, root: RunFolder | None) -> FoldResult:
        """Return the results of a fold: those on disk if it is finished, else train it."""
        if root is None:
            return self._train(fold, None)
        path = root.path / fold.name
        if root.resume and (path / FOLD_FILE).is_file():
            logger.info("%s is finished already.", fold.name)
            return FoldResult.load(path, fold)
        under_way = root.resume and (path / RESUME / STATE_FILE).is_file()
        found = self._train(fold, RunFolder(path, resume=under_way))
        found.save(path)
        return found

    def _train(self, fold: Fold, folder: RunFolder | None) -> FoldResult:
        start = time.perf_counter()
        # a copy is bit by bit what make_model would build again, in a fifth of the time (OpenFold,
        # 93 million parameters: 0.8 s and 3.8 s)
        model = copy.deepcopy(self.base)
        train, val, test = (self.dataset.subset(part) for part in (fold.train, fold.val, fold.test))
        callbacks = [*self.options.get("callbacks", ()), *self.on_fold(fold, model, folder)]
        history = model.fit(
            self.make_loader(train, True),
            self.make_loader(val, False) if len(val) else None,
            strategy=self.strategy,
            output_dir=folder,
            resume=folder is not None and folder.resume,
            cache=self.cache,
            overwrite=True,
            **{**self.options, "callbacks": callbacks},
        )
        runner, found = evaluation.measured(model, self.make_loader(test, False), self.cache)
        reports = [history.cache_report, *runner.forward.cache_reports()]
        self.reports += [f"{fold.name}: {text}" for text in reports if text]
        best = history.best if self.options.get("restore_best", True) else history[-1]
        return FoldResult.of(
            fold,
            found,
            runner.heads,
            metrics={"loss": found.loss, **runner.metrics(found)},
            epoch=int(best["epoch"]),
            seconds=time.perf_counter() - start,
            checkpoint=None if folder is None else folder.checkpoint,
        )


def _checked(ranks: Ranks | None, output_dir: Any) -> Ranks:
    if ranks is None:
        return Ranks()
    if ranks.size > 1 and output_dir is None:
        raise ConfigError("Several processes need an output_dir, in which they put their folds.")
    return ranks


def _of_another(root: Path | None, fold: Fold) -> FoldResult:
    """Return the results of a fold that another process has written."""
    assert root is not None
    return FoldResult.load(root / fold.name, fold)


def _check(folds: Sequence[Fold], n: int) -> None:
    if not folds:
        raise ConfigError("cross_validate needs folds, for example DataSplitter.k_fold(dataset).")
    _check_names([fold.name for fold in folds])
    tested = [
        _check_tests([fold for fold in folds if fold.repeat == repeat], n)
        for repeat in sorted({fold.repeat for fold in folds})
    ]
    if not all(np.array_equal(own, tested[0]) for own in tested):
        raise ConfigError("The repeats test different samples: their mean would be of none.")


def _check_names(names: Sequence[str]) -> None:
    wrong = [name for name in names if not _NAME.fullmatch(name) or names.count(name) > 1]
    if wrong:
        raise ConfigError(f"Names of folds name folders, each its own; got {wrong[0]!r}.")


def _check_tests(folds: Sequence[Fold], n: int) -> np.ndarray:
    tested = np.sort(np.concatenate([fold.test for fold in folds]))
    inside = len(tested) > 0 and 0 <= tested[0] <= tested[-1] < n
    once = inside and len(np.unique(tested)) == len(tested)
    if not once or (len(tested) < n and not all(fold.some_untested for fold in folds)):
        raise ConfigError(
            f"The folds do not test each of {n} samples once: make them from this data set."
        )
    return tested


def _name_classes(heads: Sequence[Any], dataset: Any) -> None:
    """Take class names from all labels: a fold may lack a class that another one tests."""
    for part in heads:
        if isinstance(part.task, Classification) and part.task.classes is None:
            probe = copy.deepcopy(part.task)
            probe.fit_targets(part.labels(dataset.targets))
            part.task.classes = probe.classes


def _plan(
    model: MolfunStructureModel,
    dataset: Any,
    folds: Sequence[Fold],
    strategy: FinetuneStrategy,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe what finished folds must have in common with the others, in plain values."""
    parts = [
        f"{fold.name} {part} {getattr(fold, part).tolist()}"
        for fold in folds
        for part in ("train", "val", "test")
    ]
    plain = {k: v for k, v in options.items() if isinstance(v, int | float | str | None)}
    return {
        "samples": digest(dataset.ids),
        "labels": digest(label_texts(list(dataset.targets))),
        "folds": digest(parts),
        "fold names": [fold.name for fold in folds],
        "base weights": model.base_fingerprint,
        "heads": {
            part.key("head"): [part.head_name, dict(part.head.config_dict)] for part in model.heads
        },
        "tasks": {
            part.key("task"): [part.task_name, dict(part.task.config_dict)] for part in model.heads
        },
        "strategy": strategy.to_dict(),
        "options": plain,
    }


def _inputs(loader: Any) -> dict[str, Any]:
    """Describe what the models see of the data, and in which batches."""
    found = data_identity(loader, [], None)
    names = ("inputs", "batch size", "batches by length", "sample weights")
    contents = digest(sample.content_key() for sample in samples_of([loader]))
    return {"contents": contents, **{name: found[name] for name in names if name in found}}


@contextlib.contextmanager
def _opened(
    folder: RunFolder | None, plan: Mapping[str, Any], ranks: Ranks, *, overwrite: bool
) -> Iterator[None]:
    """Lock the folder of a cross-validation for a ``with`` block, and write or compare its plan."""
    if folder is None:
        yield
        return
    if not ranks.is_first:
        ranks.wait()  # until the first has made room
        yield
        return
    root, plain = folder.path, json.loads(json.dumps(plan, default=str))
    with folder.held():
        old = _read_plan(root)
        if old is not None and folder.resume:
            _compare(root, old, plain)
        elif old is not None:
            if not overwrite:
                raise RunError(
                    f"{root} already holds a cross-validation. Continue it with resume=True "
                    f"(--resume), replace it with overwrite=True (--overwrite), or choose another "
                    f"output folder."
                )
            _remove(root, old)
        write_json(root / PLAN, plain)
        ranks.wait()
        yield


def _read_plan(root: Path) -> dict[str, Any] | None:
    path = root / PLAN
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RunError(
            f"{path} is damaged. Choose another output folder, or remove {root}."
        ) from error


def _compare(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    # a plan of an older version has fewer entries
    differ = [name for name in old if old[name] != new.get(name)]
    if differ:
        raise RunError(
            f"{root} holds a cross-validation with other settings or data:\n{listing(differ)}\n"
            f"Repeat its settings to continue it, replace it with overwrite=True (--overwrite), or "
            f"choose another output folder."
        )


def _remove(root: Path, plan: Mapping[str, Any]) -> None:
    """Remove the folds of a replaced cross-validation; the cache stays, its keys tell entries."""
    # first the plan: a process killed in between leaves folds that no plan speaks of
    (root / PLAN).unlink()
    for name in map(str, plan.get("fold names", ())):
        if _NAME.fullmatch(name) and (root / name).is_dir():
            shutil.rmtree(root / name)


@contextlib.contextmanager
def _shared(root: Path | None) -> Iterator[Path]:
    """Return the folder of the shared cache: inside the output, else one that does not stay."""
    if root is not None:
        yield root / CACHE
        return
    with tempfile.TemporaryDirectory(prefix="molfun_cv_") as folder:
        yield Path(folder)

"""`Ensemble`: models on one trunk whose predictions are averaged, with their spread.

::

    ensemble/
      ensemble.json        format, and the members in order
      member_1/ ...        checkpoint folders, each complete in itself; equal files are hard links
      calibration.json     out-of-fold errors, for intervals (only of a cross-validation)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from molfun import __version__
from molfun._io import atomic_directory, write_json
from molfun._paths import as_path
from molfun.backbones.kernels import Kernels
from molfun.errors import CheckpointError, ConfigError, DataError
from molfun.evaluation.conformal import Calibration
from molfun.models import evaluation, folding, persistence, trained_on
from molfun.models.caching import caches_of
from molfun.models.judging import Measured
from molfun.models.precision import InferencePrecision
from molfun.models.prediction import Prediction
from molfun.models.shared_weights import check_alike, copied, share
from molfun.models.structure import MolfunStructureModel
from molfun.nn.modes import evaluating
from molfun.nn.process import settled
from molfun.runs.checkpoint import foreign_files
from molfun.sample import Sample
from molfun.structures.folded import FoldedStructure
from molfun.training.ahead import loaded_ahead
from molfun.training.cache import CacheConfig, PrefixCache
from molfun.training.inputs import as_inputs
from molfun.training.loading import watched, worker_errors
from molfun.training.supervised import Evaluation, SupervisedRunner
from molfun.training.task_head import TaskHead

INDEX, CALIBRATION = "ensemble.json", "calibration.json"
FORMAT = 1


class Ensemble:
    """Models whose mean is predicted, with the standard deviation over them.

    Members are the folds of a cross-validation, runs from several seeds, or any other checkpoints
    with the same backbone, heads and tasks. Loaded together, they hold equal weights once, and
    what is frozen in all of them runs once per sample.

    Parameters
    ----------
    models
        Trained models, at least two.

    Attributes
    ----------
    calibrations
        Out-of-fold errors of each head, of `CrossValidation.calibrations`; empty without them.

    Raises
    ------
    ConfigError
        If there are fewer, or they differ in backbone, heads or tasks.

    Examples
    --------
    >>> data = [("MKVA", 1.0), ("MKLA", 2.0), ("MKIA", 3.0)]
    >>> models = [
    ...     MolfunStructureModel("esm2_tiny", head="regression", seed=seed, device="cpu")
    ...     for seed in (0, 1)
    ... ]
    >>> for model in models:
    ...     _ = model.fit(data, strategy="head_only", epochs=1)
    >>> found = Ensemble(models).predict(["MKVA", "MKLA"])
    >>> found["prediction"].shape, found["std"].shape
    (torch.Size([2]), torch.Size([2]))
    """

    def __init__(self, models: Sequence[MolfunStructureModel]) -> None:
        self.models = list(models)
        self.calibrations: dict[str, Calibration] = {}
        if len(self.models) < 2:
            raise ConfigError(f"An ensemble has at least two models, got {len(self.models)}.")
        check_alike(self.models)

    def __len__(self) -> int:
        return len(self.models)

    @property
    def first(self) -> MolfunStructureModel:
        """The first model; the others have the same backbone, heads and tasks."""
        return self.models[0]

    @classmethod
    @settled()
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        kernels: Kernels = "auto",
    ) -> Self:
        """Load checkpoints of one backbone.

        Parameters
        ----------
        paths
            Checkpoint folders, for example `CrossValidation.checkpoints`.
        weights, device, kernels
            As in `MolfunStructureModel.from_checkpoint`.

        Raises
        ------
        CheckpointError
            If a checkpoint is damaged or its base weights are not found.
        """
        options: dict[str, Any] = {"weights": weights, "device": device, "kernels": kernels}
        models: list[MolfunStructureModel] = []
        for path in map(as_path, paths):
            model = copied(models[0], path) if models else None
            models.append(model or MolfunStructureModel.from_checkpoint(path, **options))
        found = cls(models)
        # not those of a user, who may train one of them on
        for model in models[1:]:
            share(models[0].backbone, model.backbone)
        return found

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Load the folder of an ensemble; `options` are those of `from_checkpoints`.

        Raises
        ------
        CheckpointError
            If it is none, or a member is damaged.
        """
        folder = as_path(path)
        found = cls.from_checkpoints(members_of(folder), **options)
        if (folder / CALIBRATION).is_file():
            content = _read_json(folder / CALIBRATION)
            try:
                found.calibrations = {n: Calibration.from_dict(c) for n, c in content.items()}
            except DataError as error:
                raise CheckpointError(f"{folder / CALIBRATION} is damaged: {error}") from error
        return found

    @settled()
    def save(self, path: str | Path) -> Self:
        """Write the ensemble as one folder, from which `load` and ``molfun predict`` read it.

        Raises
        ------
        CheckpointError
            If `path` holds anything but an ensemble.
        """
        with _new_folder(as_path(path), len(self), self.calibrations) as folders:
            for i, (model, folder) in enumerate(zip(self.models, folders, strict=True)):
                persistence.save(model, folder)
                _link_equal(folder, folders[:i])
        return self

    @settled()
    @torch.no_grad()
    def predict(self, data: Any, *, coverage: float | None = None) -> Prediction:
        """Return the mean of the predictions, and the standard deviation over the models.

        Parameters
        ----------
        data
            A list of sequences or samples, a loader or a data set; labels are ignored.
        coverage
            Probability with which intervals hold the label, 0.9 for example; None gives none. It
            is calibrated on errors of single folds, which are a little larger than those of their
            mean, so that intervals rather hold more often.

        Returns
        -------
        Prediction
            As of a single model, and ``std``: shaped as the predictions of numbers, or as the
            probabilities of classes. Structures are those of the model with the highest mean pLDDT
            for each sample, and ``std`` is that of these means. With `coverage` also ``lower`` and
            ``upper`` of numbers, or ``set``, the names of the classes in the set of each sample.

        Raises
        ------
        ConfigError
            If `coverage` is given, and the ensemble has no out-of-fold errors.
        DataError
            If there are too few of them for this coverage.

        References
        ----------
        Barber et al. 2021, "Predictive Inference with the Jackknife+" (its CV+).
        """
        if coverage is not None and not self.calibrations:
            raise ConfigError(
                "Intervals need out-of-fold errors of one number or class per sample, which this "
                "ensemble does not have: make it with molfun cv of such a task, or set "
                "Ensemble.calibrations = CrossValidation.calibrations()."
            )
        evaluation.warn_unready(self.first)
        watch = trained_on.Watch(evaluation.prepared(self.first, data), self._seen())
        results = self._run(watch, [model.heads for model in self.models], labels=False)
        results = [evaluation.gathered(data, result) for result in results]
        watch.warn()
        found = self._presented(results)
        if coverage is not None:
            self._add_bounds(found, coverage)
        return found

    @settled()
    @torch.no_grad()
    def evaluate(
        self, data: Any, *, bootstrap: int = 0, confidence: float = 0.95, baselines: Any = False
    ) -> evaluation.Scores:
        """Return the metrics of the mean of the predictions, and those of each model.

        Parameters
        ----------
        data
            Samples with labels, as in `MolfunStructureModel.evaluate`.
        bootstrap, confidence
            Draws for intervals of the metrics, and the share of the draws inside them.
        baselines
            True to compare with simple models of the training sets of all models, if they were
            trained in this process; else the training set itself.

        Returns
        -------
        Scores
            As of a single model: ``rmse`` ... of the mean prediction, and ``loss``, the mean over
            the models. Also ``member_1/rmse`` and so on: the models alone, in their order.
        """
        train = evaluation.training_set(self.models, baselines)
        evaluation.warn_unready(self.first)
        passed: list[Sample] = []
        loader = evaluation.prepared(self.first, data)
        watch = trained_on.Watch(loader, self._seen(), labels=True, passed=passed)
        heads = [evaluation.measuring(model, loader) for model in self.models]
        results = self._run(watch, heads, labels=True)
        results = [evaluation.gathered(data, result) for result in results]
        watch.warn()
        whole = evaluation.mean_of(results, heads[0])
        runners = [
            evaluation.runner_of(m, heads=h) for m, h in zip(self.models, heads, strict=True)
        ]
        found = evaluation.scores_of(runners[0], whole, bootstrap=bootstrap, confidence=confidence)
        for i, (runner, result) in enumerate(zip(runners, results, strict=True), start=1):
            found |= {f"member_{i}/{name}": v for name, v in runner.metrics(result).items()}
        if train is not None:
            measured = Measured(passed, heads[0], whole.heads)
            evaluation.compare(found, self.models, train, measured)
        return found

    @settled()
    def fold(
        self,
        data: Any,
        *,
        recycles: int = 3,
        tolerance: float | None = None,
        seed: int = 0,
        precision: InferencePrecision | None = None,
    ) -> list[FoldedStructure]:
        """Predict structures with every model, and return the most confident one of each sample.

        Parameters
        ----------
        data, recycles, tolerance, seed, precision
            As in `MolfunStructureModel.fold`.

        Returns
        -------
        list
            One `FoldedStructure` per sample in input order: that of the member with the highest
            ``confidence``, with its ``member``, the ``spread`` of the others around it, and all
            ``models``, most confident first.

        Raises
        ------
        ConfigError
            If the backbone predicts no structures.
        """
        options: dict[str, Any] = {"tolerance": tolerance, "seed": seed, "precision": precision}
        return folding.fold(self.models, data, recycles=recycles, **options)

    def _seen(self) -> np.ndarray:
        """Return the digests of the inputs that any of the models was trained on."""
        return np.unique(np.concatenate([model.training_inputs for model in self.models]))

    def _run(
        self, batches: Any, heads: Sequence[Sequence[TaskHead]], *, labels: bool
    ) -> list[Evaluation]:
        """Return the predictions of each model by its heads, from one pass over the data."""
        caches: dict[str, PrefixCache] = {}
        pairs = list(zip(self.models, heads, strict=True))
        with contextlib.ExitStack() as stack:
            for model, own in pairs:
                stack.enter_context(evaluation.serving(model, own))
            runners = [_runner(model, own, caches) for model, own in pairs]
            results = [runner.empty() for runner in runners]
            stack.enter_context(worker_errors())
            for runner in runners:
                stack.enter_context(
                    evaluating(runner.backbone, *(part.head for part in runner.heads))
                )
                stack.enter_context(runner.forward.weights_stay())
            for batch in watched(loaded_ahead(batches, runners[0].ahead)):
                inputs = as_inputs(batch)
                for runner, result in zip(runners, results, strict=True):
                    runner.add(result, inputs, runner.outputs(inputs), labels=labels)
                for cache in caches.values():  # the next batch has other samples
                    cache.clear()
        return results

    def _presented(self, results: Sequence[Evaluation]) -> Prediction:
        found = Prediction(ids=results[0].ids)
        for part in self.first.heads:
            rows = list(zip(*(r.heads[part.name].predictions for r in results), strict=True))
            found.put(part, [part.task.combined(row) for row in rows])
            spread = [part.task.deviation(row) for row in rows]
            own = found[part.name] if part.name else found
            own["std"] = spread if part.task.level != "sequence" else torch.tensor(np.array(spread))
        return found

    def _add_bounds(self, found: Prediction, coverage: float) -> None:
        """Add intervals of numbers and sets of classes."""
        for name, calibration in self.calibrations.items():
            own = found[name] if name else found
            if calibration.classes:
                chosen = calibration.sets(own["probs"].numpy(), coverage=coverage)
                names = np.array(calibration.classes, dtype=object)
                own["set"] = [names[row].tolist() for row in chosen]
            else:
                bounds = calibration.intervals(own["prediction"].numpy(), coverage=coverage)
                own["lower"], own["upper"] = map(torch.from_numpy, bounds)


def is_ensemble(path: str | Path) -> bool:
    """Return whether a path is the folder of an ensemble."""
    return (as_path(path) / INDEX).is_file()


def members_of(path: str | Path) -> list[Path]:
    """Return the checkpoint folders of an ensemble.

    Raises
    ------
    CheckpointError
        If the folder holds no ensemble, or one of another format.
    """
    folder = as_path(path)
    if not is_ensemble(folder):
        raise CheckpointError(f"{folder} holds no ensemble: {INDEX} is missing.")
    content = _read_json(folder / INDEX)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has the format {content.get('format')!r} of ensembles; this version of "
            f"Molfun reads {FORMAT}. Update Molfun."
        )
    n = content.get("members")
    if not isinstance(n, int) or not 2 <= n <= 10_000:
        raise CheckpointError(f"{folder / INDEX} is damaged: members is {n!r}.")
    return [folder / f"member_{i + 1}" for i in range(n)]


def save_folds(
    path: str | Path, checkpoints: Sequence[Path], calibrations: Mapping[str, Calibration]
) -> None:
    """Write the checkpoints of a cross-validation as an ensemble, without loading any of them.

    Raises
    ------
    CheckpointError
        If `path` holds anything but an ensemble.
    """
    with _new_folder(as_path(path), len(checkpoints), calibrations) as folders:
        for i, (source, folder) in enumerate(zip(checkpoints, folders, strict=True)):
            shutil.copytree(source, folder, copy_function=_link)
            _link_equal(folder, folders[:i])


# Passes


def _runner(
    model: MolfunStructureModel, heads: Sequence[TaskHead], caches: dict[str, PrefixCache]
) -> SupervisedRunner:
    """Return the runner of a model; of models with one frozen part, they have one cache."""
    runner = evaluation.runner_of(model, "predict", heads)
    made = caches_of(model, heads, CacheConfig(mode="memory"))

    def shared() -> PrefixCache | None:
        cache = made.outputs() if made.has_outputs() else None
        return None if cache is None else caches.setdefault(cache.prefix, cache)

    runner.forward.use_cache(shared)
    return runner


# Folder


@contextlib.contextmanager
def _new_folder(
    path: Path, n: int, calibrations: Mapping[str, Calibration]
) -> Iterator[list[Path]]:
    """Write a folder of `n` members in one step; a ``with`` block fills those it is given."""
    _refuse_other_files(path)
    with atomic_directory(path) as folder:
        yield [folder / f"member_{i + 1}" for i in range(n)]
        if calibrations:
            content = {name: one.to_dict() for name, one in calibrations.items()}
            write_json(folder / CALIBRATION, content)
        write_json(folder / INDEX, {"format": FORMAT, "members": n, "molfun_version": __version__})


def _refuse_other_files(path: Path) -> None:
    """Refuse to replace a file, or a folder that holds anything but an ensemble."""
    if os.path.lexists(path) and not path.is_dir():
        raise CheckpointError(f"{path} is a file, which the ensemble would replace.")
    foreign = []
    for entry in sorted(path.glob("*")):
        if entry.is_dir() and entry.name.startswith("member_"):
            foreign += [f"{entry.name}/{name}" for name in foreign_files(entry)]
        elif entry.name not in (INDEX, CALIBRATION):
            foreign.append(entry.name)
    if foreign:
        raise CheckpointError(
            f"{path} holds other files ({', '.join(foreign[:4])}), which the ensemble would "
            f"replace. Choose a new folder."
        )


def _link(source: str, target: str) -> str:
    """Link a file of weights, or copy it where the file system has no links."""
    if Path(source).suffix != ".safetensors":  # users edit the card of one folder, not of two
        return shutil.copyfile(source, target)
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _link_equal(folder: Path, others: Sequence[Path]) -> None:
    """Replace the trunk of a member by a link to an equal one: a frozen trunk is stored once."""
    own = folder / "trunk.safetensors"
    mark = _mark(folder)
    for other in others if mark is not None else ():
        if _mark(other) == mark:
            own.unlink()
            _link(str(other / own.name), str(own))
            return


def _mark(folder: Path) -> Any:
    """Return size and checksum of the trunk, from the manifest."""
    return _read_json(folder / "manifest.json").get("trunk.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error

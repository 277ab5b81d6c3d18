"""`MolfunStructureModel`: one facade for every backbone, head, task and strategy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from molfun._io import is_within
from molfun._paths import as_path
from molfun.backbones.atomistic import AtomisticBackbone
from molfun.backbones.base import Backbone, combine_digests, tensor_digests
from molfun.backbones.kernels import Kernels, choose_kernels
from molfun.backbones.own_heads import OwnHeads
from molfun.config import check_seed, flattened
from molfun.data.words import counted
from molfun.errors import CheckpointError, ConfigError, DataError, MolfunError, RunError, listing
from molfun.heads.base import Head
from molfun.models import (
    arithmetic,
    base_weights,
    embedding,
    fine_tuning,
    pretraining,
    trained_on,
)
from molfun.models.arguments import as_settings, check_arguments
from molfun.models.bootstrap import intervals
from molfun.models.build import (
    attach,
    build_backbone,
    build_head,
    build_task,
    construct,
    names_of,
    need_head,
    resolve_device,
)
from molfun.models.caching import cache_config
from molfun.models.features import feature_names_of, with_features
from molfun.models.given import Bounded
from molfun.models.loaders import (
    all_samples,
    as_loader,
    check_labels,
    column_of,
    input_settings_of,
    is_many,
    refuse_nothing,
    samples_of,
    targets_of,
)
from molfun.nn import lora
from molfun.nn.allocator import keep_large_buffers
from molfun.nn.modes import evaluating
from molfun.nn.process import refuse_inference_tensors, settled
from molfun.registry import BACKBONES
from molfun.runs import checkpoint as portable
from molfun.runs.folder import RUN_FILES, RunFolder
from molfun.tasks.base import Task
from molfun.training.base import FinetuneStrategy
from molfun.training.cache import CacheConfig, CacheMode
from molfun.training.callbacks import Callback
from molfun.training.forward import ForwardPass
from molfun.training.history import History
from molfun.training.inputs import as_inputs
from molfun.training.job import Job
from molfun.training.supervised import SupervisedRunner

logger = logging.getLogger(__name__)


class Prediction(dict[str, Any]):
    """What `MolfunStructureModel.predict` gives; a dict.

    Keys: ``ids`` (list), ``prediction`` ((n,) float64 tensor on the CPU, in the units of the
    labels, in input order) and, for a single batch, ``trunk`` (the `TrunkOutput`).
    """


class MolfunStructureModel(nn.Module):
    """A pretrained backbone and a head, to fine-tune, evaluate, save and use.

    Parameters
    ----------
    backbone
        Registered name, for example ``"openfold"`` or ``"esm2_t6_8M_UR50D"``.
    config
        Architecture, in the backbone's own terms (a preset name or config object).
    weights
        File of pretrained weights; None starts from a random initialisation and says so.
    device
        ``"auto"`` (CUDA if there is one, else CPU), or a torch device.
    head
        Registered name of the head (``"affinity"``, ``"mlp"``, ...) or of a task
        (``"regression"``, ``"binary"``, ...), which takes its default head; None gives the head
        that came with the backbone (PET's energies), else the bare backbone.
    head_config
        Arguments of the head; dimensions default to what the backbone gives.
    task, task_config
        Registered name and arguments of the task; None takes the head's own.
    seed
        Seed of every random initialisation.
    backbone_config
        Further arguments of the backbone.
    kernels
        Whose code runs: ``"stock"`` is the package's own, ``"fast"`` Molfun's with the same
        results, ``"auto"`` Molfun's where it passes a test on this machine.
    trust
        Whether you vouch for `weights` of a kind that can run code when it is read (PET's
        ``.ckpt``). Weights of other kinds never need it.

    Raises
    ------
    ConfigError
        If a name or argument is unknown or the device is not there.
    CheckpointError
        If the weights do not fit the architecture.

    Examples
    --------
    >>> model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    >>> model
    MolfunStructureModel(openfold, 145,210 params; head affinity, 4,353 params; cpu)
    """

    @settled()
    def __init__(
        self,
        backbone: str = "openfold",
        *,
        config: Any = None,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        head: str | None = None,
        head_config: Mapping[str, Any] | None = None,
        task: str | None = None,
        task_config: Mapping[str, Any] | None = None,
        seed: int = 0,
        backbone_config: Mapping[str, Any] | None = None,
        kernels: Kernels = "auto",
        trust: bool = False,
    ) -> None:
        super().__init__()
        check_seed(seed)
        place = resolve_device(device)
        if place.type == "cpu":
            keep_large_buffers()
        self.backbone: Backbone = build_backbone(
            backbone,
            as_settings("backbone_config", backbone_config),
            config=config,
            weights=weights,
            seed=seed,
            trust=trust,
        )
        named = weights is not None and self.backbone.names_weights
        self.weights = base_weights.as_given(str(weights)) if named else None
        if weights is None:
            logger.log(
                logging.INFO if self.backbone.starts_random else logging.WARNING,
                "%s starts from random weights (seed %d): good for tests, not for science. Pass "
                "weights=... (--weights FILE) to start from a pretrained model.",
                self.backbone.display_name,
                seed,
            )
        if head is None and task is None and isinstance(self.backbone, OwnHeads):
            head = self.backbone.own_head
        self.head_name, self.task_name = names_of(head, task)
        if self.head_name is None and (head_config or task_config):
            raise ConfigError("head_config or task_config was given without head=....")
        self.task: Task | None = None
        self.head: Head | None = None
        if self.head_name is not None and self.task_name is not None:
            self.task = build_task(
                self.task_name, as_settings("task_config", task_config), head=self.head_name
            )
            self.head = build_head(
                self.head_name,
                as_settings("head_config", head_config),
                backbone=self.backbone,
                task=self.task,
                seed=seed,
            )
        attach(self)
        self.strategy: FinetuneStrategy | None = None
        self.result: dict[str, Any] = {}
        self.data_settings: dict[str, Any] = {}
        self.training_inputs = trained_on.NOTHING
        self.n_fits = 0
        self.random_base = weights is None and not self.backbone.starts_random
        self.precision = "32-true"
        self._base_digests = tensor_digests(self.backbone.base_state_dict())
        self.base_fingerprint = combine_digests(self.backbone.config_dict, self._base_digests)
        self.to(place).eval()
        choose_kernels(self.backbone, kernels)

    # --- train ---------------------------------------------------------------------------------

    @settled(training=True)
    def fit(
        self,
        train_loader: Any,
        val_loader: Any = None,
        *,
        strategy: FinetuneStrategy | str = "auto",
        epochs: int | None = None,
        max_steps: int | None = None,
        output_dir: str | Path | RunFolder | None = None,
        resume: bool = False,
        seed: int = 0,
        precision: str | None = None,
        cache: CacheMode | CacheConfig = "auto",
        cache_dir: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        save_every_steps: int | None = None,
        restore_best: bool = True,
        overwrite: bool = False,
    ) -> History:
        """Fine-tune; the best weights are in the model when it returns.

        Parameters
        ----------
        train_loader, val_loader
            ``DataLoader`` of samples, a dataset (then one sample a batch; one of your own gives
            `Sample` and has a length), a list of samples, of (sequence, number) pairs or of
            batches. `pretrain`, `predict`, `evaluate` and `embed` take the same.
        strategy
            What trains and how fast: a strategy, the registered name of one (with its defaults),
            or "auto" to choose by the number of samples.
        epochs, max_steps
            When to stop, at the latest. Neither: 20 epochs.
        output_dir
            Folder of the run: ``checkpoint/`` (the best so far), ``resume/`` (its state) and
            ``history.csv``. A `molfun.runs.folder.RunFolder` is taken as its opener checked it.
        resume
            Continue the run in `output_dir` where it stopped, bit by bit.
        seed
            Decides the order of samples and dropout.
        precision
            Overrides the strategy's ``amp``: "32-true", "bf16-mixed" or "16-mixed", for which
            "fp32", "bf16" and "fp16" are short.
        cache
            Where what is frozen is kept, its outputs or its activations before the first block
            that trains: "auto", "memory", "disk", "off", or a `CacheConfig` with budgets and
            precision.
        cache_dir
            Folder for "auto" and "disk", which several runs may share; by default in
            `output_dir`.
        callbacks
            Hooks, see `molfun.training.Callback`.
        save_every_steps
            Write the state every so many optimizer steps, besides every epoch and ten minutes.
        restore_best
            False leaves the weights of the last epoch in the model; ``checkpoint/`` holds the
            best ones all the same.
        overwrite
            Whether a run that `output_dir` already holds may be replaced.

        Returns
        -------
        History
            A row an epoch.

        Raises
        ------
        NonFiniteError
            If losses stay NaN or infinite.
        RunError
            If a run cannot be resumed or written.
        """
        need_head(self, "fit")
        job = self._job(
            train_loader,
            val_loader,
            strategy,
            output_dir=output_dir,
            resume=resume,
            overwrite=overwrite,
            epochs=20 if epochs is None and max_steps is None else epochs,
            max_steps=max_steps,
            seed=seed,
            precision=precision,
            callbacks=callbacks,
            save_every_steps=save_every_steps,
            restore_best=restore_best,
        )
        return fine_tuning.run(self, job, strategy, cache_config(cache, cache_dir, job.folder))

    @settled(training=True)
    def pretrain(
        self,
        train_loader: Any,
        val_loader: Any = None,
        *,
        objective: str = "masked_lm",
        objective_config: Mapping[str, Any] | None = None,
        strategy: FinetuneStrategy | None = None,
        epochs: int | None = None,
        max_steps: int | None = None,
        output_dir: str | Path | RunFolder | None = None,
        resume: bool = False,
        seed: int = 0,
        precision: str | None = None,
        callbacks: Sequence[Callback] = (),
        save_every_steps: int | None = None,
        overwrite: bool = False,
    ) -> History:
        """Train the backbone on data without labels; the head stays as it is.

        Parameters
        ----------
        train_loader, val_loader
            As in `fit`; labels are not looked at.
        objective, objective_config
            Registered name (``"masked_lm"``) and arguments of the objective.
        strategy
            What trains and how fast; None trains everything at 4e-4 with 5 % warm-up.
        epochs, max_steps
            When to stop, at the latest. Neither: 10 epochs.
        output_dir
            Folder of the run: ``weights.safetensors`` (the best so far, or with jepa, whose loss
            ranks no epochs, the last; a file for ``weights=``),
            ``resume/`` and ``history.csv``.
        resume, seed, precision, callbacks, save_every_steps, overwrite
            As in `fit`.

        Returns
        -------
        History
            A row an epoch, with the metrics of the objective (``val/perplexity``).

        Raises
        ------
        ConfigError
            If the backbone lacks what the objective needs, or the strategy trains adapters.
        RunError
            If the backbone carries adapters, or a run cannot be resumed or written.
        """
        if lora.installed_spec(self.backbone) is not None:
            raise RunError(
                "The backbone carries adapters. Pre-train a new model, then fine-tune from it."
            )
        strategy = pretraining.DEFAULT if strategy is None else strategy
        job = self._job(
            train_loader,
            val_loader,
            strategy,
            by_name=False,
            output_dir=output_dir,
            resume=resume,
            overwrite=overwrite,
            epochs=10 if epochs is None and max_steps is None else epochs,
            max_steps=max_steps,
            seed=seed,
            precision=precision,
            callbacks=callbacks,
            save_every_steps=save_every_steps,
        )
        history = pretraining.run(
            self,
            job,
            strategy,
            objective_name=objective,
            objective_config=as_settings("objective_config", objective_config),
        )
        self._rebase(None if job.folder is None else job.folder.weights)
        return history

    def _job(
        self,
        train: Any,
        val: Any,
        strategy: FinetuneStrategy | str,
        *,
        output_dir: str | Path | RunFolder | None,
        resume: bool,
        overwrite: bool,
        by_name: bool = True,
        callbacks: Sequence[Callback],
        **options: Any,
    ) -> Job:
        """Look at what `fit` and `pretrain` are given, before anything is computed or written."""
        refuse_inference_tensors(self)
        train = as_loader(train, shuffle=True)
        val = None if val is None else as_loader(val)
        callbacks = check_arguments(train, options["seed"], callbacks, strategy, by_name=by_name)
        folder = RunFolder.of(output_dir, resume=resume)
        if folder is not None:
            _refuse_own_weights(self.weights, *(folder.path / name for name in RUN_FILES))
            folder.check(overwrite=overwrite)
        job = Job(
            device=self.device,
            train=train,
            val=val,
            folder=folder,
            callbacks=callbacks,
            **options,
        )
        job.train, job.val = self._same_features(train, val)
        self.check(job.train, job.val)
        return job

    def _same_features(self, train: Any, val: Any) -> tuple[Any, Any]:
        """Features of series as the backbone was pre-trained on them, in both sets."""
        train = with_features(train, self.backbone.feature_names, of="the backbone")
        names = feature_names_of(train)
        if names is not None:
            self.backbone.feature_names = names
            logger.info("Features (%d): %s", len(names), ", ".join(names))
        return train, None if val is None else with_features(val, names, of="the training set")

    def _rebase(self, weights: Path | None) -> None:
        """Let the weights of now be the base that checkpoints refer to."""
        self.backbone.mark_trained()
        self.random_base = False
        self.weights = None if weights is None else base_weights.as_given(weights)
        self._base_digests = tensor_digests(self.backbone.base_state_dict())
        self.base_fingerprint = combine_digests(self.backbone.config_dict, self._base_digests)

    @settled()
    def check(self, *data: Any) -> Self:
        """Ask the backbone of every sample of data sets or loaders whether it can take it.

        Raises
        ------
        DataError
            Listing all samples it cannot take. Data that is no list of samples is left alone.
        """
        n, problems = self.backbone.problems(samples_of(data))
        if problems:
            raise DataError(
                f"{counted(n, 'sample')} cannot be used with {self.backbone.display_name}:\n"
                f"{listing(problems)}\nRepair them or remove their rows."
            )
        return self

    # --- use -----------------------------------------------------------------------------------

    @settled(draws=True)
    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Head outputs of a batch, in the task's own scale; with a graph where weights train."""
        need_head(self, "forward")
        return self._runner().outputs(as_inputs(batch))

    @settled()
    def predict(self, data: Any, *, outputs: Sequence[str] | None = None) -> Prediction:
        """Predict for one batch, a loader or a dataset.

        Parameters
        ----------
        data
            A `Sample`, a batch of samples, a dict of the backbone's tensors, or anything that `fit`
            takes; labels are not looked at.
        outputs
            For one batch: which representations ``trunk`` holds, among "single" (the default),
            "pair" and "structure".

        Returns
        -------
        Prediction
            ``ids``, ``prediction`` in the units of the labels and, for one batch, ``trunk``.
            Without a head: ``ids`` and ``trunk``.

        Raises
        ------
        ConfigError
            If `outputs` are asked for more than one batch.
        """
        self._warn_unready()
        if is_many(data):
            if outputs is not None:
                raise ConfigError(
                    "outputs is for one batch, and this is a loader, a data set or a list of "
                    "structures. Give a list of Sample, or use embed, which takes as many as you "
                    "like."
                )
            watch = trained_on.Watch(self._to_use(data), self.training_inputs)
            result = self._runner().evaluate(watch, labels=False)
            watch.warn()
            _, task = need_head(self, "predict")
            return Prediction(ids=result.ids, **task.present(result.predictions))
        return self._predict_batch(data, ("single",) if outputs is None else outputs)

    @settled()
    def predict_and_score(self, data: Any) -> tuple[Prediction, dict[str, float]]:
        """`predict` and the metrics of `evaluate` in one pass over a loader or dataset."""
        _, task = need_head(self, "predict_and_score")
        loader = self._to_use(data)
        watch = trained_on.Watch(loader, self.training_inputs, labels=True)
        with self._measuring(loader) as runner:
            result = runner.evaluate(watch)
        watch.warn()
        prediction = Prediction(ids=result.ids, **task.present(result.predictions))
        return prediction, runner.metrics(result)

    def _warn_unready(self) -> None:
        if self.task is not None and not getattr(self.task, "fitted", True):
            logger.warning("The head has not been trained: its predictions mean nothing yet.")
        unready = self.backbone.unready() if isinstance(self.backbone, OwnHeads) else None
        if unready is not None:
            logger.warning("%s", unready)

    def _to_use(self, data: Any) -> Any:
        """A loader; says so if it brings other representations than the head was trained on."""
        loader = as_loader(data)
        refuse_nothing(loader)
        loader = with_features(loader, self.data_settings.get("feature_columns"), of="the model")
        if self.backbone.checks_quickly:
            self.check(loader)
        settings = input_settings_of(loader)
        trained = self.data_settings.get("representations")
        given = settings.get("representations")
        if given is None and trained is not None:
            given = self.backbone.state_fingerprint()
        if given != trained and (trained is not None or given is not None):
            logger.warning(
                "The head was trained on %s, and predicts from %s: the numbers may mean nothing.",
                _representations_of(trained),
                _representations_of(given),
            )
        return loader if isinstance(loader, list) else Bounded(loader)

    @torch.no_grad()
    def _predict_batch(self, data: Any, outputs: Sequence[str]) -> Prediction:
        watch = trained_on.Watch([data], self.training_inputs)
        (inputs,) = watch
        watch.warn()
        needs = dict.fromkeys((*outputs, *(self.head.needs if self.head is not None else ())))
        prediction = Prediction(ids=inputs.ids)
        reader = "predict"
        if self.head is not None:
            reader += f" with the head {type(self.head).__name__}"
        forward = ForwardPass(self.backbone, tuple(needs), device=self.device, reader=reader)
        with evaluating(self), arithmetic.autocast(self):
            trunk = forward.whole(inputs)
            if self.head is not None and self.task is not None:
                lengths = [int(n) for n in trunk.mask.sum(1).tolist()]
                scores = self.task.predictions(self.head(trunk))
                prediction.update(self.task.present(self.task.split(scores, lengths)))
        prediction["trunk"] = trunk.select(outputs)
        return prediction

    @settled()
    def embed(
        self,
        data: Any,
        *,
        pooling: embedding.Pooling | None = None,
        layer: int = -1,
        batch_tokens: int = embedding.BATCH_TOKENS,
    ) -> Any:
        """Representations of sequences, structures of atoms, samples or a dataset, in input order.

        Parameters
        ----------
        data
            A sequence, a list of sequences, of ``ase.Atoms`` or of samples, a dataset, or anything
            else of samples that `fit` takes.
        pooling
            None for one vector a residue (without the tokens for beginning and end) or atom,
            ``"mean"`` over them, or ``"cls"`` (the token at the beginning).
        layer
            Which layer, where the backbone gives several: -1 the last, 0 the input embeddings.
        batch_tokens
            Residues or atoms that go through the model together; lower it when memory runs out.

        Returns
        -------
        numpy.ndarray or list
            (samples, channels) where pooled, else a list of (length, channels); float32.

        Examples
        --------
        >>> model = MolfunStructureModel("esm2_tiny")
        >>> [array.shape for array in model.embed(["MKV", "ACDEF"])]
        [(3, 32), (5, 32)]
        >>> model.embed("MKV", pooling="mean").shape
        (1, 32)
        """
        samples = all_samples(data)
        refuse_nothing(samples)
        self.check(samples)
        with arithmetic.autocast(self):
            arrays = embedding.embed(
                self.backbone,
                samples,
                pooling=pooling,
                layer=layer,
                device=self.device,
                batch_tokens=batch_tokens,
            )
        if pooling is None:
            return arrays
        return np.stack(arrays)

    @settled()
    def evaluate(
        self, data: Any, *, bootstrap: int = 0, confidence: float = 0.95
    ) -> dict[str, float]:
        """Loss and metrics over a loader or dataset with labels, metrics in the label's units.

        Parameters
        ----------
        data
            Anything with labels that `fit` takes.
        bootstrap
            Draws for intervals of the metrics (``rmse_low``, ``rmse_high``, ...); 0 gives none.
        confidence
            Share of the draws that lies within.

        Returns
        -------
        dict
            ``loss``, ``rmse``, ``mae``, ``pearson``, ``spearman``, ``r2`` for regression; NaN
            where undefined.
        """
        need_head(self, "evaluate")
        self._warn_unready()
        loader = self._to_use(data)
        watch = trained_on.Watch(loader, self.training_inputs, labels=True)
        with self._measuring(loader) as runner:
            result = runner.evaluate(watch)
        watch.warn()
        if result.loss_count == 0:
            raise DataError(
                "Nothing to evaluate: the data has no labels. Use predict, or fill the target "
                "column."
            )
        found = {"loss": result.loss, **runner.metrics(result)}
        if bootstrap:
            found |= intervals(
                runner.task, result.predictions, result.targets, n=bootstrap, confidence=confidence
            )
        return found

    def _runner(self, task: Task | None = None) -> SupervisedRunner:
        head, own = need_head(self, "this")
        return SupervisedRunner(
            self.backbone,
            head,
            task or own,
            device=self.device,
            autocast=lambda: arithmetic.autocast(self),
        )

    @contextlib.contextmanager
    def _measuring(self, loader: Any) -> Iterator[SupervisedRunner]:
        """What evaluates data; all that it has labels of is predicted meanwhile."""
        head, task = need_head(self, "this")
        known = column_of(getattr(loader, "dataset", None), "targets") is not None
        if isinstance(loader, list) or known:
            check_labels(task, loader)
            task = head.measured(task, lambda: targets_of(loader))
        head.attach(self.backbone, task)
        try:
            yield self._runner(task)
        finally:
            attach(self)

    # --- targets of the backbone -----------------------------------------------------------------

    @settled()
    def add_target(
        self,
        name: str,
        *,
        inherit: str | None = None,
        keep_old: bool = True,
        unit: str | None = None,
    ) -> Self:
        """Give a model of atoms another energy with a head of its own, and use it from now on.

        Its baseline (an energy for each element) is fitted to the training set of the next `fit`.

        Parameters
        ----------
        name
            A new name: ``"energy/pbe0"``.
        inherit
            Energy whose head it starts from; None starts from random weights.
        keep_old
            Whether the energies that were there stay; `use_target` goes back to them.
        unit
            Unit of its labels; that of `inherit` by default, else eV.

        Raises
        ------
        ConfigError
            If the backbone has no energies, the name is there already, or `inherit` is not.
        """
        backbone = self._need_energies("add_target")
        backbone.add_target(name, unit=unit, inherit=inherit, keep_old=keep_old)
        self.weights = None  # a checkpoint has to hold what no file does
        self._base_digests = tensor_digests(self.backbone.base_state_dict())
        self.base_fingerprint = combine_digests(self.backbone.config_dict, self._base_digests)
        return self.use_target(name)

    @settled()
    def use_target(self, name: str) -> Self:
        """Let another of the backbone's energies be what is trained and predicted.

        Raises
        ------
        ConfigError
            If there is no such energy.
        """
        self._need_energies("use_target")
        head, _ = need_head(self, "use_target")
        self.head = construct("head_config", type(head), {**head.config_dict, "target": name})
        attach(self)
        return self

    def _need_energies(self, verb: str) -> AtomisticBackbone:
        if not isinstance(self.backbone, AtomisticBackbone) or self.head_name != "energy":
            raise ConfigError(
                f"{verb} is for models of atoms with head='energy', such as "
                f"MolfunStructureModel('pet', head='energy')."
            )
        return self.backbone

    # --- adapters ------------------------------------------------------------------------------

    @settled()
    def merge(self) -> Self:
        """Fold the adapters into the weights: the same predictions without the extra layers."""
        if lora.installed_spec(self.backbone) is None:
            logger.warning("merge: the model has no adapters; nothing to do.")
        elif lora.is_merged(self.backbone):
            logger.warning("merge: the adapters are merged already; nothing to do.")
        else:
            lora.merge(self.backbone)
        return self

    @settled()
    def unmerge(self) -> Self:
        """Take the adapters out again; the base weights come back bit by bit."""
        if lora.is_merged(self.backbone):
            lora.unmerge(self.backbone)
        else:
            logger.warning("unmerge: the adapters are not merged; nothing to do.")
        return self

    # --- save and load -------------------------------------------------------------------------

    @settled()
    def save(self, path: str | Path) -> Self:
        """Write a checkpoint folder that suffices to predict; see `molfun.models.checkpoint`."""
        head, task = need_head(self, "save")
        _refuse_own_weights(self.weights, as_path(path))
        with lora.unmerged(self.backbone):
            trunk = self._trunk_to_save()
            meta = portable.Meta(
                backbone={
                    "name": self.backbone.name,
                    "config": self.backbone.config_dict,
                    **base_weights.note(self.weights, as_path(path)),
                    "fingerprint": self.base_fingerprint,
                },
                head={"name": self.head_name, "config": dict(head.config_dict)},
                task={
                    "name": self.task_name,
                    "config": dict(task.config_dict),
                    "state": task.state_dict(),
                },
                strategy=None if self.strategy is None else self.strategy.to_dict(),
                whole_trunk=self.weights is None,
                # an undefined metric is NaN, which JSON has no word for
                result={k: v for k, v in self.result.items() if v == v},
                data={
                    **self.data_settings,
                    "precision": self.precision,
                    "random_base": self.random_base,
                },
            )
            adapted = lora.installed_spec(self.backbone) is not None
            portable.write_checkpoint(
                as_path(path),
                meta,
                head=head.state_dict(),
                trunk=trunk,
                save_adapter=(lambda f: lora.save_adapter(self.backbone, f)) if adapted else None,
                training_inputs=self.training_inputs,
            )
        return self

    def _trunk_to_save(self) -> dict[str, torch.Tensor]:
        """Everything where the base came from no file, else what differs from the base."""
        if self.weights is None:
            return self.backbone.base_state_dict(whole=True)
        tensors = self.backbone.base_state_dict()
        present = tensor_digests(tensors)
        return {n: t for n, t in tensors.items() if present[n] != self._base_digests.get(n)}

    @settled()
    def load(self, path: str | Path) -> Self:
        """Put the weights of a checkpoint into this model; the strategy is applied by itself.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged, or made for another backbone, base, head or task.
        """
        folder = as_path(path)
        meta = portable.read_meta(folder)
        with portable.building(folder, None if self.weights is None else Path(self.weights)):
            self._load(folder, meta)
        self.eval()
        return self

    def _load(self, folder: Path, meta: portable.Meta) -> None:
        self._check_fits(folder, meta)
        head, task = need_head(self, "load")
        trunk = portable.read_trunk(folder)
        self._check_untrained(folder, trunk)
        if trunk:
            self._load_trunk(folder, trunk, whole=meta.whole_trunk)
        if (folder / portable.ADAPTER).is_dir():
            lora.load_adapter(self.backbone, folder / portable.ADAPTER)
        if meta.strategy is not None:
            FinetuneStrategy.from_dict(meta.strategy).setup(self)
        _load_exactly(head, portable.read_head(folder), folder / portable.HEAD)
        task.load_state_dict(meta.task["state"])
        self.backbone.weights_changed()
        attach(self)
        self.result, self.data_settings = dict(meta.result), dict(meta.data)
        arithmetic.use_precision(self, str(self.data_settings.pop("precision", "32-true")))
        self.random_base = bool(self.data_settings.pop("random_base", False))
        self.training_inputs = portable.read_training_inputs(folder)

    def _check_fits(self, folder: Path, meta: portable.Meta) -> None:
        theirs: dict[str, Any] = {
            "backbone": meta.backbone["name"],
            "backbone config": meta.backbone["config"],
            "head": meta.head["name"],
            "head config": meta.head["config"],
            "task": meta.task["name"],
            "base weights": meta.backbone["fingerprint"],
        }
        ours: dict[str, Any] = {
            "backbone": self.backbone.name,
            "backbone config": self.backbone.config_dict,
            "head": self.head_name,
            "head config": {} if self.head is None else self.head.config_dict,
            "task": self.task_name,
            "base weights": None if meta.whole_trunk else self.base_fingerprint,
        }
        if meta.whole_trunk:
            theirs["base weights"] = None
        differences = _differences(flattened(theirs), flattened(ours))
        if lora.is_merged(self.backbone):
            differences.append("the adapters of this model are merged: call unmerge() first")
        if differences:
            raise CheckpointError(
                f"{folder} does not fit this model:\n{listing(differences)}\nBuild the model as it "
                f"was trained (base weights: {meta.backbone['weights'] or 'none'}), or use "
                f"MolfunStructureModel.from_checkpoint."
            )

    def _check_untrained(self, folder: Path, trunk: Mapping[str, torch.Tensor]) -> None:
        """Refuse where training of this model would show through what the checkpoint leaves out."""
        present = tensor_digests(self.backbone.base_state_dict())
        kept = [n for n, d in present.items() if d != self._base_digests[n] and n not in trunk]
        adapters = lora.installed_spec(self.backbone) is not None
        left = [f"{len(kept)} weights of the backbone"] if kept else []
        if adapters and not (folder / portable.ADAPTER).is_dir():
            left.append("adapters")
        if left:
            raise CheckpointError(
                f"{folder} does not hold {' and '.join(left)} that were trained in this model, and "
                f"would be mixed with them. Load it into a new model, or use "
                f"MolfunStructureModel.from_checkpoint."
            )

    @torch.no_grad()
    def _load_trunk(self, folder: Path, trunk: Mapping[str, torch.Tensor], *, whole: bool) -> None:
        own = self.backbone.base_state_dict(whole=True)
        missing = sorted(own.keys() - trunk.keys()) if whole else []
        extra = sorted(trunk.keys() - own.keys())
        shapes = [n for n in trunk.keys() & own.keys() if trunk[n].shape != own[n].shape]
        if missing or extra or shapes:
            raise CheckpointError(
                f"{folder / portable.TRUNK} does not fit the backbone: {len(missing)} weights "
                f"missing, {len(extra)} unexpected, {len(shapes)} of another shape "
                f"({[*missing, *extra, *shapes][:3]})."
            )
        for name, tensor in trunk.items():
            own[name].copy_(tensor)

    @classmethod
    @settled()
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        kernels: Kernels = "auto",
    ) -> Self:
        """Build the model a checkpoint describes and load it.

        Parameters
        ----------
        path
            Checkpoint folder.
        weights
            File of the base weights, if it is not where it was in training. Not needed where the
            checkpoint holds the whole backbone.
        device
            Where to put the model.
        kernels
            Whose code runs, see the class.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged or its base weights are not found.
        """
        folder = as_path(path)
        meta = portable.read_meta(folder)
        if meta.whole_trunk and weights is not None:
            logger.warning("%s holds the whole backbone: %s is not read.", folder, weights)
        bases: list[Path | None] = [None]
        if not meta.whole_trunk:
            bases = [*base_weights.places(meta.backbone, folder, given=weights)]
        problems: list[MolfunError] = []
        for base in bases:
            try:
                model = cls._described(folder, meta, base, device=device, kernels=kernels)
                model.load(folder)
            except MolfunError as error:
                problems.append(error)
                continue
            if base is not None and weights is None and str(base) != meta.backbone["weights"]:
                logger.warning(
                    "The base weights of %s are no longer %s; the same ones were found as %s.",
                    folder, meta.backbone["weights"], base,
                )  # fmt: skip
            model._warn_of_random_base(folder)
            return model
        raise problems[0]

    @classmethod
    def _described(
        cls, folder: Path, meta: portable.Meta, base: Path | None, **options: Any
    ) -> Self:
        """The model that a checkpoint describes, on these base weights, not yet loaded."""
        quiet = logging.getLogger(__name__)
        level = quiet.level
        # random weights are replaced at once by those of the checkpoint
        quiet.setLevel(logging.ERROR)
        try:
            with portable.building(folder, base):
                backbone = BACKBONES[meta.backbone["name"]]
                return cls(
                    meta.backbone["name"],
                    weights=base,
                    head=meta.head["name"],
                    head_config=meta.head["config"],
                    task=meta.task["name"],
                    task_config=meta.task["config"],
                    backbone_config=backbone.arguments_from(meta.backbone["config"]),
                    **options,
                )
        finally:
            quiet.setLevel(level)

    def _warn_of_random_base(self, folder: Path) -> None:
        frozen = sum(p.numel() for p in self.backbone.parameters() if not p.requires_grad)
        if self.random_base and frozen:
            logger.warning(
                "%s was trained on a backbone without pretrained weights: %s of its weights are "
                "random.", folder, f"{frozen:,}",
            )  # fmt: skip

    # --- look ----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def count_parameters(self, *, trainable: bool = False) -> int:
        """Number of parameters of backbone and head, or of those that train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def summary(self) -> str:
        """Text table: parameters and trainable parameters of each part."""
        rows: dict[str, list[int]] = {}
        for name, parameter in self.named_parameters():
            part = self._part_of(name)
            entry = rows.setdefault(part, [0, 0])
            entry[0] += parameter.numel()
            entry[1] += parameter.numel() if parameter.requires_grad else 0
        total = [sum(r[i] for r in rows.values()) for i in (0, 1)]
        lines = [f"{'part':<20}{'parameters':>14}{'trainable':>14}"]
        lines += [f"{part:<20}{n:>14,}{t:>14,}" for part, (n, t) in rows.items()]
        share = 100 * total[1] / max(total[0], 1)
        lines.append(f"{'total':<20}{total[0]:>14,}{total[1]:>14,}  ({share:.2f} %)")
        return "\n".join(lines)

    def _part_of(self, name: str) -> str:
        if name.startswith("head."):
            return "head"
        if lora.is_adapter(name):
            return "adapters"
        kind = self.backbone.layer_of(
            name.removeprefix("backbone.").replace(".base_layer", "")
        ).kind
        return {"block": f"{len(self.backbone.blocks())} blocks"}.get(kind, kind.replace("_", " "))

    def __repr__(self) -> str:
        n_backbone = sum(p.numel() for p in self.backbone.parameters())
        text = f"{self.backbone.name}, {n_backbone:,} params"
        if self.head is not None:
            n_head = sum(p.numel() for p in self.head.parameters())
            text += f"; head {self.head_name}, {n_head:,} params"
        return f"{type(self).__name__}({text}; {self.device})"


def _representations_of(model: str | None) -> str:
    if model is None:
        return "what this backbone gives"
    if model == "unknown":
        return "representations given as arrays"
    return f"representations of the model {model[:12]}"


def _refuse_own_weights(weights: str | None, *written: Path) -> None:
    """Refuse to write what the model's base weights came from: they could not be found again."""
    for path in () if weights is None else written:
        if is_within(Path(str(weights)), path):
            raise RunError(
                f"{path} would be replaced, and the base weights of this model are {weights}. "
                f"Choose another folder, or copy the weights elsewhere."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}..."


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {_short(theirs.get(key))} in it, {_short(ours.get(key))} in this model"
        for key in dict.fromkeys([*theirs, *ours])
        if theirs.get(key) != ours.get(key)
    ]


def _load_exactly(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not fit the head: {' '.join(str(error).split())}"
        ) from error

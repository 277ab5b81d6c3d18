"""`MolfunStructureModel`, the facade for every backbone, head, task and strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from molfun._paths import as_path
from molfun.backbones.kernels import Kernels
from molfun.models import (
    embedding,
    energies,
    evaluation,
    fine_tuning,
    folding,
    persistence,
    prediction,
    pretraining,
    variant_scores,
)
from molfun.models.arguments import open_job
from molfun.models.assembly import AssembledModel
from molfun.models.build import as_settings
from molfun.models.caching import cache_config
from molfun.models.prediction import Prediction
from molfun.nn.int8 import Base
from molfun.nn.process import settled
from molfun.parallel.started import Devices, Way
from molfun.runs.folder import RunFolder
from molfun.strategies.base import FinetuneStrategy
from molfun.structures.folded import FoldedStructure
from molfun.training.cache import CacheConfig, CacheMode
from molfun.training.callbacks import Callback
from molfun.training.history import History
from molfun.training.inputs import as_inputs
from molfun.training.loggers.base import Logger


class MolfunStructureModel(AssembledModel):
    """A pretrained backbone and a head, to fine-tune, evaluate, save and use.

    Parameters
    ----------
    backbone
        Registered name, for example ``"openfold"`` or ``"esm2_t6_8M_UR50D"``.
    config
        Architecture, in the backbone's own terms (a preset name or config object).
    weights, device
        File of pretrained weights (None starts from random ones, with a warning); ``"auto"`` (CUDA
        if there is one, else CPU) or a torch device.
    head
        Registered name of the head (``"affinity"``, ``"mlp"``, ...) or of a task
        (``"regression"``, ``"binary"``, ...), which takes its default head; None gives the head
        that came with the backbone (PET's energies), else the bare backbone.
    head_config, task, task_config
        Arguments of the head; dimensions default to what the backbone gives. Registered name and
        arguments of the task; None takes the head's own.
    heads
        Several heads in place of one, by name: each a mapping with ``head``, ``head_config``,
        ``task``, ``task_config`` and ``weight``, the factor of its loss (1 by default). The label
        of a sample then maps names to labels; what it leaves out is missing.
    seed, backbone_config
        Seed of every random initialisation; further arguments of the backbone.
    kernels
        Implementation of the layers: ``"stock"`` is the code of the original package, ``"fast"``
        Molfun's with the same results, ``"auto"`` Molfun's if it passes a test on this machine.
    trust
        Whether you trust `weights` in a format that can run code (PET's ``.ckpt``).
    base, augment
        ``"int8"`` for ``LoRAFinetune(base="int8")``: a file of ESM-2 is read into it at once;
        ``"zero_shot"`` gives the head the base model's score of each variant as well.

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
        loggers: Sequence[Logger | str] | str = (),
        save_every_steps: int | None = None,
        restore_best: bool = True,
        overwrite: bool = False,
        devices: Devices = "auto",
        num_nodes: int = 1,
        parallel: Way = "auto",
    ) -> History:
        """Fine-tune; afterwards the model holds the best weights.

        Parameters
        ----------
        train_loader, val_loader
            ``DataLoader`` of samples, a data set (batched by its default size; your own has a
            length and returns `Sample`), a list of samples, of (sequence, number) pairs or of
            batches. `pretrain`, `predict`, `evaluate` and `embed` accept the same.
        strategy
            What trains and how fast: a strategy, the name of one, or "auto" (by sample count).
        epochs, max_steps
            Limits of the training; 20 epochs if neither is given.
        output_dir
            Folder of the run: ``checkpoint/`` (the best so far), ``resume/`` (its state) and
            ``history.csv``. A `molfun.runs.folder.RunFolder` is used as it was opened.
        resume
            Continue the run in `output_dir` where it stopped, bit by bit.
        seed
            Decides the order of samples and dropout.
        precision
            "fp32", "bf16" or "fp16" (or Fabric's names); overrides the strategy's ``amp``.
        cache
            Where outputs of a frozen backbone, or activations before its first block that trains,
            are kept: "auto", "memory", "disk", "off", or a `CacheConfig` with budgets, precision.
        cache_dir
            Folder for "auto" and "disk", which runs may share; by default in `output_dir`.
        callbacks, loggers
            Hooks (`molfun.training.Callback`), and experiment trackers: names ("tensorboard",
            "wandb") or objects of `molfun.training.loggers`.
        save_every_steps
            Optimizer steps between resume states; epochs and ten minutes write one as well.
        restore_best
            False leaves the last epoch's weights in the model; ``checkpoint/`` has the best.
        overwrite
            Whether a run that `output_dir` already holds may be replaced.
        devices, num_nodes
            Processes per machine and machines, as torchrun or a scheduler started them.
        parallel
            "ddp": a copy of the model in each process; "fsdp2": its blocks are divided among them;
            "fsdp2_offload": and wait in the memory of the host.

        Returns
        -------
        History
            One row per epoch.

        Raises
        ------
        NonFiniteError
            If losses stay NaN or infinite.
        RunError
            If a run cannot be resumed or written.
        """
        self.need_heads("fit")
        job = open_job(
            self, train_loader, val_loader, strategy, output_dir=output_dir, resume=resume,
            overwrite=overwrite, epochs=20 if epochs is None and max_steps is None else epochs,
            max_steps=max_steps, seed=seed, precision=precision, callbacks=callbacks,
            loggers=loggers, save_every_steps=save_every_steps, restore_best=restore_best,
            devices=devices, num_nodes=num_nodes, parallel=parallel,
        )  # fmt: skip
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
        loggers: Sequence[Logger | str] | str = (),
        save_every_steps: int | None = None,
        overwrite: bool = False,
        devices: Devices = "auto",
        num_nodes: int = 1,
        parallel: Way = "auto",
    ) -> History:
        """Train the backbone on unlabelled data; the head is not changed.

        Parameters
        ----------
        train_loader, val_loader
            As in `fit`; labels are ignored.
        objective, objective_config
            Registered name (``"masked_lm"``) and arguments of the objective.
        strategy
            What trains and how fast; None trains everything at 4e-4 with 5 % warm-up.
        epochs, max_steps
            Limits of the training; 10 epochs if neither is given.
        output_dir
            Folder of the run: ``weights.safetensors`` (the best weights so far, to be passed as
            ``weights``; with jepa the last, since its loss cannot rank epochs), ``resume/`` and
            ``history.csv``.
        resume, seed, precision, callbacks, loggers, save_every_steps, overwrite
            As in `fit`; ``devices``, ``num_nodes`` and ``parallel`` as well.

        Returns
        -------
        History
            One row per epoch, with the metrics of the objective (``val/perplexity``).

        Raises
        ------
        ConfigError, RunError
            If the backbone lacks what the objective needs, the strategy trains adapters or the
            backbone carries any; if a run cannot be resumed or written.
        """
        pretraining.refuse_adapters(self.backbone)
        strategy = pretraining.DEFAULT if strategy is None else strategy
        job = open_job(
            self, train_loader, val_loader, strategy, by_name=False, output_dir=output_dir,
            resume=resume, overwrite=overwrite,
            epochs=10 if epochs is None and max_steps is None else epochs, max_steps=max_steps,
            seed=seed, precision=precision, callbacks=callbacks, loggers=loggers,
            save_every_steps=save_every_steps, devices=devices, num_nodes=num_nodes,
            parallel=parallel,
        )  # fmt: skip
        config = as_settings("objective_config", objective_config)
        history = pretraining.run(
            self, job, strategy, objective_name=objective, objective_config=config
        )
        persistence.rebase(self, None if job.folder is None else job.folder.weights)
        return history

    # --- use -----------------------------------------------------------------------------------

    @settled(draws=True)
    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the head outputs of a batch in the task's scale, with a graph if weights train.

        With several heads, the outputs of each are a dict under its name.
        """
        return evaluation.runner_of(self, "forward").outputs(as_inputs(batch))

    @settled()
    def predict(
        self,
        data: Any,
        *,
        outputs: Sequence[str] | None = None,
        structures: str | Path | None = None,
    ) -> Prediction:
        """Return predictions for one batch, a loader or a data set.

        Parameters
        ----------
        data
            A `Sample`, a batch of samples, a dict of the backbone's tensors, or anything that `fit`
            takes; labels are ignored.
        outputs
            For one batch: the representations to return in ``trunk``, among "single" (the
            default), "pair" and "structure".
        structures
            Folder for the predicted structures, from the same forward pass as the predictions.

        Returns
        -------
        Prediction
            ``ids``, ``prediction`` (units of the labels; by name with several heads, none without
            a head) and, for one batch, ``trunk``.

        Raises
        ------
        ConfigError
            If `outputs` is given for more than one batch.
        """
        return prediction.predict(self, data, outputs, structures)

    def predict_and_score(self, data: Any) -> tuple[Prediction, dict[str, float]]:
        """Return the results of `predict` and `evaluate` from one pass over the data."""
        return (found := prediction.scored(self, data)).prediction, found.metrics

    @settled()
    def embed(
        self,
        data: Any,
        *,
        pooling: embedding.Pooling | None = None,
        layer: int = -1,
        batch_tokens: int = embedding.BATCH_TOKENS,
        precision: embedding.InferencePrecision | None = None,
    ) -> Any:
        """Return representations of sequences, atoms, samples or a data set, in input order.

        Parameters
        ----------
        data
            A sequence, a list of sequences, ``ase.Atoms`` or samples, or data that `fit` takes.
        pooling
            None for one vector per residue (without start and end tokens) or atom, ``"mean"`` for
            their mean, or ``"cls"`` for the start token.
        layer, batch_tokens, precision
            Layer, if there are several: -1 the last, 0 the input embeddings; residues or atoms per
            batch; ``"fp32"``, ``"bf16"`` or ``"auto"`` (by the device), by default as trained.

        Returns
        -------
        numpy.ndarray or list
            (samples, channels) with pooling, else a list of (length, channels); float32.

        Examples
        --------
        >>> model = MolfunStructureModel("esm2_tiny")
        >>> [array.shape for array in model.embed(["MKV", "ACDEF"])]
        [(3, 32), (5, 32)]
        """
        return embedding.embed(self, data, pooling, layer, batch_tokens, precision)

    @settled()
    def score_variants(
        self, wild_type: Any, variants: Any = "all", **options: Any
    ) -> variant_scores.VariantScores:
        """Score variants by the language model; see `molfun.models.variant_scores`."""
        return variant_scores.score_variants(self, wild_type, variants, **options)

    @settled()
    def fold(
        self, data: Any, *, recycles: int = 3, tolerance: float | None = None, seed: int = 0,
        precision: embedding.InferencePrecision | None = None,
    ) -> list[FoldedStructure]:  # fmt: skip
        """Predict the structures of sequences, samples or a data set, in input order.

        Parameters
        ----------
        data
            Sequences (``"MKV:ACD"``: two chains), samples, or structures (coordinates unread).
        recycles, tolerance, seed, precision
            Passes before the last; change of CA distances (angstrom) that ends them; seed of the
            choice of alignment rows; precision as in `embed`.

        Returns
        -------
        list of FoldedStructure
            Coordinates, pLDDT and, of a preset with a TM head, pTM and predicted aligned error.

        Raises
        ------
        ConfigError, DataError
            If the backbone predicts no structures or an argument cannot be used; if there are no
            samples, a chain has no residues or other letters, a sample takes more memory than is
            free, or the prediction is not finite.

        Examples
        --------
        >>> [pair] = MolfunStructureModel("openfold", config="tiny").fold(["MKT:ACD"], recycles=1)
        >>> pair.protein.chain_ids, pair.plddt.shape, pair.recycles
        (('A', 'B'), (6,), 1)
        """
        return folding.fold([self], data, recycles=recycles, tolerance=tolerance, seed=seed,
                            precision=precision)  # fmt: skip

    @settled()
    def evaluate(
        self, data: Any, *, bootstrap: int = 0, confidence: float = 0.95, baselines: Any = False
    ) -> evaluation.Scores:
        """Return loss and metrics over a loader or data set with labels, in the label's units.

        Parameters
        ----------
        data
            Anything with labels that `fit` takes.
        bootstrap, confidence
            Draws for intervals of the metrics (``rmse_low``, ``rmse_high``; 0 computes none), and
            the share of the draws inside them.
        baselines
            True to compare with simple models of the training set of the last `fit` in this
            process; else the training set itself.

        Returns
        -------
        Scores
            ``loss``, ``rmse``, ``mae``, ``pearson``, ``spearman``, ``r2`` for regression; NaN if
            undefined. With several heads, names begin with that of the head: ``ddg/rmse``.
        """
        return evaluation.evaluate(
            self, data, bootstrap=bootstrap, confidence=confidence, baselines=baselines
        )

    # --- energies of the backbone ----------------------------------------------------------------

    @settled()
    def add_target(
        self,
        name: str,
        *,
        inherit: str | None = None,
        keep_old: bool = True,
        unit: str | None = None,
    ) -> Self:
        """Add another energy, with its own head, to a model of atoms, and use it from now on.

        Its baseline (an energy per element) is estimated on the training set of the next `fit`.

        Parameters
        ----------
        name
            A new name: ``"energy/pbe0"``.
        inherit
            Energy whose head is copied; None starts from random weights.
        keep_old
            Whether to keep the present energies; `use_target` returns to them.
        unit
            Unit of the labels; that of `inherit` by default, else eV.

        Raises
        ------
        ConfigError
            If the backbone has no energies, `name` exists already, or `inherit` does not.
        """
        return energies.add_target(self, name, inherit=inherit, keep_old=keep_old, unit=unit)

    @settled()
    def use_target(self, name: str) -> Self:
        """Choose which of the backbone's energies is trained and predicted.

        Raises
        ------
        ConfigError
            If there is no such energy.
        """
        return energies.use_target(self, name)

    # --- save and load -------------------------------------------------------------------------

    @settled()
    def save(self, path: str | Path) -> Self:
        """Write a checkpoint folder that suffices to predict; an older checkpoint is replaced.

        Raises
        ------
        CheckpointError
            If `path` holds anything else.
        """
        persistence.save(self, as_path(path))
        return self

    @settled()
    def load(self, path: str | Path) -> Self:
        """Load the weights of a checkpoint into this model, and apply its strategy.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged, or was made for another backbone, base, head or task.
        """
        persistence.load(self, as_path(path))
        return self

    @classmethod
    @settled()
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        kernels: Kernels = "auto",
        base: Base | None = None,
    ) -> Self:
        """Build the model that a checkpoint describes and load it.

        Parameters
        ----------
        path, weights
            Checkpoint folder; file of the base weights, if it was moved since training.
        device, kernels, base
            As for the class; `base` None takes that of the training, for checkpoints of LoRA.

        Raises
        ------
        CheckpointError
            If the checkpoint is damaged or its base weights are not found.
        """
        return persistence.from_checkpoint(
            cls, as_path(path), weights=weights, device=device, kernels=kernels, base=base
        )

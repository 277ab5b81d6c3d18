"""Fine-tuning of a pre-trained encoder under a Lightning Trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.backbones.timeseries.weights import StoredWeights, read_weights
from molfun.errors import ConfigError, RunError
from molfun.heads.base import Head
from molfun.lightning.build import (
    build_head,
    build_task,
    encoder_settings,
    learns_from_labels,
    standardizes,
)
from molfun.lightning.data import label_list, label_of, series_of, training_batches
from molfun.lightning.module import STATE, TimeSeriesModule
from molfun.models.series_config import FinetuneConfig, finetune_config
from molfun.nn.modes import evaluating
from molfun.parallel.gradients import GradientSum
from molfun.tasks.base import Task
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs
from molfun.training.supervised import Evaluation, SupervisedRunner
from molfun.training.task_head import TaskHead
from molfun.trunk import TrunkOutput

logger = logging.getLogger(__name__)


class FineTuneModule(TimeSeriesModule):
    """Fine-tune an encoder with a head on labelled series.

    The head alone trains by default (``training.freeze_encoder: true``); with ``unfreeze_epoch: N``
    the encoder joins it in epoch N, on one device or with ``strategy="ddp"``.

    Labels are class numbers from 0, (batch, classes) zeros and ones for multilabel tasks, or
    numbers for regression; NaN is a missing label.

    The module logs ``train/loss_step`` and, once per epoch, ``loss`` and all metrics of the task
    for ``train``, ``val`` and ``test``: accuracy, f1, auroc, auprc and others for classes; rmse,
    mae, r2 and others for regression. They are computed over all samples of the epoch, in all
    processes. A metric that is not defined (one class only) is NaN. With a scheduler, ``lr`` is
    logged as well.

    Parameters
    ----------
    config
        Sections ``encoder``, ``task``, ``training``, ``optimizer``, ``scheduler`` (optional) and
        ``data``, as a dict or an OmegaConf ``DictConfig``; see `load_config`. Encoder settings
        that are left out are taken from the file.
    checkpoint_path
        File of the encoder, written by `SSLPretrainModule.save_encoder`.
    pretrain_checkpoint_path
        Checkpoint of a Trainer that ran `SSLPretrainModule`. With neither path the encoder starts
        from random weights.

    Raises
    ------
    ConfigError
        If anything in the configuration is unknown or wrong, or differs from the file.
    CheckpointError
        If the file is missing or damaged, or its weights do not fit.
    UnsafeFileError
        If it holds more than tensors and plain values.

    Notes
    -----
    With several processes Lightning's sampler repeats samples until each process has the same
    number. For metrics that count every sample once, choose a number of samples that divides.

    Examples
    --------
    >>> module = FineTuneModule(
    ...     {"encoder": {"name": "linear", "d_input": 3, "d_model": 8},
    ...      "task": {"task_type": "binary"}}
    ... )
    >>> module(torch.randn(2, 5, 3))["probs"].shape
    torch.Size([2, 2])
    """

    settings: FinetuneConfig
    evaluation = Evaluation

    def __init__(
        self,
        config: Mapping[str, Any],
        checkpoint_path: str | Path | None = None,
        pretrain_checkpoint_path: str | Path | None = None,
    ) -> None:
        super().__init__(finetune_config(config))
        if checkpoint_path is not None and pretrain_checkpoint_path is not None:
            raise ConfigError("Give checkpoint_path or pretrain_checkpoint_path, not both.")
        path = pretrain_checkpoint_path if checkpoint_path is None else checkpoint_path
        stored = None if path is None else read_weights(path)
        self.task: Task = build_task(self.settings.task, self.settings.training)
        self.head: Head | None = None
        self._random = stored is None
        self._trains: frozenset[str] = frozenset()
        self._averages = False
        width = self.settings.encoder.get("d_input")
        if stored is not None or width:
            self._build(width, stored)

    # --- parts ---------------------------------------------------------------------------------

    def _build(self, d_input: int | None, stored: StoredWeights | None = None) -> None:
        self.backbone = TimeSeriesBackbone(
            encoder_settings(self.settings.encoder, stored),
            d_input=d_input,
            weights=None if stored is None else stored.path,
            seed=int(torch.randint(2**31, ())),
            standardize=standardizes(self.settings.data.standardize, stored),
        )
        # an encoder may have weights that never train: noted now, before anything is frozen
        named = self.backbone.named_parameters()
        self._trains = frozenset(name for name, p in named if p.requires_grad)
        self.head = build_head(self.settings, self.backbone, self.task)
        self._let_encoder_train(not self.settings.training.freeze_encoder)

    def _need_head(self) -> Head:
        self._need_backbone()
        assert self.head is not None  # made along with the backbone
        return self.head

    def get_task_head(self) -> nn.Module:
        """Return the head: the user's own module if it is a `BaseTaskHead`."""
        head = self._need_head()
        return getattr(head, "inner", head)

    def _trained(self) -> Iterable[tuple[str, str, nn.Parameter]]:
        """Yield everything that ever trains, even if it is frozen at first.

        A parameter without a gradient does not move, so the optimizer needs no new group when the
        encoder is unfrozen.
        """
        head = self._need_head()
        for name, parameter in self._encoder_parameters():
            yield "encoder", f"backbone.{name}", parameter
        for name, parameter in head.named_parameters():
            yield "head", f"head.{name}", parameter

    def _encoder_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = self._need_backbone().named_parameters()
        return [(name, parameter) for name, parameter in named if name in self._trains]

    # --- freezing ------------------------------------------------------------------------------

    def _let_encoder_train(self, trains: bool) -> None:
        for _, parameter in self._encoder_parameters():
            parameter.requires_grad_(trains)
            if not trains:
                # an old gradient would keep moving the parameter through momentum and decay
                parameter.grad = None

    def _set_up_epoch(self) -> None:
        """Freeze or unfreeze the encoder for the current epoch; while frozen it has no dropout."""
        training = self.settings.training
        start = training.unfreeze_epoch
        trains = not training.freeze_encoder or (start is not None and self.current_epoch >= start)
        self._let_encoder_train(trains)
        self._need_backbone().train(trains)

    def on_train_start(self) -> None:
        """Freeze or unfreeze for the epoch in which the run starts or resumes."""
        self._set_up_epoch()

    def on_train_epoch_start(self) -> None:
        """Begin an epoch, and unfreeze the encoder if this is its epoch."""
        super().on_train_epoch_start()
        self._set_up_epoch()

    def on_fit_start(self) -> None:
        """Learn the scale of the head's input, and check that the encoder can join later.

        Raises
        ------
        RunError
            If the encoder joins later, and the strategy shards or does not wrap the model.
        """
        training = self.settings.training
        # an encoder that trains later changes the scale, so the head then learns it by itself
        if training.freeze_encoder and training.unfreeze_epoch is None:
            with training_batches(self.trainer) as batches:
                self._need_head().fit_inputs(self._trunks(batches))
        self._averages = self.trainer.world_size > 1 and training.unfreeze_epoch is not None
        wrapped = self.trainer.strategy.model
        if self._averages and not isinstance(wrapped, DistributedDataParallel):
            raise RunError(
                f"unfreeze_epoch needs one device or strategy='ddp', got "
                f"{type(self.trainer.strategy).__name__}."
            )

    def on_after_backward(self) -> None:
        """Average the gradients of an encoder that was frozen when DDP wrapped the model.

        DDP lists the parameters that train when it wraps the model, and never synchronises others;
        without this hook the processes would drift apart.
        """
        late = [p for _, p in self._encoder_parameters() if p.requires_grad]
        if self._averages and late:
            total = GradientSum(late)
            total.finish()
            total.close()
            for parameter in late:
                if parameter.grad is not None:
                    parameter.grad /= self._ranks().size

    def _trunks(self, batches: Iterable[Any]) -> Iterator[TrunkOutput]:
        backbone = self._need_backbone()
        forward = ForwardPass(backbone, self._need_head().needs, device=self.device)
        for batch in batches:
            features = self._features(batch, self.device)
            with torch.no_grad(), evaluating(backbone):
                trunk = forward.whole(Inputs(ids=[], targets=[], features=features))
            yield trunk

    # --- steps ---------------------------------------------------------------------------------

    @staticmethod
    def _features(batch: Any, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        series_of(batch)
        names = ("timeseries", "mask", "padding_mask")
        return {n: batch[n].to(device) for n in names if batch.get(n) is not None}

    def _output(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = Inputs(ids=[], targets=[], features=self._features(batch))
        outputs = self._runner().outputs(inputs)
        predicted = self.task.predictions(outputs)
        if not hasattr(self.task, "classes"):
            return {"prediction": predicted.float()}
        probs = outputs.get("probs", predicted.float())
        return {"logits": outputs["prediction"], "probs": probs}

    def _runner(self) -> SupervisedRunner:
        heads = [TaskHead(head=self._need_head(), task=self.task)]
        return SupervisedRunner(self._need_backbone(), heads, device=self.device)

    def _for_runner(self, batch: Mapping[str, Any]) -> Inputs:
        """Return a batch with its labels.

        Raises
        ------
        DataError
            If the batch has no labels, or labels of another shape.
        ConfigError
            If class weights or the scale of labels come from training data that was not seen yet.
        """
        if learns_from_labels(self.settings) and not getattr(self.task, "fitted", True):
            raise ConfigError(
                "Class weights 'balanced' and the scale of labels come from the training labels: "
                "call trainer.fit first, or fit_labels(labels)."
            )
        features = self._features(batch)
        n = len(features["timeseries"])
        labels = label_list(label_of(batch), n, self._n_classes)
        ids = [str(i) for i in range(len(labels))]
        return Inputs(ids=ids, targets=labels, features=features)

    @property
    def _n_classes(self) -> int | None:
        """Number of classes if a label is a row of zeros and ones, else None."""
        return self.task.n_outputs if self.task.numbers(None).ndim else None

    def fit_labels(self, labels: torch.Tensor) -> None:
        """Learn class weights and the scale of labels; later calls change nothing.

        `trainer.fit` calls this method.

        Parameters
        ----------
        labels
            All labels of the training set: (samples,) or (samples, classes).
        """
        self.task.fit_targets(label_list(labels, len(labels), self._n_classes))

    def setup(self, stage: str) -> None:
        """Build the modules, learn scales and class weights (the first time only), and freeze."""
        super().setup(stage)
        if stage != "fit":
            return
        if self._random and self.settings.training.freeze_encoder:
            logger.warning(
                "The encoder has random weights and is frozen at first. Pass checkpoint_path=... "
                "to start from a pre-trained one, or set training.freeze_encoder to false."
            )
        self._need_backbone().train()
        self._let_encoder_train(not self.settings.training.freeze_encoder)
        if learns_from_labels(self.settings) and not getattr(self.task, "fitted", True):
            with training_batches(self.trainer) as batches:
                found = [label_of(batch).detach().cpu() for batch in batches]
            self.fit_labels(torch.cat(found))

    def test_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> torch.Tensor:
        """Mean loss of a batch."""
        del batch_idx
        return self._measure("test", batch)

    # --- epochs --------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Forget the results of the previous test."""
        self._seen["test"] = []

    def on_test_epoch_end(self) -> None:
        """Log metrics over the test set."""
        self._log_evaluation("test")

    def configure_callbacks(self) -> list[Any]:
        """Return early stopping if ``early_stopping_patience`` asks for it."""
        training = self.settings.training
        monitor, patience = training.early_stopping_monitor, training.early_stopping_patience
        if monitor is None or patience is None:
            return []
        best = self.task.higher_is_better
        mode = training.early_stopping_mode or ("max" if monitor.split("/")[-1] in best else "min")
        # With `check_finite` an undefined metric (NaN) would stop the run; without it NaN merely
        # counts as no improvement.
        return [EarlyStopping(monitor, patience=patience, mode=mode, check_finite=False)]

    # --- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings, and the class weights and scale that the task learned."""
        super().on_save_checkpoint(checkpoint)
        config = checkpoint["hyper_parameters"]["config"]
        # the checkpoint has to load without the encoder's file, so it says what that file decided
        config["data"] = {"standardize": self._need_backbone().standardize}
        checkpoint[STATE] = {"task": self.task.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the modules if there are none yet, and restore their state.

        Raises
        ------
        ConfigError
            If another module wrote the checkpoint.
        """
        if "task" not in checkpoint.get(STATE, {}):
            raise ConfigError(
                "The checkpoint was not written by FineTuneModule. Start from an encoder with "
                "pretrain_checkpoint_path=...."
            )
        super().on_load_checkpoint(checkpoint)
        self._random = False
        self.task.load_state_dict(checkpoint[STATE]["task"])

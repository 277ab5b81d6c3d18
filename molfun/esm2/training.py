"""Train for a number of optimizer steps, and predict, with BioNeMo's function names."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molfun._paths import as_path
from molfun.esm2.config import ESM2FineTuneSeqConfig, ESM2FineTuneSeqModel
from molfun.esm2.data import ESM2FineTuneDataModule
from molfun.esm2.loss import RegressorLossReduction
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History, Row

logger = logging.getLogger(__name__)


class StepLog(Callback):
    """Log every optimizer step with the loss of its global batch.

    A line reads ``Training epoch 0, iteration 2/50 | global_step: 2 | reduced_train_loss: 0.2051 |
    val_loss: 0.1766``. `global_step` counts the steps that the optimizer took, without those that
    were skipped because the loss was not finite; `val_loss` is the latest one.

    Parameters
    ----------
    reduction
        Object whose ``reduce`` turns the losses of the micro batches into one number.
    accumulation_steps
        Micro batches per optimizer step.
    """

    def __init__(self, reduction: RegressorLossReduction, accumulation_steps: int) -> None:
        self._reduction = reduction
        self._accumulation_steps = accumulation_steps
        self._losses: list[dict[str, torch.Tensor]] = []
        self._at = (0, 0)
        self._row: Row = {}

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Note the number of steps, and the last row of a resumed run."""
        self._plan, self._row = plan, dict(history[-1]) if history else {}

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Collect the loss of a micro batch; log the previous step when a new one begins."""
        # there is no hook for a whole step: its number follows from that of the batch, from 1
        before = (epoch - 1) * self._plan.steps_per_epoch
        at = (epoch, before + math.ceil(batch / self._accumulation_steps))
        if at != self._at:
            self._flush()
            self._at = at
        self._losses.append({"avg": torch.tensor(loss)})

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Log the last step of the epoch with the validation that followed it."""
        self._row = row
        self._flush()

    def _flush(self) -> None:
        if not self._losses:
            return
        epoch, iteration = self._at
        # NaN before the first validation, and in every row without a validation set
        val_loss = self._row.get("val_loss", math.nan)
        logger.info(
            "Training epoch %d, iteration %d/%d | global_step: %d | reduced_train_loss: %.4g%s",
            epoch - 1,
            iteration,
            self._plan.total_steps,
            iteration - self._row.get("skipped", 0),
            float(self._reduction.reduce(self._losses)),
            "" if math.isnan(val_loss) else f" | val_loss: {val_loss:.4g}",
        )
        self._losses = []


@dataclass(frozen=True)
class FineTuneTrainer:
    """Result of a training run.

    Parameters
    ----------
    model
        The model, with its best weights.
    history
        One row per pass over the training set (see `ESM2FineTuneDataModule`).
    global_step
        Number of optimizer steps taken.
    """

    model: ESM2FineTuneSeqModel
    history: History
    global_step: int


def train_model(
    experiment_name: str,
    experiment_dir: str | Path,
    config: ESM2FineTuneSeqConfig,
    data_module: ESM2FineTuneDataModule,
    n_steps_train: int,
    *,
    lr: float = 5e-4,
    seed: int = 42,
    device: str | torch.device = "auto",
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
) -> tuple[Path, dict[str, Any] | None, FineTuneTrainer]:
    """Fine-tune for a number of optimizer steps (AdamW at a constant learning rate).

    To train for a number of epochs, choose the steps so that
    ``n_steps_train * global_batch_size == len(dataset) * epochs``: every step takes a whole global
    batch. The model is validated every ``ceil(len(dataset) / global_batch_size)`` steps and at the
    end, and the best one so far is kept; without a validation set, the last one.

    Parameters
    ----------
    experiment_name, experiment_dir
        The run is written to ``experiment_dir/experiment_name``.
    config, data_module
        Model to train, and data to train it on.
    n_steps_train
        Number of optimizer steps.
    lr
        Learning rate.
    seed
        Seed of random weights, order of samples and dropout.
    device
        ``"auto"`` (CUDA if there is one, else CPU), or a torch device.
    resume, overwrite
        Whether to continue the run that is in the folder, or to replace it.
    callbacks
        Further hooks, see `molfun.training.Callback`.

    Returns
    -------
    checkpoint : Path
        Checkpoint folder, which `MolfunStructureModel.from_checkpoint` and ``molfun predict`` read
        as well.
    metrics : dict or None
        Row of the best epoch: ``val_loss`` (the mean squared error), ``val/pearson`` ...; None
        without a validation set.
    trainer : FineTuneTrainer
        Model and history.

    Examples
    --------
    >>> import tempfile
    >>> from molfun.esm2 import InMemorySingleValueDataset
    >>> dataset = InMemorySingleValueDataset([("MKV", 0.03), ("ACDEF", 0.05)] * 4)
    >>> module = ESM2FineTuneDataModule(dataset, dataset)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint, metrics, trainer = train_model(
    ...         "demo", folder, ESM2FineTuneSeqConfig(backbone="esm2_tiny"), module, 3
    ...     )
    >>> checkpoint.parts[-2:], sorted(metrics)[-1], trainer.global_step, len(trainer.history)
    (('demo', 'checkpoint'), 'val_loss', 3, 3)
    """
    folder = as_path(experiment_dir) / experiment_name
    model = config.configure_model(seed=seed, device=device)
    steps = data_module.accumulation_steps
    # an epoch of `fit` is one pass of the sampler: whole global batches, see the data module
    history = model.fit(
        data_module.train_dataloader(),
        data_module.val_dataloader(),
        strategy=config.strategy(lr=lr, accumulation_steps=steps),
        max_steps=n_steps_train,
        output_dir=folder,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        callbacks=[StepLog(config.get_loss_reduction_class()(), steps), *callbacks],
    )
    metrics = None if data_module.valid_dataset is None else dict(history.best)
    trainer = FineTuneTrainer(model, history, global_step=int(history[-1]["steps"]))
    return folder / "checkpoint", metrics, trainer


def infer_model(
    config: ESM2FineTuneSeqConfig,
    data_module: ESM2FineTuneDataModule,
    *,
    seed: int = 42,
    device: str | torch.device = "auto",
) -> dict[str, torch.Tensor]:
    """Predict for the ``predict_dataset`` of a data module.

    Parameters
    ----------
    config
        Config with the ``initial_ckpt_path`` of a fine-tuned checkpoint and no prefixes to skip;
        otherwise the head is random, and a warning says so.
    data_module
        Data module with a ``predict_dataset``.
    seed, device
        As in `train_model`.

    Returns
    -------
    dict
        ``regression_output``: (n, 1), in the units of the labels and the order of the dataset.

    Examples
    --------
    >>> from molfun.esm2 import InMemorySingleValueDataset
    >>> module = ESM2FineTuneDataModule(
    ...     predict_dataset=InMemorySingleValueDataset(["MKV", "ACDEF", "GG"])
    ... )
    >>> infer_model(ESM2FineTuneSeqConfig(backbone="esm2_tiny"), module)["regression_output"].shape
    torch.Size([3, 1])
    """
    loader = data_module.predict_dataloader()
    # (n,) becomes (n, 1), the shape of BioNeMo's output; in float32 whatever the precision
    prediction = config.configure_model(seed=seed, device=device).predict(loader)["prediction"]
    return {"regression_output": prediction.float()[:, None]}

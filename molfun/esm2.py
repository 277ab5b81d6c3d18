"""Sequence regression with ESM-2 in five names: dataset, data module, config, train, infer.

A front-end for those who come from the fine-tuning guide of ESM-2, in its words. It adds no
training code: a config becomes a `MolfunStructureModel` and a strategy, `train_model` calls its
``fit``, and what it writes is an ordinary checkpoint. For classification, labels on residues,
LoRA or splits use `MolfunStructureModel` itself.

=============================================  ==================================================
here                                           in Molfun
=============================================  ==================================================
``InMemorySingleValueDataset``                 `SequenceDataset.from_list`
``micro_batch_size``                           batch size of the loader
``global_batch_size``                          ``accumulation_steps`` times the micro batch
``encoder_frozen``                             `HeadOnlyFinetune`, or `FullFinetune` if False
``ft_dropout``                                 dropout of the head ``"mlp"``, 256 hidden channels
``RegressorLossReduction``                     `RegressionTask` on the labels as they are
``n_steps_train``                              ``fit(max_steps=...)``
``initial_ckpt_path``                          ``weights=...`` or ``from_checkpoint``
=============================================  ==================================================

``python -m molfun.esm2 train`` and ``python -m molfun.esm2 infer`` are demos on ten sequences.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from molfun._paths import as_path
from molfun.backbones.esm2 import presets, tokens
from molfun.data.sequences import SequenceDataset
from molfun.errors import CheckpointError, ConfigError, DataError, MolfunError
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import MANIFEST
from molfun.sample import Sample, SampleBatch
from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.full import FullFinetune
from molfun.strategies.head_only import HeadOnlyFinetune
from molfun.strict import refuse_unknown
from molfun.tasks.regression import RegressionLoss, RegressionTask
from molfun.text import listing
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History, Row

__all__ = [
    "ESM2FineTuneDataModule",
    "ESM2FineTuneSeqConfig",
    "ESM2FineTuneSeqModel",
    "FineTuneTrainer",
    "InMemorySingleValueDataset",
    "RegressorLossReduction",
    "StepLog",
    "infer_model",
    "train_model",
]

logger = logging.getLogger(__name__)

DEFAULT_BACKBONE = "esm2_t6_8M_UR50D"
HEAD_PREFIX = "regression_head"
HIDDEN = (256,)
"""Channels of the hidden layer of the head."""


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SingleValueSample(Sample, Mapping[str, torch.Tensor]):
    """A `Sample` that also gives the guide's tensors by name.

    ``text`` (tokens with those for beginning and end), ``types``, ``attention_mask``, ``labels``
    (1,), ``loss_mask`` (True on residues) and ``is_random``; made when asked for, and not what
    the model reads: it makes its own, packed over the batch.
    """

    NAMES: ClassVar[tuple[str, ...]] = (
        "text",
        "types",
        "attention_mask",
        "labels",
        "loss_mask",
        "is_random",
    )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.NAMES:
            raise KeyError(name)
        if name == "labels":
            return torch.tensor([math.nan if self.target is None else float(self.target)])
        residues = tokens.encode(self.sequence or "", name=self.id).tolist()
        text = torch.tensor([tokens.special("<cls>"), *residues, tokens.special("<eos>")])
        inside = torch.ones_like(text, dtype=torch.bool)
        inside[[0, -1]] = False
        zeros, ones = torch.zeros_like(text), torch.ones_like(text)
        values = {"text": text, "attention_mask": ones, "loss_mask": inside}
        return values.get(name, zeros)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class InMemorySingleValueDataset(Dataset[SingleValueSample]):
    """Sequences with one number each, in memory.

    To read another format, turn it into (sequence, number) pairs and pass them, or do so in the
    ``__init__`` of a subclass.

    Parameters
    ----------
    data
        Pairs of a sequence and its number; a sequence alone, or None for the number, where there
        is no label (for `infer_model`).
    tokenizer
        None: ESM-2 has one alphabet, and the model brings it.
    seed
        Taken for compatibility; nothing in these items is random.

    Raises
    ------
    DataError
        Listing every item that is no such pair.

    Examples
    --------
    >>> dataset = InMemorySingleValueDataset([("MKV", 0.03), ("ACDEF", 0.05)])
    >>> len(dataset), dataset[1].sequence, dataset[1]["labels"]
    (2, 'ACDEF', tensor([0.0500]))
    >>> dataset[0]["text"].tolist()
    [0, 20, 15, 7, 2]
    """

    def __init__(
        self,
        data: Sequence[str | tuple[str, float | None]],
        tokenizer: None = None,
        seed: int | None = None,  # noqa: ARG002  (nothing is random)
    ) -> None:
        if tokenizer is not None:
            raise ConfigError(
                f"tokenizer={tokenizer!r} cannot be used: the model tokenises with the alphabet "
                f"of ESM-2. Leave tokenizer out."
            )
        items = list(data)
        problems = [f"item {i}: {item!r}" for i, item in enumerate(items) if not _is_pair(item)]
        if problems:
            raise DataError(
                f"{len(problems)} of {len(items)} items are no (sequence, number) pair:\n"
                f"{listing(problems)}"
            )
        self.dataset = SequenceDataset.from_list(items)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SingleValueSample:
        return SingleValueSample(**vars(self.dataset[index]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences)"

    @property
    def ids(self) -> list[str]:
        """Names of the items: seq_1, seq_2 ..."""
        return self.dataset.ids

    @property
    def targets(self) -> Any:
        """Numbers in order, NaN where there is none."""
        return self.dataset.targets

    @property
    def input_settings(self) -> dict[str, Any]:
        """How inputs are prepared, for the checkpoint."""
        return self.dataset.input_settings

    collate_fn = staticmethod(SequenceDataset.collate_fn)


def _is_pair(item: object) -> bool:
    if isinstance(item, str):
        return True
    if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)):
        return False
    return item[1] is None or (isinstance(item[1], Real) and not isinstance(item[1], bool))


class ESM2FineTuneDataModule:
    """The datasets of a run and how many sequences a step takes.

    An optimizer step goes over `global_batch_size` sequences, `micro_batch_size` at a time. Where
    that does not divide the dataset, the last step of a pass is filled up with sequences drawn
    anew, so that every step has as many. Nothing is padded: the model packs a batch into one line
    of tokens.

    Parameters
    ----------
    train_dataset, valid_dataset, predict_dataset
        `InMemorySingleValueDataset`, `SequenceDataset` or another dataset of `Sample`; None where
        there is none.
    micro_batch_size
        Sequences in memory at a time.
    global_batch_size
        Sequences an optimizer step; a multiple of `micro_batch_size`.
    num_workers
        Processes that load data.

    Raises
    ------
    ConfigError
        If a size is not possible.

    Examples
    --------
    >>> dataset = InMemorySingleValueDataset([("MKV", 0.03)] * 10)
    >>> module = ESM2FineTuneDataModule(dataset, micro_batch_size=4, global_batch_size=8)
    >>> module.accumulation_steps, [len(batch) for batch in module.train_dataloader()]
    (2, [4, 4, 4, 4])
    """

    def __init__(
        self,
        train_dataset: Dataset[Any] | SequenceDataset | None = None,
        valid_dataset: Dataset[Any] | SequenceDataset | None = None,
        *,
        predict_dataset: Dataset[Any] | SequenceDataset | None = None,
        micro_batch_size: int = 4,
        global_batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        if micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size must be at least 1, got {micro_batch_size}.")
        if global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise ConfigError(
                f"global_batch_size must be a multiple of micro_batch_size={micro_batch_size}, got "
                f"{global_batch_size}."
            )
        self.train_dataset = train_dataset
        self.valid_dataset = valid_dataset
        self.predict_dataset = predict_dataset
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers

    @property
    def accumulation_steps(self) -> int:
        """Micro batches an optimizer step."""
        return self.global_batch_size // self.micro_batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Micro batches of `train_dataset` in whole steps, in a new order each pass."""
        dataset = self._need("train_dataset")
        steps = math.ceil(len(dataset) / self.global_batch_size)
        sampler = RandomSampler(dataset, num_samples=steps * self.global_batch_size)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Any] | None:
        """Micro batches of `valid_dataset`; None without one."""
        return None if self.valid_dataset is None else self._loader(self.valid_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Micro batches of `predict_dataset`, in order and complete."""
        return self._loader(self._need("predict_dataset"))

    def _need(self, name: str) -> Any:
        dataset = getattr(self, name)
        if dataset is None or len(dataset) == 0:
            missing = "no" if dataset is None else "an empty"
            raise ConfigError(f"The data module has {missing} {name}. Pass {name}=... to it.")
        return dataset

    def _loader(self, dataset: Any, sampler: RandomSampler | None = None) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.micro_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_collate,
        )


def _collate(items: Sequence[Any]) -> SampleBatch:
    others = {type(item).__name__ for item in items if not isinstance(item, Sample)}
    if others:
        raise DataError(
            f"The dataset gives {', '.join(sorted(others))}; the model takes molfun.sample.Sample, "
            f"as InMemorySingleValueDataset gives. Pass (sequence, number) pairs to that."
        )
    return SampleBatch(list(items))


# --- loss ----------------------------------------------------------------------------------------


class RegressorLossReduction:
    """Mean squared error of the labels as they are.

    Training itself sums over a global batch and divides by its labels once, so that a micro batch
    that is smaller counts less; `reduce` is for the log alone. A subclass chooses another `loss`
    and may change `reduce`; `forward` follows from `loss`.

    Attributes
    ----------
    loss
        "mse", "mae" or "huber".

    Examples
    --------
    >>> reduction = RegressorLossReduction()
    >>> loss, logged = reduction.forward({"labels": torch.ones(2, 1)}, torch.zeros(2, 1))
    >>> loss, reduction.reduce([logged, {"avg": torch.tensor(3.0)}])
    (tensor(1.), tensor(2.))
    """

    loss: ClassVar[RegressionLoss] = "mse"

    def forward(
        self, batch: Mapping[str, torch.Tensor], forward_out: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a micro batch, and the same as ``{"avg": loss}``.

        Parameters
        ----------
        batch
            With ``labels``, (batch, 1).
        forward_out
            Predictions, (batch, 1).

        Raises
        ------
        DataError
            If the shapes differ.
        """
        labels = batch["labels"]
        if labels.shape != forward_out.shape:
            raise DataError(
                f"labels have the shape {tuple(labels.shape)}, predictions "
                f"{tuple(forward_out.shape)}; both must be (batch, 1)."
            )
        task = RegressionTask(**_task_config(type(self)))
        total, n_labels = task.loss({"prediction": forward_out.reshape(-1)}, labels.reshape(-1))
        loss = total / max(n_labels, 1)
        return loss, {"avg": loss}

    def reduce(
        self, losses_reduced_per_micro_batch: Sequence[Mapping[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Mean over the micro batches of what `forward` gave, for the log."""
        return torch.stack([loss["avg"] for loss in losses_reduced_per_micro_batch]).mean()


def _task_config(reduction: type[RegressorLossReduction]) -> dict[str, Any]:
    if getattr(reduction, "forward", None) is not RegressorLossReduction.forward:
        raise ConfigError(
            f"{reduction.__name__}.forward is not what trains the model. Set its class attribute "
            f"loss to 'mse', 'mae' or 'huber', or write a task for MolfunStructureModel."
        )
    return {"loss": reduction.loss, "standardize": False}


# --- model and config ----------------------------------------------------------------------------


class ESM2FineTuneSeqModel(MolfunStructureModel):
    """`MolfunStructureModel` that can change its head for a new one."""

    def new_head(
        self, *, head_config: Mapping[str, Any], task_config: Mapping[str, Any], seed: int
    ) -> Self:
        """Put an untrained regression head in the place of the head there is."""
        self.strategy, self.result = None, {}
        self.put_head("mlp", "regression", head_config, task_config, seed=seed)
        return self.to(self.device).eval()


@dataclass(kw_only=True)
class ESM2FineTuneSeqConfig:
    """What to fine-tune and from where.

    Parameters
    ----------
    model_cls
        Class of the model.
    initial_ckpt_path
        Where the weights come from: a checkpoint folder of Molfun, or a weight file or folder of
        fair-esm or Hugging Face. None starts from random ones, for demonstrations.
    initial_ckpt_skip_keys_with_these_prefixes
        ``["regression_head"]`` takes the encoder of a checkpoint and puts a new head on it; ``[]``
        takes the head as well, to go on training or for `infer_model`. A kept head keeps its
        dropout and loss, whatever stands here.
    encoder_frozen
        Whether only the head trains.
    ft_dropout
        Dropout in the head while training.
    backbone
        Size of the encoder (``"esm2_t33_650M_UR50D"``, or a mapping as `ESM2Backbone` takes it).
        None takes that of the checkpoint, or of the file's name, and else
        ``"esm2_t6_8M_UR50D"``.

    Raises
    ------
    ConfigError
        Naming every unknown field with the nearest known one, or every value that is not allowed.

    Examples
    --------
    >>> config = ESM2FineTuneSeqConfig(backbone="esm2_tiny")
    >>> config.configure_model(device="cpu")
    ESM2FineTuneSeqModel(esm2, 27,690 params; head mlp, 8,705 params; cpu)
    >>> config.strategy(lr=5e-4).name
    'head_only'
    """

    model_cls: type[ESM2FineTuneSeqModel] = ESM2FineTuneSeqModel
    initial_ckpt_path: str | Path | None = None
    initial_ckpt_skip_keys_with_these_prefixes: list[str] = field(
        default_factory=lambda: [HEAD_PREFIX]
    )
    encoder_frozen: bool = True
    ft_dropout: float = 0.25
    backbone: str | Mapping[str, Any] | None = None

    def __new__(cls, **settings: Any) -> Self:
        """Refuse unknown fields before ``__init__`` does, in better words."""
        known = [f.name for f in dataclasses.fields(cls)]
        refuse_unknown(f"field of {cls.__name__}", settings, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        skip: Any = self.initial_ckpt_skip_keys_with_these_prefixes
        if isinstance(skip, dataclasses.Field) and callable(skip.default_factory):
            # the guide writes field(default_factory=list) also where the config is made
            self.initial_ckpt_skip_keys_with_these_prefixes = skip.default_factory()
        problems = list(self._problems())
        if problems:
            raise ConfigError(f"{type(self).__name__}: " + " ".join(problems))

    def _problems(self) -> Iterator[str]:
        skip = self.initial_ckpt_skip_keys_with_these_prefixes
        if not isinstance(skip, list | tuple) or list(skip) not in ([], [HEAD_PREFIX]):
            yield (
                f"initial_ckpt_skip_keys_with_these_prefixes must be [{HEAD_PREFIX!r}] or [], got "
                f"{skip!r}."
            )
        if not isinstance(self.encoder_frozen, bool):
            yield f"encoder_frozen must be True or False, got {self.encoder_frozen!r}."
        if not (isinstance(self.ft_dropout, int | float) and 0 <= self.ft_dropout < 1):
            yield f"ft_dropout must be in [0, 1), got {self.ft_dropout!r}."
        if not issubclass(self.model_cls, ESM2FineTuneSeqModel):
            yield f"model_cls must be ESM2FineTuneSeqModel or a subclass, got {self.model_cls!r}."

    def get_loss_reduction_class(self) -> type[RegressorLossReduction]:
        """The loss; override it to choose a subclass."""
        return RegressorLossReduction

    def strategy(self, *, lr: float, accumulation_steps: int = 1) -> FinetuneStrategy:
        """Return what trains: the head on a frozen encoder, or all at one learning rate."""
        if self.encoder_frozen:
            return HeadOnlyFinetune(
                lr=lr, scheduler="constant", accumulation_steps=accumulation_steps
            )
        return FullFinetune(
            lr=lr,
            lr_head=lr,
            lr_embedder=lr,
            layer_lr_decay=1.0,
            scheduler="constant",
            accumulation_steps=accumulation_steps,
        )

    def configure_model(
        self, *, seed: int = 42, device: str | torch.device = "auto"
    ) -> ESM2FineTuneSeqModel:
        """Build the model with its initial weights.

        Parameters
        ----------
        seed
            Seed of what starts from random weights.
        device
            ``"auto"`` (CUDA if there is one, else CPU), or a torch device.

        Raises
        ------
        CheckpointError
            If the weights are missing, damaged, or of another architecture or task.
        """
        path = self.initial_ckpt_path
        if path is not None and _is_checkpoint(as_path(path)):
            return self._from_checkpoint(Path(path), seed=seed, device=device)
        if path is not None and not self.initial_ckpt_skip_keys_with_these_prefixes:
            raise CheckpointError(
                f"{path} is no checkpoint of Molfun, so it holds no {HEAD_PREFIX}. Leave "
                f"initial_ckpt_skip_keys_with_these_prefixes out to start with a new head."
            )
        return self.model_cls(
            "esm2",
            config=self._size(),
            weights=path,
            device=device,
            head="mlp",
            head_config=self._head_config,
            task="regression",
            task_config=_task_config(self.get_loss_reduction_class()),
            seed=seed,
        )

    @property
    def _head_config(self) -> dict[str, Any]:
        # the guide's head takes the pooled vector as it is
        return {"hidden": HIDDEN, "dropout": float(self.ft_dropout), "standardize": False}

    def _size(self) -> str | Mapping[str, Any]:
        if self.backbone is not None:
            return self.backbone
        named = Path(self.initial_ckpt_path or "").stem
        return named if named in presets.PRESETS else DEFAULT_BACKBONE

    def _from_checkpoint(
        self, path: Path, *, seed: int, device: str | torch.device
    ) -> ESM2FineTuneSeqModel:
        model = self.model_cls.from_checkpoint(path, device=device)
        keep_head = not self.initial_ckpt_skip_keys_with_these_prefixes
        problems = list(self._misfits(model, keep_head=keep_head))
        if problems:
            raise CheckpointError(f"{path} cannot be used: {' '.join(problems)}")
        if keep_head:
            return model
        task_config = _task_config(self.get_loss_reduction_class())
        return model.new_head(head_config=self._head_config, task_config=task_config, seed=seed)

    def _misfits(self, model: ESM2FineTuneSeqModel, *, keep_head: bool) -> Iterator[str]:
        if model.backbone.name != "esm2":
            yield f"its backbone is {model.backbone.name!r}, not 'esm2'."
        elif self.backbone is not None:
            asked = presets.resolve(self.backbone).to_dict()
            found = model.backbone.config_dict["architecture"]
            if asked != found:
                yield f"its encoder is {found}, but backbone={self.backbone!r} is {asked}."
        if keep_head and model.task_name != "regression":
            yield (
                f"its head is for the task {model.task_name!r}; skip [{HEAD_PREFIX!r}] to take "
                f"the encoder alone."
            )


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is the folder of a checkpoint or of a run (which has its own error)."""
    return (path / MANIFEST).is_file() or (path / "checkpoint" / MANIFEST).is_file()


# --- train and infer -----------------------------------------------------------------------------


class StepLog(Callback):
    """Log every optimizer step with the loss of its global batch.

    ``Training epoch 0, iteration 2/50 | global_step: 2 | reduced_train_loss: 0.2051 | val_loss:
    0.1766``: `global_step` counts what the optimizer did, so that windows left out for a loss that
    is not finite are missing from it; `val_loss` is the latest there is.

    Parameters
    ----------
    reduction
        Its ``reduce`` makes one number of the losses of the micro batches.
    accumulation_steps
        Micro batches an optimizer step.
    """

    def __init__(self, reduction: RegressorLossReduction, accumulation_steps: int) -> None:
        self._reduction = reduction
        self._accumulation_steps = accumulation_steps
        self._losses: list[dict[str, torch.Tensor]] = []
        self._at = (0, 0)
        self._row: Row = {}

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Take the number of steps, and the last row of a resumed run."""
        self._plan, self._row = plan, dict(history[-1]) if history else {}

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Collect the loss of a micro batch; log the step before when a new one begins."""
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
    """What is left of a training run.

    Parameters
    ----------
    model
        With the best weights.
    history
        A row for each pass over the training set (see `ESM2FineTuneDataModule`).
    global_step
        Optimizer steps taken.
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

    For as many epochs as one likes, choose the steps so that
    ``n_steps_train * global_batch_size == len(dataset) * epochs``: every step takes a whole global
    batch. Every ``ceil(len(dataset) / global_batch_size)`` steps, and at the end, the model is
    validated; the best one so far is kept. Without a validation set the last one is.

    Parameters
    ----------
    experiment_name, experiment_dir
        The run is written to ``experiment_dir/experiment_name``.
    config, data_module
        What to train on what.
    n_steps_train
        Optimizer steps.
    lr
        Learning rate.
    seed
        Decides random weights, the order of samples and dropout.
    device
        ``"auto"`` (CUDA if there is one, else CPU), or a torch device.
    resume, overwrite
        Continue the run that is in the folder, or replace it.
    callbacks
        Further hooks, see `molfun.training.Callback`.

    Returns
    -------
    checkpoint : Path
        Checkpoint folder, which also `MolfunStructureModel.from_checkpoint` and ``molfun predict``
        read.
    metrics : dict or None
        Row of the best epoch: ``val_loss`` (the mean squared error), ``val/pearson`` ...; None
        without a validation set.
    trainer : FineTuneTrainer
        Model and history.

    Examples
    --------
    >>> import tempfile
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
        With ``initial_ckpt_path`` of a fine-tuned checkpoint and no prefixes to skip; without
        them the head is random, and a warning says so.
    data_module
        With a ``predict_dataset``.
    seed, device
        As in `train_model`.

    Returns
    -------
    dict
        ``regression_output``: (n, 1), in the units of the labels and the order of the dataset.

    Examples
    --------
    >>> module = ESM2FineTuneDataModule(
    ...     predict_dataset=InMemorySingleValueDataset(["MKV", "ACDEF", "GG"])
    ... )
    >>> infer_model(ESM2FineTuneSeqConfig(backbone="esm2_tiny"), module)["regression_output"].shape
    torch.Size([3, 1])
    """
    loader = data_module.predict_dataloader()
    prediction = config.configure_model(seed=seed, device=device).predict(loader)["prediction"]
    return {"regression_output": prediction.float()[:, None]}


# --- demos ---------------------------------------------------------------------------------------

DEMO_SEQUENCES = (
    "TLILGWSDKLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "GRFNVWLGGNESKIRQVLKAVKEIGVSPTLFAVYEKN",
    "DELTALGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "KLGSLLNQLAIANESLGGGTIAVMAERDKEDMELDIGKMEFDFKGTSVI",
    "LFGAIGNAISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "LGGLLHDIGKPVQRAGLYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "LYSGDHSTQGARFLRDLAENTGRAEYELLSLF",
    "ISAIHGQSAVEELVDAFVGGARISSAFPYSGDTYYLPKP",
    "SGSKASSDSQDANQCCTSCEDNAPATSYCVECSEPLCETCVEAHQRVKYTKDHTVRSTGPAKT",
)
"""The ten sequences of the guide; the label of each is its length / 100."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the demos.

    Parameters
    ----------
    arguments
        As on the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m molfun.esm2",
        description="Learn the lengths of ten sequences with ESM-2, and predict them.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="fine-tune; writes OUTPUT/finetune_regressor")
    train.add_argument("--output", type=Path, default=Path("runs"))
    train.add_argument("--steps", type=int, default=50, help="optimizer steps (default 50)")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    infer = verbs.add_parser("infer", help="predict; without a checkpoint from random weights")
    infer.add_argument("checkpoint", nargs="?", help="folder that train wrote")
    for verb in (train, infer):
        verb.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        {"train": _train_demo, "infer": _infer_demo}[options.verb](options)
    except MolfunError as error:
        parser.exit(1, f"error: {error}\n")


def _train_demo(options: argparse.Namespace) -> None:
    dataset = InMemorySingleValueDataset([(s, len(s) / 100) for s in DEMO_SEQUENCES])
    checkpoint, metrics, _ = train_model(
        "finetune_regressor",
        options.output,
        ESM2FineTuneSeqConfig(),
        ESM2FineTuneDataModule(dataset, dataset),
        options.steps,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    assert metrics is not None
    _say(f"val_loss {metrics['val_loss']:.4g}, pearson {metrics['val/pearson']:.3f}")
    _say(f"checkpoint {checkpoint}")


def _infer_demo(options: argparse.Namespace) -> None:
    keep_head = options.checkpoint is not None
    config = ESM2FineTuneSeqConfig(
        initial_ckpt_path=options.checkpoint,
        initial_ckpt_skip_keys_with_these_prefixes=[] if keep_head else [HEAD_PREFIX],
    )
    module = ESM2FineTuneDataModule(predict_dataset=InMemorySingleValueDataset(DEMO_SEQUENCES))
    output = infer_model(config, module, seed=options.seed)["regression_output"]
    _say("label  regression_output")
    for sequence, value in zip(DEMO_SEQUENCES, output[:, 0].tolist(), strict=True):
        _say(f"{len(sequence) / 100:5.2f}  {value:.4f}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()

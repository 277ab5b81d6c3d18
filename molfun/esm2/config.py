"""Configuration of a fine-tuning in BioNeMo's words, from which model and strategy are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from molfun._paths import as_path
from molfun.backbones.esm2 import presets
from molfun.errors import CheckpointError, ConfigError
from molfun.esm2.loss import RegressorLossReduction, task_settings
from molfun.models.build import HeadSettings
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import MANIFEST
from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.full import FullFinetune
from molfun.strategies.head_only import HeadOnlyFinetune
from molfun.strict import refuse_unknown

DEFAULT_BACKBONE = "esm2_t6_8M_UR50D"
HEAD_PREFIX = "regression_head"
HIDDEN = (256,)
"""Channels of the head's hidden layer, as in BioNeMo's example."""


class ESM2FineTuneSeqModel(MolfunStructureModel):
    """`MolfunStructureModel` whose head can be replaced by a new one."""

    def new_head(
        self, *, head_config: Mapping[str, Any], task_config: Mapping[str, Any], seed: int
    ) -> Self:
        """Replace the head by an untrained regression head."""
        # what trained the old head says nothing of the new one
        self.strategy, self.result = None, {}
        self.put_heads({"": HeadSettings("mlp", head_config, "regression", task_config)}, seed=seed)
        return self.to(self.device).eval()


@dataclass(kw_only=True)
class ESM2FineTuneSeqConfig:
    """Settings of a fine-tuning: the model, and where its weights come from.

    Parameters
    ----------
    model_cls
        Class of the model.
    initial_ckpt_path
        Where the weights come from: a checkpoint folder of Molfun, or a weight file or folder of
        fair-esm or Hugging Face. None starts from random weights, for demonstrations.
    initial_ckpt_skip_keys_with_these_prefixes
        ``["regression_head"]`` takes the encoder of a checkpoint and puts a new head on it; ``[]``
        takes the head as well, to continue training or for `infer_model`. Such a head keeps the
        dropout and loss of its checkpoint, whatever this config says.
    encoder_frozen
        Whether only the head trains.
    ft_dropout
        Dropout probability in the head while training.
    backbone
        Size of the encoder (``"esm2_t33_650M_UR50D"``, or a mapping as `ESM2Backbone` takes it).
        None takes that of the checkpoint, or the one named by the file, and otherwise
        ``"esm2_t6_8M_UR50D"``.

    Raises
    ------
    ConfigError
        If a field is unknown (with the nearest known one) or a value is not allowed; all problems
        are in one text.

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
        """Refuse unknown fields before the dataclass does, with the nearest known name."""
        known = [f.name for f in dataclasses.fields(cls)]
        refuse_unknown(f"field of {cls.__name__}", settings, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        skip: Any = self.initial_ckpt_skip_keys_with_these_prefixes
        if isinstance(skip, dataclasses.Field) and callable(skip.default_factory):
            # BioNeMo's example passes field(default_factory=list) when it makes the config, which a
            # dataclass takes as a value
            self.initial_ckpt_skip_keys_with_these_prefixes = skip.default_factory()
        # all problems in one error, not one per attempt
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
        """Return the class of the loss; override this method to choose a subclass."""
        return RegressorLossReduction

    def strategy(self, *, lr: float, accumulation_steps: int = 1) -> FinetuneStrategy:
        """Return the strategy: train the head on a frozen encoder, or all at one learning rate."""
        # all layers at one rate, without the layer-wise decay that is Molfun's default
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
            Seed of the random weights.
        device
            ``"auto"`` (CUDA if there is one, else CPU), or a torch device.

        Raises
        ------
        CheckpointError
            If the weights are missing, damaged, or belong to another architecture or task.
        """
        path = self.initial_ckpt_path
        if path is not None and _is_checkpoint(as_path(path)):
            return self._from_checkpoint(Path(path), seed=seed, device=device)
        # refused and not ignored: predictions of a random head would look like results
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
            task_config=task_settings(self.get_loss_reduction_class()),
            seed=seed,
        )

    @property
    def _head_config(self) -> dict[str, Any]:
        # BioNeMo's head takes the pooled vector as it is; Molfun's would standardise it first
        return {"hidden": HIDDEN, "dropout": float(self.ft_dropout), "standardize": False}

    def _size(self) -> str | Mapping[str, Any]:
        if self.backbone is not None:
            return self.backbone
        # Meta's files are named by their size: esm2_t33_650M_UR50D.pt
        named = Path(self.initial_ckpt_path or "").stem
        return named if named in presets.PRESETS else DEFAULT_BACKBONE

    def _from_checkpoint(
        self, path: Path, *, seed: int, device: str | torch.device
    ) -> ESM2FineTuneSeqModel:
        # loaded whole, also for the encoder alone: the backbone may have adapters or trained blocks
        model = self.model_cls.from_checkpoint(path, device=device)
        keep_head = not self.initial_ckpt_skip_keys_with_these_prefixes
        problems = list(self._misfits(model, keep_head=keep_head))
        if problems:
            raise CheckpointError(f"{path} cannot be used: {' '.join(problems)}")
        if keep_head:
            return model
        settings = task_settings(self.get_loss_reduction_class())
        return model.new_head(head_config=self._head_config, task_config=settings, seed=seed)

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

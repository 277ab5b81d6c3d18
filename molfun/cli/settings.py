"""Settings of a fine-tuning run, as flags, as a YAML file, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from molfun._paths import as_path
from molfun.config import Settings, dump_yaml
from molfun.data.atoms import AtomsDataset
from molfun.registry import BACKBONES, STRATEGIES
from molfun.text import names_in, unknown_name
from molfun.training.base import SCHEDULERS, FinetuneStrategy, Mode
from molfun.training.cache import CacheConfig
from molfun.training.optimizers import OPTIMIZERS

DEMO_VALIDATION = 2
GRADUAL = "gradual"
HEADS = "heads"
"""What metatrain calls the strategy head_only."""


_MADE_FOR = {".ts": "timeseries", ".npy": "timeseries", ".npz": "timeseries", ".xyz": "pet"}


def _what_to_give(data: Any) -> str:
    """What is missing of a data set of structures; or the backbone that the file is for."""
    backbone = _MADE_FOR.get(Path(str(data or "")).suffix)
    if backbone is not None:
        return f"{data} is no table of structures: add --backbone {backbone}"
    return (
        "give --data TABLE and --pdbs FOLDER (or --features FOLDER), or --demo for a run on "
        "synthetic data"
    )


class OptimizerSettings(Settings):
    """Optimizer and schedule, under the names that a strategy has for them; and its defaults."""

    optimizer: str = FinetuneStrategy.optimizer
    momentum: float = Field(default=FinetuneStrategy.momentum, ge=0, lt=1)
    scheduler: str = FinetuneStrategy.scheduler
    warmup: int | None = Field(default=None, ge=0)
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    min_lr: float | None = Field(default=None, ge=0)
    step_size: int = Field(default=FinetuneStrategy.step_size, ge=1)
    gamma: float = Field(default=FinetuneStrategy.gamma, gt=0, le=1)
    plateau_factor: float = Field(default=FinetuneStrategy.plateau_factor, gt=0, lt=1)
    plateau_patience: int = Field(default=FinetuneStrategy.plateau_patience, ge=0)
    plateau_mode: Mode | None = None

    @field_validator("optimizer")
    @classmethod
    def _is_an_optimizer(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(unknown_name("optimizer", name, OPTIMIZERS))
        return name

    @field_validator("scheduler")
    @classmethod
    def _is_a_scheduler(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(unknown_name("scheduler", name, SCHEDULERS))
        return name

    @model_validator(mode="after")
    def _warms_up_or_not(self) -> Self:
        if self.scheduler == "warmup_cosine" and self.warmup == 0:
            raise ValueError("warmup_cosine has a warm-up; without one the scheduler is cosine")
        return self

    def optimizer_options(self, *, warmup_ratio: float) -> dict[str, Any]:
        """Arguments of a strategy; `warmup_ratio` is for runs that give no warm-up."""
        options = {name: getattr(self, name) for name in OptimizerSettings.model_fields}
        steps, ratio = options.pop("warmup"), options.pop("warmup_ratio")
        warmup = {"warmup_ratio": warmup_ratio if ratio is None else ratio}
        if steps is not None:
            warmup = {"warmup_steps": steps}
        return {**options, **warmup}


class FineTuneSettings(OptimizerSettings):
    """Everything that decides a run. Names are those of the flags, with ``_`` for ``-``."""

    data: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    pdbs: str | None = None
    features: str | None = None
    alignments: str | None = None
    skip_missing: bool = False
    max_length: int | None = Field(default=None, ge=1)
    sequence_column: str = "sequence"
    target_column: str | None = None
    id_column: str | None = None
    mask_column: str | None = None
    layout: Literal["long", "wide"] = "long"
    time_column: str = "time"
    feature_columns: list[str] | None = None
    group_column: str = "group"
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    target_key: str | None = None
    forces: bool = True
    stress: bool = True
    energy_unit: str | None = None
    window: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=1)
    split: Literal["random", "temporal", "identity", "group", "column"] = "random"
    split_column: str = "split"
    val_frac: float = Field(default=0.1, ge=0, lt=1)
    test_frac: float = Field(default=0.1, ge=0, lt=1)

    backbone: str = "openfold"
    preset: str | None = None
    weights: str | None = None
    init_from: str | None = None
    trust: bool = False
    backbone_config: dict[str, Any] = Field(default_factory=dict)
    long: Literal["full", "crop", "window"] | None = None
    head: str | None = None
    head_config: dict[str, Any] = Field(default_factory=dict)
    new_target: str | None = None
    inherit: str | None = None
    keep_targets: bool = True
    old_data: str | None = None
    old_energy_key: str | None = None
    task: str | None = None
    level: Literal["sequence", "residue"] | None = None
    loss: Literal["mse", "mae", "huber"] = "mse"
    energy_weight: float = Field(default=1.0, ge=0)
    forces_weight: float = Field(default=1.0, ge=0)
    stress_weight: float = Field(default=1.0, ge=0)
    class_weight: Literal["balanced"] | list[float] | None = None
    positive_class: str | None = None
    n_classes: int | None = Field(default=None, ge=2)
    standardize_labels: bool = True
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    strategy: str = "auto"
    lr: float | None = Field(default=None, gt=0)
    strategy_config: dict[str, Any] = Field(default_factory=dict)
    lora_rank: int | None = Field(default=None, ge=1)
    unfreeze_blocks: int | None = Field(default=None, ge=1)
    unfreeze_epoch: int | None = Field(default=None, ge=1)
    blocks_per_stage: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=20, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    group_by_length: bool = False
    accum: int | None = Field(default=None, ge=1)
    ema: float = Field(default=0.999, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, ge=0)
    patience: int = Field(default=0, ge=0)
    monitor: str = "val/loss"
    weight_decay: float = Field(default=0.01, ge=0)
    amp: bool = True
    precision: str | None = None

    output: str | None = None
    device: str = "auto"
    kernels: Literal["auto", "stock", "fast"] = "auto"
    seed: int = Field(default=42, ge=0, lt=2**63)
    workers: int = Field(default=0, ge=0)
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    cache_dir: str | None = None
    cache_memory_gb: float = Field(default=4.0, ge=0)
    cache_disk_gb: float | None = Field(default=None, ge=0)
    cache_precision: Literal["float32", "bfloat16"] = "float32"

    plugin: str | None = None
    started_in: str | None = None
    demo: bool = False
    demo_samples: int = Field(default=8, ge=DEMO_VALIDATION + 1)
    demo_seq_len: int = Field(default=32, ge=1)

    _listed = field_validator("feature_columns", mode="before")(names_in)

    @field_validator("strategy")
    @classmethod
    def _is_a_strategy(cls, name: str) -> str:
        if name == HEADS:
            return "head_only"
        known = [*STRATEGIES, "auto"]
        if name not in known:
            raise ValueError(unknown_name("strategy", name, known))
        return name

    @model_validator(mode="after")
    def _stages_need_a_beginning(self) -> FineTuneSettings:
        if self.blocks_per_stage and self.unfreeze_epoch is None and self.strategy != GRADUAL:
            raise ValueError("blocks_per_stage needs unfreeze_epoch, or the strategy gradual")
        return self

    @model_validator(mode="after")
    def _cuts_or_not(self) -> FineTuneSettings:
        if self.stride is not None and self.window is None:
            raise ValueError("stride is for windows: give --window, too")
        return self

    @model_validator(mode="after")
    def _goes_on_from_a_checkpoint(self) -> FineTuneSettings:
        """A checkpoint brings its own architecture, head and task."""
        own = ("preset", "backbone_config", "head_config", "long", "new_target")
        given = [name for name in own if getattr(self, name)] if self.init_from else []
        if given:
            raise ValueError(
                f"init_from brings its own model: leave out {', '.join(given)}, or start from "
                f"weights instead"
            )
        return self

    @model_validator(mode="after")
    def _begins_from_the_old(self) -> FineTuneSettings:
        if self.inherit is not None and self.new_target is None:
            raise ValueError("inherit is what a new_target begins with: name that, too")
        if self.old_energy_key is not None and self.old_data is None:
            raise ValueError("old_energy_key is a name in old_data: give that file, too")
        if self.old_data is not None and not self.keep_targets:
            raise ValueError("old_data is for an energy that is kept: leave out keep_targets=false")
        return self

    @model_validator(mode="after")
    def _needs_data(self) -> FineTuneSettings:
        if self.demo and (self.data or self.pdbs or self.features):
            raise ValueError("--demo makes its own data: leave out data, pdbs and features")
        if self.demo and "atoms" in BACKBONES[self.backbone].inputs:
            raise ValueError(f"--demo makes proteins, which {self.backbone} does not take")
        if self.demo:
            return self
        if self.on_atoms and not self.data:
            raise ValueError("give --data FILE of structures (extended xyz), to train on")
        if isinstance(self.data, list) and not self.on_atoms:
            raise ValueError("several files are for structures of atoms; give one to --data")
        if (self.val or self.test) and self.split == "column":
            raise ValueError("val and test are files of their own: leave out split=column")
        needs_files = "structure" in (known := BACKBONES[self.backbone].inputs)
        needs_files &= "sequence" not in known
        if self.data is None or (needs_files and self.pdbs is None and self.features is None):
            raise ValueError(_what_to_give(self.data))
        bare = self.val_frac == 0 and not self.val and self.split != "column"
        if bare and self.patience:
            raise ValueError("patience needs a validation set: raise val_frac")
        if bare and self.scheduler == "plateau":
            raise ValueError("the scheduler plateau needs a validation set: raise val_frac")
        return self

    @property
    def output_dir(self) -> Path:
        """Folder of the run; ``runs/STRATEGY`` (``runs/demo``) where none is given."""
        return as_path(self.output or f"runs/{'demo' if self.demo else self.strategy}")

    @property
    def inputs(self) -> dict[str, str | list[str] | None]:
        """Paths that the run reads, by their flags."""
        names = (
            *("data", "val", "test", "pdbs", "features", "alignments", "old_data"),
            *("weights", "init_from"),
        )
        return {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}

    @property
    def on_series(self) -> bool:
        """Whether samples are time series."""
        return not self.demo and "series" in BACKBONES[self.backbone].inputs

    @property
    def on_atoms(self) -> bool:
        """Whether samples are structures of atoms."""
        return not self.demo and "atoms" in BACKBONES[self.backbone].inputs

    @property
    def on_sequences(self) -> bool:
        """Whether samples are sequences of the table rather than structures beside it."""
        files = self.pdbs is not None or self.features is not None
        return not (self.demo or files or self.on_series or self.on_atoms)

    @property
    def backbone_arguments(self) -> dict[str, Any]:
        """Further arguments of the backbone."""
        return with_long(self.backbone_config, self.long)

    @property
    def samples_per_batch(self) -> int:
        """1 protein, since memory grows with the square of its length; 8 sequences and so on."""
        if self.batch_size is not None:
            return self.batch_size
        if self.on_atoms:
            return AtomsDataset.default_batch_size
        return 32 if self.on_series else 8 if self.on_sequences else 1

    @property
    def accumulation_steps(self) -> int:
        """Batches per optimizer step, so that 8 samples make one; the demo takes each alone."""
        if self.accum is not None:
            return self.accum
        large = self.demo or self.on_sequences or self.on_series or self.on_atoms
        return 1 if large else 8

    @property
    def cache_config(self) -> CacheConfig:
        """Where what is frozen is kept."""
        return CacheConfig(
            mode=self.cache,
            directory=self.cache_dir,
            memory_gb=self.cache_memory_gb,
            disk_gb=self.cache_disk_gb,
            precision=self.cache_precision,
        )

    def strategy_options(self, name: str, n_blocks: int) -> dict[str, Any]:
        """Arguments of the strategy called `name` for a backbone with so many blocks.

        With `unfreeze_epoch` it is wrapped into the strategy "gradual".
        """
        if name == GRADUAL or self.unfreeze_epoch is not None:
            options = self._options_of("full" if name == GRADUAL else name, n_blocks)
            stages = {"unfreeze_epoch": self.unfreeze_epoch or 1}
            if self.blocks_per_stage is not None:
                stages["blocks_per_stage"] = self.blocks_per_stage
            return {"name": GRADUAL, "inner": options, **stages}
        return self._options_of(name, n_blocks)

    def _options_of(self, name: str, n_blocks: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "name": name,
            **self.optimizer_options(warmup_ratio=0.1),
            "ema_decay": self.ema,
            "accumulation_steps": self.accumulation_steps,
            "grad_clip": self.grad_clip,
            "amp": self.amp,
            "early_stopping_patience": self.patience,
            "monitor": self.monitor,
            "weight_decay": self.weight_decay,
        }
        lr = BACKBONES[self.backbone].default_lr if self.lr is None else self.lr
        if lr is not None:
            options[STRATEGIES[name].lr_name] = lr
        if name == "lora" and self.lora_rank is not None:
            options["rank"] = self.lora_rank
        if name == "lora" and self.unfreeze_blocks is not None:
            options["adapt_last_n"] = self.unfreeze_blocks
        if name == "partial":
            options["unfreeze_last_n"] = self.unfreeze_blocks or min(4, n_blocks)
        return {**options, **self.strategy_config}

    def to_yaml(self, **resolved: Any) -> str:
        """All settings as a file that ``--config`` reads; `resolved` replaces what was open."""
        return dump_yaml({**self.model_dump(), **resolved})


def with_long(arguments: dict[str, Any], long: str | None) -> dict[str, Any]:
    """Arguments of a backbone, and what it does with long sequences where that is said."""
    return dict(arguments) if long is None else {**arguments, "long": long}

"""Settings of a fine-tuning run, from which flags, YAML keys and JSON schema are generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator, model_validator

from molfun._paths import as_path
from molfun.cli.head_settings import checked_heads, of_head, one_head_per_target
from molfun.cli.shared_settings import (
    CACHE,
    DATA,
    KERNELS,
    MODEL,
    RUN,
    TASK,
    TRAINING,
    TRUST,
    Kernels,
    OptimizerSettings,
    TogetherSettings,
)
from molfun.config import Settings, dump_yaml, option
from molfun.data.kinds.base import DataKind, Labels, is_of, kind_of, kinds_of, with_kinds
from molfun.registry import BACKBONES, DATASETS, HEADS, LOSSES, STRATEGIES, TASKS
from molfun.text import alternatives, unknown_name

if TYPE_CHECKING:
    from molfun.training.cache import CacheConfig

DEMO_VALIDATION = 2
GRADUAL = "gradual"
HEADS_ALONE = "heads"
Split = Literal[
    "random", "temporal", "identity", "group", "column",
    "position", "contiguous", "modulo", "n_mutations", "low_to_high", "c1", "c2", "c3",
]  # fmt: skip
"""How a data set is divided; those of the second line are for variants and for pairs of chains."""
"""Name of the strategy head_only in metatrain."""


class DataSettings(Settings):
    """Files of the samples, and their split. The data kinds add settings for reading them."""

    data: str | list[str] | None = option(
        None,
        "Table of affinities, sequences or series; atoms (repeat).", panel=DATA, path=True,
    )  # fmt: skip
    val: str | list[str] | None = option(
        None, "Separate file for validation.", panel=DATA, shown="part of --data", path=True
    )
    test: str | list[str] | None = option(
        None, "Separate file for testing.", panel=DATA, shown="part of --data", path=True
    )
    # variants and pairs have splits of their own, which docs/sequences.md explains
    split: Split = option("random", "random, identity, temporal, group, column, position, c3 ...",
                          panel=DATA)  # fmt: skip
    split_column: str = option(
        "split", "Column of train, val and test, for --split column.", panel=DATA, hidden=True
    )
    group_column: str = option(
        "group",
        "Column of subjects, trajectories or families: --split group keeps them whole, with time "
        "series every split does.", panel=DATA, hidden=True,
    )  # fmt: skip
    metrics_by: str | None = option(
        None, "Column by whose values metrics are reported as well, such as an assay.", panel=DATA,
        hidden=True,
    )  # fmt: skip
    train_mutations: int = option(
        1, "--split n_mutations: most mutations of a training variant.", panel=DATA, hidden=True,
        ge=0, read_with=("split", "n_mutations"),
    )  # fmt: skip
    label_threshold: float | None = option(
        None, "--split low_to_high: training labels are below it.", panel=DATA, hidden=True,
        shown="the wild type's label", read_with=("split", "low_to_high"), allow_inf_nan=False,
    )  # fmt: skip
    val_frac: float = option(0.1, "Fraction for validation.", panel=DATA, hidden=True, ge=0, lt=1)
    test_frac: float = option(0.1, "Fraction for testing.", panel=DATA, hidden=True, ge=0, lt=1)


class ModelSettings(Settings):
    """The model, and the task that it learns."""

    backbone: str = option(
        "openfold",
        "openfold, timeseries, pet, esm2_t6_8M_UR50D, esmc ...",
        panel=MODEL,
        choices=BACKBONES.names,
    )
    preset: str | None = option(
        None, "Architecture; tiny for tests.", panel=MODEL, shown="the backbone's own",
        needs="preset", of_model=True,
    )  # fmt: skip
    weights: str | None = option(None, "File of pretrained weights.", panel=MODEL, path=True)
    init_from: str | None = option(
        None, "Checkpoint folder whose trained model to train on, in a new run.", panel=MODEL,
        path=True,
    )  # fmt: skip
    trust: bool = TRUST
    layer: int | None = option(
        None, "Block whose output the head reads, of a protein language model.", panel=MODEL,
        shown="the last", hidden=True, of_model=True, ge=1,
    )  # fmt: skip
    sweep: Literal["layer"] | None = option(
        None, "layer: compare all blocks by one pass, and take the best as --layer.", panel=MODEL,
        hidden=True, shown="none",
    )  # fmt: skip
    backbone_config: dict[str, Any] = option(
        dict, "Further arguments of the backbone.", yaml_only=True, of_model=True
    )
    head: str | None = option(
        None, "{choices}.", panel=TASK, choices=HEADS.__iter__,
        shown="the backbone's own", of_head=True,
    )  # fmt: skip
    head_config: dict[str, Any] = option(
        dict, "Further arguments of the head.", yaml_only=True, of_model=True, of_head=True
    )
    task: str | None = option(
        None, "regression, binary, multiclass, multilabel, quantile ...", panel=TASK,
        choices=TASKS.__iter__, shown="the head's", of_head=True,
    )  # fmt: skip
    task_config: dict[str, Any] = option(
        dict, "Further arguments of the task.", yaml_only=True, of_model=True, of_head=True
    )
    level: Literal["sequence", "residue"] | None = option(
        None, "What has a label: {choices}.", panel=TASK, of_head=True
    )
    loss: str = option(
        "mse", "Of regression: {choices}; those after huber rank a batch.", panel=TASK, hidden=True,
        of_head=True, choices=LOSSES.__iter__,
    )  # fmt: skip
    class_weight: Literal["balanced"] | list[float] | None = option(
        None, "balanced, for classes.", panel=TASK, hidden=True, of_head=True
    )
    positive_class: str | None = option(
        None, "Class that F1 and AUROC are of.", panel=TASK, shown="the second by name",
        hidden=True, of_head=True,
    )  # fmt: skip
    n_classes: int | None = option(
        None, "Number of classes, to be checked.", yaml_only=True, of_head=True, ge=2
    )
    standardize_labels: bool = option(
        True, "Loss of regression in deviations of the labels, not in their units.",
        yaml_only=True, of_head=True,
    )  # fmt: skip
    label_smoothing: float = option(
        0.0, "Smoothing of binary and multiclass labels.", yaml_only=True, of_head=True, ge=0, lt=1
    )
    heads: dict[str, dict[str, Any]] = option(
        dict,
        "Several heads by name, each with its own head, task, target_column ..., and a weight.",
        yaml_only=True, of_model=True,
    )  # fmt: skip

    @field_validator("loss")
    @classmethod
    def _is_a_loss(cls, name: str) -> str:
        if name not in LOSSES:
            raise ValueError(unknown_name("loss", name, list(LOSSES)))
        return name


class TrainSettings(OptimizerSettings):
    """Strategy, learning rates, and length of the training."""

    strategy: str = option(
        "auto",
        "{choices}, by sample count.",
        panel=TRAINING,
        choices=lambda: [*STRATEGIES, "auto"],
    )
    lr: float | None = option(
        None, "Learning rate (heads 10x).", panel=TRAINING,
        shown="1e-5; head_only 1e-3, lora 1e-4", gt=0,
    )  # fmt: skip
    strategy_config: dict[str, Any] = option(
        dict, "Further settings of the strategy.", yaml_only=True
    )
    lora_rank: int | None = option(
        None, "Rank of the adapters.", panel=TRAINING, shown="8", ge=1,
        read_with=("strategy", "lora"),
    )  # fmt: skip
    unfreeze_blocks: int | None = option(
        None, "Last blocks that train.", panel=TRAINING, hidden=True,
        shown="partial 4 (or all of fewer), lora all", ge=1,
        read_with=("strategy", "lora", "partial"),
    )  # fmt: skip
    unfreeze_epoch: int | None = option(
        None, "Epochs in which the head trains alone, with any strategy.", panel=TRAINING,
        hidden=True, shown="0; gradual 1", ge=1,
    )  # fmt: skip
    blocks_per_stage: int | None = option(
        None, "Blocks more that train in each epoch from then on, from the last.", panel=TRAINING,
        hidden=True, shown="all", ge=1,
    )  # fmt: skip
    epochs: int = option(20, "Epochs.", panel=TRAINING, ge=1)
    batch_size: int | None = option(
        None, "Samples per batch.", panel=TRAINING, by_kind="default_batch_size", ge=1
    )
    group_by_length: bool = option(
        False, "Put samples of similar length into a batch.", panel=TRAINING, hidden=True
    )
    accum: int | None = option(
        None, "Batches per optimizer step.", panel=TRAINING, by_kind="batches_per_step", ge=1
    )
    ema: float = option(
        0.999, "Decay of the weight average; 0: off.", panel=TRAINING, hidden=True, ge=0, lt=1
    )
    patience: int = option(
        0, "Stop after so many epochs without a better --monitor.", panel=TRAINING,
        shown="0: off", ge=0,
    )  # fmt: skip
    monitor: str = option(
        "val/loss", "What is best: val/loss, val/rmse, val/spearman ...", panel=TRAINING
    )
    amp: bool = option(
        True, "Mixed precision on GPUs.", panel=TRAINING, names=("--amp/--no-amp",), hidden=True
    )
    precision: str | None = option(
        None, "fp32, bf16 or fp16.", panel=TRAINING, hidden=True,
        shown="fp32 on CPUs; bf16 or fp16 on GPUs",
    )  # fmt: skip


class RunSettings(TogetherSettings):
    """Output, device, kernels and caches of a run."""

    kernels: Kernels = KERNELS
    cache: Literal["auto", "memory", "disk", "off"] = option(
        "auto", "Where outputs of frozen parts are kept: {choices}.", panel=CACHE, hidden=True
    )
    cache_dir: str | None = option(
        None, "Its folder, which runs may share.", panel=CACHE, shown="OUTPUT/cache", hidden=True,
        path=True,
    )  # fmt: skip
    cache_memory_gb: float = option(4.0, "Entries kept in memory.", panel=CACHE, hidden=True, ge=0)
    cache_disk_gb: float | None = option(
        None, "Largest size of the folder.", panel=CACHE, shown="all but 1 GB of the disk",
        hidden=True, ge=0,
    )  # fmt: skip
    cache_precision: Literal["float32", "bfloat16"] = option(
        "float32", "{choices}, which is half the size.", panel=CACHE, hidden=True
    )
    report: bool = option(
        True, "Write report.html at the end.", panel=RUN, names=("--report/--no-report",),
        hidden=True,
    )  # fmt: skip
    demo: bool = option(
        False, "Synthetic data: no files, weights or GPU needed.", panel=RUN, needs="demo"
    )
    demo_samples: int = option(
        8, "Samples of the demo.", panel=RUN, needs="demo", hidden=True, ge=DEMO_VALIDATION + 1
    )
    demo_seq_len: int = option(
        32, "Length of the samples of the demo.", panel=RUN, needs="demo", hidden=True, ge=1
    )


class FineTuneSettings(RunSettings, TrainSettings, ModelSettings, DataSettings):
    """All settings of a run. Their names are those of the flags, with ``_`` in place of ``-``.

    `build` adds the settings of the registered data kinds (`molfun.data.kinds.base.with_kinds`).
    """

    @classmethod
    def build(cls, values: Mapping[str, Any], **about: Any) -> FineTuneSettings:
        """Check values, including those of the data kinds, and build settings from them."""
        run = with_kinds(FineTuneSettings)
        each = one_head_per_target(run, values)
        return super(FineTuneSettings, run).build(each, **about).whole()

    def whole(self) -> Self:
        """Return the settings with ``data``, where another one of the data kind stands for it."""
        found = None if self.data or self.demo else self.kind.data_of(self)
        return self if found is None else self.model_copy(update={"data": found})

    @field_validator("strategy")
    @classmethod
    def _is_a_strategy(cls, name: str) -> str:
        if name == HEADS_ALONE:
            return "head_only"
        known = [*STRATEGIES, "auto"]
        if name not in known:
            raise ValueError(unknown_name("strategy", name, known))
        return name

    @field_validator("heads")
    @classmethod
    def _each_is_a_head(cls, heads: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Check the settings of each head; only those that are no default are kept."""
        return checked_heads(cls, heads)

    @model_validator(mode="after")
    def _stages_need_a_beginning(self) -> Self:
        if self.blocks_per_stage and self.unfreeze_epoch is None and self.strategy != GRADUAL:
            raise ValueError("blocks_per_stage needs unfreeze_epoch, or the strategy gradual")
        return self

    @model_validator(mode="after")
    def _goes_on_from_a_checkpoint(self) -> Self:
        """A checkpoint brings its own architecture, head and task."""
        own = [name for name in type(self).model_fields if self.flag(name).of_model]
        given = [name for name in own if getattr(self, name)] if self.init_from else []
        if given:
            raise ValueError(
                f"init_from brings its own model: leave out {', '.join(given)}, or start from "
                f"weights instead"
            )
        return self

    @model_validator(mode="after")
    def _describes_one_head_or_several(self) -> Self:
        given = [name for name in of_head(type(self)) if self.is_changed(name)]
        if self.heads and given:
            raise ValueError(
                f"heads describes each of several heads: write {', '.join(given)} into them, or "
                f"leave heads out"
            )
        return self

    @model_validator(mode="after")
    def _needs_data(self) -> Self:
        if self.demo:
            self._check_demo(kinds_of(self.backbone))
            return self
        problem = _for_another(self.data, self.backbone) or self.kind.missing(self)
        if problem is not None:
            raise ValueError(problem)
        if isinstance(self.data, list) and not self.kind.takes_several_files:
            able = [kind.title for kind in DATASETS.classes() if kind.takes_several_files]
            raise ValueError(f"several files are for {alternatives(able)}; give one to --data")
        return self

    @model_validator(mode="after")
    def _has_the_parts_it_needs(self) -> Self:
        if self.demo:  # has parts of its own
            return self
        if self.split == "column":
            if self.val or self.test:
                raise ValueError("val and test are files of their own: leave out split=column")
            return self
        if self.val or self.val_frac > 0:
            return self
        if self.patience:
            raise ValueError("patience needs a validation set: raise val_frac")
        if self.scheduler == "plateau":
            raise ValueError("the scheduler plateau needs a validation set: raise val_frac")
        return self

    def _check_demo(self, kinds: list[DataKind]) -> None:
        if self.data or any(getattr(self, name) for kind in kinds for name in kind.chosen_by):
            raise ValueError("--demo makes its own data: leave out data, pdbs and features")
        if not any(kind.has_demo for kind in kinds):
            raise ValueError(f"--demo makes proteins, which {self.backbone} does not take")

    @property
    def kind(self) -> DataKind:
        """Kind of the samples."""
        if self.demo:
            return next(kind for kind in kinds_of(self.backbone) if kind.has_demo)
        return kind_of(self.backbone, dict(self))

    @property
    def by_head(self) -> dict[str, Self]:
        """Settings of each of several heads as if it were the only one; of one, without a name."""
        if not self.heads:
            return {"": self}
        return {name: self._of_head(name, dict(given)) for name, given in self.heads.items()}

    def _of_head(self, name: str, given: dict[str, Any]) -> Self:
        given.pop("weight", None)
        one = self.model_copy(update={"heads": {}, **given})
        column = self.kind.label_of_head(one.labels)
        if column is None or getattr(one, column) is not None:
            return one
        return one.model_copy(update={column: name})

    @property
    def labels(self) -> Labels:
        """Task and level of the labels: named, or those of the head."""
        head, task = self.head, self.task
        level = self.task_config.get("level") if self.level is None else self.level
        if task is None:
            named = head or str(BACKBONES[self.backbone].default_head)
            is_task = named in TASKS and named not in HEADS
            task = named if is_task else str(HEADS[named].default_task)
        if level is None:
            level = HEADS[str(head)].default_level if head in HEADS else "sequence"
        return Labels(task, level)

    @property
    def output_dir(self) -> Path:
        """Folder of the run; by default ``runs/STRATEGY``, or ``runs/demo``."""
        return as_path(self.output or f"runs/{'demo' if self.demo else self.strategy}")

    @property
    def inputs(self) -> dict[str, str | list[str] | None]:
        """Paths that the run reads, by their flags."""
        return {
            f"--{name.replace('_', '-')}": getattr(self, name)
            for name in paths_in(type(self))
            if name != "cache_dir"  # both read and written, so writing into it is no mistake
        }

    @property
    def backbone_arguments(self) -> dict[str, Any]:
        """Further arguments of the backbone."""
        return with_flags(self.backbone_config, self)

    @property
    def samples_per_batch(self) -> int:
        """Batch size: the given one, or that of the kind of data."""
        return self.kind.default_batch_size if self.batch_size is None else self.batch_size

    @property
    def accumulation_steps(self) -> int:
        """Batches per optimizer step: the given number, or that of the kind; 1 in the demo."""
        if self.accum is not None:
            return self.accum
        return 1 if self.demo else self.kind.batches_per_step

    @property
    def cache_config(self) -> CacheConfig:
        """Settings of the cache for outputs of frozen parts."""
        from molfun.training.cache import CacheConfig

        return CacheConfig(
            mode=self.cache,
            directory=self.cache_dir,
            memory_gb=self.cache_memory_gb,
            disk_gb=self.cache_disk_gb,
            precision=self.cache_precision,
        )

    def strategy_options(self, name: str, n_blocks: int) -> dict[str, Any]:
        """Return the arguments of the strategy `name` for a backbone with `n_blocks` blocks.

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
            "amp": self.amp,
            "early_stopping_patience": self.patience,
            "monitor": self.monitor,
        }
        lr = BACKBONES[self.backbone].default_lr if self.lr is None else self.lr
        if lr is not None:
            options[STRATEGIES[name].lr_name] = lr
        if name == "lora" and self.lora_rank is not None:
            options["rank"] = self.lora_rank
        if name == "lora" and self.unfreeze_blocks is not None:
            options["adapt_last_n"] = self.unfreeze_blocks
        # a model with fewer than four blocks trains them all
        if name == "partial":
            options["unfreeze_last_n"] = self.unfreeze_blocks or min(4, n_blocks)
        return {**options, **self.strategy_config}

    def to_yaml(self, **resolved: Any) -> str:
        """Return all settings as YAML for ``--config``; `resolved` replaces those left open."""
        return dump_yaml({**self.model_dump(), **resolved})


def with_flags(arguments: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Return the arguments of a backbone, with those that have a flag, where it is given."""
    flags = {name: getattr(settings, name, None) for name in ("long", "layer", "plddt_below")}
    return {**arguments, **{name: value for name, value in flags.items() if value is not None}}


def paths_in(settings: type[Settings]) -> list[str]:
    """Return the names of settings that are paths."""
    return [name for name in settings.model_fields if settings.flag(name).path]


def _for_another(data: Any, backbone: str) -> str | None:
    """Return advice on a file that only other backbones read, or None."""
    taken = {kind.name for kind in kinds_of(backbone)}
    for kind in DATASETS.classes():
        if kind.name not in taken and is_of(kind, data):
            return (
                f"{data} holds {kind.title}, which {backbone} does not take: add --backbone "
                f"{kind.backbone}"
            )
    return None

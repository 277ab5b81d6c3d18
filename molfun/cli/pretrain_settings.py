"""Settings of a pre-training run, from which flags and YAML keys are generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from molfun._paths import as_path
from molfun.cli.settings import paths_in
from molfun.cli.shared_settings import (
    DATA,
    MODEL,
    RUN,
    TRAINING,
    OptimizerSettings,
    TogetherSettings,
)
from molfun.config import option
from molfun.data.kinds.base import DataKind, is_chosen, kinds_of
from molfun.data.kinds.sequences import SequenceInputs
from molfun.data.kinds.series import PANEL as SERIES
from molfun.data.kinds.series import SeriesSettings
from molfun.registry import BACKBONES, OBJECTIVES


class PretrainSettings(TogetherSettings, OptimizerSettings, SequenceInputs, SeriesSettings):
    """All settings of a pre-training run; their names are those of the flags."""

    sequences: str | None = option(
        None, "FASTA (.gz) or table of sequences; Arrow or Parquet, also a folder of files.",
        panel=DATA, path=True,
    )  # fmt: skip
    data: str | None = option(None, "Or a file of time series.", panel=DATA, path=True)
    val: str | None = option(None, "The same for validation.", panel=DATA, path=True)
    val_frac: float | None = option(
        None, "Fraction for it without --val.", panel=DATA,
        shown="0.01; series 0.1, at least 16", ge=0, lt=1,
    )  # fmt: skip
    max_length: int | None = option(512, "Crop longer sequences.", panel=DATA, ge=1)
    cache_dir: str | None = option(
        None, "Folder for unpacked copies of Parquet files.", panel=DATA,
        shown=".molfun beside each", hidden=True, path=True,
    )  # fmt: skip
    group_column: str = option("group", "Column of subjects.", panel=SERIES)

    backbone: str = option("esm2_t6_8M_UR50D", "Backbone.", panel=MODEL, choices=BACKBONES.names)
    preset: str | None = option(None, "Architecture, as esm2_t2_d64_h4.", panel=MODEL)
    weights: str | None = option(None, "File of weights to go on from.", panel=MODEL, path=True)
    backbone_config: dict[str, Any] = option(
        dict, "Further arguments of the backbone.", yaml_only=True
    )
    objective: str = option(
        "masked_lm", "{choices}.", panel=TRAINING, shown="masked_lm; series mae",
        choices=OBJECTIVES.__iter__,
    )  # fmt: skip
    objective_config: dict[str, Any] = option(
        dict, "Further arguments of the objective.", yaml_only=True
    )

    lr: float = option(4e-4, "Learning rate.", panel=TRAINING, shown="4e-4", gt=0)
    epochs: int | None = option(
        None, "Epochs.", panel=TRAINING, shown="10, without --max-steps", ge=1
    )
    max_steps: int | None = option(None, "Optimizer steps.", panel=TRAINING, ge=1)
    batch_size: int = option(16, "Sequences per batch.", panel=TRAINING, ge=1)
    max_tokens: int | None = option(
        None, "Residues per batch, in place of --batch-size; its samples have similar lengths.",
        panel=TRAINING, ge=1,
    )  # fmt: skip
    accum: int = option(1, "Batches per optimizer step.", panel=TRAINING, ge=1)
    ema: float = option(
        0.0, "Decay of the weight average.", panel=TRAINING, shown="0: off", ge=0, lt=1
    )
    warmup: int | None = option(None, "Warm-up in steps.", panel=TRAINING, shown="5 % of all", ge=0)
    precision: str | None = option(
        None, "fp32, bf16 or fp16.", panel=TRAINING, shown="as for fine-tune"
    )
    save_every_steps: int | None = option(
        None, "Write the state so often, and after every epoch.", panel=RUN, ge=1
    )
    report: bool = option(
        True, "Write report.html at the end.", panel=RUN, names=("--report/--no-report",),
        hidden=True,
    )  # fmt: skip
    output: str = option("runs/pretrain", "Folder of the run.", panel=RUN)

    @model_validator(mode="before")
    @classmethod
    def _series_are_other_than_proteins(cls, values: Any) -> Any:
        """The length and the task of proteins say nothing of series."""
        if not isinstance(values, dict):
            return values
        defaults: dict[str, Any] = {}
        if values.get("data"):
            defaults["max_length"] = None
        name = values.get("backbone")
        if name in BACKBONES.names() and unlabelled_kinds(str(name)):
            defaults["objective"] = unlabelled_kind(str(name), values).objective
        return {**defaults, **values}

    @model_validator(mode="after")
    def _needs_data(self) -> Self:
        if not unlabelled_kinds(self.backbone):
            raise ValueError(
                f"{self.backbone} is not pre-trained on data without labels; to train it from "
                f"random weights, use molfun fine-tune --strategy full without --weights"
            )
        if self.source is None:
            own = self.kind.name != "sequences"
            flag = f"--data FILE of {self.kind.title}" if own else "--sequences FILE"
            hint = "; for series add --backbone timeseries" if self.data and not own else ""
            raise ValueError(f"give {flag}, which {self.backbone} is trained on{hint}")
        return self

    @property
    def kind(self) -> DataKind:
        """Kind of the samples."""
        return unlabelled_kind(self.backbone, vars(self))

    @property
    def source(self) -> str | None:
        """File with the samples."""
        return self.sequences if self.kind.name == "sequences" else self.data

    @property
    def output_dir(self) -> Path:
        """Folder of the run."""
        return as_path(self.output)

    @property
    def inputs(self) -> dict[str, str | None]:
        """Paths that the run reads, by their flags."""
        # copies are both written and read
        names = [name for name in paths_in(type(self)) if name != "cache_dir"]
        return {f"--{name}": getattr(self, name) for name in names}


def unlabelled_kinds(backbone: str) -> list[DataKind]:
    """Return the data kinds of a backbone that have an objective."""
    return [kind for kind in kinds_of(backbone) if kind.objective is not None]


def unlabelled_kind(backbone: str, values: Mapping[str, Any]) -> DataKind:
    """Return the kind of data that a backbone is pre-trained on with these settings.

    Sequences have a flag of their own; ``data`` is for any other kind, which its ending or a
    setting may choose.
    """
    kinds = unlabelled_kinds(backbone)
    if values.get("data") and not values.get("sequences"):
        others = [kind for kind in kinds if kind.name != "sequences"]
        return [*(k for k in others if is_chosen(k, values)), *others, *kinds][0]
    return next((kind for kind in kinds if kind.name == "sequences"), kinds[0])

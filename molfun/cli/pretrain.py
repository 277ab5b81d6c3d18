"""Self-supervised training of a backbone on sequences or time series, from the command line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from molfun._io import write_text
from molfun.cli.console import ConsoleProgress, say
from molfun.cli.data import (
    Dataset,
    in_windows,
    is_series_table,
    loader,
    open_sequences,
    say_features,
)
from molfun.cli.outputs import opened_run
from molfun.cli.places import STARTED_IN, started_in
from molfun.cli.settings import OptimizerSettings, with_long
from molfun.config import dump_yaml
from molfun.data.splits import DataSplitter
from molfun.data.timeseries import TimeSeriesDataset, check_groups, open_timeseries
from molfun.models.pretraining import DEFAULT
from molfun.models.structure import MolfunStructureModel
from molfun.registry import BACKBONES
from molfun.runs.folder import CONFIG, LOG, RUN_FILES, RunFolder
from molfun.text import names_in
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.full import FullFinetune
from molfun.training.history import History

WRITTEN = (*RUN_FILES, CONFIG, LOG)
"""All that a run writes into its folder."""


VALIDATION = 0.01
"""Fraction of the sequences that validates."""
SERIES_VALIDATION, FEWEST_SERIES = 0.1, 16
"""The same of series, of which there are fewer, and the least number that says something."""


class PretrainSettings(OptimizerSettings):
    """Everything that decides a pre-training run. Names are those of the flags."""

    sequences: str | None = None
    data: str | None = None
    val: str | None = None
    val_frac: float | None = Field(default=None, ge=0, lt=1)
    sequence_column: str = "sequence"
    max_length: int | None = Field(default=512, ge=1)
    layout: Literal["long", "wide"] = "long"
    id_column: str | None = None
    time_column: str = "time"
    feature_columns: list[str] | None = None
    group_column: str = "group"
    target_column: str | None = None
    window: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=1)

    backbone: str = "esm2_t6_8M_UR50D"
    preset: str | None = None
    weights: str | None = None
    backbone_config: dict[str, Any] = Field(default_factory=dict)
    long: Literal["full", "crop", "window"] | None = None
    objective: str = "masked_lm"
    objective_config: dict[str, Any] = Field(default_factory=dict)

    lr: float = Field(default=DEFAULT.lr, gt=0)
    epochs: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accum: int = Field(default=1, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    precision: str | None = None
    save_every_steps: int | None = Field(default=None, ge=1)

    plugin: str | None = None
    started_in: str | None = None
    output: str = "runs/pretrain"
    device: str = "auto"
    seed: int = Field(default=42, ge=0, lt=2**63)
    workers: int = Field(default=0, ge=0)

    _listed = field_validator("feature_columns", mode="before")(names_in)

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
        if name in BACKBONES and "series" in BACKBONES[str(name)].inputs:
            defaults["objective"] = "mae"
        return {**defaults, **values}

    @model_validator(mode="after")
    def _needs_data(self) -> PretrainSettings:
        series = "series" in BACKBONES[self.backbone].inputs
        if not {"sequence", "series"} & set(BACKBONES[self.backbone].inputs):
            raise ValueError(
                f"{self.backbone} is not pre-trained on data without labels; to train it from "
                f"random weights, use molfun fine-tune --strategy full without --weights"
            )
        if (self.data if series else self.sequences) is None:
            flag = "--data FILE of time series" if series else "--sequences FILE"
            hint = "; for series add --backbone timeseries" if self.data and not series else ""
            raise ValueError(f"give {flag}, which {self.backbone} is trained on{hint}")
        if self.stride is not None and self.window is None:
            raise ValueError("stride is for windows: give --window, too")
        return self

    @property
    def inputs(self) -> dict[str, str | None]:
        """Paths that the run reads, by their flags."""
        names = ("sequences", "data", "val", "weights")
        return {f"--{name}": getattr(self, name) for name in names}


def run(settings: PretrainSettings, *, resume: bool, overwrite: bool, debug: bool) -> History:
    """Load, train, write."""
    folder = RunFolder(settings.output, resume=resume)
    names = type(settings).model_fields
    with opened_run(
        folder, WRITTEN, settings.inputs, settings=names, overwrite=overwrite, debug=debug
    ):
        train, val = _data(settings)
        total, unit = int(train.lengths.sum()), "residues"
        arguments = with_long(settings.backbone_config, settings.long)
        if isinstance(train, TimeSeriesDataset):
            unit = "time steps"
            arguments.setdefault("d_input", train.n_features)
            say_features(train)
        say(f"Data: {len(train):,} train ({total:,} {unit}) / {len(val or ()):,} val")
        model = MolfunStructureModel(
            settings.backbone,
            config=settings.preset,
            weights=settings.weights,
            device=settings.device,
            seed=settings.seed,
            backbone_config=arguments,
        )
        say(f"Model: {model.backbone.display_name} ({model.count_parameters():,} params)")
        say(f"Objective: {settings.objective} (lr={settings.lr:.1e})")
        shown = ConsoleProgress()
        options = {"num_workers": settings.workers}
        try:
            history = model.pretrain(
                loader(train, settings.batch_size, shuffle=True, **options),
                None if val is None else loader(val, settings.batch_size, **options),
                objective=settings.objective,
                objective_config=settings.objective_config,
                strategy=_strategy(settings),
                epochs=settings.epochs,
                max_steps=settings.max_steps,
                output_dir=folder,
                seed=settings.seed,
                precision=settings.precision,
                save_every_steps=settings.save_every_steps,
                overwrite=overwrite,
                callbacks=[_ConfigFile(folder, settings), shown],
            )
        finally:
            shown.close()
        say(f"\nWeights of epoch {history.best['epoch']}: {folder.weights}")
    return history


class _ConfigFile(Callback):
    """Write the settings once everything about them has been accepted."""

    def __init__(self, folder: RunFolder, settings: PretrainSettings) -> None:
        self._folder, self._settings = folder, settings

    def on_fit_start(self, plan: FitPlan, history: History) -> None:  # noqa: ARG002
        """Write ``config.yaml``."""
        values = {**self._settings.model_dump(), STARTED_IN: started_in(self._folder.path)}
        write_text(self._folder.config, dump_yaml(values))


def _fraction_of_series(n: int) -> float:
    """A tenth of the series for validation, at least 16 of them, but never more than half.

    Examples
    --------
    >>> [round(n * _fraction_of_series(n)) for n in (10, 24, 100, 1000)]
    [5, 12, 16, 100]
    """
    return min(0.5, max(SERIES_VALIDATION, FEWEST_SERIES / n))


def _series(settings: PretrainSettings) -> tuple[Dataset, Dataset | None]:
    options: dict[str, Any] = {"max_length": settings.max_length}
    if is_series_table(settings.data or ""):
        names = ("layout", "id_column", "time_column", "feature_columns", "group_column")
        options |= {name: getattr(settings, name) for name in names}
        # labels are no input: a column of them is left out, whatever is in it
        options |= {"target_column": settings.target_column or "target", "labels": "class"}
        options["require_target"] = False
        if settings.layout == "long":
            options["id_column"] = settings.id_column or "id"
    assert settings.data is not None
    train, val = open_timeseries(settings.data, **options), None
    if settings.val is not None:
        if is_series_table(settings.val):
            options["feature_columns"] = train.feature_names
        val = open_timeseries(settings.val, **options)
    fraction = _fraction_of_series(len(train)) if settings.val_frac is None else settings.val_frac
    if val is None and fraction:
        train, val, _ = train.split(fraction, 0.0, seed=settings.seed)
    check_groups(train=train, validation=val)
    cut = [None if d is None else in_windows(d, settings.window, settings.stride)
           for d in (train, val)]  # fmt: skip
    assert cut[0] is not None
    return cut[0], cut[1]


def _data(settings: PretrainSettings) -> tuple[Dataset, Dataset | None]:
    if settings.data is not None:
        return _series(settings)
    assert settings.sequences is not None
    column, length = settings.sequence_column, settings.max_length
    train = open_sequences(settings.sequences, column, length)
    if settings.val is not None:
        return train, open_sequences(settings.val, column, length)
    fraction = VALIDATION if settings.val_frac is None else settings.val_frac
    if fraction == 0:
        return train, None
    train, val, _ = DataSplitter.random(train, val_frac=fraction, test_frac=0.0, seed=settings.seed)
    return train, val


def _strategy(settings: PretrainSettings) -> FullFinetune:
    return FullFinetune(
        lr=settings.lr,
        lr_head=settings.lr,
        lr_embedder=settings.lr,
        layer_lr_decay=1.0,
        ema_decay=settings.ema,
        accumulation_steps=settings.accum,
        grad_clip=settings.grad_clip,
        weight_decay=settings.weight_decay,
        **settings.optimizer_options(warmup_ratio=DEFAULT.warmup_ratio),
    )

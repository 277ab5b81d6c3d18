"""Self-supervised training of a backbone on sequences or time series, from the command line."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from molfun._io import write_text
from molfun.cli.console import ConsoleProgress, say
from molfun.cli.data import loader, say_notes
from molfun.cli.outputs import opened_run
from molfun.cli.places import STARTED_IN, started_in
from molfun.cli.settings import (
    DATA,
    MODEL,
    RUN,
    SCHEDULE,
    TRAINING,
    OptimizerSettings,
    paths_in,
    with_long,
)
from molfun.config import dump_yaml, option
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind, kinds_of
from molfun.data.kinds.sequences import SequenceInputs
from molfun.data.kinds.series import PANEL as SERIES
from molfun.data.kinds.series import SeriesSettings
from molfun.data.splits import DataSplitter
from molfun.models.pretraining import DEFAULT
from molfun.models.structure import MolfunStructureModel
from molfun.registry import BACKBONES, OBJECTIVES
from molfun.runs.folder import CONFIG, LOG, RUN_FILES, RunFolder
from molfun.strategies.full import FullFinetune
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History

WRITTEN = (*RUN_FILES, CONFIG, LOG)
"""All that a run writes into its folder."""


class PretrainSettings(OptimizerSettings, SequenceInputs, SeriesSettings):
    """Everything that decides a pre-training run. Names are those of the flags."""

    sequences: str | None = option(
        None, "FASTA (.gz) or table of sequences.", panel=DATA, path=True
    )
    data: str | None = option(None, "Or a file of time series.", panel=DATA, path=True)
    val: str | None = option(None, "The same for validation.", panel=DATA, path=True)
    val_frac: float | None = option(
        None, "Fraction for it without --val.", panel=DATA,
        shown="0.01; series 0.1, at least 16", ge=0, lt=1,
    )  # fmt: skip
    max_length: int | None = option(512, "Crop longer sequences.", panel=DATA, ge=1)
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

    lr: float = option(DEFAULT.lr, "Learning rate.", panel=TRAINING, shown="4e-4", gt=0)
    epochs: int | None = option(
        None, "Epochs.", panel=TRAINING, shown="10, without --max-steps", ge=1
    )
    max_steps: int | None = option(None, "Optimizer steps.", panel=TRAINING, ge=1)
    batch_size: int = option(16, "Sequences per batch.", panel=TRAINING, ge=1)
    accum: int = option(1, "Batches per optimizer step.", panel=TRAINING, ge=1)
    ema: float = option(
        0.0, "Decay of the weight average.", panel=TRAINING, shown="0: off", ge=0, lt=1
    )
    warmup: int | None = option(None, "Warm-up in steps.", panel=SCHEDULE, shown="5 % of all", ge=0)
    grad_clip: float = option(1.0, "Largest gradient norm.", panel=TRAINING, ge=0)
    weight_decay: float = option(0.01, "Weight decay.", panel=TRAINING, ge=0)
    precision: str | None = option(
        None, "fp32, bf16 or fp16.", panel=TRAINING, shown="as for fine-tune"
    )
    save_every_steps: int | None = option(
        None, "Write the state so often, besides every epoch.", panel=RUN, ge=1
    )

    plugin: str | None = option(
        None, "Module to import first, which registers parts of your own.", panel=RUN
    )
    started_in: str | None = option(
        None, "Folder a run was started in, as seen from its own.", yaml_only=True
    )
    output: str = option("runs/pretrain", "Folder of the run.", panel=RUN)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel=RUN)
    seed: int = option(42, "Seed of split, order, weights, masks.", panel=RUN, ge=0, lt=2**63)
    workers: int = option(0, "Processes that load data.", panel=RUN, ge=0)

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
        kinds = unlabelled_kinds(str(name)) if name in BACKBONES.names() else []
        if kinds:
            defaults["objective"] = kinds[0].objective
        return {**defaults, **values}

    @model_validator(mode="after")
    def _needs_data(self) -> Self:
        if not unlabelled_kinds(self.backbone):
            raise ValueError(
                f"{self.backbone} is not pre-trained on data without labels; to train it from "
                f"random weights, use molfun fine-tune --strategy full without --weights"
            )
        if self.source is None:
            series = self.kind.name == "series"
            flag = "--data FILE of time series" if series else "--sequences FILE"
            hint = "; for series add --backbone timeseries" if self.data and not series else ""
            raise ValueError(f"give {flag}, which {self.backbone} is trained on{hint}")
        return self

    @property
    def kind(self) -> DataKind:
        """Kind of the samples."""
        return unlabelled_kinds(self.backbone)[0]

    @property
    def source(self) -> str | None:
        """File of the samples."""
        return self.sequences if self.kind.name == "sequences" else self.data

    @property
    def inputs(self) -> dict[str, str | None]:
        """Paths that the run reads, by their flags."""
        return {f"--{name}": getattr(self, name) for name in paths_in(type(self))}


def unlabelled_kinds(backbone: str) -> list[DataKind]:
    """Kinds of data of a backbone that there is an objective for."""
    return [kind for kind in kinds_of(backbone) if kind.objective is not None]


def run(settings: PretrainSettings, *, resume: bool, overwrite: bool, debug: bool) -> History:
    """Load, train, write."""
    folder = RunFolder(settings.output, resume=resume)
    names = type(settings).model_fields
    with opened_run(
        folder, WRITTEN, settings.inputs, settings=names, overwrite=overwrite, debug=debug
    ):
        train, val = _data(settings)
        kind, total = settings.kind, int(train.lengths.sum())
        arguments = {
            **kind.backbone_arguments(settings, [train, val]),
            **with_long(settings.backbone_config, settings.long),
        }
        say(f"Data: {len(train):,} train ({total:,} {kind.unit}) / {len(val or ()):,} val")
        say_notes(kind, train, "see run.log")
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


def _data(settings: PretrainSettings) -> tuple[SampleDataset, SampleDataset | None]:
    """Training and validation samples, in windows where a length is given."""
    kind, path = settings.kind, settings.source
    assert path is not None
    train, val = kind.open_unlabelled(path, settings), None
    if settings.val is not None:
        val = kind.open_unlabelled(settings.val, settings, like=train)
    fraction = settings.val_frac
    if fraction is None:
        fraction = kind.validation_fraction(len(train))
    if val is None and fraction:
        sizes = {"val_frac": fraction, "test_frac": 0.0}
        if kind.groups_by is None:
            train, val, _ = DataSplitter.random(train, seed=settings.seed, **sizes)
        else:
            train, val, _ = DataSplitter.by_group(
                train, kind.groups_by, seed=settings.seed, **sizes
            )
    train, val = kind.prepare_unlabelled(train, val, settings)
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

"""Self-supervised training of a backbone on sequences or time series, from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch.utils.data import DataLoader

from molfun.cli.command_settings import RunOptions
from molfun.cli.console import ConsoleProgress, is_first_process, say
from molfun.cli.data import loader, loader_by_tokens, say_notes
from molfun.cli.loggers import held_loggers, tell
from molfun.cli.outputs import opened_run
from molfun.cli.places import STARTED_IN, started_in
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.schema import write_config
from molfun.cli.settings import with_flags
from molfun.cli.several import RESUMED, processes
from molfun.cli.showing import record_pretraining, show
from molfun.cli.slurm import submitted
from molfun.cli.sources import settings_of
from molfun.config import dump_yaml
from molfun.data.base import SampleDataset
from molfun.data.splits import DataSplitter
from molfun.models.pretraining import DEFAULT
from molfun.models.structure import MolfunStructureModel
from molfun.runs.folder import LOG, RUN_FILES, RunFolder, command_files
from molfun.strategies.full import FullFinetune
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History


def pretrain(given: Mapping[str, Any]) -> None:
    """Pre-train with the settings of the flags, and of the file that they name."""
    settings, options = settings_of(PretrainSettings, given)
    if options.slurm is None:
        run(settings, options)
    else:
        text = dump_yaml(settings.model_dump())
        say(submitted("pretrain", settings, options, text))


def run(settings: PretrainSettings, options: RunOptions) -> History:
    """Load data, train, and write weights."""
    folder, overwrite = RunFolder(settings.output_dir, resume=options.resume), options.overwrite
    names = type(settings).model_fields
    with (
        processes(settings, RESUMED, None),
        opened_run(
            folder,
            (*RUN_FILES, *command_files(), LOG),
            settings.inputs,
            settings=names,
            overwrite=overwrite,
            debug=options.debug,
        ),
        held_loggers(settings) as loggers,
    ):
        train, val = _data(settings)
        kind, total = settings.kind, int(train.lengths.sum())
        say(f"Data: {len(train):,} train ({total:,} {kind.unit}) / {len(val or ()):,} val")
        say_notes(kind, train, "see run.log")
        model = _model(settings, train, val)
        say(f"Model: {model.backbone.display_name} ({model.count_parameters():,} params)")
        say(f"Objective: {settings.objective} (lr={settings.lr:.1e})")
        files = _RunFiles(folder, settings, model, (train, val))
        tell(loggers, files.settings)
        shown = ConsoleProgress()
        try:
            history = model.pretrain(
                _training_loader(train, settings),
                None if val is None else _loader(val, settings),
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
                callbacks=[files, shown],
                loggers=loggers,
                parallel=settings.parallel,
            )
        finally:
            shown.close()
        say(f"\nWeights of epoch {history.best['epoch']}: {folder.weights}")
        if is_first_process():
            show(folder, report=settings.report)
    return history


def _model(settings: PretrainSettings, *parts: Any) -> MolfunStructureModel:
    """Return the model of a run, for training and validation set."""
    return MolfunStructureModel(
        settings.backbone,
        config=settings.preset,
        weights=settings.weights,
        device=settings.device,
        seed=settings.seed,
        backbone_config={
            **settings.arguments_to_divide(settings.backbone),
            **settings.kind.backbone_arguments(settings, parts),
            **with_flags(settings.backbone_config, settings),
        },
    )


class _RunFiles(Callback):
    """Write settings, split and provenance once `pretrain` has accepted them all."""

    def __init__(
        self,
        folder: RunFolder,
        settings: PretrainSettings,
        model: MolfunStructureModel,
        parts: tuple[SampleDataset, SampleDataset | None],
    ) -> None:
        self._folder, self._settings, self._model, self._parts = folder, settings, model, parts

    def on_fit_start(self, plan: FitPlan, history: History) -> None:  # noqa: ARG002
        """Remove the files of the run that is replaced, then write those of the new one."""
        self._folder.remove_replaced()
        write_config(self._folder, self._settings, dump_yaml(self.settings()))
        record_pretraining(
            self._folder, self._settings, self._model, self._parts, resumed=bool(history)
        )

    def settings(self) -> dict[str, Any]:
        """Return all settings as ``config.yaml`` has them, for trackers."""
        return {**self._settings.model_dump(), STARTED_IN: started_in(self._folder.path)}


def _data(settings: PretrainSettings) -> tuple[SampleDataset, SampleDataset | None]:
    """Open training and validation samples, cut to windows if a length is given."""
    kind, path = settings.kind, settings.source
    assert path is not None
    # a kind from outside has settings that are no flags here, and keeps its defaults
    given = SimpleNamespace(**{**vars(kind.settings()), **vars(settings)})
    train, val = kind.open_unlabelled(path, given), None
    if settings.val is not None:
        val = kind.open_unlabelled(settings.val, given, like=train)
    fraction = settings.val_frac
    if fraction is None:
        fraction = kind.validation_fraction(len(train))
    if val is None and fraction:
        sizes = {"val_frac": fraction, "test_frac": 0.0}
        # windows of one trajectory or subject must not be on both sides of the split
        if kind.groups_by is None:
            train, val, _ = DataSplitter.random(train, seed=settings.seed, **sizes)
        else:
            train, val, _ = DataSplitter.by_group(
                train, kind.groups_by, seed=settings.seed, **sizes
            )
    train, val = kind.prepare_unlabelled(train, val, settings)
    return train, val


def _training_loader(train: SampleDataset, settings: PretrainSettings) -> DataLoader[Any]:
    if settings.max_tokens is not None:
        return loader_by_tokens(train, settings.max_tokens, num_workers=settings.workers)
    return _loader(train, settings, shuffle=True)


def _loader(
    data: SampleDataset, settings: PretrainSettings, *, shuffle: bool = False
) -> DataLoader[Any]:
    return loader(data, settings.batch_size, shuffle=shuffle, num_workers=settings.workers)


def _strategy(settings: PretrainSettings) -> FullFinetune:
    return FullFinetune(
        lr=settings.lr,
        lr_head=settings.lr,
        lr_embedder=settings.lr,
        layer_lr_decay=1.0,
        ema_decay=settings.ema,
        accumulation_steps=settings.accum,
        **settings.optimizer_options(warmup_ratio=DEFAULT.warmup_ratio),
    )

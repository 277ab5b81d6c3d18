"""One fine-tuning run: from settings to a folder with checkpoint, logs and predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from molfun.cli import energies
from molfun.cli.command_settings import RunOptions
from molfun.cli.console import (
    ConsoleProgress,
    Progress,
    is_first_process,
    metric_line,
    say,
)
from molfun.cli.data import (
    heads_config,
    inputs_of,
    loader,
    loader_by_length,
    open_training,
    task_config,
)
from molfun.cli.judging import judge_run
from molfun.cli.loggers import held_loggers, tell
from molfun.cli.nearness import columns_of_run
from molfun.cli.outputs import opened_run
from molfun.cli.places import STARTED_IN, started_in
from molfun.cli.schema import write_config
from molfun.cli.settings import FineTuneSettings
from molfun.cli.several import RESUMED, processes
from molfun.cli.showing import record_start, show
from molfun.cli.slurm import submitted
from molfun.cli.sources import settings_of, settings_of_options
from molfun.cli.subjects import log_checks
from molfun.cli.sweep import with_best_layer
from molfun.cli.tables import write_predictions
from molfun.config import read_yaml
from molfun.data.base import SampleDataset
from molfun.errors import ConfigError, DataError
from molfun.models.folding import maker_of
from molfun.models.prediction import scored
from molfun.models.structure import MolfunStructureModel
from molfun.registry import BACKBONES, TASKS
from molfun.runs.folder import CACHE, LOG, RUN_FILES, RunFolder, command_files
from molfun.strategies.auto import recommend
from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.gradual import GradualFinetune
from molfun.strategies.lora import LoRAFinetune
from molfun.strategies.partial import PartialFinetune
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History

logger = logging.getLogger(__name__)


def fine_tune(given: Mapping[str, Any]) -> None:
    """Fine-tune with the settings of the flags, and of the file that they name."""
    settings, options = settings_of(FineTuneSettings, given)
    if options.slurm is None:
        run(settings, options)
    else:
        say(submitted("fine-tune", settings, options, settings.to_yaml()))


def train(given: Mapping[str, Any]) -> None:
    """Fine-tune with the settings of a file of options, metatrain's or Molfun's own."""
    run(*settings_of_options(given))


def run(settings: FineTuneSettings, options: RunOptions) -> History:
    """Load data, split, train and test; print and write along the way."""
    folder = RunFolder(settings.output_dir, resume=options.resume)
    # a demo replaces the demo before it, so that the first command of the README can be repeated
    overwrite = options.overwrite or (settings.demo and is_demo(folder))
    names = type(settings).model_fields
    written = (*RUN_FILES, *command_files(), LOG, CACHE)
    with (
        processes(settings, RESUMED, None),
        opened_run(
            folder,
            written,
            settings.inputs,
            settings=names,
            overwrite=overwrite,
            debug=options.debug,
        ),
        held_loggers(settings) as loggers,
    ):
        train, val, test = open_training(settings)
        log_checks(settings, {"train": train, "val": val, "test": test})
        old = energies.old_structures(settings)
        if settings.sweep is not None:
            parts = (train, val, test)
            settings = with_best_layer(
                settings, folder, lambda: model_of(settings, *parts), train, val
            )
        model = model_of(settings, train, val, test)
        _check_test_set(model, train, val, test)
        strategy = strategy_of(settings, len(train), len(model.backbone.blocks()))
        say(f"Model: {model.backbone.display_name} ({_size(model):,} params)")
        say(f"Strategy: {type(strategy).__name__} (lr={strategy.main_lr:.1e})")
        files = RunFiles(folder, settings, strategy, model, (train, val, test))
        tell(loggers, files.settings)
        reports = energies.forgetting(settings, model, old)
        shown = ConsoleProgress()
        try:
            history = model.fit(
                training_loader(train, settings, model.backbone.length_power),
                None if val is None else plain_loader(val, settings),
                strategy=strategy,
                epochs=settings.epochs,
                output_dir=folder,
                seed=settings.seed,
                precision=settings.precision,
                cache=settings.cache_config,
                callbacks=[files, *reports, shown],
                loggers=loggers,
                overwrite=overwrite,
                parallel=settings.parallel,
            )
        finally:
            shown.close()
        if is_first_process():
            _report(folder, model, history, settings, (train, val, test), reports=reports)
            show(folder, report=settings.report, model=model, parts=(train, val, test))
    return history


class RunFiles(Callback):
    """Write settings, split and provenance of a run, once all its settings are accepted.

    Parameters
    ----------
    folder
        Folder of the run.
    settings, strategy, model
        Sources of the values in ``config.yaml``.
    parts
        Training, validation and test set, for ``splits.csv``.
    rates
        Whether to print the learning rates.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: FineTuneSettings,
        strategy: FinetuneStrategy,
        model: MolfunStructureModel,
        parts: Sequence[SampleDataset | None],
        *,
        rates: bool = True,
    ) -> None:
        self._folder, self._settings, self._strategy = folder, settings, strategy
        self._model, self._parts, self._rates = model, parts, rates

    def on_fit_start(self, plan: FitPlan, history: History) -> None:  # noqa: ARG002
        """Remove the files of the run that is replaced, then write those of the new one.

        Not earlier: until `fit` has accepted everything, a failing start must keep the old run.
        """
        self._folder.remove_replaced()
        write_config(self._folder, self._settings, self._settings.to_yaml(**self._resolved()))
        if self._rates:
            say(self._strategy.describe_rates(self._model))
        id_name = next(part.id_name for part in self._parts if part is not None)
        named = zip(("train", "val", "test"), self._parts, strict=True)
        self._folder.write_splits(
            id_name, [(name, () if part is None else part.ids) for name, part in named]
        )
        record_start(
            self._folder,
            self._settings,
            self._strategy,
            self._model,
            self._parts,
            resumed=bool(history),
        )

    def settings(self) -> dict[str, Any]:
        """Return all settings as ``config.yaml`` has them, for trackers."""
        return {**self._settings.model_dump(), **self._resolved()}

    def _resolved(self) -> dict[str, Any]:
        """Return the values of settings that were left open."""
        strategy = self._strategy
        inner = strategy.inner if isinstance(strategy, GradualFinetune) else strategy
        resolved = {
            "strategy": inner.name,
            "lr": strategy.main_lr,
            "batch_size": self._settings.samples_per_batch,
            "accum": strategy.accumulation_steps,
            "device": str(self._model.device),
            "precision": self._model.precision,
        }
        if isinstance(inner, LoRAFinetune):
            resolved["lora_rank"] = inner.rank
        if isinstance(inner, PartialFinetune):
            resolved["unfreeze_blocks"] = inner.unfreeze_last_n
        resolved[STARTED_IN] = started_in(self._folder.path)
        if isinstance(strategy, GradualFinetune):
            resolved["unfreeze_epoch"] = strategy.unfreeze_epoch
        return resolved


def _size(model: MolfunStructureModel) -> int:
    return sum(p.numel() for p in model.backbone.parameters())


def is_demo(folder: RunFolder) -> bool:
    """Return whether a folder holds a demo, which a new demo may replace."""
    return folder.config.is_file() and read_yaml(folder.config).get("demo") is True


def _check_test_set(
    model: MolfunStructureModel,
    train: SampleDataset,
    val: SampleDataset | None,
    test: SampleDataset | None,
) -> None:
    """Check the test set, which `fit` does not; if it fails, list the problems of all parts."""
    try:
        model.check(*([] if test is None else [test]))
    except DataError:
        model.check(*(part for part in (train, val, test) if part is not None))
        raise


def model_of(settings: FineTuneSettings, *parts: SampleDataset | None) -> MolfunStructureModel:
    """Return the untrained model of a run, for training, validation and test set."""
    if settings.init_from is not None:
        return _from_checkpoint(settings.init_from, settings)
    # both known before the weights are read, so that they need not be held as floats, or whole
    base = settings.strategy_config.get("base", "float32")
    described = architecture(settings, *parts)
    if base == "float32":
        in_file = settings.arguments_to_divide(settings.backbone)
        described["backbone_config"] = {**in_file, **described["backbone_config"]}
    model = MolfunStructureModel(
        settings.backbone,
        weights=settings.weights,
        device=settings.device,
        seed=settings.seed,
        kernels=settings.kernels,
        base=base,
        **described,
    )
    energies.use_target(model, settings)
    return model


def architecture(settings: FineTuneSettings, *parts: SampleDataset | None) -> dict[str, Any]:
    """Return the arguments of a model that say what it is made of, from settings and data."""
    inputs = [None if part is None else inputs_of(part) for part in parts]
    arguments = settings.kind.backbone_arguments(settings, inputs)
    if settings.heads:
        heads: dict[str, Any] = {"heads": heads_config(settings, parts)}
    else:
        heads = {
            "head": settings.head or _usual_head(settings),
            "head_config": settings.head_config,
            "task": settings.task,
            "task_config": task_config(settings, *parts),
        }
    return {
        "config": settings.preset,
        "backbone_config": {**arguments, **settings.backbone_arguments},
        "trust": settings.trust,
        "augment": getattr(settings, "augment", None),
        **heads,
    }


def _usual_head(settings: FineTuneSettings) -> str:
    """Return the head of the backbone; of a task on structures, its own."""
    task = settings.labels.task
    if task in TASKS and TASKS[task].labels_from_structure:
        return str(TASKS[task].default_head)
    return str(BACKBONES[settings.backbone].default_head)


def _from_checkpoint(path: str, settings: FineTuneSettings) -> MolfunStructureModel:
    """Load the model of a finished run, to continue training it with the settings of a new one."""
    model = MolfunStructureModel.from_checkpoint(
        path, weights=settings.weights, device=settings.device, kernels=settings.kernels
    )
    found = {"head": model.head_name, "task": model.task_name, "backbone": model.backbone.name}
    wanted = {"head": settings.head, "task": settings.task}
    wanted["backbone"] = BACKBONES.resolve(settings.backbone)[0]
    for name, value in wanted.items():
        if value not in (None, found[name]):
            raise ConfigError(
                f"--init-from {path} has the {name} {found[name]!r}, and --{name} asks for "
                f"{value!r}. Leave --{name} out, or start from --weights."
            )
    say(f"Starts from: {path} (trained weights)")
    return model


def strategy_of(settings: FineTuneSettings, n_train: int, n_blocks: int) -> FinetuneStrategy:
    """Return the strategy of a run, and say why "auto" chose it."""
    if settings.strategy != "auto":
        return FinetuneStrategy.from_dict(settings.strategy_options(settings.strategy, n_blocks))
    chosen, why = recommend(n_train, n_blocks)
    asked = [n for n in ("lora_rank", "unfreeze_blocks") if getattr(settings, n) is not None]
    # a flag that only LoRA has is a clearer wish than the number of samples
    if asked and not isinstance(chosen, LoRAFinetune):
        chosen, why = LoRAFinetune(), f"because of {', '.join(asked)}"
    say(f"Chosen for {n_train} training samples: {chosen.name} ({why})")
    options = settings.strategy_options(chosen.name, n_blocks)
    if isinstance(chosen, LoRAFinetune):
        options = {"rank": chosen.rank, **options}
    return FinetuneStrategy.from_dict(options)


def training_loader(
    dataset: SampleDataset, settings: FineTuneSettings, power: float
) -> DataLoader[Any]:
    """Return the loader of a training set, shuffled or in batches by length."""
    dataset = settings.kind.prepare_training(dataset, settings)
    size, workers = settings.samples_per_batch, settings.workers
    # with one sample per batch there is nothing to group, and the usual shuffling is kept
    if settings.group_by_length and size > 1:
        return loader_by_length(dataset, size, power=power, num_workers=workers)
    return loader(dataset, size, shuffle=True, num_workers=workers)


def plain_loader(dataset: SampleDataset, settings: FineTuneSettings) -> DataLoader[Any]:
    """Return the loader of validation or test set, in order."""
    return loader(dataset, settings.samples_per_batch, num_workers=settings.workers)


def _report(
    folder: RunFolder,
    model: MolfunStructureModel,
    history: History,
    settings: FineTuneSettings,
    parts: tuple[SampleDataset, SampleDataset | None, SampleDataset | None],
    reports: Sequence[Callback] = (),
) -> None:
    if history.stopped == "early_stopping":
        say(f"Stopped early: no better {settings.monitor} for {settings.patience} epochs.")
    if history.cache_report:
        say(history.cache_report)
    say()
    energies.say_units(model)
    train, *others = parts
    measured = {}
    for name, part in zip(("val", "test"), others, strict=True):
        if part is not None:
            scores = scored(model, Progress(plain_loader(part, settings), f"predicting {name}"))
            measured[name] = part, scores
            path = folder.path / f"predictions_{name}.csv"
            near = columns_of_run(model.training_record, settings.kind, part, scores.prediction)
            write_predictions(path, scores.prediction, part, about=near)
            settings.kind.write_beside(path, scores.prediction, part, partial(maker_of, model))
            label = f"Validation (best epoch {history.best['epoch']})" if name == "val" else "Test"
            say(f"{label}: {metric_line(scores.metrics)}")
    for report in reports:
        say(f"Forgetting: {report}")
    judge_run(folder, model, settings, train, measured)
    say(f"Everything is in {folder.path}: checkpoint/, history.csv, config.yaml, run.log")

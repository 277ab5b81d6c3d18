"""Settings that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from molfun.config import Settings, option
from molfun.parallel.started import Devices, Way
from molfun.registry import BACKBONES, LOGGERS, OPTIMIZERS
from molfun.strategies.course import SCHEDULERS, Course, Mode
from molfun.strict import parameters_of
from molfun.text import unknown_name
from molfun.training.loggers.names import logger_names

DATA, MODEL, TASK, TRAINING, RUN, CACHE = (
    *("Data", "Model", "Task", "Training", "Run", "Cache of what is frozen"),
)
PANELS = (DATA, MODEL, TASK, TRAINING, RUN, CACHE)
"""Headings of the help in their order; those of the data kinds follow the first."""

DEVICE = option("auto", "auto, cpu, cuda or cuda:N.", panel=RUN)
NUM_NODES = option(1, "Machines, on each of which this command runs.", panel=RUN, hidden=True, ge=1)
KERNELS = option(
    "auto", "Kernels: {choices} (stock is the package's own code).", panel=RUN, hidden=True
)
PLUGIN = option(
    None, "Module to import first, which registers parts of your own.", panel=RUN, hidden=True
)
TRUST = option(False, "You know where a .ckpt comes from, which is a pickle.", panel=MODEL)

Kernels = Literal["auto", "stock", "fast"]


class StartSettings(Settings):
    """Output folder and device of a run, and the plugin that it imports."""

    output: str | None = option(None, "Folder of the run.", panel=RUN, shown="runs/STRATEGY")
    device: str = DEVICE
    plugin: str | None = PLUGIN


class ProcessSettings(StartSettings):
    """Seed and worker processes of a run, and the directory in which it was started."""

    seed: int = option(
        42, "Seed of split, order, weights, masks, dropout.", panel=RUN, hidden=True,
        ge=0, lt=2**63,
    )  # fmt: skip
    workers: int = option(0, "Processes that load data.", panel=RUN, hidden=True, ge=0)
    logger: list[str] = option(
        list, "Experiment trackers, with commas: {choices}.", panel=RUN, hidden=True,
        choices=LOGGERS.__iter__, shown="none",
    )  # fmt: skip
    logger_config: dict[str, dict[str, Any]] = option(
        dict, "Settings of each logger, as project of wandb.", yaml_only=True
    )
    started_in: str | None = option(
        None, "Folder a run was started in, as seen from its own.", yaml_only=True
    )

    @field_validator("logger", mode="before")
    @classmethod
    def _are_loggers(cls, given: Any) -> Any:
        if given is None:
            return []
        one_or_more = [given] if isinstance(given, str) else given
        texts = isinstance(one_or_more, list | tuple) and all(
            isinstance(one, str) for one in one_or_more
        )
        return logger_names(given) if texts else given


def counted_devices(given: Any) -> Any:
    """Return a number of processes, as a number or as text, or refuse it.

    Raises
    ------
    ValueError
        If it is neither a number of at least 1 nor "auto".
    """
    if given in (None, "auto"):
        return given
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError("should be a whole number of at least 1, or auto")
    return int(given)


class TogetherSettings(ProcessSettings):
    """Processes that train one model together."""

    devices: Devices = option(
        "auto", "Processes per machine, each with a device of its own.", panel=RUN, hidden=True,
        shown="auto: all GPUs",
    )  # fmt: skip
    num_nodes: int = NUM_NODES
    parallel: Way = option(
        "auto",
        "How processes share a model: ddp (auto) copies it, fsdp2 divides its blocks.",
        panel=RUN, hidden=True,
    )  # fmt: skip

    @field_validator("devices", mode="before")
    @classmethod
    def _are_devices(cls, given: Any) -> Any:
        return counted_devices(given)

    def arguments_to_divide(self, backbone: str) -> dict[str, Any]:
        """Return arguments of a backbone that is not to be held whole before it is divided."""
        takes, _ = parameters_of(BACKBONES[BACKBONES.resolve(backbone)[0]])
        return {"mmap": True} if self.parallel.startswith("fsdp2") and "mmap" in takes else {}


class OptimizerSettings(Settings):
    """Optimizer and schedule, with the names and defaults of the strategies' fields."""

    optimizer: str = option(
        Course.optimizer,
        "{choices}; schedule_free_adamw needs --scheduler constant --ema 0.",
        panel=TRAINING,
        hidden=True,
        choices=OPTIMIZERS.__iter__,
    )
    momentum: float = option(
        Course.momentum, "Momentum of sgd.", panel=TRAINING, hidden=True, ge=0, lt=1,
        read_with=("optimizer", "sgd"),
    )  # fmt: skip
    scheduler: str = option(
        Course.scheduler,
        "{choices}.", panel=TRAINING, hidden=True, choices=lambda: SCHEDULERS,
    )  # fmt: skip
    warmup: int | None = option(
        None, "Warm-up in optimizer steps.", panel=TRAINING, hidden=True, shown="10 % of all", ge=0
    )
    warmup_ratio: float | None = option(
        None, "Warm-up as a fraction of all steps.", yaml_only=True, ge=0, le=1
    )
    min_lr: float | None = option(
        None, "Smallest learning rate.", panel=TRAINING, shown="1e-6 of the peak", hidden=True,
        ge=0, read_with=("scheduler", *(name for name in SCHEDULERS if name != "constant")),
    )  # fmt: skip
    step_size: int = option(
        Course.step_size, "step: epochs at each rate.", panel=TRAINING, hidden=True, ge=1,
        read_with=("scheduler", "step"),
    )  # fmt: skip
    gamma: float = option(
        Course.gamma, "step: factor from one rate to the next.", panel=TRAINING,
        hidden=True, gt=0, le=1, read_with=("scheduler", "step"),
    )  # fmt: skip
    plateau_factor: float = option(
        Course.plateau_factor, "plateau: factor on the rate after them.", panel=TRAINING,
        hidden=True, gt=0, lt=1, read_with=("scheduler", "plateau"),
    )  # fmt: skip
    plateau_patience: int = option(
        Course.plateau_patience,
        "plateau: epochs without a better --monitor at one rate.", panel=TRAINING, hidden=True,
        ge=0, read_with=("scheduler", "plateau"),
    )  # fmt: skip
    plateau_mode: Mode | None = option(
        None, "plateau: min or max, where --monitor does not say it.", yaml_only=True,
        read_with=("scheduler", "plateau"),
    )  # fmt: skip

    weight_decay: float = option(0.01, "Weight decay.", panel=TRAINING, hidden=True, ge=0)
    grad_clip: float = option(
        1.0, "Largest gradient norm; 0: off.", panel=TRAINING, hidden=True, ge=0
    )

    @field_validator("optimizer", "scheduler")
    @classmethod
    def _is_known(cls, name: str, field: ValidationInfo) -> str:
        kind = str(field.field_name)
        known: Iterable[str] = OPTIMIZERS if kind == "optimizer" else SCHEDULERS
        if name not in known:
            raise ValueError(unknown_name(kind, name, known))
        return name

    @model_validator(mode="after")
    def _warms_up_or_not(self) -> Self:
        if self.scheduler == "warmup_cosine" and self.warmup == 0:
            raise ValueError("warmup_cosine has a warm-up; without one the scheduler is cosine")
        return self

    def optimizer_options(self, *, warmup_ratio: float) -> dict[str, Any]:
        """Return arguments of a strategy; `warmup_ratio` applies if no warm-up is given."""
        options = {name: getattr(self, name) for name in OptimizerSettings.model_fields}
        steps, ratio = options.pop("warmup"), options.pop("warmup_ratio")
        warmup = {"warmup_ratio": warmup_ratio if ratio is None else ratio}
        if steps is not None:
            warmup = {"warmup_steps": steps}
        return {**options, **warmup}

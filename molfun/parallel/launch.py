"""Start the processes of a run, or join those that were started for it.

Lightning Fabric starts processes, finds out who started them (torchrun, SLURM, LSF, MPI), and sets
`torch.distributed` up. A script of a user is never run again by a call of the SDK: in Python,
processes are those that torchrun or a scheduler started; a command starts its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from molfun.errors import ConfigError
from molfun.parallel.failures import watch_children, watch_parent
from molfun.parallel.ranks import Ranks
from molfun.parallel.started import NODES, Devices, Started

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
CHILD = "MOLFUN_STARTED"
"""Variable with the process id of the command that started processes, or of one of them."""
ADVICE = (
    "In Python, start the script with torchrun --nproc-per-node={n} or under a scheduler; the "
    "commands of molfun start their own processes (molfun fine-tune --devices {n})."
)


def check(devices: Devices, num_nodes: int) -> None:
    """Refuse a number of processes that were not started.

    Raises
    ------
    ConfigError
        Saying how to start them.
    """
    if devices == "auto" and num_nodes == 1:
        return
    started = Started.found()
    wanted = started.per_node if devices == "auto" else devices
    if wanted * num_nodes != started.size:
        raise ConfigError(
            f"devices={devices} on {num_nodes} machines are {wanted * num_nodes} processes, and "
            f"{started.size} {'was' if started.size == 1 else 'were'} started. "
            f"{ADVICE.format(n=wanted)}"
        )


def launch(
    devices: Devices, num_nodes: int, device: str, patience: timedelta | None = None
) -> None:
    """Start the other processes of a command, each of which runs the same command line.

    Does nothing where they were started already. Every machine of several runs the command.
    A process waits for another for at most `patience`; by default for half an hour, as torch does.

    Raises
    ------
    ConfigError
        If others were started than are asked for.
    """
    if Started.found().size == 1:
        n = _available(device) if devices == "auto" else devices
        if n * num_nodes > 1:
            _start(n, num_nodes, torch.device(_kind(device)).type, patience)
        return
    if CHILD not in os.environ:
        check(devices, num_nodes)
    elif os.environ[CHILD] != str(os.getpid()):
        parent, os.environ[CHILD] = int(os.environ[CHILD]), str(os.getpid())
        watch_parent(parent)


def _start(devices: int, num_nodes: int, kind: str, patience: timedelta | None) -> None:
    os.environ[NODES] = str(num_nodes)
    os.environ[CHILD] = str(os.getpid())
    # torch prints the stack of each message that fails, and what failed is said in one line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    fabric = _fabric(kind, devices, num_nodes, "32-true", _replicated(kind, patience))
    fabric.launch()


def _kind(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _available(device: str) -> int:
    """Return the number of devices that "auto" takes: all GPUs, but one where it is named."""
    return torch.cuda.device_count() if _kind(device) == "cuda" else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make `join` and `fabric_for` ignore the other processes of the run inside a block."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _is_alone() -> bool:
    return _ALONE.get() or Started.found().size == 1 or not distributed.is_available()


def join(device: torch.device, patience: timedelta | None = None) -> Ranks:
    """Return the place of this process among those that were started for the run.

    Parameters
    ----------
    device
        Device of this process.
    patience
        As in `launch`.
    """
    if _is_alone():
        return Ranks()
    fabric = fabric_for(device, "32-true", patience)
    return Ranks(fabric.global_rank, fabric.world_size)


def fabric_for(device: torch.device, precision: str, patience: timedelta | None = None) -> Fabric:
    """Return the Fabric of this process, joined to the others if there are any."""
    started = Started.found()
    if _is_alone():
        devices: Any = [device.index or 0] if device.type == "cuda" else 1
        return _fabric(device.type, devices, 1, precision, "auto")
    if started.by == "torchrun":
        os.environ.setdefault("LOCAL_RANK", str(started.local))
    elif started.by == "SLURM":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(started.per_node))  # Fabric asks for it
    nodes = started.size // started.per_node
    strategy = _replicated(device.type, patience)
    fabric = _fabric(device.type, started.per_node, nodes, precision, strategy)
    fabric.launch()  # joins: there is nothing left to start
    return fabric


def _replicated(kind: str, patience: timedelta | None) -> Any:
    """Return Fabric's strategy for a copy of the model in each process."""
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
    from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

    class Launcher(_SubprocessScriptLauncher):
        """Fabric's launcher without its watch, which kills this process before it can speak."""

        def launch(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            environment, n = self.cluster_environment, self.num_processes
            environment.validate_settings(num_devices=n, num_nodes=self.num_nodes)
            if not environment.creates_processes_externally:
                self._call_children_scripts()
                # from now on, since the first process waits below until all have joined
                watch_children(self.procs)
            _set_num_threads_if_needed(num_processes=n)
            return function(*args, **kwargs)

    class Strategy(DDPStrategy):
        def _configure_launcher(self) -> None:
            assert self.cluster_environment is not None
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    return Strategy(
        process_group_backend="nccl" if kind == "cuda" else "gloo",
        timeout=patience or distributed.constants.default_pg_timeout,
    )


def _fabric(kind: str, devices: Any, num_nodes: int, precision: str, strategy: Any) -> Fabric:
    with _known_by_version("torchmetrics"):
        from lightning_fabric import Fabric  # here, as the import takes seconds
        from lightning_fabric.plugins.environments import (
            LightningEnvironment,
            TorchElasticEnvironment,
        )

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets in each process
    # of Kubernetes and others that set RANK and WORLD_SIZE as torchrun does; and Fabric takes any
    # process in a job of SLURM for one of several
    plugins = {"torchrun": [TorchElasticEnvironment()], "SLURM": None}
    by = "" if _is_alone() else Started.found().by
    with warnings.catch_warnings():
        # a command without srun is no mistake where jobs are submitted
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        return Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            strategy=strategy,
            plugins=plugins.get(by, [LightningEnvironment()]),
        )


@contextlib.contextmanager
def _known_by_version(package: str) -> Iterator[None]:
    """Stand in for a package whose version is asked for by what is imported inside.

    Fabric imports torchmetrics for its version alone, and torchmetrics imports transformers and
    most of scipy: more than half of the six seconds that the import of Fabric takes.
    """
    installed = importlib.util.find_spec(package) is not None
    if not installed or package in sys.modules or "lightning_fabric" in sys.modules:
        yield
        return
    stand_in = ModuleType(package)
    stand_in.__dict__["__version__"] = importlib.metadata.version(package)
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        del sys.modules[package]

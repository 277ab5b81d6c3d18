"""Read from the environment which processes were started for a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Devices = int | Literal["auto"]
"""Processes per machine; "auto" takes those that were started."""
Way = Literal["auto", "ddp", "fsdp2", "fsdp2_offload"]
"""Ways to train on several processes: a copy in each ("ddp"), or blocks that are divided."""
NODES = "MOLFUN_NUM_NODES"
"""Variable by which a command tells the processes that it starts the number of machines."""


@dataclass(frozen=True)
class Started:
    """Processes that something else started for this run.

    Parameters
    ----------
    size
        All of them.
    per_node
        Those of one machine.
    index
        This one, from 0; the first prints and writes for all.
    by
        What started them; empty for a process alone.
    """

    size: int = 1
    per_node: int = 1
    index: int = 0
    by: str = ""

    @property
    def local(self) -> int:
        """Index of this process on its machine, which is that of its GPU."""
        return self.index % self.per_node

    @classmethod
    def found(cls, environment: Mapping[str, str] = os.environ) -> Started:
        """Read the environment of torchrun, SLURM, Kubernetes or of a command of molfun.

        Examples
        --------
        >>> Started.found({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2"})
        Started(size=4, per_node=2, index=3, by='torchrun')
        >>> step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
        >>> Started.found({**step, "SLURM_PROCID": "5"})
        Started(size=8, per_node=4, index=5, by='SLURM')
        """
        # in a batch script or an interactive shell there are no tasks before srun starts them
        others = ("TORCHELASTIC_RUN_ID", NODES)
        if "SLURM_STEP_ID" in environment and not any(name in environment for name in others):
            return cls._of_slurm(environment)
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        per_node = size // int(environment.get(NODES, "1"))
        if "RANK" in environment:
            per_node = int(environment.get("LOCAL_WORLD_SIZE", per_node))
            return cls(size, per_node, int(environment["RANK"]), "torchrun")
        node, local = (int(environment.get(name, "0")) for name in ("NODE_RANK", "LOCAL_RANK"))
        return cls(size, per_node, node * per_node + local, "molfun")

    @classmethod
    def _of_slurm(cls, environment: Mapping[str, str]) -> Started:
        # srun starts an interactive shell as a step as well
        if environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            return cls()
        size = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
        nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        per_node = size // int(nodes)
        return cls(size, per_node, int(environment.get("SLURM_PROCID", "0")), "SLURM")

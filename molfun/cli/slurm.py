"""Write a job script for SLURM that runs a command, and submit it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from molfun._io import write_text
from molfun.errors import ConfigError, RunError
from molfun.runs.folder import RESUME
from molfun.runs.resume import STATE_FILE
from molfun.text import unknown_name

DRY_RUN = "dry-run"
"""Word that prints the script, and submits nothing."""
NOTICE = 120
"""Seconds before the end of its time at which SLURM tells a job."""
STOPPED = (138, 143)
"""Exit codes of a run that wrote its state after SIGUSR1 or SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Resources that a job requests from SLURM; the cluster chooses those that are empty.

    Parameters
    ----------
    partition, account, qos, constraint, reservation
        As for ``sbatch``.
    nodes
        Machines.
    gpus
        GPUs per machine, each with a process of its own.
    tasks
        Processes per machine; the number of GPUs, or 1 without any.
    cpus
        Cores of each process.
    mem
        Memory per machine (``64G``).
    time
        Longest time (``24:00:00``).
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    nodes: int = 1
    gpus: int = 0
    tasks: int = 0
    cpus: int = 0
    mem: str = ""
    time: str = ""

    @classmethod
    def parse(cls, text: str) -> tuple[Job, bool]:
        """Read ``partition=gpu,nodes=2``; also return whether the script is only to be printed.

        Raises
        ------
        ConfigError
            If a name is unknown, or a number is none.

        Examples
        --------
        >>> Job.parse("dry-run,nodes=2,gpus=8")[0].tasks_per_node
        8
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        given = dict(cls._value(word) for word in words if word != DRY_RUN)
        return cls(**given), DRY_RUN in words

    @classmethod
    def _value(cls, word: str) -> tuple[str, Any]:
        known = {one.name: one.type for one in fields(cls)}
        name, _, value = (part.strip() for part in word.partition("="))
        if name not in known:
            raise ConfigError(unknown_name("part of --slurm", name, [*known, DRY_RUN]))
        if not value or "\n" in value:
            raise ConfigError(f"--slurm {name} needs a value: {name}=...")
        return name, _number(name, value) if known[name] == "int" else value

    @property
    def tasks_per_node(self) -> int:
        """Processes of each machine."""
        return self.tasks or self.gpus or 1

    def lines(self, name: str, log: Path) -> list[str]:
        """Return the lines for ``sbatch``."""
        wanted: dict[str, str | int] = {
            "job-name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus,
            "cpus-per-task": self.cpus,
            "mem": self.mem,
            "time": self.time,
            "output": str(log),
            "open-mode": "append",
            "signal": f"USR1@{NOTICE}",
        }
        return [f"#SBATCH --{key}={value}" for key, value in wanted.items() if value] + [
            "#SBATCH --requeue"
        ]


def _number(name: str, value: str) -> int:
    if not value.isdigit():
        raise ConfigError(f"--slurm {name}={value}: {name} is a whole number.")
    return int(value)


def script_of(job: Job, command: Sequence[str], folder: Path, *, name: str, state: Path) -> str:
    """Return the text of a job script.

    SLURM tells a job before its time is up, and before another job takes its place. The run then
    writes its state and ends; the script puts the job back into the queue, and the run goes on.

    Parameters
    ----------
    job
        What to ask for.
    command
        Command line that every process runs.
    folder
        Folder in which the command runs.
    name
        Name of the job.
    state
        File that is there once the run can go on where it stopped.
    """
    options = "\n".join(job.lines(name, folder / f"{name}-%j.out"))
    codes = "|".join(map(str, STOPPED))
    return f"""#!/bin/bash
{options}

cd {shlex.quote(str(folder))} || exit 1
resume=
if [ -e {shlex.quote(str(state))} ]; then resume=--resume; fi
srun --kill-on-bad-exit=1 {shlex.join(command)} $resume
code=$?
# {" and ".join(map(str, STOPPED))}: the run was told to stop, and wrote its state
case $code in
    {codes}) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
"""


def submit(job: Job, script: str, path: Path, *, dry_run: bool) -> str:
    """Write a script and submit it; return what to tell the user.

    Raises
    ------
    RunError
        If there is no ``sbatch``, or it refuses the job.
    """
    if dry_run:
        return script
    if shutil.which("sbatch") is None:
        raise RunError("There is no sbatch here: run the command where jobs are submitted.")
    write_text(path, script)
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise RunError(f"sbatch refuses {path}: {said[0]}")
    return f"{done.stdout.strip()} ({path}, {job.nodes} x {job.tasks_per_node} processes)"


def submitted(
    verb: str, asked: str, run: Path, text: str, state: str = f"{RESUME}/{STATE_FILE}"
) -> str:
    """Submit a job that runs a command with these settings; return what to tell the user.

    Settings and script are next to the folder of the run, in ``RUN.slurm``: the run makes its
    folder when it starts.

    Parameters
    ----------
    verb
        Command of molfun.
    asked
        Value of ``--slurm``.
    run
        Folder of the run.
    text
        Settings as the file for ``--config`` has them.
    state
        File in that folder that is there once the run can go on.
    """
    job, dry_run = Job.parse(asked)
    beside = run.with_name(f"{run.name}.slurm")
    config = beside / "config.yaml"
    script = script_of(
        job,
        [sys.executable, "-m", "molfun", verb, "--config", str(config)],
        Path.cwd(),
        name=run.name,
        state=run / state,
    )
    if not dry_run:
        write_text(config, text)
    return submit(job, script, beside / "job.sh", dry_run=dry_run)

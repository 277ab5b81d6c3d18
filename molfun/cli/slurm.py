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
from molfun.cli.command_settings import FileOptions
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.errors import ConfigError, RunError
from molfun.runs.folder import RESUME, RunFolder
from molfun.runs.resume import STATE_FILE
from molfun.text import unknown_name

Submitted = FineTuneSettings | PretrainSettings
"""Settings of commands that a job can run."""
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
        given = {key: _quoted(value) for key, value in wanted.items() if value}
        return [*(f"#SBATCH --{key}={value}" for key, value in given.items()), "#SBATCH --requeue"]


def _quoted(value: str | int) -> str:
    """Return a value for ``sbatch``, which takes a text with spaces in quotation marks."""
    text = str(value)
    return f'"{text}"' if " " in text else text


def _number(name: str, value: str) -> int:
    if not value.isdigit():
        raise ConfigError(f"--slurm {name}={value}: {name} is a whole number.")
    return int(value)


def script_of(
    job: Job,
    command: Sequence[str],
    folder: Path,
    *,
    name: str,
    settings: Path,
    state: Path,
    start: str = "",
) -> str:
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
    settings
        File of the settings, which is written when the job is submitted.
    state
        File that is there, and newer than the settings, once the run can go on where it stopped.
    start
        Flag of the first start: ``--resume``, ``--overwrite`` or none.
    """
    options = "\n".join(job.lines(name, folder / f"{name}-%j.out"))
    codes = "|".join(map(str, STOPPED))
    # srun does not take it over from sbatch (SLURM 22.05 and later)
    ours = f"{shlex.quote(str(state))} -nt {shlex.quote(str(settings))}"
    cores = f" --cpus-per-task={job.cpus}" if job.cpus else ""
    return f"""#!/bin/bash
{options}

# runs with the settings in {settings}, written on submission
cd {shlex.quote(str(folder))} || exit 1
how={start}
# started again, after a notice or because a machine failed; not with the state of an older run
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ {ours} ]; then
    how=--resume
fi
srun --kill-on-bad-exit=1{cores} {shlex.join(command)} $how
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
        If ``sbatch`` refuses the job.
    """
    if dry_run:
        return script
    write_text(path, script)
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise RunError(f"sbatch refuses {path}: {said[0]}")
    return f"{done.stdout.strip()} ({path}, {job.nodes} x {job.tasks_per_node} processes)"


def submitted(
    verb: str,
    settings: Submitted,
    options: FileOptions,
    text: str,
    state: str = f"{RESUME}/{STATE_FILE}",
) -> str:
    """Submit a job that runs a command with these settings; return what to tell the user.

    Settings and script are next to the folder of the run, in ``RUN.slurm``: the run makes its
    folder when it starts.

    Parameters
    ----------
    verb
        Command of molfun.
    settings, options
        Settings of the run, and how it starts.
    text
        Settings as the file for ``--config`` has them.
    state
        File in the folder of the run that is there once it can go on.

    Raises
    ------
    ConfigError
        If the job would not have the processes that the settings ask for.
    RunError
        If the folder holds a run that is neither resumed nor replaced, a job of other settings may
        still wait for its turn, or there is no ``sbatch``.
    """
    assert options.slurm is not None
    job, dry_run = Job.parse(options.slurm)
    _check_processes(job, settings)
    run = settings.output_dir
    # as the command would, but now and not when the job has its turn
    RunFolder(run, resume=options.resume).check(overwrite=options.overwrite)
    beside = run.with_name(f"{run.name}.slurm")
    config = beside / "config.yaml"
    script = script_of(
        job,
        [sys.executable, "-m", "molfun", verb, "--config", str(config)],
        Path.cwd(),
        name=run.name,
        settings=config,
        state=run / state,
        start="--resume" if options.resume else "--overwrite" if options.overwrite else "",
    )
    if not dry_run:
        if shutil.which("sbatch") is None:
            raise RunError("There is no sbatch here: run the command where jobs are submitted.")
        again = options.resume or options.overwrite
        if config.exists() and config.read_text(encoding="utf-8") != text and not again:
            raise RunError(
                f"{config} is of a job with other settings, which may still wait for its turn. "
                f"Choose another --output, or add --overwrite."
            )
        write_text(config, text)
    return submit(job, script, beside / "job.sh", dry_run=dry_run)


def _check_processes(job: Job, settings: Submitted) -> None:
    """Refuse a job whose processes are not those of ``--devices`` and ``--num-nodes``."""
    asked = {"devices": settings.devices, "num_nodes": settings.num_nodes}
    found = {"devices": job.tasks_per_node, "num_nodes": job.nodes}
    usual = {"devices": "auto", "num_nodes": 1}
    for name, value in asked.items():
        if value not in (usual[name], found[name]):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {value} does not go with --slurm, whose job has {job.nodes} x "
                f"{job.tasks_per_node} processes. Leave --{flag} out."
            )

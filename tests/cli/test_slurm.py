"""``--slurm``: a plain job script, run here by stand-ins for sbatch, srun and scontrol."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from together import together

from molfun.cli.slurm import Job
from molfun.errors import ConfigError

Command = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton=gpu", "Unknown part of --slurm 'partiton'"),
        ("nodes=two", "--slurm nodes=two: nodes is a whole number."),
        ("partition", "--slurm partition needs a value: partition=..."),
    ],
)
def test_wrong_parts_are_told(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Job.parse(text)
    assert said in str(caught.value)


def test_a_script_is_printed(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "dry-run,partition=gpu,nodes=2,gpus=8,time=24:00:00"
    result = molfun("fine-tune", "--demo", "--output", "runs/demo", "--slurm", asked)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8", "#SBATCH --time=24:00:00", "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue", f"cd {tmp_path} || exit 1",
        "if [ -e runs/demo/resume/state.pt ]; then resume=--resume; fi",
    ):  # fmt: skip
        assert line in lines
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert srun.startswith("srun --kill-on-bad-exit=1 ")
    assert srun.endswith("-m molfun fine-tune --config runs/demo.slurm/config.yaml $resume")
    assert not list(tmp_path.iterdir())


def test_scripts_of_other_commands(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb, data, state in (
        ("pretrain", ("--sequences", "x.fasta"), "resume/state.pt"),
        ("cv", ("--demo",), "plan.json"),
    ):
        result = molfun(verb, *data, "--output", "run", "--slurm", "dry-run,nodes=2,tasks=4")
        assert result.exit_code == 0, result.output
        assert f"if [ -e run/{state} ]; then resume=--resume; fi" in result.stdout
        assert f"-m molfun {verb} --config run.slurm/config.yaml $resume" in result.stdout
    assert not list(tmp_path.iterdir())


def test_without_slurm(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    result = molfun("fine-tune", "--demo", "--slurm", "nodes=1")
    assert result.exit_code == 1
    assert "There is no sbatch here" in result.stderr


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


SRUN = """
# as SLURM: --ntasks-per-node processes with their places, and a signal to all of them
shift
export SLURM_NNODES=1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
export SLURM_JOB_NAME=molfun SLURM_NODELIST=127.0.0.1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$PORT
pids=()
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 "$@" & pids+=($!); done
if [ ! -e told ]; then
    # two epochs are in the history: the time of the job is up
    while [ "$(cat run/history.csv 2> /dev/null | wc -l)" -lt 3 ]; do
        kill -0 "${pids[0]}" || exit 99
        sleep 0.05
    done
    touch told
    kill -USR1 "${pids[@]}"
fi
worst=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_is_queued_again_and_goes_on(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_in(tools, "sbatch", 'bash "$1" > job.out 2>&1; echo "Submitted batch job 4711"')
    stand_in(tools, "srun", SRUN)
    stand_in(tools, "scontrol", 'echo "$@" >> requeued; bash run.slurm/job.sh >> job.out 2>&1')
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table = "".join(f"s{i},{'ACDEFGHIKL'[i % 10] * (5 + i % 3)},{i / 7}\n" for i in range(12))
    Path("t.csv").write_text(f"id,sequence,target\n{table}")
    flags = (
        "fine-tune", "--backbone", "esm2_tiny", "--data", "t.csv", "--strategy", "full",
        "--epochs", 40, "--batch-size", 2, "--no-report",
    )  # fmt: skip
    result = molfun(*flags, "--output", "run", "--slurm", "tasks=2,time=1:00:00")
    assert result.exit_code == 0, result.output
    assert "Submitted batch job 4711 (run.slurm/job.sh, 1 x 2 processes)" in result.stdout
    said = Path("job.out").read_text()
    assert Path("requeued").read_text() == "requeue 4711\n", said
    stopped = Path("run/history.csv").read_text().splitlines()
    assert len(stopped) == 41, said
    # as two processes that nobody stopped, bit by bit
    monkeypatch.delenv("SLURM_JOB_ID")
    together(2, *flags, "--output", "whole")
    assert Path("whole/history.csv").read_text().splitlines() == stopped


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

"""``--slurm``: a plain job script, run here by stand-ins for sbatch, srun and scontrol."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from together import together

from molfun.cli.slurm import Job
from molfun.errors import ConfigError

Command = Callable[..., Result]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of stand-ins that are found before other programs."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


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
        'if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && '
        "[ runs/demo/resume/state.pt -nt runs/demo.slurm/config.yaml ]; then",
    ):  # fmt: skip
        assert line in lines
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert srun.startswith("srun --kill-on-bad-exit=1 ")
    assert srun.endswith("-m molfun fine-tune --config runs/demo.slurm/config.yaml $how")
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
        assert (
            f" && [ run/{state} -nt run.slurm/config.yaml ]; then\n    how=--resume\nfi"
            in result.stdout
        )
        assert f"-m molfun {verb} --config run.slurm/config.yaml $how" in result.stdout
    assert not list(tmp_path.iterdir())


def test_the_first_start_has_the_flag_of_the_command(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("fine-tune", "--demo", "--output", "a run", "--slurm", "dry-run,tasks=2,cpus=4")
    said = molfun(*flags).stdout
    assert "\nhow=\n" in said
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=4 " in said
    assert '#SBATCH --job-name="a run"' in said
    assert f'#SBATCH --output="{tmp_path}/a run-%j.out"' in said
    assert "\nhow=--overwrite\n" in molfun(*flags, "--overwrite").stdout
    Path("a run/resume").mkdir(parents=True)
    Path("a run/resume/state.pt").write_text("")
    refused = molfun(*flags)
    assert refused.exit_code == 1
    assert "a run already holds a run (resume). Continue it with" in refused.stderr
    assert "\nhow=--resume\n" in molfun(*flags, "--resume").stdout


def test_a_job_has_the_processes_that_are_asked_for(molfun: Command, tmp_path: Path) -> None:
    flags = ("fine-tune", "--demo", "--output", tmp_path / "run", "--slurm", "dry-run,tasks=2")
    said = molfun(*flags, "--devices", 4).stderr
    assert "--devices 4 does not go with --slurm, whose job has 1 x 2 processes. Leave" in said
    said = molfun(*flags, "--num-nodes", 2).stderr
    assert "--num-nodes 2 does not go with --slurm, whose job has 1 x 2 processes." in said
    assert molfun(*flags, "--devices", 2).exit_code == 0


def test_settings_of_a_waiting_job_stay(
    molfun: Command, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(tools, "sbatch", 'echo "Submitted batch job 1"')
    flags = ("fine-tune", "--demo", "--output", "run", "--slurm", "tasks=1")
    assert molfun(*flags).exit_code == 0
    before = Path("run.slurm/config.yaml").read_text()
    other = molfun(*flags, "--epochs", 7)
    assert other.exit_code == 1
    assert "run.slurm/config.yaml is of a job with other settings, which may" in other.stderr
    assert Path("run.slurm/config.yaml").read_text() == before
    assert molfun(*flags).exit_code == 0
    assert molfun(*flags, "--epochs", 7, "--overwrite").exit_code == 0
    assert "epochs: 7" in Path("run.slurm/config.yaml").read_text()


def test_a_job_that_starts_again_goes_on_with_its_own_state_alone(
    molfun: Command, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older run is replaced, also where the job was stopped before it wrote a state."""
    monkeypatch.chdir(tmp_path)
    stand_in(tools, "sbatch", 'cat "$1"')
    stand_in(tools, "srun", 'echo "${@: -1}"')
    state = Path("run/resume/state.pt")
    state.parent.mkdir(parents=True)
    state.write_text("")
    os.utime(state, (1, 1))
    flags = ("fine-tune", "--demo", "--output", "run", "--overwrite", "--slurm", "tasks=1")
    assert molfun(*flags).exit_code == 0

    def how(restarts: str) -> str:
        job = {**os.environ, "SLURM_RESTART_COUNT": restarts}
        command = ["bash", "run.slurm/job.sh"]
        return subprocess.run(command, env=job, capture_output=True, text=True, check=True).stdout

    assert how("0") == how("1") == "--overwrite\n"
    written = Path("run.slurm/config.yaml").stat().st_mtime
    os.utime(state, (written + 1, written + 1))
    assert how("0") == "--overwrite\n"
    assert how("1") == "--resume\n"


def test_without_slurm(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    result = molfun("fine-tune", "--demo", "--slurm", "nodes=1")
    assert result.exit_code == 1
    assert "There is no sbatch here" in result.stderr
    assert not list(tmp_path.iterdir())


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


SRUN = """
# as SLURM: --ntasks-per-node processes with their places, and a signal to all of them
shift
export SLURM_STEP_ID=0 SLURM_NNODES=1 SLURM_NTASKS=2
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
    molfun: Command, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(tools, "sbatch", 'bash "$1" > job.out 2>&1; echo "Submitted batch job 4711"')
    stand_in(tools, "srun", SRUN)
    stand_in(
        tools,
        "scontrol",
        'echo "$@" >> requeued; SLURM_RESTART_COUNT=1 bash run.slurm/job.sh >> job.out 2>&1',
    )
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

"""Kill one of the two processes of a command at any time, from its start to its report.

The command starts its own second process. After each kill the other process must end within a
minute; the same command with --resume goes on, and at the end its files must be those of a run that
nothing disturbed, byte by byte.

    python tests/soak/kill_a_command.py --kills 20
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 60.0
"""Seconds in which the other process must end."""
FILES = ("history.csv", "predictions_test.csv", "splits.csv")
"""Files that are compared: they hold neither times nor names of folders."""


def command(folder: Path, way: str, name: str, *flags: str) -> list[str]:
    """Return the command line of a run."""
    return [
        *(sys.executable, "-m", "molfun", "fine-tune", "--backbone", "esm2_tiny", "--strategy"),
        *("full", "--data", str(folder / "table.csv"), "--epochs", "12", "--batch-size", "2"),
        *("--device", "cpu", "--devices", "2", "--parallel", way),
        *("--output", str(folder / name), *flags),
    ]


def start(folder: Path, way: str, name: str, *flags: str) -> subprocess.Popen[str]:
    """Start a run, as the leader of its own processes."""
    with (folder / f"{name}.said").open("a") as said:
        return subprocess.Popen(
            command(folder, way, name, *flags), stdout=said, stderr=said, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip


def members(leader: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def disturbed(folder: Path, way: str, seconds: float, rng: random.Random) -> str:
    """Start or resume the run, and kill a process of it; return what happened."""
    held = (folder / "run/resume/state.pt").is_file()
    running = start(folder, way, "run", *(["--resume"] if held else []))
    until = time.monotonic() + rng.uniform(0.5, seconds)
    while time.monotonic() < until:
        if running.poll() is not None:
            assert running.returncode == 0, (folder / "run.said").read_text()
            return "done"
        time.sleep(0.02)
    there = members(running.pid)
    children = [one for one in there if one != running.pid]
    victim = rng.choice(children) if children and rng.random() < 0.5 else running.pid
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    while running.poll() is None or members(running.pid):
        assert time.monotonic() - began < LIMIT, (members(running.pid), victim, running.pid)
        time.sleep(0.05)
    who = "the command" if victim == running.pid else "its child"
    print(f"{way}: killed {who}; all ended after {time.monotonic() - began:.1f} s", flush=True)
    return "done" if running.returncode == 0 else "killed"


def soak(kills: int, seed: int) -> None:
    """Disturb runs until `kills` processes were killed, and compare each with a quiet one."""
    rng, killed = random.Random(seed), 0
    while killed < kills:
        for way in ("ddp", "fsdp2"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                rows = [f"{'ACDEFGHIKLMNPQ'[i % 14] * (4 + i)},{i / 7}" for i in range(18)]
                (folder / "table.csv").write_text("\n".join(["sequence,target", *rows, ""]))
                began = time.monotonic()
                assert start(folder, way, "whole").wait() == 0, (folder / "whole.said").read_text()
                seconds = time.monotonic() - began
                attempts = 0
                while attempts < kills // 2:
                    if disturbed(folder, way, 0.8 * seconds, rng) == "done":
                        break
                    attempts += 1
                killed += attempts
                held = (folder / "run/resume/state.pt").is_file()
                last = start(folder, way, "run", *(["--resume"] if held else []))
                assert last.wait() == 0, (folder / "run.said").read_text()
                for file in FILES:
                    one, other = ((folder / run / file).read_bytes() for run in ("whole", "run"))
                    assert one == other, (way, file)
                print(f"{way}: {attempts} kills, then equal byte by byte", flush=True)


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    soak(options.kills, options.seed)


if __name__ == "__main__":
    main()

"""Kill one of two processes at random times, and resume until the run is done.

After each kill the other process must end within a minute and name the one that is gone; at the end
history and weights must be those of a run that nothing disturbed, bit by bit.

    python tests/soak/kill_a_process.py --kills 20
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training")]

import torch  # noqa: E402
from test_parallel import begun, started  # noqa: E402

LIMIT = 60.0
"""Seconds in which the other process must end."""
FIT: dict[str, Any] = {"strategy": "full", "n": 11, "epochs": 40, "save_every": 1}


def disturbed(place: Path, settings: dict[str, Any], rng: random.Random) -> bool:
    """Start or resume the run and kill a process; return whether it was done before."""
    state = Path(settings["folder"]) / "resume" / "state.pt"
    before = state.stat().st_mtime_ns if state.exists() else 0
    place.mkdir()
    with begun(2, place, {**settings, "resume": before > 0}) as ranks:
        while not state.exists() or state.stat().st_mtime_ns == before:
            time.sleep(0.05)
            if ranks[0].poll() is not None:
                return ranks[0].poll() == 0
        time.sleep(rng.uniform(0, 3))
        victim = rng.randrange(2)
        if any(rank.poll() is not None for rank in ranks):
            return True
        os.kill(ranks[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        while ranks[1 - victim].poll() is None:
            assert time.monotonic() - began < LIMIT, f"process {1 - victim} hangs"
            time.sleep(0.05)
        took = time.monotonic() - began
        said = ranks[1 - victim].stderr()
        done = ranks[1 - victim].poll() == 0  # it had nothing left to say to the other
        assert done or f"Process {victim} of 2 (from 0) ended" in said, said
        print(f"killed process {victim}; the other ended after {took:.1f} s", flush=True)
    return False


def soak(kills: int, seed: int) -> None:
    """Disturb runs until `kills` processes were killed, and compare each with a quiet one."""
    rng, killed = random.Random(seed), 0
    whole = {
        way: started(2, Path(tempfile.mkdtemp()), {**FIT, "parallel": way})[0]
        for way in ("ddp", "fsdp2")
    }
    while killed < kills:
        for way, quiet in whole.items():
            folder = Path(tempfile.mkdtemp())
            settings = {**FIT, "parallel": way, "folder": str(folder / "run")}
            attempts = 0
            while attempts < kills // 2 and not disturbed(folder / f"{attempts}", settings, rng):
                attempts += 1
            killed += attempts
            last = started(2, folder / "last", {**settings, "resume": True})[0]
            assert repr(last["history"]) == repr(quiet["history"]), way
            for name, weight in quiet["weights"].items():
                assert torch.equal(weight, last["weights"][name]), name
            print(f"{way}: {attempts} kills, then equal bit by bit", flush=True)


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    soak(options.kills, options.seed)


if __name__ == "__main__":
    main()

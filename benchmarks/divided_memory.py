"""Measure the memory of the processes that train one large ESM-2, each with a part of it.

    python benchmarks/divided_memory.py                                  # 650M, two processes
    python benchmarks/divided_memory.py --preset esm2_t36_3B_UR50D --only file
    python benchmarks/divided_memory.py --quick

Each row is one ``molfun fine-tune --parallel fsdp2`` (LoRA, one epoch of eight sequences,
activations recomputed, random weights or those of --weights), watched from outside. "file" leaves
the weights in a mapped file until they are divided, as the command does by itself; "memory" builds
the model in memory first. Shown is what a process has of its own (RssAnon, looked at every 20 ms)
at its peak, over that of the same command with a tiny model: the largest of all processes, next to
the size of the whole weights, of the part of one process, and of one block. Pages of mapped files
are not in it: the system takes them back when it needs memory; the last column has the most that
were resident.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import finish, hold, machine

from molfun.models.skeleton import Skeleton
from molfun.protein import RESIDUE_LETTERS

LENGTH = 32


@dataclass(frozen=True)
class Peak:
    """The most that any process had, in MB, and what the command computed."""

    own: float
    files: float
    seconds: float
    loss: str


def processes(root: int) -> list[int]:
    """Return a process and all that it started."""
    found = [root]
    for process in found:
        try:
            children = Path(f"/proc/{process}/task/{process}/children").read_text()
        except OSError:  # it has ended
            continue
        found += map(int, children.split())
    return found


def memory_of(process: int) -> tuple[float, float]:
    """Return the MB of a process that are its own, and those of files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(sizes.get("RssAnon", 0)) / 1024, int(sizes.get("RssFile", 0)) / 1024


def watched(preset: str, options: argparse.Namespace, folder: Path, *, in_file: bool) -> Peak:
    """Run the command, and return what its processes took."""
    output = folder / f"{preset}-{in_file}"
    weights = [] if options.weights is None or preset == "esm2_tiny" else [
        "--weights", options.weights,
    ]  # fmt: skip
    command = [
        *(sys.executable, "-m", "molfun", "fine-tune", "--data", str(folder / "data.csv")),
        *("--target-column", "y", "--backbone", preset, "--strategy", "lora", "--device", "cpu"),
        *("--devices", str(options.processes), "--parallel", "fsdp2", "--epochs", "1"),
        *("--batch-size", "1", "--accum", "1", "--output", str(output)),
        *weights,
        *(f"backbone_config.mmap={str(in_file).lower()}", "backbone_config.checkpointing=true"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start, own, files = time.perf_counter(), 0.0, 0.0
    with (folder / "said").open("w+") as said:
        running = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while running.poll() is None:
            for process in processes(running.pid):
                own, files = map(max, (own, files), memory_of(process))
            time.sleep(0.02)
        if running.returncode:
            raise SystemExit((folder / "said").read_text()[-2000:])
    with (output / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Peak(own, files, time.perf_counter() - start, rows[-1]["train_loss"])


def sizes(preset: str, processes: int) -> tuple[float, float, float]:
    """Return the MB of the weights, of the part of one process, and of a block."""
    backbone = Skeleton(preset).backbone
    whole = sum(p.numel() for p in backbone.parameters()) * 4 / 2**20
    block = sum(p.numel() for p in backbone.blocks()[0].parameters()) * 4 / 2**20
    return whole, whole / processes, block


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="esm2_t33_650M_UR50D")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--weights", help="file of weights; random ones by default")
    parser.add_argument("--only", choices=("file", "memory"))
    parser.add_argument("--quick", action="store_true", help="the size 35M")
    options = parser.parse_args()
    if options.quick:
        options.preset = "esm2_t12_35M_UR50D"
    draw = random.Random(0)
    print(machine(1))
    whole, part, block = sizes(options.preset, options.processes)
    print(
        f"{options.preset}, {options.processes} processes; MB of all weights {whole:.0f}, of the "
        f"part of one process {part:.0f}, of a block {block:.0f}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "data.csv").open("w") as file:
            file.write("sequence,y\n")
            for i in range(8):
                file.write("".join(draw.choices(RESIDUE_LETTERS, k=LENGTH)) + f",{i}\n")
        base = watched("esm2_tiny", options, folder, in_file=True)
        print(f"{'built in':<10}{'own MB':>10}{'seconds':>10}{'loss':>14}{'file MB':>10}")
        for way in ("memory", "file"):
            if options.only in (None, way):
                peak = watched(options.preset, options, folder, in_file=way == "file")
                own = peak.own - base.own
                print(
                    f"{way:<10}{own:>10.0f}{peak.seconds:>10.0f}{float(peak.loss):>14.6f}"
                    f"{peak.files - base.files:>10.0f}"
                )
        if options.only != "memory" and not options.quick:  # other things weigh more there
            # one in use, the next on its way, each with what FSDP2 copies it from
            hold("Memory", "own MB over part and four blocks", own / (part + 4 * block), 1.0)
    finish()


if __name__ == "__main__":
    main()

"""Run all benchmarks one after the other.

    python benchmarks/run.py --quick
    python benchmarks/run.py --only data_loading start_up

A suite that fails prints one line and the others go on; the exit code is then 1. Suites print
which optional packages are missing; esm2_vs_peers needs ``pip install transformers``.

With ``--quick`` the tables go to ``runs/bench/SUITE.txt``, and one page shows what they promise:
whether each bound holds, what was found, and the most that is allowed.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness

from molfun.text import unknown_name

HERE = Path(__file__).parent
TABLES = Path("runs/bench")
"""Folder of the tables of a quick run."""


@dataclass(frozen=True)
class Suite:
    """Arguments of a benchmark script, for the full and for the quick run."""

    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)


SUITES = {
    "start_up": Suite(),
    "data_loading": Suite(),
    "row_checks": Suite(),
    "engine_overhead": Suite(),
    "prefix_cache": Suite(),
    "parallel": Suite(),
    "divided_memory": Suite(),
    "streaming": Suite(),
    "openfold_kernels": Suite(
        full=("--modes", "forward", "lora"), quick=("--quick", "--rounds", "1")
    ),
    "memory_model": Suite(),
    "fold_memory": Suite(),
    "int8": Suite(),
    "language_models": Suite(),
    "gb1": Suite(full=("--ablations",), quick=("--quick", "--ablations")),
    "ranking": Suite(),
    "pairs": Suite(),
    "esm2_vs_cpp": Suite(),
    "gpu": Suite(quick=("--device", "cpu", "--quick")),
    "esm2_vs_peers": Suite(
        full=("--size", "8M", "--sequences", "64"),
        quick=("--size", "tiny", "--sequences", "8", "--rounds", "1",
               "--modes", "inference", "lora"),
    ),
}  # fmt: skip
"""Suites by name, the short ones first."""


def run(name: str, *, quick: bool) -> bool:
    """Run a suite, and return whether it succeeded.

    In full its tables are on the terminal, and the quick run shows its bounds alone.
    """
    suite = SUITES[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *(suite.quick if quick else suite.full)]
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    if not quick:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    else:
        TABLES.mkdir(parents=True, exist_ok=True)
        page = TABLES / f"{name}.csv"
        page.unlink(missing_ok=True)
        environment = {**os.environ, harness.PAGE: str(page.absolute())}
        with (TABLES / f"{name}.txt").open("w") as tables:
            done = subprocess.run(
                command,
                stdout=tables,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=environment,
            )
        show_page(page)
    if done.returncode:
        print(f"{name} failed: {reason(done.stderr, done.returncode)}", flush=True)
    else:
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


def show_page(page: Path) -> None:
    """Print a line per bound of a suite; one without bounds only measures."""
    if not page.exists():
        print("  (no bound: its figures are in its tables)")
        return
    with page.open(newline="") as file:
        for title, found, most, holds in csv.reader(file):
            print(f"  {holds:<4}{title}: {found} (at most {most})")


def reason(text: str, code: int) -> str:
    """Return the line of a traceback that names the error."""
    lines = [line for line in text.splitlines() if line.strip() and line.strip() != "EOFError"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [f"exit code {code}"])[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen suites."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    parser.add_argument("--only", nargs="+", metavar="SUITE", default=list(SUITES),
                        help=f"some of: {', '.join(SUITES)}")  # fmt: skip
    args = parser.parse_args(arguments)
    for name in args.only:
        if name not in SUITES:
            raise SystemExit(f"Error: {unknown_name('suite', name, SUITES)}")
    failed = [name for name in args.only if not run(name, quick=args.quick)]
    if failed:
        raise SystemExit(f"\n{len(failed)} of {len(args.only)} suites failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

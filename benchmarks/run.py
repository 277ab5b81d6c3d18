"""Run all benchmarks one after the other.

    python benchmarks/run.py --quick
    python benchmarks/run.py --only data_loading start_up

A suite that fails prints one line and the others go on; the exit code is then 1. Suites print
which optional packages are missing; esm2_vs_peers needs ``pip install transformers``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molfun.text import unknown_name

HERE = Path(__file__).parent


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
    """Run a suite with its tables on the terminal, and return whether it succeeded."""
    suite = SUITES[name]
    command = [str(HERE / f"{name}.py"), *(suite.quick if quick else suite.full)]
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(f"{name} failed: {reason(done.stderr, done.returncode)}", flush=True)
    else:
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


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

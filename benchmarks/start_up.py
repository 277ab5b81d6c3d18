"""Time imports, help texts and the building of models, in fresh processes.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --quick

A whole process is measured, including the start of the interpreter. Each round starts one process
per row, after a first round that is not counted (it brings the files into the page cache and
compiles modules). Memory is the peak of the process. The value is the last number it prints: the
parameters of the blocks it built, which agree between the packages, or 0. Weights are random, so no
checkpoint is read. openfold neither imports nor runs on a CPU without Molfun's shims, so its rows
include them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import harness
import torch
from harness import Bound


@dataclass(frozen=True)
class Row:
    """A row of a table: Python code, or arguments of the command line.

    Parameters
    ----------
    label
        Name in the table.
    code
        Code that the process runs.
    command
        Arguments of ``molfun``, if the row is a command.
    needs
        Package without which the row is left out.
    """

    label: str
    code: str = ""
    command: tuple[str, ...] = ()
    needs: str = "torch"

    @property
    def arguments(self) -> list[str]:
        """Arguments of the interpreter."""
        return ["-m", "molfun.cli", *self.command] if self.command else ["-c", self.code]


SHIMS = "from molfun.backbones.openfold import _shims; _shims.prepare()"
COUNT = "print(sum(p.numel() for n, p in model.named_parameters() if '{}' in n))"
OPENFOLD = f"""
{SHIMS}
from openfold.config import model_config
from openfold.model.model import AlphaFold
model = AlphaFold(model_config("model_1_ptm"))
{COUNT.format("evoformer.blocks.")}
"""
FAIR_ESM = f"""
import esm
model = esm.model.esm2.ESM2(num_layers=6, embed_dim=320, attention_heads=20, alphabet="ESM-1b")
{COUNT.format("layers.")}
"""
TRANSFORMERS = f"""
from transformers import EsmConfig, EsmModel
config = EsmConfig(
    vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=320, num_hidden_layers=6,
    num_attention_heads=20, intermediate_size=1280, position_embedding_type="rotary",
)
model = EsmModel(config, add_pooling_layer=False)
{COUNT.format("encoder.layer.")}
"""


def molfun(arguments: str, part: str) -> str:
    """Return code that builds a model on the CPU."""
    return (
        "import logging; logging.disable(logging.WARNING)\n"
        "from molfun import MolfunStructureModel\n"
        f"model = MolfunStructureModel({arguments}, device='cpu')\n{COUNT.format(part)}"
    )


TABLES = {
    "Imports": (
        Row("python alone"),
        Row("import torch", "import torch"),
        Row("import molfun", "import molfun"),
        Row("import openfold.model.model", f"{SHIMS}\nimport openfold.model.model", (), "openfold"),
        Row("import esm", "import esm", (), "esm"),
        Row("import transformers", "import transformers", (), "transformers"),
        Row("import lightning", "import lightning", (), "lightning"),
    ),
    "Help texts": (
        Row("import torch", "import torch"),
        Row("molfun --help", command=("--help",)),
        Row("molfun fine-tune --help", command=("fine-tune", "--help")),
    ),
    "Building ESM-2 8M": (
        Row("fair-esm", FAIR_ESM, (), "esm"),
        Row("transformers", TRANSFORMERS, (), "transformers"),
        Row("molfun", molfun("'esm2_t6_8M_UR50D'", "layers.")),
    ),
    "Building OpenFold, full size": (
        Row("openfold", OPENFOLD, (), "openfold"),
        Row("molfun", molfun("'openfold'", "evoformer.blocks."), (), "openfold"),
        Row("molfun, openfold's kernels",
            molfun("'openfold', kernels='stock'", "evoformer.blocks."), (), "openfold"),
    ),
}  # fmt: skip
"""Rows of each table; ratios are relative to the first."""

BOUNDS = {
    "Imports": (Bound("import molfun", "import torch", 0.2),),
    "Help texts": (
        Bound("molfun --help", "import torch", 0.5),
        Bound("molfun fine-tune --help", "import torch", 0.8),
    ),
    "Building ESM-2 8M": (
        Bound("molfun", "fair-esm", 2.5),
        Bound("molfun", "transformers", 1.0),
    ),
    "Building OpenFold, full size": (Bound("molfun", "openfold", 1.5),),
}
"""Bounds on the rows; help and import load no torch, which takes most of a start."""


LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
text = process.stdout.read().decode()
_, status, used = os.wait4(process.pid, 0)
wall = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"wall": wall, "cpu": cpu, "mb": used.ru_maxrss / 1024, "code": code,
                  "text": text}))
"""
"""Small process between this one and the measured one.

Linux starts the peak memory of a child at the size of its parent, and this one has torch loaded.
"""


def measure(row: Row, threads: int) -> tuple[float, float, float, float]:
    """Run one process; return wall and CPU seconds, peak memory in MB and the value."""
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *row.arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found = json.loads(launched.stdout)
    if found["code"]:
        raise SystemExit(f"{row.label!r} ended with exit code {found['code']}.")
    text = "" if row.command else found["text"]
    return found["wall"], found["cpu"], found["mb"], float(text.split()[-1]) if text else 0.0


def table(title: str, args: argparse.Namespace, about: str) -> None:
    """Measure the rows in turns and print their medians."""
    rows = [row for row in TABLES[title] if importlib.util.find_spec(row.needs)]
    left_out = [row for row in TABLES[title] if row not in rows]
    if left_out:
        labels = ", ".join(f"{row.label!r} ({row.needs} is not installed)" for row in left_out)
        print(f"\nLeft out of the next table: {labels}")
    for row in rows:
        measure(row, args.threads)
    found = [[measure(row, args.threads) for row in rows] for _ in range(args.rounds)]
    results = [
        harness._median(row.label, list(times))
        for row, times in zip(rows, zip(*found, strict=True), strict=True)
    ]
    harness.show(title, results, value="parameters" if "Building" in title else "value")
    harness.record(args.history, "start_up", title, results, about)
    harness.judge(title, results, BOUNDS[title], agree=0.0 if "Building" in title else None)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--quick", action="store_true", help="without OpenFold, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.tables, args.rounds = [t for t in args.tables if "OpenFold" not in t], 2
    about = harness.machine(args.threads)
    print(about)
    for title in args.tables:
        table(title, args, about)
    harness.finish()


if __name__ == "__main__":
    main()

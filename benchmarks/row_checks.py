"""Time the row checks of ``molfun check`` against pandas and gemmi, which only read.

    python benchmarks/row_checks.py
    python benchmarks/row_checks.py --quick

Tables are read by ``pandas.read_csv``, which checks nothing, and by the readers that check every
row: widths, ids, labels, and with ``letters`` every residue. Structures are single chains with main
chain and CB; gemmi's row builds its own structure and no arrays. Values: mean of the labels, or
residues.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch
from data_loading import sequences, write_structures
from harness import Bound, Variant


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    table: str
    how: str
    folder: Path


def write_tables(folder: Path, n: int) -> None:
    """Write a table of sequences, one of ids with further columns, and the same with quotes."""
    labels = np.random.default_rng(0).normal(size=n)
    rows = [f"{text},{y:.4f}" for text, y in zip(sequences(n, 0), labels, strict=True)]
    (folder / "sequences.csv").write_text("\n".join(["sequence,target", *rows, ""]))
    rows = [
        f"p{i:06d},{6 + y:.3f},{1.5 + i % 90 / 100:.2f},{2000 + i % 20},{'ABC'[i % 3]}"
        for i, y in enumerate(labels)
    ]
    header = "pdb_id,affinity,resolution,year,family"
    (folder / "ids.csv").write_text("\n".join([header, *rows, ""]))
    quoted = [row.replace("p", '"p', 1).replace(",", '",', 1) for row in rows]
    (folder / "quoted.csv").write_text("\n".join([header, *quoted, ""]))


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured function of a case; runs in the process of its row."""
    logging.disable(logging.WARNING)
    run = structures(case) if case.table == "structures" else table(case)
    return run, run


def table(case: Case) -> harness.Measure:
    """Return the function that reads a table."""
    import pandas as pd

    from molfun.data.sequences import SequenceDataset
    from molfun.data.tables import read_table
    from molfun.models.skeleton import Skeleton

    model = Skeleton("esm2_tiny", head="regression").backbone

    path = case.folder / f"{case.table}.csv"
    column = "target" if case.table == "sequences" else "affinity"

    def pandas() -> float:
        return float(pd.read_csv(path)[column].mean())

    def molfun() -> float:
        if case.table != "sequences":
            return float(read_table(path).targets.mean())
        data = SequenceDataset.from_csv(path)
        if case.how.endswith("letters"):
            assert not model.doubtful(data)
        return float(data.targets.mean())

    return pandas if case.how.startswith("pandas") else molfun


def structures(case: Case) -> harness.Measure:
    """Return the function that reads all structures."""
    import gemmi

    from molfun.data.structures import read_structure

    paths = sorted((case.folder / "pdb").glob("*.pdb"))

    def by_gemmi() -> float:
        models = [gemmi.read_structure(str(path))[0] for path in paths]
        return float(sum(len(chain) for model in models for chain in model))

    def molfun() -> float:
        return float(sum(len(read_structure(path)) for path in paths))

    return by_gemmi if case.how == "gemmi" else molfun


PANDAS, ROWS, LETTERS = "pandas.read_csv, no checks", "molfun, rows", "molfun, rows and letters"
TABLES: dict[str, tuple[str, ...]] = {
    "sequences": (PANDAS, ROWS, LETTERS),
    "ids": (PANDAS, ROWS),
    "quoted": (PANDAS, ROWS),
    "structures": ("gemmi", "molfun"),
}
BOUNDS: dict[str, tuple[Bound, ...]] = {
    "sequences": (Bound(ROWS, PANDAS, 2.5), Bound(LETTERS, PANDAS, 3.0)),
    "ids": (Bound(ROWS, PANDAS, 2.5),),
    "quoted": (Bound(ROWS, PANDAS, 2.5),),
    "structures": (Bound("molfun", "gemmi", 12.0),),
}
"""Bounds on the rows of each table, for the small sizes too.

Promised is twice the time of pandas at most; the rest is what a busy machine adds to it.
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--structures", type=int, default=50)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--quick", action="store_true", help="small tables, three rounds")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.structures, args.rounds = 20_000, 10, 3
    about = harness.machine(torch.get_num_threads())
    print(about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, args.rows)
        write_structures(folder, sequences(args.structures, 0, length=300))
        for kind in args.tables:
            ways = TABLES[kind]
            n = f"{args.structures} files of 300 residues" if kind == "structures" else args.rows
            title = f"Row checks: {kind}, {n if isinstance(n, str) else f'{n:,} rows'}"
            variants = [Variant(how, Case(kind, how, folder)) for how in ways]
            results = harness.compare(variants, prepare, rounds=args.rounds, threads=1)
            harness.show(title, results)
            harness.record(args.history, "row_checks", title, results, about)
            harness.judge(title, results, BOUNDS.get(kind, ()))
    harness.finish()


if __name__ == "__main__":
    main()

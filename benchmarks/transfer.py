"""Compare strategies on few labels, from pre-trained and from random weights.

    molfun pretrain --preset esm2_t4_d128_h8 --sequences proteins.fasta.gz --output runs/pretrain
    python benchmarks/transfer.py --preset esm2_t4_d128_h8 --data three_vs_rest_train_valid.csv \
        --target-column fitness --weights runs/pretrain/weights.safetensors

Every run draws `n` labelled training rows by its seed, trains with the same budget from either
start, and predicts the whole validation split once, with the weights of the last step, so that
nothing is selected on it. The script prints the median Spearman correlation over the seeds with its
range, and writes each run as a row of a CSV file; runs that are in the file are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from molfun import (
    DataSplitter,
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)

BATCH = 16
EPOCHS = {84: 40, 336: 20, 2691: 6}
"""Epochs by the number of training rows; other numbers get the steps of the next smaller one."""
SHARED: dict[str, Any] = {"warmup_ratio": 0.1, "lr_head": 2e-3}
STRATEGIES = {
    "frozen": HeadOnlyFinetune(lr=2e-3, warmup_ratio=0.1),
    "lora": LoRAFinetune(rank=8, lr_lora=2e-3, **SHARED),
    "partial": PartialFinetune(unfreeze_last_n=2, lr_trunk=1e-3, **SHARED),
    "full": FullFinetune(lr=1e-3, **SHARED),
}
STARTS = ("pretrained", "random")
Run = tuple[str, str, int, int]


def runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield start, strategy, number of rows and seed of every run, the cheap ones first."""
    for n in args.sizes:
        for seed in range(args.seeds):
            for strategy in args.strategies:
                for start in STARTS:
                    yield start, strategy, n, seed


def measure(run: Run, train: Any, val: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune and evaluate once; return the row for the CSV file."""
    start, strategy, n, seed = run
    rows = np.random.default_rng(seed).permutation(len(train))[:n].tolist()
    known = max((size for size in EPOCHS if size <= n), default=min(EPOCHS))
    epochs = max(1, round(EPOCHS[known] * known / n))
    model = MolfunStructureModel(
        "esm2",
        config=args.preset,
        head="mlp",
        weights=args.weights if start == "pretrained" else None,
        device="cpu",
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        Subset(train, rows),
        batch_size=BATCH,
        shuffle=True,
        generator=generator,
        collate_fn=train.collate_fn,
    )
    begun = time.process_time()
    model.fit(loader, strategy=STRATEGIES[strategy], epochs=epochs, seed=seed)
    spent = time.process_time() - begun
    metrics = model.evaluate(DataLoader(val, batch_size=64, collate_fn=val.collate_fn))
    return {
        "start": start,
        "strategy": strategy,
        "n": n,
        "seed": seed,
        "epochs": epochs,
        "spearman": round(metrics["spearman"], 4),
        "rmse": round(metrics["rmse"], 4),
        "cpu_seconds": round(spent, 1),
    }


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows that the file holds already."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def show(rows: list[dict[str, str]], args: argparse.Namespace) -> None:
    """Print the table."""
    print(f"\n{'start':<12}{'strategy':<10}" + "".join(f"{f'n = {n}':>26}" for n in args.sizes))
    for strategy in args.strategies:
        for start in STARTS:
            cells = []
            for n in args.sizes:
                key = (start, strategy, str(n))
                found = [r for r in rows if (r["start"], r["strategy"], r["n"]) == key]
                values = sorted(float(r["spearman"]) for r in found)
                cells.append(
                    f"{statistics.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})"
                    if values
                    else "-"
                )
            print(f"{start:<12}{strategy:<10}" + "".join(f"{cell:>26}" for cell in cells))


def main() -> None:
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target-column", required=True)
    parser.add_argument("--split-column", default="split")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--output", type=Path, default=Path("runs/transfer.csv"))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    data = SequenceDataset.from_csv(args.data, target_column=args.target_column)
    train, val, _ = DataSplitter.by_column(data, args.split_column)
    done = read(args.output)
    keys = {(r["start"], r["strategy"], int(r["n"]), int(r["seed"])) for r in done}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for run in runs(args):
        if run in keys:
            continue
        row = measure(run, train, val, args)
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        new = not args.output.exists()
        with args.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        done = read(args.output)
    print(f"\nSpearman on {len(val):,} validation rows, median of {args.seeds} seeds (range)")
    show(done, args)


if __name__ == "__main__":
    main()

"""Predict affinities of protein pairs from sequences, against the baselines of the report.

    python benchmarks/pairs.py --weights runs/pretrain/weights.safetensors

Each model predicts every complex of ``ppi_affinity`` out of fold: folds keep similar chains
together (40 % identity), and each seed makes other folds. The table has the median over seeds of
Spearman's correlation and of the RMSE over all complexes, with their range, and those of a ridge on
composition, which learns from the same folds. There are 48 complexes with labels of a wide spread:
this shows what the heads do on real pairs, and no model that is of use.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import torch

from molfun import DataSplitter, HeadOnlyFinetune, LoRAFinetune, MolfunStructureModel
from molfun.data import SequencePairDataset
from molfun.models import cross_validate

DATA = Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[2] / "shared/data"))
TABLE = "ppi_affinity/affinity.csv"
MODELS: dict[str, tuple[str, Any]] = {
    "pair_mlp, frozen": ("pair_mlp", HeadOnlyFinetune(lr=1e-3)),
    "cross_attention, frozen": ("cross_attention", HeadOnlyFinetune(lr=1e-3)),
    "pair_mlp, lora": ("pair_mlp", LoRAFinetune(rank=4, lr_lora=1e-3, lr_head=1e-3)),
}
METRICS = ("spearman", "rmse")


def pairs(args: argparse.Namespace) -> SequencePairDataset:
    """Return the complexes, each chain cropped to its first residues."""
    return SequencePairDataset.from_csv(
        args.data,
        sequence_columns=("seq_A", "seq_B"),
        target_column="affinity",
        id_column="pdb_id",
        max_length=args.max_length,
    )


def measure(
    name: str, data: SequencePairDataset, seed: int, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return the metrics of a model and of the baselines by their names."""
    head, strategy = MODELS[name]

    def build() -> MolfunStructureModel:
        return MolfunStructureModel(
            "esm2", config=args.preset, weights=args.weights, head=head, seed=seed, device="cpu"
        )

    folds = DataSplitter.identity_k_fold(data, args.folds, val_frac=0.0, seed=seed)
    found = cross_validate(build, data, folds, strategy=strategy, epochs=args.epochs, seed=seed)
    (verdict,) = found.judge(data, draws=20).values()
    baselines = verdict.parts[verdict.part].baselines.values()
    return {
        name: found.pooled(),
        **{b.title: {metric: b.metrics[metric].value for metric in METRICS} for b in baselines},
    }


def row(name: str, found: Sequence[dict[str, float]]) -> str:
    """Return a line of the table: median and range of each metric over the seeds."""
    cells = []
    for metric in METRICS:
        values = [one[metric] for one in found]
        low, high = min(values), max(values)
        cells.append(f"{statistics.median(values):7.3f} ({low:.3f} to {high:.3f})")
    return f"{name:28}{'  '.join(cells)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA / TABLE)
    parser.add_argument("--preset", default="esm2_t4_d128_h8")
    parser.add_argument("--weights", type=Path, help="pre-trained weights; else random ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one seed and epoch of a tiny model")
    args = parser.parse_args(arguments)
    if args.quick:
        args.preset, args.seeds, args.epochs, args.max_length = "esm2_tiny", 1, 1, 20
    if not args.data.is_file():
        print(f"Skipped: {args.data} is absent; set MOLFUN_DATA to the folder of the data sets.")
        return
    logging.getLogger("molfun").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = pairs(args)
    start = "pre-trained" if args.weights else "random"
    print(f"{len(data)} complexes, {args.preset} ({start}), {args.folds} folds by identity, "
          f"{args.seeds} seeds; {harness.machine(1)}")  # fmt: skip
    print(f"{'':28}{'Spearman':30}RMSE (pK)")
    baselines: dict[str, list[dict[str, float]]] = {}
    for name in MODELS:
        begun, found = time.process_time(), []
        for seed in range(args.seeds):
            measured = measure(name, data, seed, args)
            found.append(measured.pop(name))
            for baseline, metrics in measured.items() if name == next(iter(MODELS)) else ():
                baselines.setdefault(baseline, []).append(metrics)
        print(f"{row(name, found)}  {time.process_time() - begun:.0f} CPU s", flush=True)
    for baseline, metrics in baselines.items():
        print(row(baseline, metrics))


if __name__ == "__main__":
    main()

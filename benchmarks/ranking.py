"""Compare losses that rank a batch with the mean squared error, on few labelled variants.

    python benchmarks/ranking.py
    python benchmarks/ranking.py --weights runs/ranking/pretrain/weights.safetensors

A small ESM-2 is pre-trained on the proteins of ``sequences/`` first, unless weights are given. Then
each loss tunes it on the same `n` labelled variants, which the seed draws, with the same batches,
steps and rates, and predicts up to 400 other variants once, with the weights of the last step. The
table shows Spearman's correlation of the mean squared error, and for each other loss the mean over
seeds of its difference to that, with the interval of a paired t test at 95 %. Rates and steps were
not tuned for any loss.

There are two sets of variants of one protein, GB1, with no row in both: those with three mutations,
and those with at most two. A second protein would say more; none is at hand.

Files are found in ``../shared/data`` or ``MOLFUN_DATA``; without them nothing is done.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch
from torch.utils.data import DataLoader

from molfun import FullFinetune, MolfunStructureModel, SequenceDataset

VARIANTS, PROTEINS = "gb1/three_vs_rest_train_valid.csv", "sequences/train_0.fasta.gz"
WILD_TYPE = {39: "V", 40: "D", 41: "G", 54: "V"}
"""Residues of GB1 that vary, counted from 1."""
CROP = (33, 56)
"""First and last residue that the model sees."""
SETS = {"three mutations": (3, 3), "at most two": (0, 2)}
"""Fewest and most mutations of the variants of a set."""
BASE = "mse"
LOSSES = ("listmle", "margin", "pairwise", "spearman")
MOST_MEASURED = 400
BATCH = 24


@dataclass(frozen=True)
class Case:
    """One run: a set of variants, the number of labels, the seed that draws them, and the loss."""

    name: str
    n: int
    seed: int
    loss: str


def data_folder() -> Path:
    """Return the folder of real data."""
    return Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[2] / "shared/data"))


def mutations(sequence: str) -> int:
    """Return in how many residues a variant differs from GB1."""
    return sum(sequence[place - 1] != letter for place, letter in WILD_TYPE.items())


def sets_of(path: Path) -> dict[str, SequenceDataset]:
    """Return the part of the variants that the model sees, by the number of their mutations."""
    whole = SequenceDataset.from_csv(path, target_column="fitness")
    texts = [sample.sequence or "" for sample in whole]
    first, last = CROP
    items = [(text[first - 1 : last], y) for text, y in zip(texts, whole.targets, strict=True)]
    data, counts = SequenceDataset.from_list(items), np.array([mutations(text) for text in texts])
    return {
        name: data.subset(np.flatnonzero((counts >= low) & (counts <= high)))
        for name, (low, high) in SETS.items()
    }


def pretrained(args: argparse.Namespace) -> Path:
    """Return weights of the trunk: those given, or of a new run on proteins of the same kind."""
    if args.weights is not None:
        return Path(args.weights)
    proteins = SequenceDataset.from_fasta(data_folder() / PROTEINS, max_length=args.max_length)
    model = MolfunStructureModel("esm2", config=args.preset, device="cpu", seed=0)
    loader = DataLoader(
        proteins,
        batch_size=32,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=proteins.collate_fn,
    )
    folder = args.output.parent / "pretrain"
    begun = time.process_time()
    rates = {"lr": 2e-3, "lr_head": 2e-3, "lr_embedder": 2e-3}
    history = model.pretrain(
        loader,
        strategy=FullFinetune(**rates, layer_lr_decay=1.0, warmup_ratio=0.05),
        max_steps=args.pretrain_steps,
        output_dir=folder,
        overwrite=True,
    )
    loss, spent = history[-1]["train_loss"], time.process_time() - begun
    print(
        f"{args.preset}, pre-trained for {args.pretrain_steps:,} steps on {len(proteins):,} "
        f"proteins: loss {loss:.3f} (ln 20 is {math.log(20):.3f}), {spent:.0f} CPU s",
        flush=True,
    )
    return folder / "weights.safetensors"


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield all runs; those that are compared follow each other."""
    for name in SETS:
        for n in args.sizes:
            for seed in range(args.seeds):
                for loss in (BASE, *args.losses):
                    yield Case(name, n, seed, loss)


def measure(case: Case, data: SequenceDataset, weights: Path, args: argparse.Namespace) -> float:
    """Tune once, and return the correlation on variants that were not drawn."""
    order = np.random.default_rng(case.seed).permutation(len(data))
    train, other = data.subset(order[: case.n]), data.subset(order[case.n :][:MOST_MEASURED])
    model = MolfunStructureModel(
        "esm2",
        config=args.preset,
        head="mlp",
        weights=weights,
        task_config={"loss": case.loss},
        device="cpu",
        seed=case.seed,
    )
    loader = DataLoader(
        train,
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(case.seed),
        collate_fn=train.collate_fn,
    )
    model.fit(
        loader,
        strategy=FullFinetune(lr=1e-3, lr_head=2e-3, warmup_ratio=0.1),
        max_steps=args.steps,
        seed=case.seed,
    )
    found = model.evaluate(DataLoader(other, batch_size=64, collate_fn=other.collate_fn))
    # a model that gives one number for all ranks nothing
    return float(np.nan_to_num(found["spearman"]))


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its interval at 95 %."""
    from scipy import stats

    n = len(differences)
    if n < 2:
        return differences[0], math.nan
    deviation = statistics.stdev(differences) / math.sqrt(n)
    return statistics.mean(differences), float(stats.t.ppf(0.975, n - 1)) * deviation


def show(found: dict[Case, float], args: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"\nSpearman on up to {MOST_MEASURED} other variants, {args.seeds} seeds: mean of {BASE},"
    )
    print("then what other losses add to it: mean difference +- paired t interval at 95 %\n")
    print(f"  {'variants':<18}{'n':>4}{BASE:>9}" + "".join(f"{x:>18}" for x in args.losses))
    for name in SETS:
        for n in args.sizes:
            base = [found[Case(name, n, seed, BASE)] for seed in range(args.seeds)]
            cells = ""
            for loss in args.losses:
                own = [found[Case(name, n, seed, loss)] for seed in range(args.seeds)]
                mean, half = interval([a - b for a, b in zip(own, base, strict=True)])
                cells += f"{f'{mean:+.3f} +- {half:.3f}':>18}"
            print(f"  {name:<18}{n:>4}{statistics.mean(base):>9.3f}{cells}")


def main() -> None:
    """Run all cases, write them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="esm2_t2_d64_h4")
    parser.add_argument("--weights", help="pre-trained weights of this size, in place of a new run")
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=128, help="residues in pre-training")
    parser.add_argument("--sizes", type=int, nargs="+", default=[24, 48, 96])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--steps", type=int, default=60, help="steps of tuning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/ranking/runs.csv"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, few steps, two seeds")
    args = parser.parse_args()
    lacking = [name for name in (VARIANTS, PROTEINS) if not (data_folder() / name).is_file()]
    if lacking:
        print(f"Skipped: {' and '.join(lacking)} not there. Set MOLFUN_DATA to their folder.")
        return
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    if args.quick:
        args.output = args.output.parent / "quick" / args.output.name  # full results stay
        args.preset, args.weights, args.pretrain_steps, args.max_length = "esm2_tiny", None, 2, 32
        args.sizes, args.seeds, args.steps, args.losses = [24], 2, 2, ["pairwise"]
    else:
        print(harness.machine(args.threads))
    data, weights = sets_of(data_folder() / VARIANTS), pretrained(args)
    found: dict[Case, float] = {}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variants", "n", "seed", "loss", "spearman"])
        for case in cases(args):
            found[case] = measure(case, data[case.name], weights, args)
            writer.writerow([case.name, case.n, case.seed, case.loss, round(found[case], 4)])
            file.flush()
    show(found, args)


if __name__ == "__main__":
    main()

"""Learn the fitness of GB1's variants (three_vs_rest of FLIP) from random weights.

    python benchmarks/gb1.py --results benchmarks/results/gb1
    python benchmarks/gb1.py --ablations

Small ESM-2 models are trained on the 2,691 training rows, on one thread; a seed stands for a few of
them, which begin at other weights, and predicts their mean. The number of epochs is fixed and the
weights at the end are their moving average: a run does not see the validation rows before it
predicts them, once. The recipe itself was chosen on these rows, so their
figures are a little high for it. The script prints Spearman's correlation on the validation rows
for each seed and for the mean of the predictions of all, and the CPU seconds of each seed. It
writes predictions of the test rows, which have no labels here: ``median.csv`` of the seed in the
middle, ``mean.csv`` of the mean of all.

``--ablations`` also takes back one part of the recipe at a time. The same seed gives the same
predictions on the same machine.

Files are found in ``../shared/data`` or ``MOLFUN_DATA``; without them nothing is done.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch.utils.data import DataLoader

from molfun import DataSplitter, FullFinetune, MolfunStructureModel, SequenceDataset
from molfun.models import Ensemble

TRAIN, TEST = "gb1/three_vs_rest_train_valid.csv", "gb1/three_vs_rest_test_sequences.csv"
LEAST, WIDEST, LONGEST = 0.88, 0.03, 5.0
"""Bounds: on the median and the range of the correlations, and on CPU minutes of a seed."""

OWN_SEEDS = 100
"""Distance between the seeds of two runs: no two share a model."""

VARIED = (39, 40, 41, 54)
"""Residues that differ between variants."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; the defaults are the recommended ones.

    Parameters
    ----------
    crop
        Residues that the model sees, from 1; None shows it the whole sequence. All variants have
        the other ones in common.
    head
        Of the model; ``"linear"`` has no hidden layer.
    lr, lr_head
        Peak rates of the trunk and of the head; None is ten times that of the trunk.
    course
        Schedule of the strategy.
    ema
        Decay of the moving average of the weights; 0 keeps the last ones.
    loss
        Of the task.
    preset, epochs, batch
        Size of the trunk, passes over the data, rows of a step.
    members
        Models of a seed, whose mean is predicted. One alone depends on the processor's rounding
        as much as on its seed.
    """

    crop: tuple[int, ...] | None = VARIED
    head: str = "mlp"
    lr: float = 3e-3
    lr_head: float | None = 3e-3
    course: dict[str, Any] = field(
        default_factory=lambda: {"scheduler": "cosine", "warmup_ratio": 0.1}
    )
    ema: float = 0.99
    loss: str = "spearman"
    preset: str = "esm2_t2_d64_h4"
    epochs: int = 20
    batch: int = 64
    members: int = 5


PLAIN: dict[str, dict[str, Any]] = {
    "one model": {"members": 1},
    "no average of weights": {"ema": 0.0},
    "head at ten times the rate": {"lr_head": None},
    "linear head": {"head": "linear"},
    "constant rate": {"course": {"scheduler": "constant"}},
    "mean squared error": {"loss": "mse"},
    "residues 39 to 54": {"crop": tuple(range(39, 55))},
    "whole sequence": {"crop": None},
}
"""Parts of the recipe that `--ablations` takes back, one at a time."""


@dataclass(frozen=True)
class Run:
    """Result of one seed: models, correlation on the validation rows, and CPU seconds."""

    models: list[MolfunStructureModel]
    spearman: float
    seconds: float


def data_folder() -> Path:
    """Return the folder of real data."""
    return Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[2] / "shared/data"))


def cropped(data: SequenceDataset, recipe: Recipe) -> SequenceDataset:
    """Return the part of the sequences that the model sees, with the same ids and labels."""
    items = []
    for sample in data:
        whole = sample.sequence or ""
        seen = "".join(whole[place - 1] for place in recipe.crop) if recipe.crop else whole
        items.append((seen, sample.target))
    return SequenceDataset.from_list(items, ids=data.ids)


def batches(data: SequenceDataset, size: int, seed: int | None = None) -> DataLoader[Any]:
    """Return a loader: shuffled by a seed, or in order without one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(
        data,
        batch_size=size,
        shuffle=seed is not None,
        generator=generator,
        collate_fn=data.collate_fn,
    )


def trained(recipe: Recipe, train: SequenceDataset, seed: int) -> MolfunStructureModel:
    """Train a model from random weights on all training rows."""
    model = MolfunStructureModel(
        "esm2",
        config=recipe.preset,
        head=recipe.head,
        task_config={"loss": recipe.loss},
        device="cpu",
        seed=seed,
    )
    strategy = FullFinetune(
        lr=recipe.lr,
        lr_head=recipe.lr_head,
        lr_embedder=recipe.lr,  # random, so it has as much to learn as the blocks
        layer_lr_decay=1.0,
        ema_decay=recipe.ema,
        **recipe.course,
    )
    loader = batches(cropped(train, recipe), recipe.batch, seed)
    model.fit(loader, strategy=strategy, epochs=recipe.epochs, seed=seed)
    return model


def mean_of(models: Sequence[MolfunStructureModel]) -> MolfunStructureModel | Ensemble:
    """Return what predicts the mean of models."""
    return Ensemble(models) if len(models) > 1 else models[0]


def run_of(recipe: Recipe, train: SequenceDataset, val: SequenceDataset, seed: int) -> Run:
    """Train the models of a seed, then predict the validation rows once."""
    begun = time.process_time()
    models = [trained(recipe, train, OWN_SEEDS * seed + i) for i in range(recipe.members)]
    found = mean_of(models).evaluate(batches(cropped(val, recipe), 64))["spearman"]
    return Run(models, float(found), time.process_time() - begun)


def middle(runs: Sequence[Run]) -> int:
    """Return the place of the run whose correlation is the median (of two, the lower)."""
    order = sorted(range(len(runs)), key=lambda i: runs[i].spearman)
    return order[(len(order) - 1) // 2]


def row(name: str, runs: Sequence[Run]) -> str:
    """Return a line of a table: median and range, and CPU seconds."""
    values = [run.spearman for run in runs]
    seconds = statistics.median(run.seconds for run in runs)
    return (
        f"  {name:<28}{statistics.median(values):>8.3f} ({min(values):.3f} to {max(values):.3f})"
        f"{seconds:>8.0f}"
    )


def write(path: Path, sequences: Sequence[str], predictions: Sequence[float]) -> None:
    """Write predictions in the order of the test file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sequence", "prediction"])
        writer.writerows([s, f"{p:.6f}"] for s, p in zip(sequences, predictions, strict=True))


def several(
    recipe: Recipe, name: str, train: SequenceDataset, val: SequenceDataset, seeds: int
) -> list[Run]:
    """Train with each seed and print a line for each run, since a table comes late."""
    runs = []
    for seed in range(seeds):
        runs.append(run_of(recipe, train, val, seed))
        print(
            f"  {name}, seed {seed}: {runs[-1].spearman:.4f}, {runs[-1].seconds:.0f} CPU s",
            flush=True,
        )
    return runs


def predict_test(recipe: Recipe, runs: Sequence[Run], test: SequenceDataset, folder: Path) -> None:
    """Write the predictions of the median seed and of the mean of all."""
    loader = batches(cropped(test, recipe), 256)
    sequences = [sample.sequence for sample in test]
    single = mean_of(runs[middle(runs)].models).predict(loader)["prediction"]
    mean = mean_of([model for run in runs for model in run.models]).predict(loader)["prediction"]
    write(folder / "median.csv", sequences, single.tolist())
    write(folder / "mean.csv", sequences, mean.tolist())
    print(
        f"Predictions of {len(sequences):,} test rows: median.csv (seed {middle(runs)}), mean.csv"
    )


def judge(runs: Sequence[Run]) -> None:
    """Print whether the bounds hold."""
    values = [run.spearman for run in runs]
    minutes = max(run.seconds for run in runs) / 60
    short = LEAST - statistics.median(values)
    harness.hold("GB1", f"what the median lacks to {LEAST}", short, 0.0)
    harness.hold("GB1", "range over seeds", max(values) - min(values), WIDEST)
    harness.hold("GB1", "CPU minutes of the slowest seed", minutes, LONGEST)


def ablate(
    recipe: Recipe,
    runs: Sequence[Run],
    parts: tuple[SequenceDataset, SequenceDataset],
    seeds: int,
) -> None:
    """Take back each part of the recipe alone, with the first seeds."""
    found = {"recipe": list(runs[:seeds])}
    for name, change in PLAIN.items():
        found[name] = several(replace(recipe, **change), name, *parts, seeds)
    print(f"\nEach part alone taken back, {seeds} seeds; Spearman: median (range), CPU s of a seed")
    for name, own in found.items():
        print(row(name, own))


def main() -> None:
    """Print the tables and write the predictions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablations", action="store_true", help="take back parts of the recipe")
    parser.add_argument("--ablation-seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("runs/gb1"))
    parser.add_argument("--quick", action="store_true", help="few rows, one epoch, two seeds")
    args = parser.parse_args()
    if not (data_folder() / TRAIN).is_file():
        print("Skipped: GB1 is not there. Set MOLFUN_DATA to the folder that holds gb1/.")
        return
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    data = SequenceDataset.from_csv(data_folder() / TRAIN, target_column="fitness")
    train, val, _ = DataSplitter.by_column(data, "split")
    test = SequenceDataset.from_csv(
        data_folder() / TEST, target_column="fitness", require_target=False
    )
    recipe = Recipe()
    if args.quick:
        recipe = replace(recipe, preset="esm2_tiny", epochs=1, members=2)
        train, test = train.subset(range(256)), test.subset(range(64))
        args.seeds, args.ablation_seeds = 2, 1
        args.results = args.results / "quick"  # full results stay
    else:
        print(harness.machine(args.threads))
    runs = several(recipe, "recipe", train, val, args.seeds)
    models = [model for run in runs for model in run.models]
    mean = mean_of(models).evaluate(batches(cropped(val, recipe), 64))
    print(f"\nGB1, {len(train):,} training and {len(val)} validation rows, {recipe.epochs} epochs,")
    print(f"the average of the weights at the end, mean of {recipe.members} models per seed;")
    print("Spearman: median (range), CPU s of a seed")
    print(row(f"{args.seeds} seeds", runs))
    print(f"  {'mean of their predictions':<28}{mean['spearman']:>8.3f}")
    predict_test(recipe, runs, test, args.results)
    if not args.quick:
        judge(runs)
    if args.ablations:
        ablate(recipe, runs, (train, val), args.ablation_seeds)
    harness.finish()


if __name__ == "__main__":
    main()

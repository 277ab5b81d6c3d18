"""Compare pre-training objectives on time series, with few labels and a plain baseline.

    python benchmarks/series_transfer.py --train Vowels_TRAIN.ts --test Vowels_TEST.ts

Each objective pre-trains an encoder on all training series without their labels. Then the whole
model is fine-tuned on equally many labels per class and evaluated once on the test file, with the
weights of the last step, so that nothing is selected on test data. Random weights get the same
encoder, labels and steps. The baseline is a ridge classifier (its penalty chosen by leave-one-out)
on mean, deviation, smallest, largest, first and last value and mean change of each feature. The
script prints the median accuracy over the seeds with its range, and appends each run to a CSV file.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from molfun import FullFinetune, MolfunStructureModel
from molfun.data import TimeSeriesDataset

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mae": {"mask_ratio": 0.3},
    "contrastive": {},
    "temporal": {"mode": "temporal"},
    "jepa": {"mask_ratio": 0.4},
}
BATCH = 16


def pretrained(objective: str, train: Any, args: argparse.Namespace, seed: int) -> Path:
    """Return the weights of an encoder pre-trained on all series; train it if they are missing."""
    folder = args.output.parent / f"series_{objective}_{seed}"
    path: Path = folder / "weights.safetensors"
    if not path.exists():
        model = MolfunStructureModel(
            "timeseries", config=encoder(train, args), device="cpu", seed=seed
        )
        loader = DataLoader(train, batch_size=BATCH, shuffle=True, collate_fn=train.collate_fn)
        model.pretrain(
            loader,
            objective="contrastive" if objective == "temporal" else objective,
            objective_config=OBJECTIVES[objective],
            strategy=FullFinetune(
                lr=1e-3, lr_head=1e-3, lr_embedder=1e-3, layer_lr_decay=1.0, warmup_ratio=0.05
            ),
            epochs=args.pretrain_epochs,
            output_dir=folder,
            seed=seed,
            overwrite=True,
        )
    return path


def encoder(train: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the encoder."""
    return {"name": args.encoder, "d_input": train.n_features, "d_model": args.width}


def fine_tuned(
    weights: Path | None, rows: list[int], train: Any, args: argparse.Namespace, seed: int
) -> MolfunStructureModel:
    """Return a model fine-tuned on some rows, from pre-trained or random weights."""
    model = MolfunStructureModel(
        "timeseries",
        config=encoder(train, args),
        weights=weights,
        head="multiclass",
        task_config={"classes": sorted(set(train.targets))},
        device="cpu",
        seed=seed,
    )
    if weights is None:  # fair to random weights: pre-training saw the scale of all series, too
        model.backbone.fit_inputs(train)
    loader = DataLoader(
        Subset(train, rows), batch_size=BATCH, shuffle=True, collate_fn=train.collate_fn
    )
    model.fit(
        loader,
        strategy=FullFinetune(
            lr=1e-3, lr_head=2e-3, lr_embedder=1e-3, layer_lr_decay=1.0, warmup_ratio=0.1
        ),
        max_steps=args.steps,
        seed=seed,
    )
    return model


def summary(data: Any) -> np.ndarray:
    """Return statistics of each series: (series, 7 * features)."""
    rows = []
    for sample in data:
        x = np.where(sample.features["mask"], sample.features["timeseries"], np.nan)
        parts = [np.nanmean(x, 0), np.nanstd(x, 0), np.nanmin(x, 0), np.nanmax(x, 0)]
        rows.append(np.concatenate([*parts, x[0], x[-1], np.nanmean(np.diff(x, axis=0), 0)]))
    return np.nan_to_num(np.array(rows))


def ridge(rows: list[int], train: Any, test: Any) -> float:
    """Return the accuracy of the baseline."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 13)))
    labels = np.array(train.targets)
    model.fit(summary(train)[rows], labels[rows])
    return float(model.score(summary(test), np.array(test.targets)))


def draw(train: Any, n: int, seed: int) -> list[int]:
    """Draw `n` rows, with equally many of each class as far as possible."""
    rng = np.random.default_rng(seed)
    labels = np.array(train.targets)
    classes = sorted(set(train.targets))
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    queue = [rows[i] for i in range(max(map(len, order))) for rows in order if i < len(rows)]
    return [int(i) for i in queue[:n]]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--sizes", nargs="+", type=int, default=[27, 90, 270])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default="transformer")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pretrain-epochs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/series_transfer.csv"))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train, test = TimeSeriesDataset.from_ts(args.train), TimeSeriesDataset.from_ts(args.test)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, int], list[float]] = {}
    with args.output.open("a", newline="") as file:
        writer = csv.writer(file)
        for seed in range(args.seeds):
            rows = {n: draw(train, n, seed) for n in args.sizes}
            for start in ("ridge", "random", *OBJECTIVES):
                begun = time.process_time()
                weights = pretrained(start, train, args, seed) if start in OBJECTIVES else None
                for n in args.sizes:
                    if start == "ridge":
                        accuracy = ridge(rows[n], train, test)
                    else:
                        model = fine_tuned(weights, rows[n], train, args, seed)
                        accuracy = model.evaluate(
                            DataLoader(test, batch_size=64, collate_fn=test.collate_fn)
                        )["accuracy"]
                    results.setdefault((start, n), []).append(accuracy)
                    spent = round(time.process_time() - begun, 1)
                    writer.writerow([args.encoder, start, n, seed, round(accuracy, 4), spent])
                    file.flush()
                    print(
                        f"{start} n={n} seed={seed} accuracy={accuracy:.4f} cpu={spent}", flush=True
                    )
    print(f"\naccuracy on {len(test)} test series, median of {args.seeds} seeds (range)")
    print(f"{'start':<14}" + "".join(f"{f'n = {n}':>24}" for n in args.sizes))
    for start in ("ridge", "random", *OBJECTIVES):
        cells = []
        for n in args.sizes:
            values = sorted(results[start, n])
            middle = statistics.median(values)
            cells.append(f"{middle:.3f} ({values[0]:.3f} to {values[-1]:.3f})")
        print(f"{start:<14}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()

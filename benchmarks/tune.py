"""Compare a search of settings with a plain optuna loop around transformers.

    python benchmarks/tune.py --size 150M --sequences 80 --trials 4

This needs ``pip install transformers 'molfun[tune]'``. Both run the same trials: the settings are
those that the seeded random sampler of `molfun.tuning.Study` draws, and the plain loop gets them in
its queue. Each trial starts from the same random ESM-2 weights and the same linear head, sees the
same batches in the same order, takes AdamW at a constant rate, and is validated after each epoch.
The plain loop has its tokens ready and its model in memory, and copies it for each trial; frozen
layers take no gradient, so that nothing goes backward through them. Molfun's side is the whole
study: its folder is empty at the beginning of each round, and the journal, the cache on disk and
the reports of all epochs are in its time.

Each variant has a process of its own, on one thread by default; tables show medians over rounds of
CPU seconds, from which trials per hour are computed (with one thread, this is time on a machine of
one's own). The sums of the last validation losses of all trials are compared.

Sequences are those of GB1 (split three_vs_rest of FLIP) where ``../shared/data`` or
``MOLFUN_DATA`` has them, else random ones of the same length. A fifth of them validates.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from esm2_vs_peers import HuggingFace
from harness import Bound, Variant

from molfun import HeadOnlyFinetune, MolfunStructureModel, PartialFinetune, SequenceDataset
from molfun.nn import kernels
from molfun.sample import SampleBatch
from molfun.tuning import Study, Trial

NAMES = {
    "tiny": "esm2_tiny", "8M": "esm2_t6_8M_UR50D", "35M": "esm2_t12_35M_UR50D",
    "150M": "esm2_t30_150M_UR50D",
}  # fmt: skip
LENGTH = 56
HEAD_ONLY = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
PARTIAL = {"lr": {"low": 1e-5, "high": 1e-3, "log": True}, "unfreeze_blocks": [1, 2]}
SPACES: dict[str, dict[str, Any]] = {
    "head_only": {"strategy": {"head_only": HEAD_ONLY}, "batch_size": [8, 16]},
    "partial": {"strategy": {"partial": PARTIAL}, "batch_size": [8, 16]},
    "both": {"strategy": {"head_only": HEAD_ONLY, "partial": PARTIAL}, "batch_size": [8, 16]},
}
COURSE: dict[str, Any] = {
    "scheduler": "constant", "weight_decay": 0.0, "grad_clip": 0.0, "ema_decay": 0.0,
    "accumulation_steps": 1,
}  # fmt: skip
Rows = list[tuple[str, float]]


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    size: str
    rows: tuple[tuple[str, float], ...]
    space: str
    trials: int
    epochs: int
    plain: bool
    cache: bool = True


def rows_of(n: int) -> Rows:
    """Return sequences with labels: of GB1, or random ones of its length."""
    data = Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[2] / "shared/data"))
    path = data / "gb1/three_vs_rest_train_valid.csv"
    rng = np.random.default_rng(0)
    if path.is_file():
        with path.open(newline="") as file:
            found = [(row["sequence"], float(row["fitness"])) for row in csv.DictReader(file)]
        return [found[i] for i in rng.permutation(len(found))[:n]]
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return [("".join(rng.choice(letters, LENGTH)), float(rng.normal())) for _ in range(n)]


def batches_of(rows: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def drawn(case: Case) -> list[dict[str, Any]]:
    """Return the settings of all trials."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(folder, SPACES[case.space], lambda _: 0.0, sampler="random", pruning="off")
        study.run(case.trials)
        return [dict(trial.settings) for trial in study.trials]


class PlainLoop:
    """What one writes with optuna and transformers: a model, an optimizer and a loop per trial."""

    def __init__(self, source: MolfunStructureModel, case: Case) -> None:
        self._source, self._case, self._settings = HuggingFace(source, "head"), case, drawn(case)
        n_val = len(case.rows) // 5
        self._train, self._val = case.rows[n_val:], case.rows[:n_val]

    def run(self, n: int) -> float:
        """Run trials, and return the sum of their last validation losses."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study()
        for settings in self._settings[:n]:
            study.enqueue_trial(
                {**settings, "strategy": settings["strategy"]}, skip_if_exists=False
            )
        study.optimize(self._trial, n_trials=n)
        return float(sum(trial.value or 0.0 for trial in study.trials))

    def _trial(self, trial: Any) -> float:
        strategy = trial.suggest_categorical("strategy", ["head_only", "partial"])
        rate = trial.suggest_float("lr", 1e-5, 1e-2, log=True)
        size = trial.suggest_categorical("batch_size", [8, 16])
        model = copy.deepcopy(self._source)
        trunk: list[Any] = []
        if strategy == "partial":
            n_blocks = trial.suggest_categorical("unfreeze_blocks", [1, 2])
            parts = [
                *model.trunk.encoder.layer[-n_blocks:],
                model.trunk.encoder.emb_layer_norm_after,
            ]
            for part in parts:
                part.requires_grad_(True)
                trunk += part.parameters()
        groups = [{"params": list(model.output.parameters()), "lr": head_rate(strategy, rate)}]
        groups += [{"params": trunk, "lr": rate}] if trunk else []
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        train, val = (batches_of(part, size) for part in (self._train, self._val))
        for _ in range(self._case.epochs):
            for batch in train:
                (self._loss(model, batch) / len(batch)).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                total = sum(float(self._loss(model, batch)) for batch in val)
        return total / len(self._val)

    def _loss(self, model: Any, batch: Rows) -> Any:
        tokens = model.features([text for text, _ in batch])
        return model(tokens, torch.tensor([label for _, label in batch]))


def head_rate(strategy: str, rate: float) -> float:
    return rate if strategy == "head_only" else 10 * rate


class OwnStudy:
    """The same trials as a study of Molfun."""

    def __init__(self, source: MolfunStructureModel, case: Case) -> None:
        self._source, self._case = source, case
        data = SequenceDataset.from_list(list(case.rows))
        n_val = len(case.rows) // 5
        self._val, self._train = data.subset(range(n_val)), data.subset(range(n_val, len(data)))

    def run(self, n: int) -> float:
        """Run trials, and return the sum of their last validation losses."""
        self._losses: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            space = SPACES[self._case.space]
            study = Study(folder, space, self._trial, sampler="random", pruning="off")
            study.run(n)
        return sum(self._losses)

    def _trial(self, trial: Trial) -> Any:
        size, name, rate = (trial[key] for key in ("batch_size", "strategy", "lr"))
        strategy: Any = HeadOnlyFinetune(lr=rate, **COURSE)
        if name == "partial":
            strategy = PartialFinetune(
                unfreeze_last_n=trial["unfreeze_blocks"], lr_trunk=rate,
                lr_head=head_rate(name, rate), **COURSE,
            )  # fmt: skip
        train, val = (
            [SampleBatch(batch) for batch in batches_of([part[i] for i in range(len(part))], size)]
            for part in (self._train, self._val)
        )
        model = copy.deepcopy(self._source)
        history = model.fit(
            train, val, strategy=strategy, epochs=self._case.epochs, callbacks=[trial],
            cache=trial.cache if self._case.cache else "off", restore_best=False,
        )  # fmt: skip
        self._losses.append(float(history[-1]["val_loss"]))
        return history


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case: one trial to warm up, and all."""
    logging.disable(logging.WARNING)
    kernels.set_matrix_kernel("auto")
    source = MolfunStructureModel(
        NAMES[case.size], head="linear", head_config={"standardize": False},
        task_config={"standardize": False}, device="cpu", seed=0,
    )  # fmt: skip
    made = (PlainLoop if case.plain else OwnStudy)(source, case)
    return lambda: made.run(1), lambda: made.run(case.trials)


def table(space: str, args: argparse.Namespace) -> None:
    """Measure the two in turns, and print trials per hour."""
    about: Any = (args.size, tuple(rows_of(args.sequences)), space, args.trials, args.epochs)
    system, own = {"MOLFUN_ALLOCATOR": "system"}, {"MOLFUN_ALLOCATOR": "keep"}
    variants = [
        Variant("optuna loop, transformers", Case(*about, plain=True), system),
        Variant("molfun study, no cache", Case(*about, plain=False, cache=False), own),
        Variant("molfun study", Case(*about, plain=False), own),
    ]
    results = harness.compare(
        variants, prepare, rounds=args.rounds, threads=args.threads, apart=True
    )
    title = (
        f"{space}, {args.size}, {args.trials} trials of {args.epochs} epochs, {args.sequences} "
        f"sequences"
    )
    print(f"\n{title}")
    print(f"  {'':<28}{'trials/h':>10}{'x':>7}{'CPU s':>9}{'s':>9}{'MB':>7}{'losses':>12}")
    for r in results:
        print(
            f"  {r.label:<28}{3600 * args.trials / r.cpu:>10.0f}{results[0].cpu / r.cpu:>7.2f}"
            f"{r.cpu:>9.1f}{r.wall:>9.1f}{r.memory:>7.0f}{r.value:>12.6f}",
            flush=True,
        )
    bounds = [Bound("molfun study", "optuna loop, transformers", args.most)]
    harness.judge(title, results, bounds, agree=2e-3)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=NAMES, default="8M")
    parser.add_argument("--sequences", type=int, default=320)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=1.0, help="bound on the ratio of CPU times")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--quick", action="store_true", help="the tiny size, one round")
    args = parser.parse_args()
    if args.quick:
        args.size, args.sequences, args.trials, args.rounds, args.epochs = "tiny", 40, 2, 1, 2
        args.most = 100.0  # so small a model shows the overhead alone
    print(harness.machine(args.threads))
    for space in args.spaces:
        table(space, args)
    harness.finish()


if __name__ == "__main__":
    main()

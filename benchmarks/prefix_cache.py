"""Time saved by caching the outputs of frozen blocks, by strategy and place of the cache.

    python benchmarks/prefix_cache.py --backbones esm2
    python benchmarks/prefix_cache.py --quick

``fit`` runs several epochs without a cache, with entries in memory and with entries on disk (a new
folder each time, so every entry is written and read), on the same weights and data. ESM-2 8M trains
on proteins of log-normal lengths in batches of 8, the full OpenFold on single sequences of one
length, one per batch. LoRA changes the first block, so nothing can be cached; it is shown for
comparison. Wall and CPU seconds are those of the whole fit. Printed below are the seconds per epoch
after the first, the number of calls of the first block (on single samples if outputs are cached or
the whole backbone is frozen, else on batches), and the files on disk. The value is the training
loss of the last epoch. The rows of OpenFold take most of the time; shorten them with --proteins and
--rounds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import numpy as np
import torch
from harness import Bound, Variant

STRATEGIES = {"esm2": ("head_only", "partial"), "openfold": ("head_only", "partial", "lora")}
NAMES = {
    "head_only": "head-only",
    "partial": "partial, last {} blocks",
    "lora": "LoRA, rank 8",
}
BATCH = {"esm2": 8, "openfold": 1}


@dataclass(frozen=True)
class Case:
    """Settings of one row."""

    backbone: Literal["esm2", "openfold"]
    config: str
    strategy: str
    cache: Literal["off", "memory", "disk"]
    samples: tuple[str, ...]
    epochs: int
    blocks: int
    notes: Path


def sequences(n: int, length: int | None) -> tuple[str, ...]:
    """Draw random proteins of one length, or of log-normal lengths."""
    rng = np.random.default_rng(0)
    lengths = [length] * n
    if length is None:
        lengths = np.clip(np.exp(rng.normal(math.log(250), 0.6, n)), 50, 1000).astype(int).tolist()
    return tuple("".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), k)) for k in lengths)


def batches_of(case: Case) -> list[Any]:
    """Return batches of labelled samples."""
    from molfun.protein import Protein
    from molfun.sample import Sample, SampleBatch

    samples = []
    for i, text in enumerate(case.samples):
        label = 5.0 + math.sin(i)
        if case.backbone == "openfold":
            protein = Protein.from_sequence(text, name=f"s{i}")
            samples.append(Sample(id=f"s{i}", protein=protein, target=label))
        else:
            samples.append(Sample(id=f"s{i}", sequence=text, target=label))
    size = BATCH[case.backbone]
    return [SampleBatch(samples[i : i + size]) for i in range(0, len(samples), size)]


def strategy_of(case: Case) -> Any:
    """Return the strategy, with rates so small that OpenFold with random weights stays finite."""
    from molfun import HeadOnlyFinetune, LoRAFinetune, PartialFinetune

    if case.strategy == "head_only":
        return HeadOnlyFinetune(lr=1e-3)
    if case.strategy == "lora":
        return LoRAFinetune(rank=8, lr_lora=1e-5)
    extra = {"unfreeze_structure_module": False} if case.backbone == "openfold" else {}
    return PartialFinetune(unfreeze_last_n=case.blocks, lr_trunk=1e-6, **extra)


def model_of(case: Case) -> Any:
    """Return a model with the same random weights in every process."""
    from molfun import MolfunStructureModel

    head = "affinity" if case.backbone == "openfold" else "linear"
    extra = {"fill_zero_init": 0.005} if case.backbone == "openfold" else {}
    return MolfunStructureModel(
        case.backbone, config=case.config, head=head, device="cpu", backbone_config=extra
    )


def prepare(case: Case) -> tuple[harness.Measure, harness.Measure]:
    """Return the measured functions of a case; runs in the process of its row."""
    from molfun.training import Callback

    logging.disable(logging.WARNING)
    source, batches = model_of(case), batches_of(case)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    class Clock(Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_epoch_end(self, *_: object) -> None:
            self.marks.append(time.perf_counter())

    def run(part: Sequence[Any], epochs: int) -> float:
        nonlocal passes
        model, clock, passes = copy.deepcopy(source), Clock(), 0
        # the number of calls of the first block shows the work that a cache saved
        model.backbone.blocks()[0].register_forward_pre_hook(count)
        with tempfile.TemporaryDirectory() as folder:
            history = model.fit(
                part,
                strategy=strategy_of(case),
                epochs=epochs,
                cache=case.cache,
                cache_dir=folder if case.cache == "disk" else None,
                callbacks=[clock],
            )
            files = [p.stat().st_size for p in Path(folder).rglob("*.safetensors")]
        gaps = [b - a for a, b in itertools.pairwise(clock.marks)]
        note = {
            "later": statistics.mean(gaps) if gaps else math.nan,
            "passes": passes,
            "entries": len(files),
            "bytes": sum(files),
        }
        case.notes.write_text(json.dumps(note))
        return float(history[-1]["train_loss"])

    return lambda: run(batches[:1], 1), lambda: run(batches, case.epochs)


def table(backbone: Any, strategy: str, args: argparse.Namespace, about: str) -> None:
    """Measure the three caches in turns, and print the savings of each."""
    n, length = args.sequences, None
    config = "esm2_tiny" if args.quick else "esm2_t6_8M_UR50D"
    if backbone == "openfold":
        n, length, config = args.proteins, args.length, "tiny" if args.quick else "model_1_ptm"
    blocks = 1 if args.quick else {"esm2": 2, "openfold": 4}[backbone]
    what = NAMES[strategy].format(blocks)
    title = f"{backbone} {config}, {what}, {n} samples, {args.epochs} epochs"
    with tempfile.TemporaryDirectory() as name:
        cases = [
            Case(backbone, config, strategy, cache, sequences(n, length), args.epochs, blocks,
                 Path(name) / cache)
            for cache in ("off", "memory", "disk")
        ]  # fmt: skip
        variants = [Variant(f"cache {c.cache}", c) for c in cases]
        results = harness.compare(variants, prepare, rounds=args.rounds, threads=args.threads)
        notes = [json.loads(case.notes.read_text()) for case in cases]
    harness.show(title, results, value="training loss")
    harness.record(args.history, "prefix_cache", title, results, about)
    header = f"{'s/later epoch':>17}{'x':>8}{'passes':>9}{'entries on disk':>21}"
    print(f"\n  {'in the last round':<17}{header}")
    for result, note in zip(results, notes, strict=True):
        kept = f"{note['entries']}, {note['bytes'] / 1e6:.2f} MB" if note["entries"] else "-"
        ratio = notes[0]["later"] / note["later"]
        print(
            f"  {result.label:<17}{note['later']:>17.3f}{ratio:>8.1f}{note['passes']:>9}{kept:>21}",
            flush=True,
        )
    bounds = [Bound(f"cache {kind}", "cache off", 1.0 if strategy == "head_only" else 2.0)
              for kind in ("memory", "disk")]  # fmt: skip
    harness.judge(title, results, bounds)
    if strategy == "head_only":
        for result, note in zip(results[1:], notes[1:], strict=True):
            text = f"{result.label} / cache off, later epochs"
            harness.hold(title, text, note["later"] / notes[0]["later"], 0.5)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--strategies", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=64, help="samples of ESM-2")
    parser.add_argument("--proteins", type=int, default=4, help="samples of OpenFold")
    parser.add_argument("--length", type=int, default=48, help="residues of each for OpenFold")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--history", type=Path, default=Path("runs/benchmarks.csv"))
    parser.add_argument("--quick", action="store_true", help="tiny models, two epochs, one round")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.rounds, args.sequences, args.length = 2, 1, 16, 16
    about = harness.machine(args.threads)
    print(about)
    for backbone in args.backbones:
        for strategy in STRATEGIES[backbone]:
            if strategy in args.strategies:
                table(backbone, strategy, args, about)
    harness.finish()


if __name__ == "__main__":
    main()

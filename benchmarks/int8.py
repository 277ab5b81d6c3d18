"""Compare LoRA on a frozen base in int8 with LoRA in float32: memory, loss and CPU time per step.

    python benchmarks/int8.py
    python benchmarks/int8.py --quick

Both train the same adapters and head of an ESM-2 on the same batches. Weights are random, of the
size of the published model, and lie in a file from which each process builds its model. The peak is
that of resident memory, from before the model is built to the end of the last step, minus that
before it is built, with all packages imported. The loss is the mean of all steps.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

from molfun.protein import RESIDUE_LETTERS
from molfun.sample import Sample

BASES = ("float32", "int8")
SIZE, QUICK = "esm2_t30_150M_UR50D", "esm2_t12_35M_UR50D"
CASES = ((1, False), (4, False), (8, True))
"""Sequences per step, and whether activations are recomputed. What the blocks keep for the backward
pass is the same for both bases, and more than the weights from about 300 residues per step on; the
promise of memory is for fewer, or for activations that are computed again."""
FEW = 256
MEMORY, LOSS = 0.5, 0.01
"""Promises: peak relative to float32, and relative difference of the loss."""


@dataclass(frozen=True)
class Case:
    """One run: `batch` sequences of `length` residues per step."""

    base: str
    size: str
    weights: str
    batch: int
    length: int
    steps: int
    threads: int
    checkpointing: bool = False


@dataclass(frozen=True)
class Found:
    """Peaks in MB after loading and at the end, mean loss, CPU seconds per step."""

    loaded: float
    kept: float
    peak: float
    loss: float
    seconds: float


def samples(case: Case) -> list[Sample]:
    """Return random sequences whose label is the share of their residues in half the alphabet."""
    draw = random.Random(0)
    made = []
    for i in range(case.batch * case.steps):
        share = draw.random()
        halves = RESIDUE_LETTERS[:10], RESIDUE_LETTERS[10:]
        text = "".join(draw.choice(halves[draw.random() < share]) for _ in range(case.length))
        made.append(Sample(id=str(i), sequence=text, target=10 * share))
    return made


def run(case: Case, pipe: Any) -> None:
    """Train, and send what was found."""
    logging.disable(logging.WARNING)
    import peft  # noqa: F401  (imports torchao)
    import torch
    from torch.utils.data import DataLoader

    import molfun.nn.int8_weight  # noqa: F401
    from molfun import LoRAFinetune, MolfunStructureModel
    from molfun.backbones import esm2  # noqa: F401
    from molfun.sample import SampleBatch
    from molfun.training import Callback

    torch.set_num_threads(case.threads)
    torch.ones(64, 64) @ torch.ones(64, 64)

    class Steps(Callback):
        losses: list[float] = []  # noqa: RUF012
        seconds: list[float] = []  # noqa: RUF012

        def on_step_end(self, report: Any) -> None:
            self.losses.append(report.loss)
            self.seconds.append(time.process_time() - sum(self.seconds, start=began))

    data, seen = samples(case), Steps()
    before = harness.held("VmRSS")
    model = MolfunStructureModel(
        case.size, weights=case.weights, head="regression", device="cpu", base=case.base,
        backbone_config={"checkpointing": case.checkpointing},
    )  # fmt: skip
    loaded, kept = harness.held("VmHWM") - before, harness.held("VmRSS") - before
    strategy = LoRAFinetune(rank=8, lr_lora=1e-4, base=case.base, scheduler="constant")
    began = time.process_time()
    loader = DataLoader(data, batch_size=case.batch, collate_fn=SampleBatch)
    model.fit(loader, strategy=strategy, epochs=1, callbacks=[seen], cache="off")
    pipe.send(
        Found(
            loaded=loaded,
            kept=kept,
            peak=harness.held("VmHWM") - before,
            loss=statistics.mean(seen.losses),
            seconds=statistics.median(seen.seconds),
        )
    )


def measure(case: Case) -> Found:
    """Run a case in a process of its own, since a peak cannot be reset."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=run, args=(case, there), daemon=True)
    process.start()
    there.close()
    try:
        found: Found = here.recv()
    except EOFError:
        raise SystemExit(f"{case}: could not be run; its error is above.") from None
    process.join()
    return found


def write_weights(size: str, path: Path) -> None:
    """Write random weights as a file of Hugging Face has them: safetensors without a checksum."""
    from safetensors.torch import save_file

    from molfun.backbones.esm2 import ESM2Backbone

    state = ESM2Backbone(config=size).model.state_dict()
    save_file({n: t.clone() for n, t in state.items() if n != "lm_head.weight"}, path)


def main() -> None:
    """Print the figures of both, and judge them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="A smaller model, one batch size.")
    parser.add_argument("--length", type=int, default=126, help="Residues per sequence.")
    parser.add_argument("--steps", type=int, default=6, help="Optimizer steps.")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    size = QUICK if args.quick else SIZE
    print(harness.machine(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        write_weights_apart(size, path)
        for batch, again in CASES[-1:] if args.quick else CASES:
            both = [
                measure(
                    Case(base, size, str(path), batch, args.length, args.steps, args.threads, again)
                )
                for base in BASES
            ]
            title = f"{size}, {batch} x {args.length} residues"
            promised = again or batch * args.length <= FEW
            report(title + ", recomputed" * again, both, promised=promised)
    harness.finish()


def write_weights_apart(size: str, path: Path) -> None:
    """Write the weights in another process, whose memory goes with it."""
    process = multiprocessing.get_context("spawn").Process(target=write_weights, args=(size, path))
    process.start()
    process.join()


def report(title: str, both: list[Found], *, promised: bool) -> None:
    """Print a table of two rows, and whether the promises hold."""
    columns = f"{'load MB':>9}{'kept MB':>9}{'peak MB':>9}{'loss':>9}{'CPU s/step':>12}"
    print(f"\n{title}\n  {'':<9}{columns}")
    for base, found in zip(BASES, both, strict=True):
        print(
            f"  {base:<9}{found.loaded:>9.0f}{found.kept:>9.0f}{found.peak:>9.0f}{found.loss:>9.4f}"
            f"{found.seconds:>12.2f}",
            flush=True,
        )
    plain, small = both
    limit = MEMORY if promised else 1.0
    harness.hold(title, "peak, int8 / float32", small.peak / plain.peak, limit)
    apart = abs(small.loss / plain.loss - 1)
    harness.hold(title, f"difference of the loss ({apart:.2%})", apart, LOSS)


if __name__ == "__main__":
    main()

"""Measure the peak memory of folds with OpenFold, and compare it with the prediction.

    python benchmarks/fold_memory.py
    python benchmarks/fold_memory.py --quick

Every case folds one random sequence with two passes through the model at the width of
model_1_ptm, in a process of its own. Two Evoformer blocks stand for 48: without a graph no block
keeps anything. Measured is the peak of resident memory minus that before the fold. The prediction
is that of `molfun.backbones.openfold.fold_memory`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

from molfun.backbones.openfold import fold_memory
from molfun.protein import RESIDUE_LETTERS


@dataclass(frozen=True)
class Case:
    """Settings of one fold; `depth` is the number of sequences of the alignment."""

    kernels: str
    length: int
    depth: int = 1
    blocks: int = 2


CASES = (
    *(Case("fast", n) for n in (64, 128, 256, 384, 512, 768)),
    *(Case("fast", n, d) for n, d in ((64, 128), (128, 512), (128, 2512), (64, 5632))),
    *(Case("stock", n) for n in (128, 256, 384)),
    Case("stock", 128, 2512),
)
QUICK = (Case("fast", 64), Case("stock", 64))


def peak(case: Case, pipe: Any) -> None:
    """Run one case, and send its peak in bytes."""
    import logging

    logging.disable(logging.WARNING)
    from molfun import MolfunStructureModel
    from molfun.backbones.openfold import _shims
    from molfun.protein import Protein
    from molfun.sample import Sample

    _shims.prepare()
    from openfold.config import model_config

    config = model_config("model_1_ptm")
    config.model.evoformer_stack.no_blocks = case.blocks
    config.model.extra_msa.extra_msa_stack.no_blocks = 1
    model = MolfunStructureModel("openfold", config=config, device="cpu", kernels=case.kernels)
    model.fold("MKTAYIAK", recycles=1)
    with tempfile.TemporaryDirectory() as folder:
        text = alignment(case.length, case.depth)
        protein = Protein.from_sequence(text[0], name="x")
        place = None
        if case.depth > 1:
            place = Path(folder)
            lines = [f">s{i}\n{row}\n" for i, row in enumerate(text)]
            (place / "x.a3m").write_text("".join(lines))
        sample = Sample(id="x", protein=protein, alignment_dir=place)
        before = harness.held("VmRSS")
        model.fold([sample], recycles=1)
    pipe.send((harness.held("VmHWM") - before) * 2**20)


def alignment(length: int, depth: int) -> list[str]:
    """Return a random sequence, and others that share two thirds of its residues."""
    draw = random.Random(0)
    query = "".join(draw.choices(RESIDUE_LETTERS, k=length))
    return [query] + [
        "".join(c if draw.random() < 0.67 else draw.choice(RESIDUE_LETTERS) for c in query)
        for _ in range(depth - 1)
    ]


def measure(case: Case) -> float:
    """Run a case in a process of its own, and return its peak in bytes."""
    spawn = multiprocessing.get_context("spawn")
    # VmHWM, the peak, cannot be reset within a process
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=peak, args=(case, there), daemon=True)
    process.start()
    there.close()
    found = float(here.recv())
    process.join()
    return found


def shape_of(case: Case) -> fold_memory.FoldShape:
    """Return the sizes of a case, with the row of the masked template."""
    rows = min(512, case.depth)
    return fold_memory.FoldShape(
        length=case.length, rows=rows + 1, extra=max(1, case.depth - rows), c_m=256, c_e=64,
        c_z=128, heads=8,
    )  # fmt: skip


def main() -> None:
    """Print measured and predicted peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Few and small cases.")
    parser.add_argument("--kernels", choices=("fast", "stock"), help="Only these.")
    args = parser.parse_args()
    for case in QUICK if args.quick else CASES:
        if args.kernels not in (None, case.kernels):
            continue
        found = measure(case)
        predicted = fold_memory.peak_bytes(shape_of(case), fast=case.kernels == "fast")
        print(
            f"{case.kernels:<6}{case.length:>4} residues {case.depth:>5} sequences "
            f"{found / 2**20:>7.0f} MB, predicted {predicted / 2**20:>7.0f}",
            flush=True,
        )
        harness.hold(
            f"{case.kernels} {case.length}", "measured / predicted", found / predicted, 1.2
        )
    harness.finish()


if __name__ == "__main__":
    main()

"""Measure peak memory of training steps on OpenFold's blocks, and estimate the memory model.

    python benchmarks/memory_model.py            # two numbers of blocks, lengths and rows each
    python benchmarks/memory_model.py --quick

Every case runs forward and backward through Evoformer blocks with adapters, in a process of its
own. Measured is the peak of resident memory minus that before the step. The coefficients printed at
the end are those of `molfun.backbones.openfold.memory`, in units of the pair and the MSA
representation, by least squares on relative errors.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import torch

from molfun.backbones.openfold import memory
from molfun.backbones.openfold.memory import Plan

FIXED = 64 * 2**20
"""Bytes of buffers that do not grow with the sizes; they matter in small cases alone."""


@dataclass(frozen=True)
class Case:
    """Settings of one step."""

    kernels: str
    plan: Plan
    blocks: int
    length: int
    rows: int


def peak(case: Case, pipe: Any) -> None:
    """Run one case and send its peak in bytes."""
    import logging

    logging.disable(logging.WARNING)
    from molfun import LoRAFinetune, MolfunStructureModel
    from molfun.backbones.openfold import _shims
    from molfun.nn import allocator

    _shims.prepare()
    from openfold.config import model_config

    config = model_config("model_1_ptm")
    config.model.evoformer_stack.no_blocks = case.blocks
    config.model.extra_msa.extra_msa_stack.no_blocks = 1
    model = MolfunStructureModel(
        "openfold", config=config, head="affinity", device="cpu", kernels=case.kernels
    )
    LoRAFinetune(rank=8).setup(model)
    backbone: Any = model.backbone.train()
    backbone._planned = case.plan
    if case.plan in ("compact", "lean"):
        allocator.return_large_buffers()
    n, rows, sizes = case.length, case.rows, backbone.config.globals
    state = {
        "m": torch.randn(1, rows, n, sizes.c_m),
        "z": torch.randn(1, n, n, sizes.c_z),
        "msa_mask": torch.ones(1, rows, n),
        "seq_mask": torch.ones(1, n),
    }
    before = harness.held("VmRSS")
    backbone.run_suffix(state, 0, outputs=("single",)).single.square().sum().backward()
    pipe.send((harness.held("VmHWM") - before) * 2**20)


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


def units(case: Case) -> tuple[float, float, float]:
    """Return the bytes of pair and MSA representation, and of the weights of one pair attention."""
    n = case.length
    return 4.0 * n * n * 128, 4.0 * case.rows * n * 256, 4.0 * 4 * n**3


def main() -> None:
    """Print peaks and coefficients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 24])
    parser.add_argument("--blocks", nargs="+", type=int, default=[3, 8])
    parser.add_argument("--plans", nargs="+", default=list(memory.PLANS))
    parser.add_argument("--quick", action="store_true", help="Few and small cases.")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.rows, args.blocks = [32, 48], [2, 8], [1, 3]
    for kernels in ("fast", "stock"):
        for plan in memory.plans(fast=kernels == "fast"):
            if plan not in args.plans:
                continue
            cases = [
                Case(kernels, plan, *sizes)
                for sizes in itertools.product(args.blocks, args.lengths, args.rows)
            ]
            rows, peaks, last = [], [], 0.0
            for case in cases:
                found = measure(case)
                pair, msa, weights = units(case)
                shape = memory.Shape(
                    batch=1, length=case.length, rows=case.rows, c_m=256, c_z=128,
                    blocks=case.blocks,
                )  # fmt: skip
                predicted = memory.peak_bytes(shape, case.plan, fast=kernels == "fast")
                print(
                    f"{kernels:<6}{plan:<11}{case.blocks:>3} blocks {case.length:>4} residues "
                    f"{case.rows:>3} rows {found / 2**20:>8.0f} MB, predicted "
                    f"{predicted / 2**20:>8.0f}",
                    flush=True,
                )
                last = (found - FIXED) / predicted
                kept = 4 * weights * (case.blocks if plan == "keep" else 1)
                rows.append([case.blocks * pair, case.blocks * msa, pair, msa])
                peaks.append(found - (0 if kernels == "fast" else kept))
            matrix, wanted = np.array(rows), np.array(peaks)
            # relative errors: a 1 % error at 60 GB must not outweigh all small cases
            weight = 1 / np.maximum(wanted, 1)
            found_costs = np.linalg.lstsq(matrix * weight[:, None], wanted * weight, rcond=None)[0]
            names = ("block_pair", "block_msa", "once_pair", "once_msa")
            text = ", ".join(f"{n}={c:.1f}" for n, c in zip(names, found_costs, strict=True))
            print(f"  {kernels} {plan}: {text}")
            # of the largest case: what does not grow with the sizes hides the rest in small ones
            harness.hold(f"{kernels} {plan}", "measured / predicted peak", last, 1.5)
    harness.finish()


if __name__ == "__main__":
    main()

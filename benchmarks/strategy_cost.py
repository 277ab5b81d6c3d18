"""Measure a training step of every strategy on the full AlphaFold trunk.

Each strategy runs in a process of its own on synthetic proteins of one length. The table shows CPU
and wall seconds per step (median, without the first step) and the peak of resident memory over that
with the model built; the best matrix-product rate of the machine is printed above.

    python benchmarks/strategy_cost.py --length 64 --steps 4

Number of threads: torch's default, or ``OMP_NUM_THREADS``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import resource
import statistics
import subprocess
import sys
import time

STRATEGIES = ("head_only", "lora", "partial", "full")


def measure(name: str, length: int, steps: int) -> dict[str, float]:
    """Run one strategy in this process."""
    from molfun import AffinityDataset, MolfunStructureModel
    from molfun.training import Callback, FinetuneStrategy

    logging.disable(logging.WARNING)

    class Clock(Callback):
        marks: list[tuple[float, float]] = []  # noqa: RUF012  (one instance)

        def on_batch_end(self, *_: object) -> None:
            self.marks.append((time.process_time(), time.perf_counter()))

    data = AffinityDataset.synthetic(steps + 1, length)
    model = MolfunStructureModel(
        "openfold", head="affinity", device="cpu", backbone_config={"fill_zero_init": 0.005}
    )
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.fit(
        data, strategy=FinetuneStrategy.from_dict({"name": name}), epochs=1, callbacks=[Clock()]
    )
    pairs = list(itertools.pairwise(Clock.marks))
    return {
        "cpu": statistics.median(b[0] - a[0] for a, b in pairs),
        "wall": statistics.median(b[1] - a[1] for a, b in pairs),
        "peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 2**20,
    }


def gemm_rate() -> float:
    """Return the best float32 rate of torch's matrix product on this machine, in GFLOP/s."""
    import torch

    a = torch.randn(2048, 2048)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times) / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", choices=STRATEGIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.length, options.steps)))
        return
    import torch

    print(
        f"length {options.length}, 1 MSA row, float32, {torch.get_num_threads()} threads, "
        f"GEMM peak {gemm_rate():.0f} GFLOP/s"
    )
    print(f"{'strategy':<11}{'CPU-s/step':>12}{'wall s/step':>13}{'peak GB':>9}")
    for name in STRATEGIES:
        command = [sys.executable, __file__, "--only", name]
        command += ["--length", str(options.length), "--steps", str(options.steps)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(run.stdout.splitlines()[-1])
        print(f"{name:<11}{row['cpu']:>12.1f}{row['wall']:>13.1f}{row['peak']:>9.1f}", flush=True)


if __name__ == "__main__":
    main()

"""Print how far the weights of several processes are from those of one, as a table.

Each row trains a tiny model in one process, in processes with copies and in processes with parts,
with the same batches per optimizer step and without chance. Shown is the largest difference of any
weight of the whole model at the end.

    python tests/soak/several_against_one.py
    python tests/soak/several_against_one.py --sizes 2 --backbones esm2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training")]

from parallel_fit import BACKBONES, run  # noqa: E402
from test_parallel import started  # noqa: E402
from test_sharded import STRATEGIES, fits  # noqa: E402

LIMIT = 1e-6
WAYS = ("ddp", "fsdp2")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    options = parser.parse_args()
    columns = [f"{size} {way}" for size in options.sizes for way in WAYS]
    print(f"{'backbone':<12}{'strategy':<10}" + "".join(f"{name:>12}" for name in columns))
    worst = 0.0
    for backbone in options.backbones:
        found: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
        quiet = [
            run(**{**one, "parallel": "auto", "accumulation": 4})
            for one in fits(backbone, "ddp", 2)
        ]
        for size in options.sizes:
            for way in WAYS:
                place = Path(tempfile.mkdtemp())
                several = started(size, place, fits(backbone, way, size))[0]
                for strategy, one, other in zip(STRATEGIES, quiet, several, strict=True):
                    differences = [
                        float((weight - other["weights"][name]).abs().max())
                        for name, weight in one["weights"].items()
                    ]
                    found[strategy].append(max(differences))
        for strategy, row in found.items():
            print(f"{backbone:<12}{strategy:<10}" + "".join(f"{v:>12.1e}" for v in row), flush=True)
            worst = max(worst, *row)
    if worst > LIMIT:
        raise SystemExit(f"{worst:.1e} is above {LIMIT}")


if __name__ == "__main__":
    main()

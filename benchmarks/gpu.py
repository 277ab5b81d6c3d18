"""Measure a GPU in one command: correctness against the CPU, then speed and memory next to peers.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --device cpu --quick --out cpu.json

Nothing is downloaded: weights are random, of the published sizes. Each part runs in a process of
its own with a budget of time, and sends a row as soon as it has one; all together end within
``--limit`` seconds (8 minutes). The table is printed and the file written row by row, so that
nothing measured is lost when a part fails, hangs or runs out of time. A row that cannot run gives
its reason. The exit code is 1 if a result differs from its reference or a row failed.

``TFLOP/s`` counts what the model asks for (without recomputation), and ``of peak`` is its share of
the best product of two matrices in that precision on this card. Steps are forward and backward. A
difference is relative to the largest number of the reference: predictions and the norm of all
gradients on the CPU in float32 for the part ``correctness``, else the loss or norm of the row named
in the note.

What it needs: torch 2.10 or newer for the card, a checkout of this repository on ``PYTHONPATH``,
and the packages under ``dependencies`` in ``pyproject.toml``. Rows of ESM-2 next to its peer need
transformers and fair-esm; OpenFold needs openfold, dm-tree, ml-collections and modelcif; PET needs
metatrain and ase; int8 needs torchao. Flash attention (flash-attn) and NVIDIA's triangle kernels
(cuequivariance-torch with its ops package) are used where they are installed. For a machine without
a network, collect here what ``pip list`` does not show there, for the Python of that machine, and
install it there into a folder::

    pip download --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d wheels \
        lightning-fabric lightning-utilities peft transformers fair-esm torchao dm-tree \
        ml-collections biopython gemmi crepes pydantic pydantic-core annotated-types \
        modelcif ihm
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. python benchmarks/gpu.py --out gpu.json

openfold is on the index as a source archive alone, which does not build. The folder ``openfold``
that ``molfun install openfold`` puts into an environment is plain Python: copy it into ``site``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import gpu_parts
import torch
from gpu_parts import PARTS, Options, Row

from molfun._io import finite, write_json
from molfun.text import unknown_name

LIMIT = 480.0
"""Seconds for everything."""
WRITING = 5.0
"""Seconds kept for the end."""
CONTEXT = multiprocessing.get_context("forkserver")
PACKAGES = (
    "molfun", "torch", "transformers", "peft", "openfold", "fair-esm", "metatrain", "torchao",
    "flash-attn", "cuequivariance-torch", "triton", "lightning-fabric", "numpy",
)  # fmt: skip


def about(device: str) -> dict[str, Any]:
    """Describe card, machine and packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    found = {
        "device": device,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "packages": versions,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
        }
    return found


def start_server() -> None:
    """Start the process of which all parts are forks: it imports once, and never uses the GPU."""
    # a package that is missing is left out, and the rows that need it say so
    backbones = ["molfun.backbones.openfold.backbone", "molfun.backbones.pet.backbone"]
    CONTEXT.set_forkserver_preload(["gpu_parts", *backbones])
    # Python 3.11 does not give it `sys.path`
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before] if before else [here])
    forkserver.ensure_running()
    first = CONTEXT.Process(target=time.sleep, args=(0,))
    first.start()  # it waits for the imports, so that they do not count as time of a part
    first.join()


class Table:
    """The rows: printed, and written to a file, as they come.

    Parameters
    ----------
    path
        File to write; None for none.
    head
        What the file holds next to the rows.
    """

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self._path, self._head, self.rows = path, head, list[Row]()
        self._start, self._part = time.perf_counter(), ""

    def add(self, row: Row) -> None:
        """Print a row, with the titles above the first of its part."""
        if row.part != self._part:
            self._part = row.part
            print(
                f"\n{row.part}\n  {'':<48}{'s':>10}{'res/s':>10}{'MB':>8}{'TFLOP/s':>9}"
                f"{'of peak':>9}{'value':>13}{'differs':>9}  note"
            )
        self.rows.append(row)
        share = self.share_of_peak(row)
        print(
            f"  {row.label:<48}{_shown(row.seconds, '10.4f')}{_shown(row.per_second, '10.0f')}"
            f"{_shown(row.memory_mb, '8.0f')}{_shown(row.tflops, '9.2f')}{_shown(share, '9.1%')}"
            f"{_shown(row.value, '13.6g')}{_shown(row.difference, '9.1e')}"
            f"  {'' if row.status == 'ok' else row.status + ': '}{row.note}",
            flush=True,
        )
        self.write()

    def share_of_peak(self, row: Row) -> float | None:
        """Return the share of the best rate of a product in the precision of the row."""
        peaks = {r.precision: r.tflops for r in self.rows if r.part == "gemm"}
        peak = peaks.get(row.precision)
        return row.tflops / peak if row.tflops and peak and row.part != "gemm" else None

    def write(self) -> None:
        """Write what there is."""
        if self._path is not None:
            rows = [{**asdict(row), "of_peak": self.share_of_peak(row)} for row in self.rows]
            took = round(time.perf_counter() - self._start, 1)
            write_json(self._path, finite({**self._head, "seconds": took, "rows": rows}))

    def finish(self) -> None:
        """End the process with exit code 1 if a row is wrong."""
        bad = [row for row in self.rows if row.status in ("broken", "failed")]
        took = time.perf_counter() - self._start
        print(f"\n{len(self.rows)} rows in {took:.0f} s; {len(bad)} broken or failed")
        if bad:
            raise SystemExit("; ".join(f"{r.part}, {r.label}: {r.status}, {r.note}" for r in bad))


def _shown(value: float | None, form: str) -> str:
    """Return a number in a column, or a dash."""
    width = form.split(".")[0]
    return f"{'-':>{width}}" if value is None or math.isnan(value) else f"{value:{form}}"


def run_part(name: str, options: Options, table: Table, seconds: float) -> None:
    """Run a part in a process of its own, and end it after `seconds`."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=gpu_parts.serve, args=(there, name, options))
    end = time.perf_counter() + seconds
    process.start()
    there.close()
    try:
        for row in _received(here, end):
            table.add(row)
        if time.perf_counter() >= end:
            table.add(Row(name, "the rest", status="skipped", note=f"no time ({seconds:.0f} s)"))
            return
        process.join(timeout=WRITING)
        if process.exitcode:
            note = f"the process ended with exit code {process.exitcode}"
            table.add(Row(name, "the rest", status="failed", note=note))
    finally:
        # the processes of torch.compile's workers as well: they are in the group of the part
        assert process.pid is not None  # it was started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _received(pipe: Any, end: float) -> Iterator[Row]:
    """Yield rows until the part closes its end of the pipe, or its time is over."""
    while pipe.poll(max(0.0, end - time.perf_counter())):
        try:
            yield pipe.recv()
        except EOFError:
            return


def seconds_of(name: str, chosen: Sequence[str], left: float) -> float:
    """Return the seconds of a part: all but those kept for the parts after it.

    >>> seconds_of("gemm", ["gemm"], 100.0)
    100.0
    """
    after = chosen[chosen.index(name) + 1 :]
    whole = sum(PARTS[part].seconds for part in (name, *after))
    # with less time than all ask for, each gets its share
    scale = min(1.0, left / whole)
    return left - scale * sum(PARTS[part].seconds for part in after)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, or end with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything")
    parser.add_argument("--only", nargs="+", metavar="PART", default=list(PARTS),
                        help=f"some of: {', '.join(PARTS)}")  # fmt: skip
    args = parser.parse_args(arguments)
    for name in args.only:
        if name not in PARTS:
            raise SystemExit(f"Error: {unknown_name('part', name, PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Error: torch sees no CUDA GPU here. Try the script with --device cpu.")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts."""
    args = parsed(arguments)
    # a plain end of the process would leave the running part behind
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit("stopped")))
    end = time.perf_counter() + args.limit - WRITING
    head = about(args.device)
    print(", ".join(f"{k}: {v}" for k, v in head.items() if k != "packages"))
    print(", ".join(f"{k} {v}" for k, v in head["packages"].items() if v), flush=True)
    start_server()
    table, chosen = Table(args.out, head), [name for name in PARTS if name in args.only]
    for name in chosen:
        seconds = seconds_of(name, chosen, max(0.0, end - time.perf_counter()))
        run_part(name, Options(device=args.device, quick=args.quick), table, seconds)
    table.write()
    table.finish()


if __name__ == "__main__":
    main()

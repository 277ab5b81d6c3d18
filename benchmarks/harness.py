"""Shared parts of the benchmarks: a process per variant, rounds, medians, memory, a history.

A variant is prepared in a process of its own, so that neither allocator nor caches are shared. It
is warmed up and then measured once per round, one variant at a time, so that a slow spell of the
machine meets all of them. A table shows the median over the rounds of wall and CPU seconds, the
spread between the fastest and the slowest round, the peak of resident memory over that after
preparation, and a number by which results are compared.

A benchmark judges its tables by bounds: ratios between two rows of one table, which hold on a slow
or busy machine too, and agreement of the numbers. Every bound is printed; `finish` ends the process
with exit code 1 where one is broken.
"""

from __future__ import annotations

import csv
import datetime
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_map

Measure = Callable[[], float]
"""Do the work once, and return a number on which all variants should agree."""
Prepare = Callable[[Any], tuple[Measure, Measure]]
"""Function from the settings of a variant to a short warm-up run and the run to measure."""


@dataclass(frozen=True)
class Variant:
    """A row of a table.

    Parameters
    ----------
    label
        Name in the table.
    settings
        Argument of `Prepare`.
    environment
        Environment variables of the process.
    forks
        Whether the process starts others, as loaders with workers do.
    """

    label: str
    settings: Any
    environment: Mapping[str, str] = field(default_factory=dict)
    forks: bool = False


@dataclass(frozen=True)
class Result:
    """Medians of one variant: seconds, spread as a fraction, peak memory in MB, and its number."""

    label: str
    wall: float
    cpu: float
    spread: float
    memory: float
    value: float


@dataclass(frozen=True)
class Bound:
    """Promise that a row takes at most `ratio` times what another row of its table takes."""

    row: str
    of: str
    ratio: float
    what: Literal["wall", "cpu", "memory"] = "cpu"


PAGE = "MOLFUN_BENCH_PAGE"
"""Environment variable with a file to which each bound is added: table, what was found, the most
that is allowed, whether it holds."""

_broken: list[str] = []


def held(name: str) -> float:
    """Return the memory of this process in MB (Linux): VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return math.nan


def _serve(pipe: Any, prepare: Prepare, variant: Variant, threads: int) -> None:
    torch.set_num_threads(threads)
    warm_up, measure = prepare(variant.settings)
    loaded = held("VmRSS")
    warm_up()
    pipe.send("ready")
    while pipe.recv() == "measure":
        wall, cpu = time.perf_counter(), time.process_time()
        value = measure()
        taken = (time.perf_counter() - wall, time.process_time() - cpu)
        pipe.send((*taken, held("VmHWM") - loaded, value))


def compare(
    variants: Sequence[Variant],
    prepare: Prepare,
    *,
    rounds: int,
    threads: int,
    apart: bool = False,
    enough: float = math.inf,
) -> list[Result]:
    """Measure all variants in turns, and return their medians.

    Their processes live at the same time, and so do their models. With `apart`, each process is
    started again in every round and ends before the next one starts, for models that do not fit
    into memory together. A variant is measured no more once that took `enough` seconds: the longer
    a measurement takes, the less it varies.
    """
    found: list[list[tuple[float, float, float, float]]] = [[] for _ in variants]
    workers = []
    for variant in () if apart else variants:
        workers.append(_Worker(variant, prepare, threads))
        if threads > 1:  # OpenMP's threads of several processes would wait for each other in turns
            workers[-1].wait()
    for worker in workers if threads == 1 else ():
        worker.wait()
    for _ in range(rounds):
        for i, variant in enumerate(variants):
            if sum(wall for wall, *_ in found[i]) >= enough:
                continue
            worker = _Worker(variant, prepare, threads) if apart else workers[i]
            if apart:
                worker.wait()
            found[i].append(worker.measure())
            if apart:
                worker.end()
    for worker in workers:
        worker.end()
    return [_median(variant.label, rows) for variant, rows in zip(variants, found, strict=True)]


class _Worker:
    """Process of a variant, which starts at once."""

    def __init__(self, variant: Variant, prepare: Prepare, threads: int) -> None:
        # spawn: a forked child would share this process's allocator and imported modules
        spawn = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        os.environ.update(variant.environment)
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(there, prepare, variant, threads), daemon=not variant.forks
        )
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        there.close()
        self._label = variant.label

    def wait(self) -> None:
        """Wait until it has warmed up."""
        try:
            self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self._label}: could not be prepared; its error is above.") from None

    def measure(self) -> tuple[float, float, float, float]:
        """Return wall and CPU seconds, peak memory in MB, and the number to compare."""
        self._pipe.send("measure")
        row: tuple[float, float, float, float] = self._pipe.recv()
        return row

    def end(self) -> None:
        """Stop the process."""
        self._pipe.send("end")
        self._process.join()


def _median(label: str, rows: Sequence[tuple[float, float, float, float]]) -> Result:
    walls, cpus, memories, values = zip(*rows, strict=True)
    middle = statistics.median(walls)
    return Result(
        label=label,
        wall=middle,
        cpu=statistics.median(cpus),
        spread=(max(walls) - min(walls)) / middle,
        memory=max(memories),
        value=values[0],
    )


def gemm_peaks(threads: int) -> dict[str, float]:
    """Return the best rate of each matrix kernel at the trunks' shapes, in GFLOP/s.

    Those named after a kernel are of float32; ``bfloat16`` is that of torch.
    """
    from molfun.nn import kernels

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    peaks = {}
    for kernel in ("torch", "onednn"):
        try:
            kernels.set_matrix_kernel(kernel)
        except ValueError:
            continue
        peaks[kernel] = best_rate(kernels.linear, torch.float32)
    kernels.set_matrix_kernel("auto")
    peaks["bfloat16"] = best_rate(torch.nn.functional.linear, torch.bfloat16)
    torch.set_num_threads(before)
    return peaks


TRUNKS = ((4096, 128, 512), (4096, 320, 1280), (4096, 1280, 320), (4096, 512, 2048))
"""Shapes of products in the trunks: rows, inner and outer width."""


def best_rate(
    linear: Callable[[Any, Any], Any],
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    shapes: Sequence[tuple[int, int, int]] = TRUNKS,
) -> float:
    """Return the best rate of a product at some shapes, in GFLOP/s."""
    best = 0.0
    for rows, inner, outer in shapes:
        x = torch.randn(rows, inner, dtype=dtype, device=device)
        weight = torch.randn(outer, inner, dtype=dtype, device=device)
        for _ in range(12):
            wait(device)
            start = time.perf_counter()
            linear(x, weight)
            wait(device)
            best = max(best, 2 * rows * inner * outer / (time.perf_counter() - start) / 1e9)
    return best


def wait(device: str | torch.device) -> None:
    """Wait until a GPU has done what it was asked for; on a CPU it has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def moved(tensors: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, tensors)


def machine(threads: int) -> str:
    """Describe the machine in one line."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in gemm_peaks(threads).items())
    return (
        f"{model}, {os.cpu_count()} cores, {threads} thread(s), torch {torch.__version__}, "
        f"products in GFLOP/s, of float32 but for bfloat16: {rates}"
    )


def show(title: str, results: Sequence[Result], *, value: str = "value") -> None:
    """Print a table; ratios are relative to the first row."""
    width = max(len(r.label) for r in results) + 2
    print(f"\n{title}")
    print(f"  {'':<{width}}{'s':>9}{'CPU s':>9}{'x':>7}{'spread':>8}{'MB':>8}  {value}")
    for r in results:
        print(
            f"  {r.label:<{width}}{r.wall:>9.3f}{r.cpu:>9.3f}{results[0].wall / r.wall:>7.2f}"
            f"{r.spread:>7.0%} {r.memory:>8.0f}  {r.value:.6g}",
            flush=True,
        )


def judge(
    title: str,
    results: Sequence[Result],
    bounds: Sequence[Bound] = (),
    *,
    agree: float | None = 1e-4,
) -> None:
    """Print whether the bounds of a table hold; `finish` reports the broken ones.

    A bound on a row that is not in the table, because a package is missing, is left out. `agree` is
    the largest relative difference between the values of the rows, or None where they differ.
    """
    rows = {r.label: r for r in results}
    for bound in bounds:
        if bound.row in rows and bound.of in rows:
            ours, theirs = getattr(rows[bound.row], bound.what), getattr(rows[bound.of], bound.what)
            text = f"{bound.row} / {bound.of}, {bound.what}: {ours / theirs:.2f}"
            _hold(title, text, ours / theirs, bound.ratio)
    if agree is not None and len(results) > 1:
        values = [r.value for r in results]
        apart = (max(values) - min(values)) / max(map(abs, values)) if any(values) else 0.0
        _hold(title, f"relative difference of values: {apart:.1e}", apart, agree)


def _hold(title: str, text: str, found: float, limit: float) -> None:
    holds = found <= limit  # false for NaN
    page = os.environ.get(PAGE)
    if page:
        with Path(page).open("a", newline="") as file:
            csv.writer(file).writerow([title, text, f"{limit:g}", "yes" if holds else "NO"])
    print(f"  {'holds' if holds else 'BROKEN'}: {text} (at most {limit:g})", flush=True)
    if not holds:
        _broken.append(f"{title}: {text} (at most {limit:g})")


def hold(title: str, text: str, found: float, limit: float) -> None:
    """Print whether a figure that is no ratio of two rows is at most `limit`."""
    _hold(title, f"{text}: {found:.2f}", found, limit)


def finish() -> None:
    """End the process with exit code 1 and one line if a bound was broken."""
    if _broken:
        raise SystemExit(f"{len(_broken)} broken bound(s): {'; '.join(_broken)}")


def record(path: Path, suite: str, title: str, results: Sequence[Result], about: str) -> None:
    """Append the rows to a CSV history."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(
                ["time", "suite", "table", "variant", "wall_s", "cpu_s", "spread", "mb", "value",
                 "machine"]
            )  # fmt: skip
        for r in results:
            writer.writerow(
                [now, suite, title, r.label, f"{r.wall:.4f}", f"{r.cpu:.4f}", f"{r.spread:.3f}",
                 f"{r.memory:.0f}", f"{r.value:.8g}", about]
            )  # fmt: skip

"""Kill runs at random moments, resume them, and compare the end with that of a run left alone.

``python tests/soak/kill_and_resume.py --minutes 30 --seed 1`` prints a table: trials, kills, and
what must stay at zero: ends that differ in a byte, runs that could not be resumed, files that
killed writers left behind.

Every run is a command line of its own in a process that ``fork`` makes of this one, so that Python
and torch are imported once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

for _folder in ("", "data"):
    sys.path.append(str(Path(__file__).parents[1] / _folder))

COMPARED = ("history.csv", "config.yaml", "splits.csv", "weights.safetensors")
STRATEGIES = (
    ["--strategy", "head_only", "--epochs", "4"],
    ["--strategy", "lora", "--lora-rank", "2", "--epochs", "3"],
    ["--strategy", "partial", "--unfreeze-blocks", "1", "--epochs", "3", "--ema", "0"],
    ["--strategy", "full", "--epochs", "2", "--val-frac", "0", "--accum", "3"],
    ["--strategy", "lora", "--epochs", "2", "--cache", "off", "--patience", "1"],
)
FAMILIES = {
    "esm2": "fine-tune --backbone esm2 --preset esm2_t2_d64_h4 --data sequences.csv --batch-size 4",
    "openfold": "fine-tune --preset tiny --data table.csv --pdbs pdbs",
    "timeseries": "fine-tune --backbone timeseries --data series.csv --preset transformer "
    "--task binary --target-column label --batch-size 4",
    "pet": "fine-tune --backbone pet --data atoms.xyz --batch-size 4",
    "esm2 pretrain": "pretrain --backbone esm2 --preset esm2_t2_d64_h4 --sequences x.fasta "
    "--epochs 3 --batch-size 4 --val-frac 0.2",
    "timeseries pretrain": "pretrain --backbone timeseries --data series.csv --preset transformer "
    "--target-column label --epochs 3 --batch-size 4 --val-frac 0.2",
}


@dataclass
class Score:
    """What the trials of one family came to."""

    trials: int = 0
    kills: int = 0
    early: int = 0
    mismatches: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        counts = [self.trials, self.kills, self.early]
        faults = [self.mismatches, self.stuck, self.leftovers]
        return [*map(str, counts), *(str(len(found)) for found in faults)]


@dataclass
class Run:
    """One command line in one folder."""

    folder: Path
    arguments: list[str]

    def start(self, *more: str) -> int:
        """Process number of a child that runs the command."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.chdir(self.folder)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.write(log, f"\n$ {' '.join([*self.arguments, *more])}\n".encode())
            from molfun.cli.main import app

            try:
                app([*self.arguments, "--output", "run", "--device", "cpu", *more])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def finish(self, *more: str) -> int:
        """Exit code of the command."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(*more), 0)[1])

    def kill_after(self, seconds: float, *more: str) -> int | None:
        """Start and kill; the exit code if it ended before, None if it was killed."""
        pid, until = self.start(*more), time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return None if code == -signal.SIGKILL else code

    def result(self) -> dict[str, bytes]:
        """Bytes of everything that has to be the same."""
        run = self.folder / "run"
        files = [run / name for name in COMPARED] + sorted(run.glob("predictions*"))
        files += sorted(p for p in (run / "checkpoint").rglob("*") if p.is_file())
        return {p.relative_to(run).as_posix(): p.read_bytes() for p in files if p.is_file()}

    def leftovers(self) -> list[str]:
        return [p.name for p in self.folder.rglob("*.tmp")]

    def last_words(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if "Error" in line), lines[-1])


def write_data(folder: Path) -> None:
    """A small data set for each family."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write
    from pdb_text import pdb_chain
    from tiny import build_atoms, pair_energy

    rng = np.random.default_rng(0)
    names = ["ALA", "ARG", "ASN", "ASP", "CYS", "GLU", "GLY", "HIS", "ILE", "LEU"]
    letters = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 8 + i % 5)) for i in range(16)]
    lines = [f"q{i},{seq},{rng.normal():.3f}" for i, seq in enumerate(letters)]
    (folder / "sequences.csv").write_text("\n".join(["id,sequence,target", *lines]) + "\n")
    (folder / "x.fasta").write_text("".join(f">q{i}\n{s}\n" for i, s in enumerate(letters)))
    (folder / "pdbs").mkdir()
    rows = ["pdb_id,affinity"]
    for i in range(10):
        chain = pdb_chain(list(rng.choice(names, 6 + i % 4)))
        (folder / "pdbs" / f"s{i}.pdb").write_text("\n".join([*chain, "END", ""]))
        rows.append(f"s{i},{6 + rng.normal():.3f}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    rows = ["id,time,a,b,label"]
    for i in range(20):
        rows += [
            f"p{i},{t},{rng.normal() + i % 2:.3f},{rng.normal():.3f},{'yes' if i % 2 else 'no'}"
            for t in range(6)
        ]
    (folder / "series.csv").write_text("\n".join(rows) + "\n")
    frames = []
    for sample in build_atoms(12):
        sample.atoms.calc = SinglePointCalculator(sample.atoms, **pair_energy(sample.atoms))
        sample.atoms.info["id"] = sample.id
        frames.append(sample.atoms)
    write(folder / "atoms.xyz", frames, format="extxyz")


def warm_up() -> None:
    """Import what the children need."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in ("cli.fine_tune", "cli.pretrain", "backbones.openfold.backbone", "cli.main",
                 "backbones.esm2.backbone", "backbones.timeseries.backbone",
                 "backbones.pet.backbone"):  # fmt: skip
        importlib.import_module(f"molfun.{name}")
    importlib.import_module("peft")
    importlib.import_module("lightning_fabric")


def command_of(family: str, rng: random.Random) -> list[str]:
    """A family's command under a random strategy."""
    arguments = FAMILIES[family].split()
    if arguments[0] == "fine-tune":
        options = list(rng.choice(STRATEGIES))
        if family == "pet":
            tiny = ("d_pet=16", "d_node=24", "d_head=16", "d_feedforward=16", "num_heads=2",
                    "num_attention_layers=1", "cutoff=3.0")  # fmt: skip
            options += [f"backbone_config.config.{item}" for item in tiny]
        arguments += options
    return arguments


class Soak:
    """Trials of all families in turn.

    Parameters
    ----------
    folder
        Where runs are made; removed by the caller.
    seed
        Decides commands and moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.scores = {family: Score() for family in FAMILIES}
        self._whole: dict[str, tuple[dict[str, bytes], float]] = {}
        self._data = folder / "data"
        self._data.mkdir()
        write_data(self._data)

    def _new(self, name: str, arguments: list[str]) -> Run:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for item in self._data.iterdir():
            (folder / item.name).symlink_to(item)
        return Run(folder, arguments)

    def expected(self, arguments: list[str]) -> tuple[dict[str, bytes], float]:
        """Result of the run left alone, and the seconds it took."""
        key = " ".join(arguments)
        if key not in self._whole:
            run, began = self._new("whole", arguments), time.monotonic()
            if run.finish() != 0:
                raise SystemExit(f"{key}: {run.last_words()}")
            self._whole[key] = run.result(), time.monotonic() - began
        return self._whole[key]

    def trial(self, family: str) -> None:
        """Kill one run up to four times, let it end, compare."""
        score, arguments = self.scores[family], command_of(family, self.rng)
        expected, seconds = self.expected(arguments)
        run = self._new("killed", arguments)
        score.trials += 1
        code: int | None = None
        for number in range(self.rng.randint(1, 4)):
            early = self.rng.random() < 0.5
            code = run.kill_after(
                self.rng.uniform(0, 0.5 if early else 1.1) * seconds, *self._verb(run, number)
            )
            if code is not None:
                break
            score.kills += 1
            score.early += not (run.folder / "run" / "resume" / "state.pt").exists()
        if code is None:
            code = run.finish(*self._verb(run, 1))
        if code != 0:
            score.stuck.append(f"{' '.join(arguments)}: {run.last_words()}")
            return
        found = run.result()
        different = [n for n in {*found, *expected} if found.get(n) != expected.get(n)]
        if different:
            score.mismatches.append(f"{' '.join(arguments)}: {', '.join(sorted(different))}")
        if run.leftovers():
            score.leftovers.append(f"{' '.join(arguments)}: {', '.join(run.leftovers())}")

    def _verb(self, run: Run, number: int) -> list[str]:
        """A run without a state is started again in both ways, any other one resumed."""
        plain = not (run.folder / "run" / "resume" / "state.pt").exists()
        return [] if number == 0 or (plain and self.rng.random() < 0.5) else ["--resume"]

    def table(self) -> str:
        names = ["family", "trials", "kills", "before state", "mismatches", "stuck", "leftovers"]
        rows = [names, *([family, *score.row()] for family, score in self.scores.items())]
        total = Counter[int]()
        for row in rows[1:]:
            total.update({i: int(value) for i, value in enumerate(row) if i})
        rows.append(["all", *(str(total[i]) for i in range(1, len(names)))])
        return "\n".join(
            f"{row[0]:<20}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows
        )

    def faults(self) -> list[str]:
        return [
            f"{family}: {text}"
            for family, score in self.scores.items()
            for text in (*score.mismatches, *score.stuck, *score.leftovers)
        ]


@contextlib.contextmanager
def soak(seed: int) -> Iterator[Soak]:
    """A soak in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="molfun-soak-"))
    try:
        warm_up()
        yield Soak(folder, seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    with soak(options.seed) as trials:
        while time.monotonic() < until:
            for family in options.families:
                trials.trial(family)
                for fault in trials.faults()[-1:]:
                    print(fault, flush=True)
                if time.monotonic() > until:
                    break
        print(trials.table())
        faults = trials.faults()
    if faults:
        print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

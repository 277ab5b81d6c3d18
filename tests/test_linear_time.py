"""The time of readers grows with their input and no faster, also for text made to slow them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from molfun.backbones.openfold.alignments import read_alignment
from molfun.config import read_yaml
from molfun.data.atoms_files import read_frames
from molfun.data.labels import parse_number
from molfun.data.series.ts import read_ts
from molfun.data.structures import read_structure
from molfun.errors import MolfunError

TIMES = 8


def table(n: int) -> str:
    return "@data\n" + ":".join(["1"] * n) + "\n"


def twins(n: int) -> str:
    return "".join(f"k{i}: 1\n" for i in range(n)) + "a-b: 1\na_b: 1\n"


def classes(n: int) -> str:
    names = [f"c{i}" for i in range(n)]
    lines = "".join(f"1:{name}\n" for name in names)
    return f"@classLabel true {' '.join(names)}\n@data\n{lines}"


READERS = {
    "blank lines": (read_structure, "a.pdb", lambda n: "\n" * n + "ATOM\n", 10_000),
    "blanks and comments": (read_structure, "a.pdb", lambda n: " \n#\n" * n + "ATOM\n", 5000),
    "open {": (read_frames, "a.xyz", lambda n: f"1\n{'{' * n}\nH 0 0 0\n", 10_000),
    "open [": (read_frames, "a.xyz", lambda n: f"1\n{'a=[' * n}\nH 0 0 0\n", 10_000),
    "open quotes": (read_frames, "a.xyz", lambda n: '1\n"' + '\\"' * n + "\nH 0 0 0\n", 10_000),
    "dimensions": (read_ts, "a.ts", table, 1500),
    "classes": (read_ts, "a.ts", classes, 1000),
    "digits": (lambda path: parse_number(path.read_text()), "a.txt", lambda n: "1" * n + "x", 5000),
    "list": (read_yaml, "a.yaml", lambda n: f"a: [{'1,' * n}]\n", 500),
    "two spellings": (read_yaml, "a.yaml", twins, 500),
    "rows": (read_alignment, "a.a3m", lambda n: ">q\nMKV\n" + ">a\nMKV\n" * n, 1000),
    "lines of a row": (read_alignment, "a.a3m", lambda n: ">q\n" + "M\n" * n, 3000),
    "blocks": (read_alignment, "a.sto", lambda n: "q AC\na AC\n" * n, 1000),
}


@pytest.mark.parametrize("what", READERS)
def test_time_grows_with_the_input_and_no_faster(tmp_path: Path, what: str) -> None:
    read, name, text, n = READERS[what]
    small = seconds(read, tmp_path / name, text(n))
    large = seconds(read, tmp_path / name, text(TIMES * n))
    assert large < 3 * TIMES * small  # twice the input in four times the time: 64 times


def seconds(read: Callable[[Path], object], path: Path, text: str) -> float:
    """The shortest of three runs; what is read may be refused."""
    path.write_text(text)
    runs = []
    for _ in range(3):
        start = time.process_time()
        with contextlib.suppress(MolfunError):
            read(path)
        runs.append(time.process_time() - start)
    return min(runs)

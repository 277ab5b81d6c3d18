"""What the benchmarks share: medians, the history, processes in turns, and the list of suites."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TRIVIAL = """
def prepare(settings):
    def measure():
        return sum(range(settings))
    return measure, measure
"""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import harness

    return harness


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import run

    return run


def test_medians_and_spread(harness: ModuleType) -> None:
    rows = [(2.0, 1.0, 5.0, 7.0), (4.0, 3.0, 9.0, 7.0), (3.0, 2.0, 6.0, 7.0)]
    result = harness._median("label", rows)
    assert (result.wall, result.cpu, result.memory, result.value) == (3.0, 2.0, 9.0, 7.0)
    assert result.spread == pytest.approx(2 / 3)


def test_a_table_has_ratios_to_its_first_row(
    harness: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = harness.Result("slow", wall=2.0, cpu=1.0, spread=0.25, memory=10, value=3.5)
    fast = harness.Result("fast", wall=0.5, cpu=0.5, spread=0.0, memory=20, value=3.5)
    harness.show("Title", [slow, fast], value="loss")
    _, title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "Title"
    assert header.split() == ["s", "CPU", "s", "x", "spread", "MB", "loss"]
    assert [row.split() for row in rows] == [
        ["slow", "2.000", "1.000", "1.00", "25%", "10", "3.5"],
        ["fast", "0.500", "0.500", "4.00", "0%", "20", "3.5"],
    ]


def test_bounds_are_printed_and_a_broken_one_ends_the_process(
    harness: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = harness.Result("peer", wall=2.0, cpu=1.0, spread=0.25, memory=10, value=3.5)
    ours = harness.Result("ours", wall=0.5, cpu=1.5, spread=0.0, memory=20, value=3.5)
    bounds = [harness.Bound("ours", "peer", 2.0), harness.Bound("ours", "not installed", 1.0)]
    harness.judge("Good", [peer, ours], bounds)
    harness.finish()  # nothing is broken yet
    harness.judge("Bad", [peer, ours], [harness.Bound("ours", "peer", 1.0, "memory")])
    harness.hold("Figures", "passes", float("nan"), 1.0)
    off = harness.Result("off", wall=0.5, cpu=1.5, spread=0.0, memory=20, value=3.6)
    harness.judge("Values", [peer, off])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "holds: ours / peer, cpu: 1.50 (at most 2)",
        "holds: relative difference of values: 0.0e+00 (at most 0.0001)",
        "BROKEN: ours / peer, memory: 2.00 (at most 1)",
        "holds: relative difference of values: 0.0e+00 (at most 0.0001)",
        "BROKEN: passes: nan (at most 1)",
        "BROKEN: relative difference of values: 2.8e-02 (at most 0.0001)",
    ]
    with pytest.raises(SystemExit, match=r"^3 broken bound\(s\): Bad: ours / peer, memory: 2.00"):
        harness.finish()
    harness._broken.clear()


def test_the_history_has_one_header(harness: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.csv"
    result = harness.Result("a, b", wall=1.5, cpu=1.0, spread=0.1, memory=2, value=3.0)
    harness.record(path, "suite", "first", [result, result], "a machine")
    harness.record(path, "suite", "second", [result], "a machine")
    assert path.read_text().count("wall_s") == 1
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["table"] for row in rows] == ["first", "first", "second"]
    assert rows[0]["variant"] == "a, b"
    assert float(rows[2]["wall_s"]) == 1.5


@pytest.mark.slow
def test_variants_run_in_processes_of_their_own(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trivial_benchmark.py").write_text(TRIVIAL)
    monkeypatch.syspath_prepend(tmp_path)
    from trivial_benchmark import prepare

    variants = [harness.Variant("small", 10), harness.Variant("large", 100_000)]
    small, large = harness.compare(variants, prepare, rounds=3, threads=1)
    assert (small.label, small.value) == ("small", 45)
    assert (large.label, large.value) == ("large", 4_999_950_000)
    assert 0 < small.wall < large.wall


def test_every_suite_is_a_script(suites: ModuleType) -> None:
    assert set(suites.SUITES) == {
        *("openfold_kernels", "esm2_vs_peers", "engine_overhead"),
        *("data_loading", "start_up", "prefix_cache", "memory_model", "row_checks"),
        *("fold_memory", "gpu", "parallel", "int8", "streaming", "divided_memory"),
        *("language_models", "gb1", "ranking", "pairs", "esm2_vs_cpp"),
    }
    for name, suite in suites.SUITES.items():
        text = (FOLDER / f"{name}.py").read_text()
        for option in (*suite.full, *suite.quick):
            assert not option.startswith("--") or f'"{option}"' in text, (name, option)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gb1", "ranking"])
def test_a_quick_run_prints_its_table(name: str, real_data: Path, tmp_path: Path) -> None:
    """The same numbers twice, since the seed decides all of them; files are written for gb1."""
    environment = {**os.environ, "MOLFUN_DATA": str(real_data), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick"]
    found = []
    for turn in range(2):
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        assert "Spearman" in done.stdout
        written = sorted((tmp_path / "runs" / name / "quick").glob("*.csv"))
        assert written, turn
        found.append({path.name: path.read_text() for path in written})
    assert found[0] == found[1]
    assert set(found[0]) == {"gb1": {"median.csv", "mean.csv"}, "ranking": {"runs.csv"}}[name]


@pytest.mark.slow
def test_heads_of_pairs_are_compared_with_baselines(real_data: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "pairs.py"), "--quick"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "MOLFUN_DATA": str(real_data), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for row in (
        "48 complexes",
        "pair_mlp, frozen",
        "cross_attention, frozen",
        "ridge on composition",
    ):
        assert row in done.stdout


@pytest.mark.slow
def test_logits_are_those_of_transformers() -> None:
    """A difference above 1e-5 of their size ends the script; esm-cpp is left out without Python."""
    command = [sys.executable, str(FOLDER / "esm2_vs_cpp.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == [
        "transformers", "transformers", "molfun",
    ]  # fmt: skip
    absent = subprocess.run(
        [*command, "--python", "no-such-python"], capture_output=True, text=True, check=False
    )
    assert absent.returncode == 1
    assert absent.stderr.strip() == "no such Python: no-such-python"


@pytest.mark.parametrize("name", ["gb1", "ranking", "pairs"])
def test_absent_data_gives_one_line(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--quick"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "MOLFUN_DATA": str(tmp_path)},
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith("Skipped: ")


def test_a_quick_run_is_one_page_of_bounds(
    suites: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judged.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import harness\n"
        "found = {'theirs': 2.0, 'ours': 1.0}\n"
        "rows = [harness.Result(name, s, s, 0.0, 1.0, 7.0) for name, s in found.items()]\n"
        "harness.show('a table', rows)\n"
        "harness.judge('a table', rows, [harness.Bound('ours', 'theirs', 0.6)])\n"
        "harness.judge('another', rows, [harness.Bound('ours', 'theirs', 0.4)])\n"
        "harness.finish()\n"
    )
    (tmp_path / "measured.py").write_text("print('figures alone')")
    monkeypatch.setattr(suites, "HERE", tmp_path)
    names = ("judged", "measured")
    monkeypatch.setattr(suites, "SUITES", {name: suites.Suite() for name in names})
    with pytest.raises(SystemExit, match="1 of 2 suites failed: judged"):
        suites.main(["--quick"])
    page = capfd.readouterr().out
    assert "  yes a table: ours / theirs, cpu: 0.50 (at most 0.6)" in page
    assert "  NO  another: ours / theirs, cpu: 0.50 (at most 0.4)" in page
    assert "no bound: its figures are in its tables" in page
    assert "figures alone" not in page
    assert Path("runs/bench/measured.txt").read_text() == "figures alone\n"
    assert "CPU s" in Path("runs/bench/judged.txt").read_text()


def test_an_unknown_suite_gives_one_line() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "data_load"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "data_load" in line
    assert "data_loading" in line


def test_a_suite_that_fails_gives_one_line_and_the_next_one_runs(
    suites: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.py").write_text("raise ValueError('no such file')")
    (tmp_path / "good.py").write_text("print('a table')")
    monkeypatch.setattr(suites, "HERE", tmp_path)
    monkeypatch.setattr(suites, "SUITES", {"bad": suites.Suite(), "good": suites.Suite()})
    with pytest.raises(SystemExit, match="1 of 2 suites failed: bad"):
        suites.main(["--only", "bad", "good"])
    out, err = capfd.readouterr()
    assert "bad failed: ValueError: no such file\n" in out
    assert "a table\n" in out
    assert not err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Traceback:\nImportError: no esm\nTraceback:\n  x()\nEOFError\n", "ImportError: no esm"),
        ("molfun.errors.DataError: bad row\n", "molfun.errors.DataError: bad row"),
        ("no weights for ['a']\n", "no weights for ['a']"),
        ("", "exit code 3"),
    ],
)
def test_the_reason_of_a_failure(suites: ModuleType, text: str, said: str) -> None:
    assert suites.reason(text, 3) == said

"""The report of a run: whole, offline, escaped, and there at the end of every run."""

from __future__ import annotations

import datetime
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finished_runs import FORMULA, MATHS, SCRIPT, write_run
from typer.testing import CliRunner

from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.cli import showing
from molfun.cli.main import app
from molfun.errors import RunError
from molfun.report import page, write_report
from molfun.report.finished import FinishedRun
from molfun.report.sections import data as data_section
from molfun.report.sections import structures
from molfun.runs import provenance

LARGEST = 2 * 2**20


class Page(HTMLParser):
    """Words, headings, scripts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.drawings = 0
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.drawings += tag == "svg"
        if tag in ("h2", "script", "style", "svg"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        place = self._open[-1] if self._open else ""
        if place == "script":
            self.scripts.append(data)
        elif place == "h2":
            self.headings.append(data)
        elif place != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


ALWAYS = ["Results", "Data", "Learning curves", "Worst predictions", "What trained", "Cost",
          "Settings", "Origin"]  # fmt: skip
OWN = {
    "sequences": {"Classes", "Calibration", "Errors and inputs"},
    "residues": {"Classes", "Along the sequence"},
    "structures": {"Predictions against labels", "Structures"},
    "series": {"Classes", "Example series"},
    "atoms": {"Predictions against labels", "Forces"},
}


def test_every_family_has_its_sections(family: tuple[str, Path]) -> None:
    name, run = family
    found = read(run)
    assert set(ALWAYS) | OWN[name] <= set(found.headings)
    others = {heading for own in OWN.values() for heading in own} - OWN[name]
    assert (
        not others
        & {"Along the sequence", "Structures", "Example series", "Forces"}
        & set(found.headings)
    )
    assert found.drawings >= 5
    assert (run / "report.html").stat().st_size <= LARGEST


def test_a_report_loads_nothing(family: tuple[str, Path]) -> None:
    name, run = family
    text = (run / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    outside = [a for a in found.addresses if not a.startswith(("#", "data:image/png;base64,"))]
    assert not outside
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none';")
    # only the viewer and its start may run, and they are there only where there is something to see
    assert policy.count("'sha256-") == (2 if name == "structures" else 0)
    assert "@import" not in text


def test_a_run_says_where_it_comes_from(family: tuple[str, Path]) -> None:
    name, run = family
    found = provenance.read(run)
    data = "data.xyz" if name == "atoms" else "data.csv"
    assert re.fullmatch(r"[0-9a-f]{64}", found["files"][data]["sha256"])
    assert found["model"]["parameters"] >= found["model"]["trainable"] > 0
    assert found["data"]["n"]["train"] > found["data"]["n"]["test"] > 0
    assert not any(found["data"]["shared"].values())
    assert found["seconds"] > 0
    assert found["peak_memory"] > 2**20
    text = read(run).text
    assert found["files"][data]["sha256"] in text
    assert "molfun fine-tune --config run/config.yaml --output run-again" in text


def test_writing_again_gives_the_same_report(family: tuple[str, Path]) -> None:
    _, run = family
    before = (run / "report.html").read_bytes()
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before


def test_names_are_text_and_never_code(written: Path) -> None:
    text = write_report(written).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>" not in text
    found = Page(text)
    assert found.scripts == []
    for name in (SCRIPT, FORMULA, MATHS):
        assert name in found.text  # in the table of the worst predictions
    # in a plot: the label of an axis
    axis = html.escape("$\\frac{1}{0}$ & <b>", quote=False)
    assert f">{axis}</text>" in text


def test_the_verdict_comes_first_and_numbers_have_three_digits(written: Path) -> None:
    found = Page(write_report(written).read_text(encoding="utf-8"))
    text = found.text
    assert found.headings[:2] == ["Results", "Baselines"]
    assert text.index("Spearman 0.591 [0.511, 0.671]") < text.index("not better than") < 400
    assert "0.712 [0.632, 0.792]" in text
    assert "-0.123 [-0.203, -0.0435]" in text
    assert not re.search(r"\d\.\d{5,}", text.partition("All settings")[0])
    assert "Best epoch: 2 of 3, by val/loss" in text
    assert "has 3 blanks" in text


def test_errors_against_length_and_identity(written: Path) -> None:
    text = Page(write_report(written).read_text(encoding="utf-8")).text
    assert "Prediction minus label against length" in text
    assert "Prediction minus label against identity" in text


def test_an_older_run_says_that_nothing_was_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    (run / "checkpoint/meta.json").unlink()
    found = Page(write_report(run).read_text(encoding="utf-8"))
    assert "No baselines and intervals were computed" in found.text
    assert "Baselines" not in found.headings
    assert {"Learning curves", "Settings"} <= set(found.headings)


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    rows = ["epoch,train_loss,val_loss,lr", "1,0.9,nan,0.1", "2,0.8,nan,0.1"]
    (run / "history.csv").write_text("\n".join(rows))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "There was neither a validation nor a test part" in text
    assert "which also chose the epoch" not in text
    assert "Best epoch" not in text
    assert "Loss of training; the dashed line is the epoch that is kept." in text


def test_the_threshold_of_two_classes_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = json.loads((run / "evaluation.json").read_text())
    found["threshold"] = {"value": 0.2345, "metrics": {"balanced_accuracy": 0.9, "mcc": None}}
    (run / "evaluation.json").write_text(json.dumps(found))
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert re.search(
        r"threshold chosen on validation\s+balanced accuracy\s+MCC\s+0\.234\s+0\.9", text
    )


def test_a_run_of_the_python_api(tmp_path: Path) -> None:
    data = SequenceDataset.from_list([("MKVA" * (i + 1), float(i)) for i in range(6)])
    model = MolfunStructureModel("esm2", config="esm2_t2_d16_h2", head="regression", device="cpu")
    model.fit(data, data, strategy=HeadOnlyFinetune(), epochs=2, output_dir=tmp_path / "run")
    found = Page(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert {"Results", "Learning curves", "What trained"} <= set(found.headings)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no folder of a run"):
        write_report(tmp_path)


def test_a_failing_section_is_left_out_with_a_warning(
    written: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def section(run: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(page, "SECTIONS", (section, *page.SECTIONS))
    found = Page(write_report(written).read_text(encoding="utf-8"))
    assert "The report has no section 'test_report': no." in caplog.text
    assert found.headings[0] == "Results"


def _demo(folder: Path, *more: str) -> Any:
    return CliRunner().invoke(
        app, ["fine-tune", "--demo", "--preset", "tiny", "--strategy", "head_only", "--epochs", "1",
              "--output", str(folder), *more]
    )  # fmt: skip


def test_a_failing_report_is_no_failing_run(
    tmp_path: Path, reports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Any) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(showing, "_written", fail)
    done = _demo(tmp_path / "run")
    assert done.exit_code == 0
    assert "The report could not be written: disk full." in done.output
    assert (tmp_path / "run/checkpoint").is_dir()


def test_a_report_can_be_left_out_and_written_later(tmp_path: Path, reports: None) -> None:
    done = _demo(tmp_path / "run", "--no-report")
    assert done.exit_code == 0
    assert not (tmp_path / "run/report.html").exists()
    later = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert later.exit_code == 0, later.output
    assert (tmp_path / "run/report.html").is_file()


def test_provenance_of_a_run_that_is_not_under_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert provenance.commit(tmp_path) is None
    provenance.begin(tmp_path, inputs={"--data": None})
    assert json.loads((tmp_path / "provenance.json").read_text())["git"] is None


def test_a_folder_has_one_sum_over_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "pdbs"
    folder.mkdir()
    for name in "ba":
        (folder / f"{name}.pdb").write_text(name)
    provenance.begin(tmp_path, inputs={"--pdbs": "pdbs"})
    assert not provenance.read(tmp_path)["files"]
    provenance.begin(tmp_path, inputs={"--pdbs": str(folder)})
    found = provenance.read(tmp_path)["files"][str(folder)]
    sums = subprocess.check_output(["sha256sum", "a.pdb", "b.pdb"], cwd=folder)
    assert found == {"files": 2, "size": 2, "sha256": hashlib.sha256(sums).hexdigest()}
    (folder / "deeper").mkdir()
    provenance.begin(tmp_path, inputs={"--pdbs": str(folder)})
    assert provenance.read(tmp_path)["files"][str(folder)] == {"files": 3}


@pytest.mark.parametrize(
    ("files", "said", "unsaid"),
    [
        ({}, "Random: equal inputs stay together", "of its own"),
        ({"test": "t.csv"}, "Within the data alone: the test part is a file of its own.", "parts"),
        (
            {"test": "t.csv", "val": "v.csv"},
            "Split. The validation part and the test part are files of their own.",
            "Random",
        ),
    ],
)
def test_a_split_is_said_of_the_rows_that_it_split(
    files: dict[str, str], said: str, unsaid: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run")
    run = FinishedRun(folder)
    run.config.update(files)
    text = " ".join(block.text for block in data_section._split(run))
    assert said in text
    assert unsaid not in text


def test_a_large_structure_leaves_room_for_the_others(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FinishedRun(written)
    found = run.predicted(run.heads[0], "test")
    assert found is not None
    sizes = {found.ids[0]: structures.MOST_TEXT + 1, found.ids[1]: 9, found.ids[2]: 9}
    monkeypatch.setattr(structures, "samples", lambda *_: {})
    monkeypatch.setattr(structures, "_model", lambda _, name, *__: ("x" * sizes[name], "chain", 0))
    shown = structures._models(run, found, [0, 1, 2], written)
    assert [len(model.text) for model in shown] == [9, 9]


def test_cost_and_warnings_are_those_of_this_run_and_of_its_processes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = "{0}:00,000 WARNING molfun.data: {1}\n{0}:01,000 INFO molfun.training.engine: epoch=1\n"
    lines += "{0}:05,000 INFO molfun.training.engine: epoch=2\n"
    texts = ("2026-11-27 12:00", "replaced"), ("2026-11-28 12:00", "own")
    after = "2026-11-29 12:00:03,000 INFO molfun.training.engine: epoch=3\n"
    (run / "run.log").write_text("".join(lines.format(*text) for text in texts) + after)
    times = {"log_from": "2026-11-28 11:59:58", "resumed_at": ["2026-11-29 11:59:59"]}
    (run / "provenance.json").write_text(json.dumps(times))
    text = read(write_report(run).parent).text
    assert "own" in text
    assert "replaced" not in text
    assert "per epoch (median) 4 s" in " ".join(text.split())


def test_provenance_keeps_when_a_run_began_and_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day, resumed in ((1, False), (2, True), (3, True)):
        monkeypatch.setattr(provenance, "IMPORTED", datetime.datetime(2026, 1, day))
        provenance.begin(tmp_path, inputs={}, resumed=resumed)
    found = provenance.read(tmp_path)
    assert found["log_from"] == "2026-01-01 00:00:00"
    assert found["resumed_at"] == ["2026-01-02 00:00:00", "2026-01-03 00:00:00"]
    provenance.begin(tmp_path, inputs={}, resumed=False)
    assert provenance.read(tmp_path)["log_from"] == "2026-01-03 00:00:00"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_it_without_an_error(family: tuple[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    _, run = family
    for colours in ("0", "1"):  # dark and light, as blink numbers them
        picture = tmp_path / f"{colours}.png"
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
             "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
             "--window-size=1200,3000", "--virtual-time-budget=5000", "--enable-logging=stderr",
             f"--blink-settings=preferredColorScheme={colours}", f"--user-data-dir={tmp_path}/user",
             f"--screenshot={picture}", (run / "report.html").as_uri()],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not [line for line in said if "GPU stall" not in line]
        pixels = Image.open(picture).convert("L")
        dark = pixels.getpixel((5, 5)) < 128
        assert dark == (colours == "0")
        assert len(pixels.resize((60, 150)).getcolors() or range(256)) > 20, "an empty page"

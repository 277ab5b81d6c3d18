"""Studies: draws that depend on the trial alone, kills at any moment, several processes."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError, MissingDependencyError, RunError
from molfun.tuning import Space, Study, StudyResults, Trial
from molfun.tuning.claims import Claims

optuna = pytest.importorskip("optuna", reason="pip install 'molfun[tune]'")

SPACE = {
    "x": {"low": -1.0, "high": 1.0},
    "kind": {"a": None, "b": {"n": {"low": 1, "high": 3}}},
}


def bowl(trial: Trial) -> float:
    for step in (1, 2, 3):
        trial.report(trial["x"] ** 2 + 1 / step, step)
    return trial["x"] ** 2 + (trial["kind"] == "a")


def ends(study: StudyResults) -> list[Any]:
    return [(t.number, t.state, t.value, t.settings, t.reported, t.error) for t in study.trials]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[Any]:
    study = Study(tmp_path / "undisturbed", SPACE, bowl)
    study.run(16)
    return ends(study)


def test_a_study_finds_the_minimum_and_keeps_a_table(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, bowl)
    ended: list[int] = []
    best = study.run(16, on_end=lambda trial: ended.append(trial.number))
    assert ended == list(range(16))
    assert best == min((t for t in study.trials if t.state == "complete"), key=lambda t: t.value)
    assert {t.state for t in study.trials} == {"complete", "pruned"}
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "trial", "state", "val/loss", "x", "kind", "n", "epochs_or_folds", "seconds", "error",
    ]  # fmt: skip
    for row, trial in zip(rows, study.trials, strict=True):
        assert float(row["x"]) == trial.settings["x"]
        assert row["n"] == str(trial.settings.get("n", ""))
    assert set(study.importances()[""]) == {"x", "kind"}
    assert study.run(16) == best  # there are enough already


def test_the_largest_value_is_the_best_where_it_is_asked_for(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, bowl, direction="maximize", pruning="off", sampler="random")
    best = study.run(6)
    assert best.value == max(t.value for t in study.trials)
    assert [t.state for t in study.trials] == ["complete"] * 6


def test_pruning_ends_what_is_worse_than_half_of_the_others(tmp_path: Path) -> None:
    study = Study(tmp_path / "pruned", SPACE, bowl)
    study.run(16)
    done: list[Any] = []
    for trial in study.trials:
        worse = (
            len(done) >= 5
            and trial.reported[2] > sorted(t.reported[2] for t in done)[len(done) // 2]
        )
        if worse:  # an even number has its median between two
            assert trial.state == "pruned"
            assert sorted(trial.reported) == [1, 2]
        if trial.state == "complete":
            done.append(trial)
    assert len(done) < 16
    off = Study(tmp_path / "off", SPACE, bowl, pruning="off")
    off.run(16)
    assert [t.state for t in off.trials] == ["complete"] * 16


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_trial_that_was_stopped_is_run_again_with_the_same_settings(
    at: int, tmp_path: Path, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before it draws, between two draws, and after reports."""

    def stopped(trial: Trial) -> float:
        if at == 2 and trial.number in (3, 11) and not (tmp_path / str(trial.number)).exists():
            (tmp_path / str(trial.number)).touch()
            trial.report(trial["x"] ** 2 + 1, 1)
            raise KeyboardInterrupt
        return bowl(trial)

    draws = optuna.trial.Trial._suggest
    left = [4, 12] if at == 0 else [9, 30]

    def suggest(self: Any, *arguments: Any) -> Any:
        left[0] -= 1
        if at < 2 and left[0] == 0:
            left.pop(0)
            left.append(-1)
            raise KeyboardInterrupt
        return draws(self, *arguments)

    monkeypatch.setattr(optuna.trial.Trial, "_suggest", suggest)
    starts = 0
    for _ in range(5):
        study = Study(tmp_path / "stopped", SPACE, stopped)
        starts += 1
        try:
            study.run(16)
        except KeyboardInterrupt:
            continue
        break
    assert starts == 3
    assert ends(study) == undisturbed


def test_an_entry_that_was_cut_short_is_left_out(tmp_path: Path, undisturbed: list[Any]) -> None:
    Study(tmp_path / "cut", SPACE, bowl).run(7)
    with (tmp_path / "cut/journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"worker_i')
    study = Study(tmp_path / "cut", SPACE, bowl)
    study.run(16)
    assert ends(study) == undisturbed


def test_failed_trials_are_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    def fragile(trial: Trial) -> float:
        if trial.number == 0:
            raise ValueError("too large.\nmore")
        return math.nan if trial.number == 1 else trial["x"] ** 2

    study = Study(tmp_path, SPACE, fragile)
    study.run(4)
    assert [t.state for t in study.trials] == ["failed", "failed", "complete", "complete"]
    assert study.trials[0].error == "ValueError: too large"
    assert study.trials[1].error == "val/loss is nan in every epoch"
    with pytest.raises(RunError) as raised:
        Study(tmp_path / "all", SPACE, lambda trial: [].index(trial.number)).run(3)
    assert str(raised.value) == (
        "No trial succeeded: 3 of 3 failed, first trial 0: ValueError: 0 is not in list."
    )
    returned = Study(tmp_path / "none", SPACE, lambda trial: None)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="The objective must return a number or a History, got Non"):
        returned.run(1)


def test_another_study_in_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    Study(tmp_path, SPACE, bowl, about={"base": {"epochs": 3}}).run(1)
    with pytest.raises(RunError) as raised:
        Study(tmp_path, SPACE, bowl, about={"base": {"epochs": 4}})
    assert str(raised.value) == (
        f"{tmp_path} holds a study of another base (base.epochs was 3 and is 4). Repeat its "
        f"settings to go on with it, or choose another output folder."
    )
    other = {**SPACE, "x": {"low": -2.0, "high": 1.0}}
    with pytest.raises(RunError, match=r"of another space \(space.x.low was -1.0 and is -2.0\)"):
        Study(tmp_path, other, bowl, about={"base": {"epochs": 3}})
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RunError, match=r"study.json is damaged. Choose another output folder, or"):
        Study(tmp_path, SPACE, bowl)
    (tmp_path / "study.json").unlink()
    with pytest.raises(RunError, match=r"holds journal.log and trials.csv, which no study wrote."):
        Study(tmp_path, SPACE, bowl)
    with pytest.raises(RunError, match=r"nowhere holds no study: study.json is missing."):
        StudyResults(tmp_path / "nowhere")


def test_wrong_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"sampler 'tpa'; known: random, tpe. Did you mean 'tpe'\?"
    ):
        Study(tmp_path, SPACE, bowl, sampler="tpa")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trials must be a whole number of at least 1, got 0."):
        Study(tmp_path, SPACE, bowl).run(0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"Install it: pip install 'molfun\[tune\]'"):
        Study(tmp_path, SPACE, bowl)


def test_a_fit_reports_its_epochs_and_shares_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from molfun.training.forward import ForwardPass

    data = SequenceDataset.from_list([(a + b, float(a < b)) for a in "ACDEF" for b in "GHIK"])
    ran: list[int] = []
    whole = ForwardPass.whole

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        ran.append(1)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(ForwardPass, "whole", counted)

    def objective(trial: Trial) -> Any:
        model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
        return model.fit(
            data.subset(range(16)), data.subset(range(16, 20)), epochs=trial["epochs"],
            strategy=HeadOnlyFinetune(lr=trial["lr"]), callbacks=[trial], cache=trial.cache,
        )  # fmt: skip

    space = Space.of({"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "epochs": [2, 3]})
    study = Study(tmp_path, space, objective, pruning="off")
    best = study.run(3)
    assert [len(t.reported) for t in study.trials] == [t.settings["epochs"] for t in study.trials]
    assert best.value == min(best.reported.values())
    assert len(ran) == len(data)


SCRIPT = """
import sys, time
from molfun.tuning import Study
def objective(trial):
    time.sleep(0.3)
    return trial["x"] ** 2
Study(sys.argv[1], {"x": {"low": -1.0, "high": 1.0}}, objective).run(int(sys.argv[2]))
"""


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(trials)])


def n_trials(folder: Path) -> int:
    path = folder / "trials.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def wait_for(folder: Path, n: int) -> None:
    deadline = time.monotonic() + 240
    while n_trials(folder) < n:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_studies_have_the_same_trials(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 14).wait() == 0
    for n in (2, 8, 12):
        process = start(tmp_path / "killed", 14)
        wait_for(tmp_path / "killed", n)
        # in a trial, however fast the machine is
        while not any(t.state == "running" for t in StudyResults(tmp_path / "killed").trials):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert any(t.state == "running" for t in StudyResults(tmp_path / "killed").trials)
    assert start(tmp_path / "killed", 14).wait() == 0
    assert ends(StudyResults(tmp_path / "killed")) == ends(StudyResults(tmp_path / "whole"))


@pytest.mark.slow
def test_a_process_runs_what_another_one_left(tmp_path: Path) -> None:
    killed, stays = (start(tmp_path, 24) for _ in range(2))
    wait_for(tmp_path, 6)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert stays.wait() == 0
    trials = StudyResults(tmp_path).trials
    assert [t.number for t in trials] == list(range(24))
    assert {t.state for t in trials} == {"complete"}


def test_a_claim_belongs_to_one_process(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as claims, claims.alone():
        assert claims.take(3)
        code = (
            "import sys; from pathlib import Path; from molfun.tuning.claims import Claims\n"
            f"with Claims(Path({str(tmp_path / 'claims')!r})) as claims:\n"
            "    print(claims.take(3), claims.take(4))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.split() == ["False", "True"]


def test_claims_of_one_process_exclude_each_other_and_outlive_each_other(tmp_path: Path) -> None:
    path = tmp_path / "claims.lock"
    other = [sys.executable, "-c", f"""
from pathlib import Path
from molfun.tuning.claims import Claims
with Claims(Path({str(path)!r})) as claims:
    print(claims.take(3), claims.take(4))
"""]  # fmt: skip

    def elsewhere() -> str:
        return subprocess.run(other, capture_output=True, text=True, check=True).stdout

    with Claims(path) as first:
        assert first.take(3)
        with Claims(path) as second:
            assert not second.take(3)
            assert second.take(4)
            assert elsewhere() == "False False\n"
        # the second closed what both have open
        assert elsewhere() == "False True\n"
        first.drop(3)
        assert elsewhere() == "True True\n"
    assert not Claims._opened

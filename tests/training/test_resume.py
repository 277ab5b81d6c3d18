"""Exact resume: killed anywhere, a run goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from fit_runs import BATCHES, EPOCHS, N_SAMPLES, STRATEGY, Crash, Outcome, run_fit

from molfun.errors import CheckpointError, ConfigError, MolfunError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.runs.resume import read_state, write_state
from molfun.training import Callback, FullFinetune, HeadOnlyFinetune, PartialFinetune
from molfun.training.callbacks import CSVLog
from molfun.training.interrupt import Interrupted

HERE = Path(__file__).parent
TOTAL = BATCHES * EPOCHS


def check_continues(expected: Outcome, resumed: Outcome, *, after: int) -> None:
    """The resumed run did what was left, and came to the same end bit by bit."""
    assert resumed.order == expected.order[after:]
    assert resumed.same_results(expected)


def done_batches(folder: Path) -> int:
    """Training batches that the stored state has behind it."""
    fit = read_state(folder / "resume")["fit"]
    return int(fit["epoch"]) * BATCHES + int(fit["batch"])


def open_gradients(folder: Path) -> int:
    """Number of gradients of an open window in the stored state."""
    return len(read_state(folder / "resume")["progress"]["gradients"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that was never stopped."""
    return run_fit(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that crashed in its second batch; not to be changed."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.raises(Crash):
        run_fit(folder, stop_at=2)
    return folder


# --- the same run, told apart by nothing but the seed --------------------------------------------


def test_the_reference_run_is_worth_comparing(uninterrupted: Outcome) -> None:
    assert len(uninterrupted.order) == TOTAL
    epochs = [uninterrupted.order[i * BATCHES : (i + 1) * BATCHES] for i in range(EPOCHS)]
    assert all(sorted(e) == [f"s{i}" for i in range(N_SAMPLES)] for e in epochs)
    assert len({tuple(e) for e in epochs}) == EPOCHS, "every epoch has its own order"
    assert [row["steps"] for row in uninterrupted.history] == [3, 6]


def test_the_same_seed_gives_the_same_bits(uninterrupted: Outcome) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    again = run_fit(None)
    assert again.order == uninterrupted.order
    assert again.same_results(uninterrupted)


def test_another_seed_gives_another_run(uninterrupted: Outcome) -> None:
    other = run_fit(None, seed=6)
    assert other.order != uninterrupted.order
    assert not other.same_results(uninterrupted)


def test_the_seed_decides_dropout_too() -> None:
    """Same order of samples (one), other dropout."""
    strategy = replace(STRATEGY, accumulation_steps=1)
    losses = {
        run_fit(None, seed=seed, strategy=strategy, epochs=1, max_steps=1).history[0]["val_loss"]
        for seed in range(3)
    }
    assert len(losses) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(uninterrupted: Outcome, num_workers: int) -> None:
    assert run_fit(None, num_workers=num_workers).same_results(uninterrupted)


# --- stopped anywhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [3, 8, 12, TOTAL])
def test_a_crash_in_any_batch(tmp_path: Path, uninterrupted: Outcome, stop_at: int) -> None:
    """The state is that of the batch before, in or between windows, or at an epoch's end."""
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=stop_at)
    assert done_batches(tmp_path) == stop_at - 1
    in_window = (stop_at - 1) % BATCHES % 3
    assert bool(open_gradients(tmp_path)) == bool(in_window)
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=stop_at - 1)


def test_crash_after_crash(tmp_path: Path, uninterrupted: Outcome) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=5)
    for _ in range(2):
        with pytest.raises(Crash):
            run_fit(tmp_path, resume=True, stop_at=5)
    assert done_batches(tmp_path) == 12
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=12)


def test_a_crash_in_validation(tmp_path: Path, uninterrupted: Outcome) -> None:
    class CrashInValidation(Callback):
        def on_validation_start(self, n_batches: int) -> None:
            raise Crash

    with pytest.raises(Crash):
        run_fit(tmp_path, callbacks=[CrashInValidation()])
    assert done_batches(tmp_path) == BATCHES
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=BATCHES)


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=1e-2, ema_decay=0.9, accumulation_steps=2, warmup_ratio=0.2),
        PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3, accumulation_steps=3, ema_decay=0.9),
        FullFinetune(lr=1e-4, accumulation_steps=4, scheduler="linear"),
        replace(STRATEGY, use_dora=True, ema_decay=0.0, early_stopping_patience=2),
    ],
    ids=["head_only", "partial", "full", "dora"],
)
def test_every_strategy_resumes(tmp_path: Path, strategy: Any) -> None:
    expected = run_fit(None, strategy=strategy, epochs=1)
    with pytest.raises(Crash):
        run_fit(tmp_path, strategy=strategy, epochs=1, stop_at=6)
    resumed = run_fit(tmp_path, strategy=strategy, epochs=1, resume=True)
    check_continues(expected, resumed, after=5)


def test_only_windows_are_saved_by_default(tmp_path: Path, uninterrupted: Outcome) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=13, save_every_batch=False)
    assert done_batches(tmp_path) == BATCHES, "the end of the last epoch"
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=BATCHES)


def test_save_every_steps(tmp_path: Path, uninterrupted: Outcome) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=6, save_every_batch=False, save_every_steps=1)
    assert done_batches(tmp_path) == 3, "the end of the first window"
    assert open_gradients(tmp_path) == 0
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=3)


BY_LENGTH = {"batch_size": 3, "max_cost": 2 * 10.0**3}


@pytest.mark.parametrize("stop_at", [2, 7])
def test_batches_by_length_resume(tmp_path: Path, stop_at: int) -> None:
    """In the first and in the second of two epochs of four batches."""
    expected = run_fit(tmp_path / "whole", by_length=BY_LENGTH)
    assert [row["steps"] for row in expected.history] == [2, 4]
    with pytest.raises(Crash):
        run_fit(tmp_path / "killed", by_length=BY_LENGTH, stop_at=stop_at)
    fit = read_state(tmp_path / "killed" / "resume")["fit"]
    assert (fit["epoch"], fit["batch"]) == divmod(stop_at - 1, 4)
    resumed = run_fit(tmp_path / "killed", by_length=BY_LENGTH, resume=True)
    assert 0 < len(resumed.order) < len(expected.order)
    check_continues(expected, resumed, after=len(expected.order) - len(resumed.order))


def test_other_batches_are_no_resume(tmp_path: Path, started: Path) -> None:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError) as caught:
        run_fit(tmp_path, resume=True, by_length={"batch_size": 1})
    assert str(caught.value).splitlines()[1:-1] == [
        "  batches by length: None in the run, {'batch_size': 1, 'power': 3.0, 'max_cost': None, "
        "'shuffle': True} now"
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_inside_an_accumulation_window(
    tmp_path: Path, uninterrupted: Outcome, num_workers: int
) -> None:
    settings = {"stop_at": 12, "number": int(signal.SIGKILL), "num_workers": num_workers}
    killed = warm.run(HERE / "fit_runs.py", tmp_path, json.dumps(settings))
    assert killed.returncode == -signal.SIGKILL
    assert done_batches(tmp_path) == 11
    assert open_gradients(tmp_path) > 0
    resumed = _resume_when_workers_are_gone(tmp_path, num_workers=num_workers)
    check_continues(uninterrupted, resumed, after=11)


def _resume_when_workers_are_gone(folder: Path, **options: Any) -> Outcome:
    """Loader workers notice within five seconds that their process was killed."""
    for _ in range(40):
        try:
            return run_fit(folder, resume=True, **options)
        except RunError as error:
            if "is in use by process" not in str(error):
                raise
            time.sleep(0.5)
    raise AssertionError("the lock of a dead process was never given up")


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_signal_stops_between_two_batches(
    tmp_path: Path, uninterrupted: Outcome, number: signal.Signals, exit_code: int, stop_at: int
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted) as caught:
        run_fit(tmp_path, stop_at=stop_at, number=number, save_every_batch=False)
    assert caught.value.exit_code == exit_code
    steps = {5: 1, 7: 3}[stop_at]
    assert str(caught.value) == (
        f"Stopped by signal {int(number)} in epoch 1 after {steps} optimizer steps. "
        "Resume to go on."
    )
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert done_batches(tmp_path) == stop_at, "the batch was finished"
    assert bool(open_gradients(tmp_path)) == (stop_at == 5)
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=stop_at)


def test_a_signal_without_a_folder_says_that_nothing_was_kept() -> None:
    with pytest.raises(Interrupted, match=r"No output_dir: nothing was kept\.$"):
        run_fit(None, stop_at=1, number=signal.SIGTERM)


class SignalInValidation(Callback):
    """Send SIGTERM at the start of the validation of one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.seen = epoch, 0

    def on_validation_start(self, n_batches: int) -> None:
        self.seen += 1
        if self.seen == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_validation_stops_at_the_end_of_the_epoch(
    tmp_path: Path, uninterrupted: Outcome
) -> None:
    with pytest.raises(Interrupted, match="Stopped by signal 15 in epoch 2 after 3 optimizer"):
        run_fit(tmp_path, callbacks=[SignalInValidation(1)])
    assert done_batches(tmp_path) == BATCHES
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=BATCHES)


def test_a_signal_in_the_last_validation_comes_too_late(
    tmp_path: Path, uninterrupted: Outcome
) -> None:
    finished = run_fit(tmp_path, callbacks=[SignalInValidation(EPOCHS)])
    assert finished.same_results(uninterrupted)


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    class Twice(Callback):
        def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
            signal.raise_signal(signal.SIGINT)  # handled before it returns, unlike os.kill
            signal.raise_signal(signal.SIGINT)

    # a shell starts background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run_fit(tmp_path, callbacks=[Twice()])
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Interrupted)


def test_a_signal_with_the_last_step_of_max_steps(tmp_path: Path) -> None:
    expected = run_fit(tmp_path / "whole", max_steps=4)
    assert expected.stopped == "max_steps"
    with pytest.raises(Interrupted):
        run_fit(tmp_path / "killed", max_steps=4, stop_at=10, number=signal.SIGTERM)
    resumed = run_fit(tmp_path / "killed", max_steps=4, resume=True)
    assert resumed.order == []
    assert resumed.same_results(expected)


# --- what cannot be resumed ----------------------------------------------------------------------


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    expected = run_fit(tmp_path)
    state = (tmp_path / "resume" / "state.pt").read_bytes()
    again = run_fit(tmp_path, resume=True)
    assert again.order == []
    assert again.same_results(expected)
    assert (tmp_path / "resume" / "state.pt").read_bytes() == state


@pytest.mark.parametrize("with_val", [True, False])
def test_a_finished_run_without_validation_too(tmp_path: Path, with_val: bool) -> None:
    expected = run_fit(tmp_path, with_val=with_val, epochs=1)
    again = run_fit(tmp_path, with_val=with_val, epochs=1, resume=True)
    assert again.same_results(expected)


@pytest.mark.parametrize("left", [[], ["resume/"], ["run.log", ".lock", "history.csv"]])
def test_a_run_that_was_killed_before_its_first_state_begins(
    tmp_path: Path, uninterrupted: Outcome, caplog: pytest.LogCaptureFixture, left: list[str]
) -> None:
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=0)
    assert (
        f"{tmp_path / 'resume'} holds no state yet: the run starts from its beginning."
    ) in caplog.messages


def test_what_such_a_run_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "best-1.safetensors").touch()
    (tmp_path / "history.csv").write_text("epoch,train_loss\n")
    run_fit(tmp_path, epochs=1)
    with pytest.raises(RunError, match=r"already holds a run \(checkpoint, resume, history\.csv\)"):
        run_fit(tmp_path, epochs=1)


class DieAtTheStart(Callback):
    def on_fit_start(self, plan: Any, history: Any) -> None:
        raise Crash


def test_a_run_killed_before_its_first_state_begins_on_resume(
    tmp_path: Path, uninterrupted: Outcome
) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, callbacks=[DieAtTheStart()])
    assert not (tmp_path / "resume/state.pt").exists()
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=0)


def test_a_run_killed_right_after_its_set_up_has_a_state(
    tmp_path: Path, uninterrupted: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=1)
    assert done_batches(tmp_path) == 0
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=0)
    assert "The run was stopped during its set-up: it starts from its beginning." in caplog.messages


@pytest.mark.parametrize("name", ["checkpoint/manifest.json", "weights.safetensors"])
def test_results_whose_state_is_lost_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(RunError) as caught:
        run_fit(tmp_path, resume=True)
    assert str(caught.value) == (
        f"Nothing to resume: {tmp_path} holds {name.split('/')[0]}, and the state of that run, "
        "resume/state.pt, is missing. Put it back, replace the run with overwrite=True "
        "(--overwrite), or choose another output folder."
    )


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("checkpoint/notes.txt", "checkpoint/notes.txt"),
        ("resume", "resume"),
        ("history.csv/x", "history.csv"),
    ],
)
def test_other_things_under_the_names_of_a_run_are_never_replaced(
    tmp_path: Path, place: str, wrong: str
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match=rf"under the names of a run \({wrong}\), which would"):
            run_fit(tmp_path, **options)
    assert (tmp_path / place).read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunError, match="run is not a folder"):
        run_fit(tmp_path / "run")
    with pytest.raises(ConfigError, match="loop: Too many levels of symbolic links"):
        run_fit(tmp_path / "loop")


def test_resume_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="resume=True needs output_dir"):
        run_fit(None, resume=True)


def test_other_settings_are_listed_and_refused(tmp_path: Path, started: Path) -> None:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    other = replace(STRATEGY, lr_lora=5e-3, warmup_steps=0)
    with pytest.raises(RunError) as caught:
        run_fit(tmp_path, resume=True, seed=9, strategy=other, epochs=3)
    assert str(caught.value) == (
        f"{tmp_path / 'resume'} was started with other settings, so resuming would not continue "
        "it:\n"
        "  epochs: 2 in the run, 3 now\n"
        "  seed: 5 in the run, 9 now\n"
        "  strategy.lr_lora: 0.01 in the run, 0.005 now\n"
        "  strategy.warmup_steps: 1 in the run, 0 now\n"
        "Repeat the settings of the run. To train on with others, start a new run from its "
        f"checkpoint: --init-from {tmp_path / 'checkpoint'} with another --output, or in Python "
        "from_checkpoint(...).fit(...)."
    )


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"seed": 1}, "base weights: "),
        ({"head_config": {"dropout": 0.0}}, "head: "),
        ({"task_config": {"loss": "mae"}}, "task: "),
    ],
)
def test_another_model_is_refused(
    tmp_path: Path,
    started: Path,
    tiny_model: Callable[..., MolfunStructureModel],
    settings: dict[str, Any],
    difference: str,
) -> None:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError, match="was started with other settings") as caught:
        run_fit(tmp_path, resume=True, model=tiny_model(**settings))
    assert difference in str(caught.value)


def _cut(part: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * part)]


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch was_here",))


@pytest.mark.parametrize(
    "damage",
    [
        _cut(0.0),
        _cut(0.001),
        _cut(0.5),
        lambda content: content[:-1],
        lambda content: b"not a checkpoint at all",
        lambda content: os.urandom(1000),
        lambda content: pickle.dumps(Evil()),
        lambda content: pickle.dumps({"format": 1}),
    ],
    ids=["empty", "start", "half", "short", "text", "noise", "code", "plain pickle"],
)
def test_a_damaged_state_is_named(
    tmp_path: Path,
    started: Path,
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "resume" / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MolfunError) as caught:
        run_fit(tmp_path, resume=True)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("content", [{}, {"format": 3}, [1, 2], torch.zeros(2)])
def test_a_state_of_another_format_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt has format .*; this version of Molfun"):
        read_state(tmp_path)


def test_a_state_that_lacks_parts_is_named(tmp_path: Path) -> None:
    write_state(tmp_path, {"identity": {}, "weights": {}, "fit": {"best_epoch": 0}})
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged: it lacks average, random\."):
        read_state(tmp_path)


@pytest.fixture(scope="module")
def in_second_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that crashed in its second epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("second")
    with pytest.raises(Crash):
        run_fit(folder, stop_at=BATCHES + 2)
    return folder


@pytest.mark.parametrize("name", ["state.pt", "best-1.safetensors"])
@pytest.mark.parametrize("where", [0.3, 0.5, 0.9])
def test_a_flipped_bit_is_found_before_training(
    tmp_path: Path, in_second_epoch: Path, name: str, where: float
) -> None:
    shutil.copytree(in_second_epoch, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "resume" / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 64
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        run_fit(tmp_path, resume=True)
    assert str(caught.value) == (
        f"{path} is damaged (checksum): its content is not what was written. Put back a copy of "
        f"it, or start the run again in its place with overwrite=True (--overwrite)."
    )


def test_lost_best_weights_are_found_out_before_training(
    tmp_path: Path, in_second_epoch: Path
) -> None:
    shutil.copytree(in_second_epoch, tmp_path, dirs_exist_ok=True)
    (tmp_path / "resume" / "best-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No such file: .*best-1\.safetensors"):
        run_fit(tmp_path, resume=True)


def test_best_weights_of_another_run_are_found_out(tmp_path: Path, in_second_epoch: Path) -> None:
    shutil.copytree(in_second_epoch, tmp_path / "one")
    with pytest.raises(Crash):
        run_fit(tmp_path / "two", stop_at=BATCHES + 2, seed=8)
    path = tmp_path / "one" / "resume" / "best-1.safetensors"
    shutil.copy(tmp_path / "two" / "resume" / path.name, path)
    with pytest.raises(CheckpointError) as caught:
        run_fit(tmp_path / "one", resume=True)
    assert str(caught.value).startswith(
        f"{path} is not the file that state.pt next to it was written with (checksum)"
    )


def test_a_crash_between_best_weights_and_state_leaves_a_pair(
    tmp_path: Path, uninterrupted: Outcome, in_second_epoch: Path
) -> None:
    """The state is that of epoch 2, the weights of its end are on disk already."""
    shutil.copytree(in_second_epoch, tmp_path, dirs_exist_ok=True)
    best = tmp_path / "resume" / "best-1.safetensors"
    shutil.copy(best, best.with_name("best-2.safetensors"))
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=BATCHES + 1)
    assert len(list(best.parent.glob("best*"))) == 1


def test_a_state_of_the_format_without_checksums_is_read_with_a_warning(
    tmp_path: Path,
    uninterrupted: Outcome,
    in_second_epoch: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(in_second_epoch, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "resume"
    content = {**read_state(folder), "format": 1}
    del content["fit"]["best_sha256"]
    torch.save(content, folder / "state.pt")
    (folder / "best-1.safetensors").rename(folder / "best.safetensors")
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=BATCHES + 1)
    (text,) = [text for text in caplog.messages if "carries no checksum" in text]
    assert text.startswith(f"{folder / 'state.pt'} was written by an older version of Molfun")


def test_a_state_of_today_without_its_checksum_is_damaged(
    tmp_path: Path, in_second_epoch: Path
) -> None:
    torch.save(read_state(in_second_epoch / "resume"), tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"is damaged \(checksum\): it carries none"):
        read_state(tmp_path)


def test_leftovers_of_writers_are_swept_when_a_run_begins(
    tmp_path: Path, in_second_epoch: Path
) -> None:
    shutil.copytree(in_second_epoch, tmp_path, dirs_exist_ok=True)
    left = [
        tmp_path / "resume" / ".state.pt.ffffffff-1-1.abcdefgh.tmp",
        tmp_path / ".checkpoint.ffffffff-1-1.abcdefgh.tmp",
    ]
    for path in left:
        path.touch()
    (tmp_path / ".notes.tmp").touch()
    run_fit(tmp_path, resume=True)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == [".notes.tmp"]


def test_a_full_disk_stops_the_run_with_the_old_state_intact(
    tmp_path: Path, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save
    writes: list[Any] = []

    def save(content: Any, file: Any, **options: Any) -> None:
        writes.append(file)
        original(content, file, **options)
        if len(writes) == 6:  # the first is that of the set-up
            file.truncate(100)
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(RunError, match=r"Disk full while writing .*state\.pt"):
            run_fit(tmp_path)
    assert done_batches(tmp_path) == 4
    check_continues(uninterrupted, run_fit(tmp_path, resume=True), after=4)


# --- what else is restored -----------------------------------------------------------------------


def test_patience_and_best_score_survive(tmp_path: Path) -> None:
    strategy = replace(STRATEGY, early_stopping_patience=1, lr_lora=0.3)
    expected = run_fit(None, strategy=strategy, epochs=9)
    assert expected.stopped == "early_stopping"
    last = len(expected.order)
    with pytest.raises(Crash):
        run_fit(tmp_path / "killed", strategy=strategy, epochs=9, stop_at=last)
    resumed = run_fit(tmp_path / "killed", strategy=strategy, epochs=9, resume=True)
    check_continues(expected, resumed, after=last - 1)


def test_the_saved_checkpoint_is_the_same_too(tmp_path: Path, uninterrupted: Outcome) -> None:
    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=12)
    run_fit(tmp_path, resume=True)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(weights[n], value) for n, value in uninterrupted.weights.items())


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    files = [p for p in (folder / "checkpoint").rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    "strategy", [STRATEGY, PartialFinetune(unfreeze_last_n=1), HeadOnlyFinetune()]
)
def test_equal_runs_write_equal_checkpoints_also_where_one_was_resumed(
    tmp_path: Path, strategy: Any
) -> None:
    """Byte by byte: no random names, no times, one order."""
    options: dict[str, Any] = {"strategy": strategy, "epochs": 1}
    for name in ("one", "two"):
        run_fit(tmp_path / name, **options)
    with pytest.raises(Crash):
        run_fit(tmp_path / "three", stop_at=5, **options)
    run_fit(tmp_path / "three", resume=True, **options)
    one, two, three = (checkpoint_bytes(tmp_path / name) for name in ("one", "two", "three"))
    assert len(one) >= 6
    assert one == two
    assert one == three


def test_the_csv_log_of_a_resumed_run_is_whole(tmp_path: Path) -> None:
    import pandas as pd

    with pytest.raises(Crash):
        run_fit(tmp_path, stop_at=10, callbacks=[CSVLog(tmp_path / "log.csv")])
    whole = run_fit(tmp_path, resume=True, callbacks=[CSVLog(tmp_path / "log.csv")])
    assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [1, 2]
    assert [row["epoch"] for row in whole.history] == [1, 2]


def test_a_window_that_went_bad_is_still_bad_after_a_resume(tmp_path: Path) -> None:
    """The label of one sample is infinite; the run stops inside its window."""

    def fit(folder: Path, **options: Any) -> Outcome:
        return run_fit(folder, infinite="s3", epochs=1, **options)

    expected = fit(tmp_path / "whole")
    assert expected.history[0]["skipped"] == 1
    place = expected.order.index("s3") + 1
    stop_at = place + 1 if place % 3 else place - 1
    with pytest.raises(Crash):
        fit(tmp_path / "killed", stop_at=stop_at)
    after = done_batches(tmp_path / "killed")
    check_continues(expected, fit(tmp_path / "killed", resume=True), after=after)

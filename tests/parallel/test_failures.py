"""Processes end with each other, and say which one ended first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from molfun.errors import RunError
from molfun.parallel import failures
from molfun.parallel.failures import named_failures
from molfun.parallel.ranks import Ranks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:7", "ended, and"),
        ("gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1ms", "does not answer, and"),
    ],
)
def test_an_error_of_a_message_names_the_process(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setattr(failures, "_not_there", lambda _: [1])
    with pytest.raises(RunError) as caught, named_failures(Ranks(0, 2), "Start again."):
        raise RuntimeError(text)
    assert str(caught.value).startswith(f"Process 1 of 2 (from 0) {said}")
    assert str(caught.value).endswith("Start again.")


@pytest.mark.parametrize(
    "text", ["DataLoader timed out after 2 seconds", "Broken pipe", "CUDA out of memory"]
)
def test_an_error_of_one_process_stays_its_own(text: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{text}$"), named_failures(Ranks(0, 2)):
        raise RuntimeError(text)


def ended(text: str) -> subprocess.CompletedProcess[str]:
    """Return how a process ended that runs these lines, and would sleep for ten minutes."""
    lines = ["import subprocess, sys, time", "from molfun.parallel import failures", text]
    return subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "time.sleep(600)"])],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_a_process_ends_whose_starter_ended_before_it_looked() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = ended(f"failures.watch_parent({gone.pid})")
    assert done.returncode == 1
    assert done.stderr == "The process that started this one ended; this one too.\n"


CHILD = "[subprocess.Popen([sys.executable, '-c', 'raise SystemExit(3)'])]"


@pytest.mark.slow
def test_a_process_whose_child_ended_before_it_joined_ends() -> None:
    done = ended(f"failures.watch_children({CHILD})")
    assert done.returncode == 1
    assert done.stderr == "Process 1 ended with code 3 before it had joined; the others too.\n"


JOINED = """
failures.distributed.is_initialized = lambda: True
failures.distributed.get_backend = lambda: "{backend}"
failures.GRACE = 0.1
"""


@pytest.mark.slow
def test_only_where_messages_may_hang_is_a_process_ended_for_another() -> None:
    hung = ended(f"{JOINED.format(backend='nccl')}\nfailures.watch_children({CHILD})")
    assert hung.returncode == -9
    assert hung.stderr == "Process 1 ended with code 3; the others too.\n"
    ends = "time.sleep(5)\nprint('wrote the report')\nsys.exit()"
    for backend, first in (("gloo", ""), ("nccl", "failures.let_end()")):
        watch = f"{JOINED.format(backend=backend)}\n{first}\nfailures.watch_children({CHILD})"
        done = ended(f"{watch}\n{ends}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "wrote the report\n", "")

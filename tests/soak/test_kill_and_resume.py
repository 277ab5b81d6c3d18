"""A short form of the soak: runs killed at random moments end as runs left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been() -> None:
    command = [sys.executable, str(SCRIPT), "--minutes", "0.5", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split()[-3:] == ["0", "0", "0"]

"""A short form of the soak: runs killed at random moments end as runs left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import warm

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been() -> None:
    done = warm.run(SCRIPT, "--minutes", "0.17", "--seed", "3", check=True)
    assert done.stdout.splitlines()[-1].split()[-3:] == ["0", "0", "0"]

"""What the training tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut tells a synced file from another; syncing takes a third of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)

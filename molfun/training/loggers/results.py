"""Read what a finished run measured, for its trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = "evaluation.json"
"""File with the metrics of a run."""


def final_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the test part by name, ``test/rmse``; empty before they are measured.

    With several heads names begin with that of the head, as in the history: ``test/ddg/rmse``.
    Other parts were logged while training.
    """
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if "heads" not in found:
            return _of_part(found, "test/")
        heads = found["heads"].items()
        return {k: v for name, one in heads for k, v in _of_part(one, f"test/{name}/").items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a tracker is no place to complain about the file


def _of_part(result: Mapping[str, Any], prefix: str) -> dict[str, float]:
    metrics = result.get("parts", {}).get("test", {}).get("metrics", {})
    return {
        prefix + name: float(one["value"])
        for name, one in metrics.items()
        if one.get("value") is not None
    }

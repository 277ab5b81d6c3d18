"""Predictions of baselines are kept in the folder of a run, for the same rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from molfun.evaluation import kept
from molfun.evaluation.baselines import Labelled, predictions_of
from molfun.sample import Sample
from molfun.tasks import MulticlassTask

TASK = MulticlassTask(classes=["E", "H"], level="residue")


def rows(*pairs: tuple[str, str]) -> Labelled:
    samples = [Sample(id=text, sequence=text, target=label) for text, label in pairs]
    return Labelled.of(samples, [TASK.numbers(s.target) for s in samples])


TRAIN, TEST = rows(("MKVA", "HHEE"), ("ACDEA", "EEHHH")), rows(("MKV", "HEE"), ("AC", "EH"))


def test_they_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []

    def count(*given: object) -> kept.Found:
        fitted.append(given)
        return predictions_of(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(kept, "predictions_of", count)
    path = tmp_path / "cache/baselines.safetensors"
    first = kept.kept_predictions(path, TRAIN, [TEST], TASK)
    again = kept.kept_predictions(path, TRAIN, [TEST], TASK)
    assert len(fitted) == 1
    assert set(first) == set(again) == {"mean", "window"}
    for name in first:
        for one, other in zip(first[name][0], again[name][0], strict=True):
            np.testing.assert_array_equal(one, other)
    kept.kept_predictions(path, TRAIN, [rows(("MKV", "HEH"), ("AC", "EH"))], TASK)
    assert len(fitted) == 2, "another label"
    kept.kept_predictions(path, TEST, [TRAIN], TASK)
    assert len(fitted) == 3
    path.write_bytes(path.read_bytes()[:100])
    kept.kept_predictions(path, TEST, [TRAIN], TASK)
    assert len(fitted) == 4, "a damaged file"


def test_a_file_that_cannot_be_written_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    found = kept.kept_predictions(tmp_path / "cache/b.safetensors", TRAIN, [TEST], TASK)
    assert set(found) == {"mean", "window"}
    assert "The predictions of baselines are not kept: " in caplog.text

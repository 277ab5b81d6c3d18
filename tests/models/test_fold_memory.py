"""Memory of folds, predicted before the first one starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from molfun import MolfunStructureModel
from molfun.backbones.openfold import fold_memory
from molfun.backbones.openfold.fold_memory import FoldShape
from molfun.errors import DataError
from molfun.models import fold_memory as planning
from molfun.protein import Protein
from molfun.sample import Sample

MEASURED = [
    # kernels, residues, sequences of the alignment, MB by benchmarks/fold_memory.py
    ("fast", 64, 1, 81),
    ("fast", 128, 1, 175),
    ("fast", 256, 1, 588),
    ("fast", 384, 1, 958),
    ("fast", 512, 1, 2083),
    ("fast", 768, 1, 2359),
    ("fast", 64, 128, 173),
    ("fast", 128, 512, 2979),
    ("fast", 128, 2512, 2491),
    ("fast", 64, 5632, 1234),
    ("stock", 128, 1, 357),
    ("stock", 256, 1, 1343),
    ("stock", 384, 1, 4985),
    ("stock", 128, 2512, 4097),
]


def shape(length: int, depth: int) -> FoldShape:
    rows = min(512, depth)
    return FoldShape(
        length=length, rows=rows + 1, extra=max(1, depth - rows), c_m=256, c_e=64, c_z=128, heads=8
    )


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("openfold", config="tiny", device="cpu")


def free(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda _device: n)


def peak(model: MolfunStructureModel, sample: Sample) -> int:
    return int(model.backbone.fold_memory(sample, 2**60).peak)


@pytest.mark.parametrize(("kernels", "length", "depth", "mb"), MEASURED)
def test_peaks_are_those_measured(kernels: str, length: int, depth: int, mb: float) -> None:
    predicted = fold_memory.peak_bytes(shape(length, depth), fast=kernels == "fast") / 2**20
    assert 0.9 < predicted / mb < 1.4


@pytest.mark.parametrize("fast", [True, False])
def test_the_longest_that_fits_fits(fast: bool) -> None:
    whole = shape(3000, 1)
    n = fold_memory.longest_that_fits(whole, 8 * 2**30, fast=fast)
    peaks = [fold_memory.peak_bytes(shape(m, 1), fast=fast) for m in (n, n + 1)]
    assert peaks[0] <= 8 * 2**30 < peaks[1]
    assert fold_memory.longest_that_fits(whole, 0, fast=fast) == 0


def test_samples_that_do_not_fit_are_refused_at_once(
    model: MolfunStructureModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proteins = {"short": "MKTAY", "long": "MKTAYIAKQR" * 300}
    samples = [Sample(id=n, protein=Protein.from_sequence(s)) for n, s in proteins.items()]
    need = peak(model, samples[1])
    free(monkeypatch, need // 2)
    with pytest.raises(DataError, match=r"^long \(3,000 residues\) takes about") as refused:
        model.fold(samples)
    fits = model.backbone.fold_memory(samples[1], need // 2).fits_up_to
    assert 2000 < fits < 3000
    assert f"are free: up to {fits:,} residues fit here." in str(refused.value)
    with caplog.at_level(logging.WARNING):
        free(monkeypatch, 2 * need)
        assert planning.too_large(model, samples) == {}
        assert not caplog.records
        free(monkeypatch, int(0.9 * need))
        assert planning.too_large(model, samples) == {}
    assert "long takes about" in caplog.text
    assert caplog.text.rstrip().endswith("it may not fit.")


def test_rows_of_an_alignment_count(model: MolfunStructureModel, tmp_path: Path) -> None:
    protein = Protein.from_sequence("MKTAYIAKQR", name="x")
    rows = "".join(f">s{i}\nMKTAYIAK{a}{b}\n" for i, (a, b) in enumerate(pairs(30)))
    (tmp_path / "x.a3m").write_text(f">x\nMKTAYIAKQR\n{rows}")
    sample = Sample(id="x", protein=protein, alignment_dir=tmp_path)
    alone = peak(model, Sample(id="x", protein=protein))
    # as deep as the settings allow, unless that does not fit: then its rows are counted
    whole = peak(model, sample)
    exact = model.backbone.fold_memory(sample, alone).peak
    assert alone < exact < whole


def pairs(n: int) -> list[Any]:
    letters = "ACDEFGHIKL"
    return [(letters[i // 10], letters[i % 10]) for i in range(n)]

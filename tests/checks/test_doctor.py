"""What `molfun doctor` says of a machine, good or broken."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from molfun.checks.doctor import CHECKS, Context, backbones, examine, smoke, threads
from molfun.checks.findings import Finding, worst
from molfun.cli.main import app
from molfun.errors import MissingDependencyError
from molfun.nn import kernels
from molfun.registry import BACKBONES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``molfun doctor`` in an empty folder and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return lambda *flags: CliRunner().invoke(app, ["doctor", "--no-smoke", *map(str, flags)])


def examined(topic: str, **settings: Any) -> list[Finding]:
    found = list(examine(Context(smoke=False, **settings)))
    return [finding for finding in found if finding.topic.startswith(topic)]


def test_one_line_per_topic_and_nothing_left_behind(
    doctor: Callable[..., Result], tmp_path: Path
) -> None:
    done = doctor()
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines[:-1]} <= {"OK", "WARNING"}
    for text in (
        "OK       Molfun: 0.1.0 in ",
        f"OK       torch: {torch.__version__}, built for ",
        f"OK       matrix kernel: {kernels.matrix_kernel()}; differs from float64 by ",
        "OK       backbone openfold: OpenFold; takes structures",
        "WARNING  weights: none in ",
        "WARNING  smoke fit: left out (--no-smoke)",
    ):
        assert any(line.startswith(text) for line in lines), text
    assert lines[-1].endswith(", 0 FAILED")
    assert not list(tmp_path.iterdir())


def test_json_has_the_same_findings(doctor: Callable[..., Result]) -> None:
    document = json.loads(doctor("--json").output)
    assert document["format"] == 1
    assert document["status"] == "WARNING"  # no weights
    topics = [finding["topic"] for finding in document["findings"]]
    assert len(topics) >= len(CHECKS)
    by_topic = dict(zip(topics, document["findings"], strict=True))
    assert by_topic["packages"]["facts"]["torch"] == torch.__version__
    assert by_topic["memory"]["facts"]["free_bytes"] > 0
    assert by_topic["output folder"]["facts"]["folder"].endswith("runs")


def test_a_folder_that_cannot_be_written_fails_and_the_rest_is_said(
    doctor: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    done = doctor("--output", "file/runs")
    assert done.exit_code == 1
    assert "FAILED   output folder: " in done.output
    assert "OK       matrix kernel: " in done.output
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_in_the_output_folder_stays(doctor: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    assert doctor().exit_code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str, path: str) -> None:
        raise MissingDependencyError("esm is needed. Install it: pip install 'molfun[esm]'")

    monkeypatch.setitem(BACKBONES._entries, "esm2", "nowhere:ESM2")
    monkeypatch.setattr(BACKBONES, "_imported", fail)
    found = {finding.topic: finding for finding in backbones.check(Context())}
    assert found["backbone esm2"].status == "WARNING"
    assert found["backbone esm2"].remedy == "pip install 'molfun[esm]'"
    assert found["backbone timeseries"].status == "OK"


def test_weights_have_checksum_and_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "finetuning_ptm_2.pt").write_bytes(b"weights")
    (folder / "mine.safetensors").write_bytes(b"others")
    (folder / "README.md").write_text("not weights")
    known, own = examined("weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert (known.status, own.status) == ("OK", "OK")
    assert known.text == f"OpenFold, 1 kB, CC BY 4.0, sha256 {digest}"
    assert known.facts["sha256"] == digest
    assert "licence not known" in own.text
    (folder / "finetuning_ptm_2.pt.sha256").write_text(f"{'0' * 64}  finetuning_ptm_2.pt\n")
    (folder / "mine.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "a.pt").touch()
    empty, changed, pointer = examined("weights")
    assert {empty.status, changed.status, pointer.status} == {"FAILED"}
    assert empty.text == "is empty"
    assert changed.text.startswith(f"has the sha256 {digest}, and finetuning_ptm_2.pt.sha256 says")
    assert "Git LFS" in pointer.text


def test_a_wrong_product_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda *tensors: right(*tensors) * 1.001)
    (finding,) = examined("matrix kernel")
    assert finding.status == "FAILED"
    assert finding.facts["linear"] > 1e-4 > finding.facts["adapted_linear"]


def test_a_version_outside_of_the_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=99", "numpy>=1", "nosuchpackage>=2", 'fair-esm>=99; extra == "esm"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    (needed,), (optional,) = examined("packages"), examined("optional packages")
    assert needed.status == "FAILED"
    assert needed.remedy == "pip install 'torch>=99' 'nosuchpackage>=2'"
    assert list(needed.examples) == [
        f"torch>=99: found {torch.__version__}",
        "nosuchpackage>=2: found None",
    ]
    assert optional.status == "WARNING"


def test_more_threads_than_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    monkeypatch.setattr(threads, "QUOTA", quota)
    assert threads.processors() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    (finding,) = threads.check(Context())
    assert finding.status == "WARNING"
    assert finding.remedy == "export OMP_NUM_THREADS=1"


def test_a_broken_torch_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: no such file')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "molfun.cli", "doctor"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert not done.stderr
    assert "FAILED   torch: cannot be imported (OSError: libtorch.so: no such file)" in done.stdout
    assert "WARNING  weights: " in done.stdout
    assert "WARNING  device: left out, since torch cannot be imported" in done.stdout
    assert done.stdout.endswith(" 1 FAILED\n")


@pytest.mark.slow
def test_tiny_models_are_trained_saved_and_loaded() -> None:
    found = list(smoke.check(Context(device="cpu")))
    assert [finding.topic for finding in found] == [f"smoke fit {name}" for name in smoke.MODELS]
    assert worst(found) == "OK", [str(finding) for finding in found]


def test_a_fit_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings, _ = smoke.MODELS["esm2"]
    monkeypatch.setattr(smoke, "MODELS", {"esm2": (name, settings, lambda: ["MK!"])})
    (finding,) = smoke.check(Context(device="cpu"))
    assert finding.status == "FAILED"
    assert "Error: " in finding.text

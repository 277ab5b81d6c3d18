"""Labels of structures from the command line: names, virials, vectors."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import PET_TINY

from molfun.models.structure import MolfunStructureModel

Command = Callable[..., Any]


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """``x.xyz`` in the working directory: crystals with a virial, a vector, a tensor, columns."""
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import write

    monkeypatch.chdir(tmp_path)
    found = []
    for i in range(8):
        atoms = bulk("Cu", a=3.5 + 0.05 * i, cubic=True)
        atoms.rattle(0.05, seed=i)
        probe = atoms.copy()
        probe.calc = EMT()
        atoms.info |= {
            "energy": probe.get_potential_energy(),
            "virial": -probe.get_stress(voigt=False) * atoms.get_volume(),
            "centre": atoms.positions.mean(0),
            "inertia": (atoms.positions.T @ atoms.positions).reshape(9),
            "kind": "ab"[i % 2],
        }
        atoms.arrays["force"] = probe.get_forces()
        atoms.arrays["shift"] = atoms.positions - atoms.positions.mean(0)
        found.append(atoms)
    write("x.xyz", found, format="extxyz")
    return found


@pytest.fixture
def tune(molfun: Command, frames: list[Any]) -> Command:
    """Fine-tune a small new PET on the file."""
    small = [f"backbone_config.config.{name}={value}" for name, value in PET_TINY.items()]

    def run(*arguments: object) -> Any:
        return molfun(
            "fine-tune", "--backbone", "pet", *small, "--data", "x.xyz", "--strategy", "head_only",
            "--epochs", 1, "--val-frac", 0.25, "--test-frac", 0, "--output", "run", "--device",
            "cpu", *arguments,
        )  # fmt: skip

    return run


def test_virials_are_trained_and_measured_as_stress(
    tune: Command, molfun: Command, frames: list[Any]
) -> None:
    result = tune("--virial-key", "virial", "--forces-key", "force")
    assert result.exit_code == 0, result.stderr
    assert "is not used" not in result.stderr
    assert "stress_mae=" in result.stdout
    result = molfun("evaluate", "run/checkpoint", "--data", "x.xyz", "--output", "m.json")
    assert result.exit_code == 0, result.stderr
    model = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu")
    predicted = model.predict(frames)["stress"]
    truth = [-a.info["virial"] / a.get_volume() for a in frames]
    error = 1000 * np.abs(np.array(predicted) - np.array(truth)).mean()
    shown = float(result.stdout.partition("stress_mae=")[2].split()[0])
    assert shown == pytest.approx(error, rel=1e-2)


def test_a_virial_is_no_stress(tune: Command) -> None:
    result = tune("--stress-key", "virial")
    assert result.exit_code == 1
    assert "names a virial: an energy (eV), of the other sign" in result.stderr
    assert "--virial-key virial" in result.stderr


def test_what_is_not_used_is_said(tune: Command, molfun: Command) -> None:
    result = tune()
    assert result.exit_code == 0, result.stderr
    for text in (
        "x.xyz: 'force' (3 numbers per atom) in 8 of 8 structures is not used. Use it with "
        "forces_key='force' (--forces-key force).",
        "x.xyz: 'virial' (9 numbers per structure) in 8 of 8 structures is not used. Use it with "
        "virial_key='virial' (--virial-key virial).",
    ):
        assert result.stderr.count(text) == 1
    assert "is not used" in molfun("predict", "run/checkpoint", "--data", "x.xyz").stderr
    result = tune("forces=false", "stress=false", "--overwrite")
    assert "is not used" not in result.stderr


@pytest.mark.parametrize(
    ("key", "arguments", "size"),
    [("centre", (), 3), ("inertia", (), 9), ("shift", ("--level", "residue"), 12)],
)
def test_vectors_and_tensors_are_trained(
    tune: Command, molfun: Command, key: str, arguments: tuple[str, ...], size: int
) -> None:
    result = tune("--head", "mlp", "--target-key", key, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "rmse=" in result.stdout
    assert molfun("evaluate", "run/checkpoint", "--data", "x.xyz").exit_code == 0
    assert molfun("predict", "run/checkpoint", "--data", "x.xyz").exit_code == 0
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [len(row["prediction"].split()) for row in rows] == [size] * 8
    assert [len(row["target"].split()) for row in rows] == [size] * 8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("centre",), "x.xyz, structure 1: 'centre' has 3 numbers per structure, and an energy is "
         "one number per structure. Train it with a head of its own: --head mlp."),
        (("shift",), "--head mlp --level residue."),
        (("shift", "--head", "mlp"), "'shift' has 3 numbers per atom: add --level residue"),
        (("centre", "--head", "mlp", "--level", "residue"), "structure: leave out --level residue"),
        (("kind", "--head", "mlp"), "structure 1: 'kind' is no number. Train on classes with"),
    ],
)  # fmt: skip
def test_a_label_that_does_not_fit_is_named(
    tune: Command, arguments: tuple[str, ...], text: str
) -> None:
    result = tune("--target-key", *arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_elements_of_other_parts_are_told_of(tune: Command) -> None:
    gold = '1\nProperties=species:S:1:pos:R:3 energy=1 pbc="F F F"\nAu 0 0 0\n'
    Path("gold.xyz").write_text(gold)
    result = tune("--val", "gold.xyz")
    assert result.exit_code == 0, result.stderr
    assert "No training structure has Au" in result.stderr

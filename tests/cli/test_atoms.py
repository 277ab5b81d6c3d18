"""Models of atoms from the command line: fine-tune, train, predict, evaluate, export."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml
from tiny import PET_TINY, build_atoms, pair_energy

from molfun.backbones.pet.weights import write_checkpoint
from molfun.cli.from_metatrain import (
    ARCHITECTURE,
    REPORTS,
    REPORTS_TOP,
    TOP,
    TRAINING,
    UNUSED,
    translate,
)
from molfun.cli.settings import FineTuneSettings
from molfun.data.atoms import AtomsDataset
from molfun.errors import ConfigError
from molfun.models.export import export
from molfun.models.structure import MolfunStructureModel
from molfun.training import FullFinetune

Command = Callable[..., Any]

FULL = """
architecture:
  training:
    finetune:
      method: "full" # This stands for the full fine-tuning
      read_from: path/to/checkpoint.ckpt
"""
HEADS = """
architecture:
  training:
    finetune:
      method: "heads"
      read_from: path/to/checkpoint.ckpt
      config:
        head_modules: ['node_heads', 'edge_heads']
        last_layer_modules: ['node_last_layers', 'edge_last_layers']
"""
LORA = """
architecture:
  training:
    finetune:
      method: "lora"
      read_from: path/to/pre-trained-model.ckpt
      config:
        alpha: 0.1
        rank: 4
"""
READ_FROM = "architecture.training.finetune.read_from"


def write_xyz(path: Path, n: int, *, seed: int, energy: str = "energy") -> list[Any]:
    """Structures with labels, under ASE's own names or others."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for sample in build_atoms(n, seed=seed):
        atoms, label = sample.atoms, pair_energy(sample.atoms)
        atoms.info["id"] = sample.id
        if energy == "energy":
            atoms.calc = SinglePointCalculator(atoms, **label)
        else:
            atoms.info[energy] = label["energy"]
            atoms.arrays["dft_forces"] = label["forces"]
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return frames


@pytest.fixture(scope="module")
def pretrained() -> MolfunStructureModel:
    """Trained for two epochs; not changed by tests."""
    from molfun.data.atoms import AtomsDataset

    samples = build_atoms(12, seed=5)
    data = AtomsDataset([s.atoms for s in samples], [s.target for s in samples])
    model = MolfunStructureModel("pet", config=PET_TINY, head="energy", device="cpu")
    model.fit(data, strategy=FullFinetune(lr=1e-3), epochs=2)
    return model


@pytest.fixture
def folder(
    pretrained: MolfunStructureModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """``x.xyz``, ``keys.xyz`` (labels of other names), ``pet.ckpt``, the guide's options."""
    write_xyz(tmp_path / "x.xyz", 12, seed=0)
    write_xyz(tmp_path / "keys.xyz", 10, seed=1, energy="dft_energy")
    write_checkpoint(pretrained.backbone.stock_model(), tmp_path / "pet.ckpt")
    for name, text in (("full", FULL), ("heads", HEADS), ("lora", LORA)):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tune(molfun: Command, folder: Path) -> Command:
    """Fine-tune the checkpoint on the file: ``tune("--strategy", "full")``."""

    def run(*arguments: object) -> Any:
        data = () if "--data" in arguments else ("--data", "x.xyz")
        return molfun(
            "fine-tune", "--backbone", "pet", *data, "--weights", "pet.ckpt", "--trust",
            "--device", "cpu", "--batch-size", 4, "--epochs", 1, "--output", "run", *arguments,
        )  # fmt: skip

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return content


# --- fine-tune, predict, evaluate ----------------------------------------------------------------


def test_fine_tune_predict_evaluate(molfun: Command, tune: Command, folder: Path) -> None:
    from ase.io import read

    result = tune("--strategy", "lora", "--lora-rank", 2, "--val-frac", 0.2, "--test-frac", 0.2)
    assert result.exit_code == 0, result.stderr
    assert "Data: 8 train / 2 val / 2 test (random split of x.xyz)" in result.stdout
    assert "energy_mae=" in result.stdout
    assert "forces_mae=" in result.stdout
    truth = {a.info["id"]: a for a in read("x.xyz", index=":")}
    rows = rows_of(folder / "run/predictions_test.csv")
    assert len(rows) == 2
    assert list(rows[0])[:3] == ["id", "target", "prediction"]
    for row in rows:
        energy = truth[row["id"]].get_potential_energy()
        assert float(row["target"]) == pytest.approx(energy, abs=1e-6)
    result = molfun("evaluate", "run/checkpoint", "--data", "x.xyz", "--output", "m.json")
    assert result.exit_code == 0, result.stderr
    assert "12 samples: " in result.stdout
    assert "forces_rmse=" in result.stdout
    result = molfun("predict", "run/checkpoint", "--data", "x.xyz", "--output", "x.csv")
    assert result.exit_code == 0, result.stderr
    predicted = {row["id"]: row for row in rows_of(folder / "x.csv")}
    assert set(predicted) == set(truth)
    # one structure a batch or four differ in float32's last digits
    for row in rows:
        again = float(predicted[row["id"]]["prediction"])
        assert again == pytest.approx(float(row["prediction"]), abs=1e-3)
    model = MolfunStructureModel.from_checkpoint(folder / "run/checkpoint", device="cpu")
    written = read("x_structures.xyz", index=":")
    expected = model.predict(written)
    for atoms, energy, forces in zip(
        written, expected["prediction"], expected["forces"], strict=True
    ):
        assert atoms.get_potential_energy() == pytest.approx(float(energy), abs=1e-3)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-3)


def test_labels_of_other_names_and_another_strategy(
    molfun: Command, tune: Command, folder: Path
) -> None:
    from ase.io import read, write

    result = tune(
        "--data", "keys.xyz", "--energy-key", "dft_energy", "--forces-key", "dft_forces",
        "--strategy", "heads", "--forces-weight", 10, "--loss", "huber", "--val", "x.xyz",
        "--test-frac", 0,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "No structure of x.xyz has 'dft_energy'" in result.stderr
    result = tune(
        "--data", "keys.xyz", "--energy-key", "dft_energy", "--forces-key", "dft_forces",
        "--strategy", "heads", "--forces-weight", 10, "--loss", "huber", "--test-frac", 0,
        "--data", "keys.xyz", "--val", "keys.xyz",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Data: 20 train / 10 val / 0 test" in result.stdout
    assert "10 of 10 validation samples are also in the training set" in result.stderr
    assert "HeadOnlyFinetune" in result.stdout
    stored = config_of(folder / "run")
    assert stored["strategy"] == "head_only"
    assert stored["data"] == ["keys.xyz", "keys.xyz"]
    # names of labels are those of training, unless others are given; without labels none are asked
    assert molfun("evaluate", "run/checkpoint", "--data", "keys.xyz").exit_code == 0
    result = molfun("evaluate", "run/checkpoint", "--data", "x.xyz")
    assert result.exit_code == 1
    assert "No structure of x.xyz has 'dft_energy'" in result.stderr
    result = molfun(
        "evaluate", "run/checkpoint", "--data", "x.xyz", "--energy-key", "energy",
        "--forces-key", "forces",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    bare = [type(a)(a.numbers, a.positions) for a in read("x.xyz", index=":")]
    write("bare.xyz", bare, format="extxyz")
    result = molfun("predict", "run/checkpoint", "--data", "bare.xyz")
    assert result.exit_code == 0, result.stderr
    assert {row["target"] for row in rows_of(folder / "predictions.csv")} == {""}


@pytest.mark.parametrize("strategy", ["partial", "gradual"])
def test_other_strategies(tune: Command, strategy: str) -> None:
    result = tune("--strategy", strategy, "--val-frac", 0.2, "--test-frac", 0)
    assert result.exit_code == 0, result.stderr


def test_a_run_goes_on(tune: Command, folder: Path) -> None:
    arguments = ("--strategy", "full", "--test-frac", 0, "--epochs", 2)
    assert tune(*arguments).exit_code == 0
    result = tune(*arguments)
    assert result.exit_code == 1
    assert "already holds a run" in result.stderr
    result = tune(*arguments, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "resumed after epoch 2" in result.stdout
    result = tune(*arguments, "--resume", "--forces-weight", 3)
    assert result.exit_code == 1
    assert "forces_weight" in result.stderr


def test_an_energy_and_another_label_learn_together(
    tune: Command, molfun: Command, folder: Path
) -> None:
    text = (folder / "x.xyz").read_text()
    lines = [re.sub("energy=", f"gap={i} energy=", line) if i % 3 else line
             for i, line in enumerate(text.splitlines())]  # fmt: skip
    (folder / "x.xyz").write_text("\n".join(lines) + "\n")
    heads = "heads={energy: {head: energy}, gap: {head: mlp}}"
    result = tune(heads, "--strategy", "full")
    assert result.exit_code == 0, result.stderr
    for name in ("energy/energy_mae", "energy/forces_mae", "gap/rmse"):
        assert f"{name}=" in result.stdout
    evaluated = molfun("evaluate", "run/checkpoint", "--data", "x.xyz", "--weights", "pet.ckpt")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "gap/rmse=" in evaluated.stdout
    result = tune(heads, "--new-target", "energy/b", "--output", "other")
    assert result.exit_code == 1
    assert "new_target: for a model with one head." in result.stderr


def test_a_new_energy_and_one_without_forces(tune: Command, folder: Path) -> None:
    result = tune(
        "--new-target", "energy/b", "--inherit", "energy", "--strategy", "heads", "forces=false"
    )
    assert result.exit_code == 0, result.stderr
    assert "Target: energy/b, whose heads start from those of energy" in result.stdout
    assert "forces_mae" not in result.stdout
    model = MolfunStructureModel.from_checkpoint(folder / "run/checkpoint", device="cpu")
    assert list(model.backbone.targets) == ["energy", "energy/b"]
    assert model.head.config_dict["target"] == "energy/b"


def test_what_becomes_of_the_old_energy(tune: Command, folder: Path) -> None:
    write_xyz(folder / "old.xyz", 4, seed=9)
    new = ("--new-target", "energy/b", "--inherit", "energy", "--strategy", "full")
    result = tune(*new, "--old-data", "old.xyz", "--epochs", 2)
    assert result.exit_code == 0, result.stderr
    line = next(x for x in result.stdout.splitlines() if x.startswith("Forgetting: "))
    assert line.startswith("Forgetting: energy before and after: energy_mae ")
    assert "forces_rmse" in line
    after = {
        w: v for w, _, _, v in (part.split() for part in line.partition("after: ")[2].split(", "))
    }
    model = MolfunStructureModel.from_checkpoint(folder / "run/checkpoint", device="cpu")
    found = model.use_target("energy").evaluate(AtomsDataset.from_files(folder / "old.xyz"))
    for name, value in after.items():
        assert float(value) == pytest.approx(found[name], rel=1e-3)


def test_an_old_energy_that_cannot_be_measured(tune: Command) -> None:
    for arguments, text in (
        (("--old-energy-key", "e"), "old_energy_key is a name in old_data: give that file as well"),
        (("--old-data", "no.xyz"), "There is no file no.xyz"),
        (("--old-data", "a.xyz", "keep_targets=false"), "old_data is for an energy that is kept"),
        (
            ("--old-data", "a.xyz", "--head", "mlp", "--task", "regression"),
            "old_data: for the task 'energy'; the task is 'regression'",
        ),
    ):
        result = tune("--new-target", "energy/b", *arguments)
        assert result.exit_code != 0
        assert text in " ".join(result.stderr.replace("│", " ").split())


def test_wrong_numbers_are_named_as_the_file_names_them(molfun: Command, folder: Path) -> None:
    training = {"num_epochs": -3, "batch_size": "x", "finetune": {"read_from": "pet.ckpt"}}
    content = {"architecture": {"training": training}, "training_set": "x.xyz"}
    (folder / "options.yaml").write_text(yaml.safe_dump(content))
    result = molfun("train", "options.yaml", "trust=true")
    assert result.exit_code == 1
    for text in ("architecture.training.num_epochs: ", "architecture.training.batch_size: "):
        assert text in result.stderr


def test_atoms_are_not_pretrained(molfun: Command) -> None:
    result = molfun("pretrain", "--backbone", "pet", "--data", "x.xyz")
    assert result.exit_code == 1
    assert "pet is not pre-trained on data without labels" in result.stderr
    assert "got {" not in result.stderr


def test_a_file_of_metatrain_is_evaluated_as_it_is(molfun: Command, folder: Path) -> None:
    result = molfun("evaluate", "pet.ckpt", "--data", "x.xyz")
    assert result.exit_code == 1
    assert "--trust" in result.stderr
    result = molfun("evaluate", "pet.ckpt", "--trust", "--data", "x.xyz", "--output", "m.json")
    assert result.exit_code == 0, result.stderr
    model = MolfunStructureModel(
        "pet", weights=folder / "pet.ckpt", trust=True, head="energy", device="cpu"
    )
    data = AtomsDataset.from_files(folder / "x.xyz")
    found = json.loads((folder / "m.json").read_text())
    assert set(found) == {"loss", "energy_mae", "energy_rmse", "forces_mae", "forces_rmse"}
    for name, value in model.evaluate(data).items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    result = molfun("predict", "pet.ckpt", "--trust", "--data", "x.xyz")
    assert result.exit_code == 0, result.stderr
    assert len(rows_of(folder / "predictions.csv")) == len(data)


def test_a_bad_structure_of_the_test_set_is_found_before_training(
    tune: Command, folder: Path
) -> None:
    gold = '2\nProperties=species:S:1:pos:R:3 energy=1 pbc="F F F"\nAu 0 0 0\nH 0 0 1\n'
    (folder / "gold.xyz").write_text(gold)
    result = tune("--test", "gold.xyz")
    assert result.exit_code == 1
    assert "Au in 1 structure (1 (gold.xyz, structure 1)), which this model does" in result.stderr
    assert not (folder / "run/history.csv").exists()


def test_what_is_no_checkpoint_of_pet(tune: Command, molfun: Command, folder: Path) -> None:
    assert molfun("export", "pet.ckpt", "pet.pt", "--trust").exit_code == 0
    result = tune("--weights", "pet.pt")
    assert "pet.pt is a model that was exported to run (TorchScript)" in result.stderr
    assert tune("--strategy", "heads").exit_code == 0
    result = tune("--weights", "run/checkpoint", "--output", "other")
    assert "molfun export run/checkpoint model.ckpt" in result.stderr
    result = tune("--inherit", "energy", "--output", "other")
    assert "inherit is what a new_target begins with" in " ".join(result.stderr.split())


def test_labels_that_are_missing_are_counted(tune: Command, folder: Path) -> None:
    from ase.io import read, write

    frames = read(folder / "x.xyz", ":")
    del frames[0].calc.results["energy"]
    frames[1].calc.results["forces"][0] = np.nan
    write(folder / "gaps.xyz", frames, format="extxyz")
    result = tune("--data", "gaps.xyz", "--val-frac", 0, "--test-frac", 0)
    assert result.exit_code == 0, result.stderr
    n = len(frames)
    expected = f"Of {n} training structures, 1 have no energy, 1 have NaN among their forces."
    assert expected in result.stderr + (folder / "run/run.log").read_text()


def test_another_unit_is_said(tune: Command, molfun: Command) -> None:
    result = tune("--new-target", "energy/k", "--inherit", "energy", "energy_unit=kcal/mol")
    assert result.exit_code == 0, result.stderr
    text = "Energies are in kcal/mol, forces in kcal/mol/angstrom, errors in thousandths of these."
    assert text in result.stdout
    assert text in molfun("predict", "run/checkpoint", "--data", "x.xyz").stdout


def test_a_file_that_breaks_off(tune: Command, folder: Path) -> None:
    text = (folder / "x.xyz").read_text().splitlines()
    (folder / "cut.xyz").write_text("\n".join(text[:-2]) + "\n")
    result = tune("--data", "cut.xyz")
    assert result.exit_code == 1
    assert re.search(
        r"cut.xyz cannot be read as structures: structure 12, line \d+: \d atoms announced, and "
        r"the file ends after \d\.",
        result.stderr,
    )


def test_one_of_several_energies_is_predicted(tune: Command, molfun: Command, folder: Path) -> None:
    assert tune("--new-target", "energy/b", "--inherit", "energy").exit_code == 0
    found = []
    for name in ("energy", "energy/b"):
        result = molfun(
            "predict", "run/checkpoint", "--data", "x.xyz", "--target", name, "--overwrite"
        )
        assert result.exit_code == 0, result.stderr
        found.append([row["prediction"] for row in rows_of(folder / "predictions.csv")])
    assert found[0] != found[1]
    result = molfun(
        "predict", "run/checkpoint", "--data", "x.xyz", "--target", "energy/c", "--overwrite"
    )
    assert "Unknown target 'energy/c'" in result.stderr


def test_stress(molfun: Command, folder: Path) -> None:
    from ase.build import bulk
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import read, write

    frames = []
    for i in range(6):
        atoms = bulk("C", "diamond", a=3.5 + 0.05 * i)
        stress = np.array([i - 3.0, i - 3.0, i - 3.0, 0.0, 0.1, 0.0])
        atoms.calc = SinglePointCalculator(atoms, energy=(i - 3.0) ** 2, stress=stress)
        frames.append(atoms)
    write("c.xyz", frames, format="extxyz")
    result = molfun(
        "fine-tune", "--backbone", "pet", "--weights", "pet.ckpt", "--trust", "--data", "c.xyz",
        "--strategy", "heads", "--epochs", 1, "--output", "c", "--test-frac", 0.2,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "stress_mae=" in result.stdout
    result = molfun("predict", "c/checkpoint", "--data", "c.xyz")
    assert result.exit_code == 0, result.stderr
    model = MolfunStructureModel.from_checkpoint(folder / "c/checkpoint", device="cpu")
    written = read("predictions_structures.xyz", index=":")
    for atoms, stress in zip(written, model.predict(frames)["stress"], strict=True):
        whole = (stress + stress.T) / 2
        np.testing.assert_allclose(atoms.get_stress(voigt=False), whole, atol=1e-5)


def test_another_label_with_a_head_of_its_own(molfun: Command, folder: Path) -> None:
    result = molfun(
        "fine-tune", "--backbone", "pet", "--weights", "pet.ckpt", "--trust", "--data", "keys.xyz",
        "--head", "mlp", "--target-key", "dft_energy", "--strategy", "head_only", "--epochs", 1,
        "--output", "mlp",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    result = molfun("export", "mlp/checkpoint", "model.pt")
    assert result.exit_code == 1
    assert "The head 'mlp' is Molfun's own" in result.stderr


def test_from_random_weights_it_knows_the_elements_of_the_data(
    molfun: Command, folder: Path
) -> None:
    from ase import Atoms
    from ase.io import write

    frames = []
    for i in range(8):
        atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 1.5 + 0.1 * i]])
        atoms.info["energy"] = -float(i)
        frames.append(atoms)
    write("salt.xyz", frames, format="extxyz")
    small = [f"backbone_config.config.{name}={value}" for name, value in PET_TINY.items()]
    result = molfun(
        "fine-tune", "--backbone", "pet", "--data", "salt.xyz", "--strategy", "full", "--epochs", 1,
        "--output", "salt", *small,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    model = MolfunStructureModel.from_checkpoint(folder / "salt/checkpoint", device="cpu")
    assert model.backbone.atomic_types == (11, 17)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--energy-key", "enrgy"), "No structure of x.xyz has 'enrgy'"),
        (("--data", "none.xyz"), "There is no file none.xyz."),
        (("--data", "full.yaml"), "full.yaml cannot be read as structures"),
        (("--data", "keys.xyz"), "without a label"),
        (("--weights", "none.ckpt"), "No such file: none.ckpt"),
        (("--data", "iron.xyz"), "Fe in 5 structures (1 (iron.xyz, structure 1), "),
        (("--preset", "tiny"), "pet has none; give what differs"),
        (("--head", "mlp"), "name it with --target-key"),
        (("--head", "mlp", "--target-key", "k", "--forces-weight", 2), "of the task 'energy'"),
        (("--split", "identity"), "split='identity' is for sequences"),
        (("--level", "residue"), "level='residue': the task 'energy' has no level."),
        (
            ("--max-length", 5),
            "max_length: for structures of proteins, sequences or time series (models such as",
        ),
        (("head_config.target=enrgy",), "Unknown target 'enrgy'; known: energy."),
        (("head_config.modules=[node_head]",), "Did you mean 'node_heads'?"),
        (("energy_unit=kcal/mol",), "The energies are in kcal/mol, and the target 'energy'"),
    ],
)
def test_what_is_wrong_gets_one_line(
    tune: Command, folder: Path, arguments: tuple[Any, ...], message: str
) -> None:
    (folder / "iron.xyz").write_text(
        "".join(f"1\nProperties=species:S:1:pos:R:3 energy={i}\nFe 0 0 {i}\n" for i in range(5))
    )
    result = tune(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_each_warning_is_said_once(folder: Path) -> None:
    """The first message of metatrain gives the root logger a handler that repeats all lines."""
    result = warm.run(
        *("-m", "molfun.cli", "fine-tune", "--backbone", "pet", "--epochs", "1"),
        *("--data", "x.xyz", "--strategy", "full", "--device", "cpu", "--output", "run"),
        *[f"backbone_config.config.{name}={value}" for name, value in PET_TINY.items()],
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("starts from random weights") == 1
    assert "INFO" not in result.stderr
    assert "INFO molfun" in (folder / "run/run.log").read_text()


def test_settings_of_atoms_are_refused_elsewhere(molfun: Command, folder: Path) -> None:
    (folder / "s.csv").write_text("sequence,target\n" + "ACDE,1\n" * 5)
    result = molfun("fine-tune", "--backbone", "esm2_tiny", "--data", "s.csv", "--energy-key", "e")
    assert result.exit_code == 1
    assert "energy_key: for structures of atoms (models such as pet)" in result.stderr
    result = molfun("fine-tune", "--backbone", "pet", "--demo")
    assert "--demo makes proteins, which pet does not take" in result.stderr
    result = molfun("fine-tune", "--backbone", "pet")
    assert "give --data FILE of structures (extended xyz)" in result.stderr
    result = molfun("fine-tune", "--backbone", "pet", "--data", "x.xyz", "--weights", "pet.ckpt")
    assert result.exit_code == 1
    assert "is a pickle" in result.stderr
    assert "--trust" in result.stderr


def test_files_of_their_own_go_with_sequences_too(molfun: Command, folder: Path) -> None:
    letters = "ACDEFGHIKL"
    for name, chains in (("train", letters[:8]), ("val", letters[7:])):
        rows = [f"{c * 6},{i}" for i, c in enumerate(chains)]
        (folder / f"{name}.csv").write_text("\n".join(["sequence,target", *rows, ""]))
    result = molfun(
        "fine-tune", "--backbone", "esm2_tiny", "--data", "train.csv", "--val", "val.csv",
        "--test-frac", 0, "--strategy", "head_only", "--epochs", 1, "--output", "seq",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Data: 8 train / 3 val / 0 test (random split of train.csv; val.csv)" in result.stdout
    assert "1 of 3 validation samples are also in the training set" in result.stderr


# --- export --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_exported_model_says_the_same_through_ase(
    molfun: Command, tune: Command, folder: Path
) -> None:
    from metatomic_ase import MetatomicCalculator

    result = tune("--strategy", "lora", "--lr", 1e-2, "--test-frac", 0)
    assert result.exit_code == 0, result.stderr
    result = molfun("export", "run/checkpoint", "model.pt")
    assert result.exit_code == 0, result.stderr
    assert "written to model.pt" in result.stdout
    model = MolfunStructureModel.from_checkpoint(folder / "run/checkpoint", device="cpu")
    atoms = [s.atoms for s in build_atoms(4, seed=8)]
    for structure in atoms:
        structure.set_cell([6, 7, 8])
        structure.pbc = True
    expected = model.predict(atoms)
    stock = MolfunStructureModel("pet", weights="pet.ckpt", trust=True, head="energy", device="cpu")
    untrained = stock.predict(atoms)["prediction"]
    assert float((expected["prediction"] - untrained).abs().max()) > 1e-2
    calculator = MetatomicCalculator("model.pt", device="cpu")
    for i, structure in enumerate(atoms):
        structure.calc = calculator
        energy = float(expected["prediction"][i])
        assert structure.get_potential_energy() == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(structure.get_forces(), expected["forces"][i], atol=1e-4)


def test_an_exported_checkpoint_is_one_of_metatrain(
    molfun: Command, tune: Command, folder: Path
) -> None:
    from metatrain.utils.io import load_model

    assert tune("--strategy", "lora", "--lr", 1e-2, "--test-frac", 0).exit_code == 0
    result = molfun("export", "run/checkpoint", "out.ckpt")
    assert result.exit_code == 0, result.stderr
    names = [n for n, _ in load_model("out.ckpt").named_parameters()]
    assert not [n for n in names if "lora" in n]
    model = MolfunStructureModel.from_checkpoint(folder / "run/checkpoint", device="cpu")
    again = MolfunStructureModel("pet", weights="out.ckpt", trust=True, head="energy", device="cpu")
    atoms = [s.atoms for s in build_atoms(4, seed=8)]
    expected = model.predict(atoms)["prediction"]
    torch.testing.assert_close(again.predict(atoms)["prediction"], expected, atol=1e-4, rtol=0)
    # exporting leaves the model with its adapters as they were
    export(model, "again.ckpt")
    assert torch.equal(model.predict(atoms)["prediction"], expected)
    result = molfun("export", "out.ckpt", "out.pt", "--trust")
    assert result.exit_code == 0, result.stderr


def test_what_cannot_be_exported(molfun: Command, folder: Path) -> None:
    for arguments, message in (
        (("pet.ckpt", "model.onnx", "--trust"), "must end in .pt"),
        (("pet.ckpt", "model.pt"), "is a pickle"),
        (("none.ckpt", "model.pt", "--trust"), "No such file: none.ckpt"),
        (("nowhere", "model.pt"), "nowhere"),
    ):
        result = molfun("export", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    esm2 = MolfunStructureModel("esm2_tiny", head="mlp", device="cpu")
    with pytest.raises(ConfigError, match="this one has 'esm2'"):
        export(esm2, "model.pt")
    assert not list(folder.glob("*.pt"))


# --- train ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("full", "FullFinetune"), ("heads", "HeadOnlyFinetune"), ("lora", "LoRAFinetune")],
)
def test_the_options_of_the_guide(
    molfun: Command, folder: Path, method: str, strategy: str
) -> None:
    result = molfun(
        "train", f"{method}.yaml", f"{READ_FROM}=pet.ckpt", "training_set=x.xyz",
        "validation_set=0.25", "trust=true", "architecture.training.num_epochs=2",
        "architecture.training.learning_rate=1e-4", "device=cpu", "--output", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert f"Strategy: {strategy} (lr=1.0e-04)" in result.stdout
    assert "Data: 9 train / 3 val / 0 test" in result.stdout
    assert ("LoRA trains the heads as well" in result.stdout) == (method == "lora")
    assert molfun("evaluate", "out/checkpoint", "--data", "x.xyz").exit_code == 0
    stored = config_of(folder / "out")
    assert stored["weights"] == "pet.ckpt"
    if method == "lora":
        assert (stored["lora_rank"], stored["strategy_config"]["alpha"]) == (4, 0.1)
    if method == "heads":
        names = ["node_heads", "edge_heads", "node_last_layers", "edge_last_layers"]
        assert stored["head_config"] == {"modules": names}


def test_the_options_of_the_guide_ask_for_data_and_trust(molfun: Command, folder: Path) -> None:
    result = molfun("train", "full.yaml")
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        "Error: full.yaml: there is no training_set. Add the section, or name a file: molfun train "
        "full.yaml training_set=structures.xyz validation_set=0.1"
    )
    arguments = ("full.yaml", f"{READ_FROM}=pet.ckpt", "training_set=x.xyz", "--output", "out")
    result = molfun("train", *arguments)
    assert result.exit_code == 1
    assert "--trust" in result.stderr
    few = "architecture.training.num_epochs=1"
    result = molfun("train", *arguments, few, "--trust")
    assert result.exit_code == 0, result.stderr
    assert "Note: There is no validation_set" in result.stdout
    assert molfun("train", *arguments, few, "--trust").exit_code == 1
    assert molfun("train", *arguments, few, "--trust", "--resume").exit_code == 0


def test_settings_of_molfun_are_options_too(molfun: Command, folder: Path) -> None:
    (folder / "own.yaml").write_text(
        "backbone: pet\ndata: x.xyz\nweights: pet.ckpt\nstrategy: head_only\nepochs: 5\n"
    )
    result = molfun("train", "own.yaml", "epochs=1", "--trust", "--output", "out")
    assert result.exit_code == 0, result.stderr
    assert config_of(folder / "out")["epochs"] == 1


def options(**changes: Any) -> dict[str, Any]:
    """Options with a training section, a fine-tuning section and data."""
    finetune = {"read_from": "a.ckpt", **changes.pop("finetune", {})}
    training = {"finetune": finetune, **changes.pop("training", {})}
    architecture = {"name": "pet", "training": training, **changes.pop("architecture", {})}
    return {"architecture": architecture, "training_set": "x.xyz", "validation_set": 0.2, **changes}


def dataset(**target: Any) -> dict[str, Any]:
    return {"systems": {"read_from": "x.xyz", "length_unit": "angstrom"}, "targets": target}


def test_the_names_are_those_of_metatrain() -> None:
    from metatrain.pet.documentation import TrainerHypers
    from metatrain.share.base_hypers import ArchitectureBaseHypers, BaseHypers
    from metatrain.utils.architectures import get_default_hypers

    assert {*TRAINING, *UNUSED, *REPORTS} == set(TrainerHypers.__annotations__)
    assert set(ARCHITECTURE) == set(ArchitectureBaseHypers.__annotations__)
    assert {*TOP, *REPORTS_TOP} - {"trust"} == set(BaseHypers.__annotations__)
    theirs = get_default_hypers("pet")["training"]
    ours = {**UNUSED, "distributed": theirs.get("distributed")}
    assert {k: v for k, v in ours.items() if theirs.get(k) != v} == {"best_model_metric": "loss"}
    settings = translate(options()).settings
    names = {"learning_rate": "lr", "num_epochs": "epochs", "batch_size": "batch_size",
             "warmup_fraction": "warmup_ratio", "grad_clip_norm": "grad_clip"}  # fmt: skip
    assert {k: settings[v] for k, v in names.items()} == {k: theirs[k] for k in names}


def test_a_rate_as_the_guide_writes_it() -> None:
    rate = yaml.safe_load("learning_rate: 1e-5")
    assert translate(options(training=rate)).settings["lr"] == 1e-5


def test_training_options_become_settings() -> None:
    training = {
        "learning_rate": 1e-5, "num_epochs": 7, "batch_size": 3, "warmup_fraction": 0.2,
        "weight_decay": 0.05, "grad_clip_norm": 0.5, "num_workers": 2, "log_interval": 1,
        "loss": {"energy": {"type": "huber", "weight": 2.0, "forces": {"weight": 10.0}}},
    }  # fmt: skip
    settings = FineTuneSettings.build(translate(options(training=training, seed=3)).settings)
    strategy = settings.strategy_options(settings.strategy, n_blocks=2)
    expected = {
        "name": "full", "lr": 1e-5, "lr_head": 1e-5, "lr_embedder": 1e-5, "layer_lr_decay": 1.0,
        "optimizer": "adamw", "weight_decay": 0.05, "warmup_ratio": 0.2, "scheduler": "cosine",
        "grad_clip": 0.5, "ema_decay": 0.0, "accumulation_steps": 1,
    }  # fmt: skip
    assert {key: strategy[key] for key in expected} == expected
    assert (settings.loss, settings.energy_weight, settings.forces_weight) == ("huber", 2.0, 10.0)
    assert (settings.epochs, settings.batch_size, settings.workers) == (7, 3, 2)
    assert (settings.seed, settings.val_frac, settings.test_frac) == (3, 0.2, 0.0)
    assert FineTuneSettings.build(translate(options()).settings).optimizer == "adam"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mae", {"loss": "mae"}),
        ({"energy": "mae"}, {"loss": "mae"}),
        ({"energy": 1.0, "forces": 10.0}, {"energy_weight": 1.0, "forces_weight": 10.0}),
        ({"energy": {"gradients": {"positions": {"weight": 4}, "strain": {"weight": 0}}}},
         {"forces_weight": 4, "stress_weight": 0}),
    ],
)  # fmt: skip
def test_losses(loss: Any, expected: dict[str, Any]) -> None:
    settings = translate(options(training={"loss": loss})).settings
    names = ("loss", "energy_weight", "forces_weight", "stress_weight")
    assert {k: settings[k] for k in names if k in settings} == expected


def test_sections_of_data_become_settings() -> None:
    energy = {"key": "dft", "unit": "eV", "forces": {"key": "f"}, "stress": False}
    settings = translate(
        options(
            training_set=[dataset(energy=energy), {**dataset(energy=energy), "systems": "y.xyz"}],
            validation_set={"systems": "v.xyz", "targets": {"energy": energy}},
            test_set="t.xyz",
        )
    ).settings
    expected = {
        "data": ["x.xyz", "y.xyz"], "val": "v.xyz", "test": "t.xyz", "energy_key": "dft",
        "forces_key": "f", "stress": False, "energy_unit": "eV",
    }  # fmt: skip
    assert {k: settings[k] for k in expected} == expected
    assert "new_target" not in settings


def test_a_new_target_and_its_heads() -> None:
    energy = {"quantity": "energy", "forces": True}
    new = dataset(**{"energy/pbe0": energy})
    for method, kept in (("full", False), ("heads", True)):
        finetune = {"method": method, "inherit_heads": {"energy/pbe0": "energy"}}
        settings = translate(options(training_set=new, finetune=finetune)).settings
        assert settings["new_target"] == "energy/pbe0"
        assert (settings["inherit"], settings["keep_targets"]) == ("energy", kept)
        assert (settings["energy_key"], settings["forces_key"]) == ("energy/pbe0", "forces")


def test_lora_as_metatrain_does_it() -> None:
    config = {"rank": 2, "alpha": 1, "target_modules": ["input_linear"], "train_heads": False}
    found = translate(options(finetune={"method": "lora", "config": config}))
    assert found.notes == []
    assert found.settings["head_config"] == {"modules": []}
    assert found.settings["strategy_config"]["target_modules"] == ["input_linear"]


def test_random_weights_have_an_architecture() -> None:
    given = options(architecture={"training": {}, "model": {"d_pet": 16}, "atomic_types": [1, 8]})
    settings = translate(given).settings
    assert settings["weights"] is None
    assert settings["backbone_config"] == {"config": {"d_pet": 16}, "atomic_types": [1, 8]}
    given = options(architecture={"model": {"d_pet": 16}}, base_precision=64)
    found = translate(given)
    assert found.settings["backbone_config"] == {"dtype": "float64"}
    assert "the checkpoint says what they are" in found.notes[0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"virial": True}, {"virial_key": "virial"}),
        ({"virial": {"key": "w"}, "stress": False}, {"virial_key": "w"}),
        ({"virial": False, "stress": True}, {"stress_key": "stress"}),
    ],
)
def test_virials_of_metatrain_are_read(target: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = translate(options(training_set=dataset(energy=target))).settings
    names = ("virial_key", "stress_key", "stress")
    assert {k: settings[k] for k in names if k in settings} == expected


def test_the_tracker_of_metatrain_is_that_of_molfun() -> None:
    settings = translate(options(wandb={"project": "x", "tags": ["a"]})).settings
    assert settings["logger"] == ["wandb"]
    assert settings["logger_config"] == {"wandb": {"project": "x", "tags": ["a"]}}
    assert "logger" not in translate(options(wandb=None)).settings


def test_what_only_changes_reports_is_left_aside() -> None:
    training = {"checkpoint_interval": 7, "log_interval": 5}
    found = translate(options(training=training, print_stats=True))
    assert found.notes[0].startswith("print_stats: not looked at.")
    assert found.notes[1].startswith("checkpoint_interval, log_interval: not looked at.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"lerning_rate": 1}}, "Did you mean 'learning_rate'?"),
        ({"trainingset": 1}, "trainingset: unknown option. Did you mean 'training_set'?"),
        ({"training": {"best_model_metric": "mae_prod", "atomic_baseline": {"energy": 1}}},
         "with best_model_metric, atomic_baseline. Leave them out, or train with metatrain"),
        ({"base_precision": 16}, "PET trains in 32 or 64 bits, got 16"),
        ({"training": {"scale_targets": False}}, "with scale_targets. Leave it out"),
        ({"wandb": "x"}, "options.yaml: wandb must hold `name: value` lines, got 'x'"),
        ({"architecture": {"name": "gap"}}, "Molfun trains pet of metatrain, not gap"),
        ({"finetune": {"method": "head"}}, "unknown method 'head'. Did you mean 'heads'?"),
        ({"finetune": {"method": "lora", "config": {"rnk": 3}}}, "Did you mean 'rank'?"),
        ({"finetune": {"inherit_heads": {"b": "energy"}}}, "b is not the target of training_set"),
        ({"training": {"loss": "gaussian_nll"}}, "Molfun has the losses mse, mae, huber"),
        ({"training": {"loss": {"energy": {"type": "mse", "forces": "mae"}}}}, "are mse and mae"),
        ({"training": {"loss": {"dipole": 1}}}, "loss.dipole: unknown option"),
        ({"training_set": dataset(energy={}, dipole={})}, "one energy a run, and these are"),
        ({"training_set": dataset(dipole={})}, "Molfun trains the energies of PET"),
        ({"training_set": dataset(energy={"virial": True, "stress": {"key": "s"}})},
         "stress and virial are one label in two forms. Set one of them to false."),
        ({"training_set": dataset(energy={"sample_kind": "atom"})}, "with sample_kind"),
        ({"training_set": dataset(energy={"read_from": "z.xyz"})}, "from the file of the struct"),
        ({"training_set": {**dataset(), "extra_data": {}}}, "extra_data: unknown option"),
        ({"training_set": {"targets": {}}}, "training_set.systems.read_from is missing"),
        ({"validation_set": 1.5}, "a fraction is from 0 to below 1"),
        ({"validation_set": dataset(energy={"key": "b"})}, "other labels than those of training"),
        ({"device": "multi-gpu"}, "start with torchrun"),
    ],
)  # fmt: skip
def test_options_that_are_wrong_or_not_honoured(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        translate(options(**changes), source="options.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)

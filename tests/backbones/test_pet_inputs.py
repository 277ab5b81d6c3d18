"""PET: the head it has where none is named, elements it does not know, labels with directions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PET_TINY, build_atoms

from molfun.backbones.pet.weights import write_checkpoint
from molfun.data.atoms import AtomsDataset
from molfun.errors import DataError
from molfun.models.structure import MolfunStructureModel
from molfun.training import FullFinetune, HeadOnlyFinetune
from molfun.training.forward import run_now


def pet(**settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel("pet", **{"config": PET_TINY, "device": "cpu", **settings})


def dataset(n: int = 6) -> AtomsDataset:
    samples = build_atoms(n)
    return AtomsDataset([s.atoms for s in samples], [s.target for s in samples])


# --- the head of its own -------------------------------------------------------------------------


def test_without_a_head_it_gives_its_energies(tmp_path: Path) -> None:
    data = dataset()
    named = pet(head="energy")
    named.fit(data, strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    write_checkpoint(named.backbone.stock_model(), tmp_path / "pet.ckpt")
    bare = pet(config=None, weights=tmp_path / "pet.ckpt", trust=True)
    assert (bare.head_name, bare.task_name) == ("energy", "energy")
    expected = named.predict(data.atoms)["prediction"]
    # forces, which the other one gives too, take another way through the network
    torch.testing.assert_close(bare.predict(data.atoms)["prediction"], expected)


def test_a_task_without_a_head_takes_its_own_head() -> None:
    assert pet(task="regression").head_name == "mlp"
    assert pet(head_config={"modules": []}).head_name == "energy"


def test_other_backbones_stay_bare_without_a_head() -> None:
    assert MolfunStructureModel("esm2_tiny", device="cpu").head is None


def test_a_model_without_energies_stays_bare() -> None:
    from metatrain.utils.data import DatasetInfo
    from metatrain.utils.data.target_info import get_generic_target_info

    from molfun.backbones.pet import targets

    charge = {"quantity": "", "unit": "", "type": "scalar", "num_subtargets": 1,
              "sample_kind": "atom", "description": ""}  # fmt: skip
    info = DatasetInfo(
        "angstrom", [1, 6, 7, 8], {"mtt::charge": get_generic_target_info("mtt::charge", charge)}
    )
    model = pet(backbone_config={"description": targets.describe(info)})
    assert model.head is None


# --- elements ------------------------------------------------------------------------------------


def test_new_elements_are_told_of_once() -> None:
    from ase import Atoms

    atoms = [Atoms("AuH", [[0, 0, 0], [0, 0, 1.6]]) for _ in range(5)]
    atoms += [Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]), Atoms("PtAu", [[0, 0, 0], [0, 0, 2.6]])]
    data = AtomsDataset(atoms, [{"energy": -1.0}] * 7)
    model = pet()
    for use in (
        lambda: model.fit(data, strategy=HeadOnlyFinetune(), epochs=1),
        lambda: model.evaluate(data),
        lambda: model.predict(data),
    ):
        with pytest.raises(DataError) as caught:
            use()
        text = str(caught.value)
        assert "6 samples cannot be used with PET" in text
        assert (
            "Pt in 1 structure (structure_7); Au in 6 structures (structure_1, structure_2, "
            in (text)
        )
        assert "structure_3, ...), which this model does not know (it knows H, C, N, O)" in text
        assert "No element can be added to a trained PET." in text
        assert text.count("leave out --weights") == 1
        assert "backbone_config={'atomic_types': [1, 6, 7, 8, 78, 79]}" in text
        assert "(backbone_config.atomic_types=[1,6,7,8,78,79])" in text


def test_a_new_model_is_made_for_the_elements_that_are_named() -> None:
    from ase import Atoms

    model = pet(backbone_config={"atomic_types": [1, 6, 7, 8, 79]})
    found = model.predict([Atoms("AuH", [[0, 0, 0], [0, 0, 1.6]])])
    assert torch.isfinite(found["prediction"]).all()
    with pytest.raises(DataError, match=r"structure_1 has Fe, which this model does not know"):
        model.backbone.check(AtomsDataset([Atoms("Fe")], [1.0])[0])


# --- labels of several numbers -------------------------------------------------------------------


def directed(n: int = 12, *, per_atom: bool = False) -> AtomsDataset:
    """Structures whose label is where hydrogen lies, or each atom, from their middle."""
    atoms = [s.atoms for s in build_atoms(n)]
    centred = [a.positions - a.positions.mean(0) for a in atoms]
    if per_atom:
        return AtomsDataset(atoms, centred)
    return AtomsDataset(
        atoms, [c[a.numbers == 1].sum(0) for a, c in zip(atoms, centred, strict=True)]
    )


@pytest.mark.parametrize("per_atom", [False, True])
def test_vectors_are_learned_and_survive_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, per_atom: bool
) -> None:
    data = directed(per_atom=per_atom)
    level = "residue" if per_atom else "sequence"
    model = pet(head="mlp", task_config={"shape": [3], "level": level})
    history = model.fit(data, strategy=FullFinetune(lr=3e-3), epochs=12, seed=1)
    assert "structures are not turned at random in training" in caplog.text
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    found = model.predict(data)["prediction"]
    shapes = [tuple(row.shape) for row in found]
    assert shapes == [(len(a), 3) if per_atom else (3,) for a in data.atoms]
    model.save(tmp_path / "m")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "m", device="cpu")
    for ours, theirs in zip(found, again.predict(data)["prediction"], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_numbers_without_directions_leave_structures_turned() -> None:
    model = pet(head="mlp", task_config={"shape": [4]})
    assert not model.backbone.directed
    assert pet(head="mlp", task_config={"shape": [3, 3]}).backbone.directed
    assert not pet().backbone.directed


def test_a_label_of_another_shape_is_named_with_its_sample() -> None:
    data = directed(3)
    model = pet(head="mlp")
    text = (
        r"(?s)3 samples with a label that the task 'regression' .*structure_1: A label has the sh"
    )
    with pytest.raises(DataError, match=text):
        model.fit(data, strategy=HeadOnlyFinetune(), epochs=1)
    with pytest.raises(DataError, match=text):
        model.evaluate(data)
    model = pet(head="mlp", task_config={"level": "residue"})
    short = AtomsDataset(data.atoms, [[1.0] * (len(a) - 1) for a in data.atoms])
    with pytest.raises(DataError, match=r"structure_1: \d labels for \d atoms"):
        model.fit(short, strategy=HeadOnlyFinetune(), epochs=1)


def test_an_infinite_label_is_named_with_its_structure() -> None:
    atoms = directed(3).atoms
    with pytest.raises(DataError, match=r"structure_2: 'energy' is infinite"):
        AtomsDataset(atoms, [{"energy": 1.0}, {"energy": np.inf}, None])
    data = AtomsDataset(atoms, [1.0, np.inf, None])
    with pytest.raises(DataError, match=r"structure_2: A label is infinite"):
        pet().fit(data, strategy=HeadOnlyFinetune(), epochs=1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eV", None),
        ("GPa", "The stress is 160.2 times as large as what the model predicts: it is probably in "
         "GPa. Divide it by that, for eV/angstrom^3."),
        ("kbar", "probably in kbar"),
        ("pressure", "it is probably a pressure. Stress is positive under tension"),
        ("-kbar", "it is probably a pressure in kbar."),
        ("virial", "these are probably virials (eV). Name them with virial_key (--virial-key)."),
    ],
)  # fmt: skip
def test_a_stress_of_another_unit_or_sign_is_doubted(name: str, text: str | None) -> None:
    from ase.build import bulk

    from molfun.backbones.pet.label_checks import doubts

    atoms = []
    for i in range(6):
        atoms.append(bulk("C", "diamond", a=3.3 + 0.1 * i))
        atoms[-1].rattle(0.05, seed=i)
    model = pet(head_config={"stress": True})
    model.backbone.set_scale("energy", 2.0)
    model.backbone.baselines_fitted[:] = True
    found = model.predict(atoms)
    factors = {"eV": 1.0, "GPa": 160.21766, "kbar": 1602.1766, "pressure": -1.0, "-kbar": -1602.18}
    labels = [
        {
            "energy": float(energy),
            "stress": factors.get(name, -a.cell.volume) * (stress + stress.T) / 2,
        }
        for a, energy, stress in zip(atoms, found["prediction"], found["stress"], strict=True)
    ]
    data = AtomsDataset(atoms, labels)
    run = functools.partial(run_now, model.backbone)
    texts = doubts(model.backbone, run, "energy", [data[i] for i in range(6)])
    assert [text in said for said in texts] == ([] if text is None else [True])

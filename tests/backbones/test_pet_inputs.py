"""PET: the head it has where none is named, and elements it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PET_TINY, build_atoms

from molfun.backbones.pet.weights import write_checkpoint
from molfun.data.atoms import AtomsDataset
from molfun.errors import DataError
from molfun.models.structure import MolfunStructureModel
from molfun.training import HeadOnlyFinetune


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

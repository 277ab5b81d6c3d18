"""PET: metatrain's own model, its checkpoints, its energies and forces, through the facade."""

from __future__ import annotations

import gzip
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_runs import Crash, StopAt
from tiny import PET_TINY, build_atoms, pair_energy

from molfun._io import sha256_of
from molfun.backbones.pet import PETBackbone
from molfun.backbones.pet.targets import random_turns
from molfun.backbones.pet.weights import read_checkpoint, write_checkpoint
from molfun.data.atoms import AtomsDataset
from molfun.errors import CheckpointError, ConfigError, DataError, UnsafeFileError
from molfun.models.energies import Forgetting
from molfun.models.structure import MolfunStructureModel
from molfun.sample import Sample, SampleBatch
from molfun.training import (
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)

HEADS = ("node_heads", "edge_heads", "node_last_layers", "edge_last_layers")


def dataset(n: int = 12, *, seed: int = 0, forces: bool = True) -> AtomsDataset:
    samples = build_atoms(n, seed=seed)
    labels = [s.target if forces else {"energy": s.target["energy"]} for s in samples]
    return AtomsDataset([s.atoms for s in samples], labels, ids=[s.id for s in samples])


def pet(**settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel(
        "pet", **{"config": PET_TINY, "head": "energy", "device": "cpu", **settings}
    )


@pytest.fixture(scope="module")
def trained() -> MolfunStructureModel:
    """Two epochs on a pair potential; not changed by tests."""
    model = pet()
    model.fit(dataset(), strategy=FullFinetune(lr=1e-3), epochs=2)
    return model


@pytest.fixture
def checkpoint(trained: MolfunStructureModel, tmp_path: Path) -> Path:
    """A checkpoint of metatrain's own."""
    path = tmp_path / "pet.ckpt"
    write_checkpoint(trained.backbone.stock_model(), path)
    return path


def stock_predictions(model: Any, atoms: list[Any], *, stress: bool = False) -> Any:
    """What metatrain's own code says: energies, forces, and stress."""
    from metatomic.torch import systems_to_torch
    from metatrain.utils.evaluate_model import evaluate_model
    from metatrain.utils.neighbor_lists import (
        get_requested_neighbor_lists,
        get_system_with_neighbor_lists,
    )

    from molfun.backbones.pet.targets import energy_info

    dtype = next(model.parameters()).dtype
    lists = get_requested_neighbor_lists(model)
    systems = [
        get_system_with_neighbor_lists(s, lists).to(dtype)
        for s in systems_to_torch(atoms, dtype=torch.float64)
    ]
    info = {"energy": energy_info("eV", forces=True, stress=stress)}
    block = evaluate_model(model, systems, info, is_training=False)["energy"].block()
    forces = -block.gradient("positions").values[..., 0].detach().numpy()
    virial = block.gradient("strain").values[..., 0].detach().numpy() if stress else None
    return block.values[:, 0].detach().numpy(), forces, virial


# --- numbers -------------------------------------------------------------------------------------


def test_energies_and_forces_are_those_of_metatrain(trained: MolfunStructureModel) -> None:
    atoms = dataset().atoms
    ours = trained.predict(atoms)
    energies, forces, _ = stock_predictions(trained.backbone.stock_model(), atoms)
    # metatrain adds the baseline in float32
    np.testing.assert_allclose(ours["prediction"], energies, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(ours["forces"]), forces, atol=1e-5)


def test_forces_are_minus_the_gradient(trained: MolfunStructureModel) -> None:
    atoms = build_atoms(1)[0].atoms
    model = pet()
    model.backbone.load_state_dict(trained.backbone.state_dict())
    model.backbone.weights_changed()
    model.backbone.double()
    model.backbone.use_readout("energy", forces=True)
    forces = model.predict([atoms])["forces"][0]
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energies.append(float(model.predict([moved])["prediction"][0]))
        assert -(energies[0] - energies[1]) / 2e-4 == pytest.approx(forces[atom, axis], abs=1e-6)


def test_stress_is_that_of_metatrain_and_of_finite_strains() -> None:
    from ase.build import bulk

    model = pet(backbone_config={"atomic_types": [6]}, head_config={"stress": True})
    model.backbone.double()
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    stress = model.predict([atoms])["stress"][0]
    _, _, virial = stock_predictions(model.backbone.stock_model(), [atoms], stress=True)
    np.testing.assert_allclose(stress * atoms.get_volume(), virial[0], atol=1e-10)
    energies = []
    for step in (1e-4, -1e-4):
        strained = atoms.copy()
        strain = np.eye(3)
        strain[0, 0] += step
        strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        energies.append(float(model.predict([strained])["prediction"][0]))
    slope = (energies[0] - energies[1]) / 2e-4 / atoms.get_volume()
    assert slope == pytest.approx(stress[0, 0], rel=1e-4)


def test_turned_structures_give_turned_forces_and_stress() -> None:
    """In training each structure is turned; what comes out is back in its own frame."""
    from ase.build import bulk

    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    backbone = PETBackbone(PET_TINY, atomic_types=[6]).double()
    backbone.use_readout("energy", forces=True, stress=True)
    batch = backbone.collate([backbone.featurize(Sample(id="c", atoms=atoms))])
    backbone.train()
    torch.manual_seed(3)
    turn = random_turns(1)[0]
    torch.manual_seed(3)
    properties = backbone(batch, outputs=("properties",)).properties
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn.numpy(), scale_atoms=True)
    backbone.augment = False
    other = backbone.collate([backbone.featurize(Sample(id="t", atoms=turned))])
    plain = backbone(other, outputs=("properties",)).properties
    torch.testing.assert_close(properties["energy"], plain["energy"])
    torch.testing.assert_close(properties["forces"][0] @ turn, plain["forces"][0])
    back = turn.mT @ properties["virial"][0] @ turn
    torch.testing.assert_close(back, plain["virial"][0])


def test_random_turns_are_orthogonal_and_mirror_half_of_the_time() -> None:
    torch.manual_seed(0)
    turns = random_turns(2000)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand(2000, 3, 3))
    assert float((torch.linalg.det(turns) < 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    # uniform: the mean of each entry is 0, its square 1/3
    assert float(turns.mean(0).abs().max()) < 0.05
    torch.testing.assert_close(
        turns.square().mean(0), torch.full((3, 3), 1 / 3).double(), atol=0.03, rtol=0
    )


def test_a_batch_is_its_structures_one_by_one(trained: MolfunStructureModel) -> None:
    atoms = dataset().atoms
    together = trained.predict(atoms)["prediction"]
    alone = [float(trained.predict([a])["prediction"][0]) for a in atoms]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_one_atom_alone_and_atoms_out_of_reach(trained: MolfunStructureModel) -> None:
    from ase import Atoms

    far = Atoms("HH", [[0, 0, 0], [0, 0, 50.0]])
    energies = trained.predict([Atoms("H"), far])["prediction"]
    assert float(energies[1]) == pytest.approx(2 * float(energies[0]), abs=1e-4)


def test_representations_feed_other_heads() -> None:
    data = dataset(8)
    numbers = AtomsDataset(data.atoms, [float(len(a)) for a in data.atoms], ids=data.ids)
    model = pet(head="linear")
    model.fit(numbers, strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    assert model.predict(data.atoms)["prediction"].shape == (8,)
    levels = [[float(z > 1) for z in a.numbers] for a in data.atoms]
    atoms = AtomsDataset(data.atoms, levels, ids=data.ids)
    per_atom = pet(head="mlp", task="regression", task_config={"level": "residue"})
    per_atom.fit(atoms, strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    assert [len(p) for p in per_atom.predict(data.atoms)["prediction"]] == list(data.lengths)


def test_a_molfun_head_on_a_frozen_backbone_uses_the_cache(tmp_path: Path) -> None:
    data = dataset(6)
    numbers = AtomsDataset(data.atoms, [float(len(a)) for a in data.atoms], ids=data.ids)
    runs = {}
    for cache in ("off", "disk"):
        model = pet(head="mlp", seed=1)
        history = model.fit(
            numbers,
            strategy=HeadOnlyFinetune(),
            epochs=3,
            cache=cache,
            cache_dir=tmp_path / cache,
        )
        runs[cache] = [row["train_loss"] for row in history], history.cache_report
    assert runs["off"][0] == runs["disk"][0]
    # once for the scale of the head's inputs, then three epochs
    assert "ran 6 times instead of 24" in runs["disk"][1]


# --- strategies ----------------------------------------------------------------------------------


def changed(model: MolfunStructureModel, before: dict[str, torch.Tensor]) -> set[str]:
    kinds = set()
    for name, tensor in model.backbone.base_state_dict().items():
        if not torch.equal(tensor, before[name]):
            kind = model.backbone.layer_of(name).kind
            kinds.add(f"block {model.backbone.layer_of(name).index}" if kind == "block" else kind)
    return kinds


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (HeadOnlyFinetune(lr=1e-3), {"head"}),
        (PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3), {"block 1", "head"}),
        (LoRAFinetune(lr_lora=1e-3), {"head"}),
        (FullFinetune(lr=1e-3), {"embedder", "block 0", "block 1", "head"}),
    ],
    ids=["head_only", "partial", "lora", "full"],
)
def test_a_strategy_changes_what_it_says_and_lowers_the_loss(
    checkpoint: Path, strategy: Any, expected: set[str]
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    before = {n: t.clone() for n, t in model.backbone.base_state_dict().items()}
    data = dataset(seed=0)
    history = model.fit(data, data, strategy=strategy, epochs=3)
    assert changed(model, before) == expected
    assert history[-1]["val_loss"] < history[0]["train_loss"]


def test_the_head_can_be_left_alone_or_trained_in_part(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True, head_config={"modules": []})
    before = {n: t.clone() for n, t in model.backbone.base_state_dict().items()}
    model.fit(dataset(4), strategy=LoRAFinetune(lr_lora=1e-3), epochs=1)
    assert changed(model, before) == set()
    part = pet(
        config=None, weights=checkpoint, trust=True, head_config={"modules": ["node_last_layers"]}
    )
    part.fit(dataset(4), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    moved = {n for n, t in part.backbone.base_state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all(".node_last_layers." in name for name in moved)


def test_adapters_change_nothing_when_they_are_put_in(checkpoint: Path) -> None:
    atoms = dataset().atoms
    model = pet(config=None, weights=checkpoint, trust=True)
    before = model.predict(atoms)["prediction"]
    LoRAFinetune(rank=4, alpha=8.0).setup(model)
    after = model.predict(atoms)["prediction"]
    assert float((after - before).abs().max()) <= 1e-6


def test_merged_adapters_are_the_weights_of_a_stock_checkpoint(
    checkpoint: Path, tmp_path: Path
) -> None:
    atoms = dataset().atoms
    model = pet(config=None, weights=checkpoint, trust=True)
    model.fit(dataset(), strategy=LoRAFinetune(rank=4, alpha=8.0, lr_lora=1e-2), epochs=2)
    adapted = model.predict(atoms)["prediction"]
    model.merge()
    write_checkpoint(model.backbone.stock_model(), tmp_path / "merged.ckpt")
    again = pet(config=None, weights=tmp_path / "merged.ckpt", trust=True)
    np.testing.assert_allclose(again.predict(atoms)["prediction"], adapted, atol=1e-4)
    assert not [n for n in again.backbone.state_dict() if "lora" in n]


def test_gradual_leaves_the_trunk_alone_until_its_epoch(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    before = {n: t.clone() for n, t in model.backbone.base_state_dict().items()}
    strategy = GradualFinetune(inner=FullFinetune(lr=1e-3), unfreeze_epoch=1)
    model.fit(dataset(4), strategy=strategy, epochs=1)
    assert changed(model, before) == {"head"}


def test_a_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    data = dataset(6)

    def run(folder: str, **options: Any) -> Any:
        model = pet(seed=2)
        loader = torch.utils.data.DataLoader(
            data, batch_size=2, shuffle=True, collate_fn=data.collate_fn
        )
        strategy = FullFinetune(lr=1e-3, ema_decay=0.9, scheduler="constant")
        history = model.fit(
            loader, data, strategy=strategy, epochs=3, output_dir=tmp_path / folder, **options
        )
        return model, history

    whole, history = run("whole")
    # in the middle of the second epoch: the turns of the structures have to go on, too
    with pytest.raises(Crash):
        run("parts", callbacks=[StopAt(5)], save_every_steps=1)
    resumed, rest = run("parts", resume=True)
    assert rest[-1]["val_loss"] == history[-1]["val_loss"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_suffices(trained: MolfunStructureModel, tmp_path: Path) -> None:
    atoms = dataset().atoms
    trained.save(tmp_path / "ck")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "ck", device="cpu")
    ours, theirs = trained.predict(atoms), again.predict(atoms)
    assert torch.equal(ours["prediction"], theirs["prediction"])
    assert all(np.array_equal(a, b) for a, b in zip(ours["forces"], theirs["forces"], strict=True))


def test_a_checkpoint_of_adapters_needs_no_second_trust(checkpoint: Path, tmp_path: Path) -> None:
    atoms = dataset().atoms
    model = pet(config=None, weights=checkpoint, trust=True)
    model.fit(dataset(4), strategy=LoRAFinetune(rank=2, lr_lora=1e-3), epochs=1)
    model.save(tmp_path / "ck")
    checkpoint.unlink()
    again = MolfunStructureModel.from_checkpoint(tmp_path / "ck", device="cpu")
    assert torch.equal(model.predict(atoms)["prediction"], again.predict(atoms)["prediction"])
    adapter = tmp_path / "ck" / "peft_adapter" / "adapter_model.safetensors"
    assert adapter.stat().st_size < 20_000


def test_metatrain_loads_and_exports_what_was_trained_here(
    trained: MolfunStructureModel, tmp_path: Path
) -> None:
    from metatrain.utils.io import load_model

    atoms = dataset().atoms
    path = tmp_path / "ours.ckpt"
    write_checkpoint(trained.backbone.stock_model(), path)
    energies, _, _ = stock_predictions(load_model(path).eval(), atoms)
    np.testing.assert_allclose(energies, trained.predict(atoms)["prediction"], atol=1e-4)


def test_a_pickle_needs_the_users_word(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsafeFileError, match="pass trust=True") as error:
        pet(config=None, weights=checkpoint)
    assert sha256_of(checkpoint) in str(error.value)
    listed = tmp_path / "trusted.txt"
    listed.write_text(f"{sha256_of(checkpoint)}  pet.ckpt\n")
    monkeypatch.setenv("MOLFUN_TRUSTED_FILES", str(listed))
    assert pet(config=None, weights=checkpoint).backbone.targets == {"energy": "eV"}
    monkeypatch.setenv("MOLFUN_TRUSTED_FILES", str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        pet(config=None, weights=checkpoint)


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (shutil.rmtree, (str(self.marker),))


def test_a_trusted_pickle_still_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "precious"
    marker.mkdir()
    for name, write in (("torch", torch.save), ("plain", lambda o, p: _dump(o, p))):
        path = tmp_path / f"{name}.ckpt"
        write({"architecture_name": "pet", "x": _Evil(marker)}, path)
        with pytest.raises((UnsafeFileError, CheckpointError), match=str(path)):
            read_checkpoint(path, trust=True)
        assert marker.exists()


def _dump(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file)


def test_a_damaged_or_foreign_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        pet(config=None, weights=tmp_path / "none.ckpt", trust=True)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        pet(config=None, weights=checkpoint, trust=True)
    other = tmp_path / "other.ckpt"
    torch.save({"architecture_name": "gap"}, other)
    with pytest.raises(CheckpointError, match="but of 'gap'"):
        pet(config=None, weights=other, trust=True)
    torch.save({"state_dict": {}}, other)
    with pytest.raises(CheckpointError, match="names no architecture"):
        pet(config=None, weights=other, trust=True)


def _shipped() -> list[Path]:
    import metatrain.pet

    folder = Path(metatrain.pet.__file__).parent / "tests" / "checkpoints"
    return sorted(folder.glob("*.ckpt.gz"))


@pytest.mark.parametrize("packed", _shipped()[:2] + _shipped()[-2:], ids=lambda p: p.name)
def test_checkpoints_of_all_versions_are_read(packed: Path, tmp_path: Path) -> None:
    """The oldest and newest of those that metatrain ships for its own tests."""
    path = tmp_path / packed.stem
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    model = pet(config=None, weights=path, trust=True)
    energies = model.predict([s.atoms for s in build_atoms(2)])["prediction"]
    assert torch.isfinite(energies).all()


def test_adapters_of_metatrain_are_folded_in(checkpoint: Path) -> None:
    from metatrain.pet.modules.finetuning import LoRALinear, inject_lora_layers

    from molfun.backbones.pet.weights import fold_adapters

    model = pet(config=None, weights=checkpoint, trust=True).backbone.stock_model()
    atoms = dataset(3).atoms
    torch.manual_seed(0)
    inject_lora_layers(model, rank=4, alpha=8.0, dtype=torch.float32)
    assert any(isinstance(m, LoRALinear) for m in model.modules())
    adapted, _, _ = stock_predictions(model.eval(), atoms)
    fold_adapters(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    folded, _, _ = stock_predictions(model.eval(), atoms)
    np.testing.assert_allclose(folded, adapted, atol=1e-4)


# --- targets -------------------------------------------------------------------------------------


def test_the_baseline_is_fitted_once_and_kept(trained: MolfunStructureModel) -> None:
    energies, scale = trained.backbone.baseline_of("energy")
    # the labels have -2 Z for each element, plus pairs
    slope = (energies[8] - energies[6]) / 2
    assert slope == pytest.approx(-2.0, abs=1.5)
    assert scale > 0
    assert pet().backbone.baseline_of("energy") is None


def test_another_energy_starts_from_the_head_of_the_old_one(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = dataset().atoms
    old = model.predict(atoms)["prediction"]
    model.add_target("energy/shifted", inherit="energy", keep_old=True)
    assert list(model.backbone.targets) == ["energy", "energy/shifted"]
    labels = [
        {"energy": pair_energy(a)["energy"] + 5.0 * len(a), "forces": pair_energy(a)["forces"]}
        for a in atoms
    ]
    model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-3), epochs=2)
    theirs, _ = model.backbone.baseline_of("energy")
    ours, _ = model.backbone.baseline_of("energy/shifted")
    assert ours[8] - theirs[8] == pytest.approx(5.0, abs=0.5)
    new = model.predict(atoms)["prediction"]
    assert float((new - old).mean()) == pytest.approx(
        5.0 * float(np.mean([len(a) for a in atoms])), rel=0.05
    )
    # the old one is still there, and as it was: only the new head trained
    model.use_target("energy")
    torch.testing.assert_close(model.predict(atoms)["prediction"], old)
    metrics = model.evaluate(dataset())
    assert np.isfinite(metrics["energy_mae"])


def test_a_new_energy_survives_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    model.add_target("energy/b", inherit="energy", keep_old=False)
    assert list(model.backbone.targets) == ["energy/b"]
    data = dataset(4)
    model.fit(data, strategy=HeadOnlyFinetune(lr=1e-3), epochs=1, output_dir=tmp_path / "run")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "run" / "checkpoint", device="cpu")
    expected = model.predict(data.atoms)["prediction"]
    assert torch.equal(again.predict(data.atoms)["prediction"], expected)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "energy"}, "has a target 'energy' already"),
        ({"name": "energy/x", "inherit": "enrgy"}, "inherit='enrgy' is no target of this model"),
        ({"name": "energy/a.b"}, "cannot be the name of an energy"),
        ({"name": "foo"}, "cannot be the name of an energy"),
        ({"name": "energy/x", "unit": "foo"}, "'foo' is no unit of energy"),
    ],
)
def test_a_wrong_new_target_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pet().add_target(**arguments)


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (23.060548, "probably in kcal/mol: divide them by 23.0605"),
        (96.485332, "probably in kJ/mol"),
        (1 / 27.211386, "probably in hartree"),
        (1.7, "another level of theory, another zero or another unit"),
    ],
)
def test_labels_in_another_unit_are_doubted(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, factor: float, text: str
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = dataset().atoms
    labels = [{"energy": factor * pair_energy(a)["energy"]} for a in atoms]
    model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    assert text in caplog.text


def test_labels_in_the_right_unit_are_not(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    model.fit(dataset(), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    assert "lie" not in caplog.text


def test_what_is_forgotten_of_the_old_energy(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = dataset().atoms
    model.add_target("energy/b", inherit="energy")
    labels = [{**pair_energy(a), "energy": -3.0 * pair_energy(a)["energy"]} for a in atoms]
    report = Forgetting(model, dataset())
    model.fit(
        AtomsDataset(atoms, labels),
        strategy=FullFinetune(lr=1e-2, layer_lr_decay=1.0),
        epochs=2,
        callbacks=[report],
    )
    assert report.target == "energy"
    assert report.after["energy_mae"] != report.before["energy_mae"]
    assert str(report).startswith("energy before and after: energy_mae ")
    # the readout in use is the new one again
    assert model.backbone.readout.target == "energy/b"
    frozen = Forgetting(model, dataset())
    model.fit(
        AtomsDataset(atoms, labels),
        strategy=HeadOnlyFinetune(lr=1e-2),
        epochs=1,
        callbacks=[frozen],
    )
    # to rounding: what trains decides which kernels run
    assert frozen.after == pytest.approx(frozen.before, rel=1e-6)


def crystal(seed: int) -> Any:
    from ase.build import bulk

    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_stress_trains_beside_structures_that_have_none() -> None:
    """Molecules and slabs have no volume: their label says nothing, and no gradient is NaN."""
    molecules = dataset(3)
    slab = crystal(9)
    slab.pbc = (True, True, False)
    label = {"energy": -1.0, "stress": np.full((3, 3), 0.1)}
    labels = [{**target, "stress": np.zeros((3, 3))} for target in molecules.targets]
    data = AtomsDataset(
        [*molecules.atoms, slab, *[crystal(i) for i in range(3)]],
        [*labels, label, *[label] * 3],
    )
    model = pet()
    history = model.fit(data, strategy=FullFinetune(lr=1e-3), epochs=2)
    assert history[-1]["skipped"] == 0
    assert np.isfinite(history[-1]["train_loss"])
    stress = model.predict(data.atoms)["stress"]
    assert [bool(np.isfinite(s).all()) for s in stress] == [False] * 4 + [True] * 3
    assert np.isfinite(model.evaluate(data)["stress_mae"])
    alone = model.predict(molecules.atoms)["stress"]
    assert all(np.isnan(s).all() for s in alone)


def test_targets_other_than_energies_stay(tmp_path: Path) -> None:
    from metatrain.utils.data import DatasetInfo
    from metatrain.utils.data.target_info import get_generic_target_info

    from molfun.backbones.pet import targets

    charge = get_generic_target_info(
        "mtt::charge",
        {
            "quantity": "", "unit": "", "type": "scalar", "num_subtargets": 1,
            "sample_kind": "atom", "description": "",
        },
    )  # fmt: skip
    info = DatasetInfo(
        "angstrom", [1, 6, 7, 8], {"mtt::charge": charge, "energy": targets.energy_info("eV")}
    )
    backbone = PETBackbone(PET_TINY, description=targets.describe(info))
    path = tmp_path / "two.ckpt"
    write_checkpoint(backbone.stock_model(), path)
    model = pet(config=None, weights=path, trust=True)
    assert list(model.backbone.targets) == ["energy"]
    assert model.backbone.baseline_of("energy") is None
    model.add_target("energy/b", inherit="energy")
    model.fit(dataset(6), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    assert model.backbone.baseline_of("energy/b") is not None
    assert model.backbone.baseline_of("energy") is None
    assert "mtt::charge" in model.backbone.model.dataset_info.targets


def test_forces_are_learned_when_they_come_later() -> None:
    model = pet()
    model.fit(dataset(6, forces=False), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    assert "forces" not in model.predict(dataset(2).atoms)
    model.fit(dataset(6), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    assert "forces" in model.predict(dataset(2).atoms)
    assert np.isfinite(model.evaluate(dataset(6))["forces_mae"])


def test_energies_that_the_elements_explain_have_the_scale_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    atoms = dataset(6).atoms
    labels = [{"energy": -1.5 * float(a.numbers.sum())} for a in atoms]
    model = pet()
    model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
    energies, scale = model.backbone.baseline_of("energy")
    assert scale == 1.0
    assert energies[8] == pytest.approx(-12.0, abs=1e-6)
    assert "no more than a sum over their elements" in caplog.text


def test_atoms_are_embedded() -> None:
    model = pet()
    atoms = dataset(4).atoms
    arrays = model.embed(atoms, batch_tokens=10)
    assert [len(a) for a in arrays] == [len(a) for a in atoms]
    means = model.embed(atoms, pooling="mean")
    single = model.embed(atoms[0])[0]
    assert np.allclose(single, arrays[0], atol=1e-6)
    for mean, array in zip(means, arrays, strict=True):
        assert np.allclose(mean, array.mean(0), atol=1e-6)
    batch = [Sample(id=str(i), atoms=a) for i, a in enumerate(atoms)]
    trunk = model.predict(batch, outputs=("single",))["trunk"]
    assert np.allclose(trunk.single[1, : len(atoms[1])].numpy(), arrays[1], atol=1e-6)


def test_a_checkpoint_needs_no_weights(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    model.save(tmp_path / "c")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "c", weights=checkpoint, device="cpu")
    assert "holds the whole backbone" in caplog.text
    atoms = dataset(2).atoms
    assert torch.equal(again.predict(atoms)["prediction"], model.predict(atoms)["prediction"])


def test_outputs_are_for_one_batch() -> None:
    with pytest.raises(ConfigError, match="outputs is for one batch, and this is a loader"):
        pet().predict(dataset(2).atoms, outputs=("single",))


def test_a_report_changes_nothing_of_the_run() -> None:
    losses = []
    for reported in (False, True):
        model = pet(seed=4)
        model.fit(dataset(4), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1)
        model.add_target("energy/b", inherit="energy")
        callbacks = [Forgetting(model, dataset(4))] if reported else []
        history = model.fit(
            dataset(4), strategy=FullFinetune(lr=1e-3), epochs=3, callbacks=callbacks
        )
        losses.append([row["train_loss"] for row in history])
    assert losses[0] == losses[1]


def test_the_unit_of_a_new_energy_is_doubted_too(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = dataset().atoms
    labels = [{"energy": 23.060548 * pair_energy(a)["energy"]} for a in atoms]
    for unit, doubted in ((None, True), ("kcal/mol", False)):
        caplog.clear()
        model = pet(config=None, weights=checkpoint, trust=True)
        model.add_target("energy/b", inherit="energy", unit=unit)
        model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
        assert ("probably in kcal/mol" in caplog.text) is doubted


def test_a_baseline_that_was_never_fitted_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "raw.ckpt"
    write_checkpoint(PETBackbone(PET_TINY).stock_model(), path)
    model = pet(config=None, weights=path, trust=True)
    assert model.backbone.baseline_of("energy") is None


def test_double_precision_survives_a_checkpoint(tmp_path: Path) -> None:
    model = pet(backbone_config={"dtype": "float64"})
    data = dataset(4)
    model.fit(data, strategy=HeadOnlyFinetune(lr=1e-3), epochs=1, output_dir=tmp_path / "run")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "run" / "checkpoint", device="cpu")
    assert next(again.backbone.parameters()).dtype == torch.float64
    expected = model.predict(data.atoms)["prediction"]
    assert torch.equal(again.predict(data.atoms)["prediction"], expected)


def test_other_heads_take_energies_of_plain_structures() -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = [a.copy() for a in dataset(4).atoms]
    for a in atoms:
        a.calc = SinglePointCalculator(a, **pair_energy(a))
    model = pet(head="mlp")
    model.fit(atoms, strategy=HeadOnlyFinetune(), epochs=1)
    assert model.predict(atoms)["prediction"].shape == (4,)


# --- wrong input ---------------------------------------------------------------------------------


def test_wrong_structures_are_named_before_training() -> None:
    from ase import Atoms

    model = pet()
    broken = Atoms("H2", [[0, 0, 0], [0, 0, np.nan]])
    data = AtomsDataset(
        [Atoms("Fe"), Atoms(), broken], [1.0, 1.0, 1.0], ids=["iron", "none", "nan"]
    )
    with pytest.raises(DataError) as error:
        model.fit(data, strategy=HeadOnlyFinetune(), epochs=1)
    text = str(error.value)
    assert "3 samples cannot be used with PET" in text
    assert "Fe in 1 structure (iron), which this model does not know (it knows H, C, N, O)" in text
    assert "none has no atoms" in text
    assert "nan has positions or a cell that are not finite numbers" in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"config": {"d_pett": 3}}, "Did you mean 'd_pet'"),
        ({"head_config": {"target": "enrgy"}}, "Did you mean 'energy'"),
        ({"head_config": {"modules": ["node_head"]}}, "Did you mean 'node_heads'"),
        ({"head": "contact"}, "needs pair_dim"),
    ],
)
def test_a_wrong_setting_gets_the_nearest_name(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pet(**settings)


def test_the_energy_head_is_for_atoms() -> None:
    with pytest.raises(ConfigError, match="a part of models of atoms"):
        MolfunStructureModel("esm2_tiny", head="energy", device="cpu")


def test_config_and_weights_exclude_each_other(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="config cannot be chosen with weights"):
        pet(weights=checkpoint, trust=True)


def test_structures_are_filtered_by_their_columns() -> None:
    data = AtomsDataset(dataset(4).atoms, metadata={"group": ["a", "b", "a", "c"]})
    assert data.filter(group="a").ids == ["structure_1", "structure_3"]
    with pytest.raises(DataError, match=r"No sample of AtomsDataset\(.* meets"):
        data.filter(group="d")


def few_isomers(n: int = 5) -> list[Any]:
    """Structures of one formula."""
    first = build_atoms(1, lengths=(9,))[0].atoms
    first.numbers[first.numbers == 7] = 6
    found = []
    for seed in range(n):
        atoms = first.copy()
        atoms.rattle(0.1, seed=seed)
        found.append(atoms)
    return found


def test_a_new_energy_begins_as_the_old_one(checkpoint: Path) -> None:
    """Also on one formula, where the spread of the labels says little of the scale."""
    model = pet(config=None, weights=checkpoint, trust=True, head_config={"forces": True})
    atoms = few_isomers()
    old = model.predict(atoms)
    energies, scale = model.backbone.baseline_of("energy")
    model.add_target("energy/b", inherit="energy")
    assert torch.equal(model.predict(atoms)["prediction"], old["prediction"])
    labels = [{"energy": float(e) + 7.0} for e in old["prediction"]]
    data = AtomsDataset(atoms, labels)
    model.fit(data, strategy=HeadOnlyFinetune(lr=1e-12), epochs=1)
    new = model.predict(atoms)
    assert torch.allclose(new["prediction"], old["prediction"] + 7.0, atol=1e-6)
    assert np.allclose(new["forces"][0], old["forces"][0], atol=1e-6)
    ours, kept = model.backbone.baseline_of("energy/b")
    assert kept == scale
    assert ours[7] == energies[7]  # of an element that no label tells of


def test_a_new_energy_in_another_unit_begins_as_the_old_one(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = few_isomers(2)
    old = model.predict(atoms)["prediction"]
    model.add_target("energy/b", inherit="energy", unit="kcal/mol")
    assert torch.allclose(model.predict(atoms)["prediction"], 23.060548 * old)


def test_elements_that_labels_cannot_tell_apart(caplog: pytest.LogCaptureFixture) -> None:
    atoms = few_isomers()
    model = pet()
    labels = [pair_energy(a) for a in atoms]
    model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    assert "The energies of 'energy' are of a single formula of " in caplog.text
    caplog.clear()
    pet().fit(dataset(), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    assert "told apart" not in caplog.text


def test_energies_that_come_after_forces_leave_the_forces_as_they_are() -> None:
    atoms = dataset(6).atoms
    forces = [{"forces": pair_energy(a)["forces"]} for a in atoms]
    model = pet()
    model.fit(AtomsDataset(atoms, forces), strategy=FullFinetune(lr=1e-3), epochs=1)
    before = model.predict(atoms)["forces"]
    model.fit(dataset(6), strategy=HeadOnlyFinetune(lr=1e-12), epochs=1)
    after = model.predict(atoms)["forces"]
    for a, b in zip(before, after, strict=True):
        assert np.allclose(a, b, atol=1e-6)
    assert model.evaluate(dataset(6))["energy_mae"] < 1000.0


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1.0, None),
        (-1.0, "probably gradients of the energy. Multiply them by -1."),
        (23.060548, "(they might be in kcal/mol/angstrom)"),
        (1 / 27.211386 * 0.529177, "(they might be in hartree/bohr)"),
    ],
)
def test_forces_that_are_not_what_they_should_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factor: float, text: str | None
) -> None:
    model = pet()
    model.fit(dataset(40), strategy=FullFinetune(lr=5e-3, lr_head=5e-3), epochs=8)
    path = tmp_path / "pet.ckpt"
    write_checkpoint(model.backbone.stock_model(), path)
    model = pet(config=None, weights=path, trust=True)
    data = dataset(20)
    labels = [{**label, "forces": factor * label["forces"]} for label in data.targets]
    caplog.clear()
    model.fit(AtomsDataset(data.atoms, labels), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    assert ("The forces" in caplog.text) is (text is not None)
    if text is not None:
        assert text in caplog.text


def test_forces_are_measured_where_there_are_labels(checkpoint: Path) -> None:
    """Also before any training, and by a model trained on energies alone."""
    data = dataset(6)
    model = pet(config=None, weights=checkpoint, trust=True)
    assert "forces" not in model.predict(data)
    found = model.evaluate(data)
    forced = pet(config=None, weights=checkpoint, trust=True, head_config={"forces": True})
    assert found == forced.evaluate(data)
    predicted = np.concatenate(forced.predict(data)["forces"])
    labels = np.concatenate([label["forces"] for label in data.targets])
    assert found["forces_mae"] == pytest.approx(1000 * np.abs(predicted - labels).mean(), rel=1e-5)
    assert "forces" not in model.predict(data)  # as before
    unasked = pet(config=None, weights=checkpoint, trust=True, head_config={"forces": False})
    assert "forces_mae" not in unasked.evaluate(data)


def test_atoms_bring_their_labels_along() -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = few_isomers(3)
    for i, a in enumerate(atoms[:2]):
        a.calc = SinglePointCalculator(a, energy=float(i))
    data = AtomsDataset(atoms)
    assert data.targets == [{"energy": 0.0}, {"energy": 1.0}, None]
    assert AtomsDataset(atoms, [None] * 3).targets == [None] * 3


def test_weights_in_another_precision(checkpoint: Path) -> None:
    options = {"config": None, "weights": checkpoint, "trust": True}
    model = pet(**options, backbone_config={"dtype": "float64"})
    assert next(model.backbone.parameters()).dtype == torch.float64
    atoms = few_isomers(2)
    single = pet(**options).predict(atoms)["prediction"]
    assert torch.allclose(model.predict(atoms)["prediction"], single, atol=1e-4)
    with pytest.raises(ConfigError, match="Unknown dtype 'float16'"):
        pet(**options, backbone_config={"dtype": "float16"})


def test_a_checkpoint_with_charges_goes_out_again(tmp_path: Path) -> None:
    """metatrain registers their embedding under two names."""
    packed = next(p for p in _shipped() if "conditioning" in p.name)
    path = tmp_path / packed.stem
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    model = pet(config=None, weights=path, trust=True)
    before = model.predict(few_isomers(2))["prediction"]
    model.save(tmp_path / "c")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")
    write_checkpoint(again.backbone.stock_model(), tmp_path / "out.ckpt")
    last = pet(config=None, weights=tmp_path / "out.ckpt", trust=True)
    assert torch.equal(last.predict(few_isomers(2))["prediction"], before)


def test_predictions_of_an_energy_without_labels_are_doubted(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = few_isomers(2)
    model.predict(atoms)
    model.add_target("energy/copy", inherit="energy").predict(atoms)
    assert "mean nothing yet" not in caplog.text
    model.add_target("energy/new").predict(atoms)
    assert "The energy 'energy/new' was not fitted to any label" in caplog.text


def test_atoms_in_one_place_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    atoms = few_isomers(1)[0]
    atoms.positions[1] = atoms.positions[0] + 0.01
    pet().predict([Sample(id="bad", atoms=atoms)])
    assert "bad has atoms 0.02 angstrom apart." in caplog.text


def test_nothing_to_predict() -> None:
    with pytest.raises(DataError, match="The data is empty: there are no samples"):
        pet().predict([])
    text = r"'x.xyz' is a path, not data. Read the file with AtomsDataset.from_files"
    with pytest.raises(DataError, match=text):
        pet().predict("x.xyz")


def test_exported_targets_are_described(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    model.add_target("energy/b", inherit="energy")
    found = model.backbone.stock_model().dataset_info.targets
    assert [info.description for info in found.values()] == ["energy", "energy/b"]


def test_the_only_energy_is_taken_whatever_its_name(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    model.add_target("energy/a", inherit="energy", keep_old=False)
    write_checkpoint(model.backbone.stock_model(), tmp_path / "a.ckpt")
    again = pet(config=None, weights=tmp_path / "a.ckpt", trust=True)
    assert again.head.config_dict["target"] == "energy/a"
    atoms = few_isomers(2)
    assert torch.equal(again.predict(atoms)["prediction"], model.predict(atoms)["prediction"])
    model.add_target("energy/b", inherit="energy/a")
    write_checkpoint(model.backbone.stock_model(), tmp_path / "b.ckpt")
    assert "has the energies" not in caplog.text
    first = pet(config=None, weights=tmp_path / "b.ckpt", trust=True)
    assert first.backbone.readout.target == "energy/a"
    assert "has the energies energy/a, energy/b: the first is used" in caplog.text
    chosen = pet(
        config=None, weights=tmp_path / "b.ckpt", trust=True, head_config={"target": "energy/b"}
    )
    assert chosen.backbone.readout.target == "energy/b"


@pytest.mark.parametrize("forces_first", [False, True])
def test_what_is_still_to_be_fitted_is_remembered_by_a_stock_checkpoint(
    checkpoint: Path, tmp_path: Path, forces_first: bool
) -> None:
    atoms = dataset().atoms
    if forces_first:
        model = pet()
        labels = [{"forces": pair_energy(a)["forces"]} for a in atoms]
        model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
        target = "energy"
    else:
        model = pet(config=None, weights=checkpoint, trust=True)
        model.add_target(target := "energy/b", inherit="energy")
    write_checkpoint(model.backbone.stock_model(), tmp_path / "b.ckpt")
    again = pet(config=None, weights=tmp_path / "b.ckpt", trust=True).use_target(target)
    shifted = [{"energy": pair_energy(a)["energy"] - 1000.0 * len(a)} for a in atoms]
    data = AtomsDataset(atoms, shifted)
    for m in (again, model):
        m.fit(data, strategy=HeadOnlyFinetune(lr=1e-12), epochs=1)
    found = again.evaluate(data)
    assert found["energy_mae"] == pytest.approx(model.evaluate(data)["energy_mae"], rel=1e-3)
    assert found["energy_mae"] < 1000.0
    write_checkpoint(again.backbone.stock_model(), tmp_path / "c.ckpt")
    last = pet(config=None, weights=tmp_path / "c.ckpt", trust=True)
    assert last.backbone.baseline_of(target) is not None


@pytest.mark.parametrize("unit", ["Ry", "kcal / mol", "hartree"])
def test_units_are_those_of_metatomic(checkpoint: Path, unit: str) -> None:
    from metatomic.torch import unit_conversion_factor

    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = few_isomers(2)
    old = model.predict(atoms)["prediction"]
    model.add_target("energy/b", inherit="energy", unit=unit)
    new = model.predict(atoms)["prediction"]
    assert torch.allclose(new, unit_conversion_factor("eV", unit) * old)


def test_a_head_is_inherited_twice(checkpoint: Path) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = few_isomers(2)
    old = model.predict(atoms)["prediction"]
    model.add_target("energy/a", inherit="energy").add_target("energy/b", inherit="energy/a")
    assert torch.equal(model.predict(atoms)["prediction"], old)


def test_structures_at_rest_give_no_scale_to_forces() -> None:
    atoms = dataset(40).atoms
    labels = [{"forces": np.zeros((len(a), 3))} for a in atoms[:35]]
    labels += [{"forces": pair_energy(a)["forces"]} for a in atoms[35:]]
    model = pet()
    history = model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(), epochs=1)
    assert np.isfinite(history[-1]["train_loss"])
    resting = [{"forces": np.zeros((len(a), 3))} for a in atoms]
    history = pet().fit(AtomsDataset(atoms, resting), strategy=HeadOnlyFinetune(), epochs=1)
    assert np.isfinite(history[-1]["train_loss"])


def test_forces_of_another_number_of_atoms() -> None:
    atoms = few_isomers(1)[0]
    sample = Sample(id="odd", atoms=atoms, target={"energy": 1.0, "forces": np.ones((3, 3))})
    with pytest.raises(DataError, match=r"odd has 9 atoms, and forces of shape \(3, 3\)"):
        pet().fit([SampleBatch([sample])], epochs=1)


def test_the_loss_of_a_trained_model_is_that_of_its_training(tmp_path: Path) -> None:
    """Labels it was not trained on are measured, and no part of the loss."""
    model = pet()
    history = model.fit(
        dataset(6, forces=False), dataset(4, seed=1), strategy=HeadOnlyFinetune(lr=1e-3), epochs=1
    )
    model.save(tmp_path / "c")
    for m in (model, MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")):
        found = m.evaluate(dataset(4, seed=1))
        assert found["loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-5)
        assert found["forces_mae"] > 0


def test_another_level_of_theory_is_no_other_unit(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pet(config=None, weights=checkpoint, trust=True)
    atoms = few_isomers(6)
    old = model.predict(atoms)["prediction"]
    model.add_target("energy/b", inherit="energy")
    labels = [{"energy": 23.0 * float(e)} for e in old]  # one formula: as well a shift
    model.fit(AtomsDataset(atoms, labels), strategy=HeadOnlyFinetune(lr=1e-9), epochs=1)
    assert "probably in" not in caplog.text


def test_stale_results_of_a_calculator_are_no_labels() -> None:
    from ase.calculators.emt import EMT

    atoms = few_isomers(1)[0]
    atoms.calc = EMT()
    atoms.get_forces()
    assert set(AtomsDataset([atoms]).targets[0]) == {"energy", "forces"}
    atoms.rattle(0.1)
    assert AtomsDataset([atoms]).targets == [None]
    atoms.info["energy"] = "-3.2 eV"
    with pytest.raises(DataError, match=r"structure_1: 'energy' is '-3.2 eV', and a label is"):
        AtomsDataset([atoms])


def test_streams_of_batches_are_evaluated_once() -> None:
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __init__(self, samples: list[Sample]) -> None:
            self.left = iter(samples)

        def __iter__(self) -> Any:
            return self.left

        def __len__(self) -> int:
            return 6

    data = dataset(6)
    samples = [data[i] for i in range(6)]
    model = pet()
    model.fit(data, strategy=HeadOnlyFinetune(lr=1e-6), epochs=1)
    loader = DataLoader(Stream(samples), batch_size=2, collate_fn=SampleBatch)
    assert model.evaluate(loader)["energy_mae"] == pytest.approx(model.evaluate(data)["energy_mae"])


def test_embedding_a_loader() -> None:
    from torch.utils.data import DataLoader

    data = dataset(5)
    model = pet()
    loader = DataLoader(data, batch_size=2, collate_fn=data.collate_fn)
    assert np.array_equal(model.embed(loader, pooling="mean"), model.embed(data, pooling="mean"))
    trunk = model.predict([data[0]], outputs=())["trunk"]
    assert trunk.single is None

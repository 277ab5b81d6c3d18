"""Crops that are drawn: which residues, from which numbers, and that caches keep none of them."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from pdb_text import pdb_chain
from tiny import build_tiny_model
from torch.utils.data import DataLoader

from molfun.data import AffinityDataset, NamedTargets, SequenceDataset, StructureDataset
from molfun.errors import ConfigError
from molfun.protein import CA, INTERFACE, Protein
from molfun.training.batches import EpochBatches
from molfun.training.cache import PrefixCache
from molfun.training.feature_cache import FeatureCache
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs

LONG = "ALA GLY SER LEU LYS TRP TYR VAL GLU ASP"
RNG = np.random.default_rng


def placed(chains: list[str], gaps: list[float]) -> Protein:
    """Return straight chains, each shifted by a gap from the one before; CA atoms 3.8 apart."""
    protein = Protein.from_chains(chains)
    mask, places = np.zeros((len(protein), 37), np.float32), np.zeros((len(protein), 37, 3))
    mask[:, :3] = 1
    steps = np.concatenate([np.arange(len(chain)) for chain in chains])
    for atom in range(3):
        places[:, atom, 0] = 3.8 * steps + atom - CA
        places[:, atom, 1] = np.cumsum([0.0, *gaps])[protein.chain_index]
    return replace(protein, atom_mask=mask, atom_positions=places.astype(np.float32))


# Which residues


def test_windows_of_one_chain_reach_every_residue():
    protein, rng = Protein.from_sequence("ACDEFGHIKLMNPQRS"), RNG(0)
    crops = [protein.random_crop(5, "contiguous", rng) for _ in range(200)]
    starts = {int(crop.positions[0]) for crop in crops}
    assert starts == set(range(12))
    assert all((np.diff(crop.positions) == 1).all() and len(crop) == 5 for crop in crops)
    assert crops[0].notes[-1] == "cropped from 16 to 5 residues (contiguous, drawn)"
    assert crops[0].full_sequence == protein.sequence


def test_windows_of_several_chains():
    protein, rng = Protein.from_chains(["ACDEFG", "HIKLM", "NPQ"]), RNG(0)
    shares = set()
    for _ in range(300):
        crop = protein.random_crop(7, "contiguous", rng)
        assert len(crop) == 7
        assert (np.diff(crop.positions) > 0).all()
        jumps = np.diff(crop.positions) > 1
        # a window per chain: residues are only left out between chains
        assert (np.diff(crop.chain_index)[jumps] > 0).all()
        shares.add(tuple(np.bincount(crop.chain_index, minlength=3)))
    assert len(shares) > 8


def test_spatial_crops_are_the_nearest_to_a_residue():
    protein, rng = placed(["ACDEFGHI", "KLMNPQRS"], [6.0]), RNG(0)
    place = protein.atom_positions[:, CA]
    sets = {
        frozenset(np.argsort(np.linalg.norm(place - centre, axis=1), kind="stable")[:5].tolist())
        for centre in place
    }
    drawn = {
        frozenset(protein.random_crop(5, "spatial", rng).positions.tolist()) for _ in range(200)
    }
    assert drawn == sets


def test_interface_crops_are_around_the_interface():
    # the second chain begins where the first one ends: only these ends are near each other
    protein, rng = placed(["A" * 20, "G" * 20], [10.0]), RNG(0)
    shifted = protein.atom_positions.copy()
    shifted[20:, :, 0] += 3.8 * 19
    protein = replace(protein, atom_positions=shifted)
    near = protein.interface_distance() <= INTERFACE
    assert 0 < near.sum() < 20
    for _ in range(50):
        crop = protein.random_crop(9, "interface", rng)
        assert near[crop.positions].any()
        assert set(crop.chain_index) == {0, 1}
    far = replace(protein, atom_positions=shifted + 100 * protein.chain_index[:, None, None])
    assert not (far.interface_distance() <= INTERFACE).any()
    assert len(far.random_crop(9, "interface", rng)) == 9  # around any residue


def test_auto_is_contiguous_and_for_complexes_half_interface():
    rng = RNG(0)
    single = [placed(["A" * 20], []).random_crop(8, "auto", rng) for _ in range(20)]
    assert {crop.notes[-1].split("(")[1] for crop in single} == {"contiguous, drawn)"}
    pair = [placed(["A" * 20, "G" * 20], [6.0]).random_crop(8, "auto", rng) for _ in range(100)]
    n = sum("interface" in crop.notes[-1] for crop in pair)
    assert 30 < n < 70
    # without coordinates there is no interface
    bare = Protein.from_chains(["A" * 20, "G" * 20]).random_crop(8, "spatial", rng)
    assert len(bare) == 8


def test_short_structures_draw_nothing():
    protein, rng = Protein.from_sequence("ACD"), RNG(3)
    assert protein.random_crop(3, "auto", rng) is protein
    assert rng.random() == RNG(3).random()
    with pytest.raises(ConfigError, match="Unknown policy of random crops 'middle'; allowed: auto"):
        protein.random_crop(2, "middle", rng)
    with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
        protein.random_crop(0, "auto", rng)


# The data set


@pytest.fixture
def folder(write):
    for i, name in enumerate("abcd"):
        chain = LONG.split()
        write(f"s/{name}.pdb", pdb_chain(" ".join(chain[i:] + chain[:i])))
    return write("s/e_short.pdb", pdb_chain("GLY ALA GLY")).parent


def epoch_of(data, epoch: int, *, workers: int = 0, start: int = 0):
    loader = DataLoader(
        data, batch_size=2, shuffle=True, collate_fn=data.collate_fn, num_workers=workers
    )
    batches = EpochBatches(loader, seed=7).epoch(epoch, start=start)
    return {s.id: s for batch in batches for s in batch}


def test_crops_depend_on_seed_epoch_and_sample_alone(folder, caplog):
    data = StructureDataset.from_folder(folder, max_length=4)
    with caplog.at_level(logging.INFO):
        view = data.random_crops("contiguous")
    assert (
        "4 of 5 structures: longer than 4 residues, so another part (contiguous) is drawn in each "
        "epoch, and caches keep nothing of them." in caplog.messages
    )
    first, again = epoch_of(view, 0), epoch_of(view, 0)
    assert {k: s.protein.sequence for k, s in first.items()} == {
        k: s.protein.sequence for k, s in again.items()
    }
    # a resumed epoch gives the rest of it
    rest = epoch_of(view, 0, start=1)
    assert len(rest) == 3
    assert all(s.protein.sequence == first[k].protein.sequence for k, s in rest.items())
    parts = {tuple(epoch_of(view, i)["a"].protein.positions) for i in range(12)}
    assert len(parts) > 3
    for sample in first.values():
        assert sample.target is sample.protein
        assert sample.drawn == (sample.id != "e_short")
    assert epoch_of(view, 3, workers=2)["b"].protein.sequence == (
        epoch_of(view, 3)["b"].protein.sequence
    )


def test_the_data_set_itself_stays_as_it_is(folder):
    data = StructureDataset.from_folder(folder, max_length=4)
    view = data.random_crops("auto")
    assert (data.draws_nothing, view.draws_nothing) == (True, False)
    assert data[0].protein is data[0].protein
    assert not data[0].drawn
    assert [t.sequence for t in view.targets] == [t.sequence for t in data.targets]
    assert view.input_settings == {**data.input_settings, "draw": "auto"}
    assert view.subset([1, 4]).draw == "auto"
    assert StructureDataset.from_folder(folder, max_length=10).random_crops().draws_nothing
    with pytest.raises(ConfigError, match="random_crops needs max_length"):
        StructureDataset.from_folder(folder).random_crops()
    with pytest.raises(ConfigError, match="Unknown policy"):
        data.random_crops("middle")


def test_resolution_goes_with_the_crop(folder):
    data = StructureDataset.from_folder(folder, max_length=4, resolution=2.5).random_crops()
    assert data[0].target.resolution == 2.5


def test_affinities_read_whole_structures_for_their_crops(complexes):
    affinity = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", max_length=3
    ).check()
    view = affinity.random_crops("contiguous")
    torch.manual_seed(0)
    assert len({view[0].protein.sequence for _ in range(20)}) > 1
    assert view[0].target == 6.5


# Labels by name


def test_the_structure_among_several_labels_is_that_of_the_crop(complexes):
    affinity = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs", max_length=3)
    both = NamedTargets({"affinity": affinity, "structure": affinity.structures()})
    sample = both[1]
    assert sample.target == {"affinity": 7.5, "structure": sample.protein}
    assert both.targets[1]["structure"] is affinity[1].protein
    assert both.draws_nothing
    # one of another data set has the crop of the inputs, and its own resolution
    other = StructureDataset.from_folder(complexes / "data.csv", pdb_dir=complexes / "pdbs")
    label = NamedTargets({"affinity": affinity, "structure": other})[0].target["structure"]
    assert affinity[0].protein.resolution is None
    # from the column of the table
    assert (label.sequence, label.resolution) == (affinity[0].protein.sequence, 1.9)
    view = both.random_crops("contiguous")
    assert not view.draws_nothing
    torch.manual_seed(0)
    drawn = [view[0] for _ in range(20)]
    assert len({sample.protein.sequence for sample in drawn}) > 1
    assert all(s.target["structure"] is s.protein and s.drawn for s in drawn)
    assert not view.subset([0]).draws_nothing
    ids = SequenceDataset.from_list([("MKV", 1.0)])
    with pytest.raises(ConfigError, match="random_crops is for structures, not for SequenceD"):
        NamedTargets({"a": ids}).random_crops()


def test_structures_first_and_one_of_them_no_label(write):
    write("s/a.pdb", pdb_chain(LONG))
    write("s/b.pdb", pdb_chain("GLY"))  # one residue is no structure to learn from
    table = write("t.csv", "pdb_id,affinity\na,5\nb,6\n")
    affinity = AffinityDataset.from_csv(table, table.parent / "s", max_length=4)
    both = NamedTargets({"structure": affinity.structures(), "affinity": affinity})
    assert [sorted(labels) for labels in both.targets] == [["affinity", "structure"], ["affinity"]]
    assert both[1].target == {"affinity": 6.0}
    assert both.random_crops()[0].target["affinity"] == 5.0


# Caches


@pytest.mark.parametrize("trained", [0, 1])
def test_caches_keep_nothing_of_drawn_samples(folder, trained):
    data = StructureDataset.from_folder(folder, max_length=4)
    model = build_tiny_model()
    model.backbone.requires_grad_(False)
    for block in model.backbone.blocks()[1:] if trained else ():
        block.requires_grad_(True)
    cache = PrefixCache("test")
    forward = ForwardPass(
        model.backbone, ("single",), device=model.device, make_cache=lambda: cache
    )
    sample = replace(data[0], drawn=True)
    fresh = forward(Inputs.of([sample]))
    assert cache.held == 0
    kept = forward(Inputs.of([data[0]]))
    assert cache.held > 0
    assert torch.equal(fresh.single, kept.single)


def test_features_of_drawn_samples_are_not_kept(folder, tmp_path):
    sample = replace(StructureDataset.from_folder(folder, max_length=4)[0], drawn=True)
    (tmp_path / "a3m").mkdir()
    (tmp_path / "a3m" / "a.a3m").write_text(f">q\n{sample.protein.full_sequence}\n")
    features = FeatureCache(build_tiny_model().backbone, tmp_path / "features")
    aligned = replace(sample, alignment_dir=tmp_path / "a3m")
    features.features(aligned)
    assert not (tmp_path / "features").exists()
    features.features(replace(aligned, drawn=False))
    assert (tmp_path / "features").exists()

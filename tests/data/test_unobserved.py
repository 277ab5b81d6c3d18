"""Residues without coordinates stand in the labels of structures, as in openfold's pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pdb_text import pdb_chain

from molfun.data import AffinityDataset, StructureDataset
from molfun.data.structures import read_with_experiment
from molfun.data.unobserved import with_unobserved

REMARK = [
    "REMARK 465                                                                      ",
    "REMARK 465   M RES C SSSEQI                                                     ",
    "REMARK 465     MSE A     2    ",
    "REMARK 465     LYS A     3    ",
    "REMARK 465     TRP A     8    ",
    "REMARK 465     GLY B     1    ",  # no chain B with coordinates
    "REMARK 465      DA A     9    ",
]


def written(folder: Path) -> Path:
    """Write a chain with numbers 1, 4-7; what is missing stands in remark 465."""
    lines = pdb_chain("ALA ARG ASN ASP CYS GLN GLU", chain="A")
    lines = [line for line in lines if line[22:26].strip() not in ("2", "3")]
    path = folder / "1abc.pdb"
    path.write_text("\n".join([*REMARK, *lines, "END", ""]))
    return path


def test_they_are_in_their_places_and_count_nowhere(tmp_path: Path) -> None:
    written(tmp_path)
    (sample,) = StructureDataset.from_folder(tmp_path)
    protein = sample.protein
    assert protein is sample.target
    assert protein.sequence == "AMKDCQEW"
    assert protein.residue_ids == ("1", "2", "3", "4", "5", "6", "7", "8")
    assert protein.residue_index.tolist() == list(range(8))
    there = protein.atom_mask.any(-1)
    assert there.tolist() == [True, False, False, True, True, True, True, False]
    assert not protein.atom_positions[~there].any()
    assert "added 3 residues of the sequence without coordinates" in protein.notes


def test_what_the_file_has_stays_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path)
    alone, experiment = read_with_experiment(path)
    whole = with_unobserved(alone, experiment.unobserved)
    read = whole.atom_mask.any(-1)
    for name in ("aatype", "atom_positions", "atom_mask", "b_factors", "residue_index"):
        assert np.array_equal(getattr(whole, name)[read], getattr(alone, name)), name
    # numbers that do not rise say nothing of places
    odd = alone.take(np.array([1, 0, 2]))
    assert with_unobserved(odd, experiment.unobserved) is odd
    # affinities are read from what there is, as before
    (tmp_path / "t.csv").write_text("pdb_id,affinity\n1abc,1.0\n")
    dataset = AffinityDataset.from_csv(tmp_path / "t.csv", tmp_path)
    assert dataset[0].protein.sequence == "ADCQE"


@pytest.mark.parametrize("draw", [False, True])
def test_crops_show_them(tmp_path: Path, *, draw: bool) -> None:
    written(tmp_path)
    dataset = StructureDataset.from_folder(tmp_path, max_length=6)
    dataset = dataset.random_crops("contiguous") if draw else dataset
    protein = dataset[0].protein
    assert len(protein) == 6
    assert len(protein.full_sequence) == 8


@pytest.mark.parametrize("name", ["4i6p", "2q2k", "3u8v", "1dix"])
def test_sequences_and_masks_are_those_of_openfold(real_data: Path, name: str) -> None:
    pytest.importorskip("openfold")
    from molfun.backbones.openfold import _shims

    _shims.prepare()
    from openfold.data import mmcif_parsing

    folder = real_data / "openfold" / "mmcifs"
    text = (folder / f"{name}.cif").read_text()
    parsed = mmcif_parsing.parse(file_id=name, mmcif_string=text).mmcif_object
    dataset = StructureDataset.from_folder(folder)
    protein = dataset[dataset.ids.index(name)].protein
    for number, chain in enumerate(protein.chain_ids):
        rows = protein.chain_index == number
        assert parsed.chain_to_seqres[chain] == protein.take(np.flatnonzero(rows)).sequence
        positions, mask = mmcif_parsing.get_atom_coords(mmcif_object=parsed, chain_id=chain)
        assert np.array_equal(mask.any(-1), protein.atom_mask[rows].any(-1))
        both = (mask > 0) & (protein.atom_mask[rows] > 0)
        # another location of an atom may be taken where two are equally occupied
        assert both.sum() >= 0.99 * (mask > 0).sum()
        assert np.allclose(positions[both], protein.atom_positions[rows][both], atol=1e-3)

"""Structures as inputs and labels: what is found, refused, filtered, and said of it."""

from __future__ import annotations

import gzip
import logging

import gemmi
import numpy as np
import pytest
from pdb_text import pdb_atom, pdb_chain

from molfun.data import AffinityDataset, DataSplitter, StructureDataset
from molfun.data.faults import collected
from molfun.data.structure_labels import label_fault, sequence_fault
from molfun.errors import ConfigError, DataError, TableError
from molfun.protein import Protein

SIX = "ALA GLY SER LEU LYS TRP"


def header(resolution: float | None = None, released: str | None = None) -> list[str]:
    lines = []
    if released is not None:
        lines.append(f"REVDAT   1   {released} 1ABC    0")
    if resolution is not None:
        lines += ["EXPDTA    X-RAY DIFFRACTION",
                  f"REMARK   2 RESOLUTION.{resolution:8.2f} ANGSTROMS."]  # fmt: skip
    return lines


def refused(path, error=DataError, **options) -> str:
    with pytest.raises(error) as caught:
        StructureDataset.from_folder(path, **options)
    return str(caught.value)


@pytest.fixture
def entries(write):
    """Four structures with headers: sharp and old, blurred and new, NMR, and without a header."""
    write("e/1sharp.pdb", [*header(1.5, "19-NOV-97"), *pdb_chain(SIX)])
    write("e/2blurred.pdb", [*header(3.5, "01-MAY-18"), *pdb_chain("TRP TRP PHE PHE TYR")])
    nmr = ["EXPDTA    SOLUTION NMR", "REVDAT   1   30-APR-18 1ABC    0"]
    write("e/3nmr.pdb", [*nmr, *pdb_chain("GLY SER GLY SER GLY")])
    return write("e/4bare.pdb", pdb_chain("LYS ARG GLU ASP LYS")).parent


# Inputs and labels


def test_a_structure_is_its_own_label(entries):
    data = StructureDataset.from_folder(entries, max_length=3)
    assert data.ids == ["1sharp", "2blurred", "3nmr", "4bare"]
    sample = data[0]
    assert sample.target is sample.protein
    assert len(sample.target) == 3
    assert sample.target.sequence == "GSL"  # the middle of the chain
    assert sample.target.resolution == 1.5
    assert [t is data[i].protein for i, t in enumerate(data.targets)] == [True] * 4
    assert data.lengths.tolist() == [3] * 4
    assert data.kind == "structures"
    assert data.labels_from_structure
    assert data.input_settings == {
        "max_length": 3, "crop": "auto", "alignments": False, "id_column": "pdb_id",
        "labels": "structure", "resolution": None,
    }  # fmt: skip
    assert [sample.id for sample in data.subset([2, 0])] == ["3nmr", "1sharp"]
    with pytest.raises(ConfigError, match="Unknown crop policy 'middle'"):
        StructureDataset.from_folder(entries, crop="middle")


def test_columns_of_the_experiment(entries):
    data = StructureDataset.from_folder(entries)
    assert data[0].metadata == {
        "resolution": 1.5, "released": "1997-11-19", "method": "X-RAY DIFFRACTION",
    }  # fmt: skip
    assert data[2].metadata == {
        "resolution": None, "released": "2018-04-30", "method": "SOLUTION NMR",
    }  # fmt: skip
    assert data[3].metadata == {"resolution": None, "released": "", "method": ""}
    assert data.filter(max_resolution=2.0).ids == ["1sharp"]
    train, val, _ = DataSplitter.temporal(
        data.subset([0, 1, 2]), year_column="released", val_frac=0.4, test_frac=0
    )
    assert (train.ids, val.ids) == (["1sharp", "3nmr"], ["2blurred"])


def test_files_of_both_formats_and_packed(write, tmp_path, real_data):
    text = "\n".join(pdb_chain(SIX)).encode()
    write("s/a.ent", text)
    write("s/b.PDB.gz", gzip.compress(text))
    cif = (real_data / "openfold" / "mmcifs" / "1aki.cif").read_bytes()
    write("s/1aki.cif.gz", gzip.compress(cif))
    write("s/notes.txt", "no structure")
    data = StructureDataset.from_folder(tmp_path / "s")
    assert data.ids == ["1aki", "a", "b"]
    assert data[1].target.sequence == data[2].target.sequence == "AGSLKW"
    assert data[0].metadata["resolution"] == 1.5


def test_two_files_of_one_structure(write, tmp_path, caplog):
    cif = gemmi.read_structure(str(write("s/a.pdb", pdb_chain("ALA GLY SER"))))
    cif.setup_entities()
    write("s/a.cif", cif.make_mmcif_document().as_string())
    assert len(StructureDataset.from_folder(tmp_path / "s")) == 1
    assert "1 structure in several files" in caplog.text
    assert "a.cif and a.pdb" in caplog.text


def test_a_folder_without_structures(tmp_path):
    assert "holds no structure. Give a folder of .cif, .pdb" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "none", TableError)


# Tables


def test_a_table_of_ids(complexes):
    data = StructureDataset.from_folder(complexes / "data.csv", pdb_dir=complexes / "pdbs")
    assert data.ids == ["1aaa", "2bbb", "3ccc", "4ddd"]
    assert data[1].target is data[1].protein
    # what the files do not state is taken from the table
    assert [data[i].target.resolution for i in range(4)] == [1.9, 2.4, 3.1, None]
    assert data[0].metadata["resolution"] == 1.9
    assert data[0].metadata["affinity"] == 6.5
    (complexes / "pdbs" / "4ddd.pdb").unlink()
    given = {"pdb_dir": complexes / "pdbs"}
    assert "1 of 4 structures are missing" in refused(complexes / "data.csv", **given)
    given["skip_missing"] = True
    assert len(StructureDataset.from_folder(complexes / "data.csv", **given)) == 3


def test_the_resolution_of_a_file_goes_before_that_of_a_table(entries, write):
    table = write("t.csv", "pdb_id,resolution,method\n1sharp,9.9,SPR\n4bare,2.2,ITC\n")
    data = StructureDataset.from_folder(table, pdb_dir=entries)
    assert [sample.target.resolution for sample in data] == [1.5, 2.2]
    assert data.metadata["resolution"].tolist() == [1.5, 2.2]
    assert data.metadata["method"].tolist() == ["SPR", "ITC"]  # of the user's measurement


def test_a_table_of_paths(entries, write):
    table = write("list.csv", "path,year\ne/1sharp.pdb,1997\ne/4bare.pdb,2020\n")
    data = StructureDataset.from_folder(table)
    assert data.ids == ["1sharp", "4bare"]
    assert data.metadata["year"].tolist() == [1997, 2020]
    named = write("named.csv", "pdb_id,path\nx,e/1sharp.pdb\ny,e/1sharp.pdb\n")
    assert StructureDataset.from_folder(named).ids == ["x", "y"]
    twice = write("twice.csv", "path\ne/1sharp.pdb\ne/1sharp.pdb\n")
    assert "line 3: '1sharp' is the name of line 2 already" in refused(twice, TableError)
    gone = write("gone.csv", "path\ne/1sharp.pdb\ne/5gone.pdb\n")
    told = refused(gone)
    assert "1 of 2 structures are missing in" in told
    assert "e/5gone.pdb" in told
    none = write("none.csv", "path\ne/5gone.pdb\n")
    assert "the first would be" in refused(none)
    assert "e/5gone.pdb. Paths are as seen from the folder of the table" in refused(none)
    ids = write("ids.csv", "pdb_id\n1sharp\n")
    assert "has no column 'path', and no folder of structures" in refused(ids, ConfigError)
    assert "leave out pdb_dir" in refused(entries, ConfigError, pdb_dir=entries)


def test_a_table_that_disagrees_with_its_structures(entries, write):
    rows = ["pdb_id,sequence", "1sharp,MMAGSLKWHHH", "4bare,", "3nmr,GSAAG", "2blurred,WW:FFY"]
    text = refused(write("t.csv", rows), pdb_dir=entries)
    assert "2 of 4 samples cannot be used" in text
    assert "t.csv, line 4: the sequence of 3nmr has AAG at residue 3, and the structure GSG" in text
    assert "t.csv, line 5: the sequence of 2blurred has 2 chains, and the structure 1" in text


def test_sequences_that_agree_and_disagree():
    assert sequence_fault("mkvxa", ("MVLA",)) == ""
    assert sequence_fault("MKV:AA", ("KV", "AX")) == ""
    assert sequence_fault("MKVAA", ("KV", "AA")) == ""
    assert sequence_fault("MKV", ("MKVG",)) == "has its end at residue 4, and the structure G"


# What cannot be a label


def test_all_unusable_files_are_told_at_once(write, entries):
    ca = [pdb_atom("CA", "GLY", number=i, xyz=(3.8 * i, 0, 0)) for i in range(1, 7)]
    write("e/a_trace.pdb", ca)
    write("e/b_single.pdb", pdb_chain("ALA"))
    write("e/c_unknown.pdb", pdb_chain("UNK UNK UNK"))
    write(
        "e/d_nan.pdb",
        [*pdb_chain("ALA"), pdb_atom("CB", xyz=(77, 0, 0)).replace("77.000", "   NaN")],
    )
    write("e/e_empty.cif", "data_1ABC\n_entry.id 1ABC\n")
    text = refused(entries)
    folder = str(entries)
    assert text.splitlines()[0] == "5 of 9 samples cannot be used:"
    for line in (
        f"{folder}/a_trace.pdb has CA atoms only: the loss is over frames of N, CA and C",
        f"{folder}/b_single.pdb has 1 residue, and a structure to learn from needs two or more",
        f"{folder}/c_unknown.pdb has 3 residues, all of unknown type (X)",
        f"{folder}/d_nan.pdb has 1 atom without numbers for coordinates",
        f"{folder}/e_empty.cif holds no atoms (no _atom_site table)",
    ):
        assert line in text
    assert text.endswith(f"Repair these files, or remove them from {folder}.")
    with collected() as faults:
        assert len(StructureDataset.from_folder(entries)) == 4
    assert len(faults) == 5


def test_predictions_need_no_labels(write, entries):
    ca = [pdb_atom("CA", "GLY", number=i, xyz=(3.8 * i, 0, 0)) for i in range(1, 7)]
    write("e/a_trace.pdb", ca)
    data = StructureDataset.from_folder(entries, require_labels=False)
    assert len(data) == 5
    assert (data[4].id, data[4].target, data.targets[4]) == ("a_trace", None, None)


def test_main_chains_that_are_not_there():
    protein = Protein.from_sequence("ACDE")
    mask, places = np.zeros((4, 37), np.float32), np.ones((4, 37, 3), np.float32)
    mask[:, 1] = mask[:, 4] = 1
    mask[0, [0, 2]] = 1
    made = Protein(**{**vars(protein), "atom_mask": mask, "atom_positions": places})
    assert label_fault(made).startswith("has N, CA and C in 1 of 4 residues: ")


def test_chain_ids_of_four_letters(write, tmp_path):
    cif = gemmi.read_structure(str(write("a.pdb", pdb_chain(SIX))))
    cif[0][0].name = "AbCd"
    cif.setup_entities()
    write("s/long.cif", cif.make_mmcif_document().as_string())
    data = StructureDataset.from_folder(tmp_path / "s")
    assert data[0].target.chain_ids == ("AbCd",)


def test_long_structures_without_a_crop_are_told(write, tmp_path, caplog):
    lines = [
        pdb_atom(name, "ALA", "A", i, xyz=(i % 50 * 3.8 + x, i // 50 * 9, 0))
        for i in range(1, 3001)
        for name, x in (("N", 0), ("CA", 1.4), ("C", 2.6))
    ]
    write("s/1big.pdb", lines)
    write("s/2small.pdb", pdb_chain(SIX))
    assert StructureDataset.from_folder(tmp_path / "s").lengths.tolist() == [3000, 6]
    assert (
        "1 of 2 structures longer than 512 residues, up to 3000 (1big), and max_length "
        "(--max-length) crops none" in caplog.text
    )
    caplog.clear()
    assert StructureDataset.from_folder(tmp_path / "s", max_length=256).lengths.max() == 256
    assert not caplog.messages


# Filters


def test_filters_say_what_they_leave_out(entries, caplog):
    data = StructureDataset.from_folder(entries, max_resolution=3.0)
    assert data.ids == ["1sharp"]
    assert caplog.messages[-2:] == [
        "max_resolution=3 leaves out 1 of 4 structures.",
        "max_resolution=3 leaves out 2 of 4 structures without a resolution (3nmr, 4bare): give "
        "resolution=VALUE (--resolution) to keep them.",
    ]
    caplog.clear()
    data = StructureDataset.from_folder(entries, max_resolution=3.0, resolution=2.5)
    assert data.ids == ["1sharp", "3nmr", "4bare"]
    assert [sample.target.resolution for sample in data] == [1.5, 2.5, 2.5]
    assert np.isnan(data.metadata["resolution"][1])  # what the file states
    assert data.input_settings["resolution"] == 2.5
    assert len(caplog.messages) == 1


def test_dates_of_release(entries, caplog):
    data = StructureDataset.from_folder(entries, released_before="2018-05-01")
    assert data.ids == ["1sharp", "3nmr"]
    assert "released_before=2018-05-01 leaves out 1 of 4 structures without a date of release " \
           "(4bare)" in caplog.text  # fmt: skip
    rest = StructureDataset.from_folder(entries, released_after="2018-05-01")
    assert rest.ids == ["2blurred"]
    assert "No structure of" in refused(entries, released_after="2030-01-01")
    assert "'May 2018' is no date; write it as 2018-05-01." in refused(
        entries, ConfigError, released_before="May 2018"
    )
    assert "max_resolution must be a positive number of angstrom, got 0" in refused(
        entries, ConfigError, max_resolution=0
    )


def test_no_filter_says_nothing(entries, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(StructureDataset.from_folder(entries)) == 4
    assert not caplog.messages


# Splits, and affinities


def test_splits_by_identity_keep_equal_sequences_together(write, tmp_path):
    for name, chain in (("a", SIX), ("b", "TRP TYR PHE HIS LYS"), ("c", SIX), ("d", "GLY ALA VAL")):
        write(f"s/{name}.pdb", pdb_chain(chain))
    data = StructureDataset.from_folder(tmp_path / "s")
    parts = DataSplitter.random(data, val_frac=0.5, test_frac=0, seed=3)
    assert any({"a", "c"} <= set(part.ids) for part in parts)


def test_alignments_next_to_the_folder(entries, write):
    write("alignments/1sharp/hits.a3m", ">q\nAGSLKW\n")
    data = StructureDataset.from_folder(entries)
    assert data[0].alignment_dir is not None
    assert data[1].alignment_dir is None
    assert data.input_settings["alignments"]


def test_structures_of_affinities_are_read_once(complexes):
    affinity = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs").check()
    structures = affinity.structures()
    assert all(s.target is a.protein for a, s in zip(affinity, structures, strict=True))
    assert structures.ids == affinity.ids

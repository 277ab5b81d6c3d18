"""The affinity data set: files found once, faults told at once, nothing read twice."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pdb_text import pdb_chain
from torch.utils.data import DataLoader

from molfun.data import affinity
from molfun.data.affinity import AffinityDataset
from molfun.errors import ConfigError, DataError, TableError, UnsafeFileError
from molfun.sample import Sample, SampleBatch


@pytest.fixture
def dataset(complexes) -> AffinityDataset:
    return AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")


def test_samples(dataset):
    assert len(dataset) == 4
    assert dataset.ids == ["1aaa", "2bbb", "3ccc", "4ddd"]
    assert dataset.targets.tolist() == [6.5, 7.5, 4.5, 9.0]
    sample = dataset[2]
    assert isinstance(sample, Sample)
    assert (sample.id, sample.target) == ("3ccc", 4.5)
    assert sample.protein.sequence == "KREDKR"
    assert sample.features is sample.alignment_dir is None
    assert sample.metadata == {"year": 2018, "resolution": 3.1, "family": "kinase"}
    assert dataset[3].metadata["resolution"] is None
    assert dataset[-1].id == "4ddd"
    assert dataset[np.int64(0)].id == "1aaa"
    with pytest.raises(IndexError, match="out of range for 4 samples"):
        dataset[4]
    assert [s.id for s in dataset] == dataset.ids
    assert "4 samples from" in repr(dataset)


def test_paths_may_be_text(complexes):
    assert len(AffinityDataset.from_csv(str(complexes / "data.csv"), str(complexes / "pdbs"))) == 4


def test_tilde_is_expanded(complexes, monkeypatch):
    monkeypatch.setenv("HOME", str(complexes))
    assert len(AffinityDataset.from_csv("~/data.csv", "~/pdbs/")) == 4


def test_second_epoch_reads_nothing(dataset, complexes):
    first = list(dataset)
    for path in (complexes / "pdbs").iterdir():
        path.unlink()
    assert all(a.protein is b.protein for a, b in zip(first, dataset, strict=True))
    assert dataset.subset([1]).sequences() == [("WWFFYY",)]


def test_max_length_crops(complexes):
    dataset = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", max_length=3, crop="contiguous"
    )
    assert dataset[0].protein.sequence == "GST"
    assert dataset.sequences()[0] == ("AGSTVL",)
    assert dataset.max_length == 3


@pytest.mark.parametrize("option", [{"max_length": 0}, {"crop": "middle"}])
def test_wrong_settings_are_refused_at_once(complexes, option):
    with pytest.raises(ConfigError):
        AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs", **option)


def test_a_folder_is_needed(complexes):
    with pytest.raises(ConfigError, match="Give pdb_dir"):
        AffinityDataset.from_csv(complexes / "data.csv")
    with pytest.raises(DataError, match="absent does not exist"):
        AffinityDataset.from_csv(complexes / "data.csv", complexes / "absent")


def test_missing_structures_are_listed_at_once(complexes, caplog):
    for name in ("1aaa", "4ddd"):
        (complexes / "pdbs" / f"{name}.pdb").unlink()
    arguments = (complexes / "data.csv", complexes / "pdbs")
    with pytest.raises(DataError) as caught:
        AffinityDataset.from_csv(*arguments)
    text = str(caught.value)
    assert f"2 of 4 structures are missing in {complexes / 'pdbs'}:\n  1aaa\n  4ddd" in text
    assert "--skip-missing (skip_missing=True)" in text
    dataset = AffinityDataset.from_csv(*arguments, skip_missing=True)
    assert dataset.ids == ["2bbb", "3ccc"]
    assert dataset.targets.tolist() == [7.5, 4.5]
    assert "2 of 4 structures are missing" in caplog.text
    assert "are skipped: 1aaa, 4ddd" in caplog.text


def test_all_missing_is_an_error_even_when_skipping(complexes):
    for path in (complexes / "pdbs").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"All 4 structures are missing in .*would be 1aaa\.cif"):
        AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs", skip_missing=True)


def test_links_out_of_the_folder_are_refused_at_once(complexes):
    (complexes / "secret").write_text("x")
    for name in ("1aaa", "2bbb"):
        path = complexes / "pdbs" / f"{name}.pdb"
        path.unlink()
        path.symlink_to(complexes / "secret")
    with pytest.raises(UnsafeFileError, match="Refused 2 files:"):
        AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")


def test_check_reports_all_bad_structures(dataset, complexes):
    (complexes / "pdbs" / "1aaa.pdb").write_text("")
    (complexes / "pdbs" / "4ddd.pdb").write_bytes(b"\0\1")
    with pytest.raises(DataError) as caught:
        dataset.check()
    text = str(caught.value)
    assert "2 of 4 samples cannot be read:" in text
    assert "1aaa.pdb is empty" in text
    assert "4ddd.pdb is binary" in text
    assert dataset.subset([1, 2]).check().ids == ["2bbb", "3ccc"]


def test_bad_rows_come_before_missing_files(write, tmp_path):
    with pytest.raises(TableError, match="'6;5' is not a number"):
        AffinityDataset.from_csv(write("a.csv", "pdb_id,affinity\nx,6;5\n"), tmp_path)


def test_prediction_without_labels(complexes, write):
    path = write("new.csv", "pdb_id\n1aaa\n2bbb\n")
    dataset = AffinityDataset.from_csv(path, complexes / "pdbs", require_target=False)
    assert dataset[0].target is None
    assert np.isnan(dataset.targets).all()


def test_column_names(complexes, write):
    path = write("new.csv", "code,pKd\n1aaa,5\n")
    dataset = AffinityDataset.from_csv(
        path, complexes / "pdbs", id_column="code", target_column="pKd"
    )
    assert dataset[0].target == 5


# Features and alignments


def test_features_come_before_structures(complexes):
    np.savez(complexes / "2BBB.npz", aatype=np.array([4, 3, 20]))
    (complexes / "features").mkdir()
    (complexes / "2BBB.npz").rename(complexes / "features" / "2BBB.npz")
    (complexes / "pdbs" / "2bbb.pdb").unlink()
    dataset = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", features_dir=complexes / "features"
    )
    assert dataset[1].protein is None
    assert dataset[1].features["aatype"].tolist() == [4, 3, 20]
    assert dataset[0].features is None
    assert dataset.sequences()[1] == ("CDX",)
    assert dataset.check().notes() == {}


@pytest.mark.parametrize(
    "features",
    [
        {"sequence": np.array([b"ACD"], dtype=object)},
        {"sequence": np.array("ACD")},
        {"aatype": np.eye(21)[[0, 4, 3]]},
        {"aatype": torch.tensor([[0, 0], [4, 4], [3, 3]])},
    ],
)
def test_sequences_of_features(complexes, write, features):
    write("features/1aaa.pkl", pickle.dumps(features))
    dataset = AffinityDataset.from_csv(
        write("one.csv", "pdb_id,affinity\n1aaa,5\n"), features_dir=complexes / "features"
    )
    assert dataset.sequences() == [("ACD",)]
    assert len(dataset.check()) == 1


def test_features_without_a_sequence(complexes, write):
    write("features/1aaa.pkl", pickle.dumps({"msa": np.zeros(3)}))
    dataset = AffinityDataset.from_csv(
        write("one.csv", "pdb_id,affinity\n1aaa,5\n"), features_dir=complexes / "features"
    )
    with pytest.raises(DataError, match="has neither 'sequence' nor 'aatype'"):
        dataset.sequences()


def test_check_finds_malicious_features(complexes, write):
    write("features/1aaa.pkl", b"cos\nsystem\n(S'true'\ntR.")
    dataset = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", features_dir=complexes / "features"
    )
    with pytest.raises(DataError, match=r"it uses os\.system, which could run code"):
        dataset.check()


def test_alignments_beside_the_structures_are_used(complexes, write):
    write("alignments/1AAA/hits.a3m", ">1\nAGSTVL\n")
    write("alignments/2bbb/hits.hhr", "")
    dataset = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")
    assert dataset[0].alignment_dir == complexes.resolve() / "alignments" / "1AAA"
    assert dataset[1].alignment_dir is None
    elsewhere = complexes / "other"
    write("other/2bbb/hits.sto", "")
    dataset = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", alignments_dir=elsewhere
    )
    assert dataset[0].alignment_dir is None
    assert dataset[1].alignment_dir == elsewhere / "2bbb"
    with pytest.raises(DataError, match="absent does not exist"):
        AffinityDataset.from_csv(
            complexes / "data.csv", complexes / "pdbs", alignments_dir=complexes / "absent"
        )


def test_packed_alignments_are_used_and_others_named(complexes, write, caplog):
    write("alignments/1AAA/hits.sto.gz", "")
    write("alignments/2bbb/hits.fasta", ">1\nAGSTVL\n")
    write("alignments/3ccc.a3m", ">1\nAGSTVL\n")
    dataset = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")
    assert [sample.alignment_dir is not None for sample in dataset] == [True, False, False, False]
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert texts[0].startswith("1 folder without an alignment that is read (.a3m or .sto, or these")
    assert "2bbb: hits.fasta" in texts[0]
    assert texts[1].startswith("1 alignment directly in ")
    assert texts[1].endswith("Move each into a folder named after its id: 3ccc/3ccc.a3m.")


def test_missing_features_are_called_so(complexes, write):
    write("features/1aaa.pkl", pickle.dumps({"aatype": np.zeros(3)}))
    with pytest.raises(DataError, match="3 of 4 feature files are missing in"):
        AffinityDataset.from_csv(complexes / "data.csv", features_dir=complexes / "features")


# Subsets, filters, notes


def test_subset_keeps_rows_together(dataset):
    part = dataset.subset(np.array([3, 0]))
    assert part.ids == ["4ddd", "1aaa"]
    assert part.targets.tolist() == [9.0, 6.5]
    assert part.metadata["family"].tolist() == ["lectin", "kinase"]
    assert part[1].protein is dataset[0].protein
    assert len(dataset.subset([])) == 0


def test_filter(dataset):
    assert dataset.filter(min_year=2015).ids == ["2bbb", "3ccc", "4ddd"]
    assert dataset.filter(max_resolution=2.5, min_year=2013).ids == ["2bbb"]
    assert dataset.filter(family="kinase").ids == ["1aaa", "3ccc"]
    assert dataset.filter(year=2018).ids == ["3ccc"]
    with pytest.raises(ConfigError, match=r"Did you mean 'max_resolution'\?"):
        dataset.filter(max_resolutoin=2)
    with pytest.raises(DataError, match=r"No sample of .* meets min_year=2030"):
        dataset.filter(min_year=2030)


def test_filters_of_from_csv_come_before_files(complexes):
    (complexes / "pdbs" / "1aaa.pdb").unlink()
    dataset = AffinityDataset.from_csv(
        complexes / "data.csv", complexes / "pdbs", filters={"min_year": 2015}
    )
    assert dataset.ids == ["2bbb", "3ccc", "4ddd"]


def test_notes_of_structures(complexes, write):
    write("pdbs/1aaa.pdb", [*pdb_chain("ALA MSE", "A"), "TER", *pdb_chain("GLY", "B")])
    notes = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs").notes()
    assert list(notes) == ["1aaa"]
    assert "joined chains A, B" in notes["1aaa"]


def test_notes_in_brief_and_in_the_log(complexes, write, caplog):
    write("pdbs/1aaa.pdb", [*pdb_chain("ALA MSE", "A"), "TER", *pdb_chain("GLY", "B")])
    write("pdbs/2bbb.pdb", [*pdb_chain("ALA"), *pdb_chain("GLY", first=9), *pdb_chain("SER", "B")])
    dataset = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")
    with caplog.at_level(logging.INFO, logger="molfun"):
        brief = "several chains (2), non-standard residues (1), chain breaks (1)"
        assert dataset.notes_in_brief() == brief
        dataset.check()
    said = [r.getMessage() for r in caplog.records if r.name == "molfun.data.affinity_files"]
    assert [line for line in said if line.startswith("2bbb")] == [
        "2bbb: found 1 chain break; joined chains A, B"
    ]
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied.notes_in_brief() == brief


def test_chains_are_told_apart(complexes, write):
    write("pdbs/1aaa.pdb", [*pdb_chain("ALA SER", "A"), "TER", *pdb_chain("GLY", "B")])
    dataset = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs", max_length=1)
    assert dataset.sequences()[0] == ("AS", "G")


# DataLoader


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_data_loader(dataset, num_workers):
    loader = DataLoader(
        dataset.check(),
        batch_size=3,
        collate_fn=AffinityDataset.collate_fn,
        num_workers=num_workers,
    )
    batches = list(loader)
    assert all(isinstance(batch, SampleBatch) for batch in batches)
    assert [batch.ids for batch in batches] == [["1aaa", "2bbb", "3ccc"], ["4ddd"]]
    assert batches[0].targets == [6.5, 7.5, 4.5]
    assert batches[0][1].protein.content_key() == dataset[1].protein.content_key()


def test_pickle_round_trip(dataset):
    copy = pickle.loads(pickle.dumps(dataset.check()))
    assert copy.ids == dataset.ids
    assert copy[0].protein.content_key() == dataset[0].protein.content_key()
    assert copy[0].metadata == dataset[0].metadata


# Synthetic data


def test_synthetic_is_the_same_everywhere():
    dataset = AffinityDataset.synthetic(2, length=8)
    assert [s.protein.sequence for s in dataset] == ["ASWPSAAW", "HNTQYHSY"]
    assert dataset.targets.tolist() == [6.988, 5.5235]


def test_synthetic_targets_follow_from_the_composition():
    dataset = AffinityDataset.synthetic(64)
    assert dataset.ids[0] == "demo_000"
    assert {len(s.protein) for s in dataset} == {32}
    assert ((dataset.targets > 4) & (dataset.targets < 10)).all()
    assert dataset.targets.std() > 0.5
    mean = [np.mean([affinity._HYDROPATHY[c] for c in s.protein.sequence]) for s in dataset]
    assert np.corrcoef(mean, dataset.targets)[0, 1] > 0.99
    assert len(set(dataset.sequences())) == 64
    other = AffinityDataset.synthetic(64, seed=1)
    assert other.sequences() != dataset.sequences()


def test_synthetic_refuses_nothing_to_make():
    with pytest.raises(ConfigError, match="at least 1, got 0 and 32"):
        AffinityDataset.synthetic(0)


def test_real_complexes(real_data: Path, caplog):
    caplog.set_level(logging.WARNING)
    folder = real_data / "ppi_affinity"
    dataset = AffinityDataset.from_csv(folder / "affinity.csv", folder / "pdbs", max_length=64)
    assert len(dataset.check()) == 48
    assert all(len(sample.protein) == 64 for sample in dataset)
    assert all(len(chains) == 2 for chains in dataset.sequences())
    assert dataset.filter(split="valid", min_dG=-14).metadata["split"].unique().tolist() == [
        "valid"
    ]
    assert not caplog.text


def test_files_of_other_kinds_beside_are_named(complexes):
    (complexes / "features").mkdir()
    (complexes / "features" / "1aaa.pkl.xz").touch()
    (complexes / "features" / "3CCC.h5").touch()
    with pytest.raises(
        DataError, match=r"for 1aaa there is 1aaa\.pkl\.xz, which is not read\. Writ"
    ):
        AffinityDataset.from_csv(complexes / "data.csv", features_dir=complexes / "features")
    (complexes / "features" / "4ddd.npz").touch()
    with pytest.raises(DataError) as caught:
        AffinityDataset.from_csv(complexes / "data.csv", features_dir=complexes / "features")
    assert "\n  1aaa (there is 1aaa.pkl.xz, which is not read)\n  2bbb\n" in str(caught.value)
    assert "3ccc (there is 3CCC.h5, which is not read)" in str(caught.value)

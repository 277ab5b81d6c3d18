"""Sequences with labels: what is in the file is what the model gets, or an error that names it."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from molfun.data import DataSplitter, SequenceDataset
from molfun.data.fasta import read_fasta
from molfun.errors import ConfigError, DataError, MolfunError, TableError
from molfun.sample import SampleBatch

HEADER = "sequence,target\n"
RESIDUES = {"labels": "class", "level": "residue"}
DNA = "ACGTTGCAACGTNACGTACGTTTGCA"
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def refused(path, error=TableError, **options) -> str:
    with pytest.raises(error) as caught:
        SequenceDataset.from_csv(path, **options)
    return str(caught.value)


def refused_fasta(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        SequenceDataset.from_fasta(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def labels_of(dataset) -> list[object]:
    """Labels as plain values."""
    return [t.tolist() if isinstance(t, np.ndarray) else t for t in dataset.targets]


# Tables


def test_the_smallest_table(write):
    data = SequenceDataset.from_csv(write("a.csv", HEADER + "MKV,0.5\nACDEF,-1e-3\n"))
    assert data.ids == ["seq_1", "seq_2"]
    assert data.targets.tolist() == [0.5, -0.001]
    assert data.targets.dtype == np.float64
    assert [data[i].sequence for i in range(2)] == ["MKV", "ACDEF"]
    assert data.lengths.tolist() == [3, 5]
    assert data.sequences() == [("MKV",), ("ACDEF",)]
    assert repr(data).startswith("SequenceDataset(2 sequences from ")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_encodings_and_newlines(write, delimiter, encoding, newline):
    lines = ["sequence,target,note", "MKV,1.5,é", "ACD,2,x"]
    text = newline.join(line.replace(",", delimiter) for line in lines)
    data = SequenceDataset.from_csv(write("a.tsv", text.encode(encoding)))
    assert [s for (s,) in data.sequences()] == ["MKV", "ACD"]
    assert data.targets.tolist() == [1.5, 2.0]
    assert data[0].metadata == {"note": "é"}


def test_parquet_and_csv_agree(tmp_path, write):
    frame = pd.DataFrame({"sequence": ["MKV", "AC"], "target": [1.5, 2.0], "year": [2015, 2016]})
    frame.to_parquet(tmp_path / "a.parquet")
    one = SequenceDataset.from_csv(tmp_path / "a.parquet")
    other = SequenceDataset.from_csv(
        write("a.csv", "sequence,target,year\nMKV,1.5,2015\nAC,2,2016")
    )
    assert one.sequences() == other.sequences()
    assert one.targets.tolist() == other.targets.tolist()
    assert one.metadata.equals(other.metadata)


def test_numbers_of_residues_in_a_list_column_of_parquet(tmp_path):
    frame = pd.DataFrame({"sequence": ["MKV"], "target": [[1.0, math.nan, -2.5]]})
    frame.to_parquet(tmp_path / "a.parquet")
    data = SequenceDataset.from_csv(tmp_path / "a.parquet", level="residue")
    assert labels_of(data)[0] == pytest.approx([1.0, math.nan, -2.5], nan_ok=True)


def test_letters_of_residues_in_a_list_column_of_parquet(tmp_path):
    frame = pd.DataFrame({"sequence": ["MKV"], "target": [["C", "E", "H"]]})
    frame.to_parquet(tmp_path / "a.parquet")
    data = SequenceDataset.from_csv(tmp_path / "a.parquet", **RESIDUES)
    assert list(data.targets[0]) == ["C", "E", "H"]


def test_lists_of_parquet_with_blanks_in_them(tmp_path):
    frame = pd.DataFrame(
        {
            "sequence": ["MKV", "MKV"],
            "target": [["C", None, "H"], ["E", "E", "E"]],
            "value": [[1.0, None, -2.0], [0.0, 0.0, 0.0]],
            "several": [["b", "a"], []],
        }
    )
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    assert list(SequenceDataset.from_csv(path, **RESIDUES).targets[0]) == ["C", None, "H"]
    numbers = SequenceDataset.from_csv(path, target_column="value", level="residue")
    assert labels_of(numbers)[0] == pytest.approx([1.0, math.nan, -2.0], nan_ok=True)
    several = SequenceDataset.from_csv(path, target_column="several", labels="classes")
    assert several.targets.tolist() == ["b;a", ""]


def test_odd_column_names(write):
    text = " protein name ,Séq uence,ΔG (kcal/mol),select,target\nx,MKV,-1.5,7,ignored\n"
    data = SequenceDataset.from_csv(
        write("a.csv", text),
        id_column="protein name",
        sequence_column="Séq uence",
        target_column="ΔG (kcal/mol)",
    )
    assert (data.ids, data.targets.tolist(), data[0].sequence) == (["x"], [-1.5], "MKV")
    assert (data.id_name, data.sequence_names, data.target_name) == (
        "protein name", ["Séq uence"], "ΔG (kcal/mol)",
    )  # fmt: skip
    assert data[0].metadata == {"select": 7, "target": "ignored"}


def test_the_settings_read_the_same_table_again(write):
    text = "name,seq,ss,m\na,MKV,CEH,011\nb,AC,EE,11\n"
    path = write("a.csv", text)
    columns = {
        "id_column": "name", "sequence_column": "seq", "target_column": "ss", "mask_column": "m",
    }  # fmt: skip
    data = SequenceDataset.from_csv(path, **columns, **RESIDUES, max_length=2)
    stored = dict(data.input_settings)
    assert stored.pop("kind") == "sequences"
    again = SequenceDataset.from_csv(path, **stored)
    assert again.ids == data.ids == ["a", "b"]
    assert labels_of(again) == labels_of(data) == [[None, "E", "H"], ["E", "E"]]
    assert again.lengths.tolist() == [2, 2]


def test_words_that_mean_missing_elsewhere_are_sequences(write):
    words = ["NAN", "nan", "INF", "NA", "NULL", "None", "TRUE", "1E5", "N/A"]
    text = HEADER + "".join(f"{word},{i}\n" for i, word in enumerate(words))
    data = SequenceDataset.from_csv(write("a.csv", text))
    assert [s for (s,) in data.sequences()] == words
    classes = SequenceDataset.from_csv(
        write("b.csv", HEADER + "".join(f"MKV,{word}\n" for word in words)), labels="class"
    )
    assert classes.targets.tolist() == words


def test_ids_stay_text(write):
    path = write("a.csv", "id,sequence,target\n0001,MKV,1\n1e5,AC,2\nNA,AC,2\n")
    assert SequenceDataset.from_csv(path, id_column="id").ids == ["0001", "1e5", "NA"]


def test_a_sequence_may_come_twice(write):
    data = SequenceDataset.from_csv(write("a.csv", HEADER + "MKV,1\nMKV,2\nMKV,1\n"))
    assert data.targets.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        ("class", ["yes", "0", "Type II"], ["yes", "0", "Type II"]),
        ("classes", ["a;b", "", "a"], ["a;b", "", "a"]),
        ("number", ["1", "-.5", "1e3"], [1.0, -0.5, 1000.0]),
    ],
)
def test_labels_of_sequences(write, labels, cells, expected):
    text = HEADER + "".join(f"MKV,{cell}\n" for cell in cells)
    data = SequenceDataset.from_csv(write("a.csv", text), labels=labels)
    assert data.targets.tolist() == expected
    assert [data[i].target for i in range(3)] == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("CEH", ["C", "E", "H"]),
        ("C E H", ["C", "E", "H"]),
        ('"C,E,H"', ["C", "E", "H"]),
        ('"[C, E, H]"', ["C", "E", "H"]),
        ("coil;strand;helix", ["coil", "strand", "helix"]),
        ("C?H", ["C", None, "H"]),
        ("coil;?;helix", ["coil", None, "helix"]),
        ("-EH", ["-", "E", "H"]),
    ],
)
def test_classes_of_residues(write, cell, expected):
    data = SequenceDataset.from_csv(write("a.csv", HEADER + f"MKV,{cell}\n"), **RESIDUES)
    assert list(data[0].target) == expected


@pytest.mark.parametrize(
    "cell", ["1 nan -2.5", '"1,nan,-2.5"', "1;NaN;-2.5", '"[1, None, -2.5]"', "1  NA\t-2.5"]
)
def test_numbers_of_residues(write, cell):
    data = SequenceDataset.from_csv(write("a.csv", HEADER + f"MKV,{cell}\n"), level="residue")
    assert data[0].target.dtype == np.float64
    assert data[0].target.tolist() == pytest.approx([1.0, math.nan, -2.5], nan_ok=True)


def test_a_question_mark_among_numbers_is_no_label(write):
    data = SequenceDataset.from_csv(write("a.csv", HEADER + "MKV,1 ? 2\n"), level="residue")
    assert data[0].target.tolist() == pytest.approx([1.0, math.nan, 2.0], nan_ok=True)


# Masks


def test_a_mask_leaves_labels_out(write, caplog):
    text = "sequence,target,mask\nMKV,CEH,101\nAC,EE,11\n"
    data = SequenceDataset.from_csv(write("a.csv", text), mask_column="mask", **RESIDUES)
    assert labels_of(data) == [["C", None, "H"], ["E", "E"]]
    assert list(data.metadata.columns) == []
    assert not caplog.messages


def test_a_mask_leaves_numbers_out(write):
    path = write("a.csv", "sequence,target,mask\nMKV,1 2 3,010\n")
    data = SequenceDataset.from_csv(path, level="residue", mask_column="mask")
    assert list(data[0].target) == [None, 2.0, None]


def test_zeros_that_a_mask_lost_are_put_back_in_front(write, caplog):
    text = "sequence,target,mask\nMKVA,CEHC,11\nAC,EE,1\nAC,EE,11\n"
    data = SequenceDataset.from_csv(write("a.csv", text), mask_column="mask", **RESIDUES)
    assert labels_of(data)[:2] == [[None, None, "H", "C"], [None, "E"]]
    assert "2 masks shorter than the sequence" in caplog.text
    assert "zeros are put back in front" in caplog.text


@pytest.mark.parametrize("mask", ["", "1111", "1x1", "1.1e+20", "2", "1 1"])
def test_a_bad_mask_is_refused(write, mask):
    path = write("a.csv", f"sequence,target,mask\nMKV,CEH,111\nMKV,CEH,{mask}\n")
    text = refused(path, mask_column="mask", **RESIDUES)
    assert "has 1 bad row:" in text
    assert f"line 3, column mask: expected 3 of 0 and 1, got {len(mask)}: {mask!r}" in text


def test_a_mask_without_residues_is_refused(write):
    path = write("a.csv", "sequence,target,mask\nMKV,1,101\n")
    with pytest.raises(ConfigError, match="mask_column"):
        SequenceDataset.from_csv(path, mask_column="mask")


# Errors of tables


def test_a_missing_column_names_the_nearest(write):
    path = write("a.csv", "Sequence,fitnes,year\nMKV,1,2\n")
    text = refused(path, target_column="fitness")
    assert f"{path} has no column 'sequence' and 'fitness'; found 'Sequence', 'fitnes'," in text
    assert text.endswith(
        " Rename the column, or say what yours is called: sequence_column=... (--sequence-column), "
        "target_column=... (--target-column)."
    )
    assert "Did you mean 'Sequence' for 'sequence'?" in text
    assert "Did you mean 'fitnes' for 'fitness'?" in text
    assert "no column 'name'" in refused(write("b.csv", HEADER + "MKV,1\n"), id_column="name")
    assert "no column 'm'" in refused(
        write("c.csv", HEADER + "MKV,CEH\n"), mask_column="m", **RESIDUES
    )


def test_all_bad_rows_come_in_one_error(write):
    text = "sequence,target,year\nMKV,1,1\n,2,1\nACD,,1\nAC,high,1\nAC,1,2,3\n"
    path = write("a.csv", text)
    message = refused(path)
    assert f"{path} has 4 bad rows:" in message
    assert "line 3, column sequence: is blank; fill it in or remove the row" in message
    assert "line 4, column target: '' is blank; fill it in or remove the row" in message
    assert "line 5, column target: 'high' is not a number" in message
    assert "line 6: 4 cells where the header has 3" in message


@pytest.mark.parametrize("labels", ["number", "class"])
def test_a_blank_label_is_refused(write, labels):
    text = refused(write("a.csv", HEADER + "MKV,1\nACD,\n"), labels=labels)
    assert "line 3, column target: '' is blank; fill it in or remove the row" in text


@pytest.mark.parametrize(
    ("options", "cell", "reason"),
    [
        (RESIDUES, "CEHC", "'CEHC' has 4 labels for a sequence of 3 residues"),
        (RESIDUES, "CE", "'CE' has 2 labels for a sequence of 3 residues"),
        (RESIDUES, "", "'' is blank"),
        ({"level": "residue"}, "1 2", "'1 2' has 2 labels for a sequence of 3 residues"),
        ({"level": "residue"}, "1 x 2", "'1 x 2' holds 'x', which is not a number"),
        ({"level": "residue"}, "", "'' holds '', which is blank"),
        (
            {"level": "residue", "labels": "classes"},
            "a;b",
            "'a;b' cannot be several classes a residue in a table; use from_list",
        ),
        ({}, "1e30", "'1e30' is beyond 1e+18 and overflows the loss; check the unit"),
        ({}, '"0,5"', "'0,5' has a decimal comma; write 0.5"),
        ({}, "nan", "'nan' is not a finite number"),
    ],
)
def test_bad_labels(write, options, cell, reason):
    text = refused(write("a.csv", HEADER + f"MKV,{cell}\n"), **options)
    assert f"line 2, column target: {reason}" in text


def test_ten_of_many_bad_rows_are_shown(write):
    text = refused(write("a.csv", HEADER + "MKV,x\nMKV,1\n" * 1500))
    assert "has 1,500 bad rows:" in text
    assert text.count("is not a number") == 10
    assert "... and 1490 more (1500 in all)" in text


def test_a_column_of_text_is_one_fault(write):
    rows = "".join(f"MKV,v{i}\n" for i in range(1500))
    text = refused(write("a.csv", HEADER + rows + "MKV\nMKV,1\n"))
    assert text.splitlines()[1:] == [
        "  line 1502: 1 cell where the header has 2; quote cells that contain the delimiter",
        "  1,500 of 1,501 rows, as line 2, column target: 'v0' is not a number (then line 3 'v1', "
        "line 4 'v2')",
    ]
    assert "has 1,501 bad rows:" in text


def test_ids_that_repeat_or_are_blank_are_refused(write):
    path = write("a.csv", "name,sequence,target\nx,MKV,1\nx,AC,2\n,AC,2\n,AC,2\n")
    text = refused(path, id_column="name")
    assert f"{path} has 3 bad ids in column 'name':" in text
    assert "line 4: the id is blank" in text
    assert "line 5: the id is blank" in text
    assert "the id 'x' comes more than once" in text
    assert "Leave id_column out to number the rows." in text


def test_unknown_kinds_give_the_nearest(write):
    path = write("a.csv", HEADER + "MKV,1\n")
    with pytest.raises(ConfigError, match=r"Unknown labels 'clas'; known: class, .*mean 'class'\?"):
        SequenceDataset.from_csv(path, labels="clas")
    with pytest.raises(ConfigError, match=r"Unknown level 'residues'; .*mean 'residue'\?"):
        SequenceDataset.from_csv(path, level="residues")
    with pytest.raises(ConfigError, match=r"max_length must be at least 1, got 0\."):
        SequenceDataset.from_csv(path, max_length=0)


def test_empty_and_absent_files(write, tmp_path):
    assert "is empty" in refused(write("a.csv", ""))
    assert "has a header but no rows" in refused(write("b.csv", HEADER))
    assert "does not exist" in refused(tmp_path / "absent.csv")
    assert "is a folder" in refused(tmp_path)
    assert "cannot be read as Parquet" in refused(write("a.parquet", b"PAR1 nonsense"))


# Labels that may be absent


def test_labels_may_be_absent_for_prediction(write, caplog):
    data = SequenceDataset.from_csv(write("a.csv", "sequence\nMKV\n"), require_target=False)
    assert data[0].target is None
    data = SequenceDataset.from_csv(write("b.csv", HEADER + "MKV,\nAC,2\n"), require_target=False)
    assert [data[i].target for i in range(2)] == [None, 2.0]
    assert not caplog.messages


def test_labels_that_are_not_used_are_told(write, caplog):
    path = write("a.csv", HEADER + "MKV,high\nAC,2\nAC,<5\n")
    data = SequenceDataset.from_csv(path, require_target=False)
    assert [data[i].target for i in range(3)] == [None, 2.0, None]
    assert "a.csv: 2 labels not used:\n  line 2, column target: 'high' is not a" in caplog.text
    assert "line 4, column target: '<5' is a bound" in caplog.text


def test_labels_of_another_length_are_not_used_for_prediction(write, caplog):
    path = write("a.csv", HEADER + "MKV,CEHC\nAC,EE\n")
    data = SequenceDataset.from_csv(path, require_target=False, **RESIDUES)
    assert data[0].target is None
    assert list(data[1].target) == ["E", "E"]
    assert "1 label not used" in caplog.text
    assert "has 4 labels for a sequence of 3 residues" in caplog.text


def test_a_blank_sequence_is_refused_even_for_prediction(write):
    text = refused(write("a.csv", "sequence,note\nMKV,x\n,y\n"), require_target=False)
    assert "line 3, column sequence: is blank" in text


# FASTA

FASTA = ">a first one\nMKV\nAC\n\n>b\r\nGG\n; a comment\n>c|x|y\nnan\n"


@pytest.mark.parametrize("name", ["a.fasta", "a.fa.gz"])
def test_a_fasta_file(write, name):
    raw = FASTA.encode()
    path = write(name, gzip.compress(raw) if name.endswith("gz") else raw)
    data = SequenceDataset.from_fasta(path, targets={"b": 2.0, "absent": 5.0}, max_length=4)
    assert data.ids == ["a", "b", "c|x|y"]
    assert data.sequences() == [("MKVAC",), ("GG",), ("nan",)]
    assert data.lengths.tolist() == [4, 2, 3]
    assert [data[i].target for i in range(3)] == [None, 2.0, None]
    assert data[0].max_length == 4


def test_a_record_that_repeats_is_kept_once(write, caplog):
    data = SequenceDataset.from_fasta(write("a.fasta", ">a\nMKV\n>b\nAC\n>a\nMK\nV\n"))
    assert data.ids == ["a", "b"]
    assert "repeats 1 record; each is kept once." in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("MKV\n>a\nAC\n", "line 1: expected a header that begins with '>', found 'MKV'"),
        ("\n\nsequence,target\n", "line 3: expected a header that begins with '>'"),
        (">a\nMKV\n>\nAC\n", "line 3: a header without a name."),
        (">a\nMKV\n>   \nAC\n", "line 3: a header without a name."),
        (">a\n>b\nAC\n", "the record 'a' has no sequence."),
        (">a\nAC\n>b\n\n", "the record 'b' has no sequence."),
        ("", "is empty."),
        ("; only a comment\n\n", "is empty."),
        (">a x\nMKV\n>b\nA\n>a y\nMKA\n", "1 id with two different sequences:\n  a\n"),
        (b">a\nMK\xff\n", "cannot be read: byte 0xff near line 1 is no UTF-8. Save the"),
    ],
)
def test_a_bad_fasta_file_is_refused(write, text, reason):
    assert reason in refused_fasta(write("a.fasta", text))
    raw = text if isinstance(text, bytes) else text.encode()
    assert reason in refused_fasta(write("a.fasta.gz", gzip.compress(raw)))


def test_what_to_do_about_two_sequences_under_one_id(write):
    text = refused_fasta(write("a.fasta", ">a x\nMKV\n>a y\nMKA\n"))
    assert "The id is the first word after '>'; make them different." in text


def test_absent_and_damaged_fasta_files(write, tmp_path):
    assert "No such file: " in refused_fasta(tmp_path / "absent.fasta")
    assert "No such file: " in refused_fasta(tmp_path)
    whole = gzip.compress(FASTA.encode() * 100)
    assert "cannot be read" in refused_fasta(write("cut.fasta.gz", whole[:-20]))
    assert "cannot be read: Not a gzipped file" in refused_fasta(write("no.fasta.gz", FASTA))


def test_a_damaged_stream_in_a_gz_file_is_refused(write):
    raw = bytearray(gzip.compress(b">a\nMKVLLA\n>b\nTYRE\n" * 500))
    raw[10] ^= 0xFF
    assert "cannot be read" in refused_fasta(write("a.fasta.gz", bytes(raw)))


def test_a_fasta_file_with_a_byte_order_mark(write):
    path = write("a.fasta", b"\xef\xbb\xbf>a\nMKV\n")
    assert list(read_fasta(path)) == [("a", "MKV")]


def test_records_are_read_one_by_one(write):
    records = read_fasta(write("a.fasta", ">a\nMKV\n>b\nAC\n>\nMKV\n"))
    assert next(records) == ("a", "MKV")
    assert next(records) == ("b", "AC")
    with pytest.raises(DataError, match="line 5: a header without a name"):
        next(records)


# Nucleotides


@pytest.mark.parametrize("letters", [DNA * 3, DNA.replace("T", "U") * 3, DNA.lower() * 3])
def test_nucleotides_are_told(write, caplog, letters):
    SequenceDataset.from_csv(write("a.csv", HEADER + f"{letters},1\n"))
    assert "nearly all letters are A, C, G, T, U or N. Are these nucleotides?" in caplog.text
    caplog.clear()
    SequenceDataset.from_fasta(write("a.fasta", f">a\n{letters}\n"))
    assert "Are these nucleotides?" in caplog.text


def test_proteins_and_a_few_letters_say_nothing(write, caplog):
    SequenceDataset.from_csv(write("a.csv", HEADER + f"{PROTEIN * 4},1\n{PROTEIN},2\n"))
    SequenceDataset.from_csv(write("b.csv", HEADER + "ACGTACGT,1\n"))
    assert not caplog.messages


# Lists


def test_a_list_of_sequences_or_of_pairs():
    plain = SequenceDataset.from_list(["MKV", "AC"], ids=["x", "y"], max_length=2)
    assert (plain.ids, plain.lengths.tolist(), plain[1].target) == (["x", "y"], [2, 2], None)
    pairs = SequenceDataset.from_list([("MKV", 1), ("AC", None), "GG", ("A", np.float32(0.5))])
    assert pairs.targets.tolist() == pytest.approx([1.0, math.nan, math.nan, 0.5], nan_ok=True)
    assert [pairs[i].target for i in range(4)] == [1.0, None, None, 0.5]
    classes = SequenceDataset.from_list([("MKV", "a"), ("AC", ["a", "b"]), ("GG", None)])
    assert [classes[i].target for i in range(3)] == ["a", ["a", "b"], None]


def test_contact_maps_and_labels_of_residues_in_a_list():
    maps = [np.eye(2), np.eye(3)]
    data = SequenceDataset.from_list(zip(["MK", "MKV"], maps, strict=True))
    assert [data[i].target.shape for i in range(2)] == [(2, 2), (3, 3)]
    same = SequenceDataset.from_list([("MK", [1, 2]), ("AC", [3, 4])])
    assert [list(same[i].target) for i in range(2)] == [[1, 2], [3, 4]]


def test_labels_of_residues_in_a_list_have_to_fit():
    items = [("MKV", "CEH"), ("AC", [1.0, None]), ("GG", None), ("GG", math.nan)]
    data = SequenceDataset.from_list(items, level="residue", max_length=1)
    assert [data[i].target for i in range(4)] == ["CEH", [1.0, None], None, None]
    wrong = [*items, ("MKV", "CE"), ("AC", np.zeros(3)), ("A", 0.5)]
    assert len(SequenceDataset.from_list(wrong)) == 7
    with pytest.raises(DataError) as caught:
        SequenceDataset.from_list(wrong, level="residue")
    assert str(caught.value).splitlines() == [
        "3 samples whose labels do not fit the sequence:",
        "  seq_5 has 2 labels for a sequence of 3 residues",
        "  seq_6 has 3 labels for a sequence of 2 residues",
        "  seq_7 has the label 0.5 for the whole sequence",
        "Give a label for each residue, None where there is none.",
    ]
    with pytest.raises(ConfigError, match=r"Unknown level 'residues'; .*mean 'residue'\?"):
        SequenceDataset.from_list(items, level="residues")


def test_ids_of_a_list_have_to_fit():
    with pytest.raises(ConfigError, match=r"1 ids for 2 sequences\."):
        SequenceDataset.from_list(["MKV", "AC"], ids=["x"])


# Looking at parts


@pytest.fixture
def dataset(write) -> SequenceDataset:
    rows = ["name,sequence,target,year,family", "a,MKV,1,2014,kinase", "b,ACD,2,2016,kinase"]
    rows += ["c,GGHH,3,,lectin", "d,TYRE,4,2010,"]
    return SequenceDataset.from_csv(write("data.csv", rows), id_column="name", max_length=3)


def test_indexing(dataset):
    assert len(dataset) == 4
    assert dataset[-1].id == dataset[np.int64(3)].id == "d"
    assert dataset[0].metadata == {"year": 2014, "family": "kinase"}
    assert dataset[0].sequence == "MKV"
    assert dataset[0].protein is None
    for index in (4, -5):
        with pytest.raises(IndexError, match=rf"index {index} is out of range for 4 samples"):
            dataset[index]
    assert [sample.id for sample in dataset] == ["a", "b", "c", "d"], "iteration ends"


def test_a_subset_keeps_order_and_settings(dataset):
    part = dataset.subset([2, 0])
    assert part.ids == ["c", "a"]
    assert part.targets.tolist() == [3, 1]
    assert [sample.sequence for sample in part] == ["GGHH", "MKV"]
    assert part.metadata["family"].tolist() == ["lectin", "kinase"]
    assert part.input_settings == dataset.input_settings
    assert len(dataset.subset([])) == 0
    assert part.subset(np.array([1])).ids == ["a"]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"min_year": 2014}, ["a", "b"]),
        ({"max_year": 2014}, ["a", "d"]),
        ({"family": "lectin"}, ["c"]),
        ({"family": ["lectin", "kinase"], "year": 2016}, ["b"]),
        ({"year": 2014}, ["a"]),
        ({}, ["a", "b", "c", "d"]),
    ],
)
def test_a_filter_keeps_what_meets_it(dataset, conditions, kept):
    part = dataset.filter(**conditions)
    assert part.ids == kept
    assert [sample.sequence for sample in part] == [
        dataset[dataset.ids.index(name)].sequence for name in kept
    ]


def test_filters_while_reading(write):
    path = write("a.csv", "sequence,target,split\nMKV,1,train\nAC,2,test\nGG,3,train\n")
    data = SequenceDataset.from_csv(path, filters={"split": "train"})
    assert data.targets.tolist() == [1, 3]


def test_a_filter_that_leaves_nothing_or_names_no_column(dataset):
    with pytest.raises(DataError, match=r"No sample of .*data\.csv\) meets year=1999\."):
        dataset.filter(year=1999)
    with pytest.raises(ConfigError, match=r"Unknown filter 'min_yaer'.*Did you mean 'min_year'\?"):
        dataset.filter(min_yaer=2000)


def test_a_loader_with_two_workers(dataset):
    loader = DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=dataset.collate_fn)
    batches = list(loader)
    assert all(isinstance(batch, SampleBatch) for batch in batches)
    assert [batch.ids for batch in batches] == [["a", "b", "c"], ["d"]]
    assert [sample.sequence for batch in batches for sample in batch] == [
        "MKV", "ACD", "GGHH", "TYRE",
    ]  # fmt: skip
    again = pickle.loads(pickle.dumps(dataset))
    assert again.sequences() == dataset.sequences()


# Splits


def many(n: int = 40) -> SequenceDataset:
    rng = np.random.default_rng(0)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return SequenceDataset.from_list([("".join(rng.choice(letters, 40)), i) for i in range(n)])


def test_a_random_split(write):
    data = many(20)
    twice = data.subset([*range(20), *range(20)])
    train, val, test = DataSplitter.random(twice, val_frac=0.2, test_frac=0.2)
    parts = [set(part.sequences()) for part in (train, val, test)]
    assert [len(part) for part in (train, val, test)] == [24, 8, 8]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(parts[0] | parts[1] | parts[2]) == 20


def test_a_split_by_identity_keeps_relatives_together():
    parents = many(10)
    items = []
    for index, (sequence,) in enumerate(parents.sequences()):
        items += [(sequence, index), ("A" + sequence[1:], index), (sequence[:-2], index)]
    data = SequenceDataset.from_list(items)
    parts = DataSplitter.by_identity(data, threshold=0.5, val_frac=0.2, test_frac=0.2)
    families = [set(part.targets.tolist()) for part in parts]
    assert sum(map(len, families)) == 10
    assert [len(part) for part in parts] == [18, 6, 6]


def with_parts(*words: str) -> SequenceDataset:
    data = many(len(words))
    data.metadata["split"] = list(words)
    return data


def test_a_split_by_column():
    words = ["train", "Valid", "test", "TRAIN ", "dev", "validation", "val", "testing", "training"]
    train, val, test = DataSplitter.by_column(with_parts(*words))
    assert train.ids == ["seq_1", "seq_4", "seq_9"]
    assert val.ids == ["seq_2", "seq_5", "seq_6", "seq_7"]
    assert test.ids == ["seq_3", "seq_8"]
    train, val, test = DataSplitter.by_column(with_parts("train", "train"))
    assert (len(train), len(val), len(test)) == (2, 0, 0)


def test_a_split_by_a_column_with_another_name(write):
    path = write("a.csv", "sequence,target,fold\nMKV,1,train\nAC,2,val\n")
    train, val, _ = DataSplitter.by_column(SequenceDataset.from_csv(path), "fold")
    assert (train.targets.tolist(), val.targets.tolist()) == ([1], [2])
    with pytest.raises(DataError, match=r"has no column 'fould' to split by; .*mean 'fold'\?"):
        DataSplitter.by_column(SequenceDataset.from_csv(path), "fould")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "holdout", "x"], r"Column 'split' holds 'holdout'\n  'x'; expected train, val"),
        (["train", "", "val"], r"Column 'split' is blank for 1 of 3 samples:\n  seq_2"),
        (["val", "test"], r"Column 'split' leaves no sample for training\."),
    ],
)
def test_a_column_that_gives_no_split(words, text):
    with pytest.raises(DataError, match=text):
        DataSplitter.by_column(with_parts(*words))


def test_sequences_that_a_given_split_shares_are_told(caplog):
    items = [("MKV", 1), ("MKV", 2), ("ACD", 3), ("GGH", 4), ("GGH", 5)]
    data = SequenceDataset.from_list(items)
    data.metadata["split"] = ["train", "test", "train", "val", "val"]
    parts = DataSplitter.by_column(data)
    assert [len(part) for part in parts] == [2, 2, 1], "the split stays as it was given"
    assert "2 samples with the same sequence in two parts of the split." in caplog.text
    caplog.clear()
    DataSplitter.by_column(data.subset([0, 2, 3, 4]))
    assert not caplog.messages


# Any file

CELLS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["MKV", "CEH", "C?H", "1 2 3", "1;nan;2", "101", "11", "nan", "?", '"', ",", ";", "\n",
         "\r", "\0", "", " ", "[]", "[1,2,3]", ">a"]
    ),
    st.floats().map(str),
)  # fmt: skip
QUIET = {
    "max_examples": 120,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@settings(**QUIET)
@given(
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    with_header=st.booleans(),
    labels=st.sampled_from(["number", "class", "classes"]),
    level=st.sampled_from(["sequence", "residue"]),
    mask=st.sampled_from([None, "mask"]),
    require_target=st.booleans(),
)
def test_any_text_gives_a_data_set_or_an_error_of_ours(
    write, rows, encoding, with_header, labels, level, mask, require_target
):
    text = "\n".join(["sequence,target,mask", *rows] if with_header else rows)
    path = write("fuzz.csv", text.encode(encoding, "surrogatepass"))
    try:
        data = SequenceDataset.from_csv(
            path, labels=labels, level=level, mask_column=mask, require_target=require_target
        )
    except MolfunError:
        return
    assert len(data) > 0
    for sample in data:
        assert sample.sequence
        if level == "residue" and sample.target is not None:
            assert len(sample.target) == len(sample.sequence)
        if require_target:
            assert sample.target is not None


@settings(**QUIET)
@given(
    lines=st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from([">a", ">b x", "MKV", ">", ";", "", "\x0c", "\x85>c"]),
        ),
        max_size=8,
    ),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_lines_give_a_data_set_or_an_error_of_ours(write, lines, newline):
    path = write("fuzz.fasta", newline.join(lines).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(MolfunError):
        data = SequenceDataset.from_fasta(path)
        assert len(set(data.ids)) == len(data.ids) > 0
        assert all(sequence for (sequence,) in data.sequences())


@settings(**QUIET)
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_a_data_set_or_an_error_of_ours(write, raw):
    for name in ("fuzz.csv", "fuzz.parquet"):
        with contextlib.suppress(MolfunError):
            SequenceDataset.from_csv(write(name, raw))
    for name in ("fuzz.fasta", "fuzz.fasta.gz"):
        with contextlib.suppress(MolfunError):
            SequenceDataset.from_fasta(write(name, raw))


# Real data


def real(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


def test_gb1(real_data, caplog):
    path = real(real_data, "gb1", "three_vs_rest_train_valid.csv")
    data = SequenceDataset.from_csv(path, target_column="fitness")
    train, val, test = DataSplitter.by_column(data)
    assert (len(train), len(val), len(test)) == (2691, 299, 0)
    assert set(data.lengths.tolist()) == {56}
    assert len(set(data.sequences())) == 2990
    assert data.targets.max() == pytest.approx(6.2749465)
    new = real(real_data, "gb1", "three_vs_rest_test_sequences.csv")
    unlabelled = SequenceDataset.from_csv(new, target_column="fitness", require_target=False)
    assert len(unlabelled) == 5743
    assert unlabelled[0].target is None
    assert not set(unlabelled.sequences()) & set(data.sequences())
    assert not caplog.messages


def test_masks_of_flip_leave_only_coil_out(real_data, tmp_path, caplog):
    """Unresolved residues are written C; zeros put back at the wrong end would hide H and E."""
    packed = real(real_data, "secondary_structure", "ss3_train_valid.tsv.gz")
    path = tmp_path / "ss3.tsv"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    data = SequenceDataset.from_csv(
        path, id_column="id", target_column="label", mask_column="mask", **RESIDUES
    )
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    assert data.ids == [row[0] for row in rows]
    left_out: Counter[str] = Counter()
    for row, kept in zip(rows, data.targets, strict=True):
        left_out.update(c for c, label in zip(row[3], kept, strict=True) if label is None)
    assert left_out == {"C": 177_737}
    assert "7,694 masks shorter than the sequence" in caplog.text
    assert data.metadata["split"].value_counts().to_dict() == {"train": 9712, "valid": 1080}
    assert (data.lengths.min(), data.lengths.max()) == (20, 1632)


def test_fasta_shards(real_data, caplog):
    caplog.set_level(logging.WARNING)
    data = SequenceDataset.from_fasta(real(real_data, "sequences", "valid_1000.fasta.gz"))
    assert len(data) == len(set(data.ids)) == 1000
    assert not caplog.messages


def test_masked_residues_count_once():
    data = SequenceDataset.from_list([("MK<mask>", "HHE")], level="residue")
    assert data.lengths.tolist() == [3]


def test_nucleotides_are_suspected_in_lists_too(caplog):
    SequenceDataset.from_list(["ACGT" * 20])
    assert "list: nearly all letters are A, C, G, T, U or N." in caplog.text


def test_a_column_id_that_is_not_used_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("id,sequence,target\nb7,MKV,1\na2,ACD,2\n")
    assert SequenceDataset.from_csv(path, id_column="id").ids == ["b7", "a2"]
    assert SequenceDataset.from_csv(path, target_column="id", labels="class").ids[0] == "seq_1"
    assert not caplog.records
    assert SequenceDataset.from_csv(path)[0].id == "seq_1"
    assert "To call them by it, set id_column='id' (--id-column id)." in caplog.text

"""Alignments are read as their programs mean them, or refused with file and line."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.backbones.openfold import OpenFoldBackbone, _shims
from molfun.backbones.openfold.alignments import read_alignment, read_alignments
from molfun.errors import DataError, MolfunError, UnsafeFileError
from molfun.protein import Protein
from molfun.sample import Sample

_shims.prepare()
from openfold.data import parsers  # noqa: E402

DATA = Path(os.environ.get("MOLFUN_DATA", Path(__file__).parents[3] / "shared" / "data"))
A3M = ">q\nACDEF\n>a\nAC-EF\n>b some words\nwACdeDEFgg\n>c\n--DE-\n"
ROWS = ["ACDEF", "AC-EF", "ACDEF", "--DE-"]
DELETIONS = [[0] * 5, [0] * 5, [1, 0, 2, 0, 0], [0] * 5]
STO = """# STOCKHOLM 1.0
#=GF ID x
q    AC-D
a/1  ACWD

q    E-F
#=GR q PP 999
a/1  -WF
#=GC RF xx-
//
"""


def read(tmp_path: Path, content: str | bytes, name: str = "hits.a3m") -> tuple[list, list]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_alignment(path)
    return found["msa"], found["deletion_matrix"]


def refused(tmp_path: Path, content: str | bytes, name: str = "hits.a3m") -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    assert str(caught.value).startswith(str(tmp_path / name))
    return str(caught.value).removeprefix(str(tmp_path / name))


FORMS = {
    "as it is": A3M,
    "CRLF": A3M.replace("\n", "\r\n"),
    "CR": A3M.replace("\n", "\r"),
    "no newline at the end": A3M.rstrip("\n"),
    "blank lines and blanks": A3M.replace("\n>", " \n\n >"[:3] + ">").replace("AC-EF", "AC- EF\t"),
    "wrapped": A3M.replace("wACdeDEFgg", "wACd\neDE\nFgg"),
    "BOM": b"\xef\xbb\xbf" + A3M.encode(),
    "UTF-16": A3M.encode("utf-16"),
    "Latin-1 in a header": A3M.replace("some words", "souris é").encode("latin-1"),
    "line separators in a header": A3M.replace("some words", "a\u2028b\x0bc\x85d"),
    "NUL at the end (MMseqs2)": A3M + "\0",
    "NUL between databases (ColabFold)": ">q\nACDEF\n>a\nAC-EF\n\0>q\nACDEF\n>b\nwACdeDEFgg\n"
    ">c\n--DE-\n\0",
    "ss_pred and ss_conf (HHblits)": ">ss_pred PSIPRED\nCCHHH\n>ss_conf\n99812\n" + A3M,
    "ss_dssp, aa_dssp, sa_dssp": ">ss_dssp\nCCHHH\n>aa_dssp\nACDEF\n>sa_dssp\nAB-BA\n" + A3M,
    "consensus": ">q_consensus\nAcDEF\n" + A3M + ">Consensus\nxxxxx\n",
    "comment": "# hhblits 3.3.0\n" + A3M,
    "dots in insertions (a2m)": ">q\n.AC..DEF..\n>a\n.AC..-EF..\n>b\nwACdeDEFgg\n>c\n.--..DE-..\n",
    "* at the ends": A3M.replace("AC-EF", "AC-EF*").replace(">q\nACDEF", ">q\nACDEF*"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a3m_is_read_as_programs_mean_it(tmp_path, form):
    msa, deletions = read(tmp_path, FORMS[form])
    unique = dict(zip(msa, deletions, strict=True))
    expected = dict(zip(ROWS, DELETIONS, strict=True))
    if "databases" in form:
        assert (unique, len(msa)) == (expected, 5)
    else:
        assert (msa, deletions) == (ROWS, DELETIONS)
    packed = tmp_path / "packed.A3M.gz"
    content = FORMS[form]
    packed.write_bytes(gzip.compress(content if isinstance(content, bytes) else content.encode()))
    assert read_alignment(packed)["msa"] == msa


def test_unknown_residues(tmp_path):
    msa, _ = read(tmp_path, ">q\nACDEF\n>a\nA*DEF\n>b\nAXBZ*\n>c\nAUOJ-\n")
    assert msa == ["ACDEF", "AXDEF", "AXBZX", "AUOJ-"]


def test_chains_of_colabfold(tmp_path):
    text = "#3,2\t1,1\n>101\t102\nACDEF\n>a\tb\nACDE-\n>101\nACD--\n>c\nAgCD--\n>102\n---EF\n"
    msa, deletions = read(tmp_path, text)
    assert msa == ["ACDEF", "ACDE-", "ACD--", "ACD--", "---EF"]
    assert deletions[3] == [0, 1, 0, 0, 0]
    problem = refused(tmp_path, text.replace("#3,2", "#3,3"))
    assert problem == ", line 1: chains of 3 and 3 residues, and the query has 5 columns."


def test_copies_of_chains_are_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="molfun")
    assert read(tmp_path, "#5\t2\n>101\nACDEF\n>a\nACDE-\n")[0] == ["ACDEF", "ACDE-"]
    assert ", line 1: copies of the chains: 2; read for one of each" in caplog.text
    problem = refused(tmp_path, "#5\t2\n>101\nACDEFACDEF\n")
    assert problem == ", line 1: chains of 5 residues, and the query has 10 columns."


CONSENSUS = {
    ">my_consensus\nMKVL\n>hit\nMRVL\n": (["MKVL", "MRVL"], ""),
    ">Consensus\nMKVL\n>hit\nMRVL\n": (["MKVL", "MRVL"], ""),
    ">consensus\nMkxL\n>q\nMRVL\n": (["MRVL"], "left out 1 row of annotation: consensus"),
    ">q_consensus\nMKVL\n>q\nMRVL\n": (["MRVL"], "left out 1 row of annotation: q_consensus"),
    ">ss_pred\nCCCC\n>q_consensus\nMKVL\n>q\nMRVL\n": (
        ["MRVL"], "left out 2 rows of annotation: ss_pred, q_consensus"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", CONSENSUS)
def test_a_consensus_is_left_out_beside_its_query_and_said(tmp_path, caplog, text):
    caplog.set_level(logging.INFO, logger="molfun")
    rows, said = CONSENSUS[text]
    assert read(tmp_path, text)[0] == rows
    assert said in caplog.text if said else not caplog.text


WRONG = {
    "ragged": (A3M + ">d\nACD\n", ", line 9 (d): 3 columns where the query has 5."),
    "longer": (A3M + ">d\nACDEFG\n", ", line 9 (d): 6 columns where the query has 5."),
    "dots for gaps": (A3M + ">d\nAC.EF\n", "columns where the query has 5; write gaps as '-', '.'"),
    "two": (A3M + ">d\nA\n>e\nA\n", ":\n  line 9 (d): 1 column where the query has 5\n  line 11"),
    "digits": (A3M + ">d\nAC1EF\n", ", line 9 (d): '1' is no residue."),
    "letters that look alike": (A3M + ">d\n\u0410CDEF\n", "(d): '\u0410' is no residue."),
    "no sequence": (A3M + ">d\n", ", line 9 (d): no sequence."),
    "no query": (">q\n>a\nACD\n", ":\n  line 1 (q): no sequence\n  line 2 (a): 3 columns where"),
    "insertions in the query": (">q\nACdDEF\n", "(q): the query has lower-case letters; write it"),
    "NUL in a row": (A3M.replace("AC-EF", "AC\0EF"), ", line 4: a NUL byte inside a sequence; the"),
    "NUL before a row": (A3M.replace("AC-EF", "\0AC-EF"), ", line 4: a NUL byte inside a sequence"),
    "another query": (A3M + "\0>102\nACDEY\n", ", line 9 (102): another query begins here; keep"),
    "a longer query with hits": (
        A3M + "\0>102\nACDEFG\n>x\nACDEFG\n>y\nACDEFG\n",
        ", line 9 (102): another query begins here; keep the alignments of one sequence in a file.",
    ),
    "empty": ("", " is empty. Run the search again, or remove the file."),
    "blank": ("\n \0\n", " is empty."),
    "annotation only": (">ss_pred\nCCH\n", " holds no sequences."),
    "comments only": ("# x\n", " holds no sequences."),
    "gaps only": (">q\n-----\n", ": the query has no residues. Run the search again."),
    "no header": ("ACDEF\n", ", line 1: expected a header that begins with '>'."),
    "Stockholm": (STO, ", line 1: Stockholm under an a3m name; rename it to .sto."),
    "web page": ("<html>404</html>", " is an HTML page; a download failed"),
    "archive": (b"PK\x03\x04" + bytes(40), " is a zip archive. Unpack it"),
    "image": (b"\x89PNG\r\n", " is an image."),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_a3m_is_refused_with_its_line(tmp_path, what):
    content, expected = WRONG[what]
    assert expected in refused(tmp_path, content)


# Stockholm

STO_FORMS = {
    "as it is": STO,
    "CRLF": STO.replace("\n", "\r\n"),
    "BOM": b"\xef\xbb\xbf" + STO.encode(),
    "dots, tildes": STO.replace("AC-D", "AC.D").replace("E-F", "E~F").replace("-WF", "_WF"),
    "lower case": STO.replace("ACWD", "ACwD").replace("E-F", "e-f"),
    "no end": STO.replace("//\n", ""),
}


@pytest.mark.parametrize("form", STO_FORMS)
def test_stockholm_is_read_as_programs_mean_it(tmp_path, form):
    assert read(tmp_path, STO_FORMS[form], "hits.sto") == (
        ["ACDEF", "ACD-F"],
        [[0] * 5, [0, 0, 1, 0, 1]],
    )


WRONG_STO = {
    "ragged": (STO.replace("-WF", "-W"), ", line 4 (a/1): 6 columns where the query has 7."),
    "longer": (STO.replace("-WF", "-WFA"), ", line 4 (a/1): 8 columns where the query has 7."),
    "one name twice": ("q AC\na AC\na AD\n//\n", ", line 2 (a): 4 columns where the query has 2."),
    "digits": (STO.replace("ACWD", "AC1D"), ", line 4 (a/1): '1' is no residue."),
    "three words": (
        STO.replace("a/1  ACWD", "a/1 AC WD"),
        ", line 4: expected a name and a row of",
    ),
    "NUL": (STO.replace("ACWD", "AC\0D"), ", line 4: expected a name and a row of letters"),
    "two alignments": (STO + STO, ", line 13: a second alignment begins; keep one in a file."),
    "a3m": (A3M, ", line 1: a3m or FASTA under a Stockholm name; rename it to .a3m."),
    "nothing": ("# STOCKHOLM 1.0\n//\n", " holds no sequences."),
}


@pytest.mark.parametrize("what", WRONG_STO)
def test_what_is_no_stockholm_is_refused_with_its_line(tmp_path, what):
    content, expected = WRONG_STO[what]
    assert expected in refused(tmp_path, content, "hits.sto")


# Folders, samples, limits


def test_files_of_different_queries_are_refused(tmp_path):
    (tmp_path / "a.a3m").write_text(A3M)
    (tmp_path / "b.sto").write_text(STO)
    (tmp_path / "c.hhr").write_text("Query x\n")
    assert list(read_alignments(tmp_path)) == ["a.a3m", "b.sto"]
    (tmp_path / "d.a3m").write_text(">q\nACDEY\n")
    with pytest.raises(DataError, match=r"the queries of .*a\.a3m and d\.a3m differ\. Keep"):
        read_alignments(tmp_path)


def test_a_sample_names_itself_and_the_file(tmp_path):
    sample = Sample(
        id="x", protein=Protein.from_sequence("ACDEF", name="x"), alignment_dir=tmp_path
    )
    (tmp_path / "a.a3m.gz").write_bytes(gzip.compress(A3M.encode()))
    backbone = OpenFoldBackbone("tiny")
    assert backbone.featurize(sample)["true_msa"].shape == (3, 5, 1)
    (tmp_path / "b.a3m").write_text(A3M + ">d\nACD\n")
    with pytest.raises(DataError, match=r"^x: .*b\.a3m, line 9 \(d\): 3 columns"):
        backbone.check(sample)


def test_alignments_have_a_named_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("MOLFUN_MAX_ALIGNMENT_BYTES", "1M")
    path = tmp_path / "a.a3m.gz"
    path.write_bytes(gzip.compress(A3M.encode() + b">x\n" + b"A" * 2**22))
    with pytest.raises(UnsafeFileError, match="raise the limit: MOLFUN_MAX_ALIGNMENT_BYTES="):
        read_alignment(path)


def test_real_alignments_are_read_as_openfold_reads_them(tmp_path):
    folder = DATA / "openfold" / "alignments_6KWC"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}; set MOLFUN_DATA to the folder of the development data")
    ours = read_alignment(folder / "bfd_uniref_hits.a3m")
    theirs = parsers.parse_a3m((folder / "bfd_uniref_hits.a3m").read_text())
    assert (ours["msa"], ours["deletion_matrix"]) == theirs
    ours = read_alignment(folder / "mgnify_hits.sto.gz")
    text = gzip.decompress((folder / "mgnify_hits.sto.gz").read_bytes()).decode()
    msa, deletions, _ = parsers.parse_stockholm(text)
    assert (ours["msa"], ours["deletion_matrix"]) == (msa, deletions)


# Anything

ROW = st.text("ACDEFXacd-", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=st.text("ACDEF", min_size=1, max_size=5), rows=st.lists(ROW, max_size=5))
def test_clean_a3m_is_read_as_openfold_reads_it(tmp_path, query, rows):
    columns = len(query)
    fitted = [(row * columns)[: columns + sum(map(str.islower, row))] for row in rows]
    text = "".join(f">{i}\n{row}\n" for i, row in enumerate([query, *fitted]))
    try:
        ours = read(tmp_path, text)
    except MolfunError:
        return
    assert ours == parsers.parse_a3m(text)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.sampled_from("ACD-"), min_size=6, max_size=6), min_size=1, max_size=4))
def test_clean_stockholm_is_read_as_openfold_reads_it(tmp_path, rows):
    text = "".join(f"{i} {''.join(row)}\n" for i, row in enumerate(rows))
    try:
        ours = read(tmp_path, text, "x.sto")
    except MolfunError:
        return
    msa, deletions, _ = parsers.parse_stockholm(text)
    assert ours == (msa, deletions)


PIECES = st.sampled_from([
    ">q\n", "ACDEF\n", "AC-EF\n", "acDEF", "\0", ">", "\n", "\r", "#3,2\t1,1\n", ">ss_pred\n",
    "*", ".", "//\n", "q ACDEF\n", "# STOCKHOLM 1.0\n", "\ufeff", "é", "1", " ", "\t",
])  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.one_of(
        st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts).encode()),
        st.binary(max_size=60),
    ),
    name=st.sampled_from(["f.a3m", "f.sto", "f.a3m.gz"]),
)
def test_any_bytes_give_an_alignment_or_an_error_of_ours(tmp_path, content, name):
    try:
        msa, deletions = read(tmp_path, content, name)
    except MolfunError:
        return
    assert len({len(row) for row in [*msa, *deletions]}) == 1

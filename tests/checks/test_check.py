"""`molfun check` finds every fault of tables, structures and sequences, all of them at once."""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
from click.testing import Result
from pdb_text import pdb_atom, pdb_chain, pdb_residue
from typer.testing import CliRunner

from molfun import SequenceDataset
from molfun.backbones.language.alphabet import ESM
from molfun.checks.data import labels as labels_check
from molfun.checks.data.subject import Subject
from molfun.cli.data import open_file
from molfun.cli.main import app
from molfun.cli.settings import FineTuneSettings
from molfun.cli.sources import settings_of
from molfun.data.kinds.base import Labels
from molfun.data.structures import read_structure
from molfun.errors import StructureError
from molfun.registry import DATASETS

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
MEASURED = ("memory", "time")
"""Topics that differ from run to run."""
Checked = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*flags: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, flags)])


def findings(*flags: object) -> list[dict[str, Any]]:
    done = run(*flags, "--json")
    document = json.loads(done.output)
    assert done.exit_code == {"OK": 0, "FAILED": 1, "WARNING": 3}[document["status"]]
    return document["findings"]


def of_sequences(*flags: object) -> list[dict[str, Any]]:
    return findings("--backbone", "esm2_tiny", "--data", "t.csv", *flags)


def of_structures(*flags: object) -> list[dict[str, Any]]:
    tiny = ("--preset", "tiny", "--device", "cpu")
    return findings("--data", "t.csv", "--pdbs", "pdbs", *tiny, *flags)


def texts(found: list[dict[str, Any]], status: str) -> str:
    return "\n".join(f"{f['topic']}: {f['text']}" for f in found if f["status"] == status)


def one(found: list[dict[str, Any]], text: str) -> dict[str, Any]:
    (finding,) = [f for f in found if text in f["text"]]
    return finding


def predicted(found: list[dict[str, Any]]) -> list[str]:
    """Return what has a predicted peak or time, each above 0."""
    kinds = {"memory of a step": "peak_bytes", "time of an epoch": "first"}
    return [
        f["topic"].partition(" of ")[2]
        for f in found
        if f["topic"] in kinds and f["facts"][kinds[f["topic"]]] > 0
    ]


def proteins(n: int, length: int = 12, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(LETTERS, length)) for _ in range(n)]


def write(rows: list[str], header: str = "sequence,target", name: str = "t.csv") -> None:
    Path(name).write_text("\n".join([header, *rows, ""]), encoding="utf-8")


def good(n: int = 40) -> list[str]:
    return [f"{text},{0.1 * i:.2f}" for i, text in enumerate(proteins(n))]


# --- tables --------------------------------------------------------------------------------------


def test_faults_of_labels_and_sequences_are_all_listed_at_once() -> None:
    """T01, T12, T14, Q01 to Q05."""
    bad = {
        "nan": "is not a finite number",
        "inf": "is not a finite number",
        "-inf": "is not a finite number",
        "": "is blank",
        "high": "is not a number",
        '"6,52"': "has a decimal comma",
        '"1,000"': "has a comma",
        ">10": "is a bound, not a value",
        "1e30": "is beyond",
    }
    rows = good() + [f"MKVAC,{label}" for label in bad]
    letters = ("MKJ", "MK*", "M-K", "M.K", "MK1", "M K", "M\u0410K")
    rows += [f"{text},1.5" for text in letters]
    rows += ["mkvacd,1.0", "MUZOBX,2.0", ",3.0", f"{'MK' * 600},2.5"]
    write(rows + [f"MKVAC,bad{i}" for i in range(1000)])
    found = of_sequences()
    failed = texts(found, "FAILED")
    for kind in bad.values():
        assert kind in failed
    assert "column sequence: is blank" in failed
    words = one(found, "is not a number")
    assert words["total"] == 1001
    assert len(words["examples"]) == 10
    assert words["examples"][0].startswith("line 46, column target: 'high' is not a number")
    odd = [f for f in found if f["topic"].startswith("samples, ") and "no amino acid" in f["text"]]
    listed = "\n".join(line for f in odd for line in f["examples"])
    assert sum(f["total"] for f in odd) == len(letters)
    assert all(f"t.csv, line {i}" in listed for i in range(51, 58))
    assert "1 sample above the 1022 of pretraining" in texts(found, "WARNING")
    # the good rows are still looked at
    assert "deviation" in texts(found, "OK")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("sequence,target\n", "has a header but no rows"),
        ("sequence,traget\nMKV,1\n", "Did you mean 'traget' for 'target'?"),
        ("sequence,target\nMK\0V,1\n", "a NUL byte"),
        ("sequence,target\nMKV,1,2\nMKA\n", "has 2 bad rows"),
    ],
)
def test_a_table_that_cannot_be_read(text: str, said: str) -> None:
    """T03, T09."""
    Path("t.csv").write_text(text)
    write(good(), name="test.csv")
    found = of_sequences("--test", "test.csv")
    failed = [f for f in found if f["status"] == "FAILED"]
    assert failed
    whole = "\n".join([texts(failed, "FAILED"), *(line for f in failed for line in f["examples"])])
    assert said in whole or "cells where the header has" in whole


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_as_programs_write_them_pass(encoding: str, delimiter: str) -> None:
    """T04 to T07: marks, encodings, delimiters, line ends, quoted line ends, further columns."""
    rows = [f"{row},note{i}".replace(",", delimiter) for i, row in enumerate(good())]
    rows[0] = rows[0].replace("note0", '"first\r\nsecond"')
    header = delimiter.join([" sequence ", "target", "remark"])
    Path("t.csv").write_bytes("\r\n".join([header, *rows, ""]).encode(encoding))
    assert not texts(of_sequences(), "FAILED")


def test_ids_stay_texts_and_repeated_ones_are_found() -> None:
    """T02, T10, T11 and paths as ids."""
    Path("pdbs").mkdir()
    for name in ("1e10", "0001", "NA", "a", "b"):
        Path(f"pdbs/{name}.pdb").write_text("\n".join([*pdb_chain("ALA GLY SER LEU"), "END", ""]))
    rows = ["1e10,1", "0001,2", "NA,3", "a,4", "a,4", "b,5", "b,6", "gone,7", "lost,8", "../x,9"]
    write(rows, "pdb_id,affinity")
    found = of_structures("--val-frac", 0, "--test-frac", 0)
    failed = texts(found, "FAILED")
    assert one(found, "files are missing")["examples"] == ["gone", "lost"]
    assert "has the label N, and N on line N" in failed
    assert "is a path, not an id" in failed
    assert "repeats 1 row (same id, same label)" in texts(found, "WARNING")
    assert "5 train / 0 val / 0 test" in texts(found, "WARNING")


@pytest.mark.parametrize(
    ("labels", "flags", "status", "said"),
    [
        (["2.5"] * 30, (), "FAILED", "there is nothing to learn"),
        (["yes"] * 30, ("--task", "multiclass"), "FAILED", "one class alone ('yes' "),
        ([str(i % 2) for i in range(90)], (), "WARNING", "--task binary"),
        ([f"{i % 7}" for i in range(29)] + ["5000"], (), "WARNING", "far from the rest"),
        (["1"] * 199 + ["0"], ("--task", "binary"), "WARNING", "below 2%: '0'"),
    ],
)
def test_labels_from_which_little_can_be_learned(
    labels: list[str], flags: tuple[str, ...], status: str, said: str
) -> None:
    """T13, T14, N05."""
    pairs = zip(proteins(len(labels)), labels, strict=True)
    write([f"{text},{label}" for text, label in pairs])
    found = of_sequences("--val-frac", 0, "--test-frac", 0, *flags)
    lines = [f"{f['text']} {f['remedy']}" for f in found if f["status"] == status]
    assert any(said in line for line in lines), lines


def test_labels_of_residues_are_counted_one_by_one() -> None:
    write([f"{text},{'HEC' * 4}" for text in proteins(12)])
    flags = ("--head", "conv", "--level", "residue", "--task", "multiclass")
    found = of_sequences(*flags, "--val-frac", 0, "--test-frac", 0)
    assert one(found, "3 classes")["facts"] == {"H": 48, "E": 48, "C": 48}


def test_contradictions_show_in_any_part_and_however_long_the_labels_are() -> None:
    first, second, *others = proteins(30, length=60)
    rows = [f"{text},{'H' * 60},train" for text in others]
    rows += [f"{first},{'H' * 60},train", f"{first},{'H' * 59}E,train"]
    rows += [f"{second},{'C' * 60},train", f"{second},{'H' * 60},test"]
    write(rows, "sequence,target,part")
    found = of_sequences(
        "--head", "conv", "--level", "residue", "--task", "multiclass", "--split", "column",
        "--split-column", "part", "--val-frac", 0,
    )  # fmt: skip
    assert one(found, "4 samples have the input of another one and a different label")["total"] == 2


def test_what_a_crop_leaves_out_is_said() -> None:
    write([f"{text},{i}" for i, text in enumerate(["MKVAC" * 4, *proteins(11, length=5)])])
    found = of_sequences("--val-frac", 0, "--test-frac", 0, "--max-length", 10)
    cropped = one(found, "1 sample of 12 cropped, which leaves out 13.3% of all residues")
    assert (cropped["status"], cropped["examples"]) == ("WARNING", ["seq_1: 10 of 20"])


def test_single_values_far_off_are_seen_where_most_labels_are_equal() -> None:
    for odd in (["1e9"], ["2", "3", "1e9"]):
        labels = ["1"] * (40 - len(odd)) + odd
        write([f"{text},{label}" for text, label in zip(proteins(40), labels, strict=True)])
        found = of_sequences("--val-frac", 0, "--test-frac", 0)
        assert one(found, "far from the rest")["text"].endswith("1e+09")


def test_a_constant_target_among_several_is_seen() -> None:
    data = [(text, np.array([float(i), 2.0])) for i, text in enumerate(proteins(12))]
    subject = Subject(
        parts={"train": SequenceDataset.from_list(data)},
        kind=DATASETS["sequences"](),
        backbone_name="esm2_tiny",
        labels={"": Labels(task="regression", level="sequence")},
    )
    found = list(labels_check.check(subject))
    assert [(f.topic, f.status) for f in found] == [
        ("labels, train, target 1", "OK"), ("labels, train, target 2", "FAILED"),
    ]  # fmt: skip


def test_a_missing_column_keeps_its_name() -> None:
    write(good(), header="sequence,label")
    assert "t.csv: has no column 'target'" in texts(of_sequences(), "FAILED")


# --- structures ----------------------------------------------------------------------------------


def water(n: int = 3) -> list[str]:
    return [pdb_atom("O", "HOH", "W", i, record="HETATM") for i in range(1, n + 1)]


def test_faults_of_structures_are_all_listed_at_once() -> None:
    """P01 to P13."""
    plain = pdb_chain("ALA GLY SER LEU LYS")
    bad: dict[str, str | bytes] = {
        "empty.pdb": "",
        "water.pdb": "\n".join(water()),
        "binary.pdb": b"\x00\x01\x02" * 50,
        "cut.cif": "data_x\nloop_\n_atom_site.group_PDB\n_atom_site.id\nATOM",
        "packed.pdb.gz": gzip.compress("\n".join(plain).encode())[:-20],
        "noca.pdb": "\n".join(pdb_residue("ALA", atoms=("N", "C"))),
        "stars.pdb": "\n".join(plain).replace("   3.800", "********"),
        "nan.pdb": "\n".join(plain).replace("   5.000", "     NaN"),
    }
    fine = {
        "modified.pdb": pdb_chain("MSE SEP UNK ALA"),
        "inserted.pdb": [*pdb_residue("ALA"), *pdb_residue("GLY", slot=2, icode="A")],
        "altloc.pdb": [*plain, pdb_atom("CA", "LYS", number=5, altloc="B", occupancy=0.2)],
        "models.pdb": ["MODEL        1", *plain, "ENDMDL", "MODEL        2", *plain, "ENDMDL"],
        "chains.pdb": [*plain, "TER", *pdb_chain("GLY SER ALA", "B")],
        "gap.pdb": [*plain, *pdb_chain("ALA GLY", first=40)],
        "ligand.pdb": [*plain, pdb_atom("C1", "ATP", "A", 90, record="HETATM", xyz=(90, 0, 0))],
        "dna.pdb": [*plain, "TER", *(pdb_atom("P", " DA", "D", i, xyz=(50, i, 0)) for i in (1, 2))],
        "short.pdb": pdb_residue("ALA"),
        "trace.pdb": [line for line in plain if " CA " in line],
        "serial.pdb": [line.replace("    1 ", "***** ", 1) for line in plain],
    }
    Path("pdbs").mkdir()
    for name, text in bad.items():
        content = text.encode() if isinstance(text, str) else text
        Path("pdbs", name).write_bytes(content)
    for name, lines in fine.items():
        Path("pdbs", name).write_text("\n".join([*lines, "END", ""]))
    ids = [name.partition(".")[0] for name in [*bad, *fine]]
    write([f"{name},{i % 5}.5" for i, name in enumerate(ids)], "pdb_id,affinity")
    found = of_structures("--val-frac", 0.2, "--test-frac", 0)
    failed = [f for f in found if f["status"] == "FAILED"]
    listed = "\n".join(line for f in failed for line in f["examples"])
    missed = [name for name in bad if name not in listed]
    assert not missed, listed
    assert not [name for name in fine if name in listed]
    said = "\n".join(
        f"{f['text']}: {' '.join(f['examples'])}" for f in found if f["topic"] == "structures"
    )
    for kind in (
        *("non-standard residues", "alternate locations", "one model of several", "several chains"),
        *("chain breaks", "ligands left out", "nucleic acids left out", "CA atoms only"),
    ):
        assert f"{kind} in 1 of 11" in said, said
    warned = texts(found, "WARNING")
    assert "ligands left out" in warned
    assert "below 3 residues" in warned


def as_cif(lines: list[str], names: dict[str, str]) -> str:
    """Return PDB records as mmCIF, with other author names of the chains."""
    structure = gemmi.read_pdb_string("\n".join([*lines, "END", ""]))
    structure.setup_entities()
    structure.assign_label_seq_id()
    structure.assign_subchains()
    for chain in structure[0]:
        chain.name = names[chain.name]
    return structure.make_mmcif_document().as_string()


def test_long_chain_names_and_those_of_the_author() -> None:
    """P12: names of two and more letters, and label_asym_id that differs from auth_asym_id."""
    two = [*pdb_chain("ALA GLY SER LEU"), "TER", *pdb_chain("LYS ALA GLY", "B")]
    # a ligand has a label_asym_id of its own, and the author's id of its chain
    ligand = pdb_atom("C1", "ATP", "A", 90, record="HETATM", xyz=(90, 0, 0))
    wide = [line[:20] + 2 * line[21] + line[22:] if line != "TER" else line for line in two]
    Path("pdbs").mkdir()
    Path("pdbs/two.cif").write_text(as_cif(two, {"A": "AAA", "B": "A"}))
    Path("pdbs/one.cif").write_text(as_cif([*two[:16], ligand], {"A": "heavy"}))
    Path("pdbs/wide.pdb").write_text("\n".join([*wide, "END", ""]))
    ids = [path.stem for path in sorted(Path("pdbs").iterdir())]
    write([f"{name},{i}.5" for i, name in enumerate(ids)], "pdb_id,affinity")
    found = of_structures("--val-frac", 0, "--test-frac", 0)
    assert not texts(found, "FAILED")
    assert one(found, "several chains in 2 of 3")
    ligands = one(found, "ligands left out in 1 of 3")
    assert ligands["examples"] == ["one: left out 1 ligand: ATP (1)"]
    assert read_structure("pdbs/two.cif").chain_ids == ("AAA", "A")
    assert read_structure("pdbs/wide.pdb").chain_ids == ("AA", "BB")
    with pytest.raises(StructureError, match="has no chain B; found AAA"):
        read_structure("pdbs/two.cif", chains="B")


def test_one_entry_as_pdb_and_as_mmcif_is_the_same() -> None:
    """P14: all findings are equal, and both in one table are the same input twice."""
    lines = [*pdb_chain("ALA GLY MSE LEU LYS"), "TER", *pdb_chain("GLY SER TRP", "B", first=7)]
    lines += [pdb_atom("C1", "ATP", "A", 90, record="HETATM", xyz=(90, 0, 0)), *water()]
    texts_of = []
    for suffix, text in (
        ("pdb", "\n".join([*lines, "END", ""])),
        ("cif", as_cif(lines, {"A": "A", "B": "B", "W": "W"})),
    ):
        Path(suffix).mkdir()
        for i in range(3):
            Path(suffix, f"s{i}.{suffix}").write_text(text)
        Path(f"{suffix}.csv").write_text("pdb_id,affinity\ns0,1\ns1,1.5\ns2,1\n")
        flags = ("--data", f"{suffix}.csv", "--pdbs", suffix, "--preset", "tiny")
        found = findings(*flags, "--device", "cpu", "--val-frac", 0, "--test-frac", 0)
        texts_of.append([f["text"] for f in found if not f["topic"].startswith(MEASURED)])
        assert one(found, "3 training samples have the input of another one and a different label")
    assert texts_of[0] == texts_of[1]
    first, second = read_structure("pdb/s0.pdb"), read_structure("cif/s0.cif")
    assert first.content_key() == second.content_key()


def checked_seconds(settings: Any) -> float:
    start = time.process_time()
    data = open_file(settings, settings.data)
    assert not ESM.doubtful([text for (text,) in data.sequences()])
    return time.process_time() - start


def plain_seconds() -> float:
    """CPU seconds of Python's own reader, with a number made of each label."""
    start = time.process_time()
    with Path("t.csv").open(newline="") as file:
        rows = [(row["sequence"], float(row["target"])) for row in csv.DictReader(file)]
    assert rows
    return time.process_time() - start


def test_many_rows_take_a_moment_and_little_memory() -> None:
    """T08: twice the rows take twice the memory at most, and the time that a plain reader sets."""
    settings, _ = settings_of(FineTuneSettings, {"backbone": "esm2_tiny", "data": "t.csv"})
    peaks, ratios = [], []
    for n in (50_000, 100_000):
        texts_ = proteins(100, length=60)
        write([f"{texts_[i % 100]}{LETTERS[i // 100 % 20]},{i % 97}" for i in range(n)])
        ratios.append(checked_seconds(settings) / plain_seconds())
        tracemalloc.start()
        data = open_file(settings, settings.data)
        assert not ESM.doubtful([text for (text,) in data.sequences()])
        assert len(data) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(ratios) < 3, ratios
    assert peaks[1] < 2.2 * peaks[0]
    assert peaks[1] < 8 * Path("t.csv").stat().st_size


def test_structures_are_read_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from molfun.data import affinity_files

    Path("pdbs").mkdir()
    for i in range(6):
        lines = pdb_chain("ALA GLY SER LEU MSE"[: 11 + 4 * (i % 3)]) if i else ["END"]
        Path(f"pdbs/s{i}.pdb").write_text("\n".join([*lines, "END", ""]))
    write([f"s{i},{i}.5" for i in range(6)], "pdb_id,affinity")
    alone = of_structures()
    monkeypatch.setattr(affinity_files, "MANY_FILES", 2)
    together = of_structures("--workers", 2)
    assert "s0.pdb" in one(together, "holds no protein")["examples"][0]
    lines = [
        [f["text"] for f in found if not f["topic"].startswith(MEASURED)]
        for found in (alone, together)
    ]
    assert lines[0] == lines[1]


# --- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (">a\nMKV\n>a\nMKA\n", "FAILED", "one id with two different sequences"),
        (">a\nMKV\n>a\nMKV\n", "WARNING", "repeats 1 record"),
        ("MKV\n>a\nMKV\n", "FAILED", "expected a header that begins with"),
        (">a\n" + "ACGT" * 30 + "\n", "WARNING", "Are these nucleotides?"),
    ],
)
def test_fasta_files(text: str, status: str, said: str) -> None:
    """Q06, Q07."""
    Path("t.fasta").write_text(text)
    found = findings("--backbone", "esm2_tiny", "--data", "t.fasta")
    assert any(said in f["text"] for f in found if f["status"] == status), found


# --- what the run looks like ---------------------------------------------------------------------


def test_columns_that_are_not_used_and_leaks_are_named() -> None:
    texts_ = proteins(60)
    rows = [f"{text},{i},{'test' if i % 4 == 0 else 'train'},{2 * i}"
            for i, text in enumerate(texts_)]  # fmt: skip
    rows += [f"{texts_[0]},7,train,1", f"{texts_[1]},1,train,1"]
    write(rows, "sequence,target,fold,fitness")
    found = of_sequences()
    warned = texts(found, "WARNING")
    assert "column 'fold': assigns" in warned
    assert "column 'fitness': looks like a label" in warned
    assert "2 training samples have the input of another one and a different label" in warned
    found = of_sequences("--split", "column", "--split-column", "fold", "--test-frac", 0)
    warned = texts(found, "WARNING")
    assert "fold" not in warned
    shared = one(found, "test samples are in the training set")
    assert shared["examples"] == ["seq_1 = seq_61"]
    across = one(found, "highest identity to a training sequence 100%")
    assert across["examples"][0] == "100%  seq_1  seq_61"


def exchanges() -> list[tuple[str, str, int]]:
    """Name, sequence and position of single exchanges of a protein of 20 residues."""
    wild = proteins(1)[0][:20]
    places = [(i, a) for i in range(12) for a in "ACDEFG" if wild[i] != a]
    return [(f"{wild[i]}{i + 6}{a}", wild[:i] + a + wild[i + 1 :], i + 6) for i, a in places]


def test_variants_are_split_by_position_and_not_by_identity() -> None:
    wild = proteins(1)[0][:20]
    write([f"{name},{i}" for i, (name, *_) in enumerate(exchanges())], "mutant,target")
    source = ("--mutant-column", "mutant", "--wild-type", wild, "--offset", 5)
    found = of_sequences(*source, "--test-frac", 0.3)
    across = next(f for f in found if f["topic"] == "positions, test")
    assert across["status"] == "WARNING"
    seen, n = across["facts"]["seen"], across["facts"]["compared"]
    assert across["text"] == (
        f"variants of one wild type; {seen} of {n} are mutated at positions where training "
        f"variants are"
    )
    assert 0 < seen <= n
    assert across["remedy"] == "--split position keeps all variants of a position in one part."
    assert re.fullmatch(r"position \d+: \d+ training, \d+ test", across["examples"][0])
    named = {int(text.split()[1].rstrip(":")) for text in across["examples"]}
    assert named <= {position for *_, position in exchanges()}
    assert not any("--split identity" in (f.get("remedy") or "") for f in found)
    found = of_sequences(*source, "--test-frac", 0.3, "--split", "position")
    across = next(f for f in found if f["topic"] == "positions, test")
    assert (across["status"], across["facts"]["seen"]) == ("OK", 0)


def test_variants_in_a_table_of_sequences_are_known_by_their_likeness() -> None:
    write([f"{text},{i}" for i, (_, text, _) in enumerate(exchanges())], "sequence,target")
    across = next(f for f in of_sequences() if f["topic"] == "positions, val")
    assert across["remedy"] == (
        "--split position --wild-type FASTA keeps all variants of a position in one part."
    )
    # one that is no variant, of the same length
    odd = [f"{text},{i}" for i, (_, text, _) in enumerate(exchanges())]
    write([*odd, f"{proteins(2)[1][:20]},1"], "sequence,target")
    topics = {f["topic"] for f in of_sequences()}
    assert "identity, val" in topics
    assert "positions, val" not in topics


def test_what_auto_would_take_and_what_trains() -> None:
    write(good())
    found = of_sequences()
    assert predicted(found) == ["a step", "an epoch"]
    line = next(f for f in found if f["topic"] == "strategy")
    assert line["text"].startswith("head_only (chosen by the number of samples) trains 8,")
    line = next(f for f in of_sequences("--strategy", "full") if f["topic"] == "strategy")
    assert line["status"] == "WARNING"
    assert line["text"].endswith("auto would take head_only (fewer than 100 samples)")
    assert line["facts"]["trained"] == line["facts"]["weights"]
    late = texts(of_sequences("--warmup", 500), "WARNING")
    assert "schedule: The warm-up of 500 steps is not shorter than the run" in late
    misspelt = texts(of_sequences("--monitor", "val/spearmn"), "FAILED")
    assert "strategy: head_only: Unknown monitor 'val/spearmn'; known: val/loss" in misspelt


def test_nothing_to_train_and_missing_weights_fail() -> None:
    """N01, N09."""
    write([f"{row},test" for row in good()], "sequence,target,split")
    assert "leaves no sample for training" in texts(of_sequences("--split", "column"), "FAILED")
    write(good())
    failed = texts(of_sequences("--weights", "gone.pt"), "FAILED")
    assert "model: " in failed
    assert "gone.pt" in failed
    flags = ("--strategy", "lora", "strategy_config.target_modules=[quary]")
    assert "quary" in texts(of_sequences(*flags), "FAILED")


def test_text_and_exit_code() -> None:
    """0: all of it passed; 1: a run would refuse it; 3: warnings alone."""
    steps = [f"s{i},{t},{i % 9 + t},{'ab'[i % 2]}" for i in range(200) for t in range(3)]
    write(steps, "id,time,hr,target")
    done = run("--backbone", "timeseries", "--data", "t.csv", "--task", "binary")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].endswith(" 0 WARNING, 0 FAILED")
    write(good())
    done = run("--backbone", "esm2_tiny", "--data", "t.csv")
    assert done.exit_code == 3
    assert "WARNING  weights: none are given" in done.output
    assert not done.stderr
    lines = done.output.splitlines()
    assert lines[0] == "OK       rows: every row and file can be used"
    assert lines[-1].endswith(" 0 FAILED")
    assert not [path for path in Path().iterdir() if path.name != "t.csv"]
    write([*good(), "MKV,high"])
    done = run("--backbone", "esm2_tiny", "--data", "t.csv")
    assert done.exit_code == 1
    assert done.output.startswith("FAILED   t.csv: column target: ... is not a number\n")


def test_a_demo_a_config_and_several_heads() -> None:
    assert run("--demo", "--preset", "tiny").exit_code == 3
    Path("two.yaml").write_text(
        "backbone: esm2_tiny\ndata: t.csv\n"
        "heads:\n  ddg: {task: regression}\n  kind: {task: binary}\n"
    )
    rows = [f"{text},{i},{'ab'[i % 2]}" for i, text in enumerate(proteins(30))]
    write([*rows, "MKVAC,high,a"], "sequence,ddg,kind")
    found = findings("--config", "two.yaml")
    assert one(found, "is not a number")["total"] == 1
    topics = [f["topic"] for f in found]
    assert {"labels ddg, train", "labels kind, train", "head ddg", "head kind"} <= set(topics)


def test_series_and_atoms() -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write as write_atoms
    from tiny import build_atoms

    steps = [f"s{i},{t},{i + t},{'yes' if i % 2 else 'no'}" for i in range(12) for t in range(4)]
    write(steps, "id,time,hr,target")
    found = findings("--backbone", "timeseries", "--data", "t.csv", "--task", "binary")
    assert not texts(found, "FAILED")
    assert predicted(found) == ["a step", "an epoch"]
    frames = []
    for sample in build_atoms(10):
        sample.atoms.calc = SinglePointCalculator(sample.atoms, **sample.target)
        frames.append(sample.atoms)
    write_atoms("x.xyz", frames, format="extxyz")
    found = findings("--backbone", "pet", "--data", "x.xyz")
    assert not texts(found, "FAILED"), found
    assert predicted(found) == ["a step", "an epoch"]


def test_a_run_logs_what_checks_at_no_cost_find() -> None:
    texts_ = proteins(30)
    write([f"{text},{i},{2 * i}" for i, text in enumerate(texts_)], "sequence,target,fitness")
    done = CliRunner().invoke(
        app,
        ["fine-tune", "--backbone", "esm2_tiny", "--data", "t.csv", "--epochs", "1", "--device",
         "cpu", "--output", "run", "--no-report"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    log = Path("run/run.log").read_text()
    assert "WARNING  column 'fitness': looks like a label and is not used" in log
    assert "fitness" not in done.stderr

"""Protein structures from PDB and mmCIF files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from molfun._paths import as_path
from molfun.data.cif_atoms import read_cif
from molfun.data.confidence import settled
from molfun.data.experiment import Experiment, experiment_of_pdb
from molfun.data.folders import FolderIndex
from molfun.data.pdb_plain import read_plain
from molfun.data.pdb_records import read_pdb
from molfun.data.structure_chains import Records
from molfun.data.structure_names import residue_name
from molfun.data.structure_reading import Reading, describe_chain
from molfun.data.structure_text import read_text
from molfun.errors import ConfigError, StructureError
from molfun.protein import Protein
from molfun.text import counted

PDB_SUFFIXES = (".pdb", ".ent")
CIF_SUFFIXES = (".cif", ".mmcif")
STRUCTURE_SUFFIXES = tuple(
    suffix + packed
    for packed in ("", ".gz")
    for suffix in (".cif", ".pdb", ".ent", ".mmcif")
)  # fmt: skip
"""Suffixes in the order in which a structure is looked for."""
_FIRST_WORD = re.compile(r"^[^\S\n]*(?=[^\s#])", re.MULTILINE)
"""Blanks before the first word that is no comment of mmCIF."""


def read_structure(
    path: str | Path, *, chains: Sequence[str] | str | None = None, model: int = 1
) -> Protein:
    """Read the protein of a PDB or mmCIF file.

    Amino-acid residues of polymers are kept; waters, ligands and nucleic acids are not. A
    modified residue counts as its parent (MSE as M, with SE as SD), an unknown one as X; names
    of force fields are understood (HSD, CYX, NALA; OT1, CD of ILE). Of alternate locations each
    atom keeps the one with the highest occupancy. Residues keep the order of the file, so
    insertion codes are residues of their own.

    A chain ends where its id changes, and also at TER, at END, at another segment id or
    ``label_asym_id``, and where numbers start again, unless a peptide bond goes on. Modified
    residues after their chain are put into the gap of its numbers to which they are bonded.
    What was chosen or changed, and how much of the sequence of the experiment has no
    coordinates, stands in the notes of the protein; waters are not mentioned.

    Parameters
    ----------
    path
        ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``, also with ``.gz``.
    chains
        Author names of the chains to keep; None keeps all. The order is that of the file.
        Chains that share a name are kept or left out together.
    model
        Which model to read, counted from 1.

    Returns
    -------
    Protein
        ``residue_index`` grows by 1 between bonded residues (C-N below 2.5 angstrom, or CA-CA
        below 4.5 where C or N is missing), by the difference of the author numbers across a
        break, and by `molfun.protein.CHAIN_GAP` between chains. ``resolution`` is that of the
        experiment, where the file states one.

    Raises
    ------
    StructureError
        If the file is missing, damaged, holds no protein, no CA atom or a coordinate that is not
        a number, or the chains or the model are not in it.
    UnsafeFileError
        If the file is larger than `molfun.data.structure_text.MAX_BYTES`, packs better than
        `MAX_RATIO` or holds more atoms than `MAX_ATOMS`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "1abc.pdb"
    >>> line = "ATOM      1  CA  GLY A   7      11.104   6.134  -6.504  1.00  0.00           C"
    >>> _ = path.write_text(line)
    >>> protein = read_structure(path)
    >>> protein.sequence, protein.residue_index.tolist(), protein.chain_ids
    ('G', [0], ('A',))
    """
    if model < 1:
        raise ConfigError(f"model counts from 1, got {model}.")
    wanted = (chains,) if isinstance(chains, str) else tuple(chains or ())
    return _entry(as_path(path), wanted, model)[0]


def read_with_experiment(path: str | Path) -> tuple[Protein, Experiment]:
    """Read the protein of a file as `read_structure` does, and what it states of its experiment."""
    return _entry(as_path(path), (), 1)


def find_structure(folder: str | Path, pdb_id: str) -> Path | None:
    """Return the path of the structure of `pdb_id` in `folder`, None if there is none.

    Tried are ``.cif``, ``.pdb``, ``.ent``, ``.mmcif``, then the same with ``.gz``; the exact
    name first, then regardless of case.

    Raises
    ------
    DataError
        If `folder` is not a folder.
    UnsafeFileError
        If the file is a symbolic link out of the folder.

    Examples
    --------
    >>> import tempfile
    >>> find_structure(tempfile.mkdtemp(), "1a4w") is None
    True
    """
    return FolderIndex(folder).find(pdb_id, STRUCTURE_SUFFIXES)


def name_of_file(path: Path) -> str:
    """Return the name of a file without the suffixes of structures.

    Examples
    --------
    >>> name_of_file(Path("1a4w.cif.gz"))
    '1a4w'
    """
    name = path.name
    for suffix in sorted(STRUCTURE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


# From text to a gemmi structure


def _entry(path: Path, wanted: Sequence[str], model: int) -> tuple[Protein, Experiment]:
    """Read a file by columns if it is plain, else record by record."""
    text = _text(path)
    if not wanted and model == 1 and (plain := _plain(path, text)) is not None:
        protein, experiment = plain, experiment_of_pdb(text)
    else:
        protein, experiment = _read(path, text, wanted, model)
    b_factors = settled(experiment.b_factors, protein)
    return replace(protein, resolution=experiment.resolution, b_factors_are=b_factors), experiment


def _plain(path: Path, text: str) -> Protein | None:
    return read_plain(text, name_of_file(path)) if _is_pdb(path) else None


def _read(path: Path, text: str, wanted: Sequence[str], model: int) -> tuple[Protein, Experiment]:
    """Read a file record by record."""
    records = _read_records(path, text, model)
    _check_chains(path, records, wanted)
    reading = Reading(notes=records.notes)
    parts = {part.code: part for part in records.parts}
    for chain in records.structure[0]:
        part = parts[chain.name]
        if not wanted or part.chain in wanted:
            reading.add_chain(chain, part, records.lengths.get(part.code, 0))
    if not wanted:
        reading.absent = records.absent
    _check_reading(path, reading, records)
    return reading.protein(name_of_file(path)), records.experiment


def _is_pdb(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(PDB_SUFFIXES)


def _text(path: Path) -> str:
    """Return the text of a file; refuse one whose name says something else than its content."""
    text = read_text(path)
    is_cif = path.name.lower().removesuffix(".gz").endswith(CIF_SUFFIXES)
    if not is_cif and not _is_pdb(path):
        raise StructureError(
            f"{path} has none of the suffixes {', '.join(PDB_SUFFIXES + CIF_SUFFIXES)} (or with "
            f".gz). Rename it to what it is."
        )
    first = _FIRST_WORD.search(text)
    if not is_cif and first is not None and text.startswith("data_", first.end()):
        raise StructureError(f"{path} holds mmCIF under a PDB name. Rename it to .cif.")
    if is_cif and re.match(r"(HEADER|TITLE |REMARK|CRYST1|ATOM  |MODEL )[^\n]*\n", text):
        raise StructureError(f"{path} holds PDB records under an mmCIF name. Rename it to .pdb.")
    return text


def _read_records(path: Path, text: str, model: int) -> Records:
    """Read one model of a file, its chains told apart and its residues named as in the PDB."""
    records = read_pdb(path, text, model) if _is_pdb(path) else read_cif(path, text, model)
    records.structure.merge_chain_parts()
    _rename(records)
    records.structure.setup_entities()
    return records


def _rename(records: Records) -> None:
    """Give residues the names of the PDB; what the file says is kept as their segment."""
    long = {
        (part.code, residue.number): residue.written
        for part in records.parts
        for residue in part.residues
        if len(residue.written) == 4
    }
    for chain in records.structure[0]:
        for residue in chain:
            written = long.get((chain.name, str(residue.seqid)), residue.name)
            name = residue_name(written, [atom.name for atom in residue])
            residue.segment = "" if name == written else written
            residue.name = name


def _check_chains(path: Path, records: Records, wanted: Sequence[str]) -> None:
    names = {part.code: part.chain for part in records.parts}
    missing = [name for name in wanted if name not in names.values()]
    if missing:
        found = ", ".join(describe_chain(c, names[c.name]) for c in records.structure[0])
        raise StructureError(
            f"{path} has no chain {', '.join(missing)}; found {found}. Chain names are the "
            f"author's."
        )


def _check_reading(path: Path, reading: Reading, records: Records) -> None:
    if not reading.residues:
        names = {part.code: part.chain for part in records.parts}
        found = [describe_chain(chain, names[chain.name]) for chain in records.structure[0]]
        raise StructureError(
            f"{path} holds no protein; found {', '.join(found) or 'no atoms'}. Give a file with "
            f"amino-acid residues."
        )
    for bad, noun, what in (
        (reading.bad_atoms, "atom", "without numbers for coordinates"),
        (reading.unnumbered, "residue", "without a residue number"),
    ):
        if bad:
            raise StructureError(
                f"{path} has {counted(len(bad), noun)} {what}; the first is {bad[0]}. Repair or "
                f"remove what is wrong."
            )
    fault = reading.unusable()
    if fault:
        raise StructureError(f"{path} {fault}")

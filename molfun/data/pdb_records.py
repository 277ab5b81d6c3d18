"""Records of PDB files: which atoms are one model, which are one chain, and what is damaged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gemmi

from molfun.data.experiment import experiment_of_pdb
from molfun.data.structure_chains import (
    NO_NAME,
    TRACED,
    Part,
    Records,
    Residue,
    split_chains,
    superposed,
)
from molfun.data.structure_names import FOUR_LETTERS, STANDARD, is_amino_acid_name, standard_name
from molfun.data.structure_text import CUT, MAX_ATOMS, refuse_foreign
from molfun.errors import StructureError
from molfun.protein import Note
from molfun.text import counted, few, first_line

_ATOM = re.compile(r"ATOM(?![A-Za-z])|HETATM")
_BEGINS = re.compile(r"ATO?|HETAT?|HET?|[AH]")
"""Record names of an atom whose line is cut within the first columns."""
_SHORTEST, _COMPLETE = 54, 78
"""Last column of the coordinates, and of the element (PDB format 3.3: 31-54 and 77-78)."""


@dataclass
class _Section:
    """Atoms between two records that end a model, or a file."""

    lines: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Line numbers in the file, from 1."""
    breaks: dict[int, str] = field(default_factory=dict)
    """Index of an atom to the record before it, where that ends a chain."""


def read_pdb(path: Path, text: str, model: int) -> Records:
    """Read model `model`, counted from 1, of a PDB file.

    Raises
    ------
    StructureError
        If a line is damaged, or there is no such model.
    UnsafeFileError
        If there are more atoms than `MAX_ATOMS`.
    """
    records = ("\nATOM", "\nHETATM", "\natom", "\nhetatm")
    MAX_ATOMS.check(sum(map(text.count, records)), path, advice=CUT)
    lines = text.split("\n")
    blocks = list(_blocks(path, lines))
    _check_lines(path, [section for block in blocks for section in block], lines)
    chosen, notes = _choose_model(path, blocks, model)
    residues = _with_segments(list(_residues(chosen)), notes)
    split = split_chains(path, residues)
    notes += _starred(chosen)
    sequences = sequences_of(lines)
    with_atoms = {residue.chain for residue in residues if residue.is_amino_acid}
    return Records(
        structure=_parse(path, _coded(chosen, split.parts)),
        parts=split.parts,
        notes=notes + split.notes,
        lengths=_lengths(sequences, split.parts),
        absent=absent_sequences(sequences, with_atoms),
        experiment=experiment_of_pdb(text),
    )


def _parse(path: Path, lines: Iterable[str]) -> Any:
    try:
        return gemmi.read_pdb_string("\n".join(lines))
    except (RuntimeError, ValueError, IndexError) as error:
        # gemmi counts the lines that were left for it
        text = re.sub(r"^Problem in line \d+: ", "", first_line(error))
        raise StructureError(f"{path} is damaged: {text}. Download or export it again.") from error


# From lines to models


def _blocks(path: Path, lines: Sequence[str]) -> Iterator[list[_Section]]:
    """Return the atoms of each model, those divided by END records apart."""
    block = [_Section()]
    for number, line in enumerate(lines, start=1):
        record = line[:6].rstrip().upper()
        odd = line[:1].isspace() or line[:1].islower()
        if _ATOM.match(line) or (odd and _is_atom(line)):
            section = block[-1]
            section.lines.append(_checked(path, line, number))
            section.numbers.append(number)
        elif record == "TER":
            block[-1].breaks[len(block[-1].lines)] = "TER"
        elif record == "END":
            block.append(_Section())
        elif record in ("MODEL", "ENDMDL"):
            yield block
            block = [_Section()]
    yield block


def _is_atom(line: str) -> bool:
    """Return True for the record of an atom that begins with blanks or small letters."""
    return _ATOM.match(line.lstrip().upper()) is not None and _has_coordinates(line.lstrip())


def _checked(path: Path, line: str, number: int) -> str:
    """Return the line of an atom with its record's name in capitals."""
    where = f"line {number}"
    if line[:1].isspace():
        raise StructureError(
            f"{path} has blanks before the record of {where} ({line.lstrip()[:27]!r}), so its "
            f"columns are shifted. Remove the blanks or export the file again."
        )
    line = line.rstrip()
    if not (line.isascii() and line.isprintable()):
        refuse_foreign(path, where, line)
    return line if line[:4].isupper() else line[:6].upper() + line[6:]


def _models(blocks: Iterable[list[_Section]]) -> tuple[list[_Section], list[Note]]:
    """Return the models of a file; what stands between END records is one, or more of the same."""
    models: list[_Section] = []
    notes: list[Note] = []
    for block in blocks:
        sections = [section for section in block if section.lines]
        if len(sections) < 2:
            models += sections
        elif _are_frames(sections):
            models += sections
            sentence = "took END for the end of a model: the same atoms follow at one place"
            notes.append(Note(sentence, "END between models"))
        else:
            after = sum(len(section.lines) for section in sections[1:])
            sentence = f"read {counted(after, 'atom')} after the first END"
            notes.append(Note(sentence, "atoms after END"))
            models.append(_joined(sections))
    return models, notes


def _choose_model(
    path: Path, blocks: Iterable[list[_Section]], model: int
) -> tuple[_Section, list[Note]]:
    models, notes = _models(blocks)
    if not models:
        raise StructureError(
            f"{path} holds no protein; found no atoms. Give a file with amino-acid residues."
        )
    if model > len(models):
        raise StructureError(f"{path} has no model {model}; it has {len(models)}.")
    if len(models) > 1:
        notes.append(_model_note(models, model))
    return models[model - 1], notes


def _starred(section: _Section) -> Iterator[Note]:
    # columns 55-66, occupancy and B-factor: programs write stars where a number does not fit
    stars = sum("*" in line[54:66] for line in section.lines)
    if stars:
        sentence = f"read occupancy or B-factor of {counted(stars, 'atom')} as 0: stars, no number"
        yield Note(sentence, "occupancy or B-factor no number")


def _are_frames(sections: Sequence[_Section]) -> bool:
    """Return True where all sections hold the same atoms at about the same place."""
    # columns 13-27: atom, location, residue, chain, number
    first = [line[12:27] for line in sections[0].lines]
    if any([line[12:27] for line in other.lines] != first for other in sections[1:]):
        return False
    residues = list(_residues(sections[0]))
    return all(superposed(residues, _residues(other)) for other in sections[1:])


def _joined(sections: Sequence[_Section]) -> _Section:
    whole = _Section()
    for section in sections:
        start = len(whole.lines)
        whole.breaks |= {start + i: record for i, record in section.breaks.items()}
        if start:
            whole.breaks[start] = "END"
        whole.lines += section.lines
        whole.numbers += section.numbers
    return whole


def _model_note(models: Sequence[_Section], model: int) -> Note:
    """Note which model was read, and which others hold something else."""
    own = {line[17:27] for line in models[model - 1].lines}
    others = [
        str(i)
        for i, other in enumerate(models, start=1)
        if i != model and {line[17:27] for line in other.lines} != own
    ]
    return model_note(model, len(models), others)


def model_note(model: int, count: int, others: Sequence[str]) -> Note:
    """Note which of several models was read, and the `others` that hold other residues."""
    sentence = f"read model {model} of {count}"
    if not others:
        return Note(sentence, "one model of several")
    sentence += f"; other residues, which were not read, are in model {few(others)}"
    return Note(sentence, "other residues in other models")


# Damage


def _has_coordinates(line: str) -> bool:
    try:
        # x * 0 is NaN for NaN and infinity; "1_0" is a number to Python alone
        return (
            len(line) >= _SHORTEST
            and all(float(line[i : i + 8]) * 0 == 0 for i in (30, 38, 46))
            and "_" not in line[30:54]
        )
    except ValueError:
        return False


def _check_lines(path: Path, sections: Sequence[_Section], text: Sequence[str]) -> None:
    """Refuse cut lines and coordinates that are not numbers: gemmi reads ``****`` as 0."""
    lines = [line for section in sections for line in section.lines]
    numbers = [number for section in sections for number in section.numbers]
    if _is_cut(lines, ends_with_atom=bool(numbers) and numbers[-1] == len(text), last=text[-1]):
        raise StructureError(
            f"{path} is truncated: it ends inside a line ({text[-1].rstrip()!r}). Download or "
            f"export it again."
        )
    bad = [i for i, line in enumerate(lines) if not _has_coordinates(line)]
    if bad:
        raise _without_coordinates(path, lines, numbers, bad)


def _without_coordinates(
    path: Path, lines: Sequence[str], numbers: Sequence[int], bad: Sequence[int]
) -> StructureError:
    first, where = lines[bad[0]], f"line {numbers[bad[0]]}"
    if len(first) < _SHORTEST:
        return StructureError(
            f"{path} is truncated: {where} ends before the coordinates ({first!r}). "
            f"Download or export it again."
        )
    atom = " ".join(first[12:27].split())
    return StructureError(
        f"{path} has {counted(len(bad), 'atom')} without numbers for coordinates; the first is "
        f"{atom} ({where}: {first[30:54].strip()!r}). Repair or remove these atoms."
    )


def _is_cut(lines: Sequence[str], *, ends_with_atom: bool, last: str) -> bool:
    """Return True for a file without a line end that ends inside the record of an atom.

    A whole line may lack what others have (a charge), but it is not shorter than all of them.
    """
    if _BEGINS.fullmatch(last.rstrip()):
        return True
    if not ends_with_atom or len(lines) < 2 or not _has_coordinates(lines[-1]):
        return False
    return len(lines[-1]) < min(_COMPLETE, *map(len, lines[:-1]))


# From lines to residues


def _residues(section: _Section) -> Iterator[Residue]:
    """Return runs of atoms that follow each other and are of one residue."""
    residue: Residue | None = None
    key = ""  # columns 18-27: residue name, chain, number, insertion code
    four = _four_letter_names(section.lines)
    for i, line in enumerate(section.lines):
        if residue is None or line[17:27] != key or i in section.breaks:
            if residue is not None:
                yield residue
            key = line[17:27]
            residue = _residue(line, section.breaks.get(i, ""), four)
        residue.places.append(i)
        residue.alternate |= line[16] != " "
        name = line[12:16].strip()
        if name not in residue.atoms:
            residue.atoms[name] = _point(line) if name in TRACED else None
        if line[72:76].strip() != residue.segment:
            residue.segment = _MIXED
    if residue is not None:
        yield residue


def _point(line: str) -> tuple[float, float, float]:
    return float(line[30:38]), float(line[38:46]), float(line[46:54])


def _residue(line: str, after: str, four: bool) -> Residue:
    long = line[17:21].upper()
    written = long if four and long in FOUR_LETTERS else line[17:20].strip()
    name = standard_name(written)
    return Residue(
        chain=line[21] if len(written) == 4 else line[20:22].strip(),
        segment=line[72:76].strip(),
        number=line[22:27].strip(),
        name=name,
        written="" if written == name else written,
        hetero=line.startswith("HETATM"),
        after=after,
        order=_number(line[22:26]),
    )


def _four_letter_names(lines: Sequence[str]) -> bool:
    """Return True where column 21 is of residue names; in some files it is of long chain ids."""
    standard = [line[20] == " " for line in lines if line[17:20] in STANDARD]
    return any(standard) or not standard


def _number(text: str) -> int | None:
    """Return the residue number; above 9999 it is cctbx's hybrid-36 (``A000``)."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return int(text, 36) - 466560 + 10000 if text[:1].isalpha() else None
    except ValueError:
        return None


_MIXED = "\0"
"""Segment of a residue whose atoms have several: these columns hold something else."""
_FRACTION = re.compile(r"[-+]?\d*\.\d*")


def _with_segments(residues: list[Residue], notes: list[Note]) -> list[Residue]:
    """Put segment ids in place of blank chain ids, if there are any."""
    segments = {residue.segment for residue in residues}
    if any(s == _MIXED or _FRACTION.fullmatch(s) for s in segments):
        for residue in residues:
            residue.segment = ""
    else:
        notes += _name_blank_chains(residues)
    return residues


def _name_blank_chains(residues: Sequence[Residue]) -> Iterator[Note]:
    """Name chains without an id by their segments, and say so."""
    blank = [residue for residue in residues if not residue.chain and residue.segment]
    for residue in blank:
        residue.chain = residue.segment
    names = dict.fromkeys(residue.chain for residue in blank if residue.is_amino_acid)
    if names:
        sentence = f"took segment ids for blank chain ids: {few(list(names))}"
        yield Note(sentence, "segment ids for chain ids")


# From residues to lines for gemmi


def _coded(section: _Section, parts: Iterable[Part]) -> Iterator[str]:
    """Return lines of atoms, part by part, with its code and a residue name of three letters."""
    for part in parts:
        ended = False
        for residue in part.residues:
            if ended and not residue.inside:
                yield "TER"
            ended = False
            for place in residue.places:
                line = section.lines[place]
                name = residue.name if len(residue.written) == 4 else line[17:20]
                # gemmi wants a character after the coordinates, and one segment per residue
                yield f"{line[:17]}{name:3}{part.code:>2}{line[22:72]:50}    {line[76:]}"
            ended = residue.places[-1] + 1 in section.breaks
        if ended:
            yield "TER"


# Sequences


def sequences_of(lines: Iterable[str]) -> dict[str, int]:
    """Return the amino acids in the SEQRES records of each chain id."""
    counts: Counter[str] = Counter()
    for line in lines:
        if line.startswith("SEQRES"):
            counts[line[11:12].strip()] += sum(map(is_amino_acid_name, line[19:70].split()))
    return dict(counts)


def absent_sequences(sequences: dict[str, int], present: Collection[str]) -> dict[str, int]:
    """Return the lengths of sequences of chains that are not present."""
    return {
        f"chain {name or NO_NAME}": length
        for name, length in sequences.items()
        if length and name not in present
    }


def _lengths(sequences: dict[str, int], parts: Sequence[Part]) -> dict[str, int]:
    """Return the length of the sequence of each chain that has its id for itself."""
    chains = Counter(part.chain for part in parts if part.number == 0)
    return {
        part.code: sequences[part.chain]
        for part in parts
        if part.number == 0 and chains[part.chain] == 1 and part.chain in sequences
    }

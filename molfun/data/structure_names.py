"""Map names of residues and atoms that force fields and programs write to those of the PDB.

Sources: the residue libraries of AMBER (ff14SB: HID, CYX, NALA ...), CHARMM36 (HSD, OT1, TIP3),
GROMACS (``residuetypes.dat`` and the ``.rtp`` files: HISD, LYSH, CYS2, OC1) and Schrodinger (ARN).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

import gemmi

from molfun.protein import ATOM_NAMES

STANDARD = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
_PROTONATION = {
    "HIS": "HSD HSE HSP HID HIE HIP HISA HISB HISD HISE HISH HISP HIS1 HIS2 HIS+",
    "CYS": "CYX CYM CYN CYSH CYSP CYSX CYS1 CYS2",
    "ASP": "ASH ASPH ASPP",
    "GLU": "GLH GLUH GLUP",
    "LYS": "LYN LYP LSN LYSH LYSN LYSP LYS+",
    "ARG": "ARN ARGN ARG+",
    "TYR": "TYM TYO TYRU",
}
RESIDUES = {name: parent for parent, names in _PROTONATION.items() for name in names.split()}
"""Names of protonation states, with the standard residue each is."""
RESIDUES |= {
    end + name: RESIDUES.get(name, name)
    for name in (*STANDARD, *(n for n in RESIDUES if len(n) == 3))
    for end in "NC"
}
_WATERS = ("TIP3", "TIP4", "TIP5", "TIP", "TP3", "TP4", "TP5", "SOL", "SPC", "SPCE", "T3P", "T4P")
_NUCLEOTIDES = {
    f"{sugar}{base}{end}": f"{'D' if sugar == 'D' else ''}{base}"
    for sugar, bases in (("D", "ACGT"), ("R", "ACGU"))
    for base in bases
    for end in ("", "3", "5", "N")
}
"""Names of AMBER for ends of DNA and RNA; only to say what was left out."""
FOUR_LETTERS = frozenset(name for name in (*RESIDUES, *_WATERS) if len(name) == 4)
"""Names that fill the column between residue name and chain id of a PDB line."""
_FIRST_OXYGENS = frozenset(("OT1", "OC1", "O1", "OCT1", "O'", "OT", "OCT"))
_LAST_OXYGENS = frozenset(("OT2", "OC2", "O2", "OCT2", "O''", "OT", "OCT"))
_KNOWN = frozenset(ATOM_NAMES)


@cache
def standard_name(name: str) -> str:
    """Return the name that the PDB has for a residue, for any name that a program writes.

    Examples
    --------
    >>> [standard_name(name) for name in ("HSD", "NHIE", "CYS2", "ala", "TIP3", "DA5", "MSE")]
    ['HIS', 'HIS', 'CYS', 'ALA', 'HOH', 'DA', 'MSE']
    """
    upper = name.upper()
    if upper in _WATERS:
        return "HOH"
    return RESIDUES.get(upper) or _NUCLEOTIDES.get(upper, upper)


@cache
def is_amino_acid_name(name: str) -> bool:
    """Return True for the name of an amino acid, modified ones included."""
    return bool(gemmi.find_tabulated_residue(standard_name(name)).is_amino_acid())


def residue_name(name: str, atoms: Collection[str]) -> str:
    """Return the standard name of a residue, unless its atoms are those of another molecule.

    ``HSE`` is also L-homoserine (it has ``OD`` or ``OG``) and ``SOL`` may be a ligand with carbon.
    """
    standard = standard_name(name)
    if standard == "HOH" and any(atom[:1].upper() == "C" for atom in atoms):
        return name
    if name.upper() == "HSE" and not {"OD", "OG"}.isdisjoint(atoms):
        return name
    return standard


def atom_names(residue: str, atoms: Collection[str]) -> dict[str, str]:
    """Return ``{written: standard}`` for the atoms of an amino acid with other names.

    A name is translated only where the standard one is absent, so nothing is overwritten.

    Examples
    --------
    >>> atom_names("ILE", ["N", "CA", "C", "OT1", "OT2", "CB", "CG1", "CG2", "CD"])
    {'OT1': 'O', 'OT2': 'OXT', 'CD': 'CD1'}
    """
    found: dict[str, str] = {}
    present = set(atoms)
    for atom in atoms:
        if atom in _KNOWN and (atom, residue) != ("CD", "ILE"):
            continue
        for name in _candidates(residue, atom.upper()):
            if name != atom and name in _KNOWN and name not in present:
                present.add(name)
                found[atom] = name
                break
    return found


def _candidates(residue: str, atom: str) -> Iterator[str]:
    """Return the standard names that `atom` may stand for, the most probable first."""
    yield atom
    if atom in _FIRST_OXYGENS:
        yield "O"
    if atom in _LAST_OXYGENS:
        yield "OXT"
    if residue == "ILE" and atom == "CD":
        yield "CD1"

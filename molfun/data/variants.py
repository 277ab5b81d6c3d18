"""Read mutations of a protein: A24G, A24G:K31E, p.Ala24Gly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS
from molfun.text import listing

_LONG = {
    "ALA": "A", "CYS": "C", "ASP": "D", "GLU": "E", "PHE": "F", "GLY": "G", "HIS": "H", "ILE": "I",
    "LYS": "K", "LEU": "L", "MET": "M", "ASN": "N", "PRO": "P", "GLN": "Q", "ARG": "R", "SER": "S",
    "THR": "T", "VAL": "V", "TRP": "W", "TYR": "Y",
}  # fmt: skip
_ONE = re.compile(r"([A-Z]{3}|[A-Z])(-?\d+)([A-Z]{3}|[A-Z*=])")
_NONE = ("WT", "_WT", "WILD TYPE", "WILDTYPE", "=", "P.=", "P.(=)")
"""Names of the wild type in tables."""
_KINDS = (
    (r"FS|FRAMESHIFT", "a frame shift"),
    (r"DELINS|INDEL", "a deletion with an insertion"),
    (r"DEL", "a deletion"),
    (r"INS", "an insertion"),
    (r"DUP", "a duplication"),
    (r"EXT", "an extension"),
    (r"TER|\*|STOP", "a stop codon"),
)


@dataclass(frozen=True)
class Substitution:
    """One exchanged residue.

    Parameters
    ----------
    place
        Index of the residue in the wild type, from 0.
    old, new
        Letters of the residue before and after.
    """

    place: int
    old: str
    new: str


@dataclass(frozen=True)
class Variant:
    """A protein with exchanged residues, in order of their places; none for the wild type.

    Examples
    --------
    >>> variant = parse_variant("p.[Lys3Glu;Ala1Gly]", "ACK")
    >>> variant.name(), variant.name(offset=23), variant.apply("ACK")
    ('A1G:K3E', 'A24G:K26E', 'GCE')
    """

    changes: tuple[Substitution, ...]

    def name(self, *, offset: int = 0) -> str:
        """Return the name in one-letter codes; ``WT`` without changes."""
        names = (f"{c.old}{c.place + 1 + offset}{c.new}" for c in self.changes)
        return ":".join(names) or "WT"

    def apply(self, wild_type: str) -> str:
        """Return the sequence with the changes."""
        letters = list(wild_type)
        for change in self.changes:
            letters[change.place] = change.new
        return "".join(letters)


def parse_variant(text: str, wild_type: str, *, offset: int = 0) -> Variant:
    """Read the substitutions of one variant.

    Parameters
    ----------
    text
        ``A24G``; several with ``:``, ``;``, ``,``, ``/`` or blanks between them; HGVS:
        ``p.Ala24Gly``, ``p.(Ala24Gly)``, ``p.[Ala24Gly;Lys31Glu]``, ``p.Ala24=``.
        ``WT`` and ``=`` are the wild type.
    wild_type
        Sequence that the letters before the numbers are compared with.
    offset
        Number of the first residue minus 1.

    Raises
    ------
    DataError
        If the text is no list of substitutions of this protein.

    Examples
    --------
    >>> parse_variant("A1G", "ACK").changes
    (Substitution(place=0, old='A', new='G'),)
    >>> parse_variant("C1G", "ACK")
    Traceback (most recent call last):
    molfun.errors.DataError: 'C1G': residue 1 of the wild type is A, not C.
    """
    plain = text.strip()
    if not plain:
        raise DataError("the variant is blank; write WT for the wild type.")
    if plain.upper() in _NONE:
        return Variant(())
    bare = re.sub(r"^[pP]\.|[()\[\]]", "", plain).upper().replace("P.", "")
    found: dict[int, Substitution] = {}
    for part in re.split(r"[:;,/\s]+", bare):
        change = _parse(part, plain, wild_type, offset)
        if change.place in found:
            number = change.place + 1 + offset
            raise DataError(f"{plain!r}: residue {number} is exchanged twice.")
        found[change.place] = change
    changes = (found[place] for place in sorted(found))
    return Variant(tuple(change for change in changes if change.old != change.new))


def _parse(part: str, whole: str, wild_type: str, offset: int) -> Substitution:
    match = _ONE.fullmatch(part)
    if match is None:
        raise DataError(f"{whole!r}: {_odd(part)}")
    old, number, new = match.groups()
    if new == "=":
        new = old
    letters = [_LONG.get(name, name) for name in (old, new)]
    wrong = next((letter for letter in letters if letter not in AMINO_ACIDS), None)
    if wrong is not None:
        raise DataError(f"{whole!r}: {_odd(wrong)}")
    place = int(number) - 1 - offset
    first, last = 1 + offset, len(wild_type) + offset
    if not 0 <= place < len(wild_type):
        raise DataError(
            f"{whole!r}: there is no residue {number}; those of the wild type have the numbers "
            f"{first} to {last}. Another first number is set with the offset."
        )
    if wild_type[place].upper() != letters[0]:
        raise DataError(
            f"{whole!r}: residue {number} of the wild type is {wild_type[place]}, not {letters[0]}."
        )
    return Substitution(place, *letters)


def _odd(part: str) -> str:
    kind = next((kind for pattern, kind in _KINDS if re.search(pattern, part)), None)
    if kind is not None:
        return f"it is {kind}; only substitutions can be read."
    if part.isalpha() and len(part) in (1, 3):
        return f"{part!r} is none of the 20 amino acids."
    return f"{part!r} is no substitution; write A24G, A24G:K31E or p.Ala24Gly."


def parse_variants(
    texts: Iterable[str], wild_type: str, *, offset: int = 0, names: Sequence[str] | None = None
) -> list[Variant]:
    """Read many variants, and list all that cannot be read.

    Parameters
    ----------
    texts, wild_type, offset
        As for `parse_variant`.
    names
        What to call each text in errors.

    Raises
    ------
    DataError
        With one line per text that is no variant of this protein.
    """
    found, problems = [], []
    for i, text in enumerate(texts):
        try:
            found.append(parse_variant(text, wild_type, offset=offset))
        except DataError as error:
            problems.append(str(error) if names is None else f"{names[i]}: {error}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(found) + len(problems)} variants cannot be read:\n"
            f"{listing(problems)}"
        )
    return found


def all_substitutions(wild_type: str) -> Iterator[Variant]:
    """Yield every variant with one exchanged residue, position by position.

    A residue that is none of the 20 amino acids has no variants.

    Examples
    --------
    >>> sum(1 for _ in all_substitutions("MKX"))
    38
    """
    for place, old in enumerate(wild_type.upper()):
        if old in AMINO_ACIDS:
            for new in AMINO_ACIDS.replace(old, ""):
                yield Variant((Substitution(place, old, new),))

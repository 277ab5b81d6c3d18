"""PDB records for tests."""

from __future__ import annotations

BACKBONE = ("N", "CA", "C", "O")
OFFSETS = {"N": (0, 0), "CA": (1.2, 0.8), "C": (2.4, 0), "O": (2.4, -1.2), "CB": (1.2, 2.3)}
STEP = 3.8


def pdb_atom(
    name: str,
    residue: str = "ALA",
    chain: str = "A",
    number: int = 1,
    *,
    record: str = "ATOM",
    xyz: tuple[float, float, float] = (0, 0, 0),
    altloc: str = " ",
    icode: str = " ",
    occupancy: float = 1.0,
    b_factor: float = 20.0,
    serial: int | str = 1,
    element: str | None = None,
) -> str:
    element = element or name[0]
    padded = f" {name:<3}" if len(name) < 4 and len(element) == 1 else f"{name:<4}"
    place = "".join(f"{value:8.3f}" for value in xyz)
    return (
        f"{record:<6}{serial:>5} {padded}{altloc}{residue:>3} {chain}{number:>4}{icode}   {place}"
        f"{occupancy:6.2f}{b_factor:6.2f}          {element:>2}"
    )


def pdb_residue(
    residue: str, chain: str = "A", number: int = 1, *, slot: int | None = None, **options: object
) -> list[str]:
    """Backbone atoms of a residue; residues in neighbouring slots are bonded."""
    start = STEP * (number if slot is None else slot)
    atoms = options.pop("atoms", BACKBONE)
    return [
        pdb_atom(
            name,
            residue,
            chain,
            number,
            xyz=(start + OFFSETS[name][0], OFFSETS[name][1], 0),
            **options,
        )
        for name in atoms
    ]


def pdb_chain(residues: str | list[str], chain: str = "A", first: int = 1) -> list[str]:
    return [
        line
        for i, residue in enumerate(residues.split() if isinstance(residues, str) else residues)
        for line in pdb_residue(residue, chain, first + i)
    ]

"""Structures that a fine-tuned model predicted, next to the known ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molfun.data.structures import read_structure
from molfun.errors import MolfunError
from molfun.protein import CA, Protein
from molfun.report.blocks import Figure, Model3D, Section, Structures, Table, Text
from molfun.report.coordinates import OUTSIDE
from molfun.report.figures import COLOURS, MUTED, plot, points
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.inputs import samples
from molfun.report.numbers import PART_NAMES, number
from molfun.report.sections.structures import LEGENDS, MOST_TEXT
from molfun.structures.folded import FoldedStructure
from molfun.structures.predicted import (
    residues_table,
    scores_table,
    structures_folder,
    unique_stems,
)
from molfun.structures.scoring.identical import renamed
from molfun.structures.scoring.in_place import FEWEST
from molfun.structures.scoring.superposition import superposed
from molfun.tasks.titles import title_of
from molfun.text import first_line

SHOWN = 4
"""Structures in 3D: half of them the best, half the worst."""
MOST_ROWS = 50
KNOWN = ("#9aa3ad", "known structure")
COLUMNS = ("plddt", "lddt_ca", "tm_score", "gdt_ts", "rmsd", "fape", "clashes")


def section(run: FinishedRun) -> Section | None:
    """Return scores, predicted and known main chains, and pLDDT against lDDT."""
    for part in PARTS:
        table = run.path / f"predictions_{part}.csv"
        scores = _rows(scores_table(table))
        if scores:
            return Section("Predicted structures", list(_blocks(run, part, table, scores)))
    return None


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _blocks(
    run: FinishedRun, part: str, table: Path, scores: list[dict[str, str]]
) -> Iterator[Any]:
    ranked = sorted(scores, key=lambda row: _value(row, "lddt_ca"), reverse=True)
    yield Text(
        f"Structures of the {PART_NAMES[part]} part, the best by lDDT first. The mmCIF files are "
        f"in {structures_folder(table).name}/."
    )
    header = ["", "residues", *("pLDDT" if c == "plddt" else title_of(c) for c in COLUMNS)]
    yield Table(
        header,
        [
            [row["id"], row["residues"], *(number(_value(row, c)) for c in COLUMNS)]
            for row in ranked[:MOST_ROWS]
        ],
    )
    if len(ranked) > MOST_ROWS:
        yield Text(f"{len(ranked) - MOST_ROWS:,} more are in {scores_table(table).name}.", "note")
    chosen = list(
        dict.fromkeys([*range(len(ranked))[: SHOWN // 2], *range(len(ranked))[-SHOWN // 2 :]])
    )
    yield from _views(run, table, [ranked[place] for place in chosen])
    residues = _rows(residues_table(table))
    if residues:
        yield _confidence(residues)


def _value(row: dict[str, str], name: str) -> float:
    try:
        return float(row.get(name, ""))
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class _Drawn:
    """A prediction as text of a PDB file, and why it is there alone; empty on the known one."""

    text: str
    alone: str = ""


def _views(run: FinishedRun, table: Path, rows: list[dict[str, str]]) -> Iterator[Any]:
    """Yield predictions on their known structures, as many as have room, and what is not shown."""
    shown, missing = _read(run, table, rows)
    models: dict[str, Model3D] = {}
    room = MOST_TEXT
    for row in rows:
        name = row["id"]
        if name not in shown:
            continue
        if len(shown[name].text) > room:
            missing.append(f"{name} (too large for the room of a report)")
            continue
        room -= len(shown[name].text)
        words = f"{name}: lDDT {number(_value(row, 'lddt_ca'))}"
        models[name] = Model3D(words, shown[name].text, "plddt")
    alone = {name: shown[name].alone for name in models if shown[name].alone}
    if models:
        yield _captioned(list(models.values()), on_known=len(alone) < len(models))
    missing += [f"the known structure of {name} ({why})" for name, why in alone.items()]
    if missing:
        yield Text(f"Not shown: {'; '.join(missing)}.", "note")


def _read(
    run: FinishedRun, table: Path, rows: list[dict[str, str]]
) -> tuple[dict[str, _Drawn], list[str]]:
    """Return predictions on their known structures by id, and those that cannot be read."""
    known = {name: sample.protein for name, sample in samples(run, [r["id"] for r in rows]).items()}
    # the order of the whole table, by which files were named
    stems = unique_stems([next(iter(row.values()), "") for row in _rows(table)])
    found, missing = {}, []
    for name in [row["id"] for row in rows]:
        path = structures_folder(table) / f"{stems.get(name, name)}.cif"
        try:
            found[name] = _drawn(read_structure(path), known.get(name))
        except MolfunError as error:  # files may have changed since the run
            missing.append(f"{name} ({first_line(error)})")
    return found, missing


def _captioned(models: list[Model3D], *, on_known: bool) -> Structures:
    caption = (
        f"Main chains of the best and the worst prediction, coloured by pLDDT"
        f"{', on the known structure in grey' * on_known}. Drag to turn, scroll to zoom."
    )
    return Structures(models, caption, [*LEGENDS["plddt"], *([KNOWN] if on_known else [])])


def _drawn(predicted: Protein, known: Protein | None) -> _Drawn:
    """Return the main chains of both as one PDB file, the prediction moved onto the known one."""
    import gemmi

    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    places = predicted.atom_positions.astype(float)
    alone = "the data of the run cannot be read again" if known is None else ""
    if known is not None:
        own, fitting = _fitting(predicted, known)
        there = (fitting.atom_mask[:, CA] > 0) & (predicted.atom_mask[own, CA] > 0)
        if there.sum() >= FEWEST:
            target = np.zeros((len(predicted), 3))
            target[own] = fitting.atom_positions[:, CA]
            flat = _moved(places, target, own[there])
            places = np.where(predicted.atom_mask[..., None] > 0, flat, 0.0)
            # in another order, a crop shows other residues of its chains
            grey = known if known.whole is None else fitting
            _add(structure, grey, grey.atom_positions, np.full(len(grey), OUTSIDE), first="a")
        else:
            alone = f"it has fewer than {FEWEST} of the predicted CA atoms, by chain and number"
    _add(structure, predicted, places, predicted.b_factors[:, CA], first="A")
    return _Drawn(str(structure.make_minimal_pdb()), alone)


def _fitting(predicted: Protein, known: Protein) -> tuple[np.ndarray, Protein]:
    """Return the places of predicted residues that the known structure has, and these of it.

    A file holds no residues without atoms, such as those of unknown type (X), so places do not say
    which residue is which.
    """
    row_of = {key: row for row, key in enumerate(_keys(known))}
    pairs = [(i, row_of[key]) for i, key in enumerate(_keys(predicted)) if key in row_of]
    own, other = np.array(pairs, np.int64).reshape(-1, 2).T
    return own, renamed(known.take(other), predicted.take(own))


def _keys(protein: Protein) -> list[tuple[str, int, str]]:
    """Return chain, number and insertion code of each residue, as files hold them."""
    nothing = np.zeros(len(protein), np.float32)
    written = FoldedStructure(id=protein.name, protein=protein, plddt=nothing, recycles=None)
    names = written.chain_names()
    chains = [names[i] for i in protein.chain_index]
    return [(chain, *one) for chain, one in zip(chains, written.residue_ids(), strict=True)]


def _moved(places: np.ndarray, target: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Return atoms (residues, 37, 3), moved so that the CA atoms of some residues fit `target`."""
    n = len(places)
    # CA atoms first, so that the fit has the same places on both sides
    points = np.concatenate([places[:, CA], places.reshape(-1, 3)])
    fixed = np.concatenate([target, np.zeros((len(points) - n, 3))])
    moved = superposed(points, fixed, fit=fit)
    return moved[n:].reshape(places.shape)


def _add(
    structure: Any, protein: Protein, places: np.ndarray, b: np.ndarray, *, first: str
) -> None:
    """Add the main chain of a protein, its chains named from `first` on."""
    import gemmi

    from molfun.protein import ATOM_NAMES

    letters = {1: "C", 0: "N", 2: "C", 4: "O"}
    model = structure[0]
    for number_of_chain in np.unique(protein.chain_index):
        chain = gemmi.Chain(chr(ord(first) + int(number_of_chain) % 26))
        for row in np.flatnonzero(protein.chain_index == number_of_chain):
            residue = gemmi.Residue()
            residue.name = (
                gemmi.expand_one_letter(protein.sequence[row], gemmi.ResidueKind.AA) or "UNK"
            )
            residue.seqid = gemmi.SeqId(int(row) + 1, " ")
            for atom_index, element in sorted(letters.items()):
                if protein.atom_mask[row, atom_index] > 0:
                    atom = gemmi.Atom()
                    atom.name, atom.element = ATOM_NAMES[atom_index], gemmi.Element(element)
                    atom.pos = gemmi.Position(*map(float, places[row, atom_index]))
                    atom.b_iso = float(b[row])
                    residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)


def _confidence(rows: list[dict[str, str]]) -> Figure:
    plddt = np.array([_value(row, "plddt") for row in rows])
    lddt = 100 * np.array([_value(row, "lddt_ca") for row in rows])
    with plot(4.4, 4.0) as drawn:
        axes = drawn.axes[0]
        points(axes, lddt, plddt, COLOURS[0])
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle="--")
        axes.set_xlabel("lDDT-CA of the prediction")
        axes.set_ylabel("pLDDT")
    gap = float(np.nanmean(plddt - lddt))
    return Figure(
        drawn.svg,
        f"Confidence against truth, {len(rows):,} residues: pLDDT is {number(abs(gap))} points "
        f"{'above' if gap > 0 else 'below'} lDDT on average. On the dashed line it is right.",
    )

"""Predictions of a run on their known structures, paired residue by residue."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gemmi
import numpy as np
import pytest
from made_structures import SEQUENCE, chain, joined, moved

from molfun.protein import Protein
from molfun.report.blocks import Structures, Text
from molfun.report.finished import FinishedRun
from molfun.report.sections import predicted_structures
from molfun.sample import Sample
from molfun.structures.folded import Maker
from molfun.structures.predicted import structures_folder, write_predicted

TABLE = "predictions_test.csv"


def drawn(
    run: Path,
    known: dict[str, Protein],
    monkeypatch: pytest.MonkeyPatch,
    *,
    found: dict[str, Protein] | None = None,
) -> tuple[Structures | None, str]:
    """Return the structures of a section on predictions of `known`, and what it says of others."""
    (run / "checkpoint").mkdir(parents=True, exist_ok=True)
    if not (run / TABLE).exists():
        (run / TABLE).write_text("id\n" + "".join(f"{name}\n" for name in known))
        positions = []
        for protein in known.values():
            place = moved(protein, 0.0).atom_positions.copy()
            # as openfold predicts no atoms of unknown residues
            nothing = (protein.atom_mask == 0) | (protein.aatype == 20)[:, None]
            place[nothing] = np.nan
            positions.append(place)
        plddt = [np.full(len(protein), 80.0) for protein in known.values()]
        result = {"ids": list(known), "positions": positions, "plddt": plddt}
        write_predicted(
            run / TABLE, result, known, Maker(model="m", software={"molfun": "0"}, weights="w")
        )
    samples = {n: Sample(id=n, protein=p) for n, p in (known if found is None else found).items()}
    monkeypatch.setattr(predicted_structures, "samples", lambda *_: samples)
    blocks = predicted_structures.section(FinishedRun(run)).blocks
    shown = [block for block in blocks if isinstance(block, Structures)]
    notes = [b.text for b in blocks if isinstance(b, Text) and b.text.startswith("Not shown")]
    return (shown[0] if shown else None), " ".join(notes)


def distances(text: str) -> np.ndarray:
    """Return how far each predicted CA atom is from the nearest known one, which are of -99."""
    atoms = [
        (residue["CA"][0].b_iso, residue["CA"][0].pos.tolist())
        for one in gemmi.read_pdb_string(text)[0]
        for residue in one
    ]
    known, own = (
        [place for b, place in atoms if (b < 0) == is_known] for is_known in (True, False)
    )
    return np.linalg.norm(np.array(own)[:, None] - np.array(known)[None], axis=-1).min(1)


def test_unknown_residues_and_insertion_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a prediction lacks the residue X of its sample, so it is shorter."""
    one = chain("MKTX" + SEQUENCE)
    two = dataclasses.replace(
        joined(one, chain(SEQUENCE, at=(15, 0, 0), seed=2)),
        residue_ids=tuple([f"5{letter}" for letter in ("", "A", "B", "C")])
        + tuple(str(i) for i in range(6, 6 + 2 * len(SEQUENCE))),
    )
    shown, notes = drawn(tmp_path, {"x": one, "pair": two}, monkeypatch)
    assert notes == ""
    assert "on the known structure in grey" in shown.caption
    assert len(shown.models) == 2
    for model in shown.models:
        assert distances(model.text).max() < 0.01


def test_identical_chains_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = chain(SEQUENCE + "XA"), chain(SEQUENCE + "XA", at=(20, 5, 0), seed=2)
    drawn(tmp_path, {"pair": joined(*chains)}, monkeypatch)
    shown, _ = drawn(tmp_path, {"pair": joined(*chains[::-1])}, monkeypatch)
    assert distances(shown.models[0].text).max() < 0.01


def test_a_crop_of_identical_chains_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the other order, other residues of the known structure are those of the crop."""
    chains = chain(SEQUENCE), chain(SEQUENCE, at=(20, 5, 0), seed=2)
    n = len(SEQUENCE)
    crop = np.r_[5:30, n + 12 : n + 40]
    known, other = (joined(*order) for order in (chains, chains[::-1]))
    drawn(tmp_path, {"pair": known.take(crop)}, monkeypatch)
    cropped = dataclasses.replace(other.take(crop), whole=other)
    shown, _ = drawn(tmp_path, {"pair": cropped}, monkeypatch)
    assert distances(shown.models[0].text).max() < 0.01


def test_what_is_not_shown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: chain(SEQUENCE, seed=i) for i, name in enumerate("abcd")}
    drawn(tmp_path, known, monkeypatch)
    other = dataclasses.replace(known["c"], chain_ids=("Z",))
    (structures_folder(tmp_path / TABLE) / "d.cif").write_text("data_d\n_atom_site.id 1\n")
    found = {"a": known["a"], "c": other, "d": known["d"]}
    shown, notes = drawn(tmp_path, known, monkeypatch, found=found)
    assert [model.caption.split(":")[0] for model in shown.models] == ["a", "b", "c"]
    assert "the known structure of b (the data of the run cannot be read again)" in notes
    assert "the known structure of c (it has fewer than 3 of the predicted CA atoms" in notes
    assert "d (" in notes
    shown, notes = drawn(tmp_path, known, monkeypatch, found={})
    assert "known structure" not in shown.caption
    assert all("known" not in words for _, words in shown.legend)
    # a fault of the program is no file that cannot be read
    monkeypatch.setattr(predicted_structures, "_fitting", lambda *_: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        drawn(tmp_path, known, monkeypatch)

"""Structures of ensembles: the most confident one, its spread, and what trained weights fold."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molfun import FullFinetune, MolfunStructureModel
from molfun.data.structures import read_structure
from molfun.errors import ConfigError
from molfun.models import Ensemble
from molfun.structures import write_structure
from molfun.structures.files import as_one_chain
from molfun.structures.ranking import ranked, spread_of
from molfun.training import Callback

SEQUENCES = ["MKTAYIAKQRQISF", "MKTAY:GSHMKW"]


def changed(model: MolfunStructureModel, seed: int) -> MolfunStructureModel:
    """Return a copy whose structure module and confidence heads have other weights."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.backbone.named_parameters():
            if "structure_module" in name or "aux_heads" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def ensemble(tiny_model: Any) -> Ensemble:
    return Ensemble([changed(tiny_model(), seed) for seed in range(3)])


def test_the_most_confident_structure_is_given(ensemble: Ensemble) -> None:
    found = ensemble.fold(SEQUENCES, recycles=1)
    alone = [model.fold(SEQUENCES, recycles=1) for model in ensemble.models]
    for i, structure in enumerate(found):
        confidences = [one[i].confidence for one in alone]
        best = alone[int(np.argmax(confidences))][i]
        assert structure.member == int(np.argmax(confidences)) + 1
        assert structure.confidence == max(confidences)
        assert np.array_equal(structure.protein.atom_positions, best.protein.atom_positions)
        assert [one.confidence for one in structure.models] == sorted(confidences, reverse=True)
        assert sorted(one.member for one in structure.models) == [1, 2, 3]
        assert "the most confident of 3 models of an ensemble" in structure.notes[-1]
    assert found[1].iptm is not None


def test_spread_is_the_distance_after_superposition(ensemble: Ensemble) -> None:
    (best,) = ensemble.fold("MKTAYXAKQR", recycles=0)
    known = np.arange(10) != 5
    assert np.isnan(best.spread[5])
    one = best.models[0]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    places = one.protein.atom_positions @ turn.T.astype(np.float32) + 7.0
    moved = dataclasses.replace(
        one, protein=dataclasses.replace(one.protein, atom_positions=places)
    )
    assert np.nanmax(spread_of(one, [moved])) < 1e-3
    # by hand, the superposition of Kabsch with numpy's singular value decomposition
    squares = []
    for other in best.models[1:]:
        p, q = (s.protein.atom_positions[known, 1].astype(np.float64) for s in (other, one))
        p, q = p - p.mean(0), q - q.mean(0)
        u, _, vt = np.linalg.svd(p.T @ q)
        sign = np.diag([1, 1, np.linalg.det(u @ vt)])
        squares.append((((p @ u @ sign @ vt) - q) ** 2).sum(-1))
    expected = np.sqrt(np.mean(squares, axis=0))
    assert np.allclose(best.spread[known], expected, atol=1e-4)
    assert best.mean_spread == pytest.approx(np.sqrt(np.mean(expected**2)), rel=1e-5)
    more = dataclasses.replace(one, plddt=one.plddt + 1)
    assert ranked({1: one, 2: more}, of=2).member == 2
    (short,) = ensemble.fold("MK", recycles=0)
    assert np.isnan(short.spread).all()
    assert short.mean_spread is None


def test_files_hold_every_model(ensemble: Ensemble, tmp_path: Path) -> None:
    structure = ensemble.fold(SEQUENCES, recycles=0)[1]
    write_structure(structure, tmp_path, plots=False)
    stored = json.loads((tmp_path / "seq_2_confidence.json").read_text())
    assert [one["member"] for one in stored["members"]] == [m.member for m in structure.models]
    assert stored["member"] == structure.member
    assert stored["spread"] == pytest.approx(structure.mean_spread, abs=1e-4)
    assert np.allclose(stored["residue_spread"], structure.spread, atol=1e-3)
    for one in structure.models:
        own = read_structure(tmp_path / f"member_{one.member}/seq_2.cif")
        assert np.abs(own.atom_positions - one.protein.atom_positions).max() <= 1e-3
        with np.load(tmp_path / f"member_{one.member}/seq_2_pae.npz") as errors:
            assert np.array_equal(errors["pae"], one.pae)
    best = (tmp_path / "seq_2.cif").read_text()
    assert f"member {structure.member}" in " ".join(best.split())
    assert all(len(m.protein.chain_ids) == 1 for m in as_one_chain(structure).models)


def test_equal_backbones_fold_once(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ensemble.models[:2]
    ran: list[Any] = []
    fold = type(first.backbone).fold
    monkeypatch.setattr(
        type(first.backbone), "fold", lambda self, *a, **k: ran.append(1) or fold(self, *a, **k)
    )
    (same,) = Ensemble([first, copy.deepcopy(first)]).fold("MKTAY", recycles=0)
    assert len(ran) == 1
    assert (same.member, same.spread, same.models) == (None, None, ())
    assert same.notes[-1].startswith("the 2 models of the ensemble have the same backbone")
    ran.clear()
    (some,) = Ensemble([first, copy.deepcopy(first), second]).fold("MKTAY", recycles=0)
    assert len(ran) == 2
    assert sorted(one.member for one in some.models) == [1, 3]


def test_ensembles_of_other_backbones_are_refused() -> None:
    models = [
        MolfunStructureModel("esm2_tiny", head="regression", seed=seed, device="cpu")
        for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match="ESM-2 predicts no structures; openfold does"):
        Ensemble(models).fold("MKTA")


class _Live(Callback):
    """Keep the weights of the last step, which are not those of the moving average."""

    def __init__(self, model: MolfunStructureModel) -> None:
        self.model = model

    def on_step_end(self, report: Any) -> None:
        self.weights = copy.deepcopy(self.model.state_dict())


def test_weights_of_the_moving_average_fold(tiny_model: Any, batches: Any, tmp_path: Path) -> None:
    model: MolfunStructureModel = tiny_model()
    live = _Live(model)
    strategy = FullFinetune(lr=1e-2, ema_decay=0.9)
    model.fit(batches(2), strategy=strategy, epochs=1, callbacks=[live], output_dir=tmp_path)
    (trained,) = model.fold(SEQUENCES[0], recycles=0)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    (stored,) = loaded.fold(SEQUENCES[0], recycles=0)
    assert np.array_equal(stored.protein.atom_positions, trained.protein.atom_positions)
    model.load_state_dict(live.weights)
    (last,) = model.fold(SEQUENCES[0], recycles=0)
    assert np.abs(last.protein.atom_positions - trained.protein.atom_positions).max() > 1e-2

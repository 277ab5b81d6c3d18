"""Structures that the real openfold predicts, against its own forward pass and functions."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from openfold.utils.loss import compute_plddt, compute_predicted_aligned_error, compute_tm
from torch.utils.data import DataLoader

from molfun import MolfunStructureModel
from molfun.backbones.openfold import confidence, folding
from molfun.data.affinity import AffinityDataset
from molfun.data.structures import read_structure
from molfun.errors import ConfigError, DataError
from molfun.protein import Protein
from molfun.sample import Sample, SampleBatch
from molfun.strategies import LoRAFinetune
from molfun.structures.folded import ALONE, JUMPED

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("openfold", config="tiny", head="affinity")


def stock(model: MolfunStructureModel, protein: Protein, recycles: int) -> dict[str, torch.Tensor]:
    """Return the outputs of openfold's own forward pass."""
    backbone = model.backbone
    features = backbone._features_for(Sample(id="x", protein=protein), recycles, 0)
    with torch.no_grad():
        return backbone.model(backbone.collate([features]))


@pytest.mark.parametrize("recycles", [0, 1, 3])
def test_a_fold_is_openfolds_own_forward_pass(model: MolfunStructureModel, recycles: int) -> None:
    (found,) = model.fold(SEQUENCE, recycles=recycles)
    expected = stock(model, Protein.from_sequence(SEQUENCE), recycles)
    assert torch.equal(
        torch.from_numpy(found.protein.atom_positions), expected["final_atom_positions"][0]
    )
    assert torch.equal(torch.from_numpy(found.protein.atom_mask), expected["final_atom_mask"][0])
    assert found.recycles == recycles
    # confidence is the value of openfold's functions, bit by bit
    settings = dict(model.backbone.config.model.heads.tm)
    assert np.array_equal(found.plddt, compute_plddt(expected["lddt_logits"])[0].numpy())
    logits = expected["tm_logits"][0]
    error = compute_predicted_aligned_error(logits, **settings)
    assert np.array_equal(found.pae, error["predicted_aligned_error"].numpy())
    assert found.max_pae == float(error["max_predicted_aligned_error"])
    assert found.ptm == float(compute_tm(logits, **settings))
    assert found.iptm is None


def test_recycling_ends_where_the_structure_no_longer_changes(model: MolfunStructureModel) -> None:
    protein = Protein.from_sequence(SEQUENCE)
    passes = [stock(model, protein, n)["final_atom_positions"] for n in range(4)]
    mask = torch.ones(1, len(protein))
    changes = [folding.ca_change(a, b, mask) for a, b in itertools.pairwise(passes)]
    # independent of the implementation: distances between CA atoms, all pairs
    by_hand = []
    for one, other in itertools.pairwise(passes):
        ca = [p[0, :, 1].numpy().astype(np.float64) for p in (one, other)]
        table = [np.linalg.norm(c[:, None] - c[None], axis=-1) for c in ca]
        by_hand.append(np.sqrt(((table[0] - table[1]) ** 2).mean()))
    assert changes == pytest.approx(by_hand, rel=1e-4)
    tolerance = 1.01 * changes[1]
    expected = next(i + 1 for i, change in enumerate(changes) if change < tolerance)
    (found,) = model.fold(SEQUENCE, recycles=3, tolerance=tolerance)
    assert found.recycles == expected
    assert np.array_equal(found.protein.atom_positions, passes[expected][0].numpy())
    (whole,) = model.fold(SEQUENCE, recycles=3, tolerance=1e-9)
    assert whole.recycles == 3


@pytest.mark.parametrize(
    ("seed", "sizes", "value"),
    [
        (0, (3, 4), 0.10284008),
        (1, (1, 1), 0.00091821974),
        (2, (20, 15, 5), 0.14161679),
    ],
)
def test_the_interface_score_of_openfold_2(seed: int, sizes: tuple[int, ...], value: float) -> None:
    """Values of ``compute_tm(logits, asym_id=..., interface=True)`` of openfold 2.2.0."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    logits = torch.randn(n, n, 64, generator=generator) * 3
    chains = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    found = confidence.interface_tm(logits, chains, max_bin=31, no_bins=64)
    assert found == pytest.approx(value, rel=1e-6)


def test_several_chains(model: MolfunStructureModel) -> None:
    (found,) = model.fold("MKTAYI:ACDEFGH", recycles=1)
    assert found.protein.chain_ids == ("A", "B")
    assert found.protein.residue_index[6] - found.protein.residue_index[5] == 200
    assert found.iptm is not None
    assert found.confidence == pytest.approx(0.8 * found.iptm + 0.2 * found.ptm)
    assert found.notes[1:] == (ALONE, JUMPED)
    assert found.notes[0].startswith("made with random weights")
    assert found.residue_ids()[6] == (1, "")


def test_unknown_residues_get_no_atoms(model: MolfunStructureModel) -> None:
    (found,) = model.fold("MKXA", recycles=0)
    assert found.protein.atom_mask.sum(axis=1).tolist() == [8, 9, 0, 5]
    assert any("1 residue of unknown type (X)" in note for note in found.notes)


def test_two_residues_and_one(model: MolfunStructureModel) -> None:
    (found,) = model.fold("MK", recycles=1)
    assert np.isfinite(found.protein.atom_positions).all()
    assert found.pae.shape == (2, 2)
    with pytest.raises(DataError, match="seq_1 has 1 residues; openfold takes 2 or more"):
        model.fold("M")


def test_a_preset_without_a_tm_head_says_so() -> None:
    model = MolfunStructureModel("openfold", config="tiny")
    config = model.backbone.config.copy_and_resolve_references()
    config.model.heads.tm.enabled = False
    plain = MolfunStructureModel("openfold", config=config)
    (found,) = plain.fold("MKTA", recycles=0)
    assert (found.pae, found.ptm, found.iptm) == (None, None, None)
    assert "the preset has no TM head, so there is no pTM" in " ".join(found.notes)


def test_numbers_of_an_input_structure_survive(model: MolfunStructureModel) -> None:
    ids = ("3", "4", "4A", "9")
    protein = dataclasses.replace(
        Protein.from_sequence("MKTA"), residue_ids=ids, chain_ids=("H",), name="h"
    )
    (found,) = model.fold([Sample(id="h", protein=protein)], recycles=0)
    assert found.protein.residue_ids == ids
    assert found.chain_names() == ["H"]


def test_adapters_and_merged_adapters_fold_alike() -> None:
    model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    base = model.fold(SEQUENCE, recycles=0)[0]
    data = AffinityDataset.synthetic(2, 12)
    model.fit(data, strategy=LoRAFinetune(rank=2), epochs=1)
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted = model.fold(SEQUENCE, recycles=0)[0]
    merged = model.merge().fold(SEQUENCE, recycles=0)[0]
    assert np.abs(adapted.protein.atom_positions - base.protein.atom_positions).max() > 1e-3
    assert np.abs(adapted.protein.atom_positions - merged.protein.atom_positions).max() < 1e-4
    assert adapted.maker.trained == "fine-tuned (lora)"
    assert base.maker.trained == ""
    unmerged = model.unmerge().fold(SEQUENCE, recycles=0)[0]
    assert np.array_equal(unmerged.protein.atom_positions, adapted.protein.atom_positions)


def test_predictions_and_structures_come_from_one_pass(tmp_path: Path) -> None:
    model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    data = AffinityDataset.synthetic(3, 12)
    model.fit(data, strategy=LoRAFinetune(rank=2), epochs=1)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.backbone.model.evoformer.register_forward_hook(count)
    found = model.predict(data, structures=tmp_path / "out")
    handle.remove()
    assert passes == 3
    assert torch.equal(found["prediction"], model.predict(data)["prediction"])
    for sample, folded in zip(data, model.fold(data, recycles=0), strict=True):
        written = read_structure(tmp_path / f"out/{sample.id}.cif")
        assert np.abs(written.atom_positions - folded.protein.atom_positions).max() <= 1e-3
        stored = json.loads((tmp_path / f"out/{sample.id}_confidence.json").read_text())
        assert stored["ptm"] == pytest.approx(folded.ptm, abs=1e-4)
        assert stored["trained"] == "fine-tuned (lora)"
        assert stored["weights_in_use"] == model.backbone.state_fingerprint()
        assert stored["weights"] == "random at first, then trained"
        assert stored["seed"] is None
        assert any(ALONE in note for note in stored["notes"])
    assert len((tmp_path / "out/summary.csv").read_text().splitlines()) == 4


def test_padding_does_not_reach_the_structures_of_a_batch(tmp_path: Path) -> None:
    model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    samples = [
        Sample(id=f"s{n}", protein=Protein.from_sequence("MKTAYIAKQRQISFVK"[:n])) for n in (5, 16)
    ]
    model.predict([SampleBatch(samples)], structures=tmp_path)
    for sample, folded in zip(samples, model.fold(samples, recycles=0), strict=True):
        written = read_structure(tmp_path / f"{sample.id}.cif")
        assert written.sequence == sample.protein.sequence
        assert np.abs(written.atom_positions - folded.protein.atom_positions).max() <= 2e-3
        with np.load(tmp_path / f"{sample.id}_pae.npz") as errors:
            assert np.allclose(errors["pae"], folded.pae, atol=1e-4)


def test_predicted_structures_whose_names_clash(tmp_path: Path) -> None:
    """Where the ids are known, before anything is computed; else before a file is replaced."""
    model = MolfunStructureModel("openfold", config="tiny", head="affinity")
    samples = [Sample(id=name, protein=Protein.from_sequence("MKTAY")) for name in ("a/b", "a_b")]
    message = "'a/b' and 'a_b' would both be a_b.cif"
    for data in (samples, [SampleBatch(samples[:1]), SampleBatch(samples[1:])]):
        with pytest.raises(DataError, match=message):
            model.predict(data, structures=tmp_path)
        assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="'a_b' stands there twice"):
        model.predict([samples[1]] * 2, structures=tmp_path)
    unlisted = DataLoader(samples, collate_fn=SampleBatch)
    with pytest.raises(DataError, match=message):
        model.predict(unlisted, structures=tmp_path)
    assert json.loads((tmp_path / "predict.json").read_text()) == {"structures": ["a_b"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["MK1A"], r"seq_1 holds '1', which stands for no amino acid"),
        (["MK::A"], r"seq_1 has an empty chain: 'MK::A'"),
        ([], "The data is empty"),
    ],
)
def test_bad_sequences_are_named(
    model: MolfunStructureModel, data: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        model.fold(data)


def test_multimer_presets_are_refused_by_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="is a multimer preset, which reads features of its own"):
        MolfunStructureModel("openfold", config="model_1_multimer_v3")


def test_wrong_arguments(model: MolfunStructureModel) -> None:
    with pytest.raises(ConfigError, match="recycles must be a whole number from 0 on, got -1"):
        model.fold("MK", recycles=-1)
    with pytest.raises(ConfigError, match="a distance in angstrom above 0, got 0"):
        model.fold("MK", tolerance=0)
    sequences = MolfunStructureModel("esm2_tiny")
    with pytest.raises(ConfigError, match="ESM-2 predicts no structures; openfold does"):
        sequences.fold("MK")

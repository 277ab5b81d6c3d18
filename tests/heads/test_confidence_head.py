"""The classifier of binders: its inputs, what trains through it, and the command line."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import torch
from pdb_text import pdb_chain
from tiny import build_tiny_model
from typer.testing import CliRunner

from molfun import HeadOnlyFinetune, LoRAFinetune, MolfunStructureModel
from molfun.cli.main import app
from molfun.errors import ConfigError
from molfun.heads.confidence import FEATURES, ConfidenceHead
from molfun.protein import CHAIN_GAP, Protein
from molfun.sample import Sample
from molfun.training.forward import ForwardPass
from molfun.trunk import TrunkOutput

RECEPTOR = "GSHSMRYFYTAMSR"
BINDERS = ["LIVMFAWLI", "MLLVWFAIL", "AVLIWMFFL", "ILVMAAFWV"]
OTHERS = ["DEKRNQGDE", "KDERNNQGE", "GQNRKEDDE", "RRKEDNQGD"]
PEPTIDES = [(peptide, label) for pair in zip(BINDERS, OTHERS, strict=True)
            for label, peptide in zip((1, 0), pair, strict=True)]  # fmt: skip


def table() -> list[Sample]:
    return [
        Sample(id=peptide, protein=Protein.from_chains([RECEPTOR, peptide]), target=label)
        for peptide, label in PEPTIDES
    ]


def model(**settings: Any) -> MolfunStructureModel:
    return build_tiny_model(**{"head": "confidence", "task": "binary", **settings})


def drawn(chains: list[int], *, padding: int = 0, seed: int = 0) -> TrunkOutput:
    """Return a sample with chains of these lengths and random confidence."""
    rng = np.random.default_rng(seed)
    n = sum(chains) + padding
    index = np.concatenate([np.arange(k) + 1000 * i for i, k in enumerate(chains)])
    return TrunkOutput(
        mask=torch.tensor([[1.0] * (n - padding) + [0.0] * padding]),
        structure={
            "plddt": torch.tensor(rng.uniform(0, 100, (1, n)), dtype=torch.float32),
            "pae": torch.tensor(rng.uniform(0, 32, (1, n, n)), dtype=torch.float32),
            "ptm": torch.tensor([0.7]),
            "residue_index": torch.from_numpy(np.pad(index, (0, padding)))[None],
        },
    )


@pytest.mark.parametrize(
    ("partner", "chains", "chosen"),
    [
        ("shortest", [8, 3, 5], 1),
        ("shortest", [4, 6, 4], 2),
        ("last", [8, 3, 5], 2),
        ("first", [8, 3, 5], 0),
    ],
)
def test_inputs_are_means_over_chains(partner: str, chains: list[int], chosen: int) -> None:
    trunk = drawn(chains, padding=4)
    found = ConfidenceHead(partner=partner).features(trunk)[0].tolist()
    chain = np.repeat(np.arange(len(chains)), chains)
    structure = {n: t[0].numpy() for n, t in trunk.structure.items()}
    n = len(chain)
    plddt, pae = structure["plddt"][:n], structure["pae"][:n, :n]
    own, rest = chain == chosen, chain != chosen
    expected = {
        "plddt": plddt.mean() / 100,
        "plddt_rest": plddt[rest].mean() / 100,
        "plddt_partner": plddt[own].mean() / 100,
        "pae_rest": pae[rest][:, rest].mean() / 32,
        "pae_partner": pae[own][:, own].mean() / 32,
        "pae_rest_partner": pae[rest][:, own].mean() / 32,
        "pae_partner_rest": pae[own][:, rest].mean() / 32,
        "ptm": 0.7,
    }
    assert tuple(expected) == FEATURES
    assert found == pytest.approx(list(expected.values()), rel=1e-5)


def test_one_chain_is_partner_and_rest() -> None:
    found = dict(zip(FEATURES, ConfidenceHead().features(drawn([6]))[0].tolist(), strict=True))
    assert found["plddt"] == found["plddt_rest"] == found["plddt_partner"]
    assert found["pae_rest"] == found["pae_partner"] == found["pae_rest_partner"]


def test_inputs_of_a_model_are_those_of_its_structures() -> None:
    made = model()
    sample = table()[0]
    (folded,) = made.fold([sample], recycles=0)
    with torch.no_grad():
        batch = made.backbone.collate([made.backbone.featurize(sample)])
        found = made.head.features(made.backbone(batch, outputs=("structure",)))[0].tolist()
    values = dict(zip(FEATURES, found, strict=True))
    n = len(RECEPTOR)
    assert sample.protein.residue_index[n] - sample.protein.residue_index[n - 1] == CHAIN_GAP
    assert values["plddt"] == pytest.approx(folded.mean_plddt / 100, rel=1e-5)
    assert values["plddt_partner"] == pytest.approx(folded.plddt[n:].mean() / 100, rel=1e-5)
    assert values["pae_partner_rest"] == pytest.approx(folded.pae[n:, :n].mean() / 32, rel=1e-5)
    assert values["ptm"] == pytest.approx(folded.ptm, rel=1e-5)


def test_a_frozen_model_runs_once_per_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[TrunkOutput] = []
    run = ForwardPass.whole

    def counted(self: ForwardPass, *args: Any, **options: Any) -> TrunkOutput:
        ran.append(run(self, *args, **options))
        return ran[-1]

    monkeypatch.setattr(ForwardPass, "whole", counted)
    data = table()[:2]
    strategy = HeadOnlyFinetune(lr=1e-2)
    found = {}
    for cache in ("memory", "off"):
        ran.clear()
        made = model()
        history = made.fit(data, data, strategy=strategy, epochs=2, cache=cache)
        found[cache] = history[-1]["val_loss"], len(ran), made.predict(data)["probs"]
    assert found["memory"][1] == 2
    assert found["off"][1] > 2
    assert found["memory"][0] == found["off"][0]
    assert torch.equal(found["memory"][2], found["off"][2])
    # the scale of the inputs was learned, and is saved
    made.save(tmp_path / "c")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")
    assert bool(again.head.inputs_fitted)
    assert torch.equal(again.predict(data)["probs"], made.predict(data)["probs"])
    # logits are 64 numbers for each pair of residues: no cache keeps them
    assert "structure.pae" in ran[0].tensors()
    assert "structure.tm_logits" not in ran[0].tensors()
    assert "tm_logits" in ran[0].structure


@pytest.mark.parametrize("source", ["plddt", "pae"])
def test_adapters_train_through_the_confidence(source: str) -> None:
    made = model()
    data = table()[:2]
    LoRAFinetune(rank=2).setup(made)
    with torch.no_grad():
        made.head.regression.weight.zero_()
        columns = [i for i, name in enumerate(FEATURES) if name.startswith(source)]
        made.head.regression.weight[0, columns] = 1.0
    made.forward(data[0])["prediction"][0, 0].backward()
    grads = {n: p.grad for n, p in made.backbone.named_parameters() if "lora_B" in n}
    assert sum(bool(g is not None and g.any()) for g in grads.values()) > len(grads) / 2


def test_adapters_learn() -> None:
    made = model()
    data = table()[:2]
    strategy = LoRAFinetune(rank=2, lr_lora=1e-2, lr_head=1e-1, scheduler="constant")
    history = made.fit(data, data, strategy=strategy, epochs=2)
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_presets_without_a_tm_head_give_plddt_alone(caplog: pytest.LogCaptureFixture) -> None:
    config = model().backbone.config.copy_and_resolve_references()
    config.model.heads.tm.enabled = False
    plain = model(config=config)
    with caplog.at_level(logging.WARNING):
        plain.fit(table()[:4], strategy=HeadOnlyFinetune(lr=1e-2), epochs=1)
        prediction = plain.predict(table()[:2])["probs"]
    assert torch.isfinite(prediction).all()
    told = [r for r in caplog.messages if "has no TM head: the head 'confidence' reads pLDDT" in r]
    assert len(told) == 1


def test_numbers_are_predicted_as_well() -> None:
    made = model(task="regression")
    made.fit(
        [Sample(id=s.id, protein=s.protein, target=5.0 + s.target) for s in table()[:4]],
        strategy=HeadOnlyFinetune(lr=1e-2),
        epochs=1,
    )
    assert made.predict(table()[:2])["prediction"].shape == (2,)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="longest"):
        ConfidenceHead(partner="longest")
    with pytest.raises(ConfigError, match="gives a label for each complex"):
        model(task_config={"level": "residue"})
    sequences = MolfunStructureModel("esm2_tiny", head="confidence", task="binary", device="cpu")
    with pytest.raises(ConfigError, match="ESM-2 gives no 'structure', which the head"):
        sequences.fit([("MKV", 1), ("MKA", 0)], strategy="head_only", epochs=1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A table of peptides with a receptor, and their structures: ids, labels 0 and 1."""
    monkeypatch.chdir(tmp_path)
    Path("pdbs").mkdir()
    rows = ["pdb_id,binds"]
    for i, (peptide, label) in enumerate(PEPTIDES):
        lines = [
            line
            for name, sequence in (("A", RECEPTOR), ("C", peptide))
            for line in pdb_chain(
                gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA), chain=name
            )
        ]
        Path(f"pdbs/p{i}.pdb").write_text("\n".join([*lines, "END", ""]))
        rows.append(f"p{i},{label}")
    Path("binders.csv").write_text("\n".join(rows) + "\n")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


def test_the_command_line(project: Callable[..., Any]) -> None:
    data = ("--data", "binders.csv", "--pdbs", "pdbs", "--device", "cpu")
    result = project(
        "fine-tune", *data, "--preset", "tiny", "--head", "confidence", "--task", "binary",
        "--target-column", "binds", "--val-frac", 0, "--test-frac", 0,
        "--strategy", "head_only", "--lr", 0.3, "--epochs", 12, "--no-report", "--output", "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the frozen part of the backbone ran 8 times" in result.output
    result = project(
        "predict", "run/checkpoint", *data, "--structures", "folded", "--output", "p.csv"
    )
    assert result.exit_code == 0, result.output
    with Path("p.csv").open() as file:
        rows = list(csv.DictReader(file))
    # composition decides here, and even random weights see it
    assert [row["prediction"] for row in rows] == [str(label) for _, label in PEPTIDES]
    assert len(list(Path("folded").glob("*.cif"))) == len(PEPTIDES)


def test_the_memory_of_a_step_counts_the_structure_that_is_read() -> None:
    sample = table()[0]
    peaks = [
        build_tiny_model(head=head, task=task).backbone.plan_memory(sample, 1, 2**40).peak
        for head, task in (("affinity", "regression"), ("confidence", "binary"))
    ]
    assert peaks[1] > peaks[0]

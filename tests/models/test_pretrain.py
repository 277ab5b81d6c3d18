"""Pre-training leaves weights to fine-tune from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from molfun import LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.backbones.esm2 import ESM2Backbone
from molfun.errors import ConfigError, DataError, RunError
from molfun.objectives import MaskedLMObjective

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
DATA = SequenceDataset.from_list([LETTERS[i:] + LETTERS[:i] for i in range(0, 20, 2)])


def model(**settings: object) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", device="cpu", **settings)  # type: ignore[arg-type]


def test_masks_follow_bert() -> None:
    """15 % of the residues; of these 80 % masked, 10 % another residue, 10 % as they are."""
    backbone = ESM2Backbone("esm2_tiny")
    objective = MaskedLMObjective()
    objective.check(backbone)
    from molfun.sample import Sample

    features = backbone.featurize(Sample(id="s", sequence=LETTERS * 2000))
    prepared = objective.prepare(features, torch.Generator().manual_seed(0))
    before, after = features["tokens"], prepared["tokens"]
    selected = prepared["selected"]
    assert torch.equal(before[selected], prepared["labels"])
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[selected] = False
    assert torch.equal(before[untouched], after[untouched])
    assert {0, len(before) - 1}.isdisjoint(selected.tolist())
    assert len(selected) / 40_000 == pytest.approx(0.15, abs=0.01)
    masked = after[selected] == backbone.mask_token
    changed = ~masked & (after[selected] != before[selected])
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.02)
    # a twentieth of the random residues is the true one
    assert float(changed.float().mean()) == pytest.approx(0.095, abs=0.02)


def test_one_residue_is_always_selected() -> None:
    from molfun.sample import Sample

    backbone, objective = ESM2Backbone("esm2_tiny"), MaskedLMObjective(mask_ratio=1e-9)
    objective.check(backbone)
    prepared = objective.prepare(backbone.featurize(Sample(id="s", sequence="M")), None)
    assert prepared["selected"].tolist() == [1]


def test_the_loss_is_that_of_fair_esm() -> None:
    """Cross entropy of the stock model's logits at the selected residues."""
    backbone, objective = ESM2Backbone("esm2_tiny", seed=3).eval(), MaskedLMObjective()
    objective.check(backbone)
    prepared = objective.prepare(backbone.featurize(DATA[0]), torch.Generator().manual_seed(1))
    output = objective(backbone, backbone.collate([prepared]))
    logits = backbone.model(prepared["tokens"][None])["logits"][0, prepared["selected"]]
    expected = torch.nn.functional.cross_entropy(logits, prepared["labels"], reduction="sum")
    assert float(output.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    metrics = objective.metrics(2.0, {"right": 3.0}, 12)
    assert metrics == {"perplexity": math.exp(2.0), "accuracy": 0.25}


def test_the_weights_go_into_fine_tuning(tmp_path: Path) -> None:
    start = model()
    history = start.pretrain(DATA, DATA.subset([0, 1]), epochs=3, output_dir=tmp_path / "pre")
    assert len(history) == 3
    weights = tmp_path / "pre" / "weights.safetensors"
    tuned = model(weights=weights, head="regression")
    for (name, a), b in zip(
        start.backbone.named_parameters(), tuned.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    labelled = SequenceDataset.from_list([(s, float(i)) for i, (s,) in enumerate(DATA.sequences())])
    tuned.fit(labelled, strategy=LoRAFinetune(rank=2), epochs=1, output_dir=tmp_path / "lora")
    checkpoint = tmp_path / "lora" / "checkpoint"
    assert not (checkpoint / "trunk.safetensors").exists(), "the base is the file of pre-training"
    again = MolfunStructureModel.from_checkpoint(checkpoint, device="cpu")
    expected = tuned.predict(labelled)["prediction"]
    assert torch.equal(again.predict(labelled)["prediction"], expected)


def test_a_model_in_memory_goes_on_to_fine_tuning(tmp_path: Path) -> None:
    """Without output_dir no file holds the base, so the checkpoint holds all of it."""
    tuned = model(head="regression")
    tuned.pretrain(DATA, epochs=1)
    labelled = SequenceDataset.from_list([(s, float(i)) for i, (s,) in enumerate(DATA.sequences())])
    tuned.fit(labelled, strategy="head_only", epochs=1, output_dir=tmp_path)
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    expected = tuned.predict(labelled)["prediction"]
    assert torch.equal(again.predict(labelled)["prediction"], expected)


def test_refusals(tmp_path: Path) -> None:
    adapted = model(head="regression")
    LoRAFinetune(rank=2).setup(adapted)
    with pytest.raises(RunError, match="The backbone carries adapters"):
        adapted.pretrain(DATA, epochs=1)
    with pytest.raises(ConfigError, match=r"Unknown objective 'masked_ml'.*'masked_lm'\?"):
        model().pretrain(DATA, objective="masked_ml", epochs=1)
    with pytest.raises(ConfigError, match=r"Unknown key in objective_config 'ratio'"):
        model().pretrain(DATA, objective_config={"ratio": 0.2}, epochs=1)
    with pytest.raises(ConfigError, match="mask_ratio must be above 0 and at most 1, got 0"):
        MaskedLMObjective(mask_ratio=0)
    with pytest.raises(ConfigError, match=r"sum to at most 1, got 0\.8 and 0\.3"):
        MaskedLMObjective(random_share=0.3)
    with pytest.raises(DataError, match="'J' at position 2 is no amino acid"):
        model().pretrain(SequenceDataset.from_list(["MJ"]), epochs=1)
    model().pretrain(DATA, epochs=1, output_dir=tmp_path)
    with pytest.raises(RunError, match=r"already holds a run \(resume, history.csv, weights.saf"):
        model().pretrain(DATA, epochs=1, output_dir=tmp_path)


def test_nothing_is_learned_about_unknown_residues() -> None:
    from molfun.sample import Sample

    backbone, objective = ESM2Backbone("esm2_tiny"), MaskedLMObjective(mask_ratio=0.5)
    objective.check(backbone)
    features = backbone.featurize(Sample(id="s", sequence="XBUZO<mask>MK" * 30))
    labels = objective.prepare(features, torch.Generator().manual_seed(0))["labels"]
    assert set(labels.tolist()) == set(backbone.featurize(Sample(id="s", sequence="MK"))["tokens"]
                                       .tolist()[1:-1])  # fmt: skip
    empty = objective.prepare(backbone.featurize(Sample(id="s", sequence="XX<mask>")), None)
    assert len(empty["selected"]) == len(empty["labels"]) == 0


def test_sequences_of_unknown_residues_change_nothing() -> None:
    with_unknown = SequenceDataset.from_list(["MKVLA", "XXXX", "ACDEF"])
    history = model().pretrain(with_unknown, with_unknown, epochs=1)
    assert math.isfinite(history[0]["train_loss"])
    assert math.isfinite(history[0]["val/perplexity"])


def test_adapters_are_refused_as_they_would_not_be_saved(tmp_path: Path) -> None:
    start = model()
    with pytest.raises(ConfigError, match=r"'lora' trains adapters next to them\. Use full or"):
        start.pretrain(DATA, strategy=LoRAFinetune(), epochs=1, output_dir=tmp_path)
    assert not any("lora" in name for name, _ in start.named_parameters())


def test_a_random_contact_regression_is_not_passed_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model().pretrain(DATA, epochs=1, output_dir=tmp_path)
    loaded = ESM2Backbone("esm2_tiny", weights=tmp_path / "weights.safetensors")
    assert loaded.pretrained_head("contact") is None
    assert "has no weights for contact_head" in caplog.text

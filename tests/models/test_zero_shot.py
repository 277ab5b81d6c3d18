"""The zero-shot score of a variant beside what a head reads: learned once, kept, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molfun import Callback, HeadOnlyFinetune, LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.data import NamedTargets
from molfun.errors import CheckpointError, ConfigError, DataError
from molfun.models.attribution import residue_attributions
from molfun.models.zero_shot import scores_of
from molfun.nn.substitutions import SubstitutionScores, SubstitutionTable
from molfun.protein import AMINO_ACIDS
from molfun.testing.samples import series_model

WILD_TYPE = "MKTAYIAKQR"
NAMES = [f"{a}{i + 1}{b}" for i, a in enumerate(WILD_TYPE) for b in "DGW"]
PAIRS = ["M1D:K2G", "A4G:R10W", "WT"]


def write(folder: Path, names: list[str], wild_type: str = WILD_TYPE) -> SequenceDataset:
    rng = np.random.default_rng(0)
    rows = "".join(f"{name},{rng.normal():.3f}\n" for name in names)
    (folder / "variants.csv").write_text(f"mutant,target\n{rows}")
    return SequenceDataset.from_variants(folder / "variants.csv", wild_type)


@pytest.fixture
def data(tmp_path: Path) -> SequenceDataset:
    return write(tmp_path, NAMES + PAIRS)


def build(head: str = "linear", **settings: Any) -> MolfunStructureModel:
    given = {"augment": "zero_shot", "device": "cpu", **settings}
    return MolfunStructureModel("esm2_tiny", head=head, **given)


def predicted(model: MolfunStructureModel, data: Any) -> np.ndarray:
    return np.asarray(model.predict(data)["prediction"].tolist())


@pytest.mark.parametrize("strategy", [HeadOnlyFinetune(), LoRAFinetune(rank=2), "full"])
def test_scores_are_those_of_the_base(data: SequenceDataset, strategy: Any) -> None:
    model = build()
    expected = model.score_variants(WILD_TYPE, data.ids, method="wt_marginal").scores
    model.fit(data, strategy=strategy, epochs=2)
    table = scores_of(model)
    assert table is not None
    texts = [text for (text,) in data.sequences()]
    np.testing.assert_allclose(table.scores(texts), expected, rtol=0, atol=1e-6)
    scores = model.head.scores
    assert float(scores.mean) == pytest.approx(expected.mean())
    assert float(scores.std) == pytest.approx(expected.std())
    assert scores(texts).std(correction=0).item() == pytest.approx(1)


def test_the_head_reads_the_score(data: SequenceDataset) -> None:
    """With weight on the score alone, predictions are the scores."""
    model = build(task_config={"standardize": False})
    model.fit(data, strategy="head_only", epochs=1)
    with torch.no_grad():
        model.head.layers[-1].weight.zero_()
        model.head.layers[-1].weight[0, -1] = 1
        model.head.layers[-1].bias.zero_()
    scores = model.head.scores([text for (text,) in data.sequences()])
    np.testing.assert_allclose(predicted(model, data), scores, atol=1e-6)
    batch = model.predict([data[i] for i in range(3)])["prediction"]
    np.testing.assert_allclose(batch, scores[:3], atol=1e-6)
    # what a residue adds to the mean is nothing here, and the score is that of the whole sequence
    assert np.abs(residue_attributions(model, [data[0]])[0]).max() < 1e-5


@pytest.mark.parametrize("strategy", ["head_only", "lora", "full"])
def test_a_checkpoint_predicts_new_variants(
    data: SequenceDataset, tmp_path: Path, strategy: str
) -> None:
    model = build("mlp", head_config={"pooling": "attention"})
    model.fit(data, data, strategy=strategy, epochs=1, output_dir=tmp_path / "run")
    new = ["MKTAYIAKQA", "MKTAYIAKWW", WILD_TYPE]
    expected = predicted(model, new)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "run/checkpoint", device="cpu")
    np.testing.assert_array_equal(predicted(loaded, new), expected)
    other = build("mlp", head_config={"pooling": "attention"}).load(tmp_path / "run/checkpoint")
    np.testing.assert_array_equal(predicted(other, new), expected)
    # training goes on with the table and the scale of the first fit
    scale = float(loaded.head.scores.mean)
    loaded.fit(data.subset(range(8)), strategy=strategy, epochs=1)
    assert float(loaded.head.scores.mean) == scale
    with pytest.raises(CheckpointError, match=r"head config\.augment: 'zero_shot' in it, None in"):
        build("mlp", augment=None, head_config={"pooling": "attention"}).load(
            tmp_path / "run/checkpoint"
        )


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_stopped_run_goes_on(data: SequenceDataset, tmp_path: Path, cache: str) -> None:
    whole, parts = build(), build()
    options: dict[str, Any] = {"strategy": "head_only", "cache": cache}
    whole.fit(data, data, epochs=4, output_dir=tmp_path / "whole", **options)

    class AfterTwo(Callback):
        def on_epoch_end(self, row: Any, history: Any) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.fit(
            data, data, epochs=4, output_dir=tmp_path / "a", callbacks=[AfterTwo()], **options
        )
    again = build()
    again.fit(data, data, epochs=4, output_dir=tmp_path / "a", resume=True, **options)
    np.testing.assert_array_equal(predicted(again, data), predicted(whole, data))


def test_representations_that_samples_bring(data: SequenceDataset) -> None:
    model = build()
    means = model.embed([text for (text,) in data.sequences()], pooling="mean")
    brought = data.with_representations(means)
    model.fit(brought, strategy="head_only", epochs=1)
    np.testing.assert_allclose(predicted(model, brought), predicted(model, data), atol=1e-5)


def test_several_heads(data: SequenceDataset) -> None:
    both = NamedTargets({"a": data, "b": data})
    heads = {"a": {"head": "linear"}, "b": {"head": "mlp"}}
    model = MolfunStructureModel("esm2_tiny", heads=heads, augment="zero_shot", device="cpu")
    model.fit(both, strategy="head_only", epochs=1)
    assert all(part.head.scores.known.wild_type == WILD_TYPE for part in model.heads)


def test_what_cannot_have_a_score(data: SequenceDataset, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="per variant, and these labels are those of a residue",
    ):
        build("regression", task_config={"level": "residue"})
    with pytest.raises(ConfigError, match="the head 'conv' reads nothing beside its repres"):
        build("conv")
    with pytest.raises(ConfigError, match=r"there is no head\. Give head='linear' or head='mlp'"):
        MolfunStructureModel("esm2_tiny", augment="zero_shot", device="cpu")
    with pytest.raises(ConfigError, match="Unknown augment 'masked'; known: zero_shot"):
        build(augment="masked")
    with pytest.raises(ConfigError, match="layer=1 leaves out the last blocks"):
        build(backbone_config={"layer": 1})
    with pytest.raises(ConfigError, match="predicts no residues, so it scores no variants"):
        series_model(head="linear", head_config={"augment": "zero_shot"})
    with pytest.raises(ConfigError, match="knows no wild type yet: fit the model, or load a"):
        build().predict([WILD_TYPE])
    plain = SequenceDataset.from_list([("MKV", 1.0), ("MKA", 2.0)])
    with pytest.raises(DataError, match=r"read them with SequenceDataset\.from_variants"):
        build().fit(plain, strategy="head_only", epochs=1)
    model = build()
    with pytest.raises(DataError) as error:
        model.fit(data, SequenceDataset.from_list([("MKV", 1.0), ("MKTAYIAKQX", 2.0)]), epochs=1)
    assert str(error.value) == (
        "2 sequences without a zero-shot score, which is that of substitutions in the wild type:\n"
        "  seq_1: 3 residues, and the wild type has 10\n"
        "  seq_2: residue 10, R to X, has no score"
    )
    model.fit(data, strategy="lora", epochs=1)
    with pytest.raises(DataError, match="seq_1: 3 residues, and the wild type has 10"):
        model.predict(["MKV"])
    with pytest.raises(DataError, match="scores of another wild type than that of these variants"):
        model.fit(write(tmp_path, ["M1D", "K2G"], "MKTAYIAKQW"), strategy="lora", epochs=1)


def test_tensors_have_no_sequence(data: SequenceDataset) -> None:
    model = build()
    model.fit(data, strategy="head_only", epochs=1)
    features = model.backbone.collate([model.backbone.featurize(data[0])])
    with pytest.raises(DataError, match="Give samples or sequences in place of tensors"):
        model.forward(features)


def test_only_the_base_gives_scores(data: SequenceDataset, tmp_path: Path) -> None:
    model = build(augment=None)
    plain = SequenceDataset.from_list([(text, 1.0) for (text,) in data.sequences()])
    model.fit(plain, strategy="full", epochs=1)
    assert scores_of(model) is None
    model.fit(data, strategy="full", epochs=1)
    assert scores_of(model) is None  # not the base's any more
    fresh = build(augment=None)
    fresh.fit(data, strategy="full", epochs=1)
    assert scores_of(fresh) is not None


def test_residues_beyond_the_crop(tmp_path: Path) -> None:
    data = write(tmp_path, ["M1D", "R10W"])
    config = {"long": "crop", "context": 8}
    with pytest.raises(DataError, match=r"R10W.*: residue 10, R to W, has no score"):
        build(backbone_config=config).fit(data, strategy="head_only", epochs=1)


def test_a_table_keeps_its_length_in_the_state() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20))
    one, other = SubstitutionScores(), SubstitutionScores()
    one.learn(SubstitutionTable("ACD", values), ["ACD", "AAD"])
    other.load_state_dict(one.state_dict())
    assert other(["ACA"]).item() == one(["ACA"]).item()
    assert one.known is not None
    change = one.known.scores(["ACA"])[0]
    assert change == values[2, AMINO_ACIDS.index("A")]
    same = SubstitutionScores()
    same.learn(SubstitutionTable("ACD", values), ["ACD"])  # one score has no deviation
    assert same(["AAA"]).item() == 0
    broken = {**one.state_dict(), "table": torch.zeros(2, 20)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        SubstitutionScores().load_state_dict(broken)

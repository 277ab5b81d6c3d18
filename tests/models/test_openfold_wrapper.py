"""The facade on the real AlphaFold classes, two blocks deep."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Subset

from molfun.data import AffinityDataset
from molfun.errors import CheckpointError, ConfigError, DataError
from molfun.models.structure import MolfunStructureModel
from molfun.protein import Protein
from molfun.sample import Sample, SampleBatch
from molfun.training import HeadOnlyFinetune, LoRAFinetune, PartialFinetune

MEAN, STD = 6.5, 1.5
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tiny_model):
    """A model whose head counts as trained; tests may not change its weights."""
    model = tiny_model()
    model.task.load_state_dict({"mean": MEAN, "std": STD, "fitted": True})
    return model


@pytest.fixture
def adapted(tiny_model):
    """A model with adapters that do something."""
    model = tiny_model()
    LoRAFinetune(rank=2).setup(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.task.load_state_dict({"mean": MEAN, "std": STD, "fitted": True})
    return model


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    return torch.allclose(left, right, rtol=0, atol=tolerance)


# Construction


def test_it_is_a_module_that_names_its_parts(model):
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert len(names) == len(list(model.parameters()))
    assert model.device == torch.device("cpu")
    assert not model.training


def test_repr_names_parts_and_sizes(model, tiny_model):
    n_backbone = sum(p.numel() for p in model.backbone.parameters())
    n_head = sum(p.numel() for p in model.head.parameters())
    assert repr(model) == (
        f"MolfunStructureModel(openfold, {n_backbone:,} params; head affinity, {n_head:,} params; "
        f"cpu)"
    )
    assert (
        repr(tiny_model(head=None)) == f"MolfunStructureModel(openfold, {n_backbone:,} params; cpu)"
    )


def test_to_moves_and_chains(tiny_model, samples):
    model = tiny_model()
    assert model.to("cpu") is model
    before = model.predict(samples(1))["trunk"].single
    assert torch.equal(model.to(torch.float32).predict(samples(1))["trunk"].single, before)


def test_random_weights_are_announced(tiny_model, caplog):
    with caplog.at_level(logging.WARNING):
        tiny_model(seed=3)
    assert "starts from random weights (seed 3)" in caplog.text


def test_the_seed_decides_the_weights(tiny_model):
    first, again, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    assert first.base_fingerprint == again.base_fingerprint != other.base_fingerprint
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.head.hidden.weight, other.head.hidden.weight)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"backbone": "openfld"}, "Unknown backbone 'openfld'; .* Did you mean 'openfold'?"),
        ({"head": "afinity"}, "Unknown head 'afinity'; .* Did you mean 'affinity'?"),
        ({"head": "regresion"}, "Unknown head 'regresion'; .* Did you mean 'regression'?"),
        (
            {"head": "affinity", "task": "regresion"},
            "Unknown task 'regresion'; .* Did you mean 'regression'?",
        ),
        ({"config": "model_1_ptn"}, "Unknown openfold preset .* Did you mean 'model_1_ptm'?"),
        (
            {"backbone_config": {"max_msa_cluster": 3}},
            "Unknown key in backbone_config .* Did you mean 'max_msa_clusters'?",
        ),
        (
            {"head": "affinity", "head_config": {"hiden_dim": 3}},
            "Unknown key in head_config 'hiden_dim'; .* Did you mean 'hidden_dim'?",
        ),
        (
            {"head": "affinity", "task_config": {"los": "mse"}},
            "Unknown key in task_config 'los'; .* Did you mean 'loss'?",
        ),
        (
            {"head_config": {"hidden_dim": 3}},
            "head_config or task_config was given without head=.*",
        ),
        (
            {"head": "affinity", "head_config": {"single_dim": 384}},
            "head_config has single_dim=384, but the backbone gives 32. Leave single_dim out",
        ),
        ({"device": "gpu0"}, "Unknown device 'gpu0'"),
        (
            {"config": {"model": 1}},
            "config must be a preset name or an openfold config .* got dict",
        ),
        ({"backbone_config": {"recycling": -1}}, "recycling must be 0 or more, got -1"),
        ({"backbone_config": {"max_extra_msa": 0}}, "max_extra_msa must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_one_clear_error(settings, text):
    arguments = {"backbone": "openfold", "config": "tiny", "device": "cpu"} | settings
    with pytest.raises(ConfigError, match=text):
        MolfunStructureModel(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"torch sees no CUDA GPU here. Use device='auto' or"):
        MolfunStructureModel("openfold", config="tiny", device="cuda")


def test_matching_dimensions_may_be_given(tiny_model):
    model = tiny_model(head_config={"single_dim": 32, "hidden_dim": 16})
    assert model.head.config_dict["hidden_dim"] == 16


def test_a_config_object_equal_to_a_preset_goes_by_its_name():
    from openfold.config import model_config

    from molfun.backbones.openfold import presets

    assert presets.resolve_config(model_config("model_1_ptm"))[0] == "model_1_ptm"
    assert presets.resolve_config(model_config("model_2"))[0] == "model_2"
    assert presets.resolve_config(model_config("model_1_ptm", train=True))[0] == "custom"


def test_the_users_config_object_is_not_changed():
    from molfun.backbones.openfold import OpenFoldBackbone, presets

    config = presets.resolve_config("tiny")[1]
    config.globals.chunk_size = 7
    OpenFoldBackbone(config, recycling=0)
    assert config.globals.chunk_size == 7


# Prediction: what goes in, what comes out


def test_every_form_of_input_gives_the_same_predictions(model, samples):
    given = samples(3)
    batch = SampleBatch(given)
    tensors = model.backbone.collate([model.backbone.featurize(s) for s in given])
    targets = torch.tensor([s.target for s in given])
    expected = model.predict(batch)["prediction"]
    assert torch.equal(model.predict(given)["prediction"], expected)
    assert torch.equal(model.predict(tuple(given))["prediction"], expected)
    assert torch.equal(model.predict(tensors)["prediction"], expected)
    assert torch.equal(model.predict((tensors, targets))["prediction"], expected)
    named = model.predict({**tensors, "ids": ["x", "y", "z"], "target": targets})
    assert torch.equal(named["prediction"], expected)
    assert named["ids"] == ["x", "y", "z"]
    one = model.predict(given[1])
    assert one["ids"] == [given[1].id]
    assert close(one["prediction"], expected[1:2])
    loader = DataLoader(given, batch_size=2, collate_fn=SampleBatch)
    assert close(model.predict(loader)["prediction"], expected)


def test_a_dataset_is_predicted_in_its_order(model):
    dataset = AffinityDataset.synthetic(5, length=9)
    expected = [float(model.predict(dataset[i])["prediction"]) for i in range(5)]
    result = model.predict(dataset)
    assert result["ids"] == dataset.ids
    assert result["prediction"].tolist() == pytest.approx(expected, abs=TOLERANCE)
    part = model.predict(dataset.subset([3, 1]))
    assert part["ids"] == [dataset.ids[3], dataset.ids[1]]
    assert part["prediction"].tolist() == pytest.approx([expected[3], expected[1]], abs=TOLERANCE)


def test_a_torch_subset_is_a_dataset_too(model):
    dataset = AffinityDataset.synthetic(4, length=6)
    result = model.predict(Subset(dataset, [2, 0]))
    assert result["ids"] == [dataset.ids[2], dataset.ids[0]]


def test_ids_and_predictions_keep_the_order(model, samples):
    given = samples(4)
    forward, backward = model.predict(given), model.predict(given[::-1])
    assert forward["ids"] == [s.id for s in given]
    assert backward["ids"] == forward["ids"][::-1]
    assert close(backward["prediction"].flip(0), forward["prediction"])


def test_predictions_are_float64_in_the_units_of_the_labels(model, samples):
    given = samples(3)
    result = model.predict(given)
    scaled = model.head(result["trunk"])["prediction"].double()
    assert result["prediction"].dtype == torch.float64
    assert torch.equal(result["prediction"], scaled * STD + MEAN)


def test_without_a_head_there_is_only_the_trunk(tiny_model, samples):
    result = tiny_model(head=None).predict(samples(2))
    assert set(result) == {"ids", "trunk"}


def test_an_untrained_head_is_announced(tiny_model, samples, caplog):
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        model.predict(samples(1))
    assert "The head has not been trained: its predictions mean nothing yet." in caplog.text


def test_a_trained_head_is_not_announced(model, samples, caplog):
    with caplog.at_level(logging.WARNING):
        model.predict(samples(1))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ("MKV", r"seq_1 has neither .* but a sequence alone: give protein=Protein.from_sequence"),
        ({"ids": ["a"]}, "dict without input tensors"),
        (
            Sample(id="1abc", protein=Protein.from_sequence("M")),
            "1abc has 1 residues; openfold takes 2 or more",
        ),
        (Sample(id="1abc"), r"1abc has neither a structure nor features\.$"),
    ],
)
def test_input_that_cannot_be_used_is_refused(model, batch, text):
    with pytest.raises(DataError, match=text):
        model.predict(batch)


def test_predict_leaves_no_graph_and_forward_has_one(tiny_model, samples):
    model = tiny_model()
    assert not model.predict(samples(1))["trunk"].single.requires_grad
    assert model(samples(1))["prediction"].requires_grad


# Evaluation


def test_evaluate_is_the_metrics_of_the_predictions(model, samples):
    given = samples(6)
    predicted = model.predict(given)["prediction"].numpy()
    labels = np.array([s.target for s in given])
    result = model.evaluate(DataLoader(given, batch_size=4, collate_fn=SampleBatch))
    error = predicted - labels
    expected = {
        "loss": np.mean((error / STD) ** 2),
        "rmse": np.sqrt(np.mean(error**2)),
        "mae": np.mean(np.abs(error)),
        "pearson": stats.pearsonr(predicted, labels).statistic,
        "spearman": stats.spearmanr(predicted, labels).statistic,
        "r2": 1 - np.sum(error**2) / np.sum((labels - labels.mean()) ** 2),
    }
    assert result == pytest.approx(expected, abs=1e-5)


def test_evaluate_counts_labels_not_batches(model, samples):
    given = samples(5)
    losses = [
        model.evaluate(DataLoader(given, batch_size=n, collate_fn=SampleBatch))["loss"]
        for n in (1, 2, 5)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_evaluate_ignores_samples_without_a_label(model, samples):
    given = samples(4)
    nameless = Sample(id="u", protein=Protein.from_sequence("ACDEF"))
    assert model.evaluate([*given, nameless]) == pytest.approx(model.evaluate(given), abs=1e-9)


def test_evaluate_without_labels_is_an_error(model):
    nameless = [Sample(id="u", protein=Protein.from_sequence("ACDEF"))]
    with pytest.raises(
        DataError, match=r"Nothing to evaluate: the data has no labels. Use predict"
    ):
        model.evaluate(nameless)


def test_verbs_that_need_a_head_say_so(tiny_model, samples, tmp_path):
    model = tiny_model(head=None)
    with pytest.raises(ConfigError, match=r"evaluate needs a head. Build the model with head='aff"):
        model.evaluate(samples(1))
    with pytest.raises(ConfigError, match="save needs a head"):
        model.save(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="fit needs a head"):
        model.fit(samples(1))
    with pytest.raises(ConfigError, match="forward needs a head"):
        model(samples(1))


# Batch invariance


def test_alone_and_padded_give_the_same(model, samples):
    given = samples(6, lengths=(4, 17, 9, 2, 12, 6))
    together = model.predict(given, outputs=("single", "pair"))
    for i, sample in enumerate(given):
        alone = model.predict(sample, outputs=("single", "pair"))
        n = alone["trunk"].single.shape[1]
        assert close(alone["prediction"], together["prediction"][i : i + 1])
        single = together["trunk"].single[i, :n]
        pair = together["trunk"].pair[i, :n, :n]
        assert close(alone["trunk"].single[0], single, 1e-5 * float(single.abs().max()))
        assert close(alone["trunk"].pair[0], pair, 1e-5 * float(pair.abs().max()))


def with_alignment(sample: Sample, folder, depth: int, seed: int) -> Sample:
    """The sample with an alignment of `depth` random homologues."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    query = sample.protein.sequence
    rows = [query]
    rows += ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY-"), len(query))) for _ in range(depth)]
    text = "".join(f">s{i}\n{row}\n" for i, row in enumerate(rows))
    (folder / "hits.a3m").write_text(text)
    return Sample(id=sample.id, protein=sample.protein, alignment_dir=folder)


def test_another_depth_of_alignment_in_the_batch_changes_nothing(tiny_model, samples, tmp_path):
    model = tiny_model(
        backbone_config={"fill_zero_init": 0.1, "max_msa_clusters": 4, "max_extra_msa": 8}
    )
    bare = samples(4, lengths=(5, 11, 8, 6))
    given = [
        with_alignment(sample, tmp_path / sample.id, depth, seed)
        for seed, (sample, depth) in enumerate(zip(bare[:3], (2, 7, 20), strict=True))
    ] + [bare[3]]
    together = model.predict(given)
    depths = [model.backbone.featurize(s)["extra_msa"].shape[0] for s in given]
    assert depths == [1, 4, 8, 1]
    for i, sample in enumerate(given):
        alone = model.predict(sample)
        n = alone["trunk"].single.shape[1]
        single = together["trunk"].single[i, :n]
        assert close(alone["trunk"].single[0], single, 1e-5 * float(single.abs().max()))
        assert close(alone["prediction"], together["prediction"][i : i + 1])


# Gradients and modes


def test_with_and_without_a_graph_the_numbers_agree(tiny_model, samples):
    model = tiny_model()
    batch = model.backbone.collate([model.backbone.featurize(s) for s in samples(2)])
    with torch.no_grad():
        without = model.backbone(batch, outputs=("single", "pair"))
    model.requires_grad_(True)
    with_graph = model.backbone(batch, outputs=("single", "pair"))
    assert with_graph.single.requires_grad
    assert close(without.single, with_graph.single.detach())
    assert close(without.pair, with_graph.pair.detach(), 1e-5 * float(without.pair.abs().max()))


def test_a_batch_is_not_changed_by_the_forward_pass(model, samples):
    batch = model.backbone.collate([model.backbone.featurize(s) for s in samples(2)])
    kept = copy.deepcopy(batch)
    first = model.predict(batch)["trunk"].single
    assert batch.keys() == kept.keys()
    assert all(torch.equal(batch[k], kept[k]) for k in kept)
    assert torch.equal(model.predict(batch)["trunk"].single, first)


def test_chunks_for_long_input_change_nothing(model, samples, monkeypatch):
    from molfun.backbones.openfold import backbone

    model.backbone.set_kernels("stock")
    given = samples(1, lengths=(13,))
    whole = model.predict(given, outputs=("single", "pair"))["trunk"]
    monkeypatch.setattr(backbone, "CHUNK_ABOVE", 4)
    pieces = model.predict(given, outputs=("single", "pair"))["trunk"]
    assert model.backbone.model.globals.chunk_size == 4
    assert close(whole.single, pieces.single)
    assert close(whole.pair, pieces.pair, 1e-5 * float(whole.pair.abs().max()))


# Structure


def test_structure_outputs(model, samples):
    given = samples(3, lengths=(6, 14, 9))
    result = model.predict(given, outputs=("single", "structure"))
    structure = result["trunk"].structure
    assert structure["positions"].shape == (3, 14, 37, 3)
    assert structure["atom_mask"].shape == (3, 14, 37)
    assert structure["plddt"].shape == (3, 14)
    assert structure["ptm"].shape == (3,)
    assert bool(((structure["plddt"] >= 0) & (structure["plddt"] <= 100)).all())
    assert bool(((structure["ptm"] > 0) & (structure["ptm"] <= 1)).all())
    assert result["trunk"].pair is None


def test_structure_alone_is_as_in_the_batch(model, samples):
    given = samples(3, lengths=(6, 14, 9))
    together = model.predict(given, outputs=("structure",))["trunk"].structure
    for i, sample in enumerate(given):
        alone = model.predict(sample, outputs=("structure",))["trunk"].structure
        n = alone["plddt"].shape[1]
        assert close(alone["ptm"], together["ptm"][i : i + 1])
        assert close(alone["plddt"][0], together["plddt"][i, :n], 1e-3)
        scale = float(alone["positions"].abs().max())
        assert close(alone["positions"][0], together["positions"][i, :n], 1e-4 * scale)


def test_the_trunk_is_the_same_with_and_without_the_structure(model, samples):
    given = samples(2)
    short = model.predict(given, outputs=("single", "pair"))["trunk"]
    full = model.predict(given, outputs=("single", "pair", "structure"))["trunk"]
    assert torch.equal(short.single, full.single)
    assert torch.equal(short.pair, full.pair)


def test_the_structure_module_runs_only_if_it_is_asked_for(model, samples):
    calls: list[str] = []
    inner = model.backbone.model
    hooks = [
        # the first thing each of them computes
        inner.structure_module.layer_norm_s.register_forward_hook(lambda *_: calls.append("sm")),
        inner.aux_heads.register_forward_hook(lambda *_: calls.append("heads")),
    ]
    try:
        model.predict(samples(2), outputs=("single", "pair"))
        assert calls == []
        model.predict(samples(2), outputs=("structure",))
        assert calls == ["sm", "heads"]
    finally:
        for hook in hooks:
            hook.remove()


def test_recycling_runs_the_structure_module_between_passes(tiny_model, samples):
    model = tiny_model(backbone_config={"fill_zero_init": 0.1, "recycling": 2})
    calls: list[int] = []
    module = model.backbone.model.structure_module.layer_norm_s
    module.register_forward_hook(lambda *_: calls.append(1))
    recycled = model.predict(samples(1), outputs=("single",))["trunk"].single
    assert len(calls) == 2
    stock = model.backbone.model(
        dict(model.backbone.collate([model.backbone.featurize(s) for s in samples(1)]))
    )
    assert close(recycled, stock["single"].detach())


# Adapters


def test_merging_changes_no_prediction(adapted, samples):
    given = samples(3)
    before = adapted.predict(given)
    assert adapted.merge() is adapted
    assert close(adapted.predict(given)["prediction"], before["prediction"])
    assert close(adapted.predict(given)["trunk"].single, before["trunk"].single)


def test_unmerging_restores_every_bit_after_a_hundred_cycles(adapted, samples):
    given = samples(2)
    weights = copy.deepcopy(adapted.state_dict())
    before = adapted.predict(given)["prediction"]
    for _ in range(100):
        adapted.merge().unmerge()
    after = adapted.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[k], weights[k]) for k in weights)
    assert torch.equal(adapted.predict(given)["prediction"], before)


def test_merging_twice_and_unmerging_first_do_nothing_and_say_so(adapted, samples, caplog):
    weights = copy.deepcopy(adapted.state_dict())
    with caplog.at_level(logging.WARNING):
        adapted.unmerge()
    assert "unmerge: the adapters are not merged; nothing to do." in caplog.text
    adapted.merge()
    merged = adapted.predict(samples(1))["prediction"]
    with caplog.at_level(logging.WARNING):
        adapted.merge()
    assert "merge: the adapters are merged already; nothing to do." in caplog.text
    assert torch.equal(adapted.predict(samples(1))["prediction"], merged)
    after = adapted.unmerge().state_dict()
    assert all(torch.equal(after[k], weights[k]) for k in weights)


def test_merging_without_adapters_does_nothing_and_says_so(model, caplog):
    with caplog.at_level(logging.WARNING):
        assert model.merge() is model
    assert "merge: the model has no adapters; nothing to do." in caplog.text


def test_saving_while_merged_saves_the_same(adapted, tmp_path):
    adapted.save(tmp_path / "apart")
    adapted.merge().save(tmp_path / "merged")
    apart = {p.name: p.read_bytes() for p in (tmp_path / "apart").rglob("*.safetensors")}
    merged = {p.name: p.read_bytes() for p in (tmp_path / "merged").rglob("*.safetensors")}
    assert apart.keys() == {"adapter_model.safetensors", "trunk.safetensors"}
    assert apart == merged


def test_a_merged_model_loads_nothing(adapted, tmp_path):
    adapted.save(tmp_path / "checkpoint")
    adapted.merge()
    with pytest.raises(CheckpointError, match="adapters of this model are merged: call unmerge"):
        adapted.load(tmp_path / "checkpoint")


# Looking


def test_summary_counts_parts_and_what_trains(tiny_model):
    model = tiny_model()
    PartialFinetune(unfreeze_last_n=1, unfreeze_structure_module=False).setup(model)
    last = sum(
        p.numel()
        for name, p in model.backbone.named_parameters()
        if model.backbone.layer_of(name).kind == "block"
        and model.backbone.layer_of(name).index == 1
    )
    n_head = sum(p.numel() for p in model.head.parameters())
    text = model.summary()
    rows = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    assert rows["2 blocks"][1] == f"{last:,}"
    assert rows["head"] == [f"{n_head:,}", f"{n_head:,}"]
    total = model.count_parameters()
    assert rows["total"][:2] == [f"{total:,}", f"{last + n_head:,}"]
    assert f"({100 * (last + n_head) / total:.2f} %)" in text
    assert model.count_parameters(trainable=True) == last + n_head
    assert sum(
        int(r[0].replace(",", "")) for k, r in rows.items() if k not in ("part", "total")
    ) == (total)


def test_summary_shows_adapters(adapted):
    n = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    rows = [line.split() for line in adapted.summary().splitlines()]
    assert ["adapters", f"{n:,}", f"{n:,}"] in rows


# Training through the facade, in brief (the engine has its own tests)


def test_fit_returns_rows_and_leaves_a_model_that_predicts(tiny_model, batches, samples):
    model = tiny_model()
    history = model.fit(batches(4), batches(2, seed=1), strategy=HeadOnlyFinetune(), epochs=2)
    assert [row["epoch"] for row in history] == [1, 2]
    assert {"train_loss", "val_loss", "lr"} <= history[0].keys()
    assert torch.isfinite(model.predict(samples(3))["prediction"]).all()


def test_training_in_float16_leaves_the_models_numbers_alone(tiny_model, samples):
    model = tiny_model()
    before = model.predict(samples(2))["trunk"].single
    model.backbone.set_precision("16-mixed")
    assert not torch.equal(model.predict(samples(2))["trunk"].single, before)
    model.backbone.set_precision("32-true")
    assert torch.equal(model.predict(samples(2))["trunk"].single, before)

"""Several heads on one backbone: labels by name, one weighted loss, metrics and checkpoints."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_atoms

from molfun.errors import ConfigError, DataError
from molfun.models import trained_on
from molfun.models.energies import Forgetting
from molfun.models.export import export
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import read_meta
from molfun.sample import Sample, SampleBatch
from molfun.strategies import FullFinetune, HeadOnlyFinetune, LoRAFinetune
from molfun.training.callbacks import Callback
from molfun.training.inputs import as_inputs
from molfun.training.supervised import SupervisedRunner

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
HEADS: dict[str, dict[str, Any]] = {
    "stability": {"task": "regression"},
    "fold": {
        "head": "mlp",
        "task": "multiclass",
        "task_config": {"classes": ["coil", "helix"], "level": "residue"},
        "weight": 2,
    },
}
FIT: dict[str, Any] = {"epochs": 2, "seed": 3, "strategy": HeadOnlyFinetune(lr=1e-2)}


def model(heads: Any = HEADS, **options: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", heads=heads, device="cpu", **options)


def data(n: int = 12, *, missing: bool = True) -> list[Sample]:
    """Every third sample lacks one of its labels."""
    rng = np.random.default_rng(5)
    found = []
    for i in range(n):
        chain = "".join(rng.choice(list(LETTERS), size=6 + i % 4))
        target: dict[str, Any] = {
            "stability": float(rng.normal(50, 10)),
            "fold": ["helix" if letter in "AELM" else "coil" for letter in chain],
        }
        if missing and i % 3 == 1:
            del target["stability" if i % 2 else "fold"]
        found.append(Sample(id=f"p{i}", sequence=chain, target=target))
    return found


def batched(samples: list[Sample], size: int) -> list[SampleBatch]:
    return [SampleBatch(samples[i : i + size]) for i in range(0, len(samples), size)]


def same(first: MolfunStructureModel, second: MolfunStructureModel) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(t, theirs[name]) for name, t in first.state_dict().items())


# --- train, predict, save ------------------------------------------------------------------------


def test_two_heads_train_predict_save_and_load(tmp_path: Path) -> None:
    trained = model()
    before = {n: p.detach().clone() for n, p in trained.named_parameters()}
    history = trained.fit(data(), data(6), output_dir=tmp_path / "run", **FIT)
    changed = {n for n, p in trained.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[1] for name in changed} == {"stability", "fold"}
    assert all(name.startswith("head.") for name in changed)

    row = history[-1]
    assert {"val/stability/rmse", "val/fold/accuracy", "val/stability/loss"} <= row.keys()
    assert row["val_loss"] == pytest.approx(row["val/stability/loss"] + 2 * row["val/fold/loss"])

    samples = data()
    predicted = trained.predict(samples)
    assert predicted["ids"] == [s.id for s in samples]
    assert predicted["stability"]["prediction"].shape == (12,)
    assert [len(p) for p in predicted["fold"]["prediction"]] == [
        len(s.sequence or "") for s in samples
    ]
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "run" / "checkpoint", device="cpu")
    assert [(p.name, p.head_name, p.task_name, p.weight) for p in loaded.heads] == [
        ("stability", "mlp", "regression", 1.0),
        ("fold", "mlp", "multiclass", 2.0),
    ]
    again = loaded.predict(samples)
    assert torch.equal(again["stability"]["prediction"], predicted["stability"]["prediction"])
    assert again["fold"]["prediction"] == predicted["fold"]["prediction"]
    assert loaded.evaluate(data(6)) == trained.evaluate(data(6))
    single = loaded.predict(samples[:1][0])
    assert float(single["stability"]["prediction"]) == pytest.approx(
        float(predicted["stability"]["prediction"][0]), abs=1e-4
    )
    assert single["trunk"].single is not None


@pytest.mark.parametrize("strategy", [LoRAFinetune(), FullFinetune(accumulation_steps=3)])
def test_a_stopped_run_resumes_bit_by_bit(tmp_path: Path, strategy: Any) -> None:
    class Stop(Callback):
        def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
            if (epoch, batch) == (2, 3):
                raise KeyboardInterrupt

    fit = {**FIT, "strategy": strategy, "save_every_steps": 1}
    whole = model()
    train, val, folder = batched(data(), 3), data(6), tmp_path / "run"
    expected = whole.fit(train, val, **fit)
    with pytest.raises(KeyboardInterrupt):
        model().fit(train, val, output_dir=folder, callbacks=[Stop()], **fit)
    resumed = model()
    history = resumed.fit(train, val, output_dir=folder, resume=True, **fit)
    assert repr(list(history)) == repr(list(expected))  # an undefined metric is NaN
    assert same(whole, resumed)


def test_another_weight_is_another_run(tmp_path: Path) -> None:
    model().fit(data(), output_dir=tmp_path / "run", **{**FIT, "epochs": 1})
    other = model({**HEADS, "fold": {**HEADS["fold"], "weight": 3}})
    with pytest.raises(Exception, match=r"fold/weight"):
        other.fit(data(), output_dir=tmp_path / "run", resume=True, **FIT)


# --- the loss ------------------------------------------------------------------------------------


def gradients(sizes: int) -> tuple[dict[str, torch.Tensor], float]:
    """Of one optimizer window over all samples, in batches of a size."""
    trained, samples = model(), data()
    for part in trained.heads:
        part.task.fit_targets(part.labels([s.target for s in samples]))
    heads = [part.weighed(part.labels([s.target for s in samples])) for part in trained.heads]
    runner = SupervisedRunner(trained.backbone, heads, device=torch.device("cpu"))
    sums, n = 0.0, 0
    for batch in batched(samples, sizes):
        inputs = as_inputs(batch)
        total, count = runner.loss(inputs, runner.outputs(inputs))
        total.backward()
        sums, n = sums + float(total.detach()), n + count
    assert trained.head is not None
    return {name: p.grad / n for name, p in trained.head.named_parameters()}, sums / n


def test_the_loss_is_the_weighted_sum_of_means_however_samples_are_batched() -> None:
    trained, samples = model(), data()
    for part in trained.heads:
        part.task.fit_targets(part.labels([s.target for s in samples]))
    runner = SupervisedRunner(trained.backbone, trained.heads, device=torch.device("cpu"))
    result = runner.evaluate(batched(samples, 4))
    means = {name: head.loss for name, head in result.heads.items()}
    assert result.loss == pytest.approx(means["stability"] + 2 * means["fold"])
    whole, loss = gradients(12)
    assert loss == pytest.approx(result.loss, rel=1e-5)
    for size in (1, 5):
        parts, again = gradients(size)
        assert again == pytest.approx(loss, rel=1e-5)
        for name, gradient in parts.items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


def test_a_weight_scales_the_gradient_of_its_head() -> None:
    def first_gradient(weight: float) -> torch.Tensor:
        heads = {"stability": {"task": "regression"}, "fold": {**HEADS["fold"], "weight": weight}}
        trained, samples = model(heads), data(missing=False)
        for part in trained.heads:
            part.task.fit_targets(part.labels([s.target for s in samples]))
        runner = SupervisedRunner(trained.backbone, trained.heads, device=torch.device("cpu"))
        inputs = as_inputs(samples)
        runner.loss(inputs, runner.outputs(inputs)).total.backward()
        assert trained.head is not None
        return torch.cat(
            [p.grad.flatten() for p in trained.head.get_submodule("fold").parameters()]
        )

    torch.testing.assert_close(first_gradient(4.0), 4 * first_gradient(1.0))


def test_a_head_without_labels_in_validation_has_no_say() -> None:
    trained = model()
    only = [
        Sample(id=s.id, sequence=s.sequence, target={"stability": s.target["stability"]})
        for s in data(6, missing=False)
    ]
    history = trained.fit(data(), only, **FIT)
    row = history[-1]
    assert np.isnan(row["val/fold/loss"])
    assert row["val_loss"] == pytest.approx(row["val/stability/loss"])


def test_a_metric_of_one_head_decides_the_best_epoch() -> None:
    strategy = HeadOnlyFinetune(lr=1e-2, monitor="val/fold/accuracy")
    history = model().fit(data(), data(6), **{**FIT, "strategy": strategy})
    assert history.best["val/fold/accuracy"] == max(row["val/fold/accuracy"] for row in history)
    strategy = HeadOnlyFinetune(monitor="val/accuracy")
    with pytest.raises(ConfigError, match=r"'val/accuracy'.*val/fold/accuracy"):
        model().fit(data(), data(6), **{**FIT, "strategy": strategy})


def test_intervals_are_those_of_each_head() -> None:
    trained = model()
    trained.fit(data(), **FIT)
    found = trained.evaluate(data(), bootstrap=20)
    assert found["stability/rmse_low"] <= found["stability/rmse"] <= found["stability/rmse_high"]
    assert {"fold/accuracy_low", "fold/accuracy_high"} <= found.keys()


def test_a_head_without_labels_is_named(caplog: pytest.LogCaptureFixture) -> None:
    samples = [replace(s, target={"stability": 1.0}) for s in data(4)]
    trained = model()
    with pytest.raises(DataError, match=r"^fold: no training sample has a label\. Fill its column"):
        trained.fit(samples, **FIT)
    trained.fit(data(4), **FIT)
    found = trained.evaluate(samples)
    assert "fold: no sample has a label, so it is not measured." in caplog.messages
    assert found["stability/rmse"] > 0
    assert not {name for name, value in found.items() if "fold" in name and value == value}
    with pytest.raises(DataError, match="Nothing to evaluate: the data has no labels"):
        trained.evaluate([replace(s, target=None) for s in samples])


# --- one head ------------------------------------------------------------------------------------


def test_one_named_head_trains_as_the_only_one_does() -> None:
    named, only = (
        model({"stability": HEADS["stability"]}),
        MolfunStructureModel("esm2_tiny", head="regression", device="cpu"),
    )
    labels = {s.id: s.target["stability"] for s in data(missing=False)}
    plain = [Sample(id=s.id, sequence=s.sequence, target=labels[s.id]) for s in data()]
    samples = [replace(s, target={"stability": s.target}) for s in plain]
    losses = [
        [row["train_loss"] for row in one.fit(given, **FIT)]
        for one, given in ((named, samples), (only, plain))
    ]
    assert losses[0] == losses[1]


def test_a_checkpoint_of_one_head_is_what_earlier_versions_read(tmp_path: Path) -> None:
    MolfunStructureModel("esm2_tiny", head="regression").save(tmp_path / "one")
    model().save(tmp_path / "two")
    one = json.loads((tmp_path / "one" / "meta.json").read_text())
    two = json.loads((tmp_path / "two" / "meta.json").read_text())
    assert (one["format"], one["head"]["name"], one["task"]["name"]) == (1, "mlp", "regression")
    assert "heads" not in one
    assert (two["format"], [h["name"] for h in two["heads"]]) == (2, ["stability", "fold"])
    assert [h.task["name"] for h in read_meta(tmp_path / "two").heads] == [
        "regression",
        "multiclass",
    ]
    assert "mlp (stability) and mlp (fold)" in (tmp_path / "two" / "README.md").read_text()
    with pytest.raises(Exception, match=r"head: .* in it, .* in this model|does not fit"):
        MolfunStructureModel("esm2_tiny", head="regression").load(tmp_path / "two")


def test_the_weight_of_the_only_named_head_counts_in_every_loss() -> None:
    heavy = {"stability": {**HEADS["stability"], "weight": 3.0}}
    samples = [
        Sample(id=s.id, sequence=s.sequence, target={"stability": s.target["stability"]})
        for s in data(missing=False)
    ]
    rows = [
        model(heads).fit(samples, samples, **{**FIT, "strategy": HeadOnlyFinetune(lr=1e-9)})[0]
        for heads in (heavy, {"stability": HEADS["stability"]})
    ]
    for name in ("train_loss", "val_loss"):
        assert rows[0][name] == pytest.approx(3 * rows[1][name], rel=1e-4)


# --- samples with labels of one name only --------------------------------------------------------


def test_labels_of_other_names_are_no_contradiction() -> None:
    digests = [1, 1, 2, 2, 3]
    targets = [{"a": 1.0}, {"b": 2.0}, {"a": 1.0}, {"a": 2.0, "b": 3.0}, {"a": 5.0}]
    assert trained_on.conflicts(digests, targets) == 2
    assert trained_on.conflicts([1, 1, 1, 2], [1.0, 1.0, None, 3.0]) == 0
    assert trained_on.conflicts([1, 1, 1, 2], [1.0, 2.0, 1.0, 3.0]) == 3


# --- atoms: a head that is a part of the backbone -------------------------------------------------


def test_energies_beside_another_label_fit_their_baseline() -> None:
    pytest.importorskip("metatrain")
    samples = build_atoms(6)
    both = [replace(s, target={"e": s.target, "gap": float(i)}) for i, s in enumerate(samples)]
    heads = {"e": {"head": "energy"}, "gap": {"task": "regression"}}
    fit: dict[str, Any] = {"epochs": 1, "strategy": FullFinetune(lr=1e-9), "seed": 0}
    trained = MolfunStructureModel("pet", heads=heads, device="cpu")
    trained.fit(both, **fit)
    only = MolfunStructureModel("pet", head="energy", device="cpu")
    only.fit(samples, **fit)
    ours, theirs = (m.backbone.baseline_of("energy") for m in (trained, only))
    assert ours is not None
    assert ours == theirs
    with pytest.raises(ConfigError, match=r"The head 'mlp' is Molfun's own"):
        export(trained, "model.pt")
    with pytest.raises(ConfigError, match=r"Forgetting is for models with head='energy'"):
        Forgetting(trained, samples)
    twice = {"e": {"head": "energy"}, "f": {"task": "energy"}}
    with pytest.raises(ConfigError, match=r"heads: e and f both have the head 'energy'"):
        MolfunStructureModel("pet", heads=twice, device="cpu")


def test_one_label_with_directions_is_enough_to_note_it() -> None:
    pytest.importorskip("metatrain")
    vector = {"task": "regression", "task_config": {"shape": [3]}}
    heads = {"dipole": vector, "gap": {"task": "regression"}}
    assert MolfunStructureModel("pet", heads=heads, device="cpu").backbone.directed
    assert not MolfunStructureModel(
        "pet", heads={"gap": heads["gap"]}, device="cpu"
    ).backbone.directed


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ({}, r"heads names no head"),
        ({"a.b": {"task": "regression"}}, r"'a\.b' cannot name a head"),
        ({"keys": {"task": "regression"}}, r"'keys' cannot name a head"),
        ({"trunk": {"task": "regression"}}, r"'trunk' cannot name a head"),
        ({"a": {}}, r"heads\['a'\] names neither head nor task"),
        ({"a": {"tsak": "regression"}}, r"Unknown key in heads\['a'\] 'tsak'.*'task'"),
        ({"a": {"task": "regresion"}}, r"'regresion'.*regression"),
        ({"a": {"task": "regression", "weight": 0}}, r"heads\['a'\]: weight must be .* above 0"),
        ({"a": {"task": "regression", "weight": "2"}}, r"weight must be a number .*'2'"),
        ({"a": 3}, r"heads\['a'\] must map names to values, got 3"),
        ([1], r"heads must map names to values"),
    ],
)
def test_settings_that_cannot_be(heads: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        model(heads)


def test_one_head_or_several() -> None:
    with pytest.raises(ConfigError, match=r"head and task \(for one\), or heads \(for several\)"):
        model(head="mlp")
    with pytest.raises(
        ConfigError, match=r"several heads \(stability, fold\): look at model\.heads"
    ):
        _ = model().task


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (1.0, r"several heads, so a label maps their names to labels.*got 1\.0"),
        ({"stabilty": 1.0}, r"1 label name without a head.*stabilty.*fold, stability"),
        ({"stability": "much"}, r"p1.*much"),
    ],
)
def test_labels_that_cannot_be(target: Any, text: str) -> None:
    samples = data()
    samples[1] = Sample(id="p1", sequence="MKV", target=target)
    with pytest.raises(DataError, match=f"(?s){text}"):
        model().fit(samples, **FIT)


def test_a_label_of_the_wrong_length_names_the_sample() -> None:
    samples = data()
    samples[1] = Sample(id="p1", sequence="MKV", target={"fold": ["coil"]})
    with pytest.raises(DataError, match=r"(?s)p1: 1 labels for 3 residues"):
        model().fit(samples, **FIT)


def test_missing_labels_are_counted_by_head(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="molfun"):
        model().fit(data(), **FIT)
    texts = [record.getMessage() for record in caplog.records]
    assert "stability: 2 of 12 training samples have no label." in texts
    assert "fold: 2 of 12 training samples have no label." in texts

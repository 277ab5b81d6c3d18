"""Fine-tuning on coordinates: strategies, caches, resume, several tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_runs import Crash, StopAt
from tiny import build_structure, build_tiny_model

from molfun import MolfunStructureModel
from molfun.errors import ConfigError, DataError
from molfun.models.ensemble import Ensemble
from molfun.protein import UNKNOWN_RESIDUE, Protein
from molfun.sample import Sample
from molfun.strategies import (
    FinetuneStrategy,
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)
from molfun.tasks import StructureTask
from molfun.training import Callback

SEQUENCES = ("MKRDEFYWHA", "GRDFEYKLMN", "MKRDEWHAAG")
STRATEGIES: dict[str, FinetuneStrategy] = {
    "head_only": HeadOnlyFinetune(lr=1e-2),
    "lora": LoRAFinetune(rank=2, lr_lora=1e-2, ema_decay=0.5),
    "partial": PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3, accumulation_steps=2),
    "full": FullFinetune(lr=1e-3),
    "gradual": GradualFinetune(
        inner=PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3), unfreeze_epoch=1
    ),
}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    proteins = [build_structure(sequence, seed=5 + i) for i, sequence in enumerate(SEQUENCES)]
    return [Sample(id=f"s{i}", protein=p, target=p) for i, p in enumerate(proteins)]


def structure_model(*, backbone: dict[str, Any] | None = None, **task: Any) -> MolfunStructureModel:
    settings = {"fill_zero_init": 0.1, **(backbone or {})}
    return build_tiny_model(head="structure", task_config=task, backbone_config=settings)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_and_its_checkpoint_folds_alike(
    samples: list[Sample], name: str, tmp_path: Path
) -> None:
    model = structure_model()
    before = model.evaluate(samples[:2])
    history = model.fit(
        samples[:2], samples[2:], strategy=STRATEGIES[name], epochs=2, output_dir=tmp_path
    )
    after = model.evaluate(samples[:2])
    assert after["loss"] < before["loss"]
    row = history[-1]
    assert {"val/lddt_ca", "val/tm_score", "val/fape", "val/fape_loss", "val/tm_loss"} <= set(row)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    for one, other in zip(
        model.predict(samples[2:])["positions"],
        loaded.predict(samples[2:])["positions"],
        strict=True,
    ):
        assert np.array_equal(one, other, equal_nan=True)
    if name == "lora":
        merged = loaded.merge().predict(samples[2:])["positions"][0]
        own = model.predict(samples[2:])["positions"][0]
        assert np.nanmax(np.abs(merged - own)) < 1e-3
    if name in ("head_only", "partial"):
        assert "ran 3 times" in history.cache_report


def test_adapters_may_train_the_structure_module_too(samples: list[Sample], tmp_path: Path) -> None:
    model = structure_model()
    strategy = LoRAFinetune(rank=2, lr_lora=1e-2, adapt_structure_module=True)
    model.fit(samples[:2], strategy=strategy, epochs=1, output_dir=tmp_path)
    own = {n: p for n, p in model.backbone.named_parameters() if "structure_module" in n}
    adapters = {n for n, p in own.items() if p.requires_grad}
    assert {n.split(".lora_")[0] for n in adapters} == set(model.backbone.lora_structure)
    assert all(bool(own[n].any()) for n in adapters if "lora_B" in n)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    one, other = (m.predict(samples[2:])["positions"][0] for m in (model, loaded))
    assert np.array_equal(one, other, equal_nan=True)
    with pytest.raises(ConfigError, match="has no structure module"):
        MolfunStructureModel("esm2_tiny", head="mlp").fit(
            [("MKV", 1.0), ("MKL", 2.0)], strategy=strategy, epochs=1
        )


def test_heads_alone_leave_the_coordinates_as_they_are(samples: list[Sample]) -> None:
    model = structure_model()
    before = model.predict(samples[2:])
    model.fit(samples[:2], strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    after = model.predict(samples[2:])
    assert np.array_equal(before["positions"][0], after["positions"][0], equal_nan=True)
    assert not np.allclose(before["plddt"][0], after["plddt"][0])


def test_a_run_that_was_killed_goes_on_bit_by_bit(samples: list[Sample], tmp_path: Path) -> None:
    """Drawn recycling passes, dropout and the start of the violation loss continue."""

    def run(folder: Path, *callbacks: Callback, resume: bool = False) -> Any:
        model = structure_model(
            backbone={"recycling": 2, "recycles": "uniform"}, violation=1.0, violation_after=4
        )
        history = model.fit(
            samples[:2],
            samples[2:],
            strategy=LoRAFinetune(rank=2, lr_lora=1e-2, dropout=0.1),
            epochs=3,
            output_dir=folder,
            callbacks=list(callbacks),
            save_every_steps=1,
            resume=resume,
        )
        return history, {n: p.detach().clone() for n, p in model.named_parameters()}

    whole, weights = run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "killed", StopAt(5))
    resumed, again = run(tmp_path / "killed", resume=True)
    assert repr(resumed) == repr(whole)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # not counted before step 4, and counted after it
    assert np.isnan(whole[0]["val/violation_loss"]) or whole[0]["val/violation_loss"] == 0
    assert whole[2]["val/violation_loss"] > 0


def test_two_tasks_share_a_trunk(samples: list[Sample], tmp_path: Path) -> None:
    model = MolfunStructureModel(
        "openfold",
        config="tiny",
        heads={
            "affinity": {"head": "affinity"},
            "structure": {"task": "structure", "weight": 0.3},
        },
    )
    both = [
        replace(s, target={"affinity": 6.0 + i, "structure": s.protein})
        for i, s in enumerate(samples)
    ]
    both[1] = replace(both[1], target={"affinity": 7.0})
    history = model.fit(both, both, strategy=LoRAFinetune(rank=2), epochs=1, output_dir=tmp_path)
    assert {"val/affinity/rmse", "val/structure/lddt_ca", "val/structure/fape_loss"} <= set(
        history[0]
    )
    loss = history[0]["val/affinity/loss"] + 0.3 * history[0]["val/structure/loss"]
    assert history[0]["val_loss"] == pytest.approx(loss)
    structure = next(part for part in model.heads if part.name == "structure")
    # one label per structure, however many atoms it has
    assert structure.task.count(samples[0].protein) == 1
    predicted = model.predict(both)
    assert len(predicted["structure"]["positions"]) == 3


def test_what_cannot_be_trained_is_refused(samples: list[Sample]) -> None:
    without = [replace(s, target=replace(s.target, resolution=None)) for s in samples]
    nothing = dict.fromkeys(structure_model().task.config_dict, 0.0)  # type: ignore[union-attr]  # is one
    weights = {
        name: 0.0
        for name in nothing
        if name not in ("violation_after", "clamped_fape", "resolution")
    }
    with pytest.raises(DataError, match="loss is zero for all structures: 3 of 3 structures"):
        structure_model(**{**weights, "plddt": 1.0}).fit(without, epochs=1)
    with pytest.raises(ConfigError, match="one above it"):
        structure_model(**weights)
    with pytest.raises(DataError, match="Protein with coordinates"):
        structure_model().fit([replace(samples[0], target=6.0)], epochs=1)
    blank = replace(samples[0].target, atom_mask=np.zeros_like(samples[0].target.atom_mask))
    with pytest.raises(DataError, match="no sample has coordinates"):
        structure_model().fit([replace(samples[0], target=blank)], epochs=1)
    with pytest.raises(ConfigError, match="is trained by the task 'structure'"):
        build_tiny_model(head="structure", task="regression")
    with pytest.raises(ConfigError, match="is that of the head 'structure' alone, got 'mlp'"):
        build_tiny_model(head="mlp", task="structure")
    with pytest.raises(ConfigError, match="part of models that predict structures"):
        MolfunStructureModel("esm2_tiny", head="structure")
    with pytest.raises(DataError, match="this model does not compute masked_msa"):
        structure_model(**{**weights, "masked_msa": 1.0}).fit(samples, epochs=1)
    with pytest.raises(DataError, match="loss is zero for all structures: 3 of 3 structures"):
        structure_model(**{**weights, "plddt": 1.0, "masked_msa": 1.0}).fit(without, epochs=1)
    with pytest.raises(ConfigError, match="depends on no weight that trains"):
        structure_model(**{**weights, "fape": 1.0}).fit(
            samples, strategy=HeadOnlyFinetune(), epochs=1
        )


def test_samples_without_labels_and_residues_of_unknown_type_are_measured_nowhere(
    samples: list[Sample],
) -> None:
    model = structure_model()
    longest = Sample(id="u", protein=Protein.from_sequence("MKRDEFYWHAMKR"))
    assert model.evaluate([*samples, longest]) == pytest.approx(model.evaluate(samples))
    # the model predicts no atoms of X, so that its known ones are compared with nothing
    kinds = samples[0].target.aatype.copy()
    kinds[4] = UNKNOWN_RESIDUE
    with_x = replace(samples[0].target, aatype=kinds)
    mask = with_x.atom_mask.copy()
    mask[4] = 0
    one, other = (
        model.evaluate([replace(samples[0], protein=with_x, target=target)])
        for target in (with_x, replace(with_x, atom_mask=mask))
    )
    for name in ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "fape"):
        assert one[name] == pytest.approx(other[name]), name


def test_a_structure_too_small_for_a_metric_does_not_hide_the_others(
    samples: list[Sample],
) -> None:
    model = structure_model()
    whole = samples[0].protein
    assert whole is not None
    small = whole.take(np.arange(2))
    two = Sample(id="two", protein=small, target=small)
    alone, both = model.evaluate(samples[:1]), model.evaluate([samples[0], two])
    for name in ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "fape", "clashes"):
        assert both[name] == pytest.approx(alone[name], rel=1e-4), name
    assert np.isnan(model.evaluate([two])["lddt_ca"])


def test_structures_without_resolution_are_counted_at_the_start(
    samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    some = [replace(samples[0], target=replace(samples[0].target, resolution=None)), samples[1]]
    structure_model().fit(some, strategy=HeadOnlyFinetune(), epochs=1)
    assert "1 of 2 structures without a resolution from 0.1 to 3.0 angstrom" in caplog.text
    caplog.clear()
    structure_model(resolution=2.5).fit(some, strategy=HeadOnlyFinetune(), epochs=1)
    assert "without a resolution" not in caplog.text


def test_a_loss_that_begins_after_some_steps_alone_is_refused(samples: list[Sample]) -> None:
    nothing = dict.fromkeys(StructureTask().weights, 0.0)
    late = {**nothing, "violation": 1.0, "violation_after": 5}
    with pytest.raises(DataError, match="loss is zero before step 5: only the violation has a"):
        structure_model(**late).fit(samples, strategy=HeadOnlyFinetune(), epochs=1)


def test_a_checkpoint_counts_the_terms_that_its_training_counted(
    samples: list[Sample], tmp_path: Path
) -> None:
    model = structure_model(violation=1.0, violation_after=1)
    model.fit(samples[:2], strategy=HeadOnlyFinetune(), epochs=1, output_dir=tmp_path)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    found = loaded.evaluate(samples[2:])
    assert found["violation_loss"] > 0
    assert found == pytest.approx(model.evaluate(samples[2:]))
    history = loaded.fit(samples[:1], samples[2:], strategy=HeadOnlyFinetune(), max_steps=1)
    # another fit counts its own steps
    assert history[0]["train_loss"] < found["loss"]


def test_an_ensemble_takes_the_most_confident_structure_and_averages_no_coordinates(
    samples: list[Sample],
) -> None:
    short = replace(samples[0], id="short", protein=samples[0].protein.take(np.arange(7)))
    models = [build_tiny_model(head="structure", seed=seed) for seed in (0, 3)]
    for model in models:
        model.task.fitted = True
    one, other = (model.predict([samples[1], short]) for model in models)
    found = Ensemble(models).predict([samples[1], short])
    for i in range(2):
        best = max((one, other), key=lambda p: float(p["prediction"][i]))
        assert np.allclose(found["positions"][i], best["positions"][i], atol=1e-3, equal_nan=True)
        means = [float(p["prediction"][i]) for p in (one, other)]
        assert float(found["std"][i]) == pytest.approx(np.std(means, ddof=1), rel=1e-3)
    whole = Ensemble(models).evaluate(samples[1:2])
    assert whole["rmsd"] in (whole["member_1/rmsd"], whole["member_2/rmsd"])


def test_terms_are_means_over_the_structures_for_which_they_count(samples: list[Sample]) -> None:
    model = structure_model()
    none = replace(samples[1], target=replace(samples[1].target, resolution=None))
    alone, both, without = (
        model.evaluate(part) for part in ([samples[0]], [samples[0], none], [none])
    )
    assert both["plddt_loss"] == pytest.approx(alone["plddt_loss"])
    assert np.isnan(without["tm_loss"])
    mean = (alone["fape_loss"] + without["fape_loss"]) / 2
    assert both["fape_loss"] == pytest.approx(mean)


def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(samples: list[Sample]) -> None:
    broken = samples[0].target.atom_positions.copy()
    broken[2] *= 1e30  # finite, and its square is not
    bad = replace(samples[0], target=replace(samples[0].target, atom_positions=broken))
    history = structure_model().fit([[bad], [samples[1]]], strategy=HeadOnlyFinetune(), epochs=1)
    assert history[0]["skipped"] == 1
